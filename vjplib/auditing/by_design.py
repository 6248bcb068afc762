"""By design: why a rule may differ from autodiff of its primal: a kink, a flat primal, an identity, a solver."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vjplib.compat import programs, strip_custom_rules, unclose, x64
from vjplib.verification.call import CallUnderTest, Leaves, normal_of
from vjplib.verification.tolerance import HALF_THE_DIGITS, relative_gap, size_of, wide

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
ROUNDING = ("round",)
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
    if _is_identity(subject, leaves):
        return IDENTITY
    if to := _rounding(unclose(jax.make_jaxpr(strip_custom_rules(subject.call))(*leaves))[0]):
        return ROUNDED.format(to)
    truth = _pulled(subject, leaves)[3]
    near = _pulled(subject, _moved(subject, leaves, 0))[3]
    if all(size_of(dx) == 0 for dx in (*truth, *near)):
        return FLAT
    return ""


def iterated(subject: CallUnderTest) -> str:
    """Return why a rule may differ a little from the derivative of the steps of a loop; empty if it may not.

    A solver's rule may differentiate the solution that the steps approach. The primal must hold a while loop, and the
    derivatives along a random direction must differ by less than `SOLVED` of their size. If the primal runs in float32
    only, small steps of the inputs may change the number of its iterations, and their quotients measure nothing.
    """
    leaves = subject.leaves()
    if not _loops(unclose(jax.make_jaxpr(strip_custom_rules(subject.call))(*leaves))[0]):
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
    ts = tuple(normal_of(rng, a.shape, a.dtype) for a in leaves)
    gs = subject.cotangents(leaves)
    steps = sum(np.vdot(g, np.asarray(t)) for g, t in zip(gs, jax.jvp(subject.oracle, leaves, ts)[1], strict=True))
    dxs = subject.pull(subject.call)(leaves, gs)[1]
    rule = sum(np.vdot(np.asarray(dx), t) for dx, t in zip(dxs, ts, strict=True))
    return float(abs(steps - rule) / max(abs(steps), abs(rule), np.finfo(float).tiny))


def _loops(jaxpr: Any) -> bool:
    inner = (program for eqn in jaxpr.eqns for _, program, _ in programs(eqn.params))
    return any(eqn.primitive.name == "while" for eqn in jaxpr.eqns) or any(map(_loops, inner))


def _rounding(jaxpr: Any) -> str:
    """Return what a program rounds floating numbers to: integers, or floating numbers of at most eight bits."""
    for eqn in jaxpr.eqns:
        for _, inner, _ in programs(eqn.params):
            if to := _rounding(inner):
                return to
        if eqn.primitive.name in ROUNDING:
            return "whole numbers"
        narrow = [v.aval.dtype for v in (*eqn.invars, *eqn.outvars) if _is_narrow(v.aval)]
        if narrow:
            return str(narrow[0])
    return ""


def _is_narrow(aval: Any) -> bool:
    dtype = getattr(aval, "dtype", None)
    return dtype is not None and jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits <= 8


def _is_identity(subject: CallUnderTest, leaves: Leaves) -> bool:
    """Return whether the primal, with the rules inside it stripped, returns nothing but its arguments."""
    jaxpr, _ = unclose(jax.make_jaxpr(strip_custom_rules(subject.call))(*leaves))
    return all(any(v is x for x in jaxpr.invars) for v in jaxpr.outvars)


def kinks(subject: CallUnderTest, leaves: Leaves, failed: Sequence[str]) -> dict[str, str]:
    """Return by argument why cotangents that differ from autodiff's are a choice at a kink, for those that are.

    They are if rule and oracle agree at inputs moved at random by a thousandth, several times, and each entry of the
    rule's cotangent at the inputs themselves lies between those of the oracle nearby.
    """
    gs = tuple(np.abs(g).astype(g.dtype) for g in subject.cotangents(leaves))
    with x64():
        exact = tuple(wide(np.asarray(a)) for a in leaves)
        wide_gs = tuple(wide(np.asarray(g)) for g in gs)
        try:
            ours = [np.asarray(a) for a in subject.answers(exact, wide_gs).dxs]
            near = [_answers(subject, _moved(subject, exact, k), wide_gs) for k in range(8)]
        except Exception:  # a rule that refuses float64
            return {}
    if any(np.iscomplexobj(a) for a in ours):
        return {}
    excuses = {}
    for i, name in enumerate(subject.names):
        sides = np.stack([truth[i] for _, truth in near])
        agree = all(relative_gap(r[i], o[i]) <= HALF_THE_DIGITS for r, o in near)
        slack = 10 * NEAR * size_of(sides)
        low, high = sides.min(axis=0) - slack, sides.max(axis=0) + slack
        argument = f"cotangent of {name}"
        if argument in failed and agree and bool(np.all((ours[i] >= low) & (ours[i] <= high))):
            excuses[argument] = "another subgradient than autodiff's at a kink, between the slopes on its sides"
    return excuses


def _answers(subject: CallUnderTest, leaves: Leaves, gs: Leaves) -> tuple[Leaves, Leaves]:
    found = jax.tree.map(np.asarray, subject.answers(leaves, gs))
    return found.dxs, found.true_dxs


def _pulled(subject: CallUnderTest, leaves: Leaves) -> Leaves:
    gs = subject.cotangents(leaves)
    found = jax.tree.map(np.asarray, subject.answers(leaves, gs))
    return found.primal, found.ys, found.dxs, found.true_dxs


def _moved(subject: CallUnderTest, leaves: Leaves, k: int) -> Leaves:
    rng = np.random.default_rng((subject.seed, 8, k))
    return tuple(
        np.asarray(a + NEAR * (size_of(wide(a)) or 1.0) * rng.standard_normal(a.shape)).astype(a.dtype) for a in leaves
    )
