"""One channel a group: sums of shifted copies, for which no matrix product is needed."""

import itertools
import math
import operator
from collections.abc import Callable, Iterable, Iterator
from functools import partial, reduce

import jax.numpy as jnp
from jax import Array, lax

from vjplib.compat import is_symbolic
from vjplib.rules._cotangents import prepend_axes
from vjplib.rules.convolution.algorithms.spatial import (
    MAX_SUM_TERMS,
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
from vjplib.rules.convolution.problem import Problem

Block = Callable[[int, int, int], Array]  # takes (axis, first, end), and returns this slice of an array

MAX_OWN_PADS = 9  # taps up to which a pad of its own for each is faster than slices of a shared one
MAX_UNROLLED = 9  # taps times dimensions up to which their gradients are sums of their own: a loop compiles faster
MAX_COPIED = 2**22  # elements of x up to which a loop, which copies x by phases, is about as fast where y is strided
BLOCKS = 8  # products added before a sum is taken: more make larger programs, fewer larger temporaries


def _depthwise(problem: Problem) -> bool:
    # One channel that many features are made of is a matrix product at heart.
    few = problem.groups > 1 or problem.features == 1
    return problem.ndim > 0 and problem.depth == 1 and few and problem.taps <= MAX_SUM_TERMS


def _repeat(x: Array, times: int) -> Array:
    return jnp.repeat(x, times, axis=-1) if times > 1 else x


def shifted_copies_apply(problem: Problem) -> bool:
    """Return True for one channel a group, an undilated x and few enough taps."""
    return _depthwise(problem) and max(problem.lhs_dilation, default=1) == 1


def shifted_copies(problem: Problem, x: Array, k: Array) -> Array:
    """Return y as a sum over taps, each a slice of x times one number a channel."""
    x, k = _repeat(x, problem.width), k.reshape(*problem.kernel, problem.features)
    if problem.features == 1:  # the last axis is the one that is worked along, and should be long
        x, k = x[..., 0], k[..., 0]
    strided = max(problem.strides, default=1) > 1
    own = problem.taps <= MAX_OWN_PADS and (problem.ndim == 1 or strided)
    if own:
        copies = ((tap, spread_to_y(problem, found, x_of(x, found))) for tap, found in overlaps(problem))
    else:
        padded = pad_input(problem, x)
        copies = ((tap, tap_view(problem, padded, tap)) for tap in problem.tap_indices)
    parts = (copy * prepend_axes(k[tap], x.ndim) for tap, copy in copies)
    y = sum_parts(parts, (problem.batch, *problem.out, *x.shape[1 + problem.ndim :]), x.dtype)
    return y.reshape(problem.batch, *problem.out, problem.features)


def copies_by_phase_apply(problem: Problem) -> bool:
    """Return True for one channel a group and no stride; x may be dilated."""
    return _depthwise(problem) and max(problem.strides, default=1) == 1


# With s = 1 an output i = q d + f, of phase f, meets the taps j with d l = q d + f + r j - p, that is with
# f + r j - p = d t for some t, and then l = q + t. For one t and f that is one j at most: x shifted by t, times a table
# of numbers over the phases, is a part of all phases at once, and the phases lie side by side as (q, f) do in i.
def copies_by_phase(problem: Problem, x: Array, k: Array) -> Array:
    """Return y at stride 1, where x is dilated, each shift of x feeding all phases of the output at once."""
    x, k = _repeat(x, problem.width), k.reshape(*problem.kernel, problem.features)
    d, ones = problem.lhs_dilation, (1,) * problem.ndim
    quotients = [-(-m // e) for m, e in zip(problem.out, d, strict=True)]
    tables = [_phase_table(*row) for row in zip(d, problem.low, problem.rhs_dilation, problem.kernel, strict=True)]
    low = [max(0, -min(table)) for table in tables]
    high = [max(0, max(t) + q - n) for t, q, n in zip(tables, quotients, problem.size, strict=True)]
    padded = pad(x, zip(low, high, strict=True))
    zeros = jnp.zeros(problem.features, k.dtype)

    def parts() -> Iterator[Array]:
        for shifts in itertools.product(*tables):
            fed = itertools.product(*(table[t] for table, t in zip(tables, shifts, strict=True)))
            numbers = jnp.stack([zeros if None in tap else k[tap] for tap in fed])
            shifted = strided_slice(padded, [(p + t, q, 1) for p, t, q in zip(low, shifts, quotients, strict=True)])
            shifted = shifted.reshape(problem.batch, *interleaved(quotients, ones), problem.features)
            yield shifted * numbers.reshape(1, *interleaved(ones, d), problem.features)

    y = sum_parts(parts(), (problem.batch, *interleaved(quotients, d), problem.features), x.dtype)
    y = y.reshape(problem.batch, *(q * e for q, e in zip(quotients, d, strict=True)), problem.features)
    return strided_slice(y, [(0, m, 1) for m in problem.out])


def _phase_table(d: int, p: int, r: int, taps: int) -> dict[int, list[int | None]]:
    """Return for each shift t the tap that feeds each phase f of the d: the j with f + r j - p = d t."""
    table: dict[int, list[int | None]] = {}
    for f, j in itertools.product(range(d), range(taps)):
        t, rest = divmod(f + r * j - p, d)
        if not rest:
            table.setdefault(t, [None] * d)[f] = j
    return table


def weight_grad_applies(problem: Problem) -> bool:
    """Return True where shifted copies apply, in several groups: for a single channel XLA has a dot product."""
    return shifted_copies_apply(problem) and problem.groups > 1


def weight_grad(problem: Problem, x: Array, g: Array) -> Array:
    """Return dk, for each tap the sum of g times the elements of x that the tap reads."""
    x = _repeat(x, problem.width)
    dk = tap_by_tap(problem, x, lambda block: inner(block, g)) if _loops(problem) else _unrolled_taps(problem, x, g)
    return dk.reshape(*problem.kernel, 1, problem.features)


def _loops(problem: Problem) -> bool:
    """Return True for taps enough that a loop over them compiles faster, unless it would copy a large strided x."""
    if problem.taps * problem.ndim <= MAX_UNROLLED:
        return False
    elements = math.prod(problem.size) * problem.features
    small = not is_symbolic(problem.batch) and problem.batch * elements <= MAX_COPIED
    return max(problem.strides) == 1 or problem.taps > MAX_UNROLLED or small


def _unrolled_taps(problem: Problem, x: Array, g: Array) -> Array:
    """Return dk, (taps, features), one sum after the other; products with padding are left out."""
    sums = []
    for tap in problem.tap_indices:
        found = [overlap(problem, axis, j) for axis, j in enumerate(tap)]
        sums.append(inner(partial(_slice, x_of(x, found)), y_of(g, found)))
    return jnp.stack(sums)


# A tap at = r j reads the elements s i + at of the padded x: with its s phases apart, consecutive ones of one phase,
# at mod s, from at div s on.
def tap_by_tap(problem: Problem, x: Array, sums: Callable[[Block], Array]) -> Array:
    """Return the sums of each tap, stacked: a loop whose program is that of one tap and reads the padded x in place.

    `sums` takes a `Block` of the elements of x, (batch, *size, channels) and undilated, that one tap reads, one for
    each output.
    """
    s = problem.strides
    reach = [r * (k - 1) for r, k in zip(problem.rhs_dilation, problem.kernel, strict=True)]
    lengths = [m + w // e for m, w, e in zip(problem.out, reach, s, strict=True)]
    fields = zip(problem.low, lengths, s, problem.size, strict=True)
    phases = pad(x, [(low, e * length - low - n) for low, length, e, n in fields])
    phases = phases.reshape(problem.batch, *_phased(lengths, s, s), x.shape[-1])
    view, at = (problem.batch, *problem.out, x.shape[-1]), [0, *_phased(range(1, x.ndim - 1), s, [-1] * len(s)), -1]

    def one(start: Array) -> Array:
        def block(axis: int, first: int, end: int) -> Array:
            counts = [end - first if i == axis else n for i, n in enumerate(view)]
            begin = [0, *start, 0]
            begin[at.index(axis)] += first
            sizes = (counts[0], *_phased(counts[1:-1], s, [1] * len(s)), counts[-1])
            return lax.dynamic_slice(phases, begin, sizes).reshape(counts)

        return sums(block)

    offsets = ([r * j for r, j in zip(problem.rhs_dilation, tap, strict=True)] for tap in problem.tap_indices)
    starts = [_phased(map(operator.floordiv, o, s), s, map(operator.mod, o, s)) for o in offsets]
    return lax.map(one, jnp.asarray(starts))


def _phased(counts: Iterable[int], strides: Iterable[int], phases: Iterable[int]) -> list[int]:
    """Return a number for each spatial axis, and after it one for the axis of its phases where it is strided."""
    fields = zip(counts, strides, phases, strict=True)
    return [n for count, s, phase in fields for n in ((count, phase) if s > 1 else (count,))]


def _slice(x: Array, axis: int, first: int, end: int) -> Array:
    return lax.slice_in_dim(x, first, end, axis=axis)


def inner(block: Block, g: Array) -> Array:
    """Return the sum of x g over all axes but the last, where block(axis, first, end) is a slice of x.

    Products of blocks are added first, in one pass over x and g; what is left is summed by a matrix product with ones,
    for XLA:CPU reduces leading axes slowly. Blocks divide a spatial axis: a batch may be on many devices.
    """
    axis = max(range(1, g.ndim - 1) or (0,), key=lambda i: (min(g.shape[i], BLOCKS), -i))
    length = g.shape[axis]
    blocks = next((n for n in (BLOCKS, BLOCKS - 1) if length % n == 0), max(1, min(BLOCKS, length)))
    size = length // blocks
    bounds = [(i * size, (i + 1) * size) for i in range(blocks)]
    products = [reduce(operator.add, (block(axis, *at) * _slice(g, axis, *at) for at in bounds))]
    if blocks * size < length:
        products.append(block(axis, blocks * size, length) * _slice(g, axis, blocks * size, length))
    rows = [u.reshape(math.prod(u.shape[:-1]), u.shape[-1]) for u in products]
    return reduce(operator.add, (jnp.ones(u.shape[0], u.dtype) @ u for u in rows))
