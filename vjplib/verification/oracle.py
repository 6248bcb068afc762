"""The oracle: what the reference gives in float64, and how far rounding of the inputs moves it."""

import itertools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from vjplib.compat import x64
from vjplib.verification.call import CallUnderTest, Leaves
from vjplib.verification.tolerance import as_parts, root_mean_square, size_of, to_float64

DRAWS = 4
ROUNDINGS = 64.0  # units of half the last place of a typical magnitude that results in float64 may differ by
Pull = Callable[[Leaves, Leaves], tuple[Leaves, Leaves]]


def evaluate_oracle(
    subject: CallUnderTest, leaves: Leaves, gs: Leaves, unit: float, tied: bool = False
) -> tuple[Leaves, list[Leaves]]:
    """Return the oracle's results at the exact upcasts of leaves and cotangents, and their changes at four roundings.

    Numbers are rounded by up to `unit`, relative; equal numbers of an array alike if `tied`, so that ties stay.
    """
    rng = np.random.default_rng((subject.seed, 2))

    def rounded(a: np.ndarray) -> np.ndarray:
        if np.iscomplexobj(a):  # a product would move infinities from one part to the other
            return np.stack((rounded(np.real(a)), rounded(np.imag(a))), axis=-1).view(a.dtype)[..., 0]
        noise = rng.uniform(-1, 1, (DRAWS, *a.shape))
        if tied:
            _, first, which = np.unique(a, return_index=True, return_inverse=True)
            noise = noise.reshape(DRAWS, -1)[:, first[which.ravel()]].reshape(noise.shape)
        return np.concatenate((a[None], a[None] * (1 + unit * noise)))

    with x64():
        stacks = jax.tree.map(rounded, leaves_to_float64(leaves, gs))
        exact, *moved = (_results(subject.truths, *jax.tree.map(lambda a, k=k: a[k], stacks)) for k in range(1 + DRAWS))
    with np.errstate(invalid="ignore"):
        return exact, [tuple(a - o for a, o in zip(there, exact, strict=True)) for there in moved]


def leaves_to_float64(*parts: Leaves) -> tuple[Leaves, ...]:
    """Return leaves and cotangents in float64."""
    return tuple(tuple(to_float64(np.asarray(a)) for a in part) for part in parts)


def _results(pull: Pull, leaves: Leaves, gs: Leaves) -> Leaves:
    return tuple(map(np.asarray, itertools.chain(*pull(leaves, gs))))


def typical_magnitude(subject: CallUnderTest, leaves: Leaves, gs: Leaves, own: bool = False) -> Leaves:
    """Return outputs and cotangents of the oracle, if `own` of the function, in float64 where it is not saturated yet.

    Each array is the larger of two: that at the leaves, and that at the leaves shrunk to a root mean square of 1.
    """
    pull = subject.pullback if own else subject.truths
    exact, cotangents = leaves_to_float64(leaves, gs)
    sizes = [root_mean_square(as_parts(a) if np.iscomplexobj(a) else np.where(np.isfinite(a), a, 0.0)) for a in exact]
    shrunk = tuple(a / n if n > 1 else a for a, n in zip(exact, sizes, strict=True))
    with x64():
        given = _results(pull, exact, cotangents)
        return larger(given, _results(pull, shrunk, cotangents) if max(sizes, default=0) > 1 else given)


def of_widened(subject: CallUnderTest, typical: Leaves, dtype: Any, own: bool = False) -> Leaves:
    """Return what is typical, that of the widened call where it is more: along shorter axes all may cancel."""
    wide = subject.widened
    return typical if wide is None else larger(typical, typical_magnitude(wide, *wide.point(dtype), own=own))


def larger(a: Leaves, b: Leaves) -> Leaves:
    """Return each array of a, or that of b where its largest number is larger."""
    return tuple(y if size_of(y) > size_of(x) else x for x, y in zip(a, b, strict=True))


def roundings(subject: CallUnderTest, leaves: Leaves, gs: Leaves, own: bool = False) -> list[float]:
    """Return for each output and cotangent the size whose half of the digits covers rounding in float64.

    It is far below the typical magnitude, and matters only where a function saturates so far that little is left.
    """
    unit = ROUNDINGS * subject.eps / 2
    typical = of_widened(subject, typical_magnitude(subject, leaves, gs, own), np.float64, own)
    return [unit * size_of(a) / float(np.sqrt(subject.eps)) for a in typical]
