"""The oracle: what the reference gives in float64, and how far rounding of the inputs moves it."""

import itertools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from vjplib.compat import x64
from vjplib.verification.call import CallUnderTest, Leaves
from vjplib.verification.tolerance import as_parts, root_mean_square, size_of, wide

DRAWS = 4
ROUNDINGS = 64.0  # units of half the last place of a typical magnitude that results in float64 may differ by


class Oracle(NamedTuple):
    """The oracle's outputs and cotangents in float64, and their changes under rounding of the inputs."""

    values: Leaves
    draws: tuple[Leaves, ...]


def evaluate_oracle(subject: CallUnderTest, leaves: Leaves, gs: Leaves, unit: float, tied: bool = False) -> Oracle:
    """Returns the oracle's answer at the exact upcasts of leaves and cotangents, and at four roundings of them.

    Args:
        subject: what to examine.
        leaves: the differentiated leaves, in the working dtype.
        gs: the output cotangents, in the working dtype.
        unit: half a unit in the last place of the working dtype, relative.
        tied: whether equal numbers of an array are rounded alike, so that ties stay.
    """
    rng = np.random.default_rng((subject.seed, 2))
    exact = [[wide(np.asarray(a)) for a in part] for part in (leaves, gs)]

    def rounded(a: np.ndarray) -> np.ndarray:
        if np.iscomplexobj(a):  # a product would move infinities from one part to the other
            return np.stack((rounded(np.real(a)), rounded(np.imag(a))), axis=-1).view(a.dtype)[..., 0]
        noise = rng.uniform(-1, 1, (DRAWS, *a.shape))
        if tied:
            _, first, which = np.unique(a, return_index=True, return_inverse=True)
            noise = noise.reshape(DRAWS, -1)[:, first[which.ravel()]].reshape(noise.shape)
        return np.concatenate((a[None], a[None] * (1 + unit * noise)))

    with x64():
        stacks = (tuple(rounded(a) for a in exact[0]), tuple(rounded(a) for a in exact[1]))
        pairs = [tuple(tuple(a[k] for a in part) for part in stacks) for k in range(1 + DRAWS)]
        answers = [[np.asarray(a) for a in itertools.chain(*subject.truths(*pair))] for pair in pairs]
        rows = [np.stack(row) for row in zip(*answers, strict=True)]
    with np.errstate(invalid="ignore"):
        draws = tuple(tuple(a[1 + k] - a[0] for a in rows) for k in range(DRAWS))
    return Oracle(tuple(a[0] for a in rows), draws)


def typical_magnitude(
    subject: CallUnderTest,
    leaves: Leaves,
    gs: Leaves,
    of: Callable[[Leaves, Leaves], tuple[Leaves, Leaves]] | None = None,
) -> Leaves:
    """Returns the oracle's outputs and cotangents, in float64, at inputs where a function is not saturated yet.

    Args:
        subject: what to examine.
        leaves: the differentiated leaves as given.
        gs: the output cotangents.
        of: another pullback than the oracle's.

    Returns:
        Of each array the larger of two: that at the leaves, and that at the leaves shrunk to a root mean square of one.
    """
    exact, cotangents = (tuple(wide(np.asarray(a)) for a in part) for part in (leaves, gs))
    sizes = [root_mean_square(as_parts(a) if np.iscomplexobj(a) else np.where(np.isfinite(a), a, 0.0)) for a in exact]
    shrunk = tuple(a / n if n > 1 else a for a, n in zip(exact, sizes, strict=True))
    with x64():
        given, other = (
            [np.asarray(a) for a in itertools.chain(*(of or subject.truths)(at, cotangents))]
            for at in ((exact, shrunk) if any(n > 1 for n in sizes) else (exact, exact))
        )
    return tuple(b if size_of(b) > size_of(a) else a for a, b in zip(given, other, strict=True))


def roundings(
    subject: CallUnderTest,
    leaves: Leaves,
    gs: Leaves,
    of: Callable[[Leaves, Leaves], tuple[Leaves, Leaves]] | None = None,
) -> list[float]:
    """Returns of each output and cotangent the size of which half the digits are what rounding may take in float64.

    It is far below the typical magnitude, and matters only where a function saturates so far that little is left.
    """
    unit = ROUNDINGS * subject.eps / 2
    return [unit * size_of(a) / float(np.sqrt(subject.eps)) for a in typical_magnitude(subject, leaves, gs, of)]
