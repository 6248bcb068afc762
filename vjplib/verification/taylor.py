"""V9, the derivative without autodiff: the remainder of a Taylor step falls as its square, if the backward is right.

Let phi(x) = <g, f(x)> for a random g, and dx what the backward gives for it. For a random v and h = 1/4, 1/8, ...
phi(x + h v) - phi(x) - h <dx, v> shrinks as h^2 where dx is the derivative, as h where it is not, however small its error.
f is called and never differentiated, so it may hold a callback, a Pallas kernel or a loop. Each argument is moved alone,
each number of it by a part of its size, both ways: slopes that differ between the two ways are a kink's, and decide
nothing. The noise of f is measured (by sixth differences, after Moré and Wild, Estimating Computational Noise, 2011), and what does not stand
above it is not looked at. Where f has a forward derivative J, <J v, g> = <v, dx> is tested as well.
"""

from collections.abc import Iterator, Sequence
from math import comb, factorial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vjplib.compat import x64
from vjplib.verification.measure import HALF_THE_DIGITS
from vjplib.verification.report import Finding
from vjplib.verification.subject import Leaves, Subject

STEPS = tuple(2.0**-k for k in range(2, 25))
NOISE_STEP = 1e-4  # large beside float32's last place, small enough for sixth differences of smooth functions to vanish
ORDER, POINTS = 6, 13
ABOVE = 32.0  # times the noise
WINDOW = 4  # steps whose remainders must fall alike
QUADRATIC, LINEAR = 1.75, (0.85, 1.15)
AGREE = 0.1
FINEST = 1e-2  # a relative error of the slope that must show, or nothing is decided
MANY = 4  # arguments, from which on fewer directions are tried


class _Slope(NamedTuple):
    """What one direction shows: "right", "wrong", "kink" or "noise"; the order of the remainder; the slope's error."""

    verdict: str
    order: float
    error: float
    said: float
    remainders: tuple[float, ...]


def check(subject: Subject, always: bool = True) -> Iterator[Finding]:
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


def _point(subject: Subject) -> tuple[Leaves, Leaves, Leaves]:
    """Returns leaves, output cotangents and the function's own cotangents, in float64 if it runs there."""
    try:
        leaves = subject.leaves(np.float64)
        gs = subject.cotangents(leaves, 3)
        return leaves, gs, subject.pullback(leaves, gs)[1]
    except Exception:  # a callback or a kernel may be written for one dtype
        leaves = subject.leaves(np.float32)
        gs = subject.cotangents(leaves, 3)
        return leaves, gs, subject.pullback(leaves, gs)[1]


def _slopes(subject: Subject, leaves: Leaves, gs: Leaves, dxs: Leaves) -> list[list[_Slope]]:
    """Returns what each direction of each argument shows."""
    count = 3 if len(leaves) <= MANY else 2
    directions = _directions(subject, leaves, count)
    ts = np.concatenate((STEPS, NOISE_STEP * np.arange(POINTS)))
    grid = np.array([(i, r, sign * t) for i in range(len(leaves)) for r in range(count) for sign in (1, -1) for t in ts])

    @jax.jit
    def run(leaves: Leaves, gs: Leaves, dxs: Leaves, directions: Leaves, grid: Any) -> Any:
        start = subject.call(*leaves)

        def moved(at: Any) -> tuple[Any, Any]:
            i, r, t = at[0].astype(int), at[1].astype(int), at[2]
            steps = [jnp.where(i == j, t, 0.0) * v[r] for j, v in enumerate(directions)]
            there = tuple(x + s.astype(x.dtype) for x, s in zip(leaves, steps, strict=True))
            change = sum(_dot(g, _wide(y) - _wide(y0)) for g, y, y0 in zip(gs, subject.call(*there), start, strict=True))
            promised = sum(_dot(dx, _wide(b) - _wide(a)) for dx, a, b in zip(dxs, leaves, there, strict=True))
            return change, promised

        rounding = [jnp.finfo(y.dtype).eps / 2 * jnp.sqrt(jnp.sum((_wide(g) * _wide(y)) ** 2)) for g, y in zip(gs, start, strict=True)]  # fmt: skip
        return *jax.lax.map(moved, grid), jnp.sqrt(sum(r**2 for r in rounding))

    change, promised, rounding = (np.asarray(a) for a in run(leaves, gs, dxs, directions, grid))
    shape = (len(leaves), count, 2, len(ts))
    change, promised = change.reshape(shape), promised.reshape(shape)
    return [[_seen(*pair, float(rounding)) for pair in zip(change[i], promised[i], strict=True)] for i in range(len(leaves))]


def _wide(a: Any) -> Any:
    return a.astype(jnp.float64)


def _dot(a: Any, b: Any) -> Any:
    return jnp.sum(_wide(a) * b)


def _directions(subject: Subject, leaves: Leaves, count: int) -> Leaves:
    """Returns some directions for each leaf, each number moved by a half to the whole of its size."""
    rng = np.random.default_rng((subject.seed, 8))

    def drawn(x: np.ndarray) -> np.ndarray:
        x = np.abs(x.astype(np.float64))
        usual = np.sqrt(np.mean(x**2)) if x.size and x.any() else 1.0
        size = np.where(x == 0, usual, x)
        return rng.uniform(0.5, 1.0, (count, *x.shape)) * rng.choice([-1.0, 1.0], (count, *x.shape)) * size

    return tuple(map(drawn, leaves))


def _seen(change: np.ndarray, promised: np.ndarray, rounding: float) -> _Slope:
    """Returns what one direction shows, from the changes of phi and those promised, forwards and backwards."""
    steps = np.array(STEPS)
    remainder = (change - promised)[:, : len(steps)]
    said = float(promised[0, 0] / steps[0])
    shown = tuple(float(r) for r in remainder[0])
    orders, errors = [], []
    for way, sign in zip((0, 1), (1, -1), strict=True):
        noise = max(_noise(change[way, len(steps) :]), rounding)
        if not (np.isfinite(noise) and np.isfinite(said)):
            return _Slope("noise", np.nan, np.nan, said, shown)
        size = np.abs(remainder[way])
        heard = np.flatnonzero(np.isfinite(size) & (size > ABOVE * noise))
        if not heard.size:
            hidden = ABOVE * noise / steps[0]
            reach = max(abs(said), rounding / float(np.finfo(np.float64).eps))
            orders.append(np.inf if hidden <= FINEST * reach else np.nan)
            errors.append(0.0)
            continue
        last = heard[-1]
        window = size[max(0, last - WINDOW + 1) : last + 1]
        if len(window) < WINDOW or not (np.isfinite(window) & (window > ABOVE * noise)).all():
            orders.append(np.nan)
            errors.append(np.nan)
            continue
        falls = np.log2(window[:-1] / window[1:])
        steady = np.ptp(falls) < 0.5
        orders.append(float(falls.mean()) if steady else np.nan)
        errors.append(float(sign * remainder[way, last] / steps[last]))
    order = float(min(orders)) if np.isfinite(orders).any() or not np.isnan(orders).any() else np.nan
    if all(o >= QUADRATIC for o in orders):
        return _Slope("right", order, 0.0, said, shown)
    if all(LINEAR[0] <= o <= LINEAR[1] for o in orders) and abs(errors[0] - errors[1]) <= AGREE * max(map(abs, errors)):
        return _Slope("wrong", order, float(np.mean(errors)), said, shown)
    if any(np.isnan(orders)):
        return _Slope("noise", order, np.nan, said, shown)
    return _Slope("kink", order, np.nan, said, shown)


def _noise(values: np.ndarray) -> float:
    """Returns the standard deviation of what is not smooth in values at equal steps."""
    differences = np.diff(values, ORDER)
    return float(np.sqrt(np.mean(differences**2) * factorial(ORDER) ** 2 / factorial(2 * ORDER)))


def _forward(subject: Subject, leaves: Leaves, gs: Leaves, dxs: Leaves) -> list[float | None]:
    """Returns, for each argument, how far <J v, g> is from <v, dx>, relative; None where f has no forward derivative."""
    (directions,) = zip(*_directions(subject, leaves, 1), strict=True)

    def pushed(leaves: Leaves, tangents: Leaves) -> Any:
        _, ts = jax.jvp(subject.oracle, leaves, tangents)
        return sum(_dot(g, _wide(t)) for g, t in zip(gs, ts, strict=True))

    gaps: list[float | None] = []
    try:
        alone = [
            tuple(v.astype(x.dtype) if i == j else np.zeros_like(x) for j, (x, v) in enumerate(zip(leaves, directions, strict=True)))  # fmt: skip
            for i in range(len(leaves))
        ]
        stacked = tuple(np.stack(rows) for rows in zip(*alone, strict=True))
        found = np.asarray(jax.jit(lambda leaves, ts: jax.lax.map(lambda t: pushed(leaves, t), ts))(leaves, stacked))
    except Exception:  # JAX has no one type for what has no forward derivative
        return [None] * len(leaves)
    for i, (dx, v) in enumerate(zip(dxs, directions, strict=True)):
        terms = np.asarray(dx, np.float64) * v
        size = max(float(np.sum(np.abs(terms))), abs(float(found[i])))
        gap = abs(float(found[i]) - float(np.sum(terms)))
        gaps.append(gap / size if size else 0.0)
    return gaps


def _judged(subject: Subject, argument: str, slopes: Sequence[_Slope], forward: float | None, dtype: Any) -> Finding:
    """Returns the finding of one argument."""
    near = float(np.sqrt(np.finfo(dtype).eps))
    agrees = "" if forward is None or not forward <= near else "; forward mode agrees"
    verdicts = {slope.verdict for slope in slopes}
    worst = min(slopes, key=lambda s: (s.verdict != "wrong", s.order))
    data = {"h": list(STEPS), "remainder": list(worst.remainders), "order": worst.order}
    if "wrong" in verdicts and "kink" not in verdicts and "right" not in verdicts:
        level = "fail"
        message = (
            f"the remainder of a step h falls as h^{worst.order:.2f}, not h^2: along a random direction the function's "
            f"slope is {worst.said + worst.error:.6g}, the backward says {worst.said:.6g}"
        )
    elif forward is not None and not forward <= near and verdicts == {"noise"}:
        level = "fail"
        message = f"<J v, g> by forward mode and <v, dx> differ by {forward:.1e} of their size"
    elif "right" in verdicts and verdicts <= {"right", "noise"}:
        level = "pass"
        how = "is 0, up to rounding" if np.isinf(worst.order) else f"falls as h^{worst.order:.2f}"
        message = f"the remainder of a step h {how}{agrees}"
    elif "kink" in verdicts or "wrong" in verdicts:
        level, message = "skipped", "undecided: the function has another slope on either side, or none, as at a kink"
    else:
        level = "skipped"
        message = f"undecided: the remainder does not stand above the function's noise for {WINDOW} steps, or is not a power"
    return Finding("V9", level, f"{message}, in {np.dtype(dtype).name}", argument, case=subject.case, data=data)
