"""Dense convolutions: matrix products, of taps or patches, and sums of convolutions of fewer dimensions."""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from vjplib.compat import is_symbolic
from vjplib.rules._cotangents import prepend_axes
from vjplib.rules.convolution.algorithms.spatial import (
    MAX_SUM_TERMS,
    Overlap,
    interleaved,
    overlap,
    overlaps,
    pad,
    pad_input,
    spread_to_y,
    strided_slice,
    sum_parts,
    tap_view,
    x_of,
    y_of,
)
from vjplib.rules.convolution.call import canonical
from vjplib.rules.convolution.problem import Problem

FEW_CHANNELS = 4  # up to which XLA's gradient for a dilated x is as fast as that of the transposed convolution
MANY_FEATURES = 16  # from which on a product of patches is faster than XLA's convolution in two dimensions
MANY_OUTPUTS = 50_000  # from which on XLA's dk of one channel is slow for 32 features and more
MAX_COLUMN_BYTES = 2**24  # of all columns: beyond, each call gets fresh memory, which is slow at first
MAX_SLABS = 32  # convolutions of fewer dimensions, beyond which their program takes too long to compile


def _dense(problem: Problem) -> bool:
    return problem.groups == 1 and problem.ndim > 0


def _strided_or_dilated(problem: Problem) -> bool:
    return max(*problem.strides, *problem.lhs_dilation) > 1


def _contract(a: Array, b: Array) -> Array:
    """Return a and b contracted over the leading axes of both, all but the last of b.

    The axes are not merged: merging sharded axes would gather the arrays.
    """
    axes = tuple(range(b.ndim - 1))
    return lax.dot_general(a, b, dimension_numbers=((axes, axes), ((), ())))


def unpadded_applies(problem: Problem) -> bool:
    """Return True where x is too large to pad, and the taps are few enough to compile."""
    return problem.sprawls and problem.taps <= MAX_SUM_TERMS


def one_tap_applies(problem: Problem) -> bool:
    """Return True for a single tap, in more than one dimension or with a stride: one matrix product."""
    return _dense(problem) and problem.taps == 1 and (problem.ndim > 1 or _strided_or_dilated(problem))


def tap_products(problem: Problem, x: Array, k: Array) -> Array:
    """Return y as a sum over taps, each a matrix product of the elements of x that it reads: x is not padded."""

    def product(x: Array, k: Array) -> Array:
        if problem.groups == 1:
            return x @ k
        by_group = k.reshape(problem.depth, problem.groups, problem.width)
        y = jnp.einsum("...gd,dgw->...gw", _by_group(problem, x), by_group)
        return y.reshape(*y.shape[:-2], problem.features)

    parts = (spread_to_y(problem, found, product(x_of(x, found), k[tap])) for tap, found in overlaps(problem))
    return sum_parts(parts, (problem.batch, *problem.out, problem.features), x.dtype)


def tap_products_weight_grad(problem: Problem, x: Array, g: Array) -> Array:
    """Return dk, each tap's part of it a matrix product of the elements of x and y that the tap connects."""

    def product(x: Array, g: Array) -> Array:
        if problem.groups == 1:
            return _contract(x, g)
        return jnp.einsum("...gd,...gw->dgw", _by_group(problem, x), _by_group(problem, g))

    shape = (problem.depth, problem.features)
    by_tap = {tap: product(x_of(x, found), y_of(g, found)).reshape(shape) for tap, found in overlaps(problem)}
    parts = [by_tap.get(tap, jnp.zeros(shape, x.dtype)) for tap in problem.tap_indices]
    return jnp.stack(parts).reshape(*problem.kernel, *shape)


def _by_group(problem: Problem, a: Array) -> Array:
    return a.reshape(*a.shape[:-1], problem.groups, -1)


def patches_apply(problem: Problem) -> bool:
    """Return True where windows of several taps neither overlap nor leave gaps."""
    sizes = zip(problem.kernel, problem.strides, problem.rhs_dilation, problem.out, strict=True)
    disjoint = all((k == s or m == 1) and (r == 1 or k == 1) for k, s, r, m in sizes)
    enough = problem.ndim != 2 or problem.features >= MANY_FEATURES or max(problem.out) == 1
    return _dense(problem) and problem.taps > 1 and max(problem.lhs_dilation) == 1 and disjoint and enough


def patches(problem: Problem, x: Array, k: Array) -> Array:
    """Return y as one matrix product of x cut into patches."""
    cut, n = _cut_into_patches(problem, x), problem.ndim
    return lax.dot_general(cut, k, (((*range(n + 1, 2 * n + 2),), (*range(n + 1),)), ((), ())))


def patches_weight_grad(problem: Problem, x: Array, g: Array) -> Array:
    """Return dk as one matrix product of x cut into patches, and g."""
    return _contract(_cut_into_patches(problem, x), g)


def _cut_into_patches(problem: Problem, x: Array) -> Array:
    """Return x as (batch, *out, *kernel, channels)."""
    x = pad_input(problem, x)
    x = x.reshape(problem.batch, *interleaved(problem.out, problem.kernel), problem.channels)
    axes = range(1, 2 * problem.ndim + 1)
    return jnp.transpose(x, (0, *axes[::2], *axes[1::2], x.ndim - 1))


def single_position_applies(problem: Problem) -> bool:
    """Return True where x has a single spatial position, and the kernel several taps."""
    return _dense(problem) and problem.taps > 1 and max(problem.size) == 1


# With the one place l = 0 the equation reads r j = p - s i: the dilated kernel backwards, every s-th place of it.
def single_position(problem: Problem, x: Array, k: Array) -> Array:
    """Return y as one matrix product of x and the taps, in the order in which the outputs use them."""
    fields = (problem.strides, problem.low, problem.rhs_dilation, problem.kernel, problem.out)
    pads = [(p - r * (taps - 1), s * (m - 1) - p, r - 1) for s, p, r, taps, m in zip(*fields, strict=True)]
    used = pad(lax.rev(k, range(problem.ndim)), pads, 0)
    used = lax.slice(used, (0,) * used.ndim, used.shape, (*problem.strides, 1, 1))
    used = jnp.moveaxis(used, -2, 0).reshape(problem.channels, -1)
    return (x.reshape(problem.batch, -1) @ used).reshape(problem.batch, *problem.out, problem.features)


def multiples_apply(problem: Problem) -> bool:
    """Return True for one undilated channel, several features, and few enough taps."""
    widening = problem.channels == 1 < problem.features and 1 < problem.taps <= MAX_SUM_TERMS
    return _dense(problem) and widening and max(problem.lhs_dilation) == 1


def multiples(problem: Problem, x: Array, k: Array) -> Array:
    """Return y as a sum of multiples of the one channel of x, shifted by tap: one pass over y."""
    x = pad_input(problem, x)
    parts = (tap_view(problem, x, tap) * prepend_axes(k[tap], x.ndim) for tap in problem.tap_indices)
    return sum_parts(parts, (problem.batch, *problem.out, problem.features), x.dtype)


def rows_weight_grad_apply(problem: Problem) -> bool:
    """Return True for one undilated channel whose rows are no larger than twice y.

    In two dimensions XLA is as fast unless the features are many, or above 16 and no multiple of eight.
    """
    outputs, features = problem.batch * math.prod(problem.out), problem.features
    slow = features > 16 and (features % 8 > 0 or (features >= 32 and outputs >= MANY_OUTPUTS))
    flat = problem.ndim == 2 and slow and 4 * outputs * problem.taps <= 2 * MAX_COLUMN_BYTES
    return multiples_apply(problem) and (problem.ndim > 2 or flat) and problem.taps <= 2 * features


def rows_weight_grad(problem: Problem, x: Array, g: Array) -> Array:
    """Return dk as one matrix product of g and a matrix with a row for each tap: the elements of x that it reads."""
    x = pad_input(problem, x)
    rows = jnp.stack([tap_view(problem, x, tap).reshape(-1) for tap in problem.tap_indices])
    dk = rows @ g.reshape(-1, problem.features)
    return dk.reshape(*problem.kernel, problem.channels, problem.features)


def columns_apply(problem: Problem) -> bool:
    """Return True for one feature, no stride, and columns no larger than twice x; x dilated in three dimensions only.

    In one or two dimensions XLA is as fast where x is dilated.
    """
    one = problem.features == 1 < problem.taps <= 2 * problem.channels
    return (
        _dense(problem) and one and max(problem.strides) == 1 and (problem.ndim > 2 or max(problem.lhs_dilation) == 1)
    )


def columns(problem: Problem, x: Array, k: Array) -> Array:
    """Return y from one matrix product of x and all taps, whose columns are then added where each tap puts them."""
    table = jnp.moveaxis(k.reshape(problem.taps, problem.channels, problem.features), 0, 1)
    products = x @ table.reshape(problem.channels, -1)

    def parts() -> Iterator[Array]:
        for tap, found in overlaps(problem):
            start = problem.features * _flat_index(problem, tap)
            column = lax.slice_in_dim(products, start, start + problem.features, axis=-1)
            yield spread_to_y(problem, found, x_of(column, found))

    return sum_parts(parts(), (problem.batch, *problem.out, problem.features), x.dtype)


def planes_apply(problem: Problem) -> bool:
    """Return True for few features in two dimensions, where XLA multiplies more or in a slower way.

    It multiplies more where x is padded to become larger, and is slow on few channels or a number that is no multiple
    of four.
    """
    out, size, channels, features = math.prod(problem.out), math.prod(problem.size), problem.channels, problem.features
    small = 4 * problem.batch * size * problem.taps * features <= MAX_COLUMN_BYTES
    if not (_dense(problem) and problem.ndim == 2 and features > 1 and 1 < problem.taps <= MAX_SUM_TERMS and small):
        return False
    if _strided_or_dilated(problem) or (out > 4 * size and channels < 16):
        return False
    odd = channels > 8 and channels % 4 > 0
    return (
        (features <= 8 and channels <= 16)
        or (features <= 12 and (odd or 10 * out >= 19 * size))
        or (features <= 20 and channels >= 32 and 10 * out >= (13 if odd else 19) * size)
    )


# Features come before space, so that what is long comes last: a loop whose last axis is few features fills no vector.
def planes(problem: Problem, x: Array, k: Array) -> Array:
    """Return y as `columns` does, each feature of a tap a plane; the batch comes last where it is the longest axis."""
    batch_last = not is_symbolic(problem.batch) and problem.batch > problem.size[-1]
    x = jnp.moveaxis(x, (-1, 0), (0, -1)) if batch_last else jnp.moveaxis(x, -1, 0)
    table = jnp.swapaxes(k.reshape(problem.taps, problem.channels, problem.features), 1, 2)
    products = jnp.tensordot(table, x, 1)

    def part(tap: Sequence[int], found: Sequence[Overlap]) -> Array:
        def place(x: Array) -> Array:
            return spread_to_y(problem, found, x_of(x, found))

        return (place if batch_last else jax.vmap(place))(products[_flat_index(problem, tap)])

    lengths = (*problem.out, problem.batch) if batch_last else (problem.batch, *problem.out)
    y = sum_parts(itertools.starmap(part, overlaps(problem)), (problem.features, *lengths), x.dtype)
    return jnp.moveaxis(y, (0, -1), (-1, 0)) if batch_last else jnp.moveaxis(y, 0, -1)


def _flat_index(problem: Problem, tap: Sequence[int]) -> int:
    return int(np.ravel_multi_index(tuple(tap), problem.kernel))


def bands_weight_grad_apply(problem: Problem) -> bool:
    """Return True for few channels and a number of features, no multiple of eight, for which XLA's dk is slow."""
    if not _dense(problem) or problem.ndim != 2 or problem.taps == 1 or _strided_or_dilated(problem):
        return False
    rows = problem.out[0] + problem.rhs_dilation[0] * (problem.kernel[0] - 1)
    bands = 4 * problem.batch * rows * problem.out[1] * problem.kernel[1] * problem.channels
    awkward = problem.features > 16 and problem.features % 8 > 0
    return awkward and 1 < problem.channels <= 20 and bands <= 2 * MAX_COLUMN_BYTES


def bands_weight_grad(problem: Problem, x: Array, g: Array) -> Array:
    """Return dk, one matrix product for each row of the kernel: its taps side by side as channels of x, and g."""
    x = pad_input(problem, x)
    last, r = problem.kernel[-1], problem.rhs_dilation
    side_by_side = jnp.concatenate(
        [lax.slice_in_dim(x, r[1] * j, r[1] * j + problem.out[1], axis=2) for j in range(last)], axis=-1
    )
    rows = [
        lax.slice_in_dim(side_by_side, r[0] * j, r[0] * j + problem.out[0], axis=1) for j in range(problem.kernel[0])
    ]
    dk = jnp.stack([_contract(row, g) for row in rows])
    return dk.reshape(*problem.kernel, problem.channels, problem.features)


def slabs_apply(problem: Problem) -> bool:
    """Return True in three dimensions or more, for which XLA:CPU has no fast convolution."""
    return _dense(problem) and problem.ndim > 2 and problem.taps > 1 and problem.kernel[0] <= MAX_SLABS


def slabs(problem: Problem, x: Array, k: Array) -> Array:
    """Return y as a sum over taps of the first axis, each a convolution over the others with that axis as batch."""

    def parts() -> Iterator[Array]:
        for j in range(problem.kernel[0]):
            found = overlap(problem, 0, j)
            if found.length:
                inner = _without_first_axis(problem, found.length)
                y = convolve(inner, _as_batch(x, found.x, found.x_step, found.length), k[j])
                yield spread_to_y(problem, [found], y.reshape(problem.batch, found.length, *y.shape[1:]))

    return sum_parts(parts(), (problem.batch, *problem.out, problem.features), x.dtype)


def slabs_weight_grad_apply(problem: Problem) -> bool:
    """Return True where `slabs_apply` and x is not dilated: its dk is slow in any number of dimensions."""
    return slabs_apply(problem) and max(problem.lhs_dilation) == 1


def slabs_weight_grad(problem: Problem, x: Array, g: Array) -> Array:
    """Return dk, each tap of the first axis the dk of a convolution over the others."""
    zeros = jnp.zeros((*problem.kernel[1:], problem.channels, problem.features), x.dtype)

    def part(j: int) -> Array:
        found = overlap(problem, 0, j)
        if not found.length:
            return zeros
        inner = _without_first_axis(problem, found.length)
        x_rows = _as_batch(x, found.x, found.x_step, found.length)
        return convolve_weight_grad(inner, x_rows, _as_batch(g, found.y, found.y_step, found.length))

    return jnp.stack([part(j) for j in range(problem.kernel[0])])


def _without_first_axis(problem: Problem, count: int) -> Problem:
    fields = ("size", "kernel", "strides", "low", "lhs_dilation", "rhs_dilation", "out")
    return replace(problem, batch=problem.batch * count, **{name: getattr(problem, name)[1:] for name in fields})


def _as_batch(x: Array, first: int, step: int, count: int) -> Array:
    """Return a slice of the first spatial axis of x, merged with the batch."""
    rows = strided_slice(x, [(first, count, step)])
    return rows.reshape(-1, *rows.shape[2:])


def convolve(problem: Problem, x: Array, k: Array) -> Array:
    """Return y by XLA's convolution, of at most two dimensions: for these XLA:CPU is fast."""
    if problem.taps == 1 and not is_symbolic(*problem.size, *problem.out):
        return tap_products(problem, x, k)
    if problem.ndim > 2:
        return slabs(problem, x, k)
    return canonical(problem, x, k)


# s i + r j = d l + p, read for j: a convolution of x by g, with channels as batch and batch as channels, stride r and
# dilation s. XLA:CPU puts a convolution's axes in the order it needs only at the top of a program, not in a call or a
# loop, where it is many times slower in any other order: so the axes are moved here.
def convolve_weight_grad(problem: Problem, x: Array, g: Array) -> Array:
    """Return dk by XLA's convolution of x with g, of at most two dimensions."""
    if problem.ndim > 2:
        return slabs_weight_grad(problem, x, g)
    swapped = replace(
        problem,
        batch=problem.channels,
        channels=problem.batch,
        kernel=problem.out,
        out=problem.kernel,
        strides=problem.rhs_dilation,
        rhs_dilation=problem.strides,
    )
    return jnp.moveaxis(convolve(swapped, jnp.swapaxes(x, 0, -1), jnp.moveaxis(g, 0, -2)), 0, -2)


def exchanged_weight_grad_applies(problem: Problem) -> bool:
    """Return True where x alone is dilated, and y not strided, in one or two dimensions and several channels."""
    several = problem.channels > FEW_CHANNELS
    return _dense(problem) and several and problem.ndim <= 2 and max(problem.lhs_dilation) > max(problem.strides) == 1


def exchanged_weight_grad(problem: Problem, x: Array, g: Array) -> Array:
    """Return dk as the dk of the transposed convolution, in which x and y change places."""
    transposed = problem.transposed
    return transposed.transposed_kernel(convolve_weight_grad(transposed, g, x))
