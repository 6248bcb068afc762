"""Cotangents: what every backward rule needs to return one that fits its primal."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from vjplib.compat import as_varying, automatic


def prepend_axes(a: jax.Array, ndim: int) -> jax.Array:
    """Returns a with as many leading axes of size 1 as give it a rank: JAX may be told to add none by itself.

    Example:
        >>> prepend_axes(jnp.ones(3), 2).shape
        (1, 3)
    """
    return jnp.expand_dims(a, range(ndim - a.ndim))


def unbroadcast(g: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Returns g summed over the axes along which an array of this shape was broadcast.

    Broadcasting copies; the transpose of a copy is a sum. So the cotangent of a broadcast argument is the sum of the
    cotangents of its copies.

    Args:
        g: a cotangent of the broadcast shape.
        shape: the shape before broadcasting.

    Returns:
        An array of that shape and of g's dtype.

    Example:
        >>> unbroadcast(jnp.ones((2, 3)), (3,)).tolist()
        [2.0, 2.0, 2.0]
    """
    if g.shape == shape:
        return g
    extra = g.ndim - len(shape)
    stretched = tuple(range(extra)) + tuple(extra + i for i, n in enumerate(shape) if n == 1 != g.shape[extra + i])
    return jnp.sum(g, axis=stretched, dtype=g.dtype, keepdims=True).reshape(shape) if stretched else g.reshape(shape)


def aval_token(x: jax.Array) -> jax.Array:
    """Returns an array without elements that remembers x's shape, dtype and devices, for a residual."""
    return jax.lax.slice_in_dim(jnp.expand_dims(x, 0), 0, 0)


def like_primal(g: jax.Array, kept: jax.Array) -> jax.Array:
    """Returns g as the cotangent of the argument whose `form` was kept: its shape and dtype, broadcasting summed.

    Example:
        >>> like_primal(jnp.ones((2, 3)), aval_token(jnp.ones((3,), jnp.bfloat16)))
        Array([2, 2, 2], dtype=bfloat16)
    """
    return as_varying(unbroadcast(g, kept.shape[1:]), kept).astype(kept.dtype)


def sharded_like(primal: jax.Array, f: Callable[..., jax.Array], *arrays: jax.Array) -> jax.Array:
    """Returns f(*arrays), the cotangent of an argument, made to be where that is: summed over all that share it.

    Under a mesh with explicit axes it gets the argument's sharding; in `jax.shard_map` it is summed over the axes along
    which it varies and the argument does not. Without devices to share the work it is f(*arrays).

    Args:
        primal: the argument, or whatever is sharded as it is.
        f: a function of the arrays.
        *arrays: what the cotangent is made of.

    Example:
        >>> sharded_like(jnp.ones(3), lambda g, x: g * x, jnp.ones(3), jnp.arange(3.0)).tolist()
        [0.0, 1.0, 2.0]
    """
    return as_varying(automatic(f, jax.typeof(primal))(*arrays), primal)
