"""Elementwise functions: their Jacobians are diagonal, and their backward rules are one product.

relu, tanh and sigmoid are the activations of the lecture's Example 2.1; quadratic is the function of its Example 2.2.
"""

import math
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
from vjplib.rules._arguments import as_array, as_inexact, broadcast_shapes, by_rule
from vjplib.rules._cotangents import aval_token, like_primal

# ---------------------------------------------------------------------------------------------------------------- relu


def relu(x: Shaped[ArrayLike, "..."], derivative_at_zero: int = 1) -> Shaped[Array, "..."]:
    """max(x, 0), elementwise; its derivative is 1 where x > 0, 0 where x < 0, and a choice at 0.

    Args:
        x: any shape and dtype; integer and complex ones go to `jax.nn.relu`.
        derivative_at_zero: 1, the lecture's convention and the default, or 0, that of `jax.nn.relu`. Any number in
            [0, 1] is a subgradient at 0. It applies to 0.0 and -0.0 alike.

    Returns:
        An array of x's shape and dtype, in [0, inf]. NaN gives NaN, with cotangent 0.

    Raises:
        TypeError: x is not an array of numbers.
        ValueError: derivative_at_zero is neither 0 nor 1.

    Example:
        >>> jax.grad(relu)(0.0), jax.grad(partial(relu, derivative_at_zero=0))(0.0)
        (Array(1., dtype=float32, weak_type=True), Array(0., dtype=float32, weak_type=True))

    Source:
        Example 2.1 of the lecture, item 1.
    """
    if not isinstance(derivative_at_zero, (int, float, np.number)) or derivative_at_zero not in (0, 1):
        raise ValueError(f"derivative_at_zero must be 0 or 1, got {derivative_at_zero!r}")
    return by_rule(lambda x: _relu(x, int(derivative_at_zero)), jax.nn.relu, x=x)


@partial(custom_vjp, nondiff_argnames=("derivative_at_zero",))
def _relu(x, derivative_at_zero):
    return fwd_relu(x, derivative_at_zero)[0]


def fwd_relu(x, derivative_at_zero):
    mask = x >= 0 if derivative_at_zero else x > 0
    return jnp.maximum(x, 0), (mask, aval_token(x))


# y_i = max(x_i, 0), so dy_i/dx_j = delta_ij [x_i >= 0], or [x_i > 0] by the other convention.
#   g^T J = g * [x >= 0]
# One byte an element tells on which side of the kink x was; x itself need not be kept.
def bwd_relu(derivative_at_zero, res, g):
    mask, x_token = res
    return (like_primal(jnp.where(mask, g, 0), x_token),)


_relu.defvjp(fwd_relu, bwd_relu)


def reference_relu(x, derivative_at_zero=1):
    return jnp.where(x >= 0 if derivative_at_zero else x > 0, x, jnp.where(jnp.isnan(x), x, 0))


def jacobian_relu(x, derivative_at_zero=1):
    return (Diagonal((x >= 0 if derivative_at_zero else x > 0).astype(x.dtype)),)


# ---------------------------------------------------------------------------------------------------------------- tanh


def tanh(x: Shaped[ArrayLike, "..."]) -> Shaped[Array, "..."]:
    """tanh(x), elementwise; its derivative is 1 - tanh(x)^2.

    Args:
        x: any shape and dtype; complex numbers go to `jnp.tanh`.

    Returns:
        An array of x's shape and dtype (JAX's default float for integers), in [-1, 1]; -1 and 1 at the infinities, with
        cotangent 0. NaN gives NaN. The cotangent keeps its relative accuracy where y rounds to -1 or 1, and so does the
        second derivative near 0.

    Raises:
        TypeError: x is not an array of numbers.

    Example:
        >>> float(jax.grad(tanh)(0.0))
        1.0

    Source:
        Example 2.1 of the lecture, item 2.
    """
    return by_rule(_tanh, jnp.tanh, x=x)


@custom_vjp
def _tanh(x):
    return fwd_tanh(x)[0]


def fwd_tanh(x):
    return jnp.tanh(upcast(x)).astype(x.dtype), (x,)


# d tanh / dx = 1 - tanh^2 = 1 / cosh^2. From y alone 1 - y^2 loses its digits where y nears 1, and is 0 from where y
# rounds to 1 on. So x is kept: with k = e^-2|x|, 1 - |y| = 2 k / (1 + k) and 1 + |y| = 2 / (1 + k), whence
#   g^T J = g * 4 k / (1 + k)^2
# Nothing is subtracted. k underflows where 4 k does not yet: what is computed is e^2 k = e^(2 - 2|x|).
def bwd_tanh(res, g):
    (x,) = res
    return (like_primal(_times_tanh_slope(upcast(g), upcast(x)), x),)


@jax.custom_jvp
def _times_tanh_slope(g, x):
    k = jnp.exp(2 - 2 * jnp.abs(x))
    return g * (4 * math.exp(-2) * k / jnp.square(1 + math.exp(-2) * k))


# d/dx 1/cosh^2 = -2 tanh / cosh^2: JAX's derivative of the line above adds terms that cancel near 0.
@_times_tanh_slope.defjvp
def _times_tanh_curvature(primals, tangents):
    (g, x), (tg, tx) = primals, tangents
    dx = _times_tanh_slope(g, x)
    return dx, _times_tanh_slope(tg, x) - 2 * jnp.tanh(x) * dx * tx


_tanh.defvjp(fwd_tanh, bwd_tanh)


def reference_tanh(x):
    e = jnp.exp(-2 * jnp.abs(x))
    away_from_0 = (1 - e) / (1 + e)
    return jnp.where(jnp.abs(x) < 0.5, jnp.tanh(x), jnp.where(x >= 0, away_from_0, -away_from_0))


def jacobian_tanh(x):
    return (Diagonal(1 - jnp.tanh(x) ** 2),)


# ------------------------------------------------------------------------------------------------------------- sigmoid


def sigmoid(x: Shaped[ArrayLike, "..."]) -> Shaped[Array, "..."]:
    """1 / (1 + exp(-x)), elementwise; its derivative is sigmoid(x) (1 - sigmoid(x)).

    Args:
        x: any shape and dtype; complex numbers go to `jax.nn.sigmoid`.

    Returns:
        An array of x's shape and dtype (JAX's default float for integers), in [0, 1]; 0 and 1 at the infinities, with
        cotangent 0. NaN gives NaN. The cotangent keeps its relative accuracy where y rounds to 1, and so does the
        second derivative near 0.

    Raises:
        TypeError: x is not an array of numbers.

    Example:
        >>> float(sigmoid(0.0)), float(jax.grad(sigmoid)(0.0))
        (0.5, 0.25)

    Source:
        Example 2.1 of the lecture, item 3.
    """
    return by_rule(_sigmoid, jax.nn.sigmoid, x=as_inexact("x", x))


@custom_vjp
def _sigmoid(x):
    return fwd_sigmoid(x)[0]


def fwd_sigmoid(x):
    return jax.lax.logistic(upcast(x)).astype(x.dtype), (x,)


# With s(x) = 1 / (1 + e^-x): ds/dx = e^-x / (1 + e^-x)^2 = s (1 - s). From y alone 1 - y loses its digits where y nears
# 1, and is 0 from where y rounds to 1 on. So x is kept. The slope is the same at x and -x: with k = e^-|x|,
#   g^T J = g * k / (1 + k)^2
def bwd_sigmoid(res, g):
    (x,) = res
    return (like_primal(_times_sigmoid_slope(upcast(g), upcast(x)), x),)


@jax.custom_jvp
def _times_sigmoid_slope(g, x):
    k = jnp.exp(-jnp.abs(x))
    return g * (k / jnp.square(1 + k))


# The slope is s(x) s(-x). d/dx s(x) s(-x) = s(x) s(-x) (s(-x) - s(x)), and s(x) - s(-x) = tanh(x / 2), which cancels
# nothing near 0.
@_times_sigmoid_slope.defjvp
def _times_sigmoid_curvature(primals, tangents):
    (g, x), (tg, tx) = primals, tangents
    dx = _times_sigmoid_slope(g, x)
    return dx, _times_sigmoid_slope(tg, x) - jnp.tanh(x / 2) * dx * tx


_sigmoid.defvjp(fwd_sigmoid, bwd_sigmoid)


def reference_sigmoid(x):
    e = jnp.exp(-jnp.abs(x))
    return jnp.where(x >= 0, 1 / (1 + e), e / (1 + e))


def jacobian_sigmoid(x):
    y = reference_sigmoid(x)
    return (Diagonal(y * (1 - y)),)


# ----------------------------------------------------------------------------------------------------------- quadratic


def quadratic(x: Shaped[ArrayLike, "..."], y: Shaped[ArrayLike, "..."]) -> Shaped[Array, "..."]:
    """4 x + 7 y^2, elementwise; its partial derivatives are 4 and 14 y.

    Args:
        x: any shape that broadcasts with y's, and any dtype.
        y: any dtype. If both promote to an integer or complex dtype, the plain expression is computed.

    Returns:
        An array of the broadcast shape, in the dtype that both promote to. NaN and infinities follow arithmetic.

    Raises:
        TypeError: an argument is not an array of numbers.
        ValueError: the shapes do not broadcast.

    Example:
        >>> [float(d) for d in jax.grad(quadratic, argnums=(0, 1))(2.0, 3.0)]
        [4.0, 42.0]

    Source:
        Example 2.2 of the lecture, Eq. 6 and 7.
    """
    x, y = as_array("x", x), as_array("y", y)
    broadcast_shapes(x=x, y=y)
    return by_rule(_quadratic, reference_quadratic, x=x, y=y)


@custom_vjp
def _quadratic(x, y):
    return fwd_quadratic(x, y)[0]


def fwd_quadratic(x, y):
    value = 4 * upcast(x) + 7 * jnp.square(upcast(y))
    return value.astype(jnp.result_type(x, y)), (aval_token(x), y)


# df/dx = 4 wherever x and y are, and df/dy = 14 y: the two arguments do not meet, so of x only the form is kept.
#   g^T J_x = 4 g,   g^T J_y = 14 y * g
def bwd_quadratic(res, g):
    x_token, y = res
    g = upcast(g)
    return like_primal(4 * g, x_token), like_primal(14 * upcast(y) * g, y)


_quadratic.defvjp(fwd_quadratic, bwd_quadratic)


def reference_quadratic(x, y):
    return 4 * x + 7 * y**2


def jacobian_quadratic(x, y):
    return Diagonal(jnp.full_like(x, 4)), Diagonal(14 * y)


# ------------------------------------------------------------------------------------------------------------- records

_ROWS = Case(("b n",), {"b": 2, "n": 7})
_SCALAR = Case(("",), {})
_LARGE = Case(("b n",), {"b": 1024, "n": 1024})
_ANY = ([0.0, -0.0, 1.0, -1.0, 50.0, -50.0, 1e4, -1e4],)
_INFINITIES = Edge("infinities", ([float("inf"), float("-inf"), 1.0],))


def _tails_of_tanh(x):
    e = np.exp(-2 * np.abs(x))
    return Tail((x,), np.ones_like(x), (4 * e / (1 + e) ** 2,))


def _tails_of_sigmoid(x):
    e = np.exp(-np.abs(x))
    return Tail((x,), np.ones_like(x), (e / (1 + e) ** 2,))


_TANH = Rule(
    fn=tanh,
    reference=reference_tanh,
    baselines={"jnp.tanh": jnp.tanh},
    cases=(_ROWS, _SCALAR),
    edges=(Edge("saturated", _ANY), _INFINITIES),
    bench=(_LARGE,),
    residual_bytes=lambda b, n: 4 * b * n,
    jacobian=jacobian_tanh,
    reason="a layer of the lecture; autodiff's gradient is 0 from 8.3 on",
    gains=(Gain("error", 1e-5),),
    lecture=True,
    source="Example 2.1",
    tails=_tails_of_tanh,
)

RULES = (
    Rule(
        fn=relu,
        reference=reference_relu,
        baselines={"jax.nn.relu": lambda x, derivative_at_zero=1: jax.nn.relu(x)},
        cases=(_ROWS, Case(("n",), {"n": 5}, {"derivative_at_zero": 0}), _SCALAR),
        edges=(
            Edge("at the kink", _ANY),
            Edge("at the kink, derivative 0", _ANY, {"derivative_at_zero": 0}),
            _INFINITIES,
        ),
        bench=(_LARGE,),
        residual_bytes=lambda b, n: b * n,
        jacobian=jacobian_relu,
        reason="a layer of the lecture; keeps one byte per element",
        gains=(Gain("kept bytes", 0.2),),
        lecture=True,
        source="Example 2.1",
    ),
    _TANH,
    replace(
        _TANH,
        fn=sigmoid,
        reference=reference_sigmoid,
        baselines={"jax.nn.sigmoid": jax.nn.sigmoid},
        jacobian=jacobian_sigmoid,
        reason="a layer of the lecture; autodiff's gradient is 0 from 17 on",
        gains=(Gain("error", 1e-5),),
        tails=_tails_of_sigmoid,
    ),
    Rule(
        fn=quadratic,
        reference=reference_quadratic,
        baselines={"4 * x + 7 * y**2": reference_quadratic},
        cases=(Case(("b n", "b n"), {"b": 2, "n": 7}), Case(("n", "b 1"), {"b": 2, "n": 7}), Case(("", ""), {})),
        edges=(Edge("zero and infinity", ([0.0, 1.0, float("inf")], [float("inf"), 0.0, 0.0])),),
        bench=(Case(("b n", "b n"), {"b": 1024, "n": 1024}),),
        residual_bytes=lambda b, n: 4 * b * n,
        jacobian=jacobian_quadratic,
        reason="the lecture's first function of two variables; keeps only y",
        lecture=True,
        source="Example 2.2",
    ),
)
