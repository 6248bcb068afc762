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
from jax import Array, lax

from vjplib.compat import is_vmapped
from vjplib.rules.convolution.call import ConvCall

Convolve = Callable[[Array, Array, ConvCall], Array]


def merge_vmapped_batch(convolve: Convolve) -> Convolve:
    """Return the convolution with an axis that `jax.vmap` maps over x alone merged into the batch.

    Inside a mapped gradient, `jax.vmap(jax.grad(f))`, nothing is merged: there each row's kernel cotangent is wanted.
    """

    @functools.wraps(convolve)
    def merging(x: Array, k: Array, call: ConvCall) -> Array:
        if not is_vmapped(x) or is_vmapped(k):
            return convolve(x, k, call)
        batch, channels, *_ = call.dimension_numbers.lhs_spec
        if call.batch_group_count > 1:
            shape = (*x.shape[:batch], call.batch_group_count, -1, *x.shape[batch + 1 :])
            x = _merge(x.reshape(shape), batch, channels)
            call = replace(call, lhs=x.shape, feature_group_count=call.batch_group_count, batch_group_count=1)

        @jax.custom_batching.custom_vmap
        def row(x: Array, k: Array) -> Array:
            return convolve(x, k, call)

        @row.def_vmap
        def rows(size: int, in_batched: Any, x: Array, k: Array) -> tuple[Array, bool]:
            del in_batched
            x, out, at = _merge(x, 0, batch), list(call.out), call.dimension_numbers.out_spec[0]
            out[at] *= size
            y = merging(x, k, replace(call, lhs=x.shape, out=tuple(out)))
            return jnp.moveaxis(y.reshape(*call.out[:at], size, *call.out[at:]), at, 0), True

        return row(x, k)

    return merging


def _merge(x: Array, axis: int, into: int) -> Array:
    """Return x with an axis moved to be the slower part of the axis that then lies at `into`."""
    return lax.collapse(jnp.moveaxis(x, axis, into), into, into + 2)
