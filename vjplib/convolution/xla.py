"""XLA's own convolution, as `jax.lax` calls it, and the way from its arguments to a `Problem` and back."""

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from vjplib.compat import separate_call
from vjplib.convolution.problem import Problem

# Taken once: `vjplib.use_in_lax` puts this library's functions in their places.
conv_general_dilated = lax.conv_general_dilated
conv_transpose = lax.conv_transpose
conv_dimension_numbers = lax.conv_dimension_numbers
conv_general_dilated_patches = lax.conv_general_dilated_patches

Array = jax.Array


@dataclass(frozen=True)
class Call:
    """The static arguments of one `lax.conv_general_dilated`, and the shapes it is called with.

    Args:
        lhs: shape of x.
        rhs: shape of the kernel.
        out: shape of y.
        strides: one a spatial dimension.
        padding: (low, high) a spatial dimension.
        lhs_dilation: one a spatial dimension.
        rhs_dilation: one a spatial dimension.
        dimensions: where batch, features and space lie in the three arrays.
        feature_groups: feature_group_count.
        batch_groups: batch_group_count.
        precision: for platforms that know several.
        preferred_element_type: dtype of y, None for that of x.
    """

    lhs: tuple[int, ...]
    rhs: tuple[int, ...]
    out: tuple[int, ...]
    strides: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    lhs_dilation: tuple[int, ...]
    rhs_dilation: tuple[int, ...]
    dimensions: lax.ConvDimensionNumbers
    feature_groups: int
    batch_groups: int
    precision: Any
    preferred_element_type: Any

    def __call__(self, x: Array, k: Array) -> Array:
        """Returns y, computed by XLA's convolution."""
        return conv_general_dilated(
            x,
            k,
            self.strides,
            self.padding,
            self.lhs_dilation,
            self.rhs_dilation,
            self.dimensions,
            self.feature_groups,
            self.batch_groups,
            self.precision,
            self.preferred_element_type,
        )

    def input_cotangent(self, g: Array, k: Array, x: Array) -> Array:
        """Returns dx by XLA's convolution, as JAX transposes it; of x only shape and dtype count."""
        (dx,) = jax.linear_transpose(lambda x: self(x, k), x)(g)
        return dx

    def kernel_cotangent(self, g: Array, x: Array, k: Array) -> Array:
        """Returns dk by XLA's convolution, as JAX transposes it; of k only shape and dtype count."""
        (dk,) = jax.linear_transpose(lambda k: self(x, k), k)(g)
        return dk

    @property
    def problem(self) -> Problem:
        """The same convolution in canonical form; groups of the batch become groups of channels."""
        batch, *size = self._sizes(self.lhs, self.dimensions.lhs_spec)
        features, *kernel = self._sizes(self.rhs, self.dimensions.rhs_spec)
        _, *out = self._sizes(self.out, self.dimensions.out_spec)
        ones = (1,) * len(size)
        return Problem(
            batch=batch // self.batch_groups,
            size=tuple(size),
            channels=self.lhs[self.dimensions.lhs_spec[1]] * self.batch_groups,
            kernel=tuple(kernel),
            features=features,
            # What a stride, or a dilation, of a single place steps over is nothing.
            strides=tuple(s if m > 1 else 1 for s, m in zip(self.strides, out, strict=True)),
            low=tuple(low for low, _ in self.padding),
            lhs_dilation=tuple(d if n > 1 else 1 for d, n in zip(self.lhs_dilation, size, strict=True)),
            rhs_dilation=tuple(r if n > 1 else 1 for r, n in zip(self.rhs_dilation, kernel, strict=True)) or ones,
            groups=self.feature_groups * self.batch_groups,
            out=tuple(out),
        )

    @staticmethod
    def _sizes(shape: Sequence[int], spec: Sequence[int]) -> list[int]:
        return [shape[spec[0]], *(shape[i] for i in spec[2:])]

    def x_to_canonical(self, x: Array) -> Array:
        """Returns x as (batch, *size, channels)."""
        x = _transposed(x, _channels_last(self.dimensions.lhs_spec))
        if self.batch_groups == 1:
            return x
        x = x.reshape(self.batch_groups, -1, *x.shape[1:])
        return jnp.moveaxis(x, 0, -2).reshape(*x.shape[1:-1], -1)

    def x_from_canonical(self, x: Array) -> Array:
        """Returns the inverse of `x_to_canonical`."""
        if self.batch_groups > 1:
            x = jnp.moveaxis(x.reshape(*x.shape[:-1], self.batch_groups, -1), -2, 0)
            x = x.reshape(-1, *x.shape[2:])
        return _transposed(x, _inverse(_channels_last(self.dimensions.lhs_spec)))

    def y_to_canonical(self, y: Array) -> Array:
        """Returns y as (batch, *out, features)."""
        return _transposed(y, _channels_last(self.dimensions.out_spec))

    def y_from_canonical(self, y: Array) -> Array:
        """Returns the inverse of `y_to_canonical`."""
        return _transposed(y, _inverse(_channels_last(self.dimensions.out_spec)))

    def k_to_canonical(self, k: Array) -> Array:
        """Returns k as (*kernel, channels / groups, features)."""
        return jnp.transpose(k, _features_last(self.dimensions.rhs_spec))

    def k_from_canonical(self, k: Array) -> Array:
        """Returns the inverse of `k_to_canonical`."""
        return jnp.transpose(k, _inverse(_features_last(self.dimensions.rhs_spec)))

    @property
    def empty(self) -> bool:
        """Whether any of the three arrays has no element."""
        return 0 in (math.prod(self.lhs), math.prod(self.rhs), math.prod(self.out))


def call_of(
    lhs: tuple[int, ...],
    rhs: tuple[int, ...],
    y: jax.ShapeDtypeStruct,
    *,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    lhs_dilation: Sequence[int] | None,
    rhs_dilation: Sequence[int] | None,
    dimension_numbers: Any,
    feature_group_count: int,
    batch_group_count: int,
    precision: Any,
    preferred_element_type: Any,
) -> Call:
    """Returns the call that these arguments make, which lax has found right, with y its result."""
    dimensions = conv_dimension_numbers(lhs, rhs, dimension_numbers)
    ones = (1,) * (len(lhs) - 2)
    strides, d, r = (
        tuple(map(operator.index, ones if given is None else given))
        for given in (window_strides, lhs_dilation, rhs_dilation)
    )
    if isinstance(padding, str):
        window = [(rhs[i] - 1) * e + 1 for i, e in zip(dimensions.rhs_spec[2:], r, strict=True)]
        padding = lax.padtype_to_pads([lhs[i] for i in dimensions.lhs_spec[2:]], window, strides, padding)
    return Call(
        tuple(lhs),
        tuple(rhs),
        tuple(y.shape),
        strides,
        tuple((operator.index(low), operator.index(high)) for low, high in padding),
        d,
        r,
        lax.ConvDimensionNumbers(*map(tuple, dimensions)),
        operator.index(feature_group_count),
        operator.index(batch_group_count),
        tuple(precision) if isinstance(precision, list) else precision,
        None if preferred_element_type is None else y.dtype,
    )


def _channels_last(spec: Sequence[int]) -> tuple[int, ...]:
    return (spec[0], *spec[2:], spec[1])


def _features_last(spec: Sequence[int]) -> tuple[int, ...]:
    return (*spec[2:], spec[1], spec[0])


# A transpose fused into a sum of shifted copies makes it read memory in strides: 130 ms for 20 at 8 x 32 x 96 x 96.
_apart = separate_call(lax.transpose, static_argnames=("permutation",))


def _transposed(x: Array, permutation: tuple[int, ...]) -> Array:
    """Returns x transposed, on CPU by a call of its own, unless nothing moves."""
    return x if permutation == tuple(range(x.ndim)) else _apart(x, permutation=permutation)


def _inverse(permutation: Sequence[int]) -> tuple[int, ...]:
    return tuple(int(i) for i in np.argsort(permutation))
