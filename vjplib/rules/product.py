"""Products: of two arrays elementwise (bilinear), and of all numbers along some axes (multilinear)."""

import math
from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from vjplib.compat import custom_vjp
from vjplib.jacobians import Dense, Diagonal
from vjplib.numerics import as_array, as_form, axes_of, broadcast_shapes, by_rule, form, wide
from vjplib.rule import Case, Edge, Input, Rule

# ------------------------------------------------------------------------------------------------------------ multiply


def multiply(x: Float[ArrayLike, "..."], y: Float[ArrayLike, "..."]) -> Float[Array, "..."]:
    """x y, elementwise; its partial derivatives are y and x.

    Args:
        x: floating, of any shape that broadcasts with y's.
        y: floating.

    Returns:
        An array of the broadcast shape, of the dtype that both promote to. NaN and infinities follow arithmetic.

    Raises:
        TypeError: an argument is not floating.
        ValueError: the shapes do not broadcast.

    Example:
        >>> [float(d) for d in jax.grad(multiply, argnums=(0, 1))(2.0, 3.0)]
        [3.0, 2.0]

    Source:
        Example 2.3 of the lecture, Eq. 8 and 9.
    """
    x, y = as_array("x", x), as_array("y", y)
    broadcast_shapes(x=x, y=y)
    return by_rule(_multiply, jnp.multiply, x=x, y=y)


@custom_vjp
def _multiply(x, y):
    return fwd_multiply(x, y)[0]


def fwd_multiply(x, y):
    return (wide(x) * wide(y)).astype(jnp.result_type(x, y)), (x, y)


# f = x y is linear in each argument with the other held: df/dx = y, df/dy = x.
#   g^T J_x = g * y,   g^T J_y = g * x,   each summed over the axes along which its argument was broadcast
def bwd_multiply(res, g):
    x, y = res
    g = wide(g)
    return as_form(g * wide(y), form(x)), as_form(g * wide(x), form(y))


_multiply.defvjp(fwd_multiply, bwd_multiply)


def reference_multiply(x, y):
    return x * y


def jacobian_multiply(x, y):
    return Diagonal(y), Diagonal(x)


# ---------------------------------------------------------------------------------------------------------------- prod


def prod(
    x: Float[ArrayLike, "..."], axis: int | Sequence[int] | None = None, keepdims: bool = False
) -> Float[Array, "..."]:
    """prod_i x_i along axes; its i-th partial derivative is the product of the others, prod_{j != i} x_j.

    All products of the others together take O(n) time and memory, and no division: zeros are right (beside one zero,
    only its own partial derivative differs from zero; beside several, none does), and so are totals that underflow.

    Args:
        x: any shape, floating.
        axis: the axis or axes to multiply along; None for all.
        keepdims: whether the axes stay, with size 1.

    Returns:
        An array of x's dtype. Along an empty axis the product is 1. NaN in x makes NaN of the product and of every
        partial derivative but its own; an infinity beside a zero gives NaN, as in arithmetic.

    Raises:
        TypeError: x is not floating, or axis not an integer.
        ValueError: an axis is out of range or named twice.

    Example:
        >>> jax.grad(prod)(jnp.array([3.0, 7.0, 4.0])).tolist()
        [28.0, 12.0, 21.0]

    Source:
        Example 2.4 of the lecture, Eq. 11 and 12; the function is Speelpenning's product (Speelpenning, Compiling fast
        partial derivatives of functions given by algorithms, 1980).
    """
    x = as_array("x", x)
    axes = axes_of(axis, x.ndim)
    return by_rule(lambda x: _prod(x, axes, bool(keepdims)), partial(jnp.prod, axis=axes, keepdims=keepdims), x=x)


@partial(custom_vjp, nondiff_argnames=("axes", "keepdims"))
def _prod(x, axes, keepdims):
    return fwd_prod(x, axes, keepdims)[0]


def fwd_prod(x, axes, keepdims):
    return jnp.prod(wide(x), axis=axes, keepdims=keepdims).astype(x.dtype), (x,)


# dy/dx_i = prod_{j != i} x_j. Multiply pairwise in a tree with x at the leaves and y at the root. The product of all
# leaves outside a node is that of its parent times the node's sibling; at a leaf it is the partial derivative:
#   others(root) = 1,   others(left) = others(parent) * right,   others(right) = others(parent) * left
# One sweep up and one down take 3 n multiplications, against n^2 from the definition.
#   g^T J = g * others
def bwd_prod(axes, keepdims, res, g):
    del keepdims
    (x,) = res
    kept = tuple(1 if i in axes else n for i, n in enumerate(x.shape))
    last = tuple(range(-len(axes), 0))
    moved = jnp.moveaxis(wide(x), axes, last)
    rest, factors = moved.shape[: x.ndim - len(axes)], moved.shape[x.ndim - len(axes) :]
    others = _products_of_others(moved.reshape(*rest, math.prod(factors))).reshape(moved.shape)
    return ((jnp.moveaxis(others, last, axes) * wide(g).reshape(kept)).astype(x.dtype),)


def _products_of_others(x: jax.Array) -> jax.Array:
    levels = [_halves(x)]
    while levels[-1][0].shape[-1] > 1:
        left, right = levels[-1]
        levels.append(_halves(left * right))
    others = jnp.ones((*x.shape[:-1], 1), x.dtype)
    for left, right in reversed(levels):
        n = left.shape[-1]
        others = jnp.concatenate((others[..., :n] * right, others[..., :n] * left), axis=-1)
    return others[..., : x.shape[-1]]


def _halves(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    n = x.shape[-1]
    half = (n + 1) // 2
    right = jax.lax.pad(x[..., half:], jnp.ones((), x.dtype), [(0, 0, 0)] * (x.ndim - 1) + [(0, 2 * half - n, 0)])
    return x[..., :half], right


_prod.defvjp(fwd_prod, bwd_prod)


def reference_prod(x, axis=None, keepdims=False):
    return jnp.prod(x, axis=axis, keepdims=keepdims)


def jacobian_prod(x, axis=None, keepdims=False):
    del axis, keepdims
    others = jnp.where(jnp.eye(x.size, dtype=bool), 1, x)
    return (Dense(jnp.prod(others, axis=1)[None, :]),)


# ------------------------------------------------------------------------------------------------------------- records


def _near_one(rng, shape, dims):
    """Returns factors whose product, of thousands, is still of size one."""
    del dims
    return np.exp(0.02 * rng.standard_normal(shape))


RULES = (
    Rule(
        fn=multiply,
        reference=reference_multiply,
        baselines={"jnp.multiply": jnp.multiply},
        cases=(
            Case(("b n", "b n"), {"b": 2, "n": 7}),
            Case(("n", "b 1"), {"b": 2, "n": 7}),
            Case(("", "b n"), {"b": 3, "n": 5}),
            Case(("", ""), {}),
        ),
        edges=(Edge("zeros and infinity", ([0.0, -0.0, 1.0], [0.0, 2.0, float("inf")])),),
        bench=(Case(("b n", "b n"), {"b": 1024, "n": 1024}),),
        residuals=lambda b, n: 8 * b * n,
        jacobian=jacobian_multiply,
        reason="the lecture's bilinear function; the pattern of every weighted layer",
        source="Example 2.3",
    ),
    Rule(
        fn=prod,
        reference=reference_prod,
        baselines={"jnp.prod": jnp.prod},
        cases=(
            Case(("b n",), {"b": 2, "n": 7}, {"axis": -1}),
            Case(("b n c",), {"b": 2, "n": 3, "c": 5}, {"axis": (0, 2), "keepdims": True}),
            Case(("n",), {"n": 11}),
            Case(("",), {}),
        ),
        edges=(
            Edge("one zero", ([3.0, 0.0, 4.0, -5.0],)),
            Edge("two zeros", ([3.0, 0.0, 4.0, -0.0],)),
            Edge("all zeros", ([0.0, 0.0, 0.0],)),
            Edge("total underflows, partials do not", ([1e-25, 1e-25],)),
            Edge("one factor", ([2.5],)),
            Edge("empty axis", ([],)),
        ),
        bench=(Case((Input("b n", _near_one),), {"b": 256, "n": 4096}, {"axis": -1}),),
        residuals=lambda b, n: 4 * b * n,
        jacobian=jacobian_prod,
        reason="faster than autodiff of jnp.prod, and right where dividing the total by x_i is not",
        source="Example 2.4",
    ),
)
