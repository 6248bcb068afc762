"""The derivative without autodiff: the remainder of a Taylor step falls as its square, if the backward is right.

Let phi(x) = <g, f(x)> for a random g, and dx what the backward gives for it. For a random v and h = 1/4, 1/8, ...
the remainder R(h) = phi(x + h v) - phi(x) - h <dx, v> falls as h^2 where dx is the derivative, as h where it is not,
however small its error. f is called and never differentiated, so it may hold a callback, a Pallas kernel or a loop.

Each argument is moved alone, each number of it by a part of its size, both ways. The part of R that is odd in h tells:
it falls as h^3, or as h. The even part falls as h^2, unless the slopes on either side differ as at a kink, where
nothing is decided. Nor is it where noise hides what a thousandth would do. The noise of f is measured, by sixth
differences after Moré and Wild, Estimating Computational Noise (2011); remainders that do not stand above it are not
looked at. Where f has a forward derivative J, <J v, g> = <v, dx> is tested as well.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from math import factorial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vjplib.compat import x64
from vjplib.verification.call import CallUnderTest, Leaves
from vjplib.verification.claim import Claim
from vjplib.verification.report import Finding, Level, finding
from vjplib.verification.tolerance import size_of

STEPS = tuple(2.0**-k for k in range(2, 25))
NOISE_STEP = 1e-4  # large beside float32's last place, small enough for sixth differences of smooth functions to vanish
ORDER, POINTS = 6, 13
ABOVE = 32.0  # times the noise
WINDOW = 4  # steps whose remainders must fall alike
QUADRATIC, LINEAR = 1.75, (0.85, 1.15)
SHARE = 0.1  # of the odd part, from which on an even part of first order is a kink's
SOLVED = 1e-5  # a relative error of the slope that solvers leave
FINEST = 1e-3  # a relative error of the slope that must show, or nothing is decided
EXACT = 1e-5  # one that would show, so that a remainder not heard is none
MANY = 4  # arguments, from which on one direction is tried


class _Fall(NamedTuple):
    """How a part of the remainder falls: its order at the smallest steps heard, and its size by h there.

    The order is infinite where nothing is heard above the noise, NaN where what is heard is no power of h.
    """

    order: float
    by_step: float


class _Seen(NamedTuple):
    """What one direction shows: "right", "wrong", "kink" or "noise"; the slope that the backward says; its error."""

    verdict: str
    order: float
    said: float
    error: float
    remainders: tuple[float, ...]


def check(subject: CallUnderTest, always: bool = True) -> Iterator[Finding]:
    """Yields a finding for each differentiated argument.

    Args:
        subject: what to examine.
        always: False for subjects alone whose oracle JAX cannot differentiate.
    """
    if not always and subject.undifferentiable is None:
        return
    with x64():
        leaves, gs, dxs = _point(subject)
        slopes = _slopes(subject, leaves, gs, dxs)
        forward = _forward(subject, leaves, gs, dxs)
    for i, name in enumerate(subject.names):
        yield _judged(subject, f"cotangent of {name}", slopes[i], forward[i], leaves[i].dtype)


def _point(subject: CallUnderTest) -> tuple[Leaves, Leaves, Leaves]:
    """Returns leaves, output cotangents and the function's own cotangents, in float64 if it runs there."""
    try:
        leaves = subject.leaves(np.float64)
        gs = subject.cotangents(leaves, 3)
        return leaves, gs, subject.pullback(leaves, gs)[1]
    except Exception:  # a callback or a kernel may be written for one dtype
        leaves = subject.leaves(np.float32)
        gs = subject.cotangents(leaves, 3)
        return leaves, gs, subject.pullback(leaves, gs)[1]


def _slopes(subject: CallUnderTest, leaves: Leaves, gs: Leaves, dxs: Leaves) -> list[list[_Seen]]:
    """Returns what each direction of each argument shows."""
    count = 3 if subject.small and len(leaves) <= MANY else 1
    directions = _directions(subject, leaves, count)
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
            change = sum(
                _dot(g, _wide(y) - _wide(y0)) for g, y, y0 in zip(gs, subject.call(*there), start, strict=True)
            )
            promised = sum(_dot(dx, _wide(b) - _wide(a)) for dx, a, b in zip(dxs, leaves, there, strict=True))
            return change, promised

        sizes = zip(gs, start, strict=True)
        rounding = [jnp.finfo(y.dtype).eps / 2 * jnp.linalg.norm(jnp.ravel(_wide(g) * _wide(y))) for g, y in sizes]
        return *jax.lax.map(moved, grid), jnp.linalg.norm(jnp.stack(rounding))

    change, promised, rounding = (np.asarray(a) for a in subject.compiled(run)(leaves, gs, dxs, directions, grid))
    shape = (len(leaves), count, 2, len(ts))
    change, promised = change.reshape(shape), promised.reshape(shape)
    return [
        [_seen(*pair, float(rounding)) for pair in zip(change[i], promised[i], strict=True)] for i in range(len(leaves))
    ]


def _wide(a: Any) -> Any:
    return a.astype(jnp.result_type(a.dtype, jnp.float64))


def _dot(a: Any, b: Any) -> Any:
    return jnp.real(jnp.sum(_wide(a) * b))


def _directions(subject: CallUnderTest, leaves: Leaves, count: int) -> Leaves:
    """Returns some directions for each leaf, each number moved by a half to the whole of its size."""
    rng = np.random.default_rng((subject.seed, 8))

    def signed(shape: tuple[int, ...]) -> np.ndarray:
        return rng.uniform(0.5, 1.0, shape) * rng.choice([-1.0, 1.0], shape)

    def drawn(x: np.ndarray) -> np.ndarray:
        size = np.abs(x).astype(np.float64)
        usual = np.sqrt(np.mean(size**2)) if size.any() else 1.0
        shape = (count, *x.shape)
        ways = signed(shape) + 1j * signed(shape) if np.iscomplexobj(x) else signed(shape)
        return ways * np.where(size == 0, usual, size)

    return tuple(map(drawn, leaves))


def _seen(change: np.ndarray, promised: np.ndarray, rounding: float) -> _Seen:
    """Returns what one direction shows, from the changes of phi and those promised, forwards and backwards."""
    count = len(STEPS)
    forwards, backwards = (change - promised)[:, :count]
    said = float(promised[0, 0] / STEPS[0])
    noise = max(_noise(change[0, count:]), _noise(change[1, count:]), rounding)
    shown = tuple(float(r) for r in forwards)
    if not (np.isfinite(noise) and np.isfinite(said)):
        return _Seen("noise", np.nan, said, np.nan, shown)
    usual = max(abs(said), size_of(change[:, :count]) / STEPS[0])
    odd, even = (_fall(part / 2, noise, usual) for part in (forwards - backwards, forwards + backwards))
    order = np.fmin(odd.order, even.order)
    if even.order >= QUADRATIC or abs(even.by_step) <= SHARE * abs(odd.by_step):
        if LINEAR[0] <= odd.order <= LINEAR[1]:
            return _Seen("wrong", odd.order, said, odd.by_step, shown)
        # What is linear in h may be a fifth of what falls faster, and nobody would see.
        hidden = abs(odd.by_step) / 5 if np.isfinite(odd.order) else abs(odd.by_step)
        if odd.order >= QUADRATIC and hidden <= FINEST * usual:
            return _Seen("right", order, said, 0.0, shown)
    elif np.isfinite(even.order):
        return _Seen("kink", order, said, np.nan, shown)
    return _Seen("noise", order, said, np.nan, shown)


def _fall(part: np.ndarray, noise: float, usual: float) -> _Fall:
    """Returns how a part of the remainder falls, given the noise and the usual size of a slope."""
    size = np.abs(part)
    heard = np.isfinite(size) & (size > ABOVE * noise)
    last = int(np.flatnonzero(heard)[-1]) if heard.any() else -1
    nothing = _Fall(np.inf, ABOVE * noise / STEPS[last + 1]) if last + 1 < len(STEPS) else None
    if last < 0 and nothing:
        return nothing
    window = slice(max(0, last - WINDOW + 1), last + 1)
    by_step = float(part[last] / STEPS[last])
    falls = np.log2(size[window][:-1] / size[window][1:]) if heard[window].all() else np.array([])
    steady = len(falls) == WINDOW - 1 and np.ptp(falls) < 0.5
    order = float(np.mean(falls)) if steady else np.nan
    if not order >= QUADRATIC and nothing and nothing.by_step <= EXACT * usual:
        return nothing  # as where a kink is some steps away
    return _Fall(order, by_step)


def _noise(values: np.ndarray) -> float:
    """Returns the standard deviation of what is not smooth in values at equal steps."""
    differences = np.diff(values, ORDER)
    return float(np.sqrt(np.mean(differences**2) * factorial(ORDER) ** 2 / factorial(2 * ORDER)))


def _forward(subject: CallUnderTest, leaves: Leaves, gs: Leaves, dxs: Leaves) -> list[float | None]:
    """Returns how far <J v, g> is from <v, dx> for each argument, relative; None without a forward derivative."""
    directions = [v[0] for v in _directions(subject, leaves, 1)]

    def pushed(leaves: Leaves, tangents: Leaves) -> Any:
        _, ts = jax.jvp(subject.oracle, leaves, tangents)
        return sum(_dot(g, _wide(t)) for g, t in zip(gs, ts, strict=True))

    def alone(i: int) -> Leaves:
        pairs = enumerate(zip(leaves, directions, strict=True))
        return tuple(v.astype(x.dtype) if i == j else np.zeros_like(x) for j, (x, v) in pairs)

    gaps: list[float | None] = []
    try:
        tangents = tuple(np.stack(rows) for rows in zip(*map(alone, range(len(leaves))), strict=True))
        run = subject.compiled(lambda leaves, tangents: jax.lax.map(lambda t: pushed(leaves, t), tangents))
        found = np.asarray(run(leaves, tangents))
    except Exception:  # JAX has no one type for what has no forward derivative
        return [None] * len(leaves)
    for i, (dx, v) in enumerate(zip(dxs, directions, strict=True)):
        terms = np.real(np.asarray(dx) * v)
        size = max(float(np.sum(np.abs(terms))), abs(float(found[i])))
        gap = abs(float(found[i]) - float(np.sum(terms)))
        gaps.append(None if not np.isfinite(gap) else gap / size if size else 0.0)
    return gaps


def _judged(
    subject: CallUnderTest, argument: str, directions: Sequence[_Seen], forward: float | None, dtype: Any
) -> Finding:
    """Returns the finding of one argument."""
    known = forward is not None
    agrees = known and forward <= float(np.sqrt(np.finfo(dtype).eps))
    verdicts = {seen.verdict for seen in directions}
    worst = min(directions, key=lambda seen: (seen.verdict != "wrong", seen.order))
    data = {"h": list(STEPS), "remainder": list(worst.remainders), "order": float(worst.order)}
    by_forward = "; forward mode says the same" if agrees else ""
    level: Level = "skipped"
    if "kink" in verdicts or {"right", "wrong"} <= verdicts:
        message = "undecided: the slopes on either side differ, as at a kink"
    elif "wrong" in verdicts and agrees:
        message = "undecided: forward mode says the same as the backward, yet small steps do not show it"
    elif "wrong" in verdicts and abs(worst.error) <= SOLVED * abs(worst.said) and subject.undifferentiable:
        message = (
            f"undecided: slope and backward agree to {abs(worst.error / worst.said):.0e}, which may be the tolerance "
            "of a loop or a solver"
        )
    elif "wrong" in verdicts:
        level = "fail"
        message = (
            f"the remainder of a step h falls as h^{worst.order:.2f}, not h^2: along a random direction the function's "
            f"slope is {worst.said + worst.error:.7g}, the backward says {worst.said:.7g}"
        )
    elif "right" in verdicts:
        level = "pass"
        how = "is 0, up to rounding" if np.isinf(worst.order) else f"falls as h^{worst.order:.2f}"
        message = f"the remainder of a step h {how}{by_forward}"
    elif known and not agrees:
        level = "fail"
        message = f"<J v, g>, by forward mode, and <v, dx>, by the backward, differ by {forward:.1e} of their size"
    elif agrees:
        level = "pass"
        message = (
            "<J v, g>, by forward mode, is <v, dx>, by the backward; steps show nothing above the function's noise"
        )
    else:
        message = f"undecided: the function's noise hides an error of {FINEST:g}, or it is not smooth"
    return finding(level, "wrong_value", f"{message}, in {np.dtype(dtype).name}", argument, data=data)


CLAIM = Claim("taylor", check, alias="V9", quick=partial(check, always=False), needs_oracle=False, cost=(1, 2))
