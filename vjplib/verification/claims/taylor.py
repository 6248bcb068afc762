"""Taylor: the derivative without autodiff: the remainder of a step falls as its square, if the backward is right.

Let phi(x) = <g, f(x)> for a random g, and dx the backward's cotangent for g. For a random v and h = 1/4, 1/8, ...
the remainder R(h) = phi(x + h v) - phi(x) - h <dx, v> falls as h^2 where dx is the derivative, as h where it is not,
however small its error. f is called and never differentiated, so it may hold a callback, a Pallas kernel or a loop.

Each argument is moved alone, each number of it by a part of its size, both ways. The part of R that is odd in h
decides: it falls as h^3 if dx is right, as h if not. The even part falls as h^2, unless the slopes on the sides differ
as at a kink, where nothing is decided, nor where noise hides an error of a thousandth. The noise of f is measured by
sixth differences after Moré and Wild, Estimating Computational Noise (2011); remainders below it are left out. Where
f has a forward derivative J, <J v, g> = <v, dx> is tested as well.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from math import factorial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vjplib.compat import x64
from vjplib.verification.call import CallUnderTest, Leaves, attempt
from vjplib.verification.claim import Claim
from vjplib.verification.oracle import roundings
from vjplib.verification.report import Finding, Level, finding
from vjplib.verification.tolerance import HALF_THE_DIGITS, size_of

STEPS = tuple(2.0**-k for k in range(2, 25))
NOISE_STEP = 1e-4  # large beside float32's last place, small enough for sixth differences of smooth functions to vanish
ORDER, POINTS = 6, 13
ABOVE = 32.0  # times the noise
WINDOW = 4  # steps whose remainders must fall alike
QUADRATIC, LINEAR = 1.75, (0.85, 1.15)
SHARE = 0.1  # of the odd part, from which on an even part of first order is a kink's
SOLVED = 1e-5  # a relative error of the slope that solvers leave
FINEST = 1e-3  # a relative error of the slope that must show, or nothing is decided
EXACT = 1e-5  # one that would show, so that a remainder below the noise is zero
MANY = 4  # arguments; of more, a single direction is tried


class _Fall(NamedTuple):
    """How a part of the remainder falls: its order at the smallest steps above the noise, and its size by h there.

    The order is infinite where nothing is above the noise, NaN where the remainder is no power of h.
    """

    order: float
    by_step: float


class _Direction(NamedTuple):
    """The verdict on a direction, "right", "wrong", "kink" or "noise", the backward's slope along it and its error."""

    verdict: str
    order: float
    slope: float
    error: float
    remainders: tuple[float, ...]


def check(subject: CallUnderTest, always: bool = True) -> Iterator[Finding]:
    """Yield a finding for each differentiated argument; unless `always`, only where the oracle has no derivative."""
    if not always and subject.undifferentiable is None:
        return
    with x64():
        try:
            point = _point(subject, np.float64)
        except Exception:  # a callback may be written for one dtype, which does not show before it is called
            point = _point(subject, np.float32)
        directions, forward = _directions(subject, *point), _forward(subject, *point)
    for name, leaf, seen, gap in zip(subject.names, point[0], directions, forward, strict=True):
        yield _judged(subject, f"cotangent of {name}", seen, gap, leaf.dtype)


def _point(subject: CallUnderTest, dtype: Any) -> tuple[Leaves, Leaves, Leaves]:
    """Return leaves, output cotangents and the function's own cotangents."""
    leaves, gs = subject.point(dtype, 3)
    return leaves, gs, subject.pullback(leaves, gs)[1]


def _directions(subject: CallUnderTest, leaves: Leaves, gs: Leaves, dxs: Leaves) -> list[list[_Direction]]:
    """Return the verdict of each direction of each argument."""
    count = 3 if subject.small and len(leaves) <= MANY else 1
    directions = _drawn(subject, leaves, count)
    ts = np.concatenate((STEPS, NOISE_STEP * np.arange(POINTS)))
    grid = np.array(
        [(i, r, sign * t) for i in range(len(leaves)) for r in range(count) for sign in (1, -1) for t in ts]
    )

    def run(leaves: Leaves, gs: Leaves, dxs: Leaves, directions: Leaves, grid: Any) -> Any:
        start = subject.call(*leaves)

        def moved(at: Any) -> tuple[Any, Any]:
            i, r, t = at[0].astype(int), at[1].astype(int), at[2]
            steps = [jnp.where(i == j, t, 0.0) * v[r] for j, v in enumerate(directions)]
            there = tuple(x + s.astype(x.dtype) for x, s in zip(leaves, steps, strict=True))
            change = _dot(gs, _minus(subject.call(*there), start))
            return change, _dot(dxs, _minus(there, leaves))

        sizes = zip(gs, start, strict=True)
        rounding = [jnp.finfo(y.dtype).eps / 2 * jnp.linalg.norm(jnp.ravel(_double(g) * _double(y))) for g, y in sizes]
        return *jax.lax.map(moved, grid), jnp.linalg.norm(jnp.stack(rounding))

    change, promised, rounding = (np.asarray(a) for a in subject.compiled(run)(leaves, gs, dxs, directions, grid))
    shape = (len(leaves), count, 2, len(ts))
    rows = zip(change.reshape(shape), promised.reshape(shape), strict=True)
    return [[_direction(*pair, float(rounding)) for pair in zip(*row, strict=True)] for row in rows]


def _double(a: Any) -> Any:
    return a.astype(jnp.result_type(a.dtype, jnp.float64))


def _minus(there: Leaves, here: Leaves) -> Leaves:
    return tuple(_double(b) - _double(a) for b, a in zip(there, here, strict=True))


def _dot(cotangents: Leaves, tangents: Leaves) -> Any:
    pairs = zip(cotangents, tangents, strict=True)
    return sum(jnp.real(jnp.sum(_double(g) * _double(t))) for g, t in pairs)


def _drawn(subject: CallUnderTest, leaves: Leaves, count: int) -> Leaves:
    """Return some directions for each leaf, along which each number moves by a half to the whole of its size."""
    rng = np.random.default_rng((subject.seed, 8))

    def signed(shape: tuple[int, ...]) -> np.ndarray:
        return rng.uniform(0.5, 1.0, shape) * rng.choice([-1.0, 1.0], shape)

    def drawn(x: np.ndarray) -> np.ndarray:
        size = np.abs(x).astype(np.float64)
        typical = np.sqrt(np.mean(size**2)) if size.any() else 1.0
        shape = (count, *x.shape)
        parts = signed(shape) + 1j * signed(shape) if np.iscomplexobj(x) else signed(shape)
        return parts * np.where(size == 0, typical, size)

    return tuple(map(drawn, leaves))


def _direction(change: np.ndarray, promised: np.ndarray, rounding: float) -> _Direction:
    """Return the verdict of one direction, from the changes of phi and the promised ones, forwards and backwards."""
    count = len(STEPS)
    forwards, backwards = (change - promised)[:, :count]
    slope = float(promised[0, 0] / STEPS[0])
    noise = max(_noise(change[0, count:]), _noise(change[1, count:]), rounding)
    remainders = tuple(map(float, forwards))
    if not (np.isfinite(noise) and np.isfinite(slope)):
        return _Direction("noise", np.nan, slope, np.nan, remainders)
    typical = max(abs(slope), size_of(change[:, :count]) / STEPS[0])
    odd, even = (_fall(part / 2, noise, typical) for part in (forwards - backwards, forwards + backwards))
    order = np.fmin(odd.order, even.order)
    if even.order >= QUADRATIC or abs(even.by_step) <= SHARE * abs(odd.by_step):
        if LINEAR[0] <= odd.order <= LINEAR[1]:
            return _Direction("wrong", odd.order, slope, odd.by_step, remainders)
        # A term linear in h may be a fifth of the others, and would not show.
        hidden = abs(odd.by_step) / 5 if np.isfinite(odd.order) else abs(odd.by_step)
        if odd.order >= QUADRATIC and hidden <= FINEST * typical:
            return _Direction("right", order, slope, 0.0, remainders)
    elif np.isfinite(even.order):
        return _Direction("kink", order, slope, np.nan, remainders)
    return _Direction("noise", order, slope, np.nan, remainders)


def _fall(part: np.ndarray, noise: float, typical: float) -> _Fall:
    """Return how a part of the remainder falls, given the noise and the typical magnitude of a slope."""
    size = np.abs(part)
    above = np.isfinite(size) & (size > ABOVE * noise)
    last = int(np.flatnonzero(above)[-1]) if above.any() else -1
    nothing = _Fall(np.inf, ABOVE * noise / STEPS[last + 1]) if last + 1 < len(STEPS) else None
    if last < 0 and nothing:
        return nothing
    window = slice(max(0, last - WINDOW + 1), last + 1)
    by_step = float(part[last] / STEPS[last])
    falls = np.log2(size[window][:-1] / size[window][1:]) if above[window].all() else np.array([])
    steady = len(falls) == WINDOW - 1 and np.ptp(falls) < 0.5
    order = float(np.mean(falls)) if steady else np.nan
    if not order >= QUADRATIC and nothing and nothing.by_step <= EXACT * typical:
        return nothing  # as where a kink is some steps away
    return _Fall(order, by_step)


def _noise(values: np.ndarray) -> float:
    """Return the standard deviation of the part of values at equal steps that is not smooth."""
    differences = np.diff(values, ORDER)
    return float(np.sqrt(np.mean(differences**2) * factorial(ORDER) ** 2 / factorial(2 * ORDER)))


def _forward(subject: CallUnderTest, leaves: Leaves, gs: Leaves, dxs: Leaves) -> list[float | None]:
    """Return the relative gap between <J v, g> and <v, dx> for each argument; None without a forward derivative."""
    directions = [v[0] for v in _drawn(subject, leaves, 1)]
    moved = [v.astype(x.dtype) for x, v in zip(leaves, directions, strict=True)]
    # of each argument, one for each argument moved alone
    tangents = tuple(np.stack([v if v is w else np.zeros_like(v) for w in moved]) for v in moved)

    def run(leaves: Leaves, tangents: Leaves) -> Any:
        return jax.lax.map(lambda ts: _dot(gs, jax.jvp(subject.oracle, leaves, ts)[1]), tangents)

    found = attempt(lambda: np.asarray(subject.compiled(run)(leaves, tangents), np.float64))
    if isinstance(found, Exception):  # JAX raises errors of many types where there is no forward derivative
        return [None] * len(leaves)
    gaps: list[float | None] = []
    for i, (total, dx, v) in enumerate(zip(map(float, found), dxs, directions, strict=True)):
        terms = np.real(np.asarray(dx) * v)
        size = max(float(np.sum(np.abs(terms))), abs(total))
        gap = abs(total - float(np.sum(terms)))
        if gap > HALF_THE_DIGITS * size and np.isfinite(gap):  # it may be the rounding of terms that nearly cancel
            size = max(size, size_of(v) * roundings(subject, leaves, gs, own=True)[i - len(dxs)])
        gaps.append(None if not np.isfinite(gap) else gap / size if size else 0.0)
    return gaps


def _judged(
    subject: CallUnderTest, argument: str, directions: Sequence[_Direction], forward: float | None, dtype: Any
) -> Finding:
    """Return the finding on one argument."""
    agrees = forward is not None and forward <= max(subject.digits(forward), float(np.sqrt(jnp.finfo(dtype).eps)))
    verdicts = {direction.verdict for direction in directions}
    worst = min(directions, key=lambda direction: (direction.verdict != "wrong", direction.order))
    data = {"h": list(STEPS), "remainder": list(worst.remainders), "order": float(worst.order)}
    level: Level = "skipped"
    if "kink" in verdicts or {"right", "wrong"} <= verdicts:
        message = "undecided: the slopes on either side differ, as at a kink"
    elif "wrong" in verdicts and agrees:
        message = "undecided: forward mode says the same as the backward, yet small steps do not show it"
    elif "wrong" in verdicts and abs(worst.error) <= SOLVED * abs(worst.slope) and subject.undifferentiable:
        agreement = f"slope and backward agree to {abs(worst.error / worst.slope):.0e}"
        message = f"undecided: {agreement}, which may be the tolerance of a loop or a solver"
    elif "wrong" in verdicts:
        level = "fail"
        message = (
            f"the remainder of a step h falls as h^{worst.order:.2f}, not h^2: along a random direction the function's "
            f"slope is {worst.slope + worst.error:.7g}, the backward says {worst.slope:.7g}"
        )
    elif "right" in verdicts:
        level = "pass"
        how = "is 0, up to rounding" if np.isinf(worst.order) else f"falls as h^{worst.order:.2f}"
        message = f"the remainder of a step h {how}" + ("; forward mode says the same" if agrees else "")
    elif agrees:
        level = "pass"
        message = "forward mode's <J v, g> is the backward's <v, dx>; steps show nothing above the function's noise"
    elif forward is not None:
        level = "fail"
        message = f"forward mode's <J v, g> and the backward's <v, dx> differ by {forward:.1e} of their size"
    else:
        message = f"undecided: the function's noise hides an error of {FINEST:g}, or it is not smooth"
    return finding(level, "wrong_value", f"{message}, in {np.dtype(dtype).name}", argument, data=data)


CLAIM = Claim("taylor", check, alias="V9", quick=partial(check, always=False), needs_oracle=False, cost=(1, 2))
