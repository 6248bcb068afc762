"""Gated activations: one half of the features, through a nonlinearity, scales the other; both halves alone are kept."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Shaped

from vjplib.compat import custom_vjp
from vjplib.jacobians import Diagonal
from vjplib.precision import upcast
from vjplib.rule import Case, Edge, Gain, Rule, Tail
from vjplib.rules._arguments import as_array, as_inexact, broadcast_shapes, by_rule, normalize_axes
from vjplib.rules._cotangents import like_primal
from vjplib.rules.smooth_activations import (
    curvature_softplus,
    exact_exponent_gelu,
    exact_logistic,
    exact_slope_gelu,
    exact_slope_silu,
    jacobian_gelu,
    jacobian_silu,
    reference_gelu,
    reference_silu,
    slope_gelu_by_erf,
    slope_gelu_by_tanh,
    slope_silu,
    slope_softplus,
    value_gelu_by_erf,
    value_gelu_by_tanh,
    value_silu,
)

# ----------------------------------------------------------------------------------------------------------------- glu


def glu(x: Shaped[ArrayLike, "..."], axis: int = -1) -> Shaped[Array, "..."]:
    """a / (1 + exp(-b)), elementwise, where a and b are the first and the second half of x along axis.

    Args:
        x: any shape and dtype; complex numbers go to `jax.nn.glu`.
        axis: the axis that is halved; its size must be even.

    Returns:
        An array of x's shape with half the size along axis, in x's dtype (JAX's default float for integers). NaN and
        infinities follow arithmetic. The cotangents keep their relative accuracy where the gate saturates.

    Raises:
        TypeError: x is not an array of numbers, or axis is not an integer.
        ValueError: axis is out of range, or its size is odd.

    Example:
        >>> glu(jnp.array([2.0, 0.0])).tolist(), jax.jacobian(glu)(jnp.array([2.0, 0.0])).tolist()
        ([1.0], [[0.5, 0.5]])

    Source:
        Dauphin et al., Language modeling with gated convolutional networks, 2017. The signature is that of
        `jax.nn.glu`.
    """
    x = as_inexact("x", x)
    if not hasattr(axis, "__index__"):
        raise TypeError(f"axis must be an integer, got {axis!r}")
    (along,) = normalize_axes(axis, x.ndim)
    if x.shape[along] % 2:
        raise ValueError(f"axis must have an even size, got axis {axis} of x {x.shape}")
    return by_rule(lambda x: _glu(x, along), partial(jax.nn.glu, axis=along), x=x)


@partial(custom_vjp, nondiff_argnames=("axis",))
def _glu(x, axis):
    return fwd_glu(x, axis)[0]


def fwd_glu(x, axis):
    a, b = jnp.split(upcast(x), 2, axis)
    return (a * slope_softplus(b)).astype(x.dtype), (x,)


# y = a s(b) with the sigmoid s, whose derivative is s(b) s(-b).
#   g^T J_a = g * s(b),   g^T J_b = g a * s(b) s(-b),   one after the other along the axis
# s is the slope of softplus. The halves are taken from x again, which alone is kept.
def bwd_glu(axis, res, g):
    (x,) = res
    a, b = jnp.split(upcast(x), 2, axis)
    g = upcast(g)
    return (like_primal(jnp.concatenate((g * slope_softplus(b), g * a * curvature_softplus(b)), axis), x),)


_glu.defvjp(fwd_glu, bwd_glu)


def reference_glu(x, axis=-1):
    a, b = jnp.split(x, 2, axis)
    e = jnp.exp(-jnp.abs(b))
    return a * jnp.where(b >= 0, 1 / (1 + e), e / (1 + e))


# -------------------------------------------------------------------------------------------------------------- swiglu


def swiglu(gate: Shaped[ArrayLike, "..."], x: Shaped[ArrayLike, "..."]) -> Shaped[Array, "..."]:
    """silu(gate) x, elementwise; its partial derivatives are x silu'(gate) and silu(gate).

    Args:
        gate: any shape that broadcasts with x's, and any dtype; a projection of the features, such as x W.
        x: any dtype; another projection, such as x V. If both promote to a complex dtype, the plain expression is
            computed.

    Returns:
        An array of the broadcast shape, in the dtype that both promote to (JAX's default float for integers). NaN and
        infinities follow arithmetic. The cotangents keep their relative accuracy where the gate saturates.

    Raises:
        TypeError: an argument is not an array of numbers.
        ValueError: the shapes do not broadcast.

    Example:
        >>> swiglu(0.0, 3.0).item(), jax.grad(swiglu)(0.0, 3.0).item()
        (0.0, 1.5)

    Source:
        Shazeer, GLU variants improve transformer, 2020. It is `jax.nn.silu(gate) * x`.
    """
    return _by_gate(_swiglu, lambda gate, x: jax.nn.silu(gate) * x, gate, x)


@custom_vjp
def _swiglu(gate, x):
    return fwd_swiglu(gate, x)[0]


def fwd_swiglu(gate, x):
    return (value_silu(upcast(gate)) * upcast(x)).astype(jnp.result_type(gate, x)), (gate, x)


# y = f(a) b with f = silu, linear in b:
#   g^T J_a = g b * f'(a),   g^T J_b = g * f(a),   each summed over the axes along which its argument was broadcast
# f(a) is computed again: a and b alone are kept.
def bwd_swiglu(res, g):
    gate, x = res
    g, a = upcast(g), upcast(gate)
    return like_primal(g * upcast(x) * slope_silu(a), gate), like_primal(g * value_silu(a), x)


_swiglu.defvjp(fwd_swiglu, bwd_swiglu)


def reference_swiglu(gate, x):
    return reference_silu(gate) * x


def jacobian_swiglu(gate, x):
    return Diagonal(x * jacobian_silu(gate)[0].diagonal), Diagonal(reference_silu(gate))


# --------------------------------------------------------------------------------------------------------------- geglu


def geglu(
    gate: Shaped[ArrayLike, "..."], x: Shaped[ArrayLike, "..."], approximate: bool = True
) -> Shaped[Array, "..."]:
    """gelu(gate) x, elementwise; its partial derivatives are x gelu'(gate) and gelu(gate).

    Args:
        gate: any shape that broadcasts with x's, and any dtype; a projection of the features, such as x W.
        x: any dtype; another projection, such as x V. If both promote to a complex dtype, the plain expression is
            computed.
        approximate: which gelu, as in `gelu`.

    Returns:
        An array of the broadcast shape, in the dtype that both promote to (JAX's default float for integers). NaN and
        infinities follow arithmetic. The cotangents keep their relative accuracy where the gate saturates.

    Raises:
        TypeError: an argument is not an array of numbers.
        ValueError: the shapes do not broadcast.

    Example:
        >>> geglu(0.0, 3.0).item(), jax.grad(geglu)(0.0, 3.0).item()
        (0.0, 1.5)

    Source:
        Shazeer, GLU variants improve transformer, 2020. It is `jax.nn.gelu(gate) * x`.
    """
    approximate = bool(approximate)
    return _by_gate(
        lambda gate, x: _geglu(gate, x, approximate),
        lambda gate, x: jax.nn.gelu(gate, approximate) * x,
        gate,
        x,
    )


@partial(custom_vjp, nondiff_argnames=("approximate",))
def _geglu(gate, x, approximate):
    return fwd_geglu(gate, x, approximate)[0]


def fwd_geglu(gate, x, approximate):
    value, _ = _GELUS[approximate]
    return (value(upcast(gate)) * upcast(x)).astype(jnp.result_type(gate, x)), (gate, x)


_GELUS = {True: (value_gelu_by_tanh, slope_gelu_by_tanh), False: (value_gelu_by_erf, slope_gelu_by_erf)}


# y = f(a) b with f = gelu, as swiglu:
#   g^T J_a = g b * f'(a),   g^T J_b = g * f(a),   each summed over the axes along which its argument was broadcast
def bwd_geglu(approximate, res, g):
    gate, x = res
    value, slope = _GELUS[approximate]
    g, a = upcast(g), upcast(gate)
    return like_primal(g * upcast(x) * slope(a), gate), like_primal(g * value(a), x)


_geglu.defvjp(fwd_geglu, bwd_geglu)


def reference_geglu(gate, x, approximate=True):
    return reference_gelu(gate, approximate) * x


def jacobian_geglu(gate, x):
    return Diagonal(x * jacobian_gelu(gate)[0].diagonal), Diagonal(reference_gelu(gate))


def _by_gate(
    rule: Callable[..., jax.Array], incumbent: Callable[..., jax.Array], gate: ArrayLike, x: ArrayLike
) -> jax.Array:
    gate, x = as_inexact("gate", gate), as_array("x", x)
    broadcast_shapes(gate=gate, x=x)
    return by_rule(rule, incumbent, gate=gate, x=x)


# ------------------------------------------------------------------------------------------------------------- records

_PAIR = Case(("b n", "b n"), {"b": 2, "n": 7})
_BROADCAST = Case(("n", "b 1"), {"b": 2, "n": 7})
_LARGE = Case(("b n", "b n"), {"b": 4096, "n": 1024})
_SATURATED = Edge("saturated", ([0.0, -0.0, 50.0, -50.0, 1e4, -1e4], [1.0, 2.0, -1.0, 3.0, 2.0, 1.0]))


def _tails(slope, exponent):
    """Return the tails of f(gate) x at x = 1: the cotangents are f'(gate) and f(gate) = gate s(v)."""
    return lambda t: Tail((t, np.ones_like(t)), np.ones_like(t), (slope(t), t * exact_logistic(exponent(t))))


RULES = (
    Rule(
        fn=glu,
        reference=reference_glu,
        baselines={"jax.nn.glu": jax.nn.glu},
        cases=(
            Case(("b 6",), {"b": 2}),
            Case(("4 n c",), {"n": 3, "c": 5}, {"axis": 0}),
            Case(("2",), {}),
        ),
        edges=(
            Edge("saturated", ([[2.0, 3.0, 50.0, -50.0], [1.0, -1.0, 0.0, -1e4]],)),
            Edge("empty halves", (np.zeros((2, 0)),)),
        ),
        bench=(Case(("b 2048",), {"b": 4096}),),
        residual_bytes=lambda b: 4 * b * 6,
        reason="keeps x alone",
        gains=(Gain("kept bytes", 0.67),),
        source="Dauphin et al., 2017",
        whole_array=True,
    ),
    Rule(
        fn=swiglu,
        reference=reference_swiglu,
        baselines={"jax.nn.silu(gate) * x": lambda gate, x: jax.nn.silu(gate) * x},
        cases=(_PAIR, _BROADCAST, Case(("", ""), {})),
        edges=(_SATURATED,),
        bench=(_LARGE,),
        residual_bytes=lambda b, n: 8 * b * n,
        jacobian=jacobian_swiglu,
        tails=_tails(exact_slope_silu, lambda t: t),
        reason="keeps both arguments alone; accurate at a gate far below 0",
        gains=(Gain("kept bytes", 0.4), Gain("error", 0.1, dtype="bfloat16")),
        source="Shazeer, 2020",
    ),
    Rule(
        fn=geglu,
        reference=reference_geglu,
        baselines={
            "jax.nn.gelu(gate) * x": lambda gate, x, approximate=True: jax.nn.gelu(gate, approximate=approximate) * x
        },
        cases=(_PAIR, replace(_PAIR, kwargs={"approximate": False}), _BROADCAST, Case(("", ""), {})),
        edges=(_SATURATED, _SATURATED._replace(name="saturated, exact", kwargs={"approximate": False})),
        bench=(_LARGE,),
        residual_bytes=lambda b, n: 8 * b * n,
        jacobian=jacobian_geglu,
        tails=_tails(exact_slope_gelu, exact_exponent_gelu),
        reason="keeps both arguments alone; accurate at a gate far below 0, where autodiff loses all digits",
        gains=(Gain("kept bytes", 0.34), Gain("error", 1e-4)),
        source="Shazeer, 2020",
    ),
)
