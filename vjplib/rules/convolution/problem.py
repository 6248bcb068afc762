"""Problem: the sizes of one convolution in canonical form, and those of its transpose."""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import jax.numpy as jnp
from jax import lax

Sizes = tuple[int, ...]

MOST_PADDED = 2**26
"""Numbers of one row of x, padded, beyond which no formulation makes it unless the arrays themselves are large."""


@dataclass(frozen=True)
class Problem:
    """The convolution y_i = sum_j k_j x_l over all j, l with s i + r j = d l + p, one equation a spatial dimension.

    Arrays are channels last: x (batch, *size, channels), k (*kernel, channels / groups, features) and
    y (batch, *out, features). Within a group, y sums over channels as well. The three indices play the same part:
    reading the equation for l, given i and j, is the cotangent of x; reading it for j, given i and l, is that of k.

    Args:
        batch: rows of x.
        size: spatial sizes of x.
        channels: of x.
        kernel: spatial sizes of k.
        features: channels of y.
        strides: s.
        low: p, the zeros before x, which may be negative (places cut off).
        lhs_dilation: d.
        rhs_dilation: r.
        groups: into which channels and features are divided.
        out: spatial sizes of y, which fix the zeros after x.

    Example:
        >>> p = Problem(1, (5,), 2, (3,), 2, (2,), (1,), (1,), (1,), 2, (3,))
        >>> p.transposed.size, p.transposed.out, p.transposed.strides, p.transposed.lhs_dilation
        ((3,), (5,), (1,), (2,))
    """

    batch: int
    size: Sizes
    channels: int
    kernel: Sizes
    features: int
    strides: Sizes
    low: Sizes
    lhs_dilation: Sizes
    rhs_dilation: Sizes
    groups: int
    out: Sizes

    @property
    def ndim(self) -> int:
        """How many spatial dimensions there are."""
        return len(self.size)

    @property
    def taps(self) -> int:
        """How many places the kernel has."""
        return math.prod(self.kernel)

    @property
    def every_tap(self) -> Iterator[Sizes]:
        """The kernel's places, row-major."""
        return itertools.product(*map(range, self.kernel))

    @property
    def depth(self) -> int:
        """How many channels a group has."""
        return self.channels // self.groups

    @property
    def width(self) -> int:
        """How many features a group has."""
        return self.features // self.groups

    @property
    def high(self) -> Sizes:
        """The zeros after the dilated x that make `out` come out, negative where places are cut off."""
        return tuple(
            s * (m - 1) + r * (k - 1) + 1 - (d * (n - 1) + 1) - p
            for s, m, r, k, d, n, p in zip(
                self.strides,
                self.out,
                self.rhs_dilation,
                self.kernel,
                self.lhs_dilation,
                self.size,
                self.low,
                strict=True,
            )
        )

    @property
    def macs(self) -> int:
        """Multiplications of the direct sum, those with padding included."""
        return self.batch * math.prod(self.out) * self.taps * self.depth * self.features

    @property
    def sprawls(self) -> bool:
        """Whether x padded and dilated is too large to be made: gigabytes, beside small arrays."""
        ends = zip(self.size, self.low, self.high, self.lhs_dilation, strict=True)
        whole = math.prod(max(0, d * (n - 1) + 1 + max(0, low) + max(0, high)) for n, low, high, d in ends)
        x, k, y = (
            channels * math.prod(sizes)
            for channels, sizes in ((self.channels, self.size), (self.depth, self.kernel), (self.features, self.out))
        )
        return self.channels * whole > max(MOST_PADDED, 64 * (x + self.features * k + y))

    @cached_property
    def transposed(self) -> "Problem":
        """The convolution that gives the cotangent of x from that of y and the `transposed_kernel`.

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
        """Returns k back to front, and in each group its channels and features exchanged."""
        k = lax.rev(k, tuple(range(self.ndim)))
        k = k.reshape(*self.kernel, self.depth, self.groups, self.width)
        return jnp.swapaxes(k, -1, -3).reshape(*self.kernel, self.width, self.channels)


def valid(problem: Problem, tap: Sizes) -> tuple[tuple[int, int, int], ...]:
    """Returns for each dimension the outputs [i0, i1) that this tap feeds, and l0, the place of x that feeds i0.

    For problems without lhs_dilation: there l = s i + r j - p, so that a slice of x with stride s feeds a slice of y.
    """
    ranges = []
    for s, p, r, n, m, j in zip(
        problem.strides, problem.low, problem.rhs_dilation, problem.size, problem.out, tap, strict=True
    ):
        first = max(0, -((r * j - p) // s))
        last = min(m, (n - 1 - r * j + p) // s + 1)
        ranges.append((first, max(first, last), s * first + r * j - p))
    return tuple(ranges)
