"""By design: why a rule may differ from autodiff of its primal: a kink, a flat primal, an identity, a solver."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vjplib.compat import equations, strip_custom_rules, unclose, x64
from vjplib.verification.call import CallUnderTest, Leaves, normal_of
from vjplib.verification.oracle import leaves_to_float64
from vjplib.verification.tolerance import HALF_THE_DIGITS, relative_gap, size_of

ROUNDED = (
    "the primal rounds to {}, which autodiff differentiates as if it were no rounding or flat: rules of quantized "
    "programs choose another gradient"
)
IN_SINGLE = "the primal runs in float32 alone, and its loop may take other steps at inputs nearby"
LOOP = (
    "the primal is a loop until something holds: the rule differs from the derivative of its steps by "
    "{:.1e}, as implicit differentiation does up to the solver's tolerance"
)
SOLVED = 0.05
NEAR = 1e-3  # how far inputs are moved off a kink
FLAT = (
    "the primal is flat, so that autodiff gives zeros and the rule a gradient of its own choice, as straight-through "
    "estimators and the implicit derivative of a bisection do"
)
IDENTITY = (
    "the primal returns its input, so that the rule exists to change the gradient alone, as clipping or reversal does"
)


def by_design(subject: CallUnderTest) -> str:
    """Return why the cotangents of a rule seem to differ from autodiff of its primal on purpose; empty if they do not.

    Only the primal counts: that it is the identity, that it rounds, or that its derivative is zero everywhere nearby.
    """
    leaves = subject.leaves()
    jaxpr = primal_of(subject)
    if all(any(v is x for x in jaxpr.invars) for v in jaxpr.outvars):
        return IDENTITY
    if to := _rounding(jaxpr):
        return ROUNDED.format(to)
    found = [subject.answers_at(at, subject.cotangents(at)) for at in (leaves, moved(subject, leaves, 0))]
    return FLAT if all(size_of(dx) == 0 for answers in found for dx in answers.true_dxs) else ""


def primal_of(subject: CallUnderTest) -> Any:
    """Return the program of the primal, with the rules inside it stripped."""
    return unclose(jax.make_jaxpr(strip_custom_rules(subject.call))(*subject.leaves()))[0]


def iterated(subject: CallUnderTest) -> str:
    """Return why a rule may differ a little from the derivative of the steps of a loop; empty if it may not.

    A solver's rule may differentiate the solution that the steps approach. The primal must hold a while loop, and the
    derivatives along a random direction must differ by less than `SOLVED` of their size. If the primal runs in float32
    only, small steps of the inputs may change the number of its iterations, and their quotients measure nothing.
    """
    if all(eqn.primitive.name != "while" for eqn in equations(primal_of(subject))):
        return ""
    try:
        with x64():
            gap = _gap(subject, subject.leaves(np.float64))
    except Exception:  # it need not run in float64
        return IN_SINGLE
    return LOOP.format(gap) if gap < SOLVED else ""


def _gap(subject: CallUnderTest, leaves: Leaves) -> float:
    """Return the relative difference of <J v, g> by forward mode and <v, dx> by the rule."""
    rng = np.random.default_rng((subject.seed, 10))
    ts = normal_like(rng, leaves)
    gs = subject.cotangents(leaves)
    steps = sum(np.vdot(g, np.asarray(t)) for g, t in zip(gs, jax.jvp(subject.oracle, leaves, ts)[1], strict=True))
    dxs = subject.pull(subject.call)(leaves, gs)[1]
    rule = sum(np.vdot(np.asarray(dx), t) for dx, t in zip(dxs, ts, strict=True))
    return float(abs(steps - rule) / max(abs(steps), abs(rule), np.finfo(float).tiny))


def _rounding(jaxpr: Any) -> str:
    """Return what a program rounds floating numbers to: integers, or floating numbers of at most eight bits."""
    for eqn in equations(jaxpr):
        if eqn.primitive.name == "round":
            return "whole numbers"
        narrow = [v.aval.dtype for v in (*eqn.invars, *eqn.outvars) if _is_narrow(v.aval)]
        if narrow:
            return str(narrow[0])
    return ""


def _is_narrow(aval: Any) -> bool:
    dtype = getattr(aval, "dtype", None)
    return dtype is not None and jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits <= 8


def kinks(subject: CallUnderTest, leaves: Leaves, failed: Sequence[str]) -> dict[str, str]:
    """Return by argument why cotangents that differ from autodiff's are a choice at a kink, for those that are.

    They are if rule and oracle agree at inputs moved at random by a thousandth, several times, and each entry of the
    rule's cotangent at the inputs themselves lies between those of the oracle nearby.
    """
    gs = tuple(np.abs(g).astype(g.dtype) for g in subject.cotangents(leaves))
    with x64():
        exact, exact_gs = leaves_to_float64(leaves, gs)
        try:
            ours = subject.answers_at(exact, exact_gs).dxs
            near = [subject.answers_at(moved(subject, exact, k), exact_gs) for k in range(8)]
        except Exception:  # a rule that refuses float64
            return {}
    if any(np.iscomplexobj(a) for a in ours):
        return {}
    excuses = {}
    for i, name in enumerate(subject.names):
        sides = np.stack([at.true_dxs[i] for at in near])
        agree = all(relative_gap(at.dxs[i], at.true_dxs[i]) <= HALF_THE_DIGITS for at in near)
        slack = 10 * NEAR * size_of(sides)
        low, high = sides.min(axis=0) - slack, sides.max(axis=0) + slack
        argument = f"cotangent of {name}"
        if argument in failed and agree and bool(np.all((ours[i] >= low) & (ours[i] <= high))):
            excuses[argument] = "another subgradient than autodiff's at a kink, between the slopes on its sides"
    return excuses


def normal_like(rng: np.random.Generator, leaves: Leaves) -> Leaves:
    """Return standard normal numbers of the shapes and dtypes of the leaves."""
    return tuple(normal_of(rng, a.shape, a.dtype) for a in leaves)


def moved(subject: CallUnderTest, leaves: Leaves, k: int) -> Leaves:
    """Return the leaves moved at random by a thousandth of the size of each, for the k-th time."""
    rng = np.random.default_rng((subject.seed, 8, k))
    sizes = [size_of(a) or 1.0 for a in leaves_to_float64(leaves)[0]]
    return tuple(
        np.asarray(a + NEAR * n * rng.standard_normal(a.shape)).astype(a.dtype)
        for a, n in zip(leaves, sizes, strict=True)
    )
