"""The self-calibrated measure of error: a rule may err as much as autodiff does, or as the problem is ill-conditioned.

Let o be the oracle's answer in float64 at the exact inputs, a autodiff's in the working dtype, r the rule's, d_k the
change of o when each input is rounded at random by up to u, half a unit in the last place. For N the root mean square
and the maximum, the tolerance is 8 max(N(a - o), max_k N(d_k), u N(o), u S). S is N(o) at the inputs as given, or at
these shrunk to a root mean square of one if it is larger there: where a function saturates o may be far below it, and
one rounding of a number of the usual size is no fault. Nothing here is set by hand for a rule. Of complex numbers the
real and the imaginary part are two numbers.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from vjplib.compat import x64
from vjplib.verification.call import HALF_THE_DIGITS as HALF_THE_DIGITS
from vjplib.verification.call import CallUnderTest, Leaves

SLACK = 8.0
UNSTABLE = 64.0
ROUNDINGS = 64.0  # halves of a unit in the last place of the usual size that answers in float64 may differ by
DRAWS = 4
MANIFEST = 0.1  # relative, an error that is more than that of few digits


@dataclass(frozen=True)
class Error:
    """An error of one array.

    Args:
        ratio: in units of the tolerance; above 1 it is too large.
        excused: the same, with autodiff's error as the tolerance however large it is, and with rounding of numbers of
            the inputs' size allowed for; above 1 it is a fault.
        index: where it is worst.
        relative: as a multiple of autodiff's, by root mean square; infinite where only autodiff makes no error.
        lost: whether autodiff's answer is not finite where the oracle's is.
        unstable: whether autodiff's own error is more than rounding explains.
        known: the share of the array at which the oracle is a number; the rest cannot be judged.
        size: the error itself, by root mean square, relative to the oracle's answer.
        of_autodiff: autodiff's, likewise.
    """

    ratio: float
    excused: float
    index: tuple[int, ...]
    relative: float
    lost: bool
    unstable: bool
    known: float
    size: float = 0.0
    of_autodiff: float = 0.0

    @property
    def excuse(self) -> str:
        """Why an error above the tolerance is no fault."""
        if self.unstable and self.of_autodiff > MANIFEST:
            return "no worse than autodiff of the reference, which gives other values in float64, as random numbers do"
        if self.unstable:
            return "no worse than autodiff of the reference, which is unstable there"
        return "no more than the rounding of numbers as large as the inputs, which the rule may keep, explains"


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
    sizes = [_rms(as_parts(a) if np.iscomplexobj(a) else np.where(np.isfinite(a), a, 0.0)) for a in exact]
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


def unit_of(leaves: Sequence[np.ndarray]) -> float:
    """Returns half a unit in the last place, relative, of the coarsest dtype among the leaves."""
    return max((float(jnp.finfo(a.dtype).eps) / 2 for a in leaves), default=0.0)


def error(
    r: np.ndarray,
    o: np.ndarray,
    a: np.ndarray,
    draws: Sequence[np.ndarray],
    unit: float,
    typical: np.ndarray | None = None,
    reach: float = 1.0,
) -> Error:
    """Returns the error of one array in units of its tolerance.

    Args:
        r: the rule's answer, in the working dtype.
        o: the oracle's, in float64.
        a: autodiff's, in the working dtype.
        draws: the changes of o under rounding.
        unit: half a unit in the last place, relative.
        typical: the oracle's answer at inputs of the usual size; None for o itself.
        reach: the size of the inputs, if above one. What a rule keeps may be as large, and be rounded by that many
            units: exponentiated again, as the logarithm of a sum of exponentials is, it errs by as much, relatively.

    Where autodiff errs more than 64 times what rounding explains it is unstable, and rounding alone is the measure.
    """
    if any(map(np.iscomplexobj, (r, o, a))):
        e = error(
            as_parts(r),
            as_parts(o),
            as_parts(a),
            [as_parts(d) for d in draws],
            unit,
            None if typical is None else as_parts(typical),
            reach,
        )
        return replace(e, index=e.index[:-1])
    dtype = r.dtype
    limit, tiny = float(jnp.finfo(dtype).max), float(jnp.finfo(dtype).smallest_normal)
    r, a = r.astype(np.float64), a.astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        target = np.where(np.abs(o) > limit, np.copysign(np.inf, o), o)
        known = ~np.isnan(target)
        wrong = _gap(r, target, known)
        if wrong.size == 0:
            return Error(0.0, 0.0, (), 1.0, False, False, 1.0)
        of_autodiff = _gap(a, target, known)
        finite = np.isfinite(target)
        scale = np.where(finite, target, 0.0)
        changes = [np.where(finite & np.isfinite(d), d, 0.0) for d in draws]
        given = scale if typical is None else np.where(np.isfinite(typical), typical, 0.0)
    worst = tuple(int(i) for i in np.unravel_index(np.argmax(np.where(np.isnan(wrong), np.inf, wrong)), wrong.shape))
    ratios, excused, unstable = [], [], False
    for norm in (_rms, _max):
        floor = max([unit * norm(scale), unit * norm(given), tiny, *(norm(d) for d in changes)])
        autodiff = norm(of_autodiff)
        tolerance = max(floor, autodiff) if np.isfinite(autodiff) else floor
        excused.append(norm(wrong) / (SLACK * max(tolerance, reach * unit * max(norm(scale), norm(given)))))
        if autodiff > UNSTABLE * floor:
            unstable, tolerance = True, floor
        ratios.append(norm(wrong) / (SLACK * tolerance))
    ours, theirs = _rms(wrong), _rms(of_autodiff)
    relative = ours / theirs if theirs else (np.inf if ours else 1.0)
    return Error(
        max(ratios),
        max(excused),
        worst,
        1.0 if np.isnan(relative) else float(relative),
        not np.isfinite(theirs),
        unstable,
        float(np.mean(known)),
        ours / (_rms(scale) or 1.0),
        theirs / (_rms(scale) or 1.0),
    )


def reach_of(leaves: Sequence[np.ndarray]) -> float:
    """Returns the size of the largest finite number among the leaves, at least one.

    Example:
        >>> reach_of([np.float32([0.5, -3, np.inf])])
        3.0
    """
    return max([1.0, *(size_of(wide(np.asarray(a))) for a in leaves)])


def wide(x: np.ndarray) -> np.ndarray:
    """Returns an array in float64, in complex128 if it is complex."""
    return x.astype(np.complex128 if np.iscomplexobj(x) else np.float64)


def as_parts(x: np.ndarray) -> np.ndarray:
    """Returns real and imaginary part along a new last axis.

    Example:
        >>> as_parts(np.array([1 + 2j])).tolist()
        [[1.0, 2.0]]
    """
    return np.stack((np.real(x), np.imag(x)), axis=-1)


def _gap(x: np.ndarray, target: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Returns |x - target|, 0 where both are the same infinity or the target is unknown, inf where x is not finite."""
    with np.errstate(invalid="ignore"):
        gap = np.where((x == target) | ~known, 0.0, np.abs(x - target))
    return np.where(np.isnan(gap), np.inf, gap)


def relative_gap(x: np.ndarray, target: np.ndarray, scale: float = 0.0) -> float:
    """Returns the largest |x - target| by the largest |target|, or by scale if that is larger.

    Equal infinities do not differ, nor anything from a NaN in the target. Another shape or dtype is infinitely far.

    Args:
        x: an array.
        target: what it should be.
        scale: a size below which a difference counts less.
    """
    if x.shape != target.shape or x.dtype != target.dtype:
        return np.inf
    if np.iscomplexobj(target):
        x, target = as_parts(x), as_parts(target)
    gap = _max(_gap(x, target, ~np.isnan(target)))
    return gap / max(size_of(target), scale, float(np.finfo(np.float64).tiny))


def size_of(x: np.ndarray) -> float:
    """Returns the largest finite |x|, 0 for an empty array."""
    x = as_parts(x) if np.iscomplexobj(x) else x
    return _max(np.where(np.isfinite(x), x, 0.0))


def _rms(x: np.ndarray) -> float:
    largest = _max(x)
    return largest if largest in (0.0, np.inf) else largest * float(np.sqrt(np.mean((x / largest) ** 2)))


def _max(x: np.ndarray) -> float:
    return float(np.max(np.abs(x), initial=0.0))
