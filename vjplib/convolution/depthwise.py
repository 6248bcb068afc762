"""One channel a group: sums of shifted copies, for which no matrix product is needed."""

import itertools
import math
import operator
from collections.abc import Callable, Iterator, Sequence
from functools import partial, reduce

import jax
import jax.numpy as jnp
from jax import lax

from vjplib.convolution.places import every, padded, total
from vjplib.convolution.problem import Problem, valid
from vjplib.rules._cotangents import prepend_axes

Array = jax.Array
Block = Callable[[int, int, int], Array]
"""What returns the part of an array from first to end along an axis, given axis, first and end."""

MOST_TAPS = 128  # beyond, the program of one sum takes longer to compile than it saves
OWN_PADS = 9  # taps up to which a pad of its own for each is faster than slices of a shared one
UNROLLED = 9  # taps up to which their gradients are sums of their own; beyond, a loop over them compiles faster
BLOCKS = 8  # products added before a sum is taken: more make larger programs, fewer larger temporaries


def kernel_applies(problem: Problem) -> bool:
    """Returns whether `kernel` serves: where `taps` does, but for one channel, where XLA has a dot product."""
    return taps_apply(problem) and problem.groups > 1


def taps_apply(problem: Problem) -> bool:
    """Returns whether shifted copies serve: one channel a group, no dilated x, few enough taps."""
    return _apply(problem) and max(problem.lhs_dilation, default=1) == 1


def phases_apply(problem: Problem) -> bool:
    """Returns whether shifted copies by phase serve: one channel a group, x dilated, every output wanted."""
    return _apply(problem) and max(problem.strides, default=1) == 1


def _apply(problem: Problem) -> bool:
    # One channel that many features are made of is a matrix product at heart.
    few = problem.groups > 1 or problem.features == 1
    return problem.ndim > 0 and problem.depth == 1 and few and problem.taps <= MOST_TAPS


def taps(problem: Problem, x: Array, k: Array) -> Array:
    """Returns y, each tap's part of it a slice of x times one number a channel."""
    x, k = _repeated(x, problem.width), k.reshape(*problem.kernel, problem.features)
    if problem.features == 1:  # the last axis is the one that is worked along, and should be long
        x, k = x[..., 0], k[..., 0]
    strided = max(problem.strides, default=1) > 1
    own = problem.taps <= OWN_PADS and (problem.ndim == 1 or strided)
    parts = _own_pads(problem, x, k) if own else _shared_pad(problem, x, k)
    y = total(parts, (problem.batch, *problem.out, *x.shape[1 + problem.ndim :]), x.dtype)
    return y.reshape(problem.batch, *problem.out, problem.features)


def _own_pads(problem: Problem, x: Array, k: Array) -> Iterator[Array]:
    for tap in problem.every_tap:
        ranges = valid(problem, tap)
        if all(i0 < i1 for i0, i1, _ in ranges):
            piece = every(x, [(l0, i1 - i0, s) for (i0, i1, l0), s in zip(ranges, problem.strides, strict=True)])
            piece = padded(piece, [(i0, m - i1) for (i0, i1, _), m in zip(ranges, problem.out, strict=True)])
            yield piece * prepend_axes(k[tap], x.ndim)


def _shared_pad(problem: Problem, x: Array, k: Array) -> Iterator[Array]:
    whole = padded(x, zip(problem.low, problem.high, strict=True))
    for tap in problem.every_tap:
        steps = zip(problem.rhs_dilation, tap, problem.out, problem.strides, strict=True)
        yield every(whole, [(r * j, m, s) for r, j, m, s in steps]) * prepend_axes(k[tap], x.ndim)


# With s = 1 an output i = q d + f, of phase f, meets the taps j with d l = q d + f + r j - p, that is with
# f + r j - p = d t for some t, and then l = q + t. For one t and f that is one j at most: x shifted by t, times a table
# of numbers over the phases, is a part of all phases at once, and the phases lie side by side as (q, f) do in i.
def phases(problem: Problem, x: Array, k: Array) -> Array:
    """Returns y at stride 1, where x is dilated, each shift of x feeding all phases of the output at once."""
    x, k = _repeated(x, problem.width), k.reshape(*problem.kernel, problem.features)
    d = problem.lhs_dilation
    quotients = [-(-m // e) for m, e in zip(problem.out, d, strict=True)]
    tables = [_phase_table(*row) for row in zip(d, problem.low, problem.rhs_dilation, problem.kernel, strict=True)]
    low = [max(0, -min(table)) for table in tables]
    high = [max(0, max(t) + q - n) for t, q, n in zip(tables, quotients, problem.size, strict=True)]
    whole = padded(x, zip(low, high, strict=True))
    none = jnp.zeros(problem.features, k.dtype)

    def parts() -> Iterator[Array]:
        for shifts in itertools.product(*tables):
            fed = itertools.product(*(table[t] for table, t in zip(tables, shifts, strict=True)))
            numbers = jnp.stack([none if None in tap else k[tap] for tap in fed])
            shifted = every(whole, [(p + t, q, 1) for p, t, q in zip(low, shifts, quotients, strict=True)])
            yield shifted.reshape(problem.batch, *_paired(quotients, 1), problem.features) * numbers.reshape(
                1, *_paired([1] * problem.ndim, *d), problem.features
            )

    y = total(parts(), (problem.batch, *_paired(quotients, *d), problem.features), x.dtype)
    y = y.reshape(problem.batch, *(q * e for q, e in zip(quotients, d, strict=True)), problem.features)
    return every(y, [(0, m, 1) for m in problem.out])


def _phase_table(d: int, p: int, r: int, taps: int) -> dict[int, list[int | None]]:
    """Returns for each shift t the tap that feeds each phase f of the d: the j with f + r j - p = d t."""
    table: dict[int, list[int | None]] = {}
    for f, j in itertools.product(range(d), range(taps)):
        t, rest = divmod(f + r * j - p, d)
        if not rest:
            table.setdefault(t, [None] * d)[f] = j
    return table


def _paired(sizes: Sequence[int], *other: int) -> list[int]:
    others = other if len(other) == len(sizes) else other * len(sizes)
    return [n for pair in zip(sizes, others, strict=True) for n in pair]


def kernel(problem: Problem, x: Array, g: Array) -> Array:
    """Returns dk, for each tap the sum over rows and places of x, as it meets that tap, times g."""
    x = _repeated(x, problem.width)
    dk = tap_by_tap(problem, x, lambda block: inner(block, g)) if problem.taps > UNROLLED else _all_taps(problem, x, g)
    return dk.reshape(*problem.kernel, 1, problem.features)


def _all_taps(problem: Problem, x: Array, g: Array) -> Array:
    """Returns dk, (taps, features), one sum after the other: what meets padding is left out."""
    sums = []
    for tap in problem.every_tap:
        ranges = valid(problem, tap)
        xs = every(x, [(l0, i1 - i0, s) for (i0, i1, l0), s in zip(ranges, problem.strides, strict=True)])
        gs = every(g, [(i0, i1 - i0, 1) for i0, i1, _ in ranges])
        sums.append(inner(partial(_block, xs), gs))
    return jnp.stack(sums)


def tap_by_tap(problem: Problem, x: Array, sums: Callable[[Block], Array]) -> Array:
    """Returns the sums of each tap, stacked: a loop whose program is that of one tap, x padded read where it lies.

    Args:
        problem: without lhs_dilation.
        x: (batch, *size, channels).
        sums: takes what reads a block of those places of x that all of y meet by the tap.
    """
    whole = padded(x, zip(problem.low, problem.high, strict=True))
    met, strides = (problem.batch, *problem.out, x.shape[-1]), (1, *problem.strides, 1)

    def one(tap: Array) -> Array:
        place = jnp.unravel_index(tap, problem.kernel)
        starts = [0, *(r * j for r, j in zip(problem.rhs_dilation, place, strict=True)), 0]

        def block(axis: int, first: int, end: int) -> Array:
            counts = [end - first if i == axis else n for i, n in enumerate(met)]
            start = [at + (first * strides[axis] if i == axis else 0) for i, at in enumerate(starts)]
            sizes = [(n - 1) * s + 1 if n else 0 for n, s in zip(counts, strides, strict=True)]
            return lax.slice(lax.dynamic_slice(whole, start, sizes), [0] * len(sizes), sizes, strides)

        return sums(block)

    return lax.map(one, jnp.arange(problem.taps))


def _block(x: Array, axis: int, first: int, end: int) -> Array:
    return lax.slice_in_dim(x, first, end, axis=axis)


def inner(block: Block, g: Array) -> Array:
    """Returns the sum of x g over all axes but the last, where block(axis, first, end) is a part of x.

    Products of blocks are added first, in one pass over x and g; what is left is summed by a matrix product with ones,
    for XLA:CPU reduces leading axes slowly. Blocks lie in space: a batch may be on many devices.
    """
    axis = max(range(1, g.ndim - 1) or (0,), key=lambda i: (min(g.shape[i], BLOCKS), -i))
    places = g.shape[axis]
    blocks = next((n for n in (BLOCKS, BLOCKS - 1) if places % n == 0), max(1, min(BLOCKS, places)))
    size = places // blocks
    bounds = [(i * size, (i + 1) * size) for i in range(blocks)]
    products = [reduce(operator.add, (block(axis, *at) * _block(g, axis, *at) for at in bounds))]
    if blocks * size < places:
        products.append(block(axis, blocks * size, places) * _block(g, axis, blocks * size, places))
    rows = [u.reshape(math.prod(u.shape[:-1]), u.shape[-1]) for u in products]
    return reduce(operator.add, (jnp.ones(u.shape[0], u.dtype) @ u for u in rows))


def _repeated(x: Array, times: int) -> Array:
    return jnp.repeat(x, times, axis=-1) if times > 1 else x
