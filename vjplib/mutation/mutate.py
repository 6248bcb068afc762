"""Mutants: rules with one small bug in the program that JAX traces their backward to.

A mutation names an equation, by its primitive and its number among those of that primitive, and an operator, which
injects the bug. It is applied whenever the backward is traced, so a mutant runs at other shapes, in other dtypes and
under every transform, as a rule does. Where the traced program has no such equation, or the operator does not suit it,
the mutant is the rule itself. Equations inside jit, scan, while and cond are mutated too. The forward pass, the primal
and the functions that lead to the custom_vjp (wrappers, jit, moved axes) stay unchanged.

Two faults are not of one equation. A backward may be traced with another value of a static argument, where its results
keep their shapes; and an array that is given by keyword may lose its cotangent on the way, before the rule.
"""

import inspect
import itertools
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext, suppress
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from vjplib.compat import (
    INLINED,
    CustomVJP,
    Literal,
    as_written,
    bind_eqn,
    custom_vjp_of,
    force_retrace,
    interpreted,
    is_plain_array,
    programs,
    replaced_custom_vjp_calls,
    source_of,
    unclose,
    with_backward,
    with_programs,
    without_dead_code,
)
from vjplib.mutation.operators import (
    INPUTS,
    KEYWORD,
    OF_CONSTANTS,
    OPERATORS,
    OUTPUTS,
    STATIC,
    THOUSANDTH,
    Equation,
    Mutation,
    proposals,
    static_proposals,
    with_static,
)
from vjplib.verification.call import ByPosition, CallUnderTest, attempt, combine, is_inexact

_LOOPS = ("scan", "while", "cond")
_tokens = itertools.count()
Call = TypeVar("Call", bound=CallUnderTest)


class _Backward(NamedTuple):
    """A backward traced at those of its inputs that are arrays; `rebuild` makes cotangents of the program's outputs."""

    jaxpr: Any
    consts: list[Any]
    arrays: list[Any]
    rebuild: Callable[[Sequence[Any]], Any]

    @property
    def narrow(self) -> Any:
        """The floating dtype of fewest bits among its inputs; float64 where none is floating."""
        floating = [a.dtype for a in self.arrays if jnp.issubdtype(a.dtype, jnp.floating)]
        return min(floating, key=lambda dtype: jnp.finfo(dtype).bits, default=np.dtype(np.float64))


def _traced(bwd: Callable[..., Any], given: Sequence[Any]) -> _Backward:
    """Return a backward's program at static arguments, residuals and cotangents."""
    *nondiff, res, g = given
    leaves, tree = jax.tree.flatten((res, g))
    moving = [i for i, leaf in enumerate(leaves) if is_plain_array(leaf)]
    returned: list[tuple[list[Any], Any]] = []

    def run(*arrays: Any) -> list[Any]:
        with as_written():
            outputs, structure = jax.tree.flatten(
                bwd(*nondiff, *jax.tree.unflatten(tree, combine(leaves, moving, arrays)))
            )
        returned.append(([None if is_plain_array(y) else y for y in outputs], structure))
        return [y for y in outputs if is_plain_array(y)]

    arrays = [leaves[i] for i in moving]
    jaxpr, consts = unclose(jax.make_jaxpr(run)(*arrays))
    jaxpr = without_dead_code(jaxpr)
    others, structure = returned[-1]

    def rebuild(values: Sequence[Any]) -> Any:
        mine = iter(values)
        return jax.tree.unflatten(structure, [next(mine) if y is None else y for y in others])

    return _Backward(jaxpr, consts, arrays, rebuild)


Path = tuple[tuple[int, int | None], ...]


def _equations(
    jaxpr: Any, before: Path = (), around: str = "", given: Sequence[bool] | None = None
) -> Iterator[tuple[Path, Any, str, bool]]:
    """Yield each equation with the path to it, where it is written, and whether it depends on an input.

    The path is its number, after those of the equations around it, each with that of the program inside.
    """
    moving = set(itertools.compress(jaxpr.invars, itertools.repeat(True) if given is None else given))
    for i, eqn in enumerate(jaxpr.eqns):
        reached = [not isinstance(v, Literal) and v in moving for v in eqn.invars]
        if any(reached):
            moving.update(eqn.outvars)
        inner = programs(eqn.params)
        where = source_of(eqn) or around
        inlined = eqn.primitive.name in INLINED and bool(inner)
        if not inlined:
            yield (*before, (i, None)), eqn, where, any(reached)
        if inlined or eqn.primitive.name in _LOOPS:
            for k, (_, program, _) in enumerate(inner):
                if _runs_here(eqn, k):
                    yield from _equations(program, (*before, (i, k)), where, reached if inlined else None)


def _runs_here(eqn: Any, k: int) -> bool:
    """Return whether program k of an equation can run on this platform."""
    platforms = eqn.params.get("branches_platforms")
    if not platforms:
        return True
    here = jax.default_backend()
    named = [i for i, names in enumerate(platforms) if names and here in names]
    return k == (named[0] if named else next(i for i, names in enumerate(platforms) if not names))


def _path_to(jaxpr: Any, mutation: Mutation) -> Path | None:
    """Return the path to the equation that a mutation names, None where the program has none."""
    alike = (path for path, eqn, _, _ in _equations(jaxpr) if eqn.primitive.name == mutation.primitive)
    return next(itertools.islice(alike, mutation.number, None), None)


def _run(jaxpr: Any, consts: Sequence[Any], args: Sequence[Any], path: Path, act: Callable[..., Any]) -> list[Any]:
    """Return what a program computes if the equation at the end of the path gives act(equation, inputs)."""
    numbers = itertools.count()
    (at, k), *rest = path

    def apply(eqn: Any, values: list[Any]) -> Sequence[Any]:
        if next(numbers) != at:
            return bind_eqn(eqn, values)
        if k is None:
            return act(eqn, values)
        _, inner, held = programs(eqn.params)[k]
        further = partial(_run, inner, held, path=tuple(rest), act=act)
        if eqn.primitive.name in INLINED:
            return further(args=values)
        new = jax.make_jaxpr(lambda *moving: further(args=moving))(*(v.aval for v in inner.invars))
        places = itertools.count()
        return bind_eqn(eqn, values, **with_programs(eqn.params, lambda old: new if next(places) == k else old))

    return interpreted(jaxpr, consts, args, apply)


def _equation_of(eqn: Any, values: Sequence[Any], narrow: Any) -> Equation:
    literal = [isinstance(v, Literal) for v in eqn.invars]
    inputs, outputs = [v.aval for v in eqn.invars], [v.aval for v in eqn.outvars]
    return Equation(eqn.primitive.name, values, inputs, literal, eqn.params, outputs, partial(bind_eqn, eqn), narrow)


def _array(y: Any, name: str) -> Equation:
    return Equation(name, (y,), (y,), (False,), {}, (y,), lambda values: values, y.dtype)


def _operated(equation: Equation, mutation: Mutation) -> Sequence[Any]:
    """Return the outputs of an equation with a mutation; unchanged where the operator does not suit it."""
    if (mutation.operator, mutation.detail) not in set(proposals(equation)):
        return equation.bind(equation.values)
    outputs = OPERATORS[mutation.operator](equation, *mutation.detail)
    if any(jnp.shape(y) != tuple(like.shape) for y, like in zip(outputs, equation.outputs, strict=True)):
        return equation.bind(equation.values)
    return [
        y if y.dtype == like.dtype else y.astype(like.dtype) for y, like in zip(outputs, equation.outputs, strict=True)
    ]


def _exchanged(arrays: Sequence[Any], mutation: Mutation) -> list[Any]:
    """Return the arrays with one changed, or two of the same shape exchanged."""
    arrays, i = list(arrays), mutation.number
    if i >= len(arrays):
        return arrays
    if mutation.operator != "exchanged":
        arrays[i] = _operated(_array(arrays[i], mutation.primitive), mutation)[0]
        return arrays
    j = int(mutation.detail[0])
    if j < len(arrays) and _alike(arrays[i], arrays[j]):
        arrays[i], arrays[j] = arrays[j], arrays[i]
    return arrays


def _alike(a: Any, b: Any) -> bool:
    return (a.shape, a.dtype) == (b.shape, b.dtype)


def _mutated(rule: CustomVJP, mutation: Mutation) -> Callable[..., Any]:
    """Return the backward of a rule with a mutation."""

    def bwd(*given: Any) -> Any:
        if mutation.primitive == STATIC:
            return rule.bwd(*(_with_other_static(rule, given, mutation) or given))
        backward = _traced(rule.bwd, given)
        arrays = _exchanged(backward.arrays, mutation) if mutation.primitive == INPUTS else backward.arrays
        path = None if mutation.primitive in (INPUTS, OUTPUTS) else _path_to(backward.jaxpr, mutation)
        if path is None:
            values = interpreted(backward.jaxpr, backward.consts, arrays, bind_eqn)
        else:
            act = lambda eqn, values: _operated(_equation_of(eqn, values, backward.narrow), mutation)  # noqa: E731
            values = _run(backward.jaxpr, backward.consts, arrays, path, act)
        if mutation.primitive == OUTPUTS:
            values = _exchanged([jnp.asarray(y) for y in values], mutation)
        return backward.rebuild(values)

    return bwd


def _with_other_static(
    rule: CustomVJP, given: Sequence[Any], mutation: Mutation, own: list[Any] | None = None
) -> Sequence[Any] | None:
    """Return what a backward takes with another static argument; None where nothing changes, or a shape would.

    `own` keeps what the backward itself returns there, for further mutations.
    """
    i = mutation.number
    if i >= len(given) - 2:
        return None
    new = attempt(lambda: with_static(given[i], mutation))
    if isinstance(new, Exception) or (type(new) is type(given[i]) and new == given[i]):
        return None
    changed, own = combine(given, [i], [new]), [] if own is None else own
    own += [_returned(rule, given)] if not own else []
    found = attempt(lambda: _returned(rule, changed))  # a backward may refuse the value in any way
    return changed if found == own[0] else None


def _returned(rule: CustomVJP, given: Sequence[Any]) -> tuple[Any, Any]:
    """Return shapes and dtypes of what a backward returns, and their structure."""
    backward = _traced(rule.bwd, given)
    outputs = backward.jaxpr.outvars
    tree = jax.tree.structure(backward.rebuild([0] * len(outputs)))
    return [(v.aval.shape, v.aval.dtype) for v in outputs], tree


def _of_keyword(fn: Callable[..., Any], mutation: Mutation) -> Callable[..., Any]:
    """Return fn with a fault in the cotangent of one parameter, where that is given by keyword."""

    def call(*args: Any, **kwargs: Any) -> Any:
        if (name := mutation.where) in kwargs:
            kwargs[name] = jax.tree.map(partial(_with_slope, factor=mutation.detail[0]), kwargs[name])
        return fn(*args, **kwargs)

    with suppress(TypeError, ValueError):  # built-in functions may have no signature
        vars(call)["__signature__"] = inspect.signature(fn)
    call.__name__ = getattr(fn, "__name__", type(fn).__name__)
    return call


def _with_slope(x: Any, factor: float) -> Any:
    """Return x, the cotangent of which is multiplied by a factor."""
    if not is_inexact(x):
        return x

    @jax.custom_jvp
    def same(x: Any) -> Any:
        return x

    same.defjvp(lambda xs, ts: (same(*xs), (ts[0] * factor).astype(ts[0].dtype)))
    return same(x)


def mutant(fn: Callable[..., Any], mutation: Mutation) -> Callable[..., Any]:
    """Return fn with a mutation in the backward of a custom_vjp that it is or leads to.

    Example:
        >>> sine = jax.custom_vjp(lambda x: jnp.sin(x))
        >>> sine.defvjp(lambda x: (jnp.sin(x), x), lambda x, g: (g * jnp.cos(x),))
        >>> float(jax.grad(mutant(sine, Mutation("<lambda>", "cos", 0, "factor", (0, 1.001))))(0.0))
        1.0010000467300415
        >>> float(jax.grad(mutant(sine, Mutation("<lambda>", "cos", 0, "sign", (0,))))(0.0))
        -1.0
    """
    if mutation.primitive == KEYWORD:
        return _of_keyword(fn, mutation)
    token = f"mutant {next(_tokens)}"
    made: dict[Any, Any] = {}  # one custom_vjp for each, so that JAX's caches of traces hold
    afresh = False

    def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal afresh
        y, seen = run(nullcontext() if not afresh else force_retrace(token), args, kwargs)
        if not seen and not afresh:  # a function that was jitted, and traced, before leads to it
            afresh = True
            y, _ = run(force_retrace(token), args, kwargs)
        return y

    def run(context: Any, args: Any, kwargs: Any) -> tuple[Any, bool]:
        seen, here = False, threading.get_ident()

        def replaced(original: Callable[..., Any], rule_fn: Any, *args: Any, **kwargs: Any) -> Any:
            nonlocal seen
            rule = custom_vjp_of(rule_fn)
            if rule is None or rule.name != mutation.rule or threading.get_ident() != here:
                return original(rule_fn, *args, **kwargs)
            seen = True
            if rule_fn not in made:
                made[rule_fn] = with_backward(rule, _mutated(rule, mutation))
            return original(made[rule_fn], *args, **kwargs)

        with replaced_custom_vjp_calls(replaced), context:
            return fn(*args, **kwargs), seen

    with suppress(TypeError, ValueError):  # built-in functions may have no signature
        vars(call)["__signature__"] = inspect.signature(fn)
    call.__name__ = getattr(fn, "__name__", type(fn).__name__)
    return call


def mutations(subject: CallUnderTest) -> list[Mutation]:
    """Return every mutation of the backward of each custom_vjp that a call reaches, in float32.

    Those of static arguments may change nothing at this call, see `shown`.
    """
    found: dict[Mutation, None] = {}

    def look(rule: CustomVJP, given: Sequence[Any]) -> None:
        backward = _traced(rule.bwd, given)
        found.update(dict.fromkeys(_all(rule.name, backward)))
        shapes = {a.shape for a in backward.arrays}  # which a static argument may state: it is no setting then
        for i, value in enumerate(given[:-2]):
            proposed = static_proposals(value, shapes)
            found.update(dict.fromkeys(Mutation(rule.name, STATIC, i, *pair) for pair in proposed))

    _watch_backwards(subject, look)
    return list(found)


def shown(subject: CallUnderTest, among: Iterable[Mutation]) -> set[Mutation]:
    """Return the mutations of static arguments that give the backward another value at a call, of the same shapes."""
    found: set[Mutation] = set()

    def look(rule: CustomVJP, given: Sequence[Any]) -> None:
        own: list[Any] = []
        mine = (m for m in among if m.rule == rule.name and m not in found)
        found.update(m for m in mine if _with_other_static(rule, given, m, own) is not None)

    _watch_backwards(subject, look)
    return found


def keyword_mutations(subject: CallUnderTest) -> list[Mutation]:
    """Return the mutations of a call that gives arrays by keyword."""
    if not isinstance(subject.fn, ByPosition):
        return []
    name = getattr(subject.fn.fn, "__name__", "")
    return [
        Mutation(name, KEYWORD, i, *fault, where=keyword)
        for i, keyword in enumerate(subject.fn.keywords)
        for fault in (("zero by keyword", (0.0,)), ("factor by keyword", (1 + THOUSANDTH,)))
    ]


def _watch_backwards(subject: CallUnderTest, look: Callable[[CustomVJP, Sequence[Any]], None]) -> None:
    """Trace a call's pullback in float32; look at each custom_vjp that it reaches, and at what its backward takes."""
    here = threading.get_ident()

    def spying(rule: CustomVJP) -> Callable[..., Any]:
        def bwd(*given: Any) -> Any:
            look(rule, given)
            return rule.bwd(*given)

        return bwd

    def call(original: Callable[..., Any], fn: Any, *args: Any, **kwargs: Any) -> Any:
        rule = custom_vjp_of(fn)
        spied = fn if rule is None or threading.get_ident() != here else with_backward(rule, spying(rule))
        return original(spied, *args, **kwargs)

    leaves = subject.leaves(np.float32)
    with replaced_custom_vjp_calls(call), force_retrace(f"mutations {next(_tokens)}"):
        jax.eval_shape(subject.pull(subject.call), leaves, subject.cotangents(leaves))


def _all(name: str, backward: _Backward) -> Iterator[Mutation]:
    counted: dict[str, int] = {}
    for _, eqn, where, moves in _equations(backward.jaxpr):
        primitive = eqn.primitive.name
        number = counted[primitive] = counted.get(primitive, -1) + 1
        values = [v.val if isinstance(v, Literal) else None for v in eqn.invars]
        equation = _equation_of(eqn, values, backward.narrow)
        for operator, detail in proposals(equation):
            if not moves and operator not in OF_CONSTANTS:
                continue
            yield Mutation(name, primitive, number, operator, detail, where)
    for place, arrays in ((INPUTS, backward.jaxpr.invars), (OUTPUTS, backward.jaxpr.outvars)):
        avals = [v.aval for v in arrays]
        for i, aval in enumerate(avals):
            for operator, detail in proposals(_array(aval, place)):
                yield Mutation(name, place, i, operator, detail)
        for i, j in itertools.combinations(range(len(avals)), 2):
            if _alike(avals[i], avals[j]) and avals[i].size:
                yield Mutation(name, place, i, "exchanged", (j,))


def mutate(base: Call, mutation: Mutation) -> Call:
    """Return the call of a mutant of base's function, which shares base's oracle and compiled programs."""
    fn = base.fn
    if isinstance(fn, ByPosition):
        return replace(base, fn=ByPosition(mutant(fn.fn, mutation), fn.keywords), base=base)
    return replace(base, fn=mutant(fn, mutation), base=base)
