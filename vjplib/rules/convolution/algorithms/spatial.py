"""Spatial axes of an array: slices, pads and sums, and the overlap of x and y under one tap of the kernel."""

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from vjplib.rules.convolution.problem import Problem

MAX_SUM_TERMS = 128  # beyond, the program of one sum takes longer to compile than it saves


def strided_slice(x: Array, bounds: Sequence[tuple[int, int, int]]) -> Array:
    """Return a strided slice of the spatial axes, with (start, count, step) for each."""
    rest = x.shape[1 + len(bounds) :]
    start = [0, *(at if n else 0 for at, n, _ in bounds), *(0 for _ in rest)]
    limit = [x.shape[0], *(at + (n - 1) * step + 1 if n else 0 for at, n, step in bounds), *rest]
    return lax.slice(x, start, limit, [1, *(step for _, _, step in bounds), *(1 for _ in rest)])


def pad(x: Array, pads: Iterable[tuple[int, int] | tuple[int, int, int]], first: int = 1) -> Array:
    """Return x with zeros around and between the elements of its spatial axes; a negative pad crops.

    The pads are (low, high) or (low, high, interior) for each spatial axis, or for the leading ones, `first` on.
    """
    spatial, none = [(low, high, *(interior or (0,))) for low, high, *interior in pads], (0, 0, 0)
    widths = [*[none] * first, *spatial, *[none] * (x.ndim - first - len(spatial))]
    return lax.pad(x, jnp.zeros((), x.dtype), widths)


def pad_input(problem: Problem, x: Array) -> Array:
    """Return x with the padding of its problem, whose x is not dilated."""
    return pad(x, zip(problem.low, problem.high, strict=True))


def tap_view(problem: Problem, padded: Array, tap: Sequence[int]) -> Array:
    """Return the elements of the padded, undilated x that one tap multiplies, one for each output, zeros included."""
    steps = zip(problem.rhs_dilation, tap, problem.out, problem.strides, strict=True)
    return strided_slice(padded, [(r * j, m, s) for r, j, m, s in steps])


def sum_parts(parts: Iterator[Array], shape: Sequence[int], dtype: jnp.dtype) -> Array:
    """Return the sum of the parts; zeros of this shape and dtype if there are none."""
    first = next(parts, None)
    return jnp.zeros(shape, dtype) if first is None else sum(parts, first)


class Overlap(NamedTuple):
    """The elements of y and of x that one tap connects along one axis: two progressions of the same length."""

    y: int  # the first index into y
    y_step: int
    x: int  # the first index into x
    x_step: int
    length: int


# s i - d l = p - r j: divided by the greatest common divisor of s and d, i is known modulo d and l modulo s.
def overlap(problem: Problem, axis: int, j: int) -> Overlap:
    """Return where tap j of one spatial axis connects x and y, for any strides and dilations."""
    s, d = problem.strides[axis], problem.lhs_dilation[axis]
    offset, common = problem.low[axis] - problem.rhs_dilation[axis] * j, math.gcd(s, d)
    if offset % common:
        return Overlap(0, 1, 0, 1, 0)
    s, d, offset = s // common, d // common, offset // common
    least = max(0, -(-offset // s))
    first = least + (offset * pow(s, -1, d) - least) % d
    most = min(problem.out[axis] - 1, (d * (problem.size[axis] - 1) + offset) // s)
    return Overlap(first, d, (s * first - offset) // d, s, max(0, (most - first) // d + 1))


def overlaps(problem: Problem) -> Iterator[tuple[tuple[int, ...], list[Overlap]]]:
    """Yield each tap that connects any elements, with its overlap along each axis."""
    for tap in problem.tap_indices:
        found = [overlap(problem, axis, j) for axis, j in enumerate(tap)]
        if all(o.length for o in found):
            yield tap, found


def x_of(x: Array, found: Sequence[Overlap]) -> Array:
    """Return the elements of x in an overlap."""
    return strided_slice(x, [(o.x, o.length, o.x_step) for o in found])


def y_of(y: Array, found: Sequence[Overlap]) -> Array:
    """Return the elements of y in an overlap."""
    return strided_slice(y, [(o.y, o.length, o.y_step) for o in found])


def spread_to_y(problem: Problem, found: Sequence[Overlap], part: Array) -> Array:
    """Return zeros of y's spatial sizes with a part placed at the elements of an overlap, of the leading axes."""
    ends = zip(found, problem.out, strict=False)
    return pad(part, [(o.y, size - 1 - o.y - (o.length - 1) * o.y_step, o.y_step - 1) for o, size in ends])


def interleaved(a: Iterable[int], b: Iterable[int]) -> list[int]:
    """Return the first of a, the first of b, the second of a, and so on."""
    return [*itertools.chain(*zip(a, b, strict=True))]


def weave_phases(y: Array, ndim: int) -> Array:
    """Return (batch, *counts, *phases, features) as (batch, *(counts x phases), features), phases varying faster."""
    batch, *sizes, features = y.shape
    y = jnp.transpose(y, (0, *interleaved(range(1, 1 + ndim), range(1 + ndim, 1 + 2 * ndim)), 1 + 2 * ndim))
    return y.reshape(batch, *(n * d for n, d in zip(sizes[:ndim], sizes[ndim:], strict=True)), features)
