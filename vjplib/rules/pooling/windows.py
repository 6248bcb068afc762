"""Sliding windows: their first best element and its index, their mean, and both transposed, in forms fast on CPU.

On CPU each product is a call that XLA keeps apart: fused into what consumes it, it would be computed anew for each use.
Elsewhere what goes forward alone is XLA's reduction; for an index, and for what goes back, XLA has no operation.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial, reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from vjplib.compat import separate_call

FEW = 9
"""Up to so many taps, and so many phases, all are written out in one loop over the result."""
SHORT = 4
"""Of disjoint windows along the last axis, up to so many taps are filled; more are scattered."""
SIDE = 16
"""The most taps of one pass: a longer side is covered in several, by windows of windows."""


class Side(NamedTuple):
    """The windows of one dimension: the i-th has elements i stride - low + j dilation, for j < size.

    Example:
        >>> side = Side(size=3, stride=2, low=1, high=0)
        >>> side.places(6)
        3
        >>> side.positions(6).tolist()
        [[-1, 0, 1], [1, 2, 3], [3, 4, 5]]
    """

    size: int = 1
    stride: int = 1
    low: int = 0
    high: int = 0
    dilation: int = 1

    @property
    def pools(self) -> bool:
        """Whether windows differ from the elements themselves."""
        return self[:4] != (1, 1, 0, 0)

    @property
    def disjoint(self) -> bool:
        """Whether no two windows share an element."""
        return self.size == 1 or (self.dilation == 1 and self.size <= self.stride)

    def places(self, n: int) -> int:
        """Returns how many windows n elements have."""
        if not self.pools:  # then n may be a size that is not known while tracing
            return n
        return max(0, (n + self.low + self.high - self.dilation * (self.size - 1) - 1) // self.stride + 1)

    def span(self, n: int) -> int:
        """Return how many places n elements, their pads and a window cover."""
        return n + abs(self.low) + abs(self.high) + self.size * self.dilation + self.stride

    def positions(self, n: int) -> np.ndarray:
        """Returns the position of each element of each window, (places, size); outside of [0, n) is padding."""
        starts = np.arange(self.places(n)) * self.stride - self.low
        return starts[:, None] + np.arange(self.size) * self.dilation


Windows = tuple[Side, ...]
"""A side for each dimension of the input."""


def taps(windows: Windows) -> int:
    """Returns how many elements a window has."""
    return math.prod(side.size for side in windows)


def places(windows: Windows, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Returns how many windows there are along each dimension: the shape of what has one number a window."""
    return tuple(side.places(n) for side, n in zip(windows, shape, strict=True))


def index_dtype(windows: Windows) -> Any:
    """Returns the smallest unsigned dtype that counts a window's elements.

    Example:
        >>> index_dtype((Side(size=16), Side(size=16))), index_dtype((Side(size=257),))
        (dtype('uint8'), dtype('uint16'))
    """
    return np.min_scalar_type(taps(windows) - 1)


# ---------------------------------------------------------------------------------------- from elements to their window


class Pass(NamedTuple):
    """The reduction along one axis of windows of windows: y_i from x_{start + stride i + dilation j} for j in taps.

    Args:
        axis: the axis.
        start: where the first window starts.
        stride: from window to window.
        dilation: from tap to tap.
        taps: which taps, those of another pass left out.
        places: how many windows.
        weight: what a tap adds to the index of an element in its window.
    """

    axis: int
    start: int
    stride: int
    dilation: int
    taps: tuple[int, ...]
    places: int
    weight: int

    def elements(self, x: Array, tap: int, outside: Any) -> Array:
        """Returns each window's element of one tap, a constant where it lies outside of x.

        To pad what was sliced is faster on CPU than to slice what was padded.
        """
        start, n = self.start + tap * self.dilation, x.shape[self.axis]
        first = min(max(0, -(start // self.stride)), self.places)
        end = max(first, min(self.places, -((start - n) // self.stride)))
        reached = (
            slice(start + first * self.stride, start + (end - 1) * self.stride + 1) if first < end else slice(0, 0)
        )
        inside = lax.slice_in_dim(x, reached.start, reached.stop, self.stride, self.axis)
        pads = [(first, self.places - end, 0) if i == self.axis else (0, 0, 0) for i in range(x.ndim)]
        return inside if end - first == self.places else lax.pad(inside, lax.full((), outside, x.dtype), pads)

    def pieces(self, n: int) -> Iterator["Pass"]:
        """Yields the pass in up to three pieces: the windows wholly inside of n elements, and those on either end.

        Alone, those inside need no test of bounds in their loop.
        """
        reach = self.start + self.taps[-1] * self.dilation
        first = min(max(0, -(self.start // self.stride)), self.places)
        end = max(first, min(self.places, (n - 1 - reach) // self.stride + 1))
        for low, high in itertools.pairwise((0, first, end, self.places)):
            if low < high:
                yield self._replace(start=self.start + low * self.stride, places=high - low)

    def reduce(self, x: Array, piece: Callable[["Pass"], Any]) -> Any:
        """Returns what piece returns of each piece, joined."""
        parts = map(piece, self.pieces(x.shape[self.axis]))
        return jax.tree.map(lambda *joined: lax.concatenate(joined, self.axis), *parts)

    def sum(self, x: Array) -> Array:
        """Returns the sum of each window, zeros beyond x."""
        return self.reduce(x, lambda piece: reduce(lax.add, (piece.elements(x, tap, 0) for tap in self.taps)))


def passes(windows: Windows, shape: tuple[int, ...], longest: int) -> Iterator[Pass]:
    """Yields the passes that reduce windows, the last axis first: so the index that they compose is row-major.

    One axis after the other takes as many operations as the sum of the sides, not their product. A side of more than
    `longest` taps is reduced in several passes, by windows of windows, the last of which may overlap: what is best of
    all stays the best.
    """
    weight = 1
    for axis, side in reversed(list(enumerate(windows))):
        m, k = side.places(shape[axis]), side.size
        turns = next(n for n in itertools.count(1) if longest**n >= k)
        factor = next(f for f in itertools.count(1) if f**turns >= k)
        covered = 1
        for turn in range(turns if side.pools else 0):
            reach = min(k, covered * factor)
            last = turn == turns - 1
            yield Pass(
                axis,
                start=0 if turn else -side.low,
                stride=side.stride if last else 1,
                dilation=side.dilation,
                taps=(*range(0, reach - covered, covered), reach - covered),
                places=m if last else (m - 1) * side.stride + (k - reach) * side.dilation + 1,
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


_pass_apart = separate_call(_best_of_pass, static_argnames=("step", "smallest", "dtype"))
_passes_apart = separate_call(_best_of_passes, static_argnames=("steps", "smallest", "dtype"))


@partial(jax.jit, static_argnames=("windows", "smallest", "indexed"))
def first_best(x: Array, windows: Windows, smallest: bool, indexed: bool) -> tuple[Array, Array | None]:
    """Returns the largest or smallest element of each window, and which of its taps it is.

    Args:
        x: floating.
        windows: a side for each dimension; what is padded is worse than any number but the like infinity.
        smallest: whether the smallest is best, not the largest.
        indexed: whether the index is asked for.

    Returns:
        The elements; and their indices in their windows, row-major, of `index_dtype`, or None. Of equal ones it is the
        first, and a window's first NaN is its best.
    """
    static = {
        "steps": tuple(passes(windows, x.shape, SIDE)),
        "smallest": smallest,
        "dtype": index_dtype(windows) if indexed else None,
    }
    cpu = _passes_apart if taps(windows) <= FEW else partial(_best_of_passes, best_of_pass=_pass_apart)
    elsewhere = partial(_best_of_passes, **static) if indexed else partial(_best_by_lax, windows, smallest)
    return lax.platform_dependent(x, cpu=partial(cpu, **static), default=elsewhere)


def _by_lax(windows: Windows, initial: float, reduction: Callable[..., Any], x: Array) -> Array:
    return lax.reduce_window(
        x,
        initial,
        reduction,
        tuple(side.size for side in windows),
        tuple(side.stride for side in windows),
        tuple((side.low, side.high) for side in windows),
        window_dilation=tuple(side.dilation for side in windows),
    )


def _best_by_lax(windows: Windows, smallest: bool, x: Array) -> tuple[Array, None]:
    return _by_lax(windows, *((jnp.inf, lax.min) if smallest else (-jnp.inf, lax.max)), x), None


def _means(x: Array, counts: Array, steps: tuple[Pass, ...]) -> Array:
    for step in steps:
        x = step.sum(x)
    return x / counts


_means_apart = separate_call(_means, static_argnames=("steps",))


@partial(jax.jit, static_argnames=("windows",))
def means(x: Array, counts: Array, windows: Windows) -> Array:
    """Returns the sum of each window, zeros beyond x, over counts, which broadcast with it and are of x's dtype."""
    static = {"steps": tuple(passes(windows, x.shape, max(side.size for side in windows)))}

    def elsewhere(x: Array, counts: Array) -> Array:
        return _by_lax(windows, 0.0, lax.add, x) / counts

    return lax.platform_dependent(x, counts, cpu=partial(_means_apart, **static), default=elsewhere)


# ------------------------------------------------------------------------------------ from windows to their elements


def _zeros(like: Array, shape: Sequence[int]) -> Array:
    """Returns zeros of a shape, of the dtype of an array and sharded as it is."""
    pads = [(0, n - m, 0) for n, m in zip(shape, like.shape, strict=True)]
    return lax.pad(lax.full_like(like, 0), lax.full((), 0, like.dtype), pads)


def _spread(windows: Windows, shape: tuple[int, ...], term: Callable[[int], Array], like: Array) -> Array:
    """Returns the sum over taps k of term(k), one number a window, each at its window's element k.

    Elements a stride apart form a phase, and a tap falls into one of them. So each phase is a sum of terms, shifted but
    not spread, and the phases are woven together at the end.
    """
    phases = [-(-n // side.stride) for n, side in zip(shape, windows, strict=True)]
    sums_of: dict[tuple[int, ...], Array] = {}
    every = itertools.product(*(range(side.size) for side in windows))
    for k, tap in reversed(list(enumerate(every))):  # in the order of windows, in which XLA adds
        offsets = [j * side.dilation - side.low for j, side in zip(tap, windows, strict=True)]
        phase = tuple(o % side.stride for o, side in zip(offsets, windows, strict=True))
        shifts = [o // side.stride for o, side in zip(offsets, windows, strict=True)]
        pads = [(q, m - side.places(n) - q, 0) for q, m, n, side in zip(shifts, phases, shape, windows, strict=True)]
        shifted = lax.pad(term(k), lax.full((), 0, like.dtype), pads)
        sums_of[phase] = lax.add(sums_of[phase], shifted) if phase in sums_of else shifted

    nothing = _zeros(like, phases)

    def woven(*chosen: int) -> Array:
        axis = len(chosen)
        if axis == len(shape):
            return sums_of.get(chosen, nothing)
        parts = [woven(*chosen, a) for a in range(windows[axis].stride)]
        stacked = (lax.expand_dims(part, (axis + 1,)) for part in parts)
        return parts[0] if len(parts) == 1 else lax.concatenate(list(stacked), axis + 1)

    whole = woven()
    for axis, side in enumerate(windows):  # one by one, as sharded dimensions demand
        whole = lax.collapse(whole, axis, axis + 2) if side.stride > 1 else whole
    return lax.slice(whole, [0] * len(shape), shape)


def _fill(windows: Windows, shape: tuple[int, ...], value: Callable[..., Array]) -> Array:
    """Returns, of windows that share no element, value(k, over) at element k of each.

    Args:
        windows: a side for each dimension.
        shape: that of the result.
        value: takes the numbers of the taps, and a function that repeats what there is one of a window at all its taps.
    """
    full, of_window, of_tap, gaps = [], [], [], []
    for side, m in zip(windows, places(windows, shape), strict=True):
        of_window.append(len(full))
        full.append(m)
        gaps.append((0, 0, 0))
        if side.pools:
            of_tap.append(len(full))
            full.append(side.size)
            gaps.append((0, side.stride - side.size, 0))
    k = np.arange(taps(windows)).reshape([n if i in of_tap else 1 for i, n in enumerate(full)])
    filled = value(k, lambda a: lax.broadcast_in_dim(a, full, of_window))
    zero = lax.full((), 0, filled.dtype)
    filled = lax.pad(filled, zero, gaps)
    for axis, side in enumerate(windows):
        filled = lax.collapse(filled, axis, axis + 2) if side.pools else filled
    ends = zip(shape, filled.shape, windows, strict=True)
    return lax.pad(filled, zero, [(-side.low, n - covered + side.low, 0) for n, covered, side in ends])


def _scatter(index: Array, g: Array, windows: Windows, shape: tuple[int, ...]) -> Array:
    """Returns zeros with each g added at its window's element of that index."""
    pooled = tuple(axis for axis, side in enumerate(windows) if side.pools)
    kept = tuple(axis for axis, side in enumerate(windows) if not side.pools)
    index, at, weight = index.astype(jnp.int32), [], 1
    for axis in reversed(pooled):
        side = windows[axis]
        tap = lax.rem(lax.div(index, jnp.int32(weight)), jnp.int32(side.size))
        start = lax.broadcasted_iota(jnp.int32, index.shape, axis) * side.stride - side.low
        at.insert(0, lax.expand_dims(start + tap * side.dilation, (index.ndim,)))
        weight *= side.size
    numbers = lax.ScatterDimensionNumbers((), pooled, pooled, kept, kept)
    mode = lax.GatherScatterMode.FILL_OR_DROP  # an element of the padding gets nothing
    return lax.scatter_add(_zeros(g, shape), lax.concatenate(at, index.ndim), g, numbers, mode=mode)


def _few(windows: Windows) -> bool:
    return taps(windows) <= FEW and math.prod(side.stride for side in windows) <= FEW


def _to_best(index: Array, g: Array, windows: Windows, shape: tuple[int, ...]) -> Array:
    disjoint = all(side.disjoint for side in windows)
    # Along the last axis a loop over taps is too short for vector instructions.
    if disjoint and (taps(windows) <= SHORT or not windows[-1].pools):

        def at_its_index(k: np.ndarray, over: Callable[[Array], Array]) -> Array:
            here = lax.eq(over(index), lax.broadcast_in_dim(k.astype(index.dtype), over(index).shape, range(k.ndim)))
            return lax.select(here, over(g), lax.full_like(over(g), 0))

        return _fill(windows, shape, at_its_index)
    if _few(windows) and not disjoint:
        zeros = lax.full_like(g, 0)
        return _spread(windows, shape, lambda k: lax.select(lax.eq(index, lax.full_like(index, k)), g, zeros), g)
    return _scatter(index, g, windows, shape)


_to_best_apart = separate_call(_to_best, static_argnames=("windows", "shape"))


@partial(jax.jit, static_argnames=("windows", "shape"))
def to_best(index: Array, g: Array, windows: Windows, shape: tuple[int, ...]) -> Array:
    """Returns an array of a shape, each window's g added at its element of that index: `first_best` transposed."""
    static = {"windows": windows, "shape": shape}
    return lax.platform_dependent(index, g, cpu=partial(_to_best_apart, **static), default=partial(_to_best, **static))


def _to_all(g: Array, counts: Array, windows: Windows, shape: tuple[int, ...]) -> Array:
    g = g / counts
    if all(side.disjoint for side in windows):
        return _fill(windows, shape, lambda k, over: over(g))
    if _few(windows):
        return _spread(windows, shape, lambda k: g, g)
    for axis, side in enumerate(windows):
        if side.pools and side.stride == 1:  # the transpose of a band is a band
            start, every = side.low - (side.size - 1) * side.dilation, tuple(range(side.size))
            g = Pass(axis, start, 1, side.dilation, every, shape[axis], 1).sum(g)
        elif side.pools:
            along = tuple(side if i == axis else Side() for i in range(g.ndim))
            longer = tuple(shape[i] if i == axis else n for i, n in enumerate(g.shape))
            g = _spread(along, longer, lambda k, g=g: g, g)
    return g


_to_all_apart = separate_call(_to_all, static_argnames=("windows", "shape"))


@partial(jax.jit, static_argnames=("windows", "shape"))
def to_all(g: Array, counts: Array, windows: Windows, shape: tuple[int, ...]) -> Array:
    """Returns an array of a shape, each window's g over its count added at all its elements: `means` transposed."""
    static = {"windows": windows, "shape": shape}
    return lax.platform_dependent(g, counts, cpu=partial(_to_all_apart, **static), default=partial(_to_all, **static))
