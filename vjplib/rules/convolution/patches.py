"""The patches of x under a convolution's window, as slices; their cotangents are added where the windows overlap."""

import math
import operator
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Num

from vjplib.compat import custom_vjp, is_symbolic, no_inline
from vjplib.precision import REAL, upcast
from vjplib.rule import Case, Edge, Gain, Rule
from vjplib.rules._arguments import as_array, convolution_arguments
from vjplib.rules._cotangents import aval_token, like_primal
from vjplib.rules.convolution.algorithms.spatial import interleaved, pad, pad_input, strided_slice, tap_view
from vjplib.rules.convolution.call import ConvCall, lax_patches, make_call
from vjplib.rules.convolution.dispatch import by_platform
from vjplib.rules.convolution.general import CHANNELS_LAST, Padding

MAX_SLICES = 256  # beyond, the program of one slice a tap takes longer to compile than it saves


def conv_general_dilated_patches(
    lhs: Num[ArrayLike, "..."],
    filter_shape: Sequence[int],
    window_strides: Sequence[int],
    padding: Padding,
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = None,
    precision: Any = None,
    preferred_element_type: DTypeLike | None = None,
) -> Num[Array, "..."]:
    """y_{i, c j} = x_{l, c} with s i + r j = d l + p: `jax.lax.conv_general_dilated_patches`, by slices.

    lax multiplies by an identity kernel. On CPU this copies instead, so that a patch has the values of x; lax's sum
    gives NaN in all elements that share a window with a NaN or an infinity.

    Args:
        lhs: x, of rank n + 2.
        filter_shape: the window's sizes, n integers in the order of dimension_numbers[1].
        window_strides: s, n integers.
        padding: "SAME", "SAME_LOWER", "VALID", or n pairs (low, high), which may be negative.
        lhs_dilation: d, n integers; None for ones.
        rhs_dilation: r, n integers; None for ones.
        dimension_numbers: as for `conv_general_dilated`.
        precision: as in lax.
        preferred_element_type: dtype of the result, None for the dtype of x.

    Returns:
        y, whose features are channels times window elements, the channels varying slower.

    Raises:
        TypeError: an argument has a wrong type; the message names it.
        ValueError: filter_shape, strides, dilations, padding or dimension_numbers do not fit x.

    Example:
        >>> conv_general_dilated_patches(jnp.array([[[1.0, 2.0, 3.0]]]), (2,), (1,), "VALID").tolist()
        [[[1.0, 2.0], [2.0, 3.0]]]

    Source:
        Example 4.2 of the lecture: the shifted copies of x, whose product with the kernel is the convolution.
    """
    lhs = as_array("lhs", lhs)
    window = {"filter_shape": filter_shape, "dimension_numbers": dimension_numbers}
    filter_shape = convolution_arguments(lhs=lhs, **window)["filter_shape"]
    dimensions = lax.conv_dimension_numbers(lhs.shape, (1, 1, *filter_shape), dimension_numbers)
    channels = lhs.shape[dimensions.lhs_spec[1]]
    kernel = dict(zip(dimensions.rhs_spec, (channels * math.prod(filter_shape), 1, *filter_shape), strict=True))
    rhs = jax.ShapeDtypeStruct([kernel[i] for i in range(lhs.ndim)], lhs.dtype)
    window = (window_strides, padding, lhs_dilation, rhs_dilation, dimensions)
    call = make_call(lhs, rhs, *window, channels, 1, precision, preferred_element_type)
    return jnp.zeros(call.out, call.out_dtype(lhs)) if call.empty else _patches(lhs, call)


@partial(custom_vjp, nondiff_argnames=("call",))
def _patches(x: Array, call: ConvCall) -> Array:
    return _forward(x, call)


def fwd(x, call):
    return _forward(x, call), aval_token(x)


# y_{i, c j} = x_{l, c} with s i + r j = d l + p: a copy, so each x has the sum of the cotangents of its copies,
#   (g^T J)_{l, c} = sum over all i, j with s i + r j = d l + p of g_{i, c j}
# For one j that sum is g spread s apart; then what fell on padding, and between the places of x, is left out.
def bwd(call, x_token, g):
    return (like_primal(_input_grad(g, x_token, call), x_token),)


_patches.defvjp(fwd, bwd)


@partial(jax.jit, static_argnames="call")
def _forward(x, call):
    cut, _ = _algorithm(call)

    def on_cpu(x):
        return call.y_from_canonical(cut(call.problem, call.x_to_canonical(x))).astype(call.out_dtype(x))

    return by_platform(no_inline(on_cpu), partial(_lax_patches, call), x)


@partial(jax.jit, static_argnames="call")
def _input_grad(g, x_token, call):
    _, add = _algorithm(call)

    def on_cpu(g):
        g = call.y_to_canonical(g)
        g = upcast(g) if g.dtype in REAL else g
        return call.x_from_canonical(add(call.problem, g)).astype(x_token.aval.dtype)

    def elsewhere(g):
        return jax.linear_transpose(partial(_lax_patches, call), x_token.aval)(g)[0]

    return by_platform(no_inline(on_cpu), elsewhere, g)


def _lax_patches(call: ConvCall, x: Array) -> Array:
    return lax_patches(x, call.problem.kernel, *call.window, call.precision, call.preferred_element_type)


def _algorithm(call):
    """Return the functions that cut x into patches and that add the cotangents of patches to x."""
    problem = call.problem
    if not call.known or problem.sprawls:
        return _gathered, _scattered
    if problem.strides == problem.kernel and {*problem.lhs_dilation, *problem.rhs_dilation} <= {1}:
        return _tiles, _from_tiles  # the windows tile x: a patch is a block of it
    return (_slices, _from_slices) if problem.taps <= MAX_SLICES else (_gathered, _scattered)


def _slices(problem, x):
    padded = pad(x, zip(problem.low, problem.high, (d - 1 for d in problem.lhs_dilation), strict=True))
    pieces = [tap_view(problem, padded, tap) for tap in problem.tap_indices]
    return jnp.stack(pieces, axis=-1).reshape(problem.batch, *problem.out, problem.features)


def _from_slices(problem, g):
    g = g.reshape(problem.batch, *problem.out, problem.channels, problem.taps)
    ends = zip(problem.size, problem.lhs_dilation, problem.low, problem.high, strict=True)
    lengths = [(n - 1) * d + 1 + p + q for n, d, p, q in ends]  # of the padded x
    parts = []
    for i, tap in enumerate(problem.tap_indices):
        axes = zip(problem.rhs_dilation, tap, problem.out, problem.strides, lengths, strict=True)
        parts.append(pad(g[..., i], [(r * j, n - r * j - (m - 1) * s - 1, s - 1) for r, j, m, s, n in axes]))
    x = _crop(problem, sum(parts[1:], parts[0]))
    return strided_slice(x, [(0, n, d) for n, d in zip(problem.size, problem.lhs_dilation, strict=True)])


def _gathered(problem, x):
    """Return the patches by one gather an axis, which needs no padded x and allows symbolic sizes."""
    for axis in range(problem.ndim):  # (batch, out, k, out, k, ..., channels)
        x = jnp.take(x, _positions(problem, axis), axis=1 + 2 * axis, mode="fill", fill_value=0)
    return jnp.transpose(x, _order(problem)).reshape(problem.batch, *problem.out, problem.features)


def _scattered(problem, g):
    x = jax.ShapeDtypeStruct((problem.batch, *problem.size, problem.channels), g.dtype)
    return jax.linear_transpose(partial(_gathered, problem), x)(g)[0]


def _positions(problem, axis):
    """Return the index into x that each tap of each window reads along an axis, (out, k); the size of x for padding."""
    fields = (problem.strides, problem.low, problem.lhs_dilation, problem.rhs_dilation)
    s, p, d, r = (field[axis] for field in fields)
    n, m, k = problem.size[axis], problem.out[axis], problem.kernel[axis]
    tap = np.arange(k) * r - p
    if is_symbolic(n, m):
        at, n = lax.iota(np.int32, m)[:, None] * s + tap.astype(np.int32), jnp.asarray(n, np.int32)
    else:
        at = np.arange(m)[:, None] * s + tap
    reached = (at % d == 0) & (at >= 0) & (at <= d * (n - 1))
    return jnp.where(reached, at // d, n) if isinstance(at, jax.Array) else np.where(reached, at // d, n)


def _tiles(problem, x):
    x = pad_input(problem, x)
    x = x.reshape(problem.batch, *interleaved(problem.out, problem.kernel), problem.channels)
    return jnp.transpose(x, _order(problem)).reshape(problem.batch, *problem.out, problem.features)


def _from_tiles(problem, g):
    g = g.reshape(problem.batch, *problem.out, problem.channels, *problem.kernel)
    g = lax.transpose(g, np.argsort(_order(problem)))
    g = g.reshape(problem.batch, *map(operator.mul, problem.out, problem.kernel), problem.channels)
    return _crop(problem, g)


def _crop(problem, padded):
    return pad(padded, [(-p, -q) for p, q in zip(problem.low, problem.high, strict=True)])


def _order(problem):
    """Return the axes of (batch, out, k, out, k, ..., channels) as (batch, *out, channels, *kernel)."""
    axes = range(1, 1 + 2 * problem.ndim)
    return 0, *axes[::2], 1 + 2 * problem.ndim, *axes[1::2]


def reference(lhs, filter_shape, window_strides, padding, dimension_numbers):
    assert dimension_numbers == CHANNELS_LAST[2]
    (k, j), (s, t) = filter_shape, window_strides
    pads = lax.padtype_to_pads(lhs.shape[1:3], filter_shape, window_strides, padding)
    x = jnp.pad(lhs, [(0, 0), *pads, (0, 0)])
    rows = np.arange((x.shape[1] - k) // s + 1)[:, None] * s + np.arange(k)
    columns = np.arange((x.shape[2] - j) // t + 1)[:, None] * t + np.arange(j)
    y = x[:, rows[:, None, :, None], columns[None, :, None, :], :]  # (batch, out, out, k, j, channels)
    return jnp.moveaxis(y, -1, 3).reshape(*y.shape[:3], k * j * lhs.shape[-1])


_TILES = {"window_strides": (4, 4), "filter_shape": (4, 4)}
_CALL = {"filter_shape": (3, 2), "padding": "SAME", "dimension_numbers": CHANNELS_LAST[2]}

RULES = (
    Rule(
        fn=conv_general_dilated_patches,
        whole_array=True,
        reference=reference,
        baselines={"lax.conv_general_dilated_patches": lax_patches},
        cases=(
            Case(("n h w c",), {"n": 2, "h": 7, "w": 5, "c": 3}, _CALL | {"window_strides": (2, 1)}),
            Case(("n h w c",), {"n": 2, "h": 6, "w": 5, "c": 2}, _CALL | {"window_strides": (3, 2)}, growth=False),
        ),
        edges=(
            Edge("one window", (np.ones((1, 3, 2, 1)),), _CALL | {"window_strides": (1, 1), "padding": "VALID"}),
            Edge("empty batch", (np.ones((0, 3, 2, 1)),), _CALL | {"window_strides": (1, 1)}),
        ),
        bench=(
            Case(("n h w c",), {"n": 8, "h": 56, "w": 56, "c": 16}, _CALL | {"window_strides": (1, 1)}),
            Case(("n h w c",), {"n": 8, "h": 64, "w": 64, "c": 3}, _CALL | _TILES),
        ),
        residual_bytes=lambda n, h, w, c: 0,
        reason="lax's patches, copied where lax multiplies by an identity kernel, and nothing kept for the backward",
        gains=(Gain("time", 0.5),),
        source="Example 4.2",
    ),
)
