"""Smooth activations that keep their input alone: gelu, silu, softplus, log_sigmoid and mish.

A slope is written for its digits in the tails; its derivative is the curvature below it, not JAX's of that formula.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Shaped

from vjplib.compat import apart_on_cpu, custom_vjp
from vjplib.jacobians import Diagonal
from vjplib.precision import upcast
from vjplib.rule import Case, Edge, Gain, Rule, Tail
from vjplib.rules._arguments import as_inexact, by_rule
from vjplib.rules._cotangents import like_primal

FAR = 1000.0  # every slope has reached its limit long before, to the last digit of float64; so no 0 meets an infinity


@cache
def whole(value: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """Return a function of arrays in the dtype that they promote to, computed in float32 at least.

    On CPU it is computed apart from what its result is used for. XLA fuses exponentials into a sum or a product of
    matrices that follows, and computes them there number by number: gelu and a sum took four times as long.
    """
    return apart_on_cpu(lambda *xs: value(*map(upcast, xs)).astype(jnp.result_type(*xs)))


def logistic_pair(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return s(x) and s(-x), where s(x) = 1 / (1 + e^-x), both to full relative accuracy.

    With k = e^-|x| they are 1 / (1 + k) and k / (1 + k), in one order or the other. One division, for XLA:CPU stores
    the array that two divisions share.
    """
    k = jnp.exp(-jnp.abs(x))
    inverse = 1 / (1 + k)
    return jnp.where(x >= 0, 1, k) * inverse, jnp.where(x >= 0, k, 1) * inverse


# ---------------------------------------------------------------------------------------------------------------- silu


def silu(x: Shaped[ArrayLike, "..."]) -> Shaped[Array, "..."]:
    """x / (1 + exp(-x)), elementwise; its derivative is s(x) (1 + x s(-x)) with s the sigmoid.

    Args:
        x: any shape and dtype; complex numbers go to `jax.nn.silu`.

    Returns:
        An array of x's shape and dtype (JAX's default float for integers), at least -0.2785. -inf and NaN give NaN; the
        cotangents at the infinities are 0 and g. The cotangent keeps its relative accuracy far below 0, and so does the
        second derivative on both sides.

    Raises:
        TypeError: x is not an array of numbers.

    Example:
        >>> float(silu(0.0)), float(jax.grad(silu)(0.0))
        (0.0, 0.5)

    Source:
        Hendrycks and Gimpel, Gaussian error linear units, 2016. The signature is that of `jax.nn.silu`, also named
        swish.
    """
    return by_rule(_silu, jax.nn.silu, x=as_inexact("x", x))


swish = silu


@jax.custom_jvp
def value_silu(x):
    return x * jax.lax.logistic(x)


@custom_vjp
def _silu(x):
    return fwd_silu(x)[0]


def fwd_silu(x):
    return whole(value_silu)(x), (x,)


# With s(x) = 1 / (1 + e^-x), whose derivative is p = s(x) s(-x): d(x s)/dx = s(x) + x p.
#   g^T J = g * s(x) (1 + x s(-x))
# s(-x) has all its digits where 1 - s(x) has none.
def bwd_silu(res, g):
    (x,) = res
    return (like_primal(upcast(g) * slope_silu(upcast(x)), x),)


_silu.defvjp(fwd_silu, bwd_silu)


@jax.custom_jvp
def slope_silu(x):
    x = jnp.clip(x, -FAR, FAR)
    s, s_of_minus = logistic_pair(x)
    return s * (1 + x * s_of_minus)


# dp/dx = p (s(-x) - s(x)) = -p tanh(x / 2), so d(s + x p)/dx = 2 p + x dp/dx = p (2 - x tanh(x / 2)).
def curvature_silu(x):
    x = jnp.clip(x, -FAR, FAR)
    s, s_of_minus = logistic_pair(x)
    return s * s_of_minus * (2 - x * jnp.tanh(x / 2))


value_silu.defjvps(lambda t, _, x: t * slope_silu(x))
slope_silu.defjvps(lambda t, _, x: t * curvature_silu(x))


def reference_silu(x):
    return x * _plain_logistic(x)


def jacobian_silu(x):
    return (Diagonal(_plain_logistic(x) * (1 + x * _plain_logistic(-x))),)


def _plain_logistic(x):
    e = jnp.exp(-jnp.abs(x))
    return jnp.where(x >= 0, 1 / (1 + e), e / (1 + e))


# ---------------------------------------------------------------------------------------------------------------- gelu


def gelu(x: Shaped[ArrayLike, "..."], approximate: bool = True) -> Shaped[Array, "..."]:
    """x P(X <= x) for a standard normal X, elementwise; approximately x s(v) with v = sqrt(8 / pi) (x + 0.044715 x^3).

    Args:
        x: any shape and dtype; complex numbers go to `jax.nn.gelu`.
        approximate: True for the second formula, which is x (1 + tanh(v / 2)) / 2; False for the first,
            x erfc(-x / sqrt(2)) / 2.

    Returns:
        An array of x's shape and dtype (JAX's default float for integers), at least -0.1701. -inf and NaN give NaN; the
        cotangents at the infinities are 0 and g. The cotangent keeps its relative accuracy far below 0.

    Raises:
        TypeError: x is not an array of numbers.

    Example:
        >>> float(gelu(0.0)), float(jax.grad(gelu)(0.0))
        (0.0, 0.5)

    Source:
        Hendrycks and Gimpel, Gaussian error linear units, 2016. The signature is that of `jax.nn.gelu`.
    """
    rule, incumbent = (
        _gelu_by_tanh if approximate else _gelu_by_erf,
        partial(jax.nn.gelu, approximate=bool(approximate)),
    )
    return by_rule(rule, incumbent, x=as_inexact("x", x))


_LINEAR, _CUBIC = math.sqrt(8 / math.pi), 0.044715 * math.sqrt(8 / math.pi)  # v = _LINEAR x + _CUBIC x^3


@jax.custom_jvp
def value_gelu_by_tanh(x):
    return x * jax.lax.logistic(x * (_LINEAR + _CUBIC * (x * x)))


@custom_vjp
def _gelu_by_tanh(x):
    return fwd_gelu_by_tanh(x)[0]


def fwd_gelu_by_tanh(x):
    return whole(value_gelu_by_tanh)(x), (x,)


# As (1 + tanh(v / 2)) / 2 = s(v), y = x s(v): silu with v in place of x. With p = s(v) s(-v),
#   dy/dx = s(v) + x p dv/dx,   dv/dx = sqrt(8 / pi) (1 + 3 * 0.044715 x^2)
#   g^T J = g * s(v) (1 + x dv/dx s(-v))
# s(v) and s(-v) have all their digits where 1 + tanh(v / 2) and 1 - tanh(v / 2)^2 have none.
def bwd_gelu_by_tanh(res, g):
    (x,) = res
    return (like_primal(upcast(g) * slope_gelu_by_tanh(upcast(x)), x),)


_gelu_by_tanh.defvjp(fwd_gelu_by_tanh, bwd_gelu_by_tanh)


@jax.custom_jvp
def slope_gelu_by_tanh(x):
    x = jnp.clip(x, -FAR, FAR)
    s, s_of_minus = logistic_pair(x * (_LINEAR + _CUBIC * (x * x)))
    return s * (1 + x * (_LINEAR + 3 * _CUBIC * (x * x)) * s_of_minus)


# With dp/dv = -p tanh(v / 2): d(s + x p v')/dx = 2 p v' + x p (v'' - tanh(v / 2) v'^2).
def curvature_gelu_by_tanh(x):
    x = jnp.clip(x, -FAR, FAR)
    v, dv = x * (_LINEAR + _CUBIC * (x * x)), _LINEAR + 3 * _CUBIC * (x * x)
    s, s_of_minus = logistic_pair(v)
    return s * s_of_minus * (2 * dv + x * (6 * _CUBIC * x - jnp.tanh(v / 2) * (dv * dv)))


value_gelu_by_tanh.defjvps(lambda t, _, x: t * slope_gelu_by_tanh(x))
slope_gelu_by_tanh.defjvps(lambda t, _, x: t * curvature_gelu_by_tanh(x))


@jax.custom_jvp
def value_gelu_by_erf(x):
    return x * jax.lax.erfc(-math.sqrt(0.5) * x) / 2


@custom_vjp
def _gelu_by_erf(x):
    return fwd_gelu_by_erf(x)[0]


def fwd_gelu_by_erf(x):
    return whole(value_gelu_by_erf)(x), (x,)


# y = x P(x) with P(x) = erfc(-x / sqrt(2)) / 2 and dP/dx = f(x) = exp(-x^2 / 2) / sqrt(2 pi).
#   g^T J = g * (P(x) + x f(x))
def bwd_gelu_by_erf(res, g):
    (x,) = res
    return (like_primal(upcast(g) * slope_gelu_by_erf(upcast(x)), x),)


_gelu_by_erf.defvjp(fwd_gelu_by_erf, bwd_gelu_by_erf)


@jax.custom_jvp
def slope_gelu_by_erf(x):
    x = jnp.clip(x, -FAR, FAR)
    return jax.lax.erfc(-math.sqrt(0.5) * x) / 2 + x * _normal_density(x)


# df/dx = -x f, so d(P + x f)/dx = 2 f - x^2 f.
def curvature_gelu_by_erf(x):
    x = jnp.clip(x, -FAR, FAR)
    return _normal_density(x) * (2 - x * x)


def _normal_density(x):
    return jnp.exp(-x * x / 2) / math.sqrt(2 * math.pi)


value_gelu_by_erf.defjvps(lambda t, _, x: t * slope_gelu_by_erf(x))
slope_gelu_by_erf.defjvps(lambda t, _, x: t * curvature_gelu_by_erf(x))


def reference_gelu(x, approximate=True):
    if approximate:
        return x * _plain_logistic(_LINEAR * x + _CUBIC * x**3)
    return x * jax.lax.erfc(-math.sqrt(0.5) * x) / 2


def jacobian_gelu(x):
    v, dv = _LINEAR * x + _CUBIC * x**3, _LINEAR + 3 * _CUBIC * x**2
    return (Diagonal(_plain_logistic(v) * (1 + x * dv * _plain_logistic(-v))),)


# ------------------------------------------------------------------------------------------------------------ softplus


def softplus(x: Shaped[ArrayLike, "..."]) -> Shaped[Array, "..."]:
    """log(1 + exp(x)), elementwise; its derivative is the sigmoid.

    Args:
        x: any shape and dtype; complex numbers go to `jax.nn.softplus`.

    Returns:
        An array of x's shape and dtype (JAX's default float for integers), in [0, inf]: 0 and inf at the infinities,
        with cotangents 0 and g. NaN gives NaN. Output, cotangent and second derivative keep their relative accuracy.

    Raises:
        TypeError: x is not an array of numbers.

    Example:
        >>> round(float(softplus(0.0)), 6), float(jax.grad(softplus)(0.0))
        (0.693147, 0.5)

    Source:
        Dugas et al., Incorporating second-order functional knowledge for better option pricing, 2000. The signature is
        that of `jax.nn.softplus`.
    """
    return by_rule(_softplus, jax.nn.softplus, x=as_inexact("x", x))


def value_softplus(x):
    return jnp.maximum(x, 0) + jnp.log1p(jnp.exp(-jnp.abs(x)))


@custom_vjp
def _softplus(x):
    return fwd_softplus(x)[0]


def fwd_softplus(x):
    return whole(value_softplus)(x), (x,)


# d log(1 + e^x) / dx = e^x / (1 + e^x) = s(x), whose derivative is s(x) s(-x).
#   g^T J = g * s(x)
def bwd_softplus(res, g):
    (x,) = res
    return (like_primal(upcast(g) * slope_softplus(upcast(x)), x),)


_softplus.defvjp(fwd_softplus, bwd_softplus)


@jax.custom_jvp
def slope_softplus(x):
    return logistic_pair(x)[0]


@jax.custom_jvp
def curvature_softplus(x):
    s, s_of_minus = logistic_pair(x)
    return s * s_of_minus


slope_softplus.defjvps(lambda t, _, x: t * curvature_softplus(x))
curvature_softplus.defjvps(lambda t, p, x: -t * p * jnp.tanh(x / 2))


def reference_softplus(x):
    return jnp.maximum(x, 0) + jnp.log1p(jnp.exp(-jnp.abs(x)))


def jacobian_softplus(x):
    return (Diagonal(_plain_logistic(x)),)


# --------------------------------------------------------------------------------------------------------- log_sigmoid


def log_sigmoid(x: Shaped[ArrayLike, "..."]) -> Shaped[Array, "..."]:
    """-log(1 + exp(-x)), elementwise, which is -softplus(-x); its derivative is 1 / (1 + exp(x)).

    Args:
        x: any shape and dtype; complex numbers go to `jax.nn.log_sigmoid`.

    Returns:
        An array of x's shape and dtype (JAX's default float for integers), in [-inf, 0]: -inf and 0 at the infinities,
        with cotangents g and 0. NaN gives NaN. Output, cotangent and second derivative keep their relative accuracy.

    Raises:
        TypeError: x is not an array of numbers.

    Example:
        >>> round(float(log_sigmoid(0.0)), 6), float(jax.grad(log_sigmoid)(0.0))
        (-0.693147, 0.5)

    Source:
        Any text on logistic regression. The signature is that of `jax.nn.log_sigmoid`.
    """
    return by_rule(_log_sigmoid, jax.nn.log_sigmoid, x=as_inexact("x", x))


def value_log_sigmoid(x):
    return -value_softplus(-x)


@custom_vjp
def _log_sigmoid(x):
    return fwd_log_sigmoid(x)[0]


def fwd_log_sigmoid(x):
    return whole(value_log_sigmoid)(x), (x,)


# d(-log(1 + e^-x))/dx = e^-x / (1 + e^-x) = s(-x), whose derivative is -s(x) s(-x).
#   g^T J = g * s(-x)
def bwd_log_sigmoid(res, g):
    (x,) = res
    return (like_primal(upcast(g) * slope_log_sigmoid(upcast(x)), x),)


_log_sigmoid.defvjp(fwd_log_sigmoid, bwd_log_sigmoid)


@jax.custom_jvp
def slope_log_sigmoid(x):
    return logistic_pair(x)[1]


def curvature_log_sigmoid(x):
    return -curvature_softplus(x)


slope_log_sigmoid.defjvps(lambda t, _, x: t * curvature_log_sigmoid(x))


def reference_log_sigmoid(x):
    return jnp.minimum(x, 0) - jnp.log1p(jnp.exp(-jnp.abs(x)))


def jacobian_log_sigmoid(x):
    return (Diagonal(_plain_logistic(-x)),)


# ---------------------------------------------------------------------------------------------------------------- mish


def mish(x: Shaped[ArrayLike, "..."]) -> Shaped[Array, "..."]:
    """x tanh(softplus(x)), elementwise.

    Args:
        x: any shape and dtype; complex numbers go to `jax.nn.mish`.

    Returns:
        An array of x's shape and dtype (JAX's default float for integers), at least -0.3089. -inf and NaN give NaN; the
        cotangents at the infinities are 0 and g. The cotangent keeps its relative accuracy far below 0, and so does the
        second derivative on both sides.

    Raises:
        TypeError: x is not an array of numbers.

    Example:
        >>> float(mish(0.0)), round(float(jax.grad(mish)(0.0)), 6)
        (0.0, 0.6)

    Source:
        Misra, Mish: a self regularized non-monotonic activation function, 2019. The signature is that of
        `jax.nn.mish`.
    """
    return by_rule(_mish, jax.nn.mish, x=as_inexact("x", x))


def value_mish(x):
    return x * _mish_terms(x)[0]


@custom_vjp
def _mish(x):
    return fwd_mish(x)[0]


def fwd_mish(x):
    return whole(value_mish)(x), (x,)


# With e = e^x, tanh log(1 + e) = ((1 + e)^2 - 1) / ((1 + e)^2 + 1) = e (e + 2) / D with D = e^2 + 2 e + 2. So
#   y = x t with t = e (e + 2) / D,   q = dt/dx = 4 e (1 + e) / D^2
# and for x >= 0, where e may overflow, all is divided by powers of it: with n = e^-x and N = 1 + 2 n + 2 n^2,
#   t = (1 + 2 n) / N,   q = 4 n^2 (1 + n) / N^2
#   g^T J = g * (t + x q)
def bwd_mish(res, g):
    (x,) = res
    return (like_primal(upcast(g) * slope_mish(upcast(x)), x),)


_mish.defvjp(fwd_mish, bwd_mish)


@jax.custom_jvp
def slope_mish(x):
    x = jnp.clip(x, -FAR, FAR)
    t, k, r, _ = _mish_terms(x)
    return t + k * (x * r)


# dq/dx = q w with w = (1 + 2 e) / (1 + e) - 2 D'/D and D' = 2 e (1 + e), so d(t + x q)/dx = q (2 + x w). Over n,
#   w = (2 + n) / (1 + n) - 4 (1 + n) / N
def curvature_mish(x):
    x = jnp.clip(x, -FAR, FAR)
    _, k, r, w = _mish_terms(x)
    return k * (r * (2 + x * w))


def _mish_terms(x):
    """Return t, k, q / k and w; k is e where x < 0, else n. k times what is large beside it does not underflow."""
    k = jnp.exp(-jnp.abs(x))
    D, N = k * k + 2 * k + 2, 1 + 2 * k + 2 * k * k
    t = jnp.where(x < 0, k * (k + 2) / D, (1 + 2 * k) / N)
    r = jnp.where(x < 0, 4 * (1 + k) / (D * D), 4 * k * (1 + k) / (N * N))
    w = jnp.where(x < 0, (1 + 2 * k) / (1 + k) - 4 * k * (1 + k) / D, (2 + k) / (1 + k) - 4 * (1 + k) / N)
    return t, k, r, w


slope_mish.defjvps(lambda t, _, x: t * curvature_mish(x))


def reference_mish(x):
    return x * jnp.tanh(reference_softplus(x))


def jacobian_mish(x):
    return (Diagonal(jnp.tanh(reference_softplus(x)) + x * _plain_logistic(x) / jnp.cosh(reference_softplus(x)) ** 2),)


# ------------------------------------------------------------------------------------------------------------- records

ROWS = Case(("b n",), {"b": 2, "n": 7})
SCALAR = Case(("",), {})
LARGE = Case(("b n",), {"b": 4096, "n": 1024})
ANY = ([0.0, -0.0, 1.0, -1.0, 50.0, -50.0, 1e4, -1e4],)
INFINITIES = Edge("infinities", ([float("inf"), float("-inf"), 1.0],))


def tails_of(slope: Callable[[np.ndarray], np.ndarray]) -> Callable[[np.ndarray], Tail]:
    """Return the tails of an elementwise function, given its slope in NumPy, where no digit cancels."""
    return lambda x: Tail((x,), np.ones_like(x), (slope(x),))


def exact_logistic(x):
    k = np.exp(-np.abs(x))
    return np.where(x >= 0, 1, k) / (1 + k)


def exact_slope_silu(x):
    return exact_logistic(x) * (1 + x * exact_logistic(-x))


def exact_exponent_gelu(x):
    return _LINEAR * x + _CUBIC * x**3


def exact_slope_gelu(x):
    v = exact_exponent_gelu(x)
    return exact_logistic(v) * (1 + x * (_LINEAR + 3 * _CUBIC * x**2) * exact_logistic(-v))


def exact_slope_mish(x):
    e = np.exp(x)
    D = e * e + 2 * e + 2
    return e * (e + 2) / D + x * 4 * e * (1 + e) / (D * D)


def _rule(fn, reference, incumbent, jacobian, slope, reason, gains, source, **changed):
    return Rule(
        **{
            "fn": fn,
            "reference": reference,
            "baselines": {f"jax.nn.{fn.__name__}": incumbent},
            "cases": (ROWS, SCALAR),
            "edges": (Edge("saturated", ANY), INFINITIES),
            "bench": (LARGE,),
            "residual_bytes": lambda b, n: 4 * b * n,
            "jacobian": jacobian,
            "reason": reason,
            "gains": gains,
            "source": source,
            "tails": tails_of(slope),
            **changed,
        }
    )


_UNITS = "Hendrycks and Gimpel, 2016"

RULES = (
    _rule(
        silu,
        reference_silu,
        jax.nn.silu,
        jacobian_silu,
        exact_slope_silu,
        "keeps x alone; the gradient is accurate far below 0",
        (Gain("kept bytes", 0.34), Gain("error", 0.1, dtype="bfloat16")),
        _UNITS,
    ),
    _rule(
        gelu,
        reference_gelu,
        jax.nn.gelu,
        jacobian_gelu,
        exact_slope_gelu,
        "keeps x alone; the gradient is accurate far below 0, where autodiff loses all digits",
        (
            Gain("kept bytes", 0.25),
            Gain("kept bytes", 0.34, "exact b=4096 n=1024"),
            Gain("error", 1e-4),
        ),
        _UNITS,
        cases=(ROWS, replace(ROWS, kwargs={"approximate": False}), SCALAR),
        edges=(
            Edge("saturated", ANY),
            Edge("saturated, exact", ANY, {"approximate": False}),
            INFINITIES,
        ),
        bench=(LARGE, replace(LARGE, kwargs={"approximate": False}, label="exact b=4096 n=1024")),
    ),
    _rule(
        softplus,
        reference_softplus,
        jax.nn.softplus,
        jacobian_softplus,
        exact_logistic,
        "keeps x alone",
        (Gain("kept bytes", 0.5),),
        "Dugas et al., 2000",
    ),
    _rule(
        log_sigmoid,
        reference_log_sigmoid,
        jax.nn.log_sigmoid,
        jacobian_log_sigmoid,
        lambda x: exact_logistic(-x),
        "keeps x alone",
        (Gain("kept bytes", 0.5),),
        "Any text on logistic regression",
    ),
    _rule(
        mish,
        reference_mish,
        jax.nn.mish,
        jacobian_mish,
        exact_slope_mish,
        "keeps x alone; the gradient is accurate far below 0",
        (Gain("kept bytes", 0.2), Gain("error", 0.1, dtype="bfloat16")),
        "Misra, 2019",
    ),
)
