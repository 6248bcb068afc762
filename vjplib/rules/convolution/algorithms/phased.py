"""Dense convolutions of a dilated input at stride 1: all phases of the output at once, no zero multiplied."""

import math
from dataclasses import replace
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from vjplib.rules.convolution.algorithms.dense import convolve
from vjplib.rules.convolution.algorithms.spatial import interleaved, pad, strided_slice, weave_phases
from vjplib.rules.convolution.problem import Problem

FEW_FEATURES = 4  # up to which XLA is slow where x is dilated, if the taps are many
MANY_TAPS = 25  # from which on it is


class PhaseCut(NamedTuple):
    """One axis of y cut into d phases."""

    before: int  # elements put before y, so that phases share as many shifts of x as possible
    rest: int  # (p + before) modulo d
    first: int  # the least shift of x that feeds any phase
    shifts: int  # the number of shifts that feed any
    length: int  # the number of elements of a phase


# With s = 1 an output i = d q + f - b, of phase f, meets the taps j with d l = d q + f + r j - (p + b), that is those
# with r j = d t + (p + b) - f for some t; and then l = q + t. So y, its phases side by side as features, is a
# convolution at stride 1 of x over the shifts t. Of e = r (k - 1) + 1 places that the taps span, the fewest shifts that
# reach all are (e - 1) // d + 1; they do if (p + b) mod d is at least (e - 1) mod d, for which there is a b.
def phase_cut(problem: Problem, axis: int) -> PhaseCut:
    """Return how one axis of y is cut into phases, at stride 1."""
    d, p = problem.lhs_dilation[axis], problem.low[axis]
    span, rest = divmod(problem.rhs_dilation[axis] * (problem.kernel[axis] - 1), d)
    before = max(0, rest - p % d)
    first, left = divmod(p + before, d)
    return PhaseCut(before, left, -first, span + 1, -(-(problem.out[axis] + before) // d))


def undilated(problem: Problem) -> Problem:
    """Return the convolution of the undilated x, at stride 1, whose features are those of all phases."""
    cuts = [phase_cut(problem, axis) for axis in range(problem.ndim)]
    ones = (1,) * problem.ndim
    return replace(
        problem,
        kernel=tuple(c.shifts for c in cuts),
        features=problem.features * math.prod(problem.lhs_dilation),
        low=tuple(-c.first for c in cuts),
        lhs_dilation=ones,
        rhs_dilation=ones,
        out=tuple(c.length for c in cuts),
    )


def phases_apply(problem: Problem) -> bool:
    """Return True for a dilated x and no stride, with few features of many taps, or one shift of x a phase."""
    if problem.groups > 1 or problem.ndim == 0 or max(problem.strides) > 1 or max(problem.lhs_dilation) == 1:
        return False
    few = problem.features <= FEW_FEATURES and problem.ndim == 2 and problem.taps >= MANY_TAPS
    return few or undilated(problem).taps == 1 < problem.taps


def phases(problem: Problem, x: Array, k: Array) -> Array:
    """Return y at stride 1 by one convolution of the undilated x, whose features are those of all phases of y."""
    cuts = [phase_cut(problem, axis) for axis in range(problem.ndim)]
    inner, n = undilated(problem), problem.ndim
    pads = [
        (d - 1 - c.rest, c.shifts * d - (d - 1 - c.rest) - r * (size - 1) - 1, r - 1)
        for c, d, r, size in zip(cuts, problem.lhs_dilation, problem.rhs_dilation, problem.kernel, strict=True)
    ]
    k = pad(k, pads, 0)
    k = k.reshape(*interleaved(inner.kernel, problem.lhs_dilation), problem.channels, problem.features)
    k = lax.rev(k, range(1, 2 * n, 2))
    k = jnp.transpose(k, (*range(0, 2 * n, 2), 2 * n, *range(1, 2 * n, 2), 2 * n + 1))
    y = convolve(inner, x, k.reshape(*inner.kernel, problem.channels, inner.features))
    y = y.reshape(problem.batch, *inner.out, *problem.lhs_dilation, problem.features)
    y = weave_phases(y, n)
    return strided_slice(y, [(c.before, m, 1) for c, m in zip(cuts, problem.out, strict=True)])
