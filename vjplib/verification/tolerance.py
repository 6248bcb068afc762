"""The self-calibrated tolerance: a rule may err as much as autodiff does, or as the problem is ill-conditioned.

Let o be the oracle's result in float64 at the exact inputs, a autodiff's in the working dtype, r the rule's, d_k the
change of o when each input is rounded at random by up to u, half a unit in the last place. For N the root mean square
and the maximum, the tolerance is 8 max(N(a - o), max_k N(d_k), u N(o), u S). S is N(o) at the inputs as given, or at
inputs shrunk to a root mean square of one if it is larger there: where a function saturates, o may be far below S, and
one rounding of a number of typical magnitude is no fault. Nothing is set by hand for a rule. Real and imaginary parts
count as two numbers.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import jax.numpy as jnp
import numpy as np

HALF_THE_DIGITS = float(np.sqrt(np.finfo(np.float64).eps))  # relative, of float64
SLACK = 8.0
UNSTABLE = 64.0
MANIFEST = 0.1  # relative, an error that is more than that of few digits
SQUARED = (1e-100, 1e100)  # numbers between them have squares in float64
TOTAL = 0.5  # relative, an error that leaves nothing of what is right


@dataclass(frozen=True)
class Error:
    """The error of one array.

    Args:
        ratio: in units of the tolerance; above 1 it is too large.
        excused: the same, with autodiff's error as the tolerance however large it is, and with rounding of numbers of
            the inputs' size allowed for; above 1 it is a fault.
        index: where it is worst.
        relative: as a multiple of autodiff's, by root mean square; infinite where only autodiff makes no error.
        lost: whether autodiff's result is not finite where the oracle's is.
        unstable: whether autodiff's own error is more than rounding explains.
        known: the share of the array at which the oracle is a number; the rest cannot be judged.
        size: by root mean square, relative to the oracle's result.
        of_autodiff: autodiff's `size`.
        of_rounding: the `size` of what rounding of the inputs changes.
        infinite: the share at which the oracle is infinite and the result is not: there it cannot be judged either.
        overflows: whether the oracle's result leaves the range of the working dtype.
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
    of_rounding: float = 0.0
    infinite: float = 0.0
    overflows: bool = False

    @property
    def total(self) -> bool:
        """True if nothing is right though autodiff is, and rounding of the inputs does not matter."""
        return self.size > TOTAL and max(self.of_autodiff, self.of_rounding) * SLACK < MANIFEST

    @property
    def unknown(self) -> str:
        """What the oracle is where it is no number."""
        return "NaN" if not self.infinite else "infinite" if self.infinite >= 1 - self.known else "infinite or NaN"

    @property
    def excuse(self) -> str:
        """Why an error above the tolerance is no fault."""
        if self.unstable and self.of_autodiff > MANIFEST:
            return "no worse than autodiff of the reference, which gives other values in float64, as random numbers do"
        if self.unstable:
            return "no worse than autodiff of the reference, which is unstable there"
        return "no more than the rounding of numbers as large as the inputs, which the rule may keep, explains"


def unit_of(leaves: Sequence[np.ndarray]) -> float:
    """Return half a unit in the last place, relative, of the coarsest dtype among the leaves."""
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
    """Return the error of one array in units of its tolerance.

    Args:
        r: the rule's result, in the working dtype.
        o: the oracle's, in float64.
        a: autodiff's, in the working dtype.
        draws: the changes of o under rounding.
        unit: half a unit in the last place, relative.
        typical: the oracle's result at inputs of typical magnitude; None for o itself.
        reach: the largest magnitude of the inputs, if above one. A residual may be as large, and be rounded by that
            many units: exponentiated again, as the logarithm of a sum of exponentials is, it errs by as much.

    Where autodiff errs more than 64 times what rounding explains it is unstable, and rounding alone is the measure.
    """
    if any(map(np.iscomplexobj, (r, o, a))):
        typical = None if typical is None else as_parts(typical)
        e = error(as_parts(r), as_parts(o), as_parts(a), list(map(as_parts, draws)), unit, typical, reach)
        return replace(e, index=e.index[:-1])
    limit, tiny = float(jnp.finfo(r.dtype).max), float(jnp.finfo(r.dtype).smallest_normal)
    r, a = r.astype(np.float64), a.astype(np.float64)
    if r.size == 0:
        return Error(0.0, 0.0, (), 1.0, False, False, 1.0)
    target, known, beyond = o, np.True_, np.False_
    with np.errstate(invalid="ignore", over="ignore"):
        if not _max(o) <= limit:
            target = np.where(np.abs(o) > limit, np.copysign(np.inf, o), o)
            beyond = np.isinf(o) & np.isfinite(r)  # of a formula that overflows in float64 too
            known = ~np.isnan(target) & ~beyond
        wrong, of_autodiff = _gap(r, target, known), _gap(a, target, known)
        scale = _finite(target)
        changes = [_finite(d, target) for d in draws]
        given = scale if typical is None else _finite(typical)
    worst = tuple(int(i) for i in np.unravel_index(np.argmax(wrong), wrong.shape))
    norms = [_norms(x) for x in (wrong, of_autodiff, scale, given, *changes)]
    ratios, excused, unstable = [], [], False
    for off, autodiff, of_oracle, of_given, *of_changes in zip(*norms, strict=True):
        floor = max([unit * of_oracle, unit * of_given, tiny, *of_changes])
        tolerance = max(floor, autodiff) if np.isfinite(autodiff) else floor
        excused.append(off / (SLACK * max(tolerance, reach * unit * max(of_oracle, of_given))))
        if autodiff > UNSTABLE * floor:
            unstable, tolerance = True, floor
        ratios.append(off / (SLACK * tolerance))
    ours, theirs, size, _, *of_changes = (rms for rms, _ in norms)
    size = size or 1.0
    relative = ours / theirs if theirs else (np.inf if ours else 1.0)
    return Error(
        max(ratios),
        max(excused),
        worst,
        1.0 if np.isnan(relative) else float(relative),
        not np.isfinite(theirs),
        unstable,
        float(np.mean(known)),
        ours / size,
        theirs / size,
        max(of_changes, default=0.0) / size,
        float(np.mean(beyond)),
        bool(np.any(np.isinf(target) & np.isfinite(o))),
    )


def to_float64(x: np.ndarray) -> np.ndarray:
    """Return an array in float64, in complex128 if it is complex."""
    return x.astype(np.complex128 if np.iscomplexobj(x) else np.float64)


def as_parts(x: np.ndarray) -> np.ndarray:
    """Return real and imaginary part along a new last axis.

    Example:
        >>> as_parts(np.array([1 + 2j])).tolist()
        [[1.0, 2.0]]
    """
    return np.stack((np.real(x), np.imag(x)), axis=-1)


def _finite(x: np.ndarray, where: np.ndarray | None = None) -> np.ndarray:
    """Return x with 0 where it is not finite, or another array is not."""
    arrays = [a for a in (x, where) if a is not None and not np.isfinite(_max(a))]
    return np.where(np.logical_and.reduce([np.isfinite(a) for a in arrays]), x, 0.0) if arrays else x


def _gap(x: np.ndarray, target: np.ndarray, known: np.ndarray | np.bool_) -> np.ndarray:
    """Return |x - target|, 0 where both are the same infinity or the target is unknown, inf where x is not finite."""
    with np.errstate(invalid="ignore"):
        gap = np.abs(x - target)
        if np.isfinite(_max(gap)) and np.all(known):
            return gap
        gap = np.where((x == target) | ~known, 0.0, gap)
    return np.where(np.isnan(gap), np.inf, gap)


def relative_gap(x: np.ndarray, target: np.ndarray, scale: float = 0.0) -> float:
    """Return the largest |x - target|, divided by the largest |target| or by scale, whichever is larger.

    Equal infinities do not differ, nor anything from a NaN in the target. An array of another shape or dtype is
    infinitely far from the target.
    """
    if x.shape != target.shape or x.dtype != target.dtype:
        return np.inf
    if np.iscomplexobj(target):
        x, target = as_parts(x), as_parts(target)
    gap = _max(_gap(x, target, ~np.isnan(target)))
    return gap / max(size_of(target), scale, float(np.finfo(np.float64).tiny))


def size_of(x: np.ndarray) -> float:
    """Return the largest finite |x|, 0 for an empty array."""
    x = as_parts(x) if np.iscomplexobj(x) else x
    return _max(_finite(x))


def root_mean_square(x: np.ndarray) -> float:
    """Return the root mean square, without overflow."""
    return _norms(x)[0]


def _norms(x: np.ndarray) -> tuple[float, float]:
    """Return the root mean square and the largest |x|."""
    largest = _max(x)
    if not 0.0 < largest < np.inf:
        return largest, largest
    flat = np.asarray(x, np.float64).ravel()
    unit = 1.0 if SQUARED[0] < largest < SQUARED[1] else largest
    flat = flat if unit == 1.0 else flat / unit
    return unit * float(np.sqrt(np.dot(flat, flat) / flat.size)), largest


def _max(x: np.ndarray) -> float:
    return max(float(np.max(x, initial=0.0)), -float(np.min(x, initial=0.0)))  # two passes, and no array made
