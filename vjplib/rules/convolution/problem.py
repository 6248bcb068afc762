"""Problem: the sizes of one convolution in canonical layout, and those of its transpose."""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import jax.numpy as jnp
from jax import lax

Sizes = tuple[int, ...]

MAX_PADDED = 2**26  # elements of a padded row of x, beyond which it is padded only if the arrays are as large


@dataclass(frozen=True)
class Problem:
    """The convolution y_i = sum_j k_j x_l over all j, l with s i + r j = d l + p, one equation a spatial dimension.

    Arrays are channels last: x (batch, *size, channels), k (*kernel, channels / groups, features) and
    y (batch, *out, features). Within a group, y sums over channels as well. The three indices play the same part:
    reading the equation for l, given i and j, is the cotangent of x; reading it for j, given i and l, is that of k.

    Example:
        >>> p = Problem(1, (5,), 2, (3,), 2, (2,), (1,), (1,), (1,), 2, (3,))
        >>> p.transposed.size, p.transposed.out, p.transposed.strides, p.transposed.lhs_dilation
        ((3,), (5,), (1,), (2,))
    """

    batch: int
    size: Sizes  # of x
    channels: int
    kernel: Sizes
    features: int
    strides: Sizes  # s
    low: Sizes  # p, the zeros before x; negative to crop
    lhs_dilation: Sizes  # d
    rhs_dilation: Sizes  # r
    groups: int
    out: Sizes  # of y, which fix the zeros after x

    @property
    def ndim(self) -> int:
        """The number of spatial dimensions."""
        return len(self.size)

    @property
    def taps(self) -> int:
        """The number of taps of the kernel."""
        return math.prod(self.kernel)

    @property
    def tap_indices(self) -> Iterator[Sizes]:
        """The index of each tap in the kernel, row-major."""
        return itertools.product(*map(range, self.kernel))

    @property
    def depth(self) -> int:
        """The number of channels of a group."""
        return self.channels // self.groups

    @property
    def width(self) -> int:
        """The number of features of a group."""
        return self.features // self.groups

    @property
    def high(self) -> Sizes:
        """The zeros after the dilated x that give y the size `out`; negative to crop."""
        fields = (self.strides, self.out, self.rhs_dilation, self.kernel, self.lhs_dilation, self.size, self.low)
        return tuple(s * (m - 1) + r * (k - 1) - d * (n - 1) - p for s, m, r, k, d, n, p in zip(*fields, strict=True))

    @property
    def sprawls(self) -> bool:
        """True if x, padded and dilated, is too large to make: gigabytes beside small arrays."""
        ends = zip(self.size, self.low, self.high, self.lhs_dilation, strict=True)
        whole = math.prod(max(0, d * (n - 1) + 1 + max(0, low) + max(0, high)) for n, low, high, d in ends)
        x, k, y = map(math.prod, (self.size, self.kernel, self.out))
        elements = self.channels * x + self.features * (self.depth * k + y)
        return self.channels * whole > max(MAX_PADDED, 64 * elements)

    @cached_property
    def transposed(self) -> "Problem":
        """The convolution that computes the cotangent of x from the cotangent of y and the `transposed_kernel`.

        With j' = k - 1 - j the equation reads d l + r j' = s i + (r (k - 1) - p): strides and lhs_dilation change
        places.
        """
        return replace(
            self,
            size=self.out,
            channels=self.features,
            features=self.channels,
            strides=self.lhs_dilation,
            low=tuple(r * (k - 1) - p for r, k, p in zip(self.rhs_dilation, self.kernel, self.low, strict=True)),
            lhs_dilation=self.strides,
            out=self.size,
        )

    def transposed_kernel(self, k: jnp.ndarray) -> jnp.ndarray:
        """Return k reversed in space, with channels and features of each group exchanged."""
        k = lax.rev(k, tuple(range(self.ndim)))
        k = k.reshape(*self.kernel, self.depth, self.groups, self.width)
        return jnp.swapaxes(k, -1, -3).reshape(*self.kernel, self.width, self.channels)
