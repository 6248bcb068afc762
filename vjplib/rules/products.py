"""Products: of two arrays elementwise (bilinear), and of all numbers along some axes (multilinear)."""

import math
from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Bool, Shaped

from vjplib.compat import custom_vjp
from vjplib.jacobians import Dense, Diagonal
from vjplib.precision import compute_dtype, upcast
from vjplib.rule import Case, Edge, Gain, Input, Rule, random_mask
from vjplib.rules._arguments import as_array, broadcast_mask, broadcast_shapes, by_rule, normalize_axes
from vjplib.rules._cotangents import like_primal

# ------------------------------------------------------------------------------------------------------------ multiply


def multiply(x: Shaped[ArrayLike, "..."], y: Shaped[ArrayLike, "..."]) -> Shaped[Array, "..."]:
    """x y, elementwise; its partial derivatives are y and x.

    Args:
        x: any shape that broadcasts with y's, and any dtype.
        y: any dtype. If both promote to an integer or complex dtype, `jnp.multiply` is called.

    Returns:
        An array of the broadcast shape, in the dtype that both promote to. NaN and infinities follow arithmetic.

    Raises:
        TypeError: an argument is not an array of numbers.
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
    return (upcast(x) * upcast(y)).astype(jnp.result_type(x, y)), (x, y)


# f = x y is linear in each argument with the other held: df/dx = y, df/dy = x.
#   g^T J_x = g * y,   g^T J_y = g * x,   each summed over the axes along which its argument was broadcast
def bwd_multiply(res, g):
    x, y = res
    g = upcast(g)
    return like_primal(g * upcast(y), x), like_primal(g * upcast(x), y)


_multiply.defvjp(fwd_multiply, bwd_multiply)


def reference_multiply(x, y):
    return x * y


def jacobian_multiply(x, y):
    return Diagonal(y), Diagonal(x)


# ---------------------------------------------------------------------------------------------------------------- prod


def prod(
    a: Shaped[ArrayLike, "..."],
    axis: int | Sequence[int] | None = None,
    dtype: DTypeLike | None = None,
    out: None = None,
    keepdims: bool = False,
    initial: Shaped[ArrayLike, ""] | None = None,
    where: Bool[ArrayLike, "..."] | None = None,
    promote_integers: bool = True,
) -> Shaped[Array, "..."]:
    """prod_i a_i along axes; its i-th partial derivative is the product of the others, prod_{j != i} a_j.

    All n products of the others together take O(n) time and memory, and no division. So zeros are right (with one zero,
    only its own partial derivative differs from zero; with several, none does), and so are totals that underflow.

    Args:
        a: any shape and dtype; integer and complex results are computed by `jnp.prod`.
        axis: the axis or axes to multiply along; None for all.
        dtype: the dtype of the result; None for a's. Half precision multiplies in float32.
        out: None; JAX arrays are immutable.
        keepdims: whether the axes stay, with size 1.
        initial: a scalar that every product is multiplied by.
        where: booleans that broadcast with a: the elements to include. None includes all.
        promote_integers: whether small integers are multiplied in JAX's default integer dtype.

    Returns:
        An array in the given dtype, by default a's. Along an empty or wholly masked axis the product is 1, or initial.
        NaN in a makes the product NaN, and every partial derivative but its own; an infinity and a zero give NaN, as in
        arithmetic. Masked elements have cotangent 0.

    Raises:
        TypeError: a is not an array of numbers, where not boolean, or axis not an integer.
        ValueError: an axis is out of range or named twice, where does not broadcast with a, initial is not a scalar, or
            out is not None.

    Example:
        >>> jax.grad(prod)(jnp.array([3.0, 7.0, 4.0])).tolist()
        [28.0, 12.0, 21.0]

    Source:
        Example 2.4 of the lecture, Eq. 11 and 12; the function is Speelpenning's product (Speelpenning, Compiling fast
        partial derivatives of functions given by algorithms, 1980). The signature is that of `jnp.prod`.
    """
    x = as_array("a", a)
    axes = normalize_axes(axis, x.ndim)
    if out is not None:
        raise ValueError(f"out must be None, JAX arrays are immutable, got {out!r}")
    if initial is not None and (initial := as_array("initial", initial)).ndim:
        raise ValueError(f"initial must be a scalar, got shape {initial.shape}")
    x, included = broadcast_mask(where, a=x)
    if included is not None:
        x = jnp.where(included, x, jnp.ones((), x.dtype))
    incumbent = partial(
        jnp.prod, axis=axes, dtype=dtype, keepdims=keepdims, initial=initial, promote_integers=promote_integers
    )
    if dtype is not None:
        if not jnp.issubdtype(dtype, jnp.floating) or jnp.issubdtype(x.dtype, jnp.complexfloating):
            return incumbent(x)
        x = x if x.dtype == dtype else x.astype(compute_dtype(jax.dtypes.canonicalize_dtype(dtype)))

    def rule(x: jax.Array) -> jax.Array:
        y = _prod(x if initial is None else upcast(x), axes, bool(keepdims))
        y = y if initial is None else initial.astype(y.dtype) * y
        return y.astype(x.dtype if dtype is None else dtype)

    return by_rule(rule, incumbent, a=x)


@partial(custom_vjp, nondiff_argnames=("axes", "keepdims"))
def _prod(x, axes, keepdims):
    return fwd_prod(x, axes, keepdims)[0]


def fwd_prod(x, axes, keepdims):
    return jnp.prod(upcast(x), axis=axes, keepdims=keepdims).astype(x.dtype), (x,)


# dy/dx_i = prod_{j != i} x_j. Multiply pairwise in a tree with x at the leaves and y at the root. The product of all
# leaves outside a node is that of its parent times the node's sibling; at a leaf it is the partial derivative:
#   others(root) = 1,   others(left) = others(parent) * right,   others(right) = others(parent) * left
# One sweep up and one down take 3 n multiplications, against n^2 from the definition.
#   g^T J = g * others
def bwd_prod(axes, keepdims, res, g):
    (x,) = res
    shape = tuple(1 if i in axes else n for i, n in enumerate(x.shape))
    last = tuple(range(-len(axes), 0))
    moved = jnp.moveaxis(upcast(x), axes, last)
    rest, factors = moved.shape[: x.ndim - len(axes)], moved.shape[x.ndim - len(axes) :]
    others = _products_of_others(moved.reshape(*rest, math.prod(factors))).reshape(moved.shape)
    return (like_primal(jnp.moveaxis(others, last, axes) * upcast(g).reshape(shape), x),)


def _products_of_others(x: jax.Array) -> jax.Array:
    if not isinstance(x.shape[-1], int):
        return _products_of_others_at_symbolic_size(x)
    levels = [_halves(x)]
    while levels[-1][0].shape[-1] > 1:
        left, right = levels[-1]
        levels.append(_halves(left * right))
    others = jnp.ones((*x.shape[:-1], 1), x.dtype)
    for left, right in reversed(levels):
        n = left.shape[-1]
        others = jnp.concatenate((others[..., :n] * right, others[..., :n] * left), axis=-1)
    return others[..., : x.shape[-1]]


def _products_of_others_at_symbolic_size(x: jax.Array) -> jax.Array:
    """Return the products of all earlier and all later elements, for symbolic sizes, where no tree can be built.

    XLA computes a cumulative product in n log n steps; JAX differentiates it at static sizes only.
    """
    axis, one = x.ndim - 1, jnp.ones((), x.dtype)
    unmoved = [(0, 0, 0)] * axis
    before, after = (jax.lax.pad(x, one, [*unmoved, pad]) for pad in ((1, -1, 0), (-1, 1, 0)))
    return jax.lax.cumprod(before, axis) * jax.lax.cumprod(after, axis, reverse=True)


def _halves(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    n = x.shape[-1]
    half = (n + 1) // 2
    right = jax.lax.pad(x[..., half:], jnp.ones((), x.dtype), [(0, 0, 0)] * (x.ndim - 1) + [(0, 2 * half - n, 0)])
    return x[..., :half], right


_prod.defvjp(fwd_prod, bwd_prod)


def reference_prod(a, axis=None, keepdims=False, initial=None, where=None):
    return jnp.prod(a, axis=axis, keepdims=keepdims, initial=initial, where=where)


def jacobian_prod(x, axis=None, keepdims=False):
    others = jnp.where(jnp.eye(x.size, dtype=bool), 1, x)
    return (Dense(jnp.prod(others, axis=1)[None, :]),)


# ------------------------------------------------------------------------------------------------------------- records


def _near_one(rng, shape, dims):
    """Return factors near 1, so that a product of thousands neither overflows nor underflows."""
    return np.exp(0.02 * rng.standard_normal(shape))


_ENDS = np.array([True, False, False, True])

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
        residual_bytes=lambda b, n: 8 * b * n,
        jacobian=jacobian_multiply,
        reason="the lecture's bilinear function; the pattern of every weighted layer",
        lecture=True,
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
            Case(("b n",), {"b": 2, "n": 7}, {"axis": -1, "where": Input("b n", random_mask), "initial": 3.0}),
            Case(("",), {}),
        ),
        edges=(
            Edge("one zero", ([3.0, 0.0, 4.0, -5.0],)),
            Edge("two zeros", ([3.0, 0.0, 4.0, -0.0],)),
            Edge("all zeros", ([0.0, 0.0, 0.0],)),
            Edge("total underflows, partials do not", ([1e-25, 1e-25],)),
            Edge("one factor", ([2.5],)),
            Edge("empty axis", ([],)),
            Edge("a masked NaN and a masked zero", ([2.0, float("nan"), 0.0, 5.0],), {"where": _ENDS}),
            Edge("a slice wholly masked", ([2.0, 3.0],), {"where": np.zeros(2, bool)}),
        ),
        bench=(Case((Input("b n", _near_one),), {"b": 256, "n": 4096}, {"axis": -1}),),
        residual_bytes=lambda b, n: 4 * b * n,
        jacobian=jacobian_prod,
        reason="multiplies the other factors in O(n), and is right where dividing the total by x_i is not",
        gains=(Gain("time", 0.5), Gain("kept bytes", 0.51)),
        source="Example 2.4",
    ),
)
