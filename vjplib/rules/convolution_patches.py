"""The patches that a convolution's window sees, as slices; their cotangents are added where the windows overlap."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Num

from vjplib.compat import custom_vjp, is_symbolic, separate_call
from vjplib.convolution.places import padded
from vjplib.convolution.xla import Call, call_of
from vjplib.convolution.xla import conv_general_dilated_patches as lax_patches
from vjplib.precision import upcast
from vjplib.rule import Case, Edge, Rule
from vjplib.rules._arguments import as_array, convolution_arguments
from vjplib.rules.convolution_general import CHANNELS_LAST, REAL, Padding, by_platform

MOST_TAPS = 256  # beyond, the program of one slice a tap takes longer to compile than it saves


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

    lax multiplies with an identity kernel. On CPU this copies instead, so that a patch has the values of x, where lax's
    sum makes NaN of all that share a window with a NaN or an infinity.

    Args:
        lhs: x, of rank n + 2.
        filter_shape: how many places the window has, n integers in the order of dimension_numbers[1].
        window_strides: s, n integers.
        padding: "SAME", "SAME_LOWER", "VALID", or n pairs (low, high), which may be negative.
        lhs_dilation: d, n integers; None for ones.
        rhs_dilation: r, n integers; None for ones.
        dimension_numbers: as for `conv_general_dilated`.
        precision: as in lax.
        preferred_element_type: dtype of the result, None for that of x.

    Returns:
        y, with patches of as many features as channels times places, the channels being the slower.

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
    arguments = convolution_arguments(**locals())
    x, filter_shape = arguments.pop("lhs"), arguments["filter_shape"]
    y = jax.eval_shape(lambda x: lax_patches(x, **arguments), x)
    dimensions = lax.conv_dimension_numbers(x.shape, (1, 1, *filter_shape), dimension_numbers)
    kernel = dict(zip(dimensions.rhs_spec, (y.shape[dimensions.out_spec[1]], 1, *filter_shape), strict=True))
    del arguments["filter_shape"]
    arguments |= {
        "dimension_numbers": dimensions,
        "feature_group_count": x.shape[dimensions.lhs_spec[1]],
        "batch_group_count": 1,
    }
    call = call_of(x.shape, tuple(kernel[i] for i in range(x.ndim)), y, **arguments)
    return jnp.zeros(y.shape, y.dtype) if call.empty else _rule(call, y.dtype)(x)


def reference(lhs, filter_shape, window_strides, padding, dimension_numbers):
    assert dimension_numbers == CHANNELS_LAST[2]
    (k, j), (s, t) = filter_shape, window_strides
    pads = lax.padtype_to_pads(lhs.shape[1:3], filter_shape, window_strides, padding)
    x = jnp.pad(lhs, [(0, 0), *pads, (0, 0)])
    rows = np.arange((x.shape[1] - k) // s + 1)[:, None] * s + np.arange(k)
    columns = np.arange((x.shape[2] - j) // t + 1)[:, None] * t + np.arange(j)
    y = x[:, rows[:, None, :, None], columns[None, :, None, :], :]  # (batch, out, out, k, j, channels)
    return jnp.moveaxis(y, -1, 3).reshape(*y.shape[:3], k * j * lhs.shape[-1])


@jax.tree_util.register_static
@dataclass(frozen=True)
class _Like:
    """What the backward needs of x, none of its numbers: shape, dtype and how it lies on devices."""

    type: Any


@functools.lru_cache(maxsize=4096)
def _rule(call: Call, dtype: Any) -> Callable[[Array], Array]:
    problem = call.problem

    def theirs(x):
        return lax_patches(
            x,
            problem.kernel,
            call.strides,
            call.padding,
            call.lhs_dilation,
            call.rhs_dilation,
            call.dimensions,
            call.precision,
            call.preferred_element_type,
        )

    if not call.known or problem.sprawls or (problem.taps > MOST_TAPS and not _tiled(problem)):
        cut, joined = _gathered, _scattered
    else:
        cut, joined = (_tiles, _from_tiles) if _tiled(problem) else (_slices, _from_slices)

    def y_on_cpu(x):
        return call.y_from_canonical(cut(problem, call.x_to_canonical(x))).astype(dtype)

    y_of = by_platform(separate_call(y_on_cpu), theirs)

    @custom_vjp
    def patches(x: Array) -> Array:
        return y_of(x)

    def fwd(x):
        return y_of(x), _Like(jax.typeof(x))

    # y_{i, c j} = x_{l, c} with s i + r j = d l + p: a copy, so each x has the sum of the cotangents of its copies,
    #   (g^T J)_{l, c} = sum over all i, j with s i + r j = d l + p of g_{i, c j}
    # For one j that sum is g spread s apart; then what fell on padding, and between the places of x, is left out.
    def bwd(kept, g):
        def dx_on_cpu(g):
            g = call.y_to_canonical(g)
            g = upcast(g) if g.dtype in REAL else g
            return call.x_from_canonical(joined(problem, g)).astype(kept.type.dtype)

        def dx_elsewhere(g):
            return jax.linear_transpose(theirs, kept.type)(g)[0]

        return (by_platform(separate_call(dx_on_cpu), dx_elsewhere)(g),)

    patches.defvjp(fwd, bwd)
    return patches


def _slices(problem, x):
    whole = padded(x, zip(problem.low, problem.high, (d - 1 for d in problem.lhs_dilation), strict=True))
    pieces = [lax.slice(whole, *bounds) for bounds in _bounds(problem)]
    return jnp.stack(pieces, axis=-1).reshape(problem.batch, *problem.out, problem.features)


def _from_slices(problem, g):
    g = g.reshape(problem.batch, *problem.out, problem.channels, problem.taps)
    size = [(n - 1) * d + 1 for n, d in zip(problem.size, problem.lhs_dilation, strict=True)]
    sizes = [n + p + q for n, p, q in zip(size, problem.low, problem.high, strict=True)]
    parts = []
    for i, (start, limit, step) in enumerate(_bounds(problem)):
        spread = zip(start[1:-1], (n - m for n, m in zip(sizes, limit[1:-1], strict=True)), step[1:-1], strict=True)
        parts.append(padded(g[..., i], [(low, high, s - 1) for low, high, s in spread]))
    whole = padded(sum(parts[1:], parts[0]), [(-p, -q, 0) for p, q in zip(problem.low, problem.high, strict=True)])
    return lax.slice(whole, [0] * whole.ndim, whole.shape, [1, *problem.lhs_dilation, 1])


def _gathered(problem, x):
    """Return the patches by one gather an axis, which needs neither the padded x nor to know a size while tracing."""
    for axis in range(problem.ndim):  # (batch, out, k, out, k, ..., channels)
        x = jnp.take(x, _places(problem, axis), axis=1 + 2 * axis, mode="fill", fill_value=0)
    return jnp.transpose(x, _order(problem)).reshape(problem.batch, *problem.out, problem.features)


def _scattered(problem, g):
    x = jax.ShapeDtypeStruct((problem.batch, *problem.size, problem.channels), g.dtype)
    return jax.linear_transpose(functools.partial(_gathered, problem), x)(g)[0]


def _places(problem, axis):
    """Return which place of x each tap of each window of an axis reads, (out, k); the size of x for none."""
    fields = (problem.strides, problem.low, problem.lhs_dilation, problem.rhs_dilation)
    s, p, d, r = (field[axis] for field in fields)
    n, m, k = problem.size[axis], problem.out[axis], problem.kernel[axis]
    tap = np.arange(k) * r - p
    if is_symbolic(n, m):
        at = lax.iota(np.int32, m)[:, None] * s + tap.astype(np.int32)
        size = jnp.asarray(n, np.int32)
    else:
        at, size = np.arange(m)[:, None] * s + tap, n
    reached = (at % d == 0) & (at >= 0) & (at <= d * (size - 1))
    where = jnp.where if is_symbolic(n, m) else np.where
    return where(reached, at // d, size)


def _bounds(problem):
    """Yields start, limit and step of the slice of the padded x that each place of the window sees."""
    for place in problem.every_tap:
        start = [r * j for r, j in zip(problem.rhs_dilation, place, strict=True)]
        limit = [a + (m - 1) * s + 1 for a, m, s in zip(start, problem.out, problem.strides, strict=True)]
        yield [0, *start, 0], [problem.batch, *limit, problem.channels], [1, *problem.strides, 1]


def _tiled(problem):
    """Returns whether the windows tile x, so that a patch is a block of it."""
    steps = (problem.lhs_dilation, problem.rhs_dilation)
    return problem.strides == problem.kernel and all(set(step) <= {1} for step in steps)


def _tiles(problem, x):
    x = padded(x, [(p, m * k - n - p, 0) for p, m, k, n in _each(problem)])
    x = x.reshape(problem.batch, *_pairs(problem), problem.channels)
    x = jnp.transpose(x, _order(problem))
    return x.reshape(problem.batch, *problem.out, problem.features)


def _from_tiles(problem, g):
    g = g.reshape(problem.batch, *problem.out, problem.channels, *problem.kernel)
    g = lax.transpose(g, np.argsort(_order(problem)))
    g = g.reshape(problem.batch, *(m * k for _, m, k, _ in _each(problem)), problem.channels)
    return padded(g, [(-p, n + p - m * k, 0) for p, m, k, n in _each(problem)])


def _each(problem):
    return list(zip(problem.low, problem.out, problem.kernel, problem.size, strict=True))


def _pairs(problem):
    return [n for _, m, k, _ in _each(problem) for n in (m, k)]


def _order(problem):
    """Returns the axes of (batch, out, k, out, k, ..., channels) as (batch, *out, channels, *kernel)."""
    axes = range(1, 1 + 2 * problem.ndim)
    return 0, *axes[::2], 1 + 2 * problem.ndim, *axes[1::2]


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
            Case(
                ("n h w c",),
                {"n": 8, "h": 64, "w": 64, "c": 3},
                _CALL | {"window_strides": (4, 4), "filter_shape": (4, 4)},
            ),
        ),
        residual_bytes=lambda n, h, w, c: 0,
        reason="lax's patches, copied where lax multiplies by an identity kernel, and nothing kept for the backward",
        source="Example 4.2",
    ),
)
