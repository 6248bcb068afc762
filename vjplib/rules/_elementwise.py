"""Rules of elementwise functions, made from a function and the formulas of its first two derivatives."""

from collections.abc import Callable
from functools import wraps

import jax

from vjplib.compat import custom_vjp
from vjplib.precision import upcast
from vjplib.rules._cotangents import like_primal

Formula = Callable[[jax.Array], jax.Array]

FAR = 1000.0  # every slope has reached its limit long before, to the last digit of float64; so no 0 meets an infinity


def elementwise(value: Formula, slope: Formula, curvature: Formula) -> Callable[[jax.Array], jax.Array]:
    """Return the rule of y = value(x), which keeps x: g^T J = g * slope(x).

    All three formulas get x in float32 or wider. A slope that is written for its digits is differentiated by the
    curvature. The derivation stands above the slope, which the rule's page shows as its backward.
    """
    differentiable = with_derivative(slope, curvature)

    @custom_vjp
    def rule(x):
        return fwd(x)[0]

    def fwd(x):
        return value(upcast(x)).astype(x.dtype), (x,)

    @wraps(slope)
    def bwd(res, g):
        (x,) = res
        return (like_primal(upcast(g) * differentiable(upcast(x)), x),)

    rule.defvjp(fwd, bwd)
    return rule


def with_derivative(f: Formula, derivative: Formula) -> Formula:
    """Return f with that derivative, for both modes."""
    differentiable = jax.custom_jvp(f)
    differentiable.defjvp(lambda primals, tangents: (differentiable(*primals), derivative(*primals) * tangents[0]))
    return differentiable
