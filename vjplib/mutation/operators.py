"""Operators: the bugs that mutations inject into one equation of a backward, and which of them suit it."""

import itertools
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_batching import custom_vmap

from vjplib.compat import bind_eqn, interpreted, unclose, with_programs
from vjplib.verification.call import combine

INPUTS, OUTPUTS = "input", "output"  # of the backward, in place of a primitive
STATIC, KEYWORD = "static argument", "keyword argument"  # of the rule, likewise
NARROW, NESTED = "narrow accumulator", "rolled under two vmaps"
WHOLE = -1  # in place of the number of a field: the static argument itself


class Mutation(NamedTuple):
    """One injected bug in a backward.

    Args:
        rule: the name of the custom_vjp.
        primitive: of the equation; `INPUTS` or `OUTPUTS` for an array that the backward takes or returns, `STATIC` or
            `KEYWORD` for an argument of the rule.
        number: which of the equations of this primitive, or which of the arrays or arguments.
        operator: a key of `OPERATORS`, or of `STATIC_OPERATORS`.
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
        """Return the operator, the equation and its place."""
        detail = f" {', '.join(f'{d:g}' for d in self.detail)}" if self.detail else ""
        return f"{self.operator}{detail} at {self.primitive} {self.number}{f', {self.where}' if self.where else ''}"


class Equation(NamedTuple):
    """An equation with the values of its inputs, or an array that the backward takes or returns.

    Args:
        name: the primitive, `INPUTS` or `OUTPUTS`.
        values: the inputs.
        inputs: shape and dtype of each input.
        literal: of each input, whether it is written in the program as a number.
        params: the equation's parameters.
        outputs: shape and dtype of each output.
        bind: takes inputs and parameters to change; returns the outputs.
        narrow: the floating dtype of fewest bits among the arrays that the backward takes.
    """

    name: str
    values: Sequence[Any]
    inputs: Sequence[Any]
    literal: Sequence[bool]
    params: dict[str, Any]
    outputs: Sequence[Any]
    bind: Callable[..., Sequence[Any]]
    narrow: Any


# ------------------------------------------------------------------------------------------------------------ operators

ASYMMETRIC = {"sub", "div", "pow", "atan2", "rem", "select_n", "dot_general", "conv_general_dilated", "nextafter"}
ARITHMETIC = {"add", "add_any", "sub", "mul", "div", "max", "min", "pow", "atan2"}
REDUCTIONS = {"reduce_sum", "reduce_max", "reduce_min", "reduce_prod", "reduce_and", "reduce_or"}
CUMULATIVE = {"cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp"}
UNARY = {"exp", "exp2", "log", "log1p", "expm1", "neg", "sqrt", "rsqrt", "square", "abs", "logistic", "tanh"}
UNARY |= {"sin", "cos", "sign", "erf", "integer_pow", "not", "rev"}
SUMMING = {"reduce_sum", "dot_general", "conv_general_dilated", "cumsum", "reduce_window_sum", "select_and_scatter_add"}
ACCUMULATING = {"reduce_sum", "dot_general", "cumsum", "scan"}
INDEXED = {"gather", "scatter", "scatter-add", "scatter_add", "dynamic_slice", "dynamic_update_slice"}
_OTHER_STRICTNESS = {"lt": jax.lax.le, "le": jax.lax.lt, "gt": jax.lax.ge, "ge": jax.lax.gt}
_PADDED = ("padding_config", "padding")
THOUSANDTH = 1e-3
OF_CONSTANTS = {"constant off by one", "factor"}  # operators for numbers that depend on no input


def _floating(x: Any) -> bool:
    return jnp.issubdtype(x.dtype, jnp.floating)


def _finite(x: Any) -> bool:
    return bool(np.isfinite(np.asarray(x).astype(np.float64)))


def _long(x: Any) -> list[int]:
    """Return the axes of more than one element."""
    return [axis for axis, n in enumerate(x.shape) if n > 1]


def _along(x: Any, axis: int, kept: Callable[[Any], Any]) -> Any:
    index = jax.lax.broadcasted_iota(jnp.int32, x.shape, axis)
    return jnp.where(kept(index), x, jnp.zeros_like(x))


def _transposed(x: Any) -> Any:
    return jnp.reshape(jnp.swapaxes(x, *_long(x)[-2:]), x.shape)


def _of_output(change: Callable[..., Any]) -> Callable[..., Any]:
    """Return the operator that changes output number detail[0], by the rest of the detail."""

    def operate(eqn: Equation, i: float, *detail: float) -> Sequence[Any]:
        outputs = eqn.bind(eqn.values)
        return combine(outputs, [int(i)], [change(outputs[int(i)], *detail)])

    return operate


def _of_operand(change: Callable[..., Any]) -> Callable[..., Any]:
    """Return the operator that changes input number detail[0], by the rest of the detail."""

    def operate(eqn: Equation, i: float, *detail: float) -> Sequence[Any]:
        x = jnp.asarray(eqn.values[int(i)], eqn.inputs[int(i)].dtype)
        return eqn.bind(combine(eqn.values, [int(i)], [change(x, *detail)]))

    return operate


def _lower_precision(eqn: Equation) -> Sequence[Any]:
    pairs = zip(eqn.values, eqn.inputs, strict=True)
    lowered = [jnp.asarray(x, jnp.bfloat16) if _floating(like) else x for x, like in pairs]
    preferred = eqn.params.get("preferred_element_type") is not None
    return eqn.bind(lowered, **({"preferred_element_type": jnp.dtype(jnp.bfloat16)} if preferred else {}))


def _alone(eqn: Equation, i: float) -> Sequence[Any]:
    x = eqn.values[int(i)]
    return [-x if eqn.name == "sub" and int(i) == 1 else x]


def _swapped(eqn: Equation, i: float, j: float) -> Sequence[Any]:
    return eqn.bind(combine(eqn.values, (int(i), int(j)), (eqn.values[int(j)], eqn.values[int(i)])))


def _wrong_axis(eqn: Equation, axis: float) -> Sequence[Any]:
    key = "axes" if "axes" in eqn.params else "axis" if "axis" in eqn.params else "dimensions"
    axes = eqn.params[key]
    moved = (*axes[:-1], int(axis)) if isinstance(axes, tuple) else int(axis)
    (y,) = eqn.bind(eqn.values, **{key: moved})
    return [jnp.resize(y, eqn.outputs[0].shape)]


def _first_slice(eqn: Equation) -> Sequence[Any]:
    x = eqn.values[0]
    for axis in sorted(eqn.params["axes"], reverse=True):
        x = jax.lax.index_in_dim(x, 0, axis, keepdims=False)
    return [x]


def _mean(eqn: Equation) -> Sequence[Any]:
    return [eqn.bind(eqn.values)[0] / int(np.prod([eqn.values[0].shape[a] for a in eqn.params["axes"]]))]


def _padding_moved(eqn: Equation, axis: float) -> Sequence[Any]:
    key = next(k for k in _PADDED if k in eqn.params)
    padding = list(eqn.params[key])
    low, high, *rest = padding[int(axis)]
    padding[int(axis)] = (low + 1, high - 1, *rest)
    return eqn.bind(eqn.values, **{key: tuple(padding)})


# Accumulators. The operands stay as they are, so that only a long sum shows the fault, best if its terms have one sign.


def _contracted(eqn: Equation) -> list[tuple[int, ...]]:
    """Return the axes along which a sum or a product of matrices adds up, of each operand; the longest last."""
    if eqn.name == "reduce_sum":
        pairs = [(axis,) for axis in eqn.params["axes"]]
    else:
        pairs = list(zip(*eqn.params["dimension_numbers"][0], strict=True))
    return sorted(pairs, key=lambda axes: eqn.inputs[0].shape[axes[0]])


def _carried(eqn: Equation) -> list[int]:
    """Return which outputs of a scan are its carry: the others have an axis more than those of its body."""
    body, _ = unclose(eqn.params["jaxpr"])
    inner: list[Any] = [v.aval for v in body.outvars]
    return [i for i, (y, of_one) in enumerate(zip(eqn.outputs, inner, strict=True)) if y.shape == of_one.shape]


def _can_accumulate(eqn: Equation) -> bool:
    """Return True for an equation that adds up floating numbers one after another, or could."""
    if eqn.name == "scan":
        return any(_floating(eqn.outputs[i]) for i in _carried(eqn))
    if not _floating(eqn.inputs[0]):
        return False
    if eqn.name == "cumsum":
        return eqn.inputs[0].shape[eqn.params["axis"]] > 1
    along = _contracted(eqn)[-1:] if eqn.name in ("reduce_sum", "dot_general") else []
    return any(eqn.inputs[0].shape[axes[0]] > 1 for axes in along)


def _accumulated(eqn: Equation) -> Sequence[Any]:
    """Return the outputs with what is added up rounded at each step to the dtype of the fewest bits at hand."""

    def rounded(a: Any) -> Any:
        return a.astype(eqn.narrow).astype(a.dtype)

    def step(total: Any, row: Any) -> tuple[Any, Any]:
        return (total := rounded(total + row)), total

    if eqn.name == "scan":
        body, held = unclose(eqn.params["jaxpr"])
        carried = _carried(eqn)

        def turn(*values: Any) -> list[Any]:
            outputs = interpreted(body, held, values, bind_eqn)
            return [rounded(y) if i in carried and _floating(y) else y for i, y in enumerate(outputs)]

        new = jax.make_jaxpr(turn)(*(v.aval for v in body.invars))
        return eqn.bind(eqn.values, **with_programs(eqn.params, lambda _: new))
    if eqn.name == "cumsum":
        axis, back = eqn.params["axis"], slice(None, None, -1 if eqn.params["reverse"] else 1)
        rows = jnp.moveaxis(jnp.asarray(eqn.values[0]), axis, 0)[back]
        _, sums = jax.lax.scan(step, rows[0], rows[1:])
        return [jnp.moveaxis(jnp.concatenate([rows[:1], sums])[back], 0, axis)]
    axes = _contracted(eqn)[-1]
    rows = [jnp.moveaxis(jnp.asarray(x), axis, 0) for x, axis in zip(eqn.values, axes, strict=True)]

    def part(*row: Any) -> Any:
        return eqn.bind([jnp.expand_dims(a, axis) for a, axis in zip(row, axes, strict=True)])[0]

    first = part(*(a[0] for a in rows))
    return [jax.lax.scan(lambda total, row: step(total, part(*row)), first, [a[1:] for a in rows])[0]]


# Nested batches. A batching rule of the backward's own that is right for one batch axis.


@custom_vmap
def _in_no_batch(x: Any) -> Any:
    return x


@custom_vmap
def _in_one_batch(x: Any) -> Any:
    return x


@_in_no_batch.def_vmap
def _(size: int, batched: Sequence[bool], x: Any) -> tuple[Any, bool]:
    return _in_one_batch(x), batched[0]


@_in_one_batch.def_vmap
def _(size: int, batched: Sequence[bool], x: Any) -> tuple[Any, bool]:
    return jnp.roll(x, 1, 0) if batched[0] else x, batched[0]


@jax.custom_jvp
def _rolled_under_two_vmaps(x: Any) -> Any:
    """Return x, and under two vmaps x rolled along the outer batch axis; its own derivative is the identity."""
    return _in_no_batch(x)


_rolled_under_two_vmaps.defjvp(lambda xs, ts: (_rolled_under_two_vmaps(*xs), *ts))


OPERATORS: dict[str, Callable[..., Sequence[Any]]] = {
    "operands swapped": _swapped,
    "sign": _of_output(lambda y: -y),
    "factor": _of_output(lambda y, factor: y * jnp.asarray(factor, y.dtype)),
    "term dropped": _alone,
    "case dropped": lambda eqn, i: [jnp.broadcast_to(eqn.values[int(i)], eqn.outputs[0].shape)],
    "function dropped": lambda eqn: [eqn.values[0]],
    "wrong axis": _wrong_axis,
    "sum lost": _first_slice,
    "mean for a sum": _mean,
    "transposed": _of_output(_transposed),
    "operand transposed": _of_operand(_transposed),
    "reshaped for transposed": lambda eqn: [jnp.reshape(eqn.values[0], eqn.outputs[0].shape)],
    "off by one": _of_output(lambda y, by, axis: jnp.roll(y, int(by), int(axis))),
    "operand off by one": _of_operand(lambda x, axis: jnp.roll(x, 1, int(axis))),
    "index off by one": _of_operand(lambda x: x + jnp.ones_like(x)),
    "padding off by one": _padding_moved,
    "first lost": _of_output(lambda y, axis: _along(y, int(axis), lambda index: index > 0)),
    "last lost": _of_output(lambda y, axis: _along(y, int(axis), lambda index: index < y.shape[int(axis)] - 1)),
    "lower precision": _lower_precision,
    "rounded to bfloat16": _of_output(lambda y: y.astype(jnp.bfloat16).astype(y.dtype)),
    "detached": _of_output(jax.lax.stop_gradient),
    "zero": _of_output(jnp.zeros_like),
    "predicate negated": lambda eqn: eqn.bind([~eqn.values[0], *eqn.values[1:]]),
    "strictness": lambda eqn: [_OTHER_STRICTNESS[eqn.name](*eqn.values)],
    "equality negated": lambda eqn: [~eqn.bind(eqn.values)[0]],
    "constant off by one": _of_operand(lambda x: x + 1),
    "exponent off by one": lambda eqn, by: eqn.bind(eqn.values, y=eqn.params["y"] + int(by)),
    "other branch": lambda eqn: eqn.bind([(eqn.values[0] + 1) % len(eqn.params["branches"]), *eqn.values[1:]]),
    "other direction": lambda eqn: eqn.bind(eqn.values, reverse=not eqn.params["reverse"]),
    "window reversed": lambda eqn, axis: eqn.bind([eqn.values[0], jnp.flip(eqn.values[1], int(axis))]),
    "order reversed": lambda eqn: eqn.bind(list(eqn.values)[::-1]),
    NARROW: _accumulated,
    NESTED: _of_output(_rolled_under_two_vmaps),
}


def proposals(eqn: Equation) -> Iterator[tuple[str, tuple[float, ...]]]:
    """Yield the operators that suit an equation, each with its detail."""
    for i, y in enumerate(eqn.outputs):
        if getattr(y, "size", 0):
            yield from _proposed_of_output(i, y)
    name, values = eqn.name, eqn.inputs
    if name == OUTPUTS and _floating(values[0]) and values[0].size:
        yield NESTED, (0,)
    if name in (INPUTS, OUTPUTS) or not all(hasattr(y, "shape") for y in eqn.outputs):
        return
    first = eqn.outputs[0] if eqn.outputs else None
    shapes = [(x.shape, x.dtype) for x in values]
    pairs = [(i, j) for i, j in itertools.combinations(range(len(values)), 2) if shapes[i] == shapes[j]]
    if name in ASYMMETRIC:
        yield from (("operands swapped", pair) for pair in pairs if name != "select_n" or 0 not in pair)
    if name in ARITHMETIC and first is not None:
        for i, x in enumerate(values):
            if not eqn.literal[i] and x.shape == first.shape:
                yield "term dropped", (i,)
    if name == "select_n":
        yield from (("case dropped", (i,)) for i in range(1, len(values)))
        if values[0].dtype == np.bool_:
            yield "predicate negated", ()
    if name in UNARY and first is not None and shapes[0] == (first.shape, first.dtype):
        yield "function dropped", ()
    yield from _proposed_of_axes(eqn)
    for i, x in enumerate(values):
        if eqn.literal[i] and x.size == 1 and x.dtype != np.bool_ and _finite(eqn.values[i]):
            yield "constant off by one", (i,)
        elif len(values) > 1 or name == "slice":
            yield from (("operand off by one", (i, axis)) for axis in _long(x))
        if name in INDEXED and jnp.issubdtype(x.dtype, jnp.integer):
            yield "index off by one", (i,)
        if name in ("dot_general", "conv_general_dilated") and len(_long(x)) > 1:
            yield "operand transposed", (i,)
    if name in SUMMING and _floating(values[0]):
        yield "lower precision", ()
    if name in ACCUMULATING and _can_accumulate(eqn):
        yield NARROW, ()
    if name in _OTHER_STRICTNESS:
        yield "strictness", ()
    if name in ("eq", "ne"):
        yield "equality negated", ()
    if name == "integer_pow":
        yield from (("exponent off by one", (by,)) for by in (1, -1))
    if name == "cond" and not eqn.params.get("branches_platforms"):
        yield "other branch", ()
    if "reverse" in eqn.params:
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


def _proposed_of_axes(eqn: Equation) -> Iterator[tuple[str, tuple[float, ...]]]:
    name, params = eqn.name, eqn.params
    if name in REDUCTIONS and params["axes"]:
        yield "sum lost", ()
        if name == "reduce_sum" and _floating(eqn.inputs[0]):
            yield "mean for a sum", ()
        yield from (("wrong axis", (a,)) for a in _long(eqn.inputs[0]) if a not in params["axes"])
    if name in CUMULATIVE:
        yield from (("wrong axis", (a,)) for a in _long(eqn.inputs[0]) if a != params["axis"])
    if name == "rev":
        yield from (("wrong axis", (a,)) for a in _long(eqn.inputs[0]) if a not in params["dimensions"])
    if name == "transpose" and len(_long(eqn.inputs[0])) > 1:
        yield "reshaped for transposed", ()
    for key in _PADDED:
        if isinstance(params.get(key), (tuple, list)):
            yield from (("padding off by one", (axis,)) for axis in range(len(params[key])))
    if name == "conv_general_dilated":
        spatial = params["dimension_numbers"].rhs_spec[2:]
        yield from (("window reversed", (axis,)) for axis in spatial if eqn.inputs[1].shape[axis] > 1)
    if name == "concatenate" and len(eqn.inputs) > 1:
        yield "order reversed", ()


# ----------------------------------------------------------------------------------------------------- static arguments

STATIC_OPERATORS: dict[str, Callable[..., Any]] = {
    "first for all": lambda given: given[:1] * len(given),
    "first alone": lambda given: given[:1],
    "held": lambda given, value: type(given)(value),
}
"""Take a static argument, or a field of it, and give what the backward has in its place."""


def static_proposals(given: Any, shapes: Collection[Any] = ()) -> Iterator[tuple[str, tuple[float, ...]]]:
    """Yield the operators that suit a static argument, each with its detail: the field's number, then the rest.

    Tuples among `shapes` are left out.

    Example:
        >>> list(static_proposals((2, 3)))
        [('first for all', (-1,)), ('first alone', (-1,))]
        >>> list(static_proposals(True))
        [('held', (-1, 1.0))]
    """
    parts: list[tuple[int, Any]] = [(WHOLE, given), *enumerate(_fields(given).values())]
    for i, part in parts:
        if type(part) in (bool, int, float):  # not an enum, which is an int as well
            yield "held", (i, float(part))
        elif type(part) is tuple and len(part) > 1 and part not in shapes:
            yield "first for all", (i,)
            yield "first alone", (i,)


def _fields(given: Any) -> dict[str, Any]:
    """Return the fields of a configuration, by name; none of other values."""
    if hasattr(given, "_asdict"):
        return given._asdict()
    settable = fields(given) if is_dataclass(given) and not isinstance(given, type) else ()
    return {field.name: getattr(given, field.name) for field in settable if field.init}


def with_static(given: Any, mutation: Mutation) -> Any:
    """Return the static argument that a mutation puts in the place of the given one; that itself if it suits none."""
    i, *rest = mutation.detail
    name = None if i == WHOLE else list(_fields(given))[int(i)]
    part = given if name is None else _fields(given)[name]
    if mutation.operator not in {operator for operator, (at, *_) in static_proposals(given) if at == i}:
        return given
    new = STATIC_OPERATORS[mutation.operator](part, *rest)
    if name is None:
        return new
    return given._replace(**{name: new}) if hasattr(given, "_replace") else replace(given, **{name: new})
