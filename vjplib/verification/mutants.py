"""Mutants: a rule whose backward has one small fault, made from the program that JAX traces the backward to.

A mutation names an equation, by its primitive and its number among those of that primitive, and an operator: what is
done wrong there. It is applied anew whenever the backward is traced, so a mutant runs at other shapes, in other dtypes
and under every transform, as a rule does; where the program traced has no such equation, or the operator makes no sense
there, the mutant is the rule itself. Equations inside jit, scan, while and cond are mutated too. Forward pass, primal
and whatever leads to the custom_vjp (wrappers, jit, moved axes) stay as they are.
"""

import inspect
import itertools
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vjplib.compat import (
    INLINED,
    CustomVJP,
    Literal,
    as_written,
    bound,
    custom_vjp_of,
    interpreted,
    is_plain_array,
    opened,
    programs,
    remade,
    replaced_custom_vjp_calls,
    source_of,
    traced_afresh,
    without_dead_code,
)
from vjplib.verification.subject import Answers, Leaves, Subject

TAKEN, RETURNED = "what it is given", "what it returns"  # places of a backward that are no equation
_LOOPS = ("scan", "while", "cond")
_tokens = itertools.count()


class Mutation(NamedTuple):
    """One fault in a backward.

    Args:
        rule: the name of the custom_vjp.
        primitive: of the equation; `TAKEN` or `RETURNED` for what the backward is given and returns.
        number: which of the equations of this primitive, or which of the arrays given or returned.
        operator: a key of `OPERATORS`.
        detail: numbers that the operator takes.
        where: file, line and function that the equation comes from.
    """

    rule: str
    primitive: str
    number: int
    operator: str
    detail: tuple[float, ...] = ()
    where: str = ""

    def __str__(self) -> str:
        """Returns the operator, the equation and its place."""
        detail = f" {', '.join(f'{d:g}' for d in self.detail)}" if self.detail else ""
        return f"{self.operator}{detail} at {self.primitive} {self.number}{f', {self.where}' if self.where else ''}"


class Site(NamedTuple):
    """An equation, or an array given or returned, as an operator gets it.

    Args:
        name: the primitive, or what stands for it.
        values: the inputs.
        inputs: shape and dtype of each input.
        literal: of each input, whether it is written in the program as a number.
        params: the equation's parameters.
        outputs: shape and dtype of each output.
        bind: takes inputs and parameters to change; returns the outputs.
    """

    name: str
    values: Sequence[Any]
    inputs: Sequence[Any]
    literal: Sequence[bool]
    params: dict[str, Any]
    outputs: Sequence[Any]
    bind: Callable[..., Sequence[Any]]


# ------------------------------------------------------------------------------------------------------------ operators

ASYMMETRIC = {"sub", "div", "pow", "atan2", "rem", "select_n", "dot_general", "conv_general_dilated", "nextafter"}
ARITHMETIC = {"add", "add_any", "sub", "mul", "div", "max", "min", "pow", "atan2"}
REDUCTIONS = {"reduce_sum", "reduce_max", "reduce_min", "reduce_prod", "reduce_and", "reduce_or"}
CUMULATIVE = {"cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp"}
UNARY = {"exp", "exp2", "log", "log1p", "expm1", "neg", "sqrt", "rsqrt", "square", "abs", "logistic", "tanh"}
UNARY |= {"sin", "cos", "sign", "erf", "integer_pow", "not", "rev"}
SUMMING = {"reduce_sum", "dot_general", "conv_general_dilated", "cumsum", "reduce_window_sum", "select_and_scatter_add"}
INDEXED = {"gather", "scatter", "scatter-add", "scatter_add", "dynamic_slice", "dynamic_update_slice"}
_COMPARISONS = {"lt": "le", "le": "lt", "gt": "ge", "ge": "gt"}
_PADDED = ("padding_config", "padding")
THOUSANDTH = 1e-3
OF_CONSTANTS = {"constant off by one", "factor"}  # what is done wrong with numbers that depend on nothing


def _floating(x: Any) -> bool:
    return jnp.issubdtype(x.dtype, jnp.floating)


def _finite(x: Any) -> bool:
    return bool(np.isfinite(np.asarray(x).astype(np.float64)))


def _long(x: Any) -> list[int]:
    """Returns the axes of more than one element."""
    return [axis for axis, n in enumerate(x.shape) if n > 1]


def _along(x: Any, axis: int, kept: Callable[[Any], Any]) -> Any:
    index = jax.lax.broadcasted_iota(jnp.int32, x.shape, axis)
    return jnp.where(kept(index), x, jnp.zeros_like(x))


def _transposed(x: Any) -> Any:
    return jnp.reshape(jnp.swapaxes(x, *_long(x)[-2:]), x.shape)


def _with(items: Sequence[Any], i: int, new: Any) -> list[Any]:
    return [new if k == i else item for k, item in enumerate(items)]


def _of_output(change: Callable[..., Any]) -> Callable[..., Any]:
    """Returns the operator that changes output number detail[0], by the rest of the detail."""

    def operate(site: Site, i: float, *detail: float) -> Sequence[Any]:
        outputs = site.bind(site.values)
        return _with(outputs, int(i), change(outputs[int(i)], *detail))

    return operate


def _of_operand(change: Callable[..., Any]) -> Callable[..., Any]:
    """Returns the operator that changes input number detail[0], by the rest of the detail."""

    def operate(site: Site, i: float, *detail: float) -> Sequence[Any]:
        x = jnp.asarray(site.values[int(i)], site.inputs[int(i)].dtype)
        return site.bind(_with(site.values, int(i), change(x, *detail)))

    return operate


def _coarse(x: Any) -> Any:
    return x.astype(jnp.bfloat16).astype(x.dtype) if _floating(x) else x


def _lower_precision(site: Site) -> Sequence[Any]:
    lowered = [
        jnp.asarray(x, jnp.bfloat16) if _floating(like) else x for x, like in zip(site.values, site.inputs, strict=True)
    ]
    if site.params.get("preferred_element_type") is not None:
        return site.bind(lowered, preferred_element_type=jnp.dtype(jnp.bfloat16))
    return site.bind(lowered)


def _alone(site: Site, i: float) -> Sequence[Any]:
    x = site.values[int(i)]
    return [-x if site.name == "sub" and int(i) == 1 else x]


def _swapped(site: Site, i: float, j: float) -> Sequence[Any]:
    values = list(site.values)
    values[int(i)], values[int(j)] = values[int(j)], values[int(i)]
    return site.bind(values)


def _wrong_axis(site: Site, axis: float) -> Sequence[Any]:
    key = "axes" if "axes" in site.params else "axis" if "axis" in site.params else "dimensions"
    axes = site.params[key]
    moved = (*axes[:-1], int(axis)) if isinstance(axes, tuple) else int(axis)
    (y,) = site.bind(site.values, **{key: moved})
    return [jnp.resize(y, site.outputs[0].shape)]


def _first_slice(site: Site) -> Sequence[Any]:
    x = site.values[0]
    for axis in sorted(site.params["axes"], reverse=True):
        x = jax.lax.index_in_dim(x, 0, axis, keepdims=False)
    return [x]


def _mean(site: Site) -> Sequence[Any]:
    return [site.bind(site.values)[0] / int(np.prod([site.values[0].shape[a] for a in site.params["axes"]]))]


def _padding_moved(site: Site, axis: float) -> Sequence[Any]:
    key = next(k for k in _PADDED if k in site.params)
    padding = list(site.params[key])
    low, high, *rest = padding[int(axis)]
    padding[int(axis)] = (low + 1, high - 1, *rest)
    return site.bind(site.values, **{key: tuple(padding)})


def _other_branch(site: Site) -> Sequence[Any]:
    index = site.values[0]
    return site.bind([(index + 1) % len(site.params["branches"]), *site.values[1:]])


def _flag(name: str) -> Callable[[Site], Sequence[Any]]:
    return lambda site: site.bind(site.values, **{name: not site.params[name]})


def _exponent(site: Site, by: float) -> Sequence[Any]:
    return site.bind(site.values, y=site.params["y"] + int(by))


def _strictness(site: Site) -> Sequence[Any]:
    compared = {"lt": jax.lax.lt, "le": jax.lax.le, "gt": jax.lax.gt, "ge": jax.lax.ge}
    return [compared[_COMPARISONS[site.name]](*site.values)]


OPERATORS: dict[str, Callable[..., Sequence[Any]]] = {
    "operands swapped": _swapped,
    "sign": _of_output(lambda y: -y),
    "factor": _of_output(lambda y, factor: y * jnp.asarray(factor, y.dtype)),
    "term dropped": _alone,
    "case dropped": lambda site, i: [jnp.broadcast_to(site.values[int(i)], site.outputs[0].shape)],
    "function dropped": lambda site: [site.values[0]],
    "wrong axis": _wrong_axis,
    "sum lost": _first_slice,
    "mean for a sum": _mean,
    "transposed": _of_output(_transposed),
    "operand transposed": _of_operand(_transposed),
    "reshaped for transposed": lambda site: [jnp.reshape(site.values[0], site.outputs[0].shape)],
    "off by one": _of_output(lambda y, by, axis: jnp.roll(y, int(by), int(axis))),
    "operand off by one": _of_operand(lambda x, axis: jnp.roll(x, 1, int(axis))),
    "index off by one": _of_operand(lambda x: x + jnp.ones_like(x)),
    "padding off by one": _padding_moved,
    "first lost": _of_output(lambda y, axis: _along(y, int(axis), lambda index: index > 0)),
    "last lost": _of_output(lambda y, axis: _along(y, int(axis), lambda index: index < y.shape[int(axis)] - 1)),
    "lower precision": _lower_precision,
    "rounded to bfloat16": _of_output(_coarse),
    "detached": _of_output(jax.lax.stop_gradient),
    "zero": _of_output(jnp.zeros_like),
    "predicate negated": lambda site: site.bind([~site.values[0], *site.values[1:]]),
    "strictness": _strictness,
    "equality negated": lambda site: [~site.bind(site.values)[0]],
    "constant off by one": _of_operand(lambda x: x + 1),
    "exponent off by one": _exponent,
    "other branch": _other_branch,
    "other direction": _flag("reverse"),
    "window reversed": lambda site, axis: site.bind([site.values[0], jnp.flip(site.values[1], int(axis))]),
    "order reversed": lambda site: site.bind(list(site.values)[::-1]),
}


def proposals(site: Site) -> Iterator[tuple[str, tuple[float, ...]]]:
    """Yields the operators that make sense at a site, each with its detail."""
    for i, y in enumerate(site.outputs):
        if getattr(y, "size", 0) == 0:
            continue
        yield from _proposed_of_output(i, y)
    name, values = site.name, site.inputs
    if name in (TAKEN, RETURNED) or not all(hasattr(y, "shape") for y in site.outputs):
        return
    first = site.outputs[0] if site.outputs else None
    shapes = [(x.shape, x.dtype) for x in values]
    pairs = [(i, j) for i, j in itertools.combinations(range(len(values)), 2) if shapes[i] == shapes[j]]
    if name in ASYMMETRIC:
        yield from (("operands swapped", pair) for pair in pairs if name != "select_n" or 0 not in pair)
    if name in ARITHMETIC and first is not None:
        for i, x in enumerate(values):
            if not site.literal[i] and x.shape == first.shape:
                yield "term dropped", (i,)
    if name == "select_n":
        yield from (("case dropped", (i,)) for i in range(1, len(values)))
        if values[0].dtype == np.bool_:
            yield "predicate negated", ()
    if name in UNARY and first is not None and shapes[0] == (first.shape, first.dtype):
        yield "function dropped", ()
    yield from _proposed_of_axes(site)
    for i, x in enumerate(values):
        if site.literal[i] and x.size == 1 and x.dtype != np.bool_ and _finite(site.values[i]):
            yield "constant off by one", (i,)
        elif len(values) > 1 or name == "slice":
            yield from (("operand off by one", (i, axis)) for axis in _long(x))
        if name in INDEXED and jnp.issubdtype(x.dtype, jnp.integer):
            yield "index off by one", (i,)
        if name in ("dot_general", "conv_general_dilated") and len(_long(x)) > 1:
            yield "operand transposed", (i,)
    if name in SUMMING and _floating(values[0]):
        yield "lower precision", ()
    if name in _COMPARISONS:
        yield "strictness", ()
    if name in ("eq", "ne"):
        yield "equality negated", ()
    if name == "integer_pow":
        yield from (("exponent off by one", (by,)) for by in (1, -1))
    if name == "cond" and not site.params.get("branches_platforms"):
        yield "other branch", ()
    if "reverse" in site.params:
        yield "other direction", ()


def _proposed_of_output(i: int, y: Any) -> Iterator[tuple[str, tuple[float, ...]]]:
    if not jnp.issubdtype(y.dtype, jnp.floating):
        yield from (("off by one", (i, by, axis)) for axis in _long(y) for by in (1, -1))
        return
    yield from ((operator, (i,)) for operator in ("sign", "detached", "zero", "rounded to bfloat16"))
    yield from (("factor", (i, 1 + by)) for by in (THOUSANDTH, -THOUSANDTH))
    if len(_long(y)) > 1:
        yield "transposed", (i,)
    for axis in _long(y):
        yield from (("off by one", (i, by, axis)) for by in (1, -1))
        yield "first lost", (i, axis)
        yield "last lost", (i, axis)


def _proposed_of_axes(site: Site) -> Iterator[tuple[str, tuple[float, ...]]]:
    name, params = site.name, site.params
    if name in REDUCTIONS and params["axes"]:
        yield "sum lost", ()
        if name == "reduce_sum" and _floating(site.inputs[0]):
            yield "mean for a sum", ()
        yield from (("wrong axis", (a,)) for a in _long(site.inputs[0]) if a not in params["axes"])
    if name in CUMULATIVE:
        yield from (("wrong axis", (a,)) for a in _long(site.inputs[0]) if a != params["axis"])
    if name == "rev":
        yield from (("wrong axis", (a,)) for a in _long(site.inputs[0]) if a not in params["dimensions"])
    if name == "transpose" and len(_long(site.inputs[0])) > 1:
        yield "reshaped for transposed", ()
    for key in _PADDED:
        if isinstance(params.get(key), (tuple, list)):
            yield from (("padding off by one", (axis,)) for axis in range(len(params[key])))
    if name == "conv_general_dilated":
        spatial = params["dimension_numbers"].rhs_spec[2:]
        yield from (("window reversed", (axis,)) for axis in spatial if site.inputs[1].shape[axis] > 1)
    if name == "concatenate" and len(site.inputs) > 1:
        yield "order reversed", ()


# -------------------------------------------------------------------------------------------------------------- program


class _Backward(NamedTuple):
    """A backward traced at what it was given.

    Args:
        jaxpr: its program.
        consts: what it closes over.
        arrays: what it was given, arrays alone.
        rebuild: takes its arrays; returns what it returns.
    """

    jaxpr: Any
    consts: list[Any]
    arrays: list[Any]
    rebuild: Callable[[Sequence[Any]], Any]


def _traced(bwd: Callable[..., Any], given: Sequence[Any]) -> _Backward:
    """Returns a backward's program at static arguments, residuals and cotangents."""
    *nondiff, res, g = given
    leaves, tree = jax.tree.flatten((res, g))
    moving = [i for i, leaf in enumerate(leaves) if is_plain_array(leaf)]
    returned: list[tuple[list[Any], Any]] = []

    def run(*arrays: Any) -> list[Any]:
        every = list(leaves)
        for i, a in zip(moving, arrays, strict=True):
            every[i] = a
        with as_written():
            outputs, structure = jax.tree.flatten(bwd(*nondiff, *jax.tree.unflatten(tree, every)))
        returned.append(([None if is_plain_array(y) else y for y in outputs], structure))
        return [y for y in outputs if is_plain_array(y)]

    arrays = [leaves[i] for i in moving]
    jaxpr, consts = opened(jax.make_jaxpr(run)(*arrays))
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
    """Yields each equation with the way to it, where it is written, and whether it depends on what is given.

    The way is its number, after those of the equations around it, each with that of the program inside.
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
    """Returns whether program k of an equation can run on this platform."""
    platforms = eqn.params.get("branches_platforms")
    if not platforms:
        return True
    here = jax.default_backend()
    named = [i for i, names in enumerate(platforms) if names and here in names]
    return k == (named[0] if named else next(i for i, names in enumerate(platforms) if not names))


def _way(jaxpr: Any, mutation: Mutation) -> Path | None:
    """Returns the way to the equation that a mutation names, None where the program has none."""
    alike = (path for path, eqn, _, _ in _equations(jaxpr) if eqn.primitive.name == mutation.primitive)
    return next(itertools.islice(alike, mutation.number, None), None)


def _run(jaxpr: Any, consts: Sequence[Any], args: Sequence[Any], path: Path, act: Callable[..., Any]) -> list[Any]:
    """Returns what a program computes, the equation at the end of the way giving act(equation, inputs)."""
    numbers = itertools.count()
    (at, k), *rest = path

    def apply(eqn: Any, values: list[Any]) -> Sequence[Any]:
        if next(numbers) != at:
            return bound(eqn, values)
        if k is None:
            return act(eqn, values)
        _, inner, held = programs(eqn.params)[k]
        further = partial(_run, inner, held, path=tuple(rest), act=act)
        if eqn.primitive.name in INLINED:
            return further(args=values)
        new = jax.make_jaxpr(lambda *moving: further(args=moving))(*(v.aval for v in inner.invars))
        return bound(eqn, values, **_with_program(eqn.params, k, new))

    return interpreted(jaxpr, consts, args, apply)


def _with_program(params: dict[str, Any], k: int, new: Any) -> dict[str, Any]:
    """Returns the parameter that holds program number k, with another in its place."""
    names = [name for name, _, _ in programs(params)]
    name = names[k]
    held = params[name]
    if not isinstance(held, (tuple, list)):
        return {name: new}
    within = [i for i, item in enumerate(held) if programs({"": item})]
    return {name: tuple(_with(held, within[k - names.index(name)], new))}


def _site_of(eqn: Any, values: Sequence[Any]) -> Site:
    literal = [isinstance(v, Literal) for v in eqn.invars]
    inputs, outputs = [v.aval for v in eqn.invars], [v.aval for v in eqn.outvars]
    return Site(eqn.primitive.name, values, inputs, literal, eqn.params, outputs, partial(bound, eqn))


def _given(y: Any, name: str = TAKEN) -> Site:
    return Site(name, (y,), (y,), (False,), {}, (y,), lambda values: values)


def _operated(site: Site, mutation: Mutation) -> Sequence[Any]:
    """Returns the outputs of a site with a mutation, or as they are where it makes no sense."""
    if (mutation.operator, mutation.detail) not in set(proposals(site)):
        return site.bind(site.values)
    outputs = OPERATORS[mutation.operator](site, *mutation.detail)
    if any(jnp.shape(y) != tuple(like.shape) for y, like in zip(outputs, site.outputs, strict=True)):
        return site.bind(site.values)
    return [y if y.dtype == like.dtype else y.astype(like.dtype) for y, like in zip(outputs, site.outputs, strict=True)]


def _exchanged(arrays: Sequence[Any], mutation: Mutation) -> list[Any]:
    """Returns arrays, one of them changed, or two of the same shape exchanged."""
    arrays, i = list(arrays), mutation.number
    if i >= len(arrays):
        return arrays
    if mutation.operator != "exchanged":
        arrays[i] = _operated(_given(arrays[i]), mutation)[0]
        return arrays
    j = int(mutation.detail[0])
    if j < len(arrays) and _alike(arrays[i], arrays[j]):
        arrays[i], arrays[j] = arrays[j], arrays[i]
    return arrays


def _alike(a: Any, b: Any) -> bool:
    return (a.shape, a.dtype) == (b.shape, b.dtype)


def _mutated(rule: CustomVJP, mutation: Mutation) -> Callable[..., Any]:
    """Returns the backward of a rule with a mutation."""

    def bwd(*given: Any) -> Any:
        backward = _traced(rule.bwd, given)
        arrays = _exchanged(backward.arrays, mutation) if mutation.primitive == TAKEN else backward.arrays
        path = None if mutation.primitive in (TAKEN, RETURNED) else _way(backward.jaxpr, mutation)
        if path is None:
            values = interpreted(backward.jaxpr, backward.consts, arrays, bound)
        else:
            act = lambda eqn, values: _operated(_site_of(eqn, values), mutation)  # noqa: E731
            values = _run(backward.jaxpr, backward.consts, arrays, path, act)
        if mutation.primitive == RETURNED:
            values = _exchanged([jnp.asarray(y) for y in values], mutation)
        return backward.rebuild(values)

    return bwd


def mutant(fn: Callable[..., Any], mutation: Mutation) -> Callable[..., Any]:
    """Returns fn with a mutation in the backward of a custom_vjp that it calls, or is.

    Args:
        fn: a `jax.custom_vjp`, or a function that leads to one.
        mutation: the fault.

    Example:
        >>> sine = jax.custom_vjp(lambda x: jnp.sin(x))
        >>> sine.defvjp(lambda x: (jnp.sin(x), x), lambda x, g: (g * jnp.cos(x),))
        >>> float(jax.grad(mutant(sine, Mutation("<lambda>", "cos", 0, "factor", (0, 1.001))))(0.0))
        1.0010000467300415
        >>> float(jax.grad(mutant(sine, Mutation("<lambda>", "cos", 0, "sign", (0,))))(0.0))
        -1.0
    """
    token = f"mutant {next(_tokens)}"
    made: dict[Any, Any] = {}  # one custom_vjp for each, that what is traced of it may be kept
    afresh = False

    def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal afresh
        y, seen = run(nullcontext() if not afresh else traced_afresh(token), args, kwargs)
        if not seen and not afresh:  # a function that was jitted, and traced, before leads to it
            afresh = True
            y, _ = run(traced_afresh(token), args, kwargs)
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
                made[rule_fn] = remade(rule, _mutated(rule, mutation))
            return original(made[rule_fn], *args, **kwargs)

        with replaced_custom_vjp_calls(replaced), context:
            return fn(*args, **kwargs), seen

    with suppress(TypeError, ValueError):  # built-in functions may have none
        vars(call)["__signature__"] = inspect.signature(fn)
    call.__name__ = getattr(fn, "__name__", type(fn).__name__)
    return call


def mutations(subject: Subject) -> list[Mutation]:
    """Returns every mutation of the backward of each custom_vjp that a subject's call calls, in float32.

    Args:
        subject: the call.
    """
    found: dict[Mutation, None] = {}
    here = threading.get_ident()

    def spying(rule: CustomVJP) -> Callable[..., Any]:
        def bwd(*given: Any) -> Any:
            backward = _traced(rule.bwd, given)
            found.update(dict.fromkeys(_all(rule.name, backward)))
            return backward.rebuild(interpreted(backward.jaxpr, backward.consts, backward.arrays, bound))

        return bwd

    def call(original: Callable[..., Any], fn: Any, *args: Any, **kwargs: Any) -> Any:
        rule = custom_vjp_of(fn)
        spied = fn if rule is None or threading.get_ident() != here else remade(rule, spying(rule))
        return original(spied, *args, **kwargs)

    leaves = subject.leaves(np.float32)
    with replaced_custom_vjp_calls(call), traced_afresh(f"mutations {next(_tokens)}"):
        jax.eval_shape(subject.pull(subject.call), leaves, subject.cotangents(leaves))
    return list(found)


def _all(name: str, backward: _Backward) -> Iterator[Mutation]:
    counted: dict[str, int] = {}
    for _, eqn, where, moves in _equations(backward.jaxpr):
        primitive = eqn.primitive.name
        number = counted[primitive] = counted.get(primitive, -1) + 1
        site = _site_of(eqn, [v.val if isinstance(v, Literal) else None for v in eqn.invars])
        for operator, detail in proposals(site):
            if not moves and operator not in OF_CONSTANTS:
                continue
            yield Mutation(name, primitive, number, operator, detail, where)
    for place, arrays in ((TAKEN, backward.jaxpr.invars), (RETURNED, backward.jaxpr.outvars)):
        avals = [v.aval for v in arrays]
        for i, aval in enumerate(avals):
            for operator, detail in proposals(_given(aval, place)):
                yield Mutation(name, place, i, operator, detail)
        for i, j in itertools.combinations(range(len(avals)), 2):
            if _alike(avals[i], avals[j]) and avals[i].size:
                yield Mutation(name, place, i, "exchanged", (j,))


@dataclass(frozen=True)
class Mutant(Subject):
    """The subject that a mutant makes: the base's calls, oracle and compiled programs, another function.

    Args:
        base: the subject of the rule itself.
        mutation: the fault.
    """

    base: Subject | None = None
    mutation: Mutation | None = None

    @property
    def oracle(self) -> Callable[..., Leaves]:
        """The base's oracle."""
        assert self.base is not None
        return self.base.oracle

    @cached_property
    def answers(self) -> Callable[[Leaves, Leaves], Answers]:
        """The base's answers, with the mutant's outputs and cotangents in place of the rule's."""
        assert self.base is not None
        base, ours = self.base, self.compiled(self.pull(self.call))
        return lambda leaves, gs: Answers(
            (theirs := base.answers(leaves, gs)).primal, *ours(leaves, gs), theirs.true_ys, theirs.true_dxs
        )

    @property
    def truths(self) -> Callable[[Leaves, Leaves], tuple[Leaves, Leaves]]:  # type: ignore[override]  # a cached property there
        """The base's truths."""
        assert self.base is not None
        return self.base.truths

    @property
    def undifferentiable(self) -> str | None:  # type: ignore[override]  # the same
        """Why JAX cannot differentiate the base's oracle, or None."""
        assert self.base is not None
        return self.base.undifferentiable

    def at(self, args: tuple[Any, ...], kwargs: Any, case: str) -> "Mutant":
        """Returns the same mutant at another call; the bases at such calls are kept."""
        assert self.base is not None
        kept = self.base.__dict__.setdefault("_other_calls", {})
        base = kept.setdefault(case, self.base.at(args, kwargs, case))
        return replace(self, args=base.args, kwargs=base.kwargs, case=case, base=base)


def mutate(base: Subject, mutation: Mutation) -> Mutant:
    """Returns the subject of a mutant of base's function, at base's call."""
    given = {name: getattr(base, name) for name in Subject.__dataclass_fields__}
    return Mutant(**{**given, "fn": mutant(base.fn, mutation)}, base=base, mutation=mutation)
