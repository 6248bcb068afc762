"""The length of vectors and vectors of length 1, right at 0, where autodiff of the square root gives NaN."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Shaped

from vjplib.compat import custom_vjp
from vjplib.jacobians import Dense, DiagonalMinusLowRank
from vjplib.precision import upcast
from vjplib.rule import Case, Edge, Gain, Rule
from vjplib.rules._arguments import as_inexact, as_number, by_rule, normalize_axes
from vjplib.rules._cotangents import like_primal

# ---------------------------------------------------------------------------------------------------------------- norm


def norm(
    x: Shaped[ArrayLike, "..."],
    ord: Any = None,  # noqa: A002, the name in jnp.linalg.norm
    axis: int | Sequence[int] | None = None,
    keepdims: bool = False,
) -> Shaped[Array, "..."]:
    """sqrt(sum(x^2)) along axis; its derivative is x / norm(x), and 0 at 0.

    Args:
        x: any shape and dtype; complex numbers go to `jnp.linalg.norm`.
        ord: None, or 2 for vectors or "fro" for matrices, which is the same. Other orders go to `jnp.linalg.norm`.
        axis: an axis, or two for matrices; None for all.
        keepdims: whether the axes stay, with size 1.

    Returns:
        An array of x's dtype (JAX's default float for integers), without axis, in [0, inf]. The cotangent of a vector
        of zeros is 0, the subgradient of smallest norm, where autodiff gives NaN; so is the second derivative there.
        Half precision is squared in float32, and does not overflow. Squares of float32 overflow from 1e19 on and
        underflow below 1e-19, where the norm is 0. NaN gives NaN; an infinity gives inf, with cotangent NaN at its
        place. An empty vector has norm 0.

    Raises:
        TypeError: x is not an array of numbers.
        ValueError: an axis is out of range or named twice, or there are more than two.

    Example:
        >>> jax.grad(norm)(jnp.array([0.0, -2.0])).tolist(), jax.grad(norm)(jnp.zeros(2)).tolist()
        ([0.0, -1.0], [0.0, 0.0])

    Source:
        Petersen and Pedersen, The Matrix Cookbook, 2012, on derivatives of vector norms; at 0 the convention is that of
        `torch.linalg.norm`. The signature is that of `jnp.linalg.norm`.
    """
    x = as_inexact("x", x)
    axes = normalize_axes(axis, x.ndim)
    if axis is not None and len(axes) not in (1, 2):
        raise ValueError(f"axis must be None, an axis or two axes, got {axis!r}")
    same = {1: (None, 2), 2: (None, "fro", "f")}.get(len(axes), (None,))
    if jnp.iscomplexobj(x) or not any(ord is known or (isinstance(ord, (int, str)) and ord == known) for known in same):
        return jnp.linalg.norm(x, ord, axis, keepdims)
    incumbent = partial(jnp.linalg.norm, ord=ord, axis=axis, keepdims=keepdims)
    return by_rule(lambda x: _norm(x, axes, bool(keepdims)), incumbent, x=x)


@partial(custom_vjp, nondiff_argnames=("axes", "keepdims"))
def _norm(x, axes, keepdims):
    return fwd_norm(x, axes, keepdims)[0]


def fwd_norm(x, axes, keepdims):
    r = _length(upcast(x), axes)
    return (r if keepdims else jnp.squeeze(r, axes)).astype(x.dtype), (x, r)


def _length(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """Return sqrt(sum(x^2)) along axes, kept with size 1; its autodiff at 0 is 0."""
    square = jnp.sum(jnp.square(x), axes, keepdims=True)
    return jnp.where(square == 0, 0, jnp.sqrt(jnp.where(square == 0, 1, square)))


# r^2 = sum_k x_k^2, so 2 r dr = 2 x_j dx_j and dr/dx_j = x_j / r. At x = 0 r has a kink, where every vector of length
# up to 1 is a subgradient: 0 is chosen.
#   g^T J = g x / r, or 0 where r = 0
def bwd_norm(axes, keepdims, res, g):
    x, r = res
    g = upcast(g) if keepdims else jnp.expand_dims(upcast(g), axes)
    return (like_primal(upcast(x) * (jnp.where(r == 0, 0, g) / jnp.where(r == 0, 1, r)), x),)


_norm.defvjp(fwd_norm, bwd_norm)


def reference_norm(x, axis=None, keepdims=False):
    square = jnp.sum(x * x, axis, keepdims=keepdims)
    return jnp.where(square == 0, 0, jnp.sqrt(jnp.where(square == 0, 1, square)))


def jacobian_norm(x, axis=-1):
    return (Dense((x / jnp.sqrt(jnp.sum(x * x)))[None, :]),)


# ----------------------------------------------------------------------------------------------------------- normalize


def normalize(
    x: Shaped[ArrayLike, "..."], axis: int | Sequence[int] | None = -1, epsilon: float = 1e-12
) -> Shaped[Array, "..."]:
    """x / max(r, epsilon) with r = norm(x) along axis; its Jacobian is (I - y y^T) / r, and I / epsilon near 0.

    Args:
        x: any shape and dtype; complex numbers are computed by the plain expression.
        axis: the axis or axes along which the result has length 1; None for all.
        epsilon: the least number to divide by.

    Returns:
        An array of x's shape and dtype (JAX's default float for integers); half precision accumulates in float32. A
        vector of zeros gives zeros, with cotangent g / epsilon, where autodiff of the norm gives NaN. NaN makes its
        vector NaN; an infinity gives NaN, and 0 in the rest of its vector. An empty vector is empty.

    Raises:
        TypeError: x is not an array of numbers, or epsilon is not a number.
        ValueError: an axis is out of range or named twice, or epsilon is not positive.

    Example:
        >>> normalize(jnp.array([[0.0, -2.0], [0.0, 0.0]])).tolist()
        [[0.0, -1.0], [0.0, 0.0]]

    Source:
        Petersen and Pedersen, The Matrix Cookbook, 2012, on derivatives of vector norms. The function is
        `torch.nn.functional.normalize` for p = 2.
    """
    x = as_inexact("x", x)
    axes, epsilon = normalize_axes(axis, x.ndim), as_number("epsilon", epsilon, "positive", lambda n: n > 0)
    incumbent = partial(reference_normalize, axis=axes, epsilon=epsilon)
    return by_rule(lambda x: _normalize(x, axes, epsilon), incumbent, x=x)


@partial(custom_vjp, nondiff_argnames=("axes", "epsilon"))
def _normalize(x, axes, epsilon):
    return fwd_normalize(x, axes, epsilon)[0]


def fwd_normalize(x, axes, epsilon):
    r = _length(upcast(x), axes)
    return (upcast(x) / jnp.maximum(r, epsilon)).astype(x.dtype), (x, r)


# Where r > eps, y = x / r with dr/dx_j = y_j: dy_i/dx_j = (delta_ij - y_i y_j) / r, the cotangent without its component
# along y. Elsewhere y = x / eps is linear.
#   g^T J = (g - <g, y> y) / r where r > eps, else g / eps
# At the kink r = eps the smaller of the two slopes is not taken, but the linear one.
def bwd_normalize(axes, epsilon, res, g):
    x, r = res
    g, divisor = upcast(g), jnp.maximum(r, epsilon)
    y = upcast(x) / divisor
    along = jnp.where(r > epsilon, jnp.sum(g * y, axes, keepdims=True), 0)
    return (like_primal((g - along * y) / divisor, x),)


_normalize.defvjp(fwd_normalize, bwd_normalize)


def reference_normalize(x, axis: Any = -1, epsilon=1e-12):
    square = jnp.sum(jnp.real(x * jnp.conj(x)), axis, keepdims=True)
    large = square > epsilon**2
    return jnp.where(large, x / jnp.sqrt(jnp.where(large, square, 1)), x / epsilon)


def jacobian_normalize(x):
    r = jnp.sqrt(jnp.sum(x * x))
    y = x / r
    return (DiagonalMinusLowRank(jnp.full_like(x, 1 / r), y[:, None] / r, y[:, None]),)


# ------------------------------------------------------------------------------------------------------------- records


def plain_normalize(x, axis=-1, epsilon=1e-12):
    return x / jnp.maximum(jnp.linalg.norm(x, axis=axis, keepdims=True), epsilon)


_ZEROS = Edge("a row of zeros beside another", ([[0.0, 0.0], [3.0, -4.0]],))

# Of length 300, whose square is no float16.
_LONG = Edge("a length whose square is no float16", (np.full((1, 100), 30.0),), {"axis": -1})

RULES = (
    Rule(
        fn=norm,
        reference=reference_norm,
        baselines={"jnp.linalg.norm": jnp.linalg.norm},
        cases=(
            Case(("b n",), {"b": 2, "n": 7}, {"axis": -1}),
            Case(("b n c",), {"b": 2, "n": 3, "c": 5}, {"axis": (0, 2), "keepdims": True}),
            Case(("n",), {"n": 11}),
        ),
        edges=(
            Edge("zeros", ([0.0, -0.0],)),
            Edge("a row of zeros beside another", _ZEROS.args, {"axis": -1}),
            Edge("one element", ([-3.0],)),
            Edge("no element", ([],)),
        ),
        bench=(Case(("b n",), {"b": 4096, "n": 512}, {"axis": -1}),),
        residual_bytes=lambda b, n: 4 * (b * n + b),
        jacobian=jacobian_norm,
        reason="at 0 the gradient is 0, where that of jnp.linalg.norm is NaN; float16 does not overflow",
        gains=(Gain("error", 1e-5, "zeros"), Gain("error", 0.01, _LONG, dtype="float16")),
        source="Petersen and Pedersen, 2012",
    ),
    Rule(
        fn=normalize,
        reference=reference_normalize,
        baselines={"x / jnp.maximum(jnp.linalg.norm(x), epsilon)": plain_normalize},
        cases=(
            Case(("b n",), {"b": 2, "n": 7}),
            Case(("b n c",), {"b": 2, "n": 3, "c": 5}, {"axis": (0, 2), "epsilon": 1e-6}),
            Case(("n",), {"n": 11}, {"axis": None}),
        ),
        edges=(
            _ZEROS,
            Edge("shorter than epsilon", ([[3e-3, 4e-3], [3.0, 4.0]],), {"epsilon": 0.01}),
            Edge("rows of one element", ([[2.0], [-3.0]],)),
            Edge("empty batch", (np.zeros((0, 3)),)),
        ),
        bench=(Case(("b n",), {"b": 4096, "n": 512}),),
        residual_bytes=lambda b, n: 4 * (b * n + b),
        jacobian=jacobian_normalize,
        reason="right at 0, where autodiff of the norm is NaN",
        gains=(Gain("error", 1e-5, "a row of zeros beside another"),),
        source="Petersen and Pedersen, 2012",
    ),
)
