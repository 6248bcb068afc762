"""What a program costs, read from its jaxpr: its largest array, its arithmetic and its length."""

import math
from typing import Any, NamedTuple

import jax.numpy as jnp

from vjplib.compat.jaxprs import programs


class ProgramCost(NamedTuple):
    """What a program takes.

    Args:
        largest: elements of its largest array.
        operations: multiplications and additions.
        multiplications: those of floating numbers alone, elementwise, of matrices and in convolutions.
        decided: whether the length of every loop is known.
        equations: the program's own length.
    """

    largest: int
    operations: int
    multiplications: int
    decided: bool
    equations: int


def cost_of(jaxpr: Any) -> ProgramCost:
    """Return the cost of a jaxpr, loops counted by their trips and branches by the dearest.

    Example:
        >>> import jax
        >>> x = jax.ShapeDtypeStruct((4, 5), jnp.float32)
        >>> cost_of(jax.make_jaxpr(lambda x: x @ x.T)(x).jaxpr)
        ProgramCost(largest=20, operations=180, multiplications=80, decided=True, equations=2)
    """
    largest, operations, multiplications, decided, equations = 0, 0, 0, True, len(jaxpr.eqns)
    for eqn in jaxpr.eqns:
        name, inner = eqn.primitive.name, [cost_of(body) for _, body, _ in programs(eqn.params)]
        equations += sum(c.equations for c in inner)
        largest = max([largest, *map(_elements, eqn.outvars), *(c.largest for c in inner)])
        decided = decided and name != "while" and all(c.decided for c in inner)
        if not inner or name.startswith(("reduce", "cum", "scatter", "select_and", "argm")):
            work = _arithmetic(eqn)
        else:
            parts = list(zip(*((c.operations, c.multiplications) for c in inner), strict=True))
            work = [max(part) if name == "cond" else eqn.params.get("length", 1) * sum(part) for part in parts]
        operations, multiplications = operations + work[0], multiplications + work[1]
    return ProgramCost(largest, operations, multiplications, decided, equations)


def _elements(v: Any) -> int:
    return math.prod(getattr(v.aval, "shape", ()))


def _arithmetic(eqn: Any) -> tuple[int, int]:
    """Return the operations, and the multiplications of floating numbers, of an equation that holds no program."""
    out, name = sum(map(_elements, eqn.outvars)), eqn.primitive.name
    if name == "dot_general":
        (contracted, _), _ = eqn.params["dimension_numbers"]
        products = out * math.prod(eqn.invars[0].aval.shape[i] for i in contracted)
        operations = 2 * products
    elif name == "conv_general_dilated":
        products = out * math.prod(eqn.invars[1].aval.shape[i] for i in eqn.params["dimension_numbers"].rhs_spec[1:])
        operations = 2 * products
    else:
        products = out if name == "mul" else 0
        operations = max([out, *map(_elements, eqn.invars)])
    return operations, products if products and jnp.issubdtype(eqn.outvars[0].aval.dtype, jnp.floating) else 0
