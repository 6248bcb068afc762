"""Dense convolutions: matrix products, of taps or patches, and sums of convolutions of fewer dimensions."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from vjplib.compat import is_symbolic
from vjplib.convolution.places import every, padded, total
from vjplib.convolution.problem import Problem
from vjplib.convolution.xla import canonical
from vjplib.rules._cotangents import prepend_axes

Array = jax.Array

FEW = 4  # channels up to which XLA's gradient for a dilated x is as fast as that of the transposed convolution
MANY = 16  # features from which on a product of patches is faster than XLA's convolution in two dimensions
MANY_PLACES = 50_000  # of y, from which on XLA's dk of one channel is slow for 32 features and more
MOST_TAPS = 128  # terms of a sum, beyond which its program takes too long to compile
MOST_BYTES = 2**24  # of all columns: beyond, each call gets fresh memory, which is slow at first
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


def planes_apply(problem: Problem) -> bool:
    """Returns whether planes serve: few features in two dimensions, where XLA multiplies more or in a slower way.

    It multiplies more where x is padded to become larger, and is slow on few channels or a number that is no multiple
    of four.
    """
    out, size, channels, features = math.prod(problem.out), math.prod(problem.size), problem.channels, problem.features
    small = 4 * problem.batch * size * problem.taps * features <= MOST_BYTES
    if not (_dense(problem) and problem.ndim == 2 and features > 1 and 1 < problem.taps <= MOST_TAPS and small):
        return False
    if _stepped(problem) or (out > 4 * size and channels < 16):
        return False
    odd = channels > 8 and channels % 4 > 0
    return (
        (features <= 8 and channels <= 16)
        or (features <= 12 and (odd or 10 * out >= 19 * size))
        or (features <= 20 and channels >= 32 and 10 * out >= (13 if odd else 19) * size)
    )


def kernel_bands_apply(problem: Problem) -> bool:
    """Returns whether bands serve for dk: features, no multiple of eight, for which XLA's way is slow; few channels."""
    if not _dense(problem) or problem.ndim != 2 or problem.taps == 1 or _stepped(problem):
        return False
    rows = problem.out[0] + problem.rhs_dilation[0] * (problem.kernel[0] - 1)
    bands = 4 * problem.batch * rows * problem.out[1] * problem.kernel[1] * problem.channels
    awkward = problem.features > 16 and problem.features % 8 > 0
    return awkward and 1 < problem.channels <= 20 and bands <= 2 * MOST_BYTES


def rows_apply(problem: Problem) -> bool:
    """Returns whether rows serve for dk: one undilated channel, rows no larger than twice y.

    In two dimensions XLA is as fast unless the features are many, or above 16 and no multiple of eight.
    """
    places, features = problem.batch * math.prod(problem.out), problem.features
    slow = features > 16 and (features % 8 > 0 or (features >= 32 and places >= MANY_PLACES))
    flat = problem.ndim == 2 and slow and 4 * places * problem.taps <= 2 * MOST_BYTES
    return multiples_apply(problem) and (problem.ndim > 2 or flat) and problem.taps <= 2 * features


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
    for tap in problem.every_tap:
        found = [meeting(problem, axis, j) for axis, j in enumerate(tap)]
        if all(m.number for m in found):
            yield tap, found


def taps(problem: Problem, x: Array, k: Array) -> Array:
    """Returns y, each tap's part of it a matrix product of the places of x that the tap reads."""
    parts = (_spread(problem, met, _of_x(x, met) @ k[tap]) for tap, met in meetings(problem))
    return total(parts, (problem.batch, *problem.out, problem.features), x.dtype)


def places_apply(problem: Problem) -> bool:
    """Return whether places alone serve: x cannot be padded, and the taps are few enough to compile."""
    return problem.sprawls and problem.taps <= MOST_TAPS


def places(problem: Problem, x: Array, k: Array) -> Array:
    """Return y of any problem, in groups too, from the places alone that each tap brings together: x is not padded."""
    k = k.reshape(*problem.kernel, problem.depth, problem.groups, problem.width)

    def part(tap: Sequence[int], met: Sequence[Meeting]) -> Array:
        product = jnp.einsum("...gd,dgw->...gw", _grouped(problem, _of_x(x, met)), k[tap])
        return _spread(problem, met, product.reshape(*product.shape[:-2], problem.features))

    parts = (part(tap, met) for tap, met in meetings(problem))
    return total(parts, (problem.batch, *problem.out, problem.features), x.dtype)


def kernel_places(problem: Problem, x: Array, g: Array) -> Array:
    """Return dk of any problem, in groups too, from the places alone that each tap brings together."""
    found, none = dict(meetings(problem)), jnp.zeros((problem.depth, problem.groups, problem.width), x.dtype)

    def part(met: Sequence[Meeting]) -> Array:
        return jnp.einsum("...gd,...gw->dgw", _grouped(problem, _of_x(x, met)), _grouped(problem, _of_y(g, met)))

    parts = [part(found[tap]) if tap in found else none for tap in problem.every_tap]
    return jnp.stack(parts).reshape(*problem.kernel, problem.depth, problem.features)


def _grouped(problem: Problem, a: Array) -> Array:
    return a.reshape(*a.shape[:-1], problem.groups, -1)


def multiples(problem: Problem, x: Array, k: Array) -> Array:
    """Returns y where x has one channel, a sum of multiples of it, as each tap meets it: one pass over y."""
    x = _whole(problem, x)
    parts = (_met(problem, x, tap) * prepend_axes(k[tap], x.ndim) for tap in problem.every_tap)
    return total(parts, (problem.batch, *problem.out, problem.features), x.dtype)


def columns(problem: Problem, x: Array, k: Array) -> Array:
    """Returns y from one matrix product of x and all taps, whose columns are then put where each tap sends them."""
    table = jnp.moveaxis(k.reshape(problem.taps, problem.channels, problem.features), 0, 1)
    products = x @ table.reshape(problem.channels, -1)

    def parts() -> Iterator[Array]:
        for tap, met in meetings(problem):
            start = problem.features * _index(problem, tap)
            column = lax.slice_in_dim(products, start, start + problem.features, axis=-1)
            yield _spread(problem, met, _of_x(column, met))

    return total(parts(), (problem.batch, *problem.out, problem.features), x.dtype)


# Features come before space, so that what is long comes last: a loop whose last axis is few features fills no vector.
def planes(problem: Problem, x: Array, k: Array) -> Array:
    """Returns y as `columns` does, each feature of a tap a plane, with rows last where there are more than places."""
    rows_last = not is_symbolic(problem.batch) and problem.batch > problem.size[-1]
    x = jnp.moveaxis(x, (-1, 0), (0, -1)) if rows_last else jnp.moveaxis(x, -1, 0)
    table = jnp.swapaxes(k.reshape(problem.taps, problem.channels, problem.features), 1, 2)
    products = jnp.tensordot(table, x, 1)
    first = 1 if rows_last else 2  # axis of space in what a tap has
    parts = (
        _spread(problem, met, _of_x(products[_index(problem, tap)], met, first), first)
        for tap, met in meetings(problem)
    )
    lengths = (*problem.out, problem.batch) if rows_last else (problem.batch, *problem.out)
    y = total(parts, (problem.features, *lengths), x.dtype)
    return jnp.moveaxis(y, (0, -1), (-1, 0)) if rows_last else jnp.moveaxis(y, 0, -1)


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
        _contracted(_of_x(x, found[tap]), _of_y(g, found[tap])) if tap in found else none for tap in problem.every_tap
    ]
    return jnp.stack(parts).reshape(*problem.kernel, problem.channels, problem.features)


def kernel_rows(problem: Problem, x: Array, g: Array) -> Array:
    """Returns dk where x has one channel: one matrix product of what each tap meets of x, a row, and g."""
    x = _whole(problem, x)
    taps = problem.every_tap
    rows = jnp.stack([_met(problem, x, tap).reshape(-1) for tap in taps])
    dk = rows @ g.reshape(-1, problem.features)
    return dk.reshape(*problem.kernel, problem.channels, problem.features)


def kernel_bands(problem: Problem, x: Array, g: Array) -> Array:
    """Returns dk, one matrix product for each row of the kernel: its taps side by side as channels of x, and g."""
    x = _whole(problem, x)
    last, r = problem.kernel[-1], problem.rhs_dilation
    side_by_side = jnp.concatenate(
        [lax.slice_in_dim(x, r[1] * j, r[1] * j + problem.out[1], axis=2) for j in range(last)], axis=-1
    )
    rows = [
        lax.slice_in_dim(side_by_side, r[0] * j, r[0] * j + problem.out[0], axis=1) for j in range(problem.kernel[0])
    ]
    dk = jnp.stack([_contracted(row, g) for row in rows])
    return dk.reshape(*problem.kernel, problem.channels, problem.features)


def kernel_exchanged(problem: Problem, x: Array, g: Array) -> Array:
    """Returns dk, with x and y in exchanged roles: the dk of the transposed convolution."""
    transposed = problem.transposed
    return transposed.transposed_kernel(kernel_convolved(transposed, g, x))


def slabs(problem: Problem, x: Array, k: Array) -> Array:
    """Returns y, each tap of the first dimension a convolution over the others, the first one's places as batch."""

    def parts() -> Iterator[Array]:
        for j in range(problem.kernel[0]):
            met = meeting(problem, 0, j)
            if met.number:
                inner = _without_first(problem, met.number)
                y = convolved(inner, _rows(x, met.x, met.x_step, met.number), k[j])
                yield _spread(problem, [met], y.reshape(problem.batch, met.number, *y.shape[1:]))

    return total(parts(), (problem.batch, *problem.out, problem.features), x.dtype)


def kernel_slabs(problem: Problem, x: Array, g: Array) -> Array:
    """Returns dk, each tap of the first dimension the dk of a convolution over the others."""
    none = jnp.zeros((*problem.kernel[1:], problem.channels, problem.features), x.dtype)

    def part(j: int) -> Array:
        met = meeting(problem, 0, j)
        if not met.number:
            return none
        inner = _without_first(problem, met.number)
        rows = _rows(x, met.x, met.x_step, met.number), _rows(g, met.y, met.y_step, met.number)
        return kernel_convolved(inner, *rows)

    return jnp.stack([part(j) for j in range(problem.kernel[0])])


def convolved(problem: Problem, x: Array, k: Array) -> Array:
    """Returns y, by XLA's convolution where that has two dimensions at most, which it is made for."""
    if problem.taps == 1 and not is_symbolic(*problem.size, *problem.out):
        return taps(problem, x, k)
    if problem.ndim > 2:
        return slabs(problem, x, k)
    return canonical(problem, x, k)


# s i + r j = d l + p, read for j: a convolution of x by g, with channels as batch and batch as channels, stride r and
# dilation s. XLA:CPU puts a convolution's axes in the order it needs only at the top of a program, not in a call or a
# loop, where it is many times slower in any other order: so the axes are moved here.
def kernel_convolved(problem: Problem, x: Array, g: Array) -> Array:
    """Returns dk, by XLA's convolution of x with g where that has two dimensions at most."""
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
    x = _whole(problem, x)
    sizes = [size for pair in zip(problem.out, problem.kernel, strict=True) for size in pair]
    x = x.reshape(problem.batch, *sizes, problem.channels)
    order = [0, *range(1, 2 * problem.ndim, 2), *range(2, 2 * problem.ndim + 1, 2), 2 * problem.ndim + 1]
    return jnp.transpose(x, order)


def _met(problem: Problem, x: Array, tap: Sequence[int]) -> Array:
    """Returns what a tap meets of the padded, undilated x, the zeros included."""
    steps = zip(problem.rhs_dilation, tap, problem.strides, problem.out, strict=True)
    return every(x, [(r * j, m, s) for r, j, s, m in steps])


def _whole(problem: Problem, x: Array) -> Array:
    return padded(x, zip(problem.low, problem.high, strict=True))


def _contracted(a: Array, b: Array) -> Array:
    """Returns all inner products of b's features with what a has behind the same axes, over those axes.

    They are not merged: merging sharded axes would gather the arrays.
    """
    axes = tuple(range(b.ndim - 1))
    return lax.dot_general(a, b, dimension_numbers=((axes, axes), ((), ())))


def _of_x(x: Array, met: Sequence[Meeting], first: int = 1) -> Array:
    return every(x, [(m.x, m.number, m.x_step) for m in met], first)


def _of_y(y: Array, met: Sequence[Meeting]) -> Array:
    return every(y, [(m.y, m.number, m.y_step) for m in met])


def _spread(problem: Problem, met: Sequence[Meeting], y: Array, first: int = 1) -> Array:
    """Returns y put at the places of the dimensions from an axis on where they are met, zeros elsewhere."""
    pads = [
        (m.y, size - 1 - m.y - (m.number - 1) * m.y_step, m.y_step - 1)
        for m, size in zip(met, problem.out, strict=False)
    ]
    return padded(y, pads, first)


def _index(problem: Problem, tap: Sequence[int]) -> int:
    index = 0
    for j, size in zip(tap, problem.kernel, strict=True):
        index = index * size + j
    return index
