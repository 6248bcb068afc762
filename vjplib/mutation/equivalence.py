"""Equivalence: whether a mutant computes the same as the rule that it was made from."""

import itertools
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vjplib.compat import x64
from vjplib.mutation.mutate import mutate
from vjplib.mutation.operators import KEYWORD, NARROW, NESTED, STATIC, Mutation
from vjplib.mutation.target import Target, TargetCall
from vjplib.verification.call import CallUnderTest, Leaves
from vjplib.verification.tolerance import size_of

DTYPES = ("float32", "bfloat16", "float16", "float64")
SCALES = (1e-3, 30.0)
FEW = 8  # units in the last place
SCALED, ONE_SIGN, BATCHED = "scaled", "cotangents of one sign", "two nested vmaps"  # manners of comparing


def equivalent(target: Target, mutation: Mutation) -> bool:
    """Return whether a mutant is equivalent to the rule: compared with the rule's own pullback, not with the oracle.

    Both run at all cases, at these with masks negated, at other sizes and at the record's edges; with three scales of
    inputs, with zeros, ties, and cotangents that hold zeros and infinities. In float64 they must agree to twelve
    digits, in float32 and half precision to a few units in the last place, with NaN and infinities at the same
    places; where cotangents are finite, so must their second derivatives. Differences of a few units in the last place
    of the cotangents do not count: terms that cancel leave as much.

    A fault that shows elsewhere is also looked for there: at other static values, at calls that give arrays by keyword,
    under two nested vmaps, or in bfloat16 with long axes and cotangents of one sign.
    """
    edges = [(tuple(None if a is None else np.asarray(a) for a in e.args), e) for e in target.rule.edges]
    named = [target.cases[0].at(args, e.kwargs, f"{e.name}, exact") for args, e in edges]
    places: list[tuple[TargetCall, tuple[str, ...], str]] = [(base, ("float64",), "") for base in target.by_keyword]
    if mutation.primitive == KEYWORD:  # elsewhere it is the rule itself
        return _same_at(places, mutation)
    if mutation.operator == NARROW:
        places += [(base, ("bfloat16",), ONE_SIGN) for i in range(len(target.cases)) for base in target.longer(i)]
    if mutation.operator == NESTED:
        places += [(base, ("float64",), BATCHED) for base in target.cases]
    if mutation.primitive == STATIC:
        places += [(base, ("float64",), "") for base in target.varied]
    places += [(base, DTYPES, SCALED) for base in target.cases]
    places += [(_contrary(base), ("float64", "float32"), "") for base in target.cases]
    places += [(base, ("float64",), "") for base in target.elsewhere]
    places += [(base, ("float64", "float32"), "") for base in named]
    return _same_at(places, mutation)


def _same_at(places: Sequence[tuple[TargetCall, tuple[str, ...], str]], mutation: Mutation) -> bool:
    for base, dtypes, manner in places:
        for dtype in dtypes:
            with x64() if dtype == "float64" else nullcontext():
                if not _same(base, mutation, jnp.dtype(dtype), manner):
                    return False
    return True


def _contrary(base: TargetCall) -> TargetCall:
    """Return the call with each mask negated."""
    given = (base.args, dict(base.kwargs))
    args, kwargs = jax.tree.map(lambda a: ~np.asarray(a) if getattr(a, "dtype", None) == np.bool_ else a, given)
    return base.at(args, kwargs, f"{base.case}, contrary")


def _same(base: TargetCall, mutation: Mutation, dtype: Any, manner: str) -> bool:
    leaves = base.leaves(dtype)
    gs = base.cotangents(leaves)
    points, masked = [(leaves, gs)], []
    if manner == ONE_SIGN:
        points.append((leaves, tuple(np.abs(g).astype(g.dtype) for g in gs)))
    if manner == BATCHED:
        factors = np.random.default_rng((base.seed, 8)).uniform(0.5, 1.0, (2, 2))
        points = [jax.tree.map(lambda a: np.multiply.outer(factors, a).astype(a.dtype), (leaves, gs))]
    if manner == SCALED:
        points += [(base.leaves(dtype, scale), base.cotangents(leaves, k)) for k, scale in enumerate(SCALES)]
        points += [(tuple(f(a) for a in leaves), gs) for f in (np.zeros_like, np.ones_like)]
        sparse = (np.where(np.arange(g.size).reshape(g.shape) % 2, g, np.zeros_like(g)) for g in gs)
        points.append((leaves, tuple(sparse)))
        infinite = (np.where(np.arange(g.size).reshape(g.shape) % 3, g, np.full_like(g, np.inf)) for g in gs)
        masked = [(leaves, tuple(infinite))]

    def answers(subject: CallUnderTest) -> list[np.ndarray] | None:
        pull = _orders(subject, two=base.offers("reverse") and dtype == np.float64 and manner != BATCHED)
        program = subject.compiled(jax.vmap(jax.vmap(pull)) if manner == BATCHED else pull)
        first = subject.compiled(_orders(subject, two=False))
        try:
            every = [jax.tree.leaves(program(*point)) for point in points]
            every += [jax.tree.leaves(first(*point)) for point in masked]
        except Exception:  # an edge, or a dtype, that the function refuses
            return None
        return [np.asarray(a).astype(np.float64) for part in every for a in part]

    if (dtype, manner) not in base.expected:
        base.expected[dtype, manner] = answers(base)
    expected, found = base.expected[dtype, manner], answers(mutate(base, mutation))
    if expected is None or found is None:
        return expected is found
    unit = FEW * float(jnp.finfo(dtype).eps)
    tolerance = 1e-12 if dtype == np.float64 else unit
    count = (len(expected) - len(masked) * len([*leaves, *base.outputs(leaves)])) // len(points)  # arrays to a point
    floor = unit * max(map(size_of, gs), default=0.0) if manner != ONE_SIGN else 0.0
    sizes = [max(floor, tolerance * max(size_of(b) for b in expected[k::count])) for k in range(count)]
    pairs = zip(found, expected, itertools.cycle(sizes), strict=False)
    return all(_close(a, b, size) for a, b, size in pairs)


def _orders(subject: CallUnderTest, two: bool) -> Callable[[Leaves, Leaves], Any]:
    """Return the pullback of a call, with the pullback of its cotangents if `two`."""
    pull = subject.pull(subject.call)

    def run(leaves: Leaves, gs: Leaves) -> Any:
        if not two:
            return pull(leaves, gs)
        (ys, dxs), back = jax.vjp(pull, leaves, gs)
        directions = tuple(jnp.where(jnp.isfinite(x), jnp.cos(x), 1) for x in leaves)
        return ys, dxs, back((tuple(map(jnp.zeros_like, ys)), directions))

    return run


def _close(a: np.ndarray, b: np.ndarray, tolerance: float) -> bool:
    with np.errstate(invalid="ignore"):
        alike = (a == b) | (np.isnan(a) & np.isnan(b)) | (np.abs(a - b) <= tolerance)
    return a.shape == b.shape and bool(np.all(alike))
