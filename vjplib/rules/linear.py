"""The linear map y = W x + b of a fully connected layer, with a cotangent for each of its three arguments."""

from functools import partial

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Shaped

from vjplib.compat import auto_sharded, custom_vjp
from vjplib.jacobians import Dense, Diagonal
from vjplib.precision import compute_dtype, upcast
from vjplib.rule import Case, Edge, Rule
from vjplib.rules._arguments import as_array, by_rule
from vjplib.rules._cotangents import aval_token, like_primal, prepend_axes


def linear(
    x: Shaped[ArrayLike, "... n"], W: Shaped[ArrayLike, "m n"], b: Shaped[ArrayLike, "..."] | None = None
) -> Shaped[Array, "... m"]:
    """W x + b over the last axis of x; its derivatives are W in x, and by their VJPs g x^T in W and g in b.

    Args:
        x: (..., n), any batch axes and any dtype.
        W: (m, n). A vector is refused: `x @ W.T` would then have no output axis.
        b: (m,), or None for no bias. Any other shape that broadcasts with the output is added to it.

    Returns:
        (..., m), in the dtype that the arguments promote to; half precision accumulates in float32. Integer and complex
        outputs are computed by the plain expression. NaN and infinities follow arithmetic. An empty batch gives an
        empty output and zero cotangents of W and b; n = 0 gives b.

    Raises:
        TypeError: an argument is not an array of numbers.
        ValueError: x is a scalar, W is not a matrix with a column for each feature of x, or b does not broadcast with
            the output.

    Example:
        >>> import jax
        >>> x, W, b = jnp.array([1.0, 2.0]), jnp.array([[1.0, 0.0], [3.0, -1.0], [0.0, 2.0]]), jnp.zeros(3)
        >>> linear(x, W, b).tolist()
        [1.0, 1.0, 4.0]
        >>> bool((jax.jacrev(linear)(x, W, b) == W).all())
        True

    Source:
        Examples 2.5 and 3.2 of the lecture, Eq. 15 and 28.
    """
    x, W = as_array("x", x), as_array("W", W)
    if x.ndim < 1:
        raise ValueError(f"x must have at least one axis, its features, got shape {x.shape}")
    if W.ndim != 2 or W.shape[1] != x.shape[-1]:
        raise ValueError(f"W must have shape (m, n) with n the last axis of x, got W {W.shape} and x {x.shape}")
    b = None if b is None else as_array("b", b)
    if b is None or b.shape != W.shape[:1]:
        y = by_rule(lambda x, W: _linear(x, W, None), by_matmul, x=x, W=W)
        if b is None:
            return y
        try:
            return y + b
        except (TypeError, ValueError):
            raise ValueError(f"b must have shape (m,) with m the rows of W, got b {b.shape} and W {W.shape}") from None
    return by_rule(_linear, by_matmul, x=x, W=W, b=b)


@custom_vjp
def _linear(x, W, b):
    return fwd(x, W, b)[0]


def fwd(x, W, b):
    y = jnp.einsum("...n,mn->...m", x, W, preferred_element_type=compute_dtype(jnp.result_type(x, W)))
    if b is None:
        return y.astype(jnp.result_type(x, W)), (x, W, None)
    return (y + prepend_axes(upcast(b), y.ndim)).astype(jnp.result_type(x, W, b)), (x, W, aval_token(b))


# y_i = sum_j W_ij x_j + b_i, so dy_i/dx_j = W_ij, dy_i/dW_kj = delta_ik x_j and dy_i/db_k = delta_ik.
#   g^T J_x = g W,   g^T J_W = g x^T (outer product, summed over the batch),   g^T J_b = g (summed over the batch)
# The Jacobian in W has m * m n entries of which m n differ from zero; the product needs just x and g.
def bwd(res, g):
    x, W, b_token = res
    dx, dW = _product("...m,mn->...n", g, W, x), _product("...m,...n->mn", g, x, W)
    return like_primal(dx, x), like_primal(dW, W), None if b_token is None else like_primal(upcast(g), b_token)


def _product(subscripts, a, b, primal):
    """Return an einsum of two arrays, accumulated in float32 or wider, and sharded as a primal under explicit axes.

    Where it sums over a sharded axis, as dW does over the batch, JAX does not choose a sharding by itself.
    """
    product = partial(jnp.einsum, subscripts, preferred_element_type=compute_dtype(jnp.result_type(a, b)))
    return auto_sharded(product, jax.typeof(primal))(a, b)


_linear.defvjp(fwd, bwd)


def reference(x, W, b=None):
    y = jnp.einsum("...n,mn->...m", x, W)
    return y if b is None else y + jnp.broadcast_to(b, y.shape)


def by_matmul(x, W, b=None):
    return x @ W.T if b is None else x @ W.T + b


def jacobian(x, W, b=None):
    in_b = None if b is None else Diagonal(jnp.ones_like(b))
    return (Dense(W), None, in_b)[: 2 if b is None else 3]


RULES = (
    Rule(
        fn=linear,
        reference=reference,
        baselines={"x @ W.T + b": by_matmul},
        cases=(
            Case(("c n", "m n", "m"), {"c": 2, "n": 5, "m": 3}),
            Case(("c d n", "m n"), {"c": 2, "d": 3, "n": 7, "m": 5}),
            Case(("n", "m n", "m"), {"n": 5, "m": 3}),
            Case(("c n", "n n", "n"), {"c": 2, "n": 3}, growth=False),
        ),
        edges=(
            Edge("zero weights", ([[1.0, 2.0]], [[0.0, 0.0], [0.0, 1.0]], [0.0, -1.0])),
            Edge("one feature in, one out", ([[2.0]], [[3.0]], [1.0])),
        ),
        bench=(Case(("c n", "m n", "m"), {"c": 512, "n": 1024, "m": 1024}),),
        residual_bytes=lambda c, n, m: 4 * (c * n + m * n),
        jacobian=jacobian,
        reason="a layer of the lecture; accumulates half precision in float32",
        lecture=True,
        source="Examples 2.5 and 3.2",
    ),
)
