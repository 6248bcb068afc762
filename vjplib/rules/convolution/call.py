"""One call of `lax.conv_general_dilated`: its static arguments, its canonical layout, and XLA's own convolution."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from vjplib.compat import is_symbolic, no_inline
from vjplib.rules._arguments import convolution_arguments
from vjplib.rules.convolution.problem import Problem

# Bound at import: `vjplib.use_in_lax` puts this library's functions in their places.
lax_convolution = lax.conv_general_dilated
lax_conv_transpose = lax.conv_transpose
lax_patches = lax.conv_general_dilated_patches
conv_dimension_numbers = lax.conv_dimension_numbers

PARAMETERS = (
    *("window_strides", "padding", "lhs_dilation", "rhs_dilation", "dimension_numbers"),
    *("feature_group_count", "batch_group_count", "precision", "preferred_element_type", "out_sharding"),
)


@dataclass(frozen=True)
class ConvCall:
    """The static arguments of one `lax.conv_general_dilated`, and the shapes and dtype of its arrays; hashable.

    `lhs`, `rhs` and `out` are the shapes of x, of the kernel and of y, and `dtype` is that of x and of the kernel. The
    others are lax's arguments: dilations are given, `dimension_numbers` are axes, and only padding may be a string.
    """

    lhs: tuple[int, ...]
    rhs: tuple[int, ...]
    out: tuple[int, ...]
    dtype: Any
    window_strides: tuple[int, ...]
    padding: tuple[tuple[int, int], ...] | str
    lhs_dilation: tuple[int, ...]
    rhs_dilation: tuple[int, ...]
    dimension_numbers: lax.ConvDimensionNumbers
    feature_group_count: int = 1
    batch_group_count: int = 1
    precision: Any = None
    preferred_element_type: Any = None
    out_sharding: Any = None

    def __call__(self, x: Array, k: Array) -> Array:
        """Return y by XLA's convolution; x is padded before it where XLA:CPU would misread the pads.

        This holds on every platform: inside `lax.platform_dependent` XLA:CPU may run a convolution a hundred times
        slower.
        """
        call = self.within_reach
        return lax_convolution(self.pad(x), k, **{name: getattr(call, name) for name in PARAMETERS})

    @property
    def window(self) -> tuple[Any, Any, Any, Any, Any]:
        """The arguments window_strides to dimension_numbers of lax's functions, in their order."""
        return self.window_strides, self.padding, self.lhs_dilation, self.rhs_dilation, self.dimension_numbers

    def input_grad(self, g: Array, k: Array, x: Array) -> Array:
        """Return dx by XLA's convolution, as JAX transposes it; only the shape and dtype of x are used."""
        (dx,) = jax.linear_transpose(lambda x: self(x, k), x)(g)
        return dx

    def weight_grad(self, g: Array, x: Array, k: Array) -> Array:
        """Return dk by XLA's convolution, as JAX transposes it; only the shape and dtype of k are used."""
        (dk,) = jax.linear_transpose(lambda k: self(x, k), k)(g)
        return dk

    @cached_property
    def pads(self) -> tuple[tuple[int, int], ...]:
        """The padding as (low, high) for each spatial dimension."""
        if not isinstance(self.padding, str):
            return self.padding
        size, kernel, _ = self._spatial_sizes
        window = [(k - 1) * r + 1 for k, r in zip(kernel, self.rhs_dilation, strict=True)]
        return tuple(lax.padtype_to_pads(size, window, self.window_strides, self.padding))

    @cached_property
    def within_reach(self) -> "ConvCall":
        """The convolution of `pad(x)` that has the same y and that XLA:CPU computes correctly."""
        if not any(map(any, self.excess)):
            return self
        lhs, padding, dilation = list(self.lhs), list(self.pads), list(self.lhs_dilation)
        for axis, (at, (low, high, interior)) in enumerate(
            zip(self.dimension_numbers.lhs_spec[2:], self.excess, strict=True)
        ):
            if (low, high, interior) != (0, 0, 0):
                lhs[at] = low + (lhs[at] - 1) * (interior + 1) + 1 + high
                padding[axis], dilation[axis] = (0, 0), 1
        return replace(self, lhs=tuple(lhs), padding=tuple(padding), lhs_dilation=tuple(dilation))

    @cached_property
    def excess(self) -> tuple[tuple[int, int, int], ...]:
        """The (low, high, interior) pads of each spatial axis of x for `lax.pad`; zeros where XLA:CPU is right."""
        if self.known and not self.empty and self.problem.sprawls:
            return ((0, 0, 0),) * len(self.window_strides)
        low, high = zip(*self.pads, strict=True) if self.pads else ((), ())
        return tuple(
            map(excess, *self._spatial_sizes, self.window_strides, low, high, self.lhs_dilation, self.rhs_dilation)
        )

    @property
    def _spatial_sizes(self) -> list[list[int]]:
        """The spatial sizes of x, of the kernel and of y."""
        shapes = zip((self.lhs, self.rhs, self.out), self.dimension_numbers, strict=True)
        return [[shape[i] for i in spec[2:]] for shape, spec in shapes]

    @cached_property
    def used_taps(self) -> tuple[tuple[int, int], ...]:
        """The taps [first, end) of each spatial axis of the kernel that multiply any element of x."""
        low = (low for low, _ in self.pads)
        return tuple(
            map(used_taps, *self._spatial_sizes, self.window_strides, low, self.lhs_dilation, self.rhs_dilation)
        )

    @cached_property
    def trimmed(self) -> "ConvCall":
        """The same convolution; where x is too large to pad, by a kernel cut to its used taps."""
        if self.out_sharding is not None or not self.known or self.empty:
            return self
        if not (self.problem.sprawls or self.problem.transposed.sprawls):
            return self
        rhs, padding = list(self.rhs), list(self.pads)
        for axis, (at, (first, end)) in enumerate(
            zip(self.dimension_numbers.rhs_spec[2:], self.used_taps, strict=True)
        ):
            (low, high), r = padding[axis], self.rhs_dilation[axis]
            padding[axis], rhs[at] = (low - r * first, high - r * (rhs[at] - end)), end - first
        return replace(self, rhs=tuple(rhs), padding=tuple(padding))

    def trim(self, k: Array) -> Array:
        """Return the kernel of `trimmed`."""
        used = dict(zip(self.dimension_numbers.rhs_spec[2:], self.used_taps, strict=True))
        first, end = zip(*(used.get(i, (0, n)) for i, n in enumerate(k.shape)), strict=True)
        return lax.slice(k, first, end)

    def pad(self, x: Array) -> Array:
        """Return x with its excess pads applied: the argument of `within_reach`."""
        if self.within_reach is self:
            return x
        pads = dict(zip(self.dimension_numbers.lhs_spec[2:], self.excess, strict=True))
        return lax.pad(x, jnp.zeros((), x.dtype), [pads.get(i, (0, 0, 0)) for i in range(x.ndim)])

    @property
    def problem(self) -> Problem:
        """The same convolution in canonical layout; groups of the batch become groups of channels."""
        size, kernel, out = self._spatial_sizes
        batch, channels, *_ = self.dimension_numbers.lhs_spec
        return Problem(
            batch=self.lhs[batch] // self.batch_group_count,
            size=tuple(size),
            channels=self.lhs[channels] * self.batch_group_count,
            kernel=tuple(kernel),
            features=self.rhs[self.dimension_numbers.rhs_spec[0]],
            # A stride over a single output, or a dilation of a single element, has no effect.
            strides=_steps(self.window_strides, out),
            low=tuple(low for low, _ in self.pads),
            lhs_dilation=_steps(self.lhs_dilation, size),
            rhs_dilation=_steps(self.rhs_dilation, kernel),
            groups=self.feature_group_count * self.batch_group_count,
            out=tuple(out),
        )

    def x_to_canonical(self, x: Array) -> Array:
        """Return x as (batch, *size, channels)."""
        x = _channels_last(x, self.dimension_numbers.lhs_spec)
        if self.batch_group_count == 1:
            return x
        x = x.reshape(self.batch_group_count, -1, *x.shape[1:])
        return jnp.moveaxis(x, 0, -2).reshape(*x.shape[1:-1], -1)

    def x_from_canonical(self, x: Array) -> Array:
        """Return the inverse of `x_to_canonical`."""
        if self.batch_group_count > 1:
            x = jnp.moveaxis(x.reshape(*x.shape[:-1], self.batch_group_count, -1), -2, 0)
            x = x.reshape(-1, *x.shape[2:])
        return _channels_last(x, self.dimension_numbers.lhs_spec, inverse=True)

    def y_to_canonical(self, y: Array) -> Array:
        """Return y as (batch, *out, features)."""
        return _channels_last(y, self.dimension_numbers.out_spec)

    def y_from_canonical(self, y: Array) -> Array:
        """Return the inverse of `y_to_canonical`."""
        return _channels_last(y, self.dimension_numbers.out_spec, inverse=True)

    def k_to_canonical(self, k: Array) -> Array:
        """Return k as (*kernel, channels / groups, features)."""
        features, channels, *space = self.dimension_numbers.rhs_spec
        return jnp.transpose(k, (*space, channels, features))

    def k_from_canonical(self, k: Array) -> Array:
        """Return the inverse of `k_to_canonical`."""
        features, channels, *space = self.dimension_numbers.rhs_spec
        return jnp.transpose(k, np.argsort((*space, channels, features)).tolist())

    def out_dtype(self, x: Array) -> Any:
        """Return the dtype of y, where x may be upcast: verification runs a call in float64 too."""
        return x.dtype if self.preferred_element_type is None else self.preferred_element_type

    @property
    def empty(self) -> bool:
        """True if any of the three arrays is known to have no elements."""
        return any(n == 0 for shape in (self.lhs, self.rhs, self.out) for n in shape)

    @property
    def known(self) -> bool:
        """True if every size except the batch is known while tracing; symbolic sizes of `jax.export` are not."""
        first = 1 if self.batch_group_count == 1 else 0
        shapes = zip((self.lhs, self.out), self.dimension_numbers[::2], strict=True)
        return not is_symbolic(*self.rhs, *(shape[i] for shape, spec in shapes for i in spec[first:]))


# XLA:CPU misreads float32 where a pad is negative or exceeds the kernel's reach: its size less one, dilated
# (openxla/xla#48713). JAX differentiates a convolution by others, which read s i + r j = d l + p for another of the
# three indices, with another of the three arrays as kernel, again for each order: six convolutions in all. With h the
# high pad less what the stride leaves unused, each pads by low and h, or by a reach less low and h, so that
#   0 <= low, h <= reach of k and of y,   reach of k - low, reach of k - h <= reach of x
# make all six right. Any other axis is padded by lax.pad: three of the six then have no pad, and three a whole reach.
def excess(n: int, k: int, m: int, s: int, low: int, high: int, d: int, r: int) -> tuple[int, int, int]:
    """Return the (low, high, interior) pads of one axis of x for `lax.pad`; zeros where XLA:CPU pads correctly.

    Along the axis x, the kernel and y have sizes n, k and m. They are zeros if no derivative of the convolution pads
    beyond a reach, or an array is empty. A symbolic size (of `jax.export`) counts as too small; with a stride JAX
    cannot differentiate it, and the forward alone counts.

    Example:
        >>> excess(8, 3, 10, 1, 2, 2, 1, 1), excess(8, 3, 10, 1, 4, 0, 1, 1), excess(8, 2, 4, 2, 0, 1, 1, 1)
        ((0, 0, 0), (4, 0, 0), (0, 0, 0))
    """
    if n == 0 or k == 0 or m == 0:
        return 0, 0, 0
    reach_x, reach_k, reach_y = d * (n - 1), r * (k - 1), s * (m - 1)
    if is_symbolic(n, k, m):
        string = is_symbolic(low, high)  # only "SAME" pads by unknown sizes, and within reach
        within = string or (s > 1 and 0 <= min(low, high) <= max(low, high) <= reach_k)
        return (0, 0, 0) if within else (low, high, d - 1)
    h = reach_y + reach_k - reach_x - low
    if high <= reach_k and all(max(0, reach_k - reach_x) <= p <= min(reach_k, reach_y) for p in (low, h)):
        return 0, 0, 0
    return low, h, d - 1


def used_taps(n: int, k: int, m: int, s: int, p: int, d: int, r: int) -> tuple[int, int]:
    """Return the taps [first, end) of one axis, of k, for which s i + r j = d l + p may hold with i < m and l < n.

    Example:
        >>> used_taps(5, 3, 5, 1, 1, 1, 1), used_taps(5, 3, 5, 1, 2**31, 1, 2**31), used_taps(5, 3, 4, 1, 9, 1, 1)
        ((0, 3), (1, 2), (3, 3))
    """
    first = min(k, max(0, -((s * (m - 1) - p) // r)))
    return first, max(first, min(k, (d * (n - 1) + p) // r + 1))


def canonical(problem: Problem, x: Array, k: Array, padding: str | None = None) -> Array:
    """Return y of a problem with one group, by XLA's convolution of canonical arrays; a string stands for its pads."""
    n = problem.ndim
    lhs, rhs = (0, n + 1, *range(1, n + 1)), (n + 1, n, *range(n))
    shapes = (x.shape, k.shape, (x.shape[0], *problem.out, problem.features))
    pads = padding or tuple(zip(problem.low, problem.high, strict=True))
    window = (problem.strides, pads, problem.lhs_dilation, problem.rhs_dilation)
    return ConvCall(*shapes, x.dtype, *window, lax.ConvDimensionNumbers(lhs, rhs, lhs))(x, k)


def make_call(lhs: Any, rhs: Any, *positional: Any, **arguments: Any) -> ConvCall:
    """Return the call of `lax.conv_general_dilated` with these arguments, checked; arrays may be abstract.

    The arguments that follow lhs and rhs are those of `PARAMETERS`, in this order or by name.
    """
    arguments |= zip(PARAMETERS, positional, strict=False)
    arguments = convolution_arguments(lhs=lhs, rhs=rhs, **arguments)
    del arguments["lhs"], arguments["rhs"]
    y = jax.eval_shape(partial(lax_convolution, **arguments), lhs, rhs)  # raises what lax raises
    dimensions = conv_dimension_numbers(lhs.shape, rhs.shape, arguments.get("dimension_numbers"))
    arguments["dimension_numbers"] = lax.ConvDimensionNumbers(*map(tuple, dimensions))
    for name in ("lhs_dilation", "rhs_dilation"):
        arguments[name] = arguments.get(name) or (1,) * (lhs.ndim - 2)
    if arguments.get("preferred_element_type") is not None:
        arguments["preferred_element_type"] = y.dtype
    if isinstance(arguments.get("precision"), list):
        arguments["precision"] = tuple(arguments["precision"])
    return ConvCall(tuple(lhs.shape), tuple(rhs.shape), tuple(y.shape), np.dtype(lhs.dtype), **arguments)


def _steps(steps: Sequence[int], sizes: Sequence[int]) -> tuple[int, ...]:
    return tuple(step if is_symbolic(n) or n > 1 else 1 for step, n in zip(steps, sizes, strict=True))


# A transpose fused into a sum of shifted copies makes it read memory in strides: 130 ms for 20 at 8 x 32 x 96 x 96.
_apart = no_inline(lax.transpose, static_argnames=("permutation",))


def _channels_last(x: Array, spec: Sequence[int], inverse: bool = False) -> Array:
    """Return x with its channels moved last, or back, in a separate call on CPU; x itself if no axis moves."""
    permutation = (spec[0], *spec[2:], spec[1])
    permutation = tuple(np.argsort(permutation).tolist()) if inverse else permutation
    return x if permutation == tuple(range(x.ndim)) else _apart(x, permutation=permutation)
