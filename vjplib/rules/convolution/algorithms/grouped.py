"""Several channels a group: few of them as sums of depthwise convolutions, more as dense ones over blocks of groups."""

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import jax.numpy as jnp
from jax import Array

from vjplib.compat import no_inline
from vjplib.rules._cotangents import prepend_axes
from vjplib.rules.convolution.algorithms import depthwise
from vjplib.rules.convolution.algorithms.spatial import MAX_SUM_TERMS, pad, pad_input, strided_slice, weave_phases
from vjplib.rules.convolution.problem import Problem

Product = Callable[[Problem, Array, Array], Array]

MAX_LANE_TERMS = 100  # taps times channels of one sum: XLA:CPU no longer vectorises a loop of 144 (10 times slower)
MAX_KERNEL_NUMBERS = 9216  # that one sum reads for every output: 36 kB stay in the first cache
FEW_GROUP_CHANNELS = 4  # up to which dk is faster by sums than by blocks
SMALL_OUTPUT = 2**18  # elements of y below which blocks cost little more, and take a third of the time to compile
BLOCK_FEATURES = 32  # from which on XLA's dense convolution runs at the processor's speed
MAX_BLOCKS = 64  # a convolution each, for the sake of compile time


def lanes_apply(problem: Problem) -> bool:
    """Return True for several groups, few enough channels and taps, and no stride or no dilated x."""
    return (
        problem.groups > 1
        and problem.depth > 1
        and problem.depth * problem.taps <= MAX_LANE_TERMS
        and min(max(problem.strides, default=1), max(problem.lhs_dilation, default=1)) == 1
    )


# y_f = sum over d of a depthwise convolution of channel d of f's group: one number a feature and tap, as in depthwise.
def lanes(problem: Problem, x: Array, k: Array) -> Array:
    """Return y, the sum over d of depthwise convolutions of each group's d-th channel, repeated for its features."""
    groups = max(1, MAX_KERNEL_NUMBERS // (problem.taps * problem.depth * problem.width))
    parts = list(_parts(problem, groups))
    if len(parts) == 1:
        return _lanes(problem, x, k)
    # Without the wall XLA makes the concatenation one loop, in which each element decides which part it lies in.
    ys = [no_inline(partial(_lanes, part))(x[..., xs], k[..., ys]) for part, xs, ys in parts]
    return jnp.concatenate(ys, axis=-1)


def _lanes(problem: Problem, x: Array, k: Array) -> Array:
    if max(problem.lhs_dilation, default=1) > 1:
        return _lanes_by_phase(problem, x, k)
    if max(problem.strides, default=1) == 1:  # padded before it is repeated, so that one padded copy serves all d
        x = pad_input(problem, x)
        problem = replace(problem, size=x.shape[1:-1], low=(0,) * problem.ndim)
    each = replace(problem, channels=problem.features, groups=problem.features)
    # All taps of one d before the next: in the other order the loop is twice as slow.
    parts = [
        depthwise.shifted_copies(each, _channel(problem, x, d), k[..., d : d + 1, :]) for d in range(problem.depth)
    ]
    return sum(parts[1:], parts[0])


# With s = 1 an output i = q d + f, of phase f, meets the taps j with f + r j - p = d t for some t: every (d / gcd)-th
# tap, t going up by r / gcd, with gcd that of d and r. So each phase is a convolution at stride 1 of x not dilated.
def _lanes_by_phase(problem: Problem, x: Array, k: Array) -> Array:
    """Return y at stride 1, where x is dilated, each phase of y by a convolution of its own."""
    d = problem.lhs_dilation
    quotients = tuple(-(-m // e) for m, e in zip(problem.out, d, strict=True))
    axes = [[_phase(problem, axis, f) for f in range(d[axis])] for axis in range(problem.ndim)]
    shifts = [[t for taps, first, step in axis for t in (first + step * i for i in range(len(taps)))] for axis in axes]
    low = tuple(max(0, -min(t)) for t in shifts)
    high = tuple(max(0, max(t) + q - n) for t, q, n in zip(shifts, quotients, problem.size, strict=True))
    x = pad(x, zip(low, high, strict=True))

    def of_phase(phase: tuple[tuple[range, int, int], ...]) -> Array:
        if not all(taps for taps, _, _ in phase):
            return jnp.zeros((problem.batch, *quotients, problem.features), x.dtype)
        inner = replace(
            problem,
            size=x.shape[1:-1],
            kernel=tuple(len(taps) for taps, _, _ in phase),
            low=tuple(-(p + first) for p, (_, first, _) in zip(low, phase, strict=True)),
            lhs_dilation=(1,) * problem.ndim,
            rhs_dilation=tuple(step for _, _, step in phase),
            out=quotients,
        )
        return _lanes(inner, x, k[tuple(slice(taps.start, taps.stop, taps.step) for taps, _, _ in phase)])

    y = jnp.stack([of_phase(phase) for phase in itertools.product(*axes)], axis=-2)
    y = weave_phases(y.reshape(problem.batch, *quotients, *d, problem.features), problem.ndim)
    return strided_slice(y, [(0, m, 1) for m in problem.out])


def _phase(problem: Problem, axis: int, f: int) -> tuple[range, int, int]:
    """Return the taps that feed phase f of one axis of y, the shift of x at the first, and the shifts' step."""
    d, p, r = problem.lhs_dilation[axis], problem.low[axis], problem.rhs_dilation[axis]
    common = math.gcd(d, r)
    first = next((j for j in range(min(d // common, problem.kernel[axis])) if not (f + r * j - p) % d), None)
    if first is None:
        return range(0), 0, 1
    return range(first, problem.kernel[axis], d // common), (f + r * first - p) // d, r // common


def lanes_weight_grad_apply(problem: Problem) -> bool:
    """Return True for several groups of few channels, few taps, an undilated x, and a large y."""
    return (
        problem.groups > 1
        and 1 < problem.depth <= FEW_GROUP_CHANNELS
        and problem.taps <= MAX_SUM_TERMS
        and problem.batch * math.prod(problem.out) * problem.features >= SMALL_OUTPUT
        and max(problem.lhs_dilation, default=1) == 1
    )


def lanes_weight_grad(problem: Problem, x: Array, g: Array) -> Array:
    """Return dk, for each tap and d the sum over batch and space of each group's d-th channel times g."""

    def sums(block: depthwise.Block) -> Array:
        return jnp.stack(
            [depthwise.inner(lambda *at, d=d: _channel(problem, block(*at), d), g) for d in range(problem.depth)]
        )

    dk = depthwise.tap_by_tap(problem, x, sums)
    return dk.reshape(*problem.kernel, problem.depth, problem.features)


def _channel(problem: Problem, x: Array, d: int) -> Array:
    """Return each group's d-th channel, repeated for the group's features: (batch, *size, features)."""
    x = x.reshape(*x.shape[:-1], problem.groups, problem.depth)[..., d]
    return jnp.repeat(x, problem.width, axis=-1)


def blocks_apply(problem: Problem) -> bool:
    """Return True for several groups of several channels."""
    return problem.groups > 1 and problem.depth > 1


def blocks(dense: Product, problem: Problem, x: Array, k: Array) -> Array:
    """Return y by `dense`, for one group: neighbouring groups become one, with a kernel that is zero between them."""
    parts = [
        dense(replace(part, groups=1), x[..., xs], _between_groups(part, k[..., ys]))
        for part, xs, ys in _parts(problem, _groups_in_block(problem))
    ]
    return jnp.concatenate(parts, axis=-1)


def blocks_weight_grad(dense: Product, problem: Problem, x: Array, g: Array) -> Array:
    """Return dk by `dense`, for one group, between all channels and features of a block; that within groups is kept."""
    parts = [
        _within_groups(part, dense(replace(part, groups=1), x[..., xs], g[..., ys]))
        for part, xs, ys in _parts(problem, _groups_in_block(problem))
    ]
    return jnp.concatenate(parts, axis=-1)


def _groups_in_block(problem: Problem) -> int:
    return max(-(-BLOCK_FEATURES // problem.width), -(-problem.groups // MAX_BLOCKS))


def _parts(problem: Problem, groups: int) -> Iterator[tuple[Problem, slice, slice]]:
    """Yield the problem cut into parts of this many groups, with the channels and features of each."""
    for first in range(0, problem.groups, groups):
        count = min(groups, problem.groups - first)
        xs = slice(first * problem.depth, (first + count) * problem.depth)
        ys = slice(first * problem.width, (first + count) * problem.width)
        part = replace(problem, channels=count * problem.depth, features=count * problem.width, groups=count)
        yield part, xs, ys


def _between_groups(problem: Problem, k: Array) -> Array:
    """Return k, (*kernel, depth, features), as (*kernel, channels, features) with zeros between groups."""
    same = jnp.arange(problem.groups)[:, None, None] == jnp.arange(problem.features)[None, None, :] // problem.width
    k = jnp.where(prepend_axes(same, k.ndim + 1), k[..., None, :, :], 0)
    return k.reshape(*problem.kernel, problem.channels, problem.features)


def _within_groups(problem: Problem, dk: Array) -> Array:
    """Return the transpose of `_between_groups`: what lies within groups."""
    dk = dk.reshape(*problem.kernel, problem.groups, problem.depth, problem.groups, problem.width)
    dk = jnp.diagonal(dk, axis1=-4, axis2=-2)
    return jnp.moveaxis(dk, -1, -2).reshape(*problem.kernel, problem.depth, problem.features)
