"""Modes: each part of a hijax primitive that JAX calls in place of its body does what JAX would make of the body.

A hijax primitive has parts of its own for reverse mode, forward mode, linearization, vmap, dead code, rematerialization
and transposition, and no two of them are called by the same transformation. Each that the class offers is put to use as
JAX uses it, at the inputs that the call gives the primitive, in float64, beside the same transformation of the body;
and <J t, g> = <t, J^T g> holds between the modes. What the class leaves out is noted. Of uses that fail for one reason,
as a wrong jvp does under vmap too, the first stands for the others.

A call without such a primitive and without `linear_call` has no finding.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vjplib.compat import (
    as_function,
    bind_eqn,
    equations,
    evaluated,
    hi_primitive_of,
    interpreted,
    name_of,
    not_offered,
    offered,
    recomputed,
    unclose,
    without_dead_code,
    x64,
)
from vjplib.verification.call import CallUnderTest, Leaves, attempt, attempt_all, combine, normal_of
from vjplib.verification.claim import Claim
from vjplib.verification.oracle import DRAWS
from vjplib.verification.report import Finding, describe_error, failed, noted, passed, skipped
from vjplib.verification.tolerance import HALF_THE_DIGITS, SLACK, relative_gap, size_of

MOST = 4  # primitives of one call that are examined
MOST_ALONE = 3  # arguments, or outputs, of which each is tried alone
OPTIONAL = ("jvp", "lin", "batch")  # the parts without which a transformation raises
AGAINST = " against vjp"
SECOND = 0.75  # the factor of the other element of a batch: it leaves no domain that scaling keeps


class Point(NamedTuple):
    """Where a primitive is examined: the differentiated leaves, their tangents and the outputs' cotangents."""

    leaves: Leaves
    ts: Leaves
    gs: Leaves


class _Part(NamedTuple):
    """One use of a part: what it gives and what it must equal, functions of a `Point`, and names for the arrays."""

    ours: Callable[[Point], Sequence[Any]]
    theirs: Callable[[Point], Sequence[Any]]
    names: tuple[str, ...]
    other: str = "what the body gives"


def _of(runs: Iterable[Callable[[Point], Sequence[Any]]], names: tuple[str, ...]) -> _Part:
    """Return the use whose two functions are given in order."""
    ours, theirs = runs
    return _Part(ours, theirs, names)


def check(subject: CallUnderTest) -> Iterator[Finding]:
    """Yield a finding for each part of each hijax primitive of the call, none if the call has none."""
    with x64():
        program = attempt(lambda: _traced(subject, np.float64))
        if isinstance(program, Exception):  # other claims report that; it may refuse float64 alone
            program = attempt(lambda: _traced(subject, None))
        if isinstance(program, Exception):
            return
        eqns = list(equations(program[0]))
        called = [prim for eqn in eqns if (prim := hi_primitive_of(eqn)) is not None]
        if not called and all(eqn.primitive.name != "linear_call" for eqn in eqns):
            return
        outermost = unclose(program[0])[0].eqns
        direct = len(outermost) == len(called) == 1 and hi_primitive_of(outermost[0]) is not None
        met = [] if direct or subject.reference else _met(subject, *program)
        if not called or len({id(prim) for prim in called}) > len({id(prim) for prim, _ in met}):
            only = called[0] if len(called) == 1 else None
            yield from _examined(subject, "the call" if only is None else name_of(only), only, direct)
        distinct: dict[Any, tuple[Any, Sequence[Any]]] = {}
        for prim, values in met:
            key = attempt(lambda prim=prim: hash((type(prim), prim)))
            distinct.setdefault(
                (id(prim) if isinstance(key, Exception) else key, *map(str, prim.in_avals_flat)), (prim, values)
            )
        for prim, values in itertools.islice(distinct.values(), MOST):
            alone = CallUnderTest(as_function(prim), jax.tree.unflatten(prim.in_tree, values), seed=subject.seed)
            if alone.differentiable and alone.outputs(alone.leaves()):
                yield from _examined(alone, name_of(prim), prim)
        if len(distinct) > MOST:
            yield noted(f"{len(distinct) - MOST} more primitives of the call are not examined part by part")


def _traced(subject: CallUnderTest, dtype: Any) -> tuple[Any, Leaves]:
    leaves = subject.leaves(dtype)
    return jax.make_jaxpr(subject.call)(*leaves), leaves


def _met(subject: CallUnderTest, program: Any, leaves: Leaves) -> list[tuple[Any, Sequence[Any]]]:
    """Return each hijax primitive that the call calls outside of loops and branches, with its inputs."""
    jaxpr, consts = unclose(program)
    prims: list[Any] = []

    def run(leaves: Leaves) -> Any:
        values: list[Any] = []
        prims.clear()

        def enter(eqn: Any, given: Sequence[Any]) -> None:
            if (prim := hi_primitive_of(eqn)) is not None:
                prims.append(prim)
                values.append(list(given))

        evaluated(jaxpr, consts, leaves, enter=enter)
        return values

    values = attempt(lambda: subject.compiled(run)(leaves))
    return [] if isinstance(values, Exception) else list(zip(prims, values, strict=True))


def _examined(subject: CallUnderTest, name: str, prim: Any, direct: bool = True) -> Iterator[Finding]:
    """Yield the findings on a function that applies a primitive.

    Unless `direct`, it is a call that holds the primitive, or several if that is None: what raises may be another part
    of the call, and is noted only.
    """
    dtype: Any = np.float64
    if isinstance(attempt(lambda: jax.eval_shape(subject.pull(subject.call), *subject.point(dtype))), Exception):
        dtype = None
    leaves, gs = subject.point(dtype)
    rng = np.random.default_rng((subject.seed, 15))
    at = Point(leaves, tuple(normal_of(rng, a.shape, a.dtype) for a in leaves), gs)
    parts = {"vjp"} if prim is None else offered(prim)
    left_out = [part for part in OPTIONAL if prim is not None and part not in parts]
    if left_out:
        yield noted(f"not offered: {', '.join(left_out)}", name)
    uses = dict(_uses(subject, at, parts if prim is not None else {"vjp", "jvp", "lin"}, prim is not None))
    wrong: set[str] = set()  # the modes
    for use, result in sorted(_results(subject, uses, at).items(), key=lambda pair: pair[0].endswith(AGAINST)):
        modes = {"jvp", "lin", "vjp"} if use.endswith(AGAINST) else {use.split()[0].rstrip(",")} | _contained(use)
        follows = bool(wrong & modes)
        found = _judged(subject, f"{name}.{use}" if prim is not None else use, uses[use], result, at, follows)
        if use.endswith(AGAINST) and found.level in ("note", "skipped"):
            continue  # as the modes themselves
        if found.level != "fail":
            yield found
        elif not direct and found.code == "raises":
            yield noted(found.message, found.argument)
        elif not follows:
            wrong |= modes - _contained(use)
            yield found


def _contained(use: str) -> set[str]:
    """Return the mode that a use shows the faults of, beside its own."""
    return {"vjp"} if use.startswith(("dce", "remat")) else set()


def _uses(subject: CallUnderTest, at: Point, parts: set[str], every: bool) -> Iterator[tuple[str, _Part]]:
    """Yield each use of a part by name; of a call that only holds primitives, unless `every`, forward modes alone."""
    call, oracle = subject.call, subject.oracle
    count = len(at.gs)
    outputs = tuple(f"output {i}" if count > 1 else "the output" for i in range(count))
    tangents = tuple(f"the tangent of {y}" for y in outputs)
    cotangents = tuple(f"the cotangent of {x}" for x in subject.names)
    if every:
        yield (
            "vjp",
            _Part(partial(_pulled, subject, call), partial(_pulled, subject, oracle), outputs + cotangents),
        )
    for part, forward in (("jvp", _pushed), ("lin", _linearized)):
        if part not in parts:
            continue
        yield part, _Part(partial(forward, call), partial(_pushed, oracle), outputs + tangents)
        for i, x in enumerate(subject.names if 1 < len(subject.names) <= MOST_ALONE else ()):
            both = (partial(_alone, run, f, i) for run, f in ((forward, call), (_pushed, oracle)))
            yield f"{part} of {x} alone", _of(both, outputs + tangents)
        yield f"{part}{AGAINST}", _dot_test(subject, forward)
    if not every:
        return
    yield from _batched(subject, parts, outputs, tangents, cotangents)
    for kept in _subsets(count) if "dce" in parts else ():
        left = [partial(_without_the_others, subject, kept), lambda *ls, kept=kept: tuple(oracle(*ls)[i] for i in kept)]
        runs = (partial(_pulled_some, subject, f, kept) for f in left)
        shown = ", ".join(str(i) for i in kept)
        yield f"dce, output {shown} kept", _of(runs, tuple(outputs[i] for i in kept) + cotangents)
    if "remat" in parts:
        first = tuple(f"{y} at first" for y in outputs)
        runs = partial(_rematerialized, subject), lambda at: [*oracle(*at.leaves), *_pulled(subject, oracle, at)]
        yield "remat", _of(runs, first + tuple(f"{y} made again" for y in outputs) + cotangents)
    if "accumulators" in parts:
        added = tuple(f"what is added to the Ref of {x}'s cotangent" for x in subject.names)
        runs = partial(_into_refs, subject), lambda at: _pulled(subject, oracle, at)[count:]
        yield "vjp into Refs", _of(runs, added)
    if "transpose" in parts:
        for moving in _linear_in(subject, at):
            runs = partial(_transposed, subject, moving), lambda at, m=moving: _pulled_by(subject, oracle, m, at)
            named = ", ".join(subject.names[i] for i in moving)
            yield f"transpose in {named}", _of(runs, tuple(cotangents[i] for i in moving))


def _batched(
    subject: CallUnderTest, parts: set[str], outputs: tuple[str, ...], tangents: tuple[str, ...], cotangents: Any
) -> Iterator[tuple[str, _Part]]:
    """Yield derivatives of the vmapped function: a vmapped derivative never reaches what `batch` makes."""
    if "batch" not in parts:
        return
    ranks = [np.ndim(a) for a in subject.leaves()]
    front = (0,) * len(ranks)
    axes: dict[str, tuple[Any, ...]] = {"": front}
    if any(ranks):
        axes[f", {subject.names[0]} at the last axis"] = (ranks[0], *front[1:])
        axes[f", {subject.names[-1]} at the last axis"] = (*front[1:], ranks[-1])
    for i, x in enumerate(subject.names if 1 < len(ranks) <= MOST_ALONE else ()):
        axes[f" over {x} alone"] = tuple(0 if i == j else None for j in range(len(ranks)))
    for label, in_axes in axes.items():
        ours, theirs = (jax.vmap(f, in_axes=in_axes) for f in (subject.call, subject.oracle))
        stacked = partial(_stacked, in_axes)
        runs = [lambda at, f=f, s=stacked: _pulled(subject, f, s(at)) for f in (ours, theirs)]
        yield f"vjp of vmap{label}", _of(runs, outputs + cotangents)
        if label == "":
            twice = (jax.vmap(f, in_axes=(1,) * len(ranks)) for f in (ours, theirs))
            runs = [lambda at, f=f, s=stacked: _pulled(subject, f, _stacked(1, s(at))) for f in twice]
            yield "vjp of two vmaps", _of(runs, outputs + cotangents)
        for part, forward in (("jvp", _pushed), ("lin", _linearized)):
            if part in parts and (part == "jvp" or label == ""):
                runs = [lambda at, f=f, g=g, s=stacked: g(f, s(at)) for f, g in ((ours, forward), (theirs, _pushed))]
                yield f"{part} of vmap{label}", _of(runs, outputs + tangents)


def _stacked(axes: Any, at: Point) -> Point:
    """Return a point of a batch of two, stacked at the axes, that of the outputs in front or at the same axis."""
    per_leaf = axes if isinstance(axes, tuple) else (axes,) * len(at.leaves)
    out = 0 if isinstance(axes, tuple) else axes

    def stack(a: Any, axis: int | None) -> Any:
        return a if axis is None else jnp.stack((a, SECOND * a), axis)

    leaves, ts = (tuple(map(stack, part, per_leaf)) for part in (at.leaves, at.ts))
    return Point(leaves, ts, tuple(jnp.stack((g, -2 * g), out) for g in at.gs))


def _pushed(f: Callable[..., Leaves], at: Point) -> list[Any]:
    ys, ts = jax.jvp(f, at.leaves, at.ts)
    return [*ys, *ts]


def _linearized(f: Callable[..., Leaves], at: Point) -> list[Any]:
    ys, push = jax.linearize(f, *at.leaves)
    return [*ys, *push(*at.ts)]


def _alone(forward: Callable[..., list[Any]], f: Callable[..., Leaves], i: int, at: Point) -> list[Any]:
    """Return outputs and tangents where only one argument moves: the others' tangents are not zeros but absent."""
    moved = at._replace(leaves=(at.leaves[i],), ts=(at.ts[i],))
    return forward(lambda x: f(*at.leaves[:i], x, *at.leaves[i + 1 :]), moved)


def _pulled(subject: CallUnderTest, f: Callable[..., Leaves], at: Point) -> list[Any]:
    ys, dxs = subject.pull(f)(at.leaves, at.gs)
    return [*ys, *dxs]


def _pulled_some(subject: CallUnderTest, f: Callable[..., Leaves], kept: Sequence[int], at: Point) -> list[Any]:
    return _pulled(subject, f, at._replace(gs=tuple(at.gs[i] for i in kept)))


def _pulled_by(subject: CallUnderTest, f: Callable[..., Leaves], moving: Sequence[int], at: Point) -> list[Any]:
    dxs = subject.pull(f)(at.leaves, at.gs)[1]
    return [dxs[i] for i in moving]


def _dot_test(subject: CallUnderTest, forward: Callable[..., list[Any]]) -> _Part:
    """Return that the two modes of a function are each other's transpose, relative to the terms of the products."""

    def products(a: Sequence[Any], b: Sequence[Any]) -> list[Any]:
        return [jnp.sum(jnp.real(x * y)) for x, y in zip(a, b, strict=True)]

    def both(at: Point) -> tuple[Any, Any, Any]:
        pushed = products(forward(subject.call, at)[len(at.gs) :], at.gs)
        pulled = products(_pulled(subject, subject.call, at)[len(at.gs) :], at.ts)
        return sum(pushed), sum(pulled), sum(map(jnp.abs, [*pushed, *pulled]))

    def ours(at: Point) -> list[Any]:
        pushed, _, size = both(at)
        return [jnp.stack((pushed, size))]

    def theirs(at: Point) -> list[Any]:
        _, pulled, size = both(at)
        return [jnp.stack((pulled, size))]

    return _Part(ours, theirs, ("<J t, g>",), "<t, J^T g>")


def _subsets(count: int) -> list[tuple[int, ...]]:
    """Return the outputs that may be left where others are not used: each alone, and all but one."""
    sizes = range(1, count) if count <= MOST_ALONE else (1, count - 1)
    return [kept for n in sizes for kept in itertools.combinations(range(count), n)][: 2 * MOST_ALONE]


def _without_the_others(subject: CallUnderTest, kept: Sequence[int], *leaves: Any) -> Leaves:
    """Return some outputs by the program from which JAX has removed what only the others need."""
    closed = jax.make_jaxpr(lambda *ls: [subject.call(*ls)[i] for i in kept])(*leaves)
    jaxpr, consts = unclose(closed)
    return tuple(interpreted(without_dead_code(jaxpr), consts, leaves, bind_eqn))


def _rematerialized(subject: CallUnderTest, at: Point) -> list[Any]:
    def again(*leaves: Any) -> Leaves:
        return tuple(recomputed(subject.call, *leaves)[1])

    return [*recomputed(subject.call, *at.leaves)[0], *_pulled(subject, again, at)]


def _into_refs(subject: CallUnderTest, at: Point) -> list[Any]:
    """Return what a backward adds to Refs, which need not be zero before."""
    back: Any
    ys, back = jax.vjp(subject.call, *at.leaves)
    refs: list[Any] = [jax.new_ref(jnp.ones_like(a)) for a in at.leaves]
    back.with_refs(*refs)(tuple(g.astype(y.dtype) for g, y in zip(at.gs, ys, strict=True)))
    return [ref[...] - 1 for ref in refs]


def _linear_in(subject: CallUnderTest, at: Point) -> list[tuple[int, ...]]:
    """Return the arguments in which the function is linear: each such one, and all together if it is."""
    count = len(at.leaves)
    found = []
    for moving in [(i,) for i in range(count)] + ([tuple(range(count))] if count > 1 else []):

        def run(at: Point, moving: tuple[int, ...] = moving) -> Any:
            ts = tuple(t if i in moving else jnp.zeros_like(t) for i, t in enumerate(at.ts))
            there = combine(at.leaves, moving, [at.ts[i] for i in moving])
            return subject.oracle(*there), jax.jvp(subject.oracle, at.leaves, ts)[1]

        pair = attempt(lambda run=run: jax.device_get(subject.compiled(run)(at)))
        if not isinstance(pair, Exception):
            gaps = [relative_gap(a, b) for a, b in zip(*pair, strict=True)]
            found += [moving] if all(gap <= _digits(subject, at) for gap in gaps) else []
    return found


def _transposed(subject: CallUnderTest, moving: Sequence[int], at: Point) -> list[Any]:
    def f(*moved: Any) -> Leaves:
        return subject.call(*combine(at.leaves, moving, moved))

    back = jax.linear_transpose(f, *(at.leaves[i] for i in moving))
    return list(back(tuple(at.gs)))


def _results(subject: CallUnderTest, uses: dict[str, _Part], at: Point) -> dict[str, Any]:
    """Return for each use its arrays beside the body's, all compiled as one program, or what it raises."""

    def run(names: Sequence[str]) -> dict[str, Any]:
        program = subject.compiled(lambda at: {n: (uses[n].ours(at), uses[n].theirs(at)) for n in names})
        return jax.device_get(program(at))

    traces = {
        n: partial(jax.eval_shape, lambda at, use=use: (use.ours(at), use.theirs(at)), at) for n, use in uses.items()
    }
    results = attempt_all(run, traces)
    return {name: results[name] for name in uses}


def _judged(subject: CallUnderTest, name: str, use: _Part, result: Any, at: Point, follows: bool) -> Finding:
    """Return the finding on one use of a part; where its failure follows from another's, rounding is not looked for."""
    if isinstance(result, Exception):
        if isinstance(result, NotImplementedError):
            return noted(f"not offered: {not_offered(result) or describe_error(result)}", name)
        of_body = attempt(lambda: jax.eval_shape(use.theirs, at))
        if isinstance(of_body, Exception):
            return skipped(f"undecided, for the body refuses it: {describe_error(of_body)}", name)
        return failed("raises", f"raises {describe_error(result)}", name)
    ours, theirs = result
    digits = _digits(subject, at)
    gaps = [relative_gap(np.asarray(r), np.asarray(o)) for r, o in zip(ours, theirs, strict=True)]
    worst = max(range(len(gaps)), key=lambda i: gaps[i])
    gap, ratio = gaps[worst], gaps[worst] / digits
    if ratio > 1 and not follows and _is_rounding(subject, use, ours, theirs, at, digits):
        return noted("undecided: all terms cancel, and what is left of the body's is their rounding", name)
    if ratio > 1:
        size = f"by {gap:.1e} of its size" if np.isfinite(gap) else "in shape, dtype or by infinities"
        return failed("wrong_value", f"{use.names[worst]} differs from {use.other} {size}", name, ratio)
    return passed(f"equals {use.other}", name, ratio)


def _digits(subject: CallUnderTest, at: Point) -> float:
    """Return the relative gap that is tolerated: half the digits of the leaves and of what the body computes in."""
    coarsest = max([subject.eps, *(float(jnp.finfo(a.dtype).eps) for a in (*at.leaves, *at.gs))])
    return max(HALF_THE_DIGITS, float(np.sqrt(coarsest)))


def _is_rounding(
    subject: CallUnderTest, use: _Part, ours: Sequence[Any], theirs: Sequence[Any], at: Point, digits: float
) -> bool:
    """Return True if rounding the inputs changes what the body gives by as much as the two differ."""
    rng = np.random.default_rng((subject.seed, 16))
    unit = max(float(jnp.finfo(a.dtype).eps) for a in (*at.leaves, *at.gs)) / 2
    program = subject.compiled(use.theirs)

    def rounded(a: Any) -> Any:
        return np.asarray(a * (1 + unit * rng.uniform(-1, 1, np.shape(a)))).astype(a.dtype)

    draws = attempt(lambda: [jax.device_get(program(jax.tree.map(rounded, at))) for _ in range(DRAWS)])
    if isinstance(draws, Exception):
        return False
    for i, (r, o) in enumerate(zip(ours, theirs, strict=True)):
        if np.shape(r) != np.shape(o) or relative_gap(np.asarray(r), np.asarray(o)) <= digits:
            if np.shape(r) != np.shape(o):
                return False
            continue
        noise = SLACK * max(size_of(np.asarray(draw[i]) - o) for draw in draws)
        if not (np.isfinite(r - o).all() and size_of(r - o) <= noise):
            return False
    return True


CLAIM = Claim("modes", check, alias="V15", quick=check, needs_oracle=False, cost=(1, 1))
