"""Sliding windows: maximum with its index, mean, and the transposes of both, fast on CPU.

On CPU each operation is a call that XLA does not inline: fused into its consumers, it would be recomputed for each.
On other platforms a forward without an index is XLA's reduction; XLA has no operation for an index or a transpose.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial, reduce, wraps
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike

from vjplib.compat import no_inline

MAX_UNROLLED = 9  # the most taps, and the most phases, that are written out in one loop over the result
MAX_FILLED = 4  # the most taps of disjoint windows along the last axis that are filled; more are scattered
MAX_PASS = 16  # the most taps of one pass: a longer window is covered by several passes, as windows of windows


class WindowDim(NamedTuple):
    """The windows along one dimension: window i has the elements i stride - low + j dilation, for j < size.

    Example:
        >>> dim = WindowDim(size=3, stride=2, low=1, high=0)
        >>> dim.outputs(6)
        3
        >>> dim.positions(6).tolist()
        [[-1, 0, 1], [1, 2, 3], [3, 4, 5]]
    """

    size: int = 1
    stride: int = 1
    low: int = 0
    high: int = 0
    dilation: int = 1

    @property
    def pools(self) -> bool:
        """True unless each window is one element, of each element in turn."""
        return self[:4] != (1, 1, 0, 0)

    @property
    def disjoint(self) -> bool:
        """True if no two windows share an element."""
        return self.size == 1 or (self.dilation == 1 and self.size <= self.stride)

    def outputs(self, n: int) -> int:
        """Return the number of windows over n elements."""
        if not self.pools:  # then n may be symbolic
            return n
        return max(0, (n + self.low + self.high - self.dilation * (self.size - 1) - 1) // self.stride + 1)

    def span(self, n: int) -> int:
        """Return the number of positions that n elements, their padding and a window cover."""
        return n + abs(self.low) + abs(self.high) + self.size * self.dilation + self.stride

    def positions(self, n: int) -> np.ndarray:
        """Return the position of each element of each window, (windows, size); padding lies outside [0, n)."""
        starts = np.arange(self.outputs(n)) * self.stride - self.low
        return starts[:, None] + np.arange(self.size) * self.dilation


Windows = tuple[WindowDim, ...]  # one for each dimension of the input


def taps(windows: Windows) -> int:
    """Return the number of elements of a window."""
    return math.prod(dim.size for dim in windows)


def output_shape(windows: Windows, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of an array with one number a window."""
    return tuple(dim.outputs(n) for dim, n in zip(windows, shape, strict=True))


# ---------------------------------------------------------------------------------------- from elements to their window


class Pass(NamedTuple):
    """One reduction along one axis: y_i is reduced from x_{start + stride i + dilation j}, for j in taps.

    There are as many i as `outputs`, and one tap adds `weight` to the index of an element in its window.
    """

    axis: int
    start: int
    stride: int
    dilation: int
    taps: tuple[int, ...]
    outputs: int
    weight: int

    def elements(self, x: Array, tap: int, outside: Any) -> Array:
        """Return each window's element at one tap, a constant where it lies outside x.

        Padding a slice is faster on CPU than slicing a padded array.
        """
        start, n = self.start + tap * self.dilation, x.shape[self.axis]
        first = min(max(0, -(start // self.stride)), self.outputs)
        end = max(first, min(self.outputs, -((start - n) // self.stride)))
        reached = (start + first * self.stride, start + (end - 1) * self.stride + 1) if first < end else (0, 0)
        inside = lax.slice_in_dim(x, *reached, self.stride, self.axis)
        pads = [(first, self.outputs - end, 0) if i == self.axis else (0, 0, 0) for i in range(x.ndim)]
        return inside if end - first == self.outputs else lax.pad(inside, lax.full((), outside, x.dtype), pads)

    def pieces(self, n: int) -> Iterator["Pass"]:
        """Split the pass in up to three: the windows that lie inside n elements, and those at either end.

        The loop over those inside then needs no bounds checks.
        """
        reach = self.start + self.taps[-1] * self.dilation
        first = min(max(0, -(self.start // self.stride)), self.outputs)
        end = max(first, min(self.outputs, (n - 1 - reach) // self.stride + 1))
        for low, high in itertools.pairwise((0, first, end, self.outputs)):
            if low < high:
                yield self._replace(start=self.start + low * self.stride, outputs=high - low)

    def reduce(self, x: Array, piece: Callable[["Pass"], Any]) -> Any:
        """Apply a function to each piece, and concatenate the results."""
        parts = map(piece, self.pieces(x.shape[self.axis]))
        return jax.tree.map(lambda *joined: lax.concatenate(joined, self.axis), *parts)

    def sum(self, x: Array) -> Array:
        """Return the sum of each window, with zeros outside x."""
        return self.reduce(x, lambda piece: reduce(lax.add, (piece.elements(x, tap, 0) for tap in self.taps)))


def passes(windows: Windows, shape: tuple[int, ...], longest: int) -> Iterator[Pass]:
    """Yield the passes that reduce windows, last axis first, so that the index they compose is row-major.

    Reducing axis by axis takes as many operations as the sum of the window's sizes, not their product. A size above
    `longest` takes several passes, as windows of windows. The last ones may overlap, which changes no maximum.
    """
    weight = 1
    for axis, dim in reversed(list(enumerate(windows))):
        m, k = dim.outputs(shape[axis]), dim.size
        turns = next(n for n in itertools.count(1) if longest**n >= k)
        factor = next(f for f in itertools.count(1) if f**turns >= k)
        covered = 1
        for turn in range(turns if dim.pools else 0):
            reach = min(k, covered * factor)
            last = turn == turns - 1
            yield Pass(
                axis,
                start=0 if turn else -dim.low,
                stride=dim.stride if last else 1,
                dilation=dim.dilation,
                taps=(*range(0, reach - covered, covered), reach - covered),
                outputs=m if last else (m - 1) * dim.stride + (k - reach) * dim.dilation + 1,
                weight=weight,
            )
            covered = reach
        weight *= k


def _best_of_pass(x: Array, index: Array | None, step: Pass, smallest: bool, dtype: Any) -> tuple[Array, Array | None]:
    worst, no_worse = (jnp.inf, lax.le) if smallest else (-jnp.inf, lax.ge)

    def element(piece: Pass, tap: int) -> tuple[Array, Array | None]:
        y = piece.elements(x, tap, worst)
        if dtype is None:
            return y, None
        number = lax.full_like(y, tap * step.weight, dtype)  # and of its sharding
        return y, number if index is None else lax.add(number, piece.elements(index, tap, 0))

    def better(a: tuple[Array, Array | None], b: tuple[Array, Array | None]) -> tuple[Array, Array | None]:
        if dtype is None:
            return (lax.min if smallest else lax.max)(a[0], b[0]), None
        # A later element is taken if it is better or NaN, but never in the place of NaN.
        taken = lax.bitwise_and(lax.bitwise_not(no_worse(a[0], b[0])), lax.eq(a[0], a[0]))
        return jax.tree.map(lambda first, later: lax.select(taken, later, first), a, b)

    return step.reduce(x, lambda piece: reduce(better, (element(piece, tap) for tap in step.taps)))


def _best_of_passes(
    x: Array, steps: tuple[Pass, ...], smallest: bool, dtype: Any, best_of_pass: Callable[..., Any] = _best_of_pass
) -> tuple[Array, Array | None]:
    index = None
    for step in steps:
        x, index = best_of_pass(x, index, step=step, smallest=smallest, dtype=dtype)
    return x, index


_pass_no_inline = no_inline(_best_of_pass, static_argnames=("step", "smallest", "dtype"))
_passes_no_inline = no_inline(_best_of_passes, static_argnames=("steps", "smallest", "dtype"))


@partial(jax.jit, static_argnames=("windows", "smallest", "indexed"))
def argmax_window(x: Array, windows: Windows, smallest: bool, indexed: bool) -> tuple[Array, Array | None]:
    """Return the largest or smallest element of each window, and its row-major index in the window, or None.

    The index has the smallest unsigned dtype that counts a window's elements. Padding is -inf, for a minimum inf. Ties
    go to the first element, and a window's first NaN wins over all its numbers.
    """
    static = {
        "steps": tuple(passes(windows, x.shape, MAX_PASS)),
        "smallest": smallest,
        "dtype": np.min_scalar_type(taps(windows) - 1) if indexed else None,
    }
    cpu = _passes_no_inline if taps(windows) <= MAX_UNROLLED else partial(_best_of_passes, best_of_pass=_pass_no_inline)

    def elsewhere(x: Array) -> tuple[Array, Array | None]:
        if indexed:
            return _best_of_passes(x, **static)
        return reduce_by_lax(x, windows, *((jnp.inf, lax.min) if smallest else (-jnp.inf, lax.max))), None

    return lax.platform_dependent(x, cpu=partial(cpu, **static), default=elsewhere)


def reduce_by_lax(
    x: Array, windows: Windows, initial: float, reduction: Callable[..., Any], outside: ArrayLike | None = None
) -> Array:
    """Return `lax.reduce_window` of these windows; `outside` is initial in x's dtype, if that cannot be -inf or inf."""
    if all(dim[:2] == (1, 1) for dim in windows):  # XLA aborts where windows of one element crop x (openxla/xla#48719)
        outside = jnp.asarray(initial if outside is None else outside, x.dtype)
        return lax.pad(x, outside, [(dim.low, dim.high, 0) for dim in windows])
    sizes, strides, low, high, dilation = zip(*windows, strict=True)
    return lax.reduce_window(
        x, initial, reduction, sizes, strides, tuple(zip(low, high, strict=True)), window_dilation=dilation
    )


@partial(jax.jit, static_argnames=("windows",))
def means(x: Array, counts: Array, windows: Windows) -> Array:
    """Return the sum of each window, with zeros outside x, over counts, which broadcast with it, in x's dtype."""

    def by_passes(x: Array, counts: Array) -> Array:
        steps = passes(windows, x.shape, max(dim.size for dim in windows))
        return reduce(lambda sums, step: step.sum(sums), steps, x) / counts

    def elsewhere(x: Array, counts: Array) -> Array:
        return reduce_by_lax(x, windows, 0.0, lax.add) / counts

    return lax.platform_dependent(x, counts, cpu=no_inline(by_passes), default=elsewhere)


# ------------------------------------------------------------------------------------ from windows to their elements


def _zeros(like: Array, shape: Sequence[int]) -> Array:
    """Return zeros of a shape, with the dtype and sharding of an array."""
    pads = [(0, n - m, 0) for n, m in zip(shape, like.shape, strict=True)]
    return lax.pad(lax.full_like(like, 0), lax.full((), 0, like.dtype), pads)


def _spread(windows: Windows, shape: tuple[int, ...], term: Callable[[int], Array], like: Array) -> Array:
    """Return the sum over taps k of term(k), which has one number a window, placed at the windows' elements k.

    Elements a stride apart form a phase, and each tap falls into one phase. So each phase is a sum of terms, shifted
    but not dilated, and the phases are interleaved at the end.
    """
    phases = [-(-n // dim.stride) for n, dim in zip(shape, windows, strict=True)]
    sums_of: dict[tuple[int, ...], Array] = {}
    every_tap = itertools.product(*(range(dim.size) for dim in windows))
    for k, tap in reversed(list(enumerate(every_tap))):  # the order in which XLA adds
        offsets = [j * dim.dilation - dim.low for j, dim in zip(tap, windows, strict=True)]
        phase = tuple(o % dim.stride for o, dim in zip(offsets, windows, strict=True))
        shifts = [o // dim.stride for o, dim in zip(offsets, windows, strict=True)]
        pads = [(q, m - dim.outputs(n) - q, 0) for q, m, n, dim in zip(shifts, phases, shape, windows, strict=True)]
        shifted = lax.pad(term(k), lax.full((), 0, like.dtype), pads)
        sums_of[phase] = lax.add(sums_of[phase], shifted) if phase in sums_of else shifted

    nothing = _zeros(like, phases)

    def interleaved(*chosen: int) -> Array:
        axis = len(chosen)
        if axis == len(shape):
            return sums_of.get(chosen, nothing)
        parts = [interleaved(*chosen, a) for a in range(windows[axis].stride)]
        stacked = (lax.expand_dims(part, (axis + 1,)) for part in parts)
        return parts[0] if len(parts) == 1 else lax.concatenate(list(stacked), axis + 1)

    whole = interleaved()
    for axis, dim in enumerate(windows):  # one by one, as sharded dimensions demand
        whole = lax.collapse(whole, axis, axis + 2) if dim.stride > 1 else whole
    return lax.slice(whole, [0] * len(shape), shape)


def _fill(windows: Windows, shape: tuple[int, ...], value: Callable[..., Array]) -> Array:
    """Return an array of a shape with value(k, over) at element k of each window; windows must share no element.

    `value` takes the indices of the taps, and a function `over` that repeats one number a window at all its taps.
    """
    full, of_window, of_tap, gaps = [], [], [], []
    for dim, m in zip(windows, output_shape(windows, shape), strict=True):
        of_window.append(len(full))
        full.append(m)
        gaps.append((0, 0, 0))
        if dim.pools:
            of_tap.append(len(full))
            full.append(dim.size)
            gaps.append((0, dim.stride - dim.size, 0))
    k = np.arange(taps(windows)).reshape([n if i in of_tap else 1 for i, n in enumerate(full)])
    filled = value(k, lambda a: lax.broadcast_in_dim(a, full, of_window))
    zero = lax.full((), 0, filled.dtype)
    filled = lax.pad(filled, zero, gaps)
    for axis, dim in enumerate(windows):
        filled = lax.collapse(filled, axis, axis + 2) if dim.pools else filled
    ends = zip(shape, filled.shape, windows, strict=True)
    return lax.pad(filled, zero, [(-dim.low, n - covered + dim.low, 0) for n, covered, dim in ends])


def _scatter(index: Array, g: Array, windows: Windows, shape: tuple[int, ...]) -> Array:
    """Return zeros with each g added at the element of its window that has the index."""
    pooled = tuple(axis for axis, dim in enumerate(windows) if dim.pools)
    batched = tuple(axis for axis, dim in enumerate(windows) if not dim.pools)
    index, at, weight = index.astype(jnp.int32), [], 1
    for axis in reversed(pooled):
        dim = windows[axis]
        tap = lax.rem(lax.div(index, jnp.int32(weight)), jnp.int32(dim.size))
        start = lax.broadcasted_iota(jnp.int32, index.shape, axis) * dim.stride - dim.low
        at.insert(0, lax.expand_dims(start + tap * dim.dilation, (index.ndim,)))
        weight *= dim.size
    numbers = lax.ScatterDimensionNumbers((), pooled, pooled, batched, batched)
    mode = lax.GatherScatterMode.FILL_OR_DROP  # an element of the padding gets nothing
    return lax.scatter_add(_zeros(g, shape), lax.concatenate(at, index.ndim), g, numbers, mode=mode)


def _few(windows: Windows) -> bool:
    return taps(windows) <= MAX_UNROLLED and math.prod(dim.stride for dim in windows) <= MAX_UNROLLED


def _separate_on_cpu(transpose: Callable[..., Array]) -> Callable[..., Array]:
    """Return a function of two arrays, windows and a shape, jitted, that on CPU is not inlined into its consumers."""
    static_argnames = ("windows", "shape")
    apart = no_inline(transpose, static_argnames=static_argnames)

    @partial(jax.jit, static_argnames=static_argnames)
    @wraps(transpose)
    def by_platform(a: Array, b: Array, windows: Windows, shape: tuple[int, ...]) -> Array:
        cpu, default = (partial(f, windows=windows, shape=shape) for f in (apart, transpose))
        return lax.platform_dependent(a, b, cpu=cpu, default=default)

    return by_platform


@_separate_on_cpu
def scatter_to_argmax(index: Array, g: Array, windows: Windows, shape: tuple[int, ...]) -> Array:
    """Return an array of this shape with each window's g added at the indexed element: `argmax_window` transposed."""
    disjoint = all(dim.disjoint for dim in windows)
    # Along the last axis a loop over taps is too short for vector instructions.
    if disjoint and (taps(windows) <= MAX_FILLED or not windows[-1].pools):

        def at_its_index(k: np.ndarray, over: Callable[[Array], Array]) -> Array:
            here = lax.eq(over(index), lax.broadcast_in_dim(k.astype(index.dtype), over(index).shape, range(k.ndim)))
            return lax.select(here, over(g), lax.full_like(over(g), 0))

        return _fill(windows, shape, at_its_index)
    if _few(windows) and not disjoint:
        zeros = lax.full_like(g, 0)
        return _spread(windows, shape, lambda k: lax.select(lax.eq(index, lax.full_like(index, k)), g, zeros), g)
    return _scatter(index, g, windows, shape)


@_separate_on_cpu
def spread_to_windows(g: Array, counts: Array, windows: Windows, shape: tuple[int, ...]) -> Array:
    """Return an array of this shape with each window's g / count added at all its elements: `means` transposed."""
    g = g / counts
    if all(dim.disjoint for dim in windows):
        return _fill(windows, shape, lambda k, over: over(g))
    if _few(windows):
        return _spread(windows, shape, lambda k: g, g)
    for axis, dim in enumerate(windows):
        if dim.pools and dim.stride == 1:  # the transpose of a band is a band
            start = dim.low - (dim.size - 1) * dim.dilation
            g = Pass(axis, start, 1, dim.dilation, tuple(range(dim.size)), shape[axis], 1).sum(g)
        elif dim.pools:
            along = tuple(dim if i == axis else WindowDim() for i in range(g.ndim))
            longer = tuple(shape[i] if i == axis else n for i, n in enumerate(g.shape))
            g = _spread(along, longer, lambda k, g=g: g, g)
    return g
