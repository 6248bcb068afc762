"""Cotangents that fit their primals: every backward rule ends in `like_primal`."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.core import ShapedArray

from vjplib.compat import psum_to_primal


@jax.tree_util.register_static
@dataclass(frozen=True)
class AvalToken:
    """Stands in the residuals for an argument whose numbers the backward does not need; it has no arrays."""

    aval: ShapedArray
    """The argument's abstract value: shape, dtype, and how it lies on devices."""


def aval_token(x: jax.Array) -> AvalToken:
    """Return a token of x for the residuals, for `like_primal`."""
    return AvalToken(jax.typeof(x))


def like_primal(dx: jax.Array, primal: jax.Array | AvalToken) -> jax.Array:
    """Return dx as a cotangent of the primal: every `bwd` returns `like_primal(dx, x)` for each argument x.

    In this order it is

    1. summed over the axes along which the primal was broadcast,
    2. in `jax.shard_map`, summed over the mesh axes along which dx varies and the primal is replicated,
    3. cast to the primal's dtype, for rules compute in float32 or wider.

    Args:
        dx: the cotangent, of the primal's shape or of one that it broadcasts to.
        primal: the argument, an array of its type (such as an output of the same shape and dtype), or its `aval_token`.

    Example:
        >>> like_primal(jnp.ones((2, 3)), aval_token(jnp.ones((3,), jnp.bfloat16)))
        Array([2, 2, 2], dtype=bfloat16)
    """
    aval = primal.aval if isinstance(primal, AvalToken) else jax.typeof(primal)
    return psum_to_primal(unbroadcast(dx, aval.shape), aval).astype(aval.dtype)


def unbroadcast(g: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Return g summed over the axes along which an array of this shape was broadcast.

    Broadcasting copies; the transpose of a copy is a sum. So the cotangent of a broadcast argument is the sum of the
    cotangents of its copies, in their dtype.
    """
    if g.shape == shape:
        return g
    extra = g.ndim - len(shape)
    stretched = tuple(range(extra)) + tuple(extra + i for i, n in enumerate(shape) if n == 1 != g.shape[extra + i])
    return jnp.sum(g, axis=stretched, dtype=g.dtype, keepdims=True).reshape(shape) if stretched else g.reshape(shape)


def prepend_axes(a: jax.Array, ndim: int) -> jax.Array:
    """Return a with leading axes of size 1 up to a rank: users can forbid JAX's implicit rank promotion."""
    return jnp.expand_dims(a, range(ndim - a.ndim))
