"""Dense convolutions: matrix products, of taps or patches, and sums of convolutions of fewer dimensions."""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from vjplib.convolution.problem import Problem
from vjplib.convolution.xla import conv_general_dilated

Array = jax.Array

FEW = 4  # channels up to which XLA's gradient for a dilated x is as fast as that of the transposed convolution
MANY = 16  # features from which on a product of patches is faster than XLA's convolution in two dimensions
MOST_TAPS = 128  # terms of a sum, beyond which its program takes too long to compile
MOST_SLABS = 32  # convolutions of fewer dimensions, beyond which their program takes too long to compile


def product_applies(problem: Problem) -> bool:
    """Returns whether one matrix product serves: a single tap, in more than one dimension or with a stride."""
    return _dense(problem) and problem.taps == 1 and (problem.ndim > 1 or _stepped(problem))


def patches_apply(problem: Problem) -> bool:
    """Returns whether patches serve: windows that neither overlap nor leave gaps, several taps each."""
    sizes = zip(problem.kernel, problem.strides, problem.rhs_dilation, problem.out, strict=True)
    apart = all((k == s or m == 1) and (r == 1 or k == 1) for k, s, r, m in sizes)
    enough = problem.ndim != 2 or problem.features >= MANY or max(problem.out) == 1
    return _dense(problem) and problem.taps > 1 and max(problem.lhs_dilation) == 1 and apart and enough


def place_applies(problem: Problem) -> bool:
    """Returns whether one place of x feeds all of y, by several taps."""
    return _dense(problem) and problem.taps > 1 and max(problem.size) == 1


def multiples_apply(problem: Problem) -> bool:
    """Returns whether multiples serve: one channel, undilated, more features than one, few enough taps."""
    wide = problem.channels == 1 < problem.features and 1 < problem.taps <= MOST_TAPS
    return _dense(problem) and wide and max(problem.lhs_dilation) == 1


def columns_apply(problem: Problem) -> bool:
    """Returns whether columns serve: one feature, no stride, columns no larger than twice x; x dilated in a film only.

    In one or two dimensions XLA is as fast where x is dilated.
    """
    one = problem.features == 1 < problem.taps <= 2 * problem.channels
    return (
        _dense(problem) and one and max(problem.strides) == 1 and (problem.ndim > 2 or max(problem.lhs_dilation) == 1)
    )


def rows_apply(problem: Problem) -> bool:
    """Returns whether rows serve: one undilated channel in three dimensions or more, rows no larger than twice y."""
    return multiples_apply(problem) and problem.ndim > 2 and problem.taps <= 2 * problem.features


def slabs_apply(problem: Problem) -> bool:
    """Returns whether slabs serve: three dimensions or more, for which XLA:CPU has no fast convolution."""
    return _dense(problem) and problem.ndim > 2 and problem.taps > 1 and problem.kernel[0] <= MOST_SLABS


def kernel_slabs_apply(problem: Problem) -> bool:
    """Returns whether slabs serve for dk: also, no dilated x, whose dk is slow in any number of dimensions."""
    return slabs_apply(problem) and max(problem.lhs_dilation) == 1


def exchange_applies(problem: Problem) -> bool:
    """Returns whether exchanged roles serve for dk: x dilated, but not y as well, in a dimension or two."""
    several = problem.channels > FEW
    return _dense(problem) and several and problem.ndim <= 2 and max(problem.lhs_dilation) > max(problem.strides) == 1


def _dense(problem: Problem) -> bool:
    return problem.groups == 1 and problem.ndim > 0


def _stepped(problem: Problem) -> bool:
    return max(*problem.strides, *problem.lhs_dilation) > 1


class Meeting(NamedTuple):
    """The places of y and of x that one tap of one dimension brings together, two progressions of the same length.

    Args:
        y: the first place of y.
        y_step: from one place of y to the next.
        x: the first place of x.
        x_step: from one place of x to the next.
        number: how many there are.
    """

    y: int
    y_step: int
    x: int
    x_step: int
    number: int


# s i - d l = p - r j: divided by the greatest common divisor of s and d, i is known modulo d and l modulo s.
def meeting(problem: Problem, axis: int, j: int) -> Meeting:
    """Returns where tap j of one spatial dimension lets x and y meet, whatever strides and dilations are.

    Example:
        >>> p = Problem(1, (3,), 2, (3,), 2, (1,), (1,), (2,), (1,), 1, (5,))
        >>> meeting(p, 0, 0), meeting(p, 0, 1)
        (Meeting(y=1, y_step=2, x=0, x_step=1, number=2), Meeting(y=0, y_step=2, x=0, x_step=1, number=3))
    """
    s, d = problem.strides[axis], problem.lhs_dilation[axis]
    offset, common = problem.low[axis] - problem.rhs_dilation[axis] * j, math.gcd(s, d)
    if offset % common:
        return Meeting(0, 1, 0, 1, 0)
    s, d, offset = s // common, d // common, offset // common
    least = max(0, -(-offset // s))
    first = least + (offset * pow(s, -1, d) - least) % d
    most = min(problem.out[axis] - 1, (d * (problem.size[axis] - 1) + offset) // s)
    return Meeting(first, d, (s * first - offset) // d, s, max(0, (most - first) // d + 1))


def meetings(problem: Problem) -> Iterator[tuple[tuple[int, ...], list[Meeting]]]:
    """Yields every tap that meets anything, and where."""
    for tap in itertools.product(*map(range, problem.kernel)):
        found = [meeting(problem, axis, j) for axis, j in enumerate(tap)]
        if all(m.number for m in found):
            yield tap, found


def taps(problem: Problem, x: Array, k: Array) -> Array:
    """Returns y, each tap's part of it a matrix product of the places of x that the tap reads."""
    parts = (_spread(problem, met, _of_x(x, met) @ k[tap]) for tap, met in meetings(problem))
    return _total(problem, parts, x.dtype)


def multiples(problem: Problem, x: Array, k: Array) -> Array:
    """Returns y where x has one channel, a sum of multiples of it, as each tap meets it: one pass over y."""
    x = _padded(problem, x)
    parts = (_met(problem, x, tap) * k[tap] for tap in itertools.product(*map(range, problem.kernel)))
    return _total(problem, parts, x.dtype)


def columns(problem: Problem, x: Array, k: Array) -> Array:
    """Returns y from one matrix product of x and all taps, whose columns are then put where each tap sends them."""
    table = jnp.moveaxis(k.reshape(problem.taps, problem.channels, problem.features), 0, 1)
    products = x @ table.reshape(problem.channels, -1)

    def parts() -> Iterator[Array]:
        for tap, met in meetings(problem):
            start = problem.features * _index(problem, tap)
            column = lax.slice_in_dim(products, start, start + problem.features, axis=-1)
            yield _spread(problem, met, _of_x(column, met))

    return _total(problem, parts(), x.dtype)


def patches(problem: Problem, x: Array, k: Array) -> Array:
    """Returns y where windows neither overlap nor leave gaps: one matrix product of x cut into patches."""
    cut, taps = _cut(problem, x), range(problem.ndim + 1)
    return lax.dot_general(
        cut, k, dimension_numbers=((tuple(range(cut.ndim - len(taps), cut.ndim)), tuple(taps)), ((), ()))
    )


# With the one place l = 0 the equation reads r j = p - s i: the dilated kernel backwards, every s-th place of it.
def place(problem: Problem, x: Array, k: Array) -> Array:
    """Returns y where x has a single place: one matrix product of x and the taps in the order in which y meets them."""
    pads = []
    for s, p, r, taps, m in zip(
        problem.strides, problem.low, problem.rhs_dilation, problem.kernel, problem.out, strict=True
    ):
        low = p - r * (taps - 1)
        pads.append((low, s * (m - 1) - p, r - 1))
    met = lax.pad(lax.rev(k, range(problem.ndim)), jnp.zeros((), k.dtype), [*pads, (0, 0, 0), (0, 0, 0)])
    met = lax.slice(met, (0,) * met.ndim, met.shape, (*problem.strides, 1, 1))
    met = jnp.moveaxis(met, -2, 0).reshape(problem.channels, -1)
    return (x.reshape(problem.batch, -1) @ met).reshape(problem.batch, *problem.out, problem.features)


def kernel_patches(problem: Problem, x: Array, g: Array) -> Array:
    """Returns dk where windows neither overlap nor leave gaps: one matrix product of x cut into patches, and g."""
    return _contracted(_cut(problem, x), g)


def kernel_taps(problem: Problem, x: Array, g: Array) -> Array:
    """Returns dk, each tap's part of it a matrix product of the places of x and y that the tap brings together."""
    found = dict(meetings(problem))
    none = jnp.zeros((problem.channels, problem.features), x.dtype)
    parts = [
        _contracted(_of_x(x, found[tap]), _of_y(g, found[tap])) if tap in found else none
        for tap in itertools.product(*map(range, problem.kernel))
    ]
    return jnp.stack(parts).reshape(*problem.kernel, problem.channels, problem.features)


def kernel_rows(problem: Problem, x: Array, g: Array) -> Array:
    """Returns dk where x has one channel: one matrix product of what each tap meets of x, a row, and g."""
    x = _padded(problem, x)
    taps = itertools.product(*map(range, problem.kernel))
    rows = jnp.stack([_met(problem, x, tap).reshape(-1) for tap in taps])
    dk = rows @ g.reshape(-1, problem.features)
    return dk.reshape(*problem.kernel, problem.channels, problem.features)


def kernel_exchanged(problem: Problem, x: Array, g: Array) -> Array:
    """Returns dk, with x and y in exchanged roles: the dk of the transposed convolution."""
    transposed = problem.transposed
    return transposed.transposed_kernel(_kernel_cotangent(transposed, g, x))


def slabs(problem: Problem, x: Array, k: Array) -> Array:
    """Returns y, each tap of the first dimension a convolution over the others, the first one's places as batch."""

    def parts() -> Iterator[Array]:
        for j in range(problem.kernel[0]):
            met = meeting(problem, 0, j)
            if met.number:
                inner = _without_first(problem, met.number)
                y = convolved(inner, _rows(x, met.x, met.x_step, met.number), k[j])
                yield _spread(problem, [met], y.reshape(problem.batch, met.number, *y.shape[1:]))

    return _total(problem, parts(), x.dtype)


def kernel_slabs(problem: Problem, x: Array, g: Array) -> Array:
    """Returns dk, each tap of the first dimension the dk of a convolution over the others."""
    none = jnp.zeros((*problem.kernel[1:], problem.channels, problem.features), x.dtype)

    def part(j: int) -> Array:
        met = meeting(problem, 0, j)
        if not met.number:
            return none
        inner = _without_first(problem, met.number)
        rows = _rows(x, met.x, met.x_step, met.number), _rows(g, met.y, met.y_step, met.number)
        return _kernel_cotangent(inner, *rows)

    return jnp.stack([part(j) for j in range(problem.kernel[0])])


def convolved(problem: Problem, x: Array, k: Array) -> Array:
    """Returns y, by XLA's convolution where that has two dimensions at most, which it is made for."""
    if problem.taps == 1:
        return taps(problem, x, k)
    if problem.ndim > 2:
        return slabs(problem, x, k)
    space = "HW"[: problem.ndim]
    return conv_general_dilated(
        x,
        k,
        problem.strides,
        list(zip(problem.low, problem.high, strict=True)),
        problem.lhs_dilation,
        problem.rhs_dilation,
        (f"N{space}C", f"{space}IO", f"N{space}C"),
    )


# s i + r j = d l + p, read for j: a convolution of x by g, with channels as batch and batch as channels, stride r and
# dilation s. XLA:CPU puts a convolution's axes in the order it needs only at the top of a program, not in a call or a
# loop, where it is many times slower in any other order: so the axes are moved here.
def _kernel_cotangent(problem: Problem, x: Array, g: Array) -> Array:
    if problem.ndim > 2:
        return kernel_slabs(problem, x, g)
    sought = replace(
        problem,
        batch=problem.channels,
        channels=problem.batch,
        kernel=problem.out,
        out=problem.kernel,
        strides=problem.rhs_dilation,
        rhs_dilation=problem.strides,
    )
    return jnp.moveaxis(convolved(sought, jnp.swapaxes(x, 0, -1), jnp.moveaxis(g, 0, -2)), 0, -2)


def _without_first(problem: Problem, places: int) -> Problem:
    return replace(
        problem,
        batch=problem.batch * places,
        size=problem.size[1:],
        kernel=problem.kernel[1:],
        strides=problem.strides[1:],
        low=problem.low[1:],
        lhs_dilation=problem.lhs_dilation[1:],
        rhs_dilation=problem.rhs_dilation[1:],
        out=problem.out[1:],
    )


def _rows(x: Array, first: int, step: int, count: int) -> Array:
    rows = lax.slice_in_dim(x, first, first + (count - 1) * step + 1, step, axis=1)
    return rows.reshape(-1, *rows.shape[2:])


def _cut(problem: Problem, x: Array) -> Array:
    """Returns x as (batch, *out, *kernel, channels)."""
    x = _padded(problem, x)
    sizes = [size for pair in zip(problem.out, problem.kernel, strict=True) for size in pair]
    x = x.reshape(problem.batch, *sizes, problem.channels)
    order = [0, *range(1, 2 * problem.ndim, 2), *range(2, 2 * problem.ndim + 1, 2), 2 * problem.ndim + 1]
    return jnp.transpose(x, order)


def _met(problem: Problem, x: Array, tap: Sequence[int]) -> Array:
    """Returns what a tap meets of the padded, undilated x, the zeros included."""
    steps = zip(problem.rhs_dilation, tap, problem.strides, problem.out, strict=True)
    return _every(x, [(r * j, s, m) for r, j, s, m in steps])


def _padded(problem: Problem, x: Array) -> Array:
    pads = [(low, high, 0) for low, high in zip(problem.low, problem.high, strict=True)]
    return lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *pads, (0, 0, 0)])


def _contracted(a: Array, b: Array) -> Array:
    """Returns all inner products of b's features with what a has behind the same axes, over those axes.

    They are not merged: merging sharded axes would gather the arrays.
    """
    axes = tuple(range(b.ndim - 1))
    return lax.dot_general(a, b, dimension_numbers=((axes, axes), ((), ())))


def _of_x(x: Array, met: Sequence[Meeting]) -> Array:
    return _every(x, [(m.x, m.x_step, m.number) for m in met])


def _of_y(y: Array, met: Sequence[Meeting]) -> Array:
    return _every(y, [(m.y, m.y_step, m.number) for m in met])


def _every(x: Array, bounds: Sequence[tuple[int, int, int]]) -> Array:
    start = [0, *(first for first, _, _ in bounds), 0]
    limit = [x.shape[0], *(first + (count - 1) * step + 1 for first, step, count in bounds), x.shape[-1]]
    return lax.slice(x, start, limit, [1, *(step for _, step, _ in bounds), 1])


def _spread(problem: Problem, met: Sequence[Meeting], y: Array) -> Array:
    """Returns y put at the places of the first dimensions where they are met, zeros elsewhere."""
    pads = [
        (m.y, size - 1 - m.y - (m.number - 1) * m.y_step, m.y_step - 1)
        for m, size in zip(met, problem.out, strict=False)
    ]
    return lax.pad(y, jnp.zeros((), y.dtype), [(0, 0, 0), *pads, *[(0, 0, 0)] * (y.ndim - 1 - len(pads))])


def _index(problem: Problem, tap: Sequence[int]) -> int:
    index = 0
    for j, size in zip(tap, problem.kernel, strict=True):
        index = index * size + j
    return index


def _total(problem: Problem, parts: Iterator[Array], dtype: jnp.dtype) -> Array:
    first = next(parts, None)
    return jnp.zeros((problem.batch, *problem.out, problem.features), dtype) if first is None else sum(parts, first)
