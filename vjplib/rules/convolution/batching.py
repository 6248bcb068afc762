"""One convolution for all rows where `jax.vmap` maps x and not the kernel.

JAX maps a custom_vjp by mapping its backward: each row gets a kernel cotangent of its own, and only then are they
added. A convolution adds over its batch as it goes. So the mapped axis becomes part of the batch, as it does when JAX
maps its own convolution, which it can only where the two are told apart before the rule is called. Groups of the batch
become groups of channels first: a batch in which each group has rows of its own cannot be shared out among devices.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from vjplib.compat import mapped


def whole_batch(convolve: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """Returns the convolution given, but that an axis mapped over lhs alone is merged into the batch.

    Inside a mapped gradient, `jax.vmap(jax.grad(f))`, nothing is merged: there each row's kernel cotangent is wanted.

    Args:
        convolve: takes the arguments of `lax.conv_general_dilated`, those behind lhs and rhs by their names.

    Example:
        >>> seen = []
        >>> def convolve(lhs, rhs, **kwargs):
        ...     seen.append(lhs.shape)
        ...     return lax.conv_general_dilated(lhs, rhs, **kwargs)
        >>> x, k = jnp.ones((5, 3, 1, 8)), jnp.ones((1, 1, 3))
        >>> rows = jax.vmap(lambda x: whole_batch(convolve)(x, k, window_strides=(1,), padding="SAME"))(x)
        >>> seen[-1], rows.shape
        ((15, 1, 8), (5, 3, 1, 8))
    """

    @functools.wraps(convolve)
    def call(lhs: jax.Array, rhs: jax.Array, **arguments: Any) -> jax.Array:
        if not mapped(lhs) or mapped(rhs):
            return convolve(lhs, rhs, **arguments)
        dimensions = lax.conv_dimension_numbers(lhs.shape, rhs.shape, arguments.get("dimension_numbers"))
        groups = arguments.get("batch_group_count", 1)
        if groups != 1:
            (batch, channels), (features, depth) = (
                [a.shape[i] for i in spec[:2]] for a, spec in ((lhs, dimensions.lhs_spec), (rhs, dimensions.rhs_spec))
            )
            others = arguments.get("feature_group_count", 1)
            counts = all(isinstance(n, (int, np.integer)) for n in (groups, others)) and groups > 0 and others == 1
            if not counts or batch % groups or features % groups or channels != depth:
                return convolve(lhs, rhs, **arguments)  # lax says what is wrong
            arguments |= {"batch_group_count": 1, "feature_group_count": groups}
            return call(_regrouped(lhs, groups, *dimensions.lhs_spec[:2]), rhs, **arguments)

        @jax.custom_batching.custom_vmap
        def row(lhs: jax.Array, rhs: jax.Array) -> jax.Array:
            return convolve(lhs, rhs, **arguments)

        @row.def_vmap
        def rows(size: int, mapped: Any, lhs: jax.Array, rhs: jax.Array) -> tuple[jax.Array, bool]:
            del mapped
            axis = dimensions.lhs_spec[0]
            y = call(_merged(lhs, axis), rhs, **arguments)
            return _split(y, dimensions.out_spec[0], (size, lhs.shape[1 + axis])), True

        return row(lhs, rhs)

    return call


def _regrouped(x: jax.Array, groups: int, batch: int, channels: int) -> jax.Array:
    """Returns x with the groups of its batch axis made the slower part of its axis of channels."""
    x = x.reshape(*x.shape[:batch], groups, x.shape[batch] // groups, *x.shape[batch + 1 :])
    x = jnp.moveaxis(x, batch, channels)
    return x.reshape(*x.shape[:channels], groups * x.shape[channels + 1], *x.shape[channels + 2 :])


def _merged(x: jax.Array, axis: int) -> jax.Array:
    """Returns x with its first axis made the slower part of the axis that comes to lie at `axis`."""
    x = jnp.moveaxis(x, 0, axis)
    return x.reshape(*x.shape[:axis], x.shape[axis] * x.shape[axis + 1], *x.shape[axis + 2 :])


def _split(y: jax.Array, axis: int, sizes: tuple[int, int]) -> jax.Array:
    """Returns the inverse of `_merged`."""
    return jnp.moveaxis(y.reshape(*y.shape[:axis], *sizes, *y.shape[axis + 1 :]), axis, 0)
