"""Garbage: whether a difference between float32 and float64 can have a reason other than a fault in float32."""

from contextlib import nullcontext
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vjplib.compat import equations, evaluated, unclose, x64
from vjplib.verification.call import CallUnderTest, attempt

# Parts of the names of primitives whose results may be others in float64: random numbers, drawn by JAX, by Python or
# from bits, and loops that end where steps are small.
_BY_CHANCE = ("random", "threefry", "rng", "callback", "xor", "shift", "bitcast", "while")
# Those whose results are determined up to a sign, a unitary factor or an order.
_UP_TO_A_SIGN = frozenset(
    {"eig", "eigh", "svd", "qr", "geqrf", "geqp3", "householder_product", "schur", "hessenberg", "tridiagonal", "lu"}
)
_ALIKE = 1e-6  # relative, constants of the two programs
_SINGLE = np.finfo(np.float32)


def same_in_float32(subject: CallUnderTest) -> bool:
    """Return True if the oracle's pullback is one program in float32 and in float64, and leaves neither's range.

    Only rounding, or a fault, makes results different then.
    """
    if subject.widest != np.float64:
        return False
    found = attempt(lambda: _same(subject))
    return found is True


def _same(subject: CallUnderTest) -> bool:
    made = []
    for dtype, context in ((np.float32, nullcontext), (np.float64, x64)):
        with context():
            point = subject.point(dtype)
            made.append(jax.make_jaxpr(subject.pull(subject.oracle))(*point))
    single, double = ([_constant(c) for c in program.consts] for program in made)
    eqns = [list(equations(program)) for program in made]
    names, others = ([eqn.primitive.name for eqn in part] for part in eqns)
    if names != others or _UP_TO_A_SIGN & set(names) or any(part in name for name in names for part in _BY_CHANCE):
        return False
    for a, b in zip(*eqns, strict=True):
        single += [_constant(v.val) for v in a.invars if hasattr(v, "val")]
        double += [_constant(v.val) for v in b.invars if hasattr(v, "val")]
    alike = all(a.shape == b.shape and np.allclose(a, b, _ALIKE, 0, True) for a, b in zip(single, double, strict=True))
    return alike and _in_range(made[1], jax.tree.leaves(point))


def _constant(value: Any) -> np.ndarray:
    a = np.asarray(value)
    return a.astype(np.float64) if jnp.issubdtype(a.dtype, jnp.inexact) else a


def _in_range(program: Any, inputs: list[Any]) -> bool:
    """Return True if all numbers on the way are normal ones of float32, or zero."""
    inside = True

    def look(eqn: Any, outputs: Any) -> Any:
        nonlocal inside
        for y in outputs:
            if jnp.issubdtype(y.dtype, jnp.floating):
                size = np.abs(np.asarray(y, np.float64))
                inside = inside and bool(np.all((size == 0) | ((size >= _SINGLE.tiny) & (size <= _SINGLE.max))))
        return outputs

    with x64():
        evaluated(*unclose(program), inputs, look)
    return inside
