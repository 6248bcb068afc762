"""Activations in pieces: elu, selu, celu and hard_silu keep their input alone, relu6 a byte per element.

leaky_relu is not among them: autodiff of `jax.nn.leaky_relu` keeps a byte per element, too, and loses no digit.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Shaped

from vjplib.compat import custom_vjp
from vjplib.jacobians import Diagonal
from vjplib.precision import upcast
from vjplib.rule import Case, Edge, Gain, Rule
from vjplib.rules._arguments import as_array, as_inexact, by_rule
from vjplib.rules._cotangents import aval_token, like_primal
from vjplib.rules.smooth_activations import ANY, INFINITIES, LARGE, ROWS, SCALAR, tails_of

# ----------------------------------------------------------------------------------------------------------------- elu


def elu(x: Shaped[ArrayLike, "..."], alpha: Shaped[ArrayLike, "..."] = 1.0) -> Shaped[Array, "..."]:
    """x where x > 0, else alpha (exp(x) - 1), elementwise; its derivative is 1 or alpha exp(x).

    Args:
        x: any shape and dtype; complex numbers go to `jax.nn.elu`.
        alpha: a number; arrays go to `jax.nn.elu`.

    Returns:
        An array of x's shape and dtype (JAX's default float for integers), in [-alpha, inf]; -alpha and inf at the
        infinities, with cotangents 0 and g. At 0 the derivative is alpha. NaN gives NaN.

    Raises:
        TypeError: x is not an array of numbers.

    Example:
        >>> jax.grad(elu)(2.0).item(), jax.grad(elu)(0.0, 0.5).item()
        (1.0, 0.5)

    Source:
        Clevert, Unterthiner and Hochreiter, Fast and accurate deep network learning by exponential linear units, 2015.
        The signature is that of `jax.nn.elu`.
    """
    return _with_number(_elu, jax.nn.elu, x, alpha)


def value_elu(x, alpha):
    return jnp.where(x > 0, x, alpha * jnp.expm1(jnp.minimum(x, 0)))


@partial(custom_vjp, nondiff_argnames=("alpha",))
def _elu(x, alpha):
    return fwd_elu(x, alpha)[0]


def fwd_elu(x, alpha):
    return value_elu(upcast(x), alpha).astype(x.dtype), (x,)


# y = x or alpha (e^x - 1), by pieces that meet at 0. From y + alpha the slope would lose its digits where y nears
# -alpha; from x it keeps them.
#   g^T J = g where x > 0, else g * alpha e^x
def bwd_elu(alpha, res, g):
    (x,) = res
    return (like_primal(upcast(g) * slope_elu(upcast(x), alpha), x),)


_elu.defvjp(fwd_elu, bwd_elu)


def slope_elu(x, alpha):
    return jnp.where(x > 0, 1, alpha * jnp.exp(jnp.where(x > 0, 0, x)))


def reference_elu(x, alpha=1.0):
    return jnp.where(x > 0, x, alpha * (jnp.exp(jnp.where(x > 0, 0, x)) - 1))


def jacobian_elu(x, alpha=1.0):
    return (Diagonal(jnp.where(x > 0, 1, alpha * jnp.exp(x))),)


# ---------------------------------------------------------------------------------------------------------------- selu


def selu(x: Shaped[ArrayLike, "..."]) -> Shaped[Array, "..."]:
    """1.0507 x where x > 0, else 1.0507 * 1.6733 (exp(x) - 1), elementwise: a multiple of elu.

    Args:
        x: any shape and dtype; complex numbers go to `jax.nn.selu`.

    Returns:
        An array of x's shape and dtype (JAX's default float for integers), in [-1.7581, inf], with the conventions of
        `elu`. The numbers are those for which mean 0 and variance 1 are a fixed point.

    Raises:
        TypeError: x is not an array of numbers.

    Example:
        >>> round(jax.grad(selu)(2.0).item(), 4)
        1.0507

    Source:
        Klambauer et al., Self-normalizing neural networks, 2017. The signature is that of `jax.nn.selu`.
    """
    return by_rule(_selu, jax.nn.selu, x=as_inexact("x", x))


_ALPHA, _SCALE = 1.6732632423543772848170429916717, 1.0507009873554804934193349852946


def value_selu(x):
    return _SCALE * value_elu(x, _ALPHA)


@custom_vjp
def _selu(x):
    return fwd_selu(x)[0]


def fwd_selu(x):
    return value_selu(upcast(x)).astype(x.dtype), (x,)


# y = c elu(x) with alpha = 1.6733 and c = 1.0507, and so are the derivatives multiples of elu's.
#   g^T J = g * c where x > 0, else g * c alpha e^x
def bwd_selu(res, g):
    (x,) = res
    return (like_primal(upcast(g) * slope_selu(upcast(x)), x),)


_selu.defvjp(fwd_selu, bwd_selu)


def slope_selu(x):
    return _SCALE * slope_elu(x, _ALPHA)


def reference_selu(x):
    return _SCALE * reference_elu(x, _ALPHA)


def jacobian_selu(x):
    return (Diagonal(jnp.where(x > 0, _SCALE, _SCALE * _ALPHA * jnp.exp(x))),)


# ---------------------------------------------------------------------------------------------------------------- celu


def celu(x: Shaped[ArrayLike, "..."], alpha: Shaped[ArrayLike, "..."] = 1.0) -> Shaped[Array, "..."]:
    """x where x > 0, else alpha (exp(x / alpha) - 1), elementwise; its derivative is 1 or exp(x / alpha).

    Args:
        x: any shape and dtype; complex numbers go to `jax.nn.celu`.
        alpha: a number other than 0; arrays go to `jax.nn.celu`.

    Returns:
        An array of x's shape and dtype (JAX's default float for integers), in [-alpha, inf] for positive alpha; -alpha
        and inf at the infinities, with cotangents 0 and g. NaN gives NaN. The derivative is continuous.

    Raises:
        TypeError: x is not an array of numbers.
        ValueError: alpha is 0.

    Example:
        >>> jax.grad(celu)(2.0).item(), jax.grad(celu)(0.0, 0.5).item()
        (1.0, 1.0)

    Source:
        Barron, Continuously differentiable exponential linear units, 2017. The signature is that of `jax.nn.celu`.
    """
    if isinstance(alpha, (int, float, np.number)) and alpha == 0:
        raise ValueError(f"alpha must not be 0, got {alpha!r}")
    return _with_number(_celu, jax.nn.celu, x, alpha)


def value_celu(x, alpha):
    return jnp.where(x > 0, x, alpha * jnp.expm1(jnp.minimum(x, 0) / alpha))


@partial(custom_vjp, nondiff_argnames=("alpha",))
def _celu(x, alpha):
    return fwd_celu(x, alpha)[0]


def fwd_celu(x, alpha):
    return value_celu(upcast(x), alpha).astype(x.dtype), (x,)


# y = x or alpha (e^(x / alpha) - 1): the slopes of the pieces meet at 0, both 1.
#   g^T J = g where x > 0, else g * e^(x / alpha)
def bwd_celu(alpha, res, g):
    (x,) = res
    return (like_primal(upcast(g) * slope_celu(upcast(x), alpha), x),)


_celu.defvjp(fwd_celu, bwd_celu)


def slope_celu(x, alpha):
    return jnp.exp(jnp.where(x > 0, 0, x) / alpha)


def reference_celu(x, alpha=1.0):
    return jnp.where(x > 0, x, alpha * (jnp.exp(jnp.where(x > 0, 0, x) / alpha) - 1))


def jacobian_celu(x, alpha=1.0):
    return (Diagonal(jnp.where(x > 0, 1, jnp.exp(x / alpha))),)


# ----------------------------------------------------------------------------------------------------------- hard_silu


def hard_silu(x: Shaped[ArrayLike, "..."]) -> Shaped[Array, "..."]:
    """x min(max(x + 3, 0), 6) / 6, elementwise; its derivative is 0 up to -3, 1 from 3 on, and (2 x + 3) / 6 between.

    Args:
        x: any shape and dtype; complex numbers are computed by the plain expression, if at all.

    Returns:
        An array of x's shape and dtype (JAX's default float for integers), at least -0.375. -inf and NaN give NaN. The
        derivative at -3 is 0, and at 3 it is 1, as in JAX.

    Raises:
        TypeError: x is not an array of numbers.

    Example:
        >>> hard_silu(jnp.array([-4.0, 0.0, 4.0])).tolist()
        [-0.0, 0.0, 4.0]

    Source:
        Howard et al., Searching for MobileNetV3, 2019. The signature is that of `jax.nn.hard_silu`, also named
        hard_swish.
    """
    return by_rule(_hard_silu, jax.nn.hard_silu, x=as_inexact("x", x))


hard_swish = hard_silu


def value_hard_silu(x):
    return x * (jnp.clip(x + 3, 0, 6) / 6)


@custom_vjp
def _hard_silu(x):
    return fwd_hard_silu(x)[0]


def fwd_hard_silu(x):
    return value_hard_silu(upcast(x)).astype(x.dtype), (x,)


# y = 0, x (x + 3) / 6 or x, by pieces that meet at -3 and 3.
#   g^T J = 0 where x <= -3, g where x >= 3, else g * (2 x + 3) / 6
def bwd_hard_silu(res, g):
    (x,) = res
    return (like_primal(upcast(g) * slope_hard_silu(upcast(x)), x),)


_hard_silu.defvjp(fwd_hard_silu, bwd_hard_silu)


def slope_hard_silu(x):
    return jnp.where(x <= -3, 0, jnp.where(x >= 3, 1, (2 * x + 3) / 6))


def reference_hard_silu(x):
    return jnp.where(x <= -3, 0 * x, jnp.where(x >= 3, x, x * (x + 3) / 6))


def jacobian_hard_silu(x):
    return (Diagonal(jnp.select([x <= -3, x >= 3], [jnp.zeros_like(x), jnp.ones_like(x)], (2 * x + 3) / 6)),)


# --------------------------------------------------------------------------------------------------------------- relu6


def relu6(x: Shaped[ArrayLike, "..."]) -> Shaped[Array, "..."]:
    """min(max(x, 0), 6), elementwise; its derivative is 1 where 0 < x < 6, else 0.

    Args:
        x: any shape and dtype; integers go to `jax.nn.relu6`.

    Returns:
        An array of x's shape and dtype (JAX's default float for integers), in [0, 6]. NaN gives NaN, with cotangent 0.
        The derivative at 0 and at 6 is 0, as in JAX.

    Raises:
        TypeError: x is not an array of numbers.

    Example:
        >>> jax.grad(relu6)(1.0).item(), jax.grad(relu6)(6.0).item()
        (1.0, 0.0)

    Source:
        Krizhevsky, Convolutional deep belief networks on CIFAR-10, 2010. The signature is that of `jax.nn.relu6`.
    """
    return by_rule(_relu6, jax.nn.relu6, x=as_array("x", x))


@custom_vjp
def _relu6(x):
    return fwd_relu6(x)[0]


def fwd_relu6(x):
    return jnp.minimum(jnp.maximum(x, 0), 6), ((x > 0) & (x < 6), aval_token(x))


# y = 0, x or 6, by pieces that meet at 0 and 6.
#   g^T J = g * [0 < x < 6]
# One byte an element tells whether x was between the kinks; x itself need not be kept.
def bwd_relu6(res, g):
    inside, x_token = res
    return (like_primal(jnp.where(inside, g, 0), x_token),)


_relu6.defvjp(fwd_relu6, bwd_relu6)


def reference_relu6(x):
    return jnp.where(x <= 0, 0 * x, jnp.where(x >= 6, 0 * x + 6, x))


def jacobian_relu6(x):
    return (Diagonal(((x > 0) & (x < 6)).astype(x.dtype)),)


# ------------------------------------------------------------------------------------------------------------- numbers


def _with_number(rule: Callable[..., jax.Array], incumbent: Callable[..., jax.Array], x: Any, alpha: Any) -> jax.Array:
    """Return the result by the rule for a number alpha, by the incumbent for an array."""
    if not isinstance(alpha, (int, float, np.number)):
        return incumbent(as_array("x", x), as_array("alpha", alpha))
    return by_rule(lambda x: rule(x, float(alpha)), partial(incumbent, alpha=alpha), x=as_inexact("x", x))


# ------------------------------------------------------------------------------------------------------------- records

_UNIT = Edge("at the kink and saturated", ANY)

_ELU = Rule(
    fn=elu,
    reference=reference_elu,
    baselines={"jax.nn.elu": jax.nn.elu},
    cases=(ROWS, replace(ROWS, kwargs={"alpha": 0.5}), SCALAR),
    edges=(_UNIT, _UNIT._replace(name="of another height", kwargs={"alpha": 2.0}), INFINITIES),
    bench=(LARGE,),
    residual_bytes=lambda b, n: 4 * b * n,
    jacobian=jacobian_elu,
    reason="keeps x alone; with JAX 0.10, autodiff's gradient is 0 from -17 on",
    gains=(Gain("kept bytes", 0.4),),
    source="Clevert, Unterthiner and Hochreiter, 2015",
    tails=tails_of(lambda x: np.where(x > 0, 1, np.exp(x))),
)

RULES = (
    _ELU,
    replace(
        _ELU,
        fn=selu,
        reference=reference_selu,
        baselines={"jax.nn.selu": jax.nn.selu},
        cases=(ROWS, SCALAR),
        edges=(_UNIT, INFINITIES),
        jacobian=jacobian_selu,
        source="Klambauer et al., 2017",
        tails=tails_of(lambda x: _SCALE * np.where(x > 0, 1, _ALPHA * np.exp(x))),
    ),
    replace(
        _ELU,
        fn=celu,
        reference=reference_celu,
        baselines={"jax.nn.celu": jax.nn.celu},
        jacobian=jacobian_celu,
        gains=(Gain("kept bytes", 0.34),),
        source="Barron, 2017",
    ),
    replace(
        _ELU,
        fn=hard_silu,
        reference=reference_hard_silu,
        baselines={"jax.nn.hard_silu": jax.nn.hard_silu},
        cases=(ROWS, Case(("n",), {"n": 11}), SCALAR),
        edges=(Edge("at the kinks", ([-3.0, 3.0, 0.0, -4.0, 4.0],)), _UNIT),
        jacobian=jacobian_hard_silu,
        reason="keeps x alone",
        gains=(Gain("kept bytes", 0.31),),
        source="Howard et al., 2019",
        tails=None,
    ),
    replace(
        _ELU,
        fn=relu6,
        reference=reference_relu6,
        baselines={"jax.nn.relu6": jax.nn.relu6},
        cases=(ROWS, SCALAR),
        edges=(Edge("at the kinks", ([0.0, -0.0, 6.0, 5.0, 7.0, -1.0],)), INFINITIES),
        residual_bytes=lambda b, n: b * n,
        jacobian=jacobian_relu6,
        reason="keeps one byte per element",
        gains=(Gain("kept bytes", 0.2),),
        source="Krizhevsky, 2010",
        tails=None,
    ),
)
