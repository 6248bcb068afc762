"""Linearity: a pullback is linear: B(s g) = s B(g) for s = 0, 2, -1, 2^40 and 2^-40, and B(g + e) = B(g) + B(e).

A clip or a threshold inside the backward shows at one of the last two factors. Each output's cotangent is tried alone,
the others zero, so that two outputs cannot hide one another; in float64, where doubling and negating are exact.
"""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from vjplib.compat import x64
from vjplib.verification.call import CallUnderTest, Leaves
from vjplib.verification.claim import Claim, reduced
from vjplib.verification.explain.diagnose import lower_precision
from vjplib.verification.oracle import roundings
from vjplib.verification.report import Finding, failed, passed
from vjplib.verification.tolerance import HALF_THE_DIGITS, size_of

POWER, POWER_OF_FLOAT16 = 40, 8  # of two; float16 overflows at 16
FLOAT16 = float(jnp.finfo(jnp.float16).eps)


def check(subject: CallUnderTest) -> Iterator[Finding]:
    """Yield a finding for each differentiated argument."""
    with x64():
        leaves = subject.leaves(np.float64)
        g, e = subject.cotangents(leaves, 1), subject.cotangents(leaves, 2)
        broken = _broken(subject, leaves, g, e, POWER)
        if any(subject.ratio(gap) > 1 for gap, _ in broken.values()) and subject.eps == FLOAT16:
            broken = _broken(subject, leaves, g, e, POWER_OF_FLOAT16)
    for name in subject.names:
        gap, law = broken.get(name, (0.0, ""))
        argument, ratio = f"cotangent of {name}", subject.ratio(gap)
        if ratio > 1:
            message = f"the backward is not linear in the cotangent: {law} is off by {gap:.1e} of its size"
            with x64():  # rounding inside breaks the law where gaps are small, and a cast to fewer bits is there
                trap = lower_precision(subject, leaves, subject.cotangents(leaves), gap) or "not-linear"
            yield failed("not_linear", message, argument, ratio, trap=trap)
        else:
            yield passed("linear in the cotangent", argument, ratio)


def _broken(subject: CallUnderTest, leaves: Leaves, g: Leaves, e: Leaves, power: int) -> dict[str, tuple[float, str]]:
    """Return for each argument by which a law is broken the law broken most, and by how much."""
    broken: dict[str, tuple[float, str]] = {}
    for alone in range(len(g)):
        only_g, only_e = (tuple(a * (i == alone) for i, a in enumerate(part)) for part in (g, e))
        for name, law, gap in _laws(subject, leaves, only_g, only_e, power):
            if gap > broken.get(name, (0.0, ""))[0]:
                broken[name] = gap, law
    return broken


def _laws(subject: CallUnderTest, leaves: Leaves, g: Leaves, e: Leaves, power: int) -> Iterator[tuple[str, str, float]]:
    factor = 2.0**power
    combinations = [(0, 0), (1, 0), (0, 1), (2, 0), (-1, 0), (factor, 0), (1 / factor, 0), (1, 1)]
    with np.errstate(over="ignore", under="ignore"):
        stack = tuple(np.stack([s * a + t * b for s, t in combinations]) for a, b in zip(g, e, strict=True))
    pull = subject.pull(subject.call)
    run = subject.compiled(lambda leaves, gs: jax.lax.map(lambda one: pull(leaves, one)[1], gs))
    results = run(leaves, stack)  # leaves are an argument: XLA would fold what is computed of constants
    for i, (name, dx) in enumerate(zip(subject.names, results, strict=True)):
        zero, b_g, b_e, double, negative, large, small, total = np.asarray(dx)
        with np.errstate(invalid="ignore", over="ignore"):
            gaps = {
                "B(0) = 0": zero,
                "B(2 g) = 2 B(g)": double - 2 * b_g,
                "B(-g) = -B(g)": negative + b_g,
                f"B(2^{power} g) = 2^{power} B(g)": large / factor - b_g,
                f"B(2^-{power} g) = 2^-{power} B(g)": small * factor - b_g,
                "B(g + e) = B(g) + B(e)": total - b_g - b_e,
            }
        size = max(size_of(b_g), size_of(b_e), float(np.finfo(np.float64).tiny))
        unknown = ~np.isfinite(b_g) | ~np.isfinite(b_e)  # infinite numbers show no law
        if not all(np.isfinite(leaf).all() for leaf in leaves):  # 0 * inf, as in autodiff
            unknown |= np.isnan(zero)
        worst = {
            law: float(np.max(np.where(unknown, 0.0, np.nan_to_num(np.abs(gap), nan=np.inf)), initial=0.0))
            for law, gap in gaps.items()
        }
        if max(worst.values()) > HALF_THE_DIGITS * size:  # it may be the rounding of terms that nearly cancel
            size = max(size, roundings(subject, leaves, g, own=True)[i - len(results)])
        yield from ((name, law, gap / size) for law, gap in worst.items())


CLAIM = Claim(
    "linearity", check, alias="V3", quick=reduced(check), further={"standard": check}, needs_oracle=False, cost=(3, 5)
)
