"""Tails: an elementwise function of one array at log-spaced numbers, where each component is held to its own size.

A slope by y (1 - y) is 0 from 17 on where it is 4e-8. Beside the largest number of an array nobody sees that; beside
its own size it is all. It fails where autodiff of the reference is right in the same dtype, and is noted where that
errs too.
"""

from collections.abc import Callable, Iterator

import jax
import numpy as np

from vjplib.compat import x64
from vjplib.verification.call import CallUnderTest, Leaves, attempt
from vjplib.verification.report import Finding, failed, noted, passed

NUMBERS = np.unique(
    np.outer((-1.0, 1.0), np.concatenate((np.geomspace(1e-3, 80.0, 80), np.geomspace(100.0, 1e25, 40))))
).astype(np.float32)
USUAL = (1e-3, 1e3)  # the root mean square of arguments that such numbers are tails of
LEAST = 1e-30  # below it a product on the way may underflow in float32
RIGHT, WRONG = 0.01, 0.5  # relative
SAME = 1e-9  # relative: what a number's neighbours change


def in_tails(subject: CallUnderTest) -> Iterator[Finding]:
    """Yield the finding on the tails of an elementwise function of one array; none of any other function."""
    found = attempt(lambda: _cotangents(subject))
    if isinstance(found, Exception) or found is None:  # it may refuse numbers that nobody called it with
        return
    x, given, autodiff, exact, moved = found
    with np.errstate(all="ignore"):
        judged = np.isfinite(exact) & (np.abs(exact) >= LEAST) & (np.abs(exact) <= float(np.finfo(np.float32).max))
        off, theirs, rounding = (_relative(a, exact) for a in (given, autodiff, moved))
        wrong = judged & (off > WRONG) & (rounding < RIGHT)
        alike = np.abs(given - autodiff) <= WRONG * np.abs(exact)  # else it may be the oracle that errs in float64
    fair, both = wrong & (theirs < RIGHT), wrong & alike & (theirs >= RIGHT)
    argument = f"cotangent of {subject.names[0]}"
    if fair.any():
        yield failed("inaccurate", f"{_worst(x, given, exact, fair)}, where autodiff is right", argument)
    else:
        yield passed(
            "float32: components keep their relative accuracy in the tails, or autodiff errs as well", argument
        )
    if both.any():
        yield noted(f"{_worst(x, given, exact, both)}, and autodiff errs too", argument)


def _relative(a: np.ndarray, exact: np.ndarray) -> np.ndarray:
    return np.where(np.isfinite(a), np.abs(a - exact) / np.abs(exact), np.inf)


def _worst(x: np.ndarray, given: np.ndarray, exact: np.ndarray, where: np.ndarray) -> str:
    """Return the number of smallest size at which it is wrong, what is given there and what is right."""
    i = np.flatnonzero(where)[np.argmin(np.abs(x[where]))]
    return f"float32, in the tails: {given[i]:.2g} at {x[i]:.3g}, exact {exact[i]:.2g}"


def _cotangents(subject: CallUnderTest) -> tuple[np.ndarray, ...] | None:
    """Return numbers, and the slopes there by the rule, by autodiff, in float64, and in float64 where each is rounded.

    None unless the function is elementwise: numbers in another order, among other neighbours, have the same slopes.
    """
    (leaf, *more) = subject.leaves(np.float32)
    ys = subject.outputs((leaf,))
    usual = USUAL[0] <= float(np.sqrt(np.mean(np.square(leaf, dtype=np.float64)))) <= USUAL[1] if leaf.size else False
    if more or len(ys) != 1 or ys[0].shape != leaf.shape or leaf.dtype != np.float32 or not usual:
        return None
    rng = np.random.default_rng((subject.seed, 9))
    if not _alone(subject, leaf, rng):
        return None
    x = rng.permutation(_within(subject, leaf))
    g = _cotangents_of(x, rng)
    truth = _rows(subject, subject.oracle, leaf.shape)
    with x64():
        wide = x.astype(np.float64)
        exact, order = truth(wide, g), rng.permutation(len(x))
        again = truth(wide[order], g[order])
        with np.errstate(all="ignore"):
            same = np.abs(again - exact[order]) <= SAME * np.abs(exact[order])
        if not np.all(same | (again == exact[order]) | (np.isnan(again) & np.isnan(exact[order]))):
            return None
        moved = truth(wide * (1 + float(np.finfo(np.float32).eps) / 2), g)
    given, autodiff = (_rows(subject, f, leaf.shape)(x, g) for f in (subject.call, subject.oracle))
    return x, given, autodiff, exact, moved


def _cotangents_of(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return powers of two up to 1, which multiply exactly, so that what moves or adds up slopes shows."""
    return 2.0 ** -rng.integers(0, 6, x.shape)


def _alone(subject: CallUnderTest, leaf: np.ndarray, rng: np.random.Generator) -> bool:
    """Return False if the slopes at some numbers of the call change with the other numbers."""
    stay = rng.random(leaf.shape) < 0.5
    with x64():
        here = leaf.astype(np.float64)
        gs = (_cotangents_of(leaf, rng),)
        slopes = [np.asarray(subject.truths((x,), gs)[1][0]) for x in (here, np.where(stay, here, here / 2))]
    return bool(np.all((slopes[0] == slopes[1]) | ~stay | np.isnan(slopes[0])))


def _within(subject: CallUnderTest, leaf: np.ndarray) -> np.ndarray:
    """Return the numbers in the domain as it is stated; else those of the one sign, or at most one in size, of all."""
    (i,) = subject.differentiable
    if subject.domain is not None and i in subject.domain.stated:
        return NUMBERS[subject.domain.within(i, NUMBERS)]
    low = 0.0 if (leaf >= 0).all() else -np.inf
    high = 0.0 if (leaf <= 0).all() else np.inf
    if (np.abs(leaf) <= 1).all():
        low, high = max(low, -1.0), min(high, 1.0)
    return NUMBERS[(low <= NUMBERS) & (high >= NUMBERS)]


def _rows(
    subject: CallUnderTest, f: Callable[..., Leaves], shape: tuple[int, ...]
) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """Return the function of numbers and cotangents that gives the slope of an elementwise f at each number.

    It calls f with arrays of one shape.
    """
    pull, size = subject.pull(f), int(np.prod(shape))
    run = subject.compiled(lambda rows: jax.lax.map(lambda row: pull((row[0],), (row[1],))[1][0], rows))

    def slopes(x: np.ndarray, g: np.ndarray) -> np.ndarray:
        rows = [np.resize(a, (-(-len(x) // size), *shape)).astype(x.dtype) for a in (x, g)]
        return np.asarray(run(rows), np.float64).ravel()[: len(x)] / g

    return slopes
