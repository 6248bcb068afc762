"""One convolution for all rows where `jax.vmap` maps x and not the kernel.

JAX maps a custom_vjp by mapping its backward: each row gets a kernel cotangent of its own, and only then are they
added. A convolution adds over its batch as it goes. So the mapped axis is merged into the batch, as JAX does for its
own convolution; that is possible only before the rule is called, where it is known which of the two is mapped. Groups
of the batch become groups of channels first: a batch in which each group has rows of its own cannot be sharded.
"""

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from vjplib.compat import is_vmapped
from vjplib.rules.convolution.call import ConvCall

Convolve = Callable[[jax.Array, jax.Array, ConvCall], jax.Array]


def merge_vmapped_batch(convolve: Convolve) -> Convolve:
    """Return the convolution with an axis that `jax.vmap` maps over x alone merged into the batch.

    Inside a mapped gradient, `jax.vmap(jax.grad(f))`, nothing is merged: there each row's kernel cotangent is wanted.

    Example:
        >>> from vjplib.rules.convolution.call import make_call
        >>> seen = []
        >>> def convolve(x, k, call):
        ...     seen.append(x.shape)
        ...     return call(x, k)
        >>> x, k = jnp.ones((5, 3, 1, 8)), jnp.ones((1, 1, 3))
        >>> call = make_call(x[0], k, window_strides=(1,), padding="SAME")
        >>> rows = jax.vmap(lambda x: merge_vmapped_batch(convolve)(x, k, call))(x)
        >>> seen[-1], rows.shape
        ((15, 1, 8), (5, 3, 1, 8))
    """

    @functools.wraps(convolve)
    def merging(x: jax.Array, k: jax.Array, call: ConvCall) -> jax.Array:
        if not is_vmapped(x) or is_vmapped(k):
            return convolve(x, k, call)
        batch, channels, *_ = call.dimension_numbers.lhs_spec
        if call.batch_group_count > 1:
            x = _batch_groups_to_channels(x, call.batch_group_count, batch, channels)
            call = replace(call, lhs=x.shape, feature_group_count=call.batch_group_count, batch_group_count=1)

        @jax.custom_batching.custom_vmap
        def row(x: jax.Array, k: jax.Array) -> jax.Array:
            return convolve(x, k, call)

        @row.def_vmap
        def rows(size: int, in_batched: Any, x: jax.Array, k: jax.Array) -> tuple[jax.Array, bool]:
            del in_batched
            x, out, out_batch = _merge(x, batch), list(call.out), call.dimension_numbers.out_spec[0]
            out[out_batch] *= size
            y = merging(x, k, replace(call, lhs=x.shape, out=tuple(out)))
            return _split(y, out_batch, (size, call.out[out_batch])), True

        return row(x, k)

    return merging


def _batch_groups_to_channels(x: jax.Array, groups: int, batch: int, channels: int) -> jax.Array:
    """Return x with the groups of its batch axis made the slower part of its axis of channels."""
    x = x.reshape(*x.shape[:batch], groups, x.shape[batch] // groups, *x.shape[batch + 1 :])
    x = jnp.moveaxis(x, batch, channels)
    return x.reshape(*x.shape[:channels], groups * x.shape[channels + 1], *x.shape[channels + 2 :])


def _merge(x: jax.Array, axis: int) -> jax.Array:
    """Return x with its first axis made the slower part of the axis that then lies at `axis`."""
    x = jnp.moveaxis(x, 0, axis)
    return x.reshape(*x.shape[:axis], x.shape[axis] * x.shape[axis + 1], *x.shape[axis + 2 :])


def _split(y: jax.Array, axis: int, sizes: tuple[int, int]) -> jax.Array:
    """Return the inverse of `_merge`."""
    return jnp.moveaxis(y.reshape(*y.shape[:axis], *sizes, *y.shape[axis + 1 :]), axis, 0)
