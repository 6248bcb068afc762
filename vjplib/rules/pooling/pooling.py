"""Pooling: maximum, minimum and mean of sliding windows. The backward of a maximum needs its index, not the input."""

import math
import operator
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Shaped

from vjplib.compat import custom_vjp, is_symbolic
from vjplib.jacobians import Dense
from vjplib.precision import REAL, compute_dtype, upcast
from vjplib.rule import Case, Edge, Gain, Rule
from vjplib.rules._arguments import as_array, integers, pads, positive
from vjplib.rules._cotangents import aval_token, like_primal
from vjplib.rules.pooling.windows import (
    WindowDim,
    argmax_window,
    means,
    output_shape,
    reduce_by_lax,
    scatter_to_argmax,
    spread_to_windows,
    taps,
)

Padding = str | Sequence[tuple[int, int]]
MAX_POSITIONS = 2**31  # along one dimension, above which int32 overflows and the call goes to lax
MAX_MEAN_WINDOW = 128  # the largest window size along one dimension with a mean of ours: larger compile for long

# ---------------------------------------------------------------------------------------------------- maximum, minimum


def reduce_window_max(
    operand: Shaped[ArrayLike, "..."],
    window_dimensions: Sequence[int],
    window_strides: Sequence[int] | None = None,
    padding: Padding = "VALID",
    base_dilation: Sequence[int] | None = None,
    window_dilation: Sequence[int] | None = None,
) -> Shaped[Array, "..."]:
    """y_i = max_j x_{s i + d j - p}, x -inf outside; g_i goes to the first position that attains the maximum.

    It computes `lax.reduce_window(operand, -inf, lax.max, ...)`, which is slow to differentiate on CPU and cannot be
    differentiated with a window dilation.

    Args:
        operand: x, any shape. Dtypes other than float16, bfloat16, float32 and float64 go to `lax.reduce_window`.
        window_dimensions: the window's size along each dimension of x.
        window_strides: s along each dimension; None for ones.
        padding: "VALID", "SAME", "SAME_LOWER", or (low, high) for each dimension, which may be negative.
        base_dilation: the distance between neighbours of x once dilated; None for ones.
        window_dilation: d along each dimension; None for ones.

    Returns:
        The maxima, in x's dtype. Ties go to the first position in row-major order, padding included, as in lax; 0.0 and
        -0.0 tie, and either may be returned. A window that holds NaN gives NaN, and its cotangent goes to its first NaN
        (in lax to the largest element after the last NaN). The residual is one byte for each output, two for windows of
        more than 256 elements.

    Raises:
        TypeError: an argument has a wrong type.
        ValueError: sizes, strides or dilations are not positive, any of them or padding does not have one entry for
            each dimension, or padding is an unknown string.

    Example:
        >>> x = jnp.array([3.0, 1.0, 2.0, 5.0, 5.0])
        >>> reduce_window_max(x, (3,), (2,)).tolist()
        [3.0, 5.0]
        >>> jax.grad(lambda x: reduce_window_max(x, (3,), (2,)).sum())(x).tolist()
        [1.0, 0.0, 0.0, 1.0, 0.0]

    Source:
        The sparse products of the lecture's Algorithm 4, with one nonzero entry a row. The signature is that of
        `jax.lax.reduce_window` without the reduction.
    """
    return _reduce_window(operand, False, window_dimensions, window_strides, padding, base_dilation, window_dilation)


def _reduce_window(operand, smallest, sizes, strides, padding, base_dilation=None, window_dilation=None):
    x = as_array("operand", operand)
    sizes, padding = positive("window_dimensions", sizes, x.ndim), pads(padding, x.ndim)
    steps = {"window_strides": strides, "base_dilation": base_dilation, "window_dilation": window_dilation}
    strides, base_dilation, window_dilation = (
        (1,) * x.ndim if given is None else positive(name, given, x.ndim) for name, given in steps.items()
    )
    initial, reduction = (jnp.inf, lax.min) if smallest else (-jnp.inf, lax.max)
    options = (sizes, strides, padding, base_dilation, window_dilation)
    y = jax.eval_shape(lambda x: lax.reduce_window(x, initial, reduction, *options), x)  # raises what lax raises
    # XLA:CPU reduces a dilated x wrongly at some sizes (openxla/xla#48714), so x is dilated here.
    if any(d != 1 for d in base_dilation):
        x = lax.pad(x, _worst(x.dtype, smallest), [(0, 0, d - 1) for d in base_dilation])
    windows = _windows(x.shape, sizes, strides, padding, window_dilation)
    if not _has_rule(x, windows):
        x = lax.stop_gradient(x) if 0 in y.shape else x  # lax cannot differentiate all that reduce to nothing
        return reduce_by_lax(x, windows, initial, reduction, _worst(x.dtype, smallest))
    return _best(x, windows, smallest) if any(dim.pools for dim in windows) else x


def _worst(dtype, smallest):
    """Return the identity of the maximum or minimum in a dtype."""
    if jnp.issubdtype(dtype, jnp.inexact):
        return jnp.asarray(jnp.inf if smallest else -jnp.inf, dtype)
    if dtype == jnp.bool_:
        return jnp.asarray(smallest)
    return jnp.asarray(jnp.iinfo(dtype).max if smallest else jnp.iinfo(dtype).min, dtype)


@partial(custom_vjp, nondiff_argnames=("windows", "smallest"))
def _best(x, windows, smallest):
    """Return the maximum or minimum of each window; arguments are checked, strings and None resolved."""
    return argmax_window(x, windows, smallest, indexed=False)[0]


def fwd_best(x, windows, smallest):
    y, index = argmax_window(x, windows, smallest, indexed=True)
    return y, (index, aval_token(x))


# y_i = x_{place(i)}, where place(i) is the first place in window i at which its maximum (or minimum) is attained. Near
# x it does not change: row i of the Jacobian has one entry that differs from 0, a 1 in column place(i), and
#   (g^T J)_l = sum of the g_i with place(i) = l
# Kept is not place(i) but which of the window's taps it is, k(i): a number so small that it fits in a byte. With o_k
# the offset of tap k from the start of its window, and s i - p that start:
#   (g^T J)_l = sum_k sum_i [s i - p + o_k = l] [k(i) = k] g_i
# a sum over taps of those g_i whose maximum is at the tap, spread s apart and shifted by o_k - p.
def bwd_best(windows, smallest, res, g):
    index, x_token = res
    return (like_primal(scatter_to_argmax(index, upcast(g), windows, x_token.aval.shape), x_token),)


_best.defvjp(fwd_best, bwd_best)


def reference_reduce_window_max(
    operand,
    window_dimensions,
    window_strides=None,
    padding: Padding = "VALID",
    base_dilation=None,
    window_dilation=None,
):
    assert base_dilation is None
    windows = _windows(operand.shape, window_dimensions, window_strides, padding, window_dilation)
    elements = _elements(operand, windows, -jnp.inf)
    return jnp.take_along_axis(elements, jnp.argmax(elements, axis=-1, keepdims=True), axis=-1)[..., 0]


def jacobian_reduce_window_max(operand, window_dimensions, window_strides=None, padding: Padding = "VALID"):
    windows = _windows(operand.shape, window_dimensions, window_strides, padding)
    first = jnp.argmax(_elements(operand, windows, -jnp.inf), axis=-1, keepdims=True)
    place = jnp.take_along_axis(_elements(jnp.arange(operand.size).reshape(operand.shape), windows, -1), first, axis=-1)
    return (Dense(jax.nn.one_hot(place.reshape(-1), operand.size, dtype=operand.dtype)),)


def max_pool(
    inputs: Shaped[ArrayLike, "..."],
    window_shape: Sequence[int],
    strides: Sequence[int] | None = None,
    padding: Padding = "VALID",
) -> Shaped[Array, "..."]:
    """max of each window of inputs, features last; g goes to the first position that attains it.

    Args:
        inputs: (..., spatial dimensions, features), with any number of batch dimensions, including none. Dtypes other
            than float16, bfloat16, float32 and float64 go to `lax.reduce_window`.
        window_shape: the window's size along each spatial dimension.
        strides: the distance between windows along each; None for ones.
        padding: "VALID", "SAME", or (low, high) for each spatial dimension. Padding is -inf.

    Returns:
        The maxima, in inputs' dtype; ties, NaN and residuals are those of `reduce_window_max`.

    Raises:
        TypeError: an argument has a wrong type.
        ValueError: inputs has too few dimensions, sizes or strides are not positive, strides or padding does not have
            one entry for each spatial dimension, or padding is an unknown string.

    Example:
        >>> x = jnp.array([[3.0], [1.0], [2.0], [5.0]])
        >>> max_pool(x, (2,), strides=(2,)).tolist()
        [[3.0], [5.0]]
        >>> jax.grad(lambda x: max_pool(x, (2,), strides=(2,)).sum())(x).tolist()
        [[1.0], [0.0], [0.0], [1.0]]

    Source:
        That of `reduce_window_max`. The signature is that of `flax.linen.max_pool`.
    """
    return _reduce_window(inputs, False, *_lax_options(inputs, window_shape, strides, padding))


def reference_max_pool(inputs, window_shape, strides=None, padding="VALID"):
    return reference_reduce_window_max(inputs, *_lax_options(inputs, window_shape, strides, padding))


def jacobian_max_pool(inputs, window_shape, strides=None, padding="VALID"):
    return jacobian_reduce_window_max(inputs, *_lax_options(inputs, window_shape, strides, padding))


def min_pool(
    inputs: Shaped[ArrayLike, "..."],
    window_shape: Sequence[int],
    strides: Sequence[int] | None = None,
    padding: Padding = "VALID",
) -> Shaped[Array, "..."]:
    """min of each window of inputs, features last; g goes to the first position that attains it.

    Args:
        inputs: (..., spatial dimensions, features), with any number of batch dimensions, including none. Dtypes other
            than float16, bfloat16, float32 and float64 go to `lax.reduce_window`.
        window_shape: the window's size along each spatial dimension.
        strides: the distance between windows along each; None for ones.
        padding: "VALID", "SAME", or (low, high) for each spatial dimension. Padding is inf.

    Returns:
        The minima, in inputs' dtype; ties, NaN and residuals are those of `reduce_window_max`.

    Raises:
        TypeError: an argument has a wrong type.
        ValueError: inputs has too few dimensions, sizes or strides are not positive, strides or padding does not have
            one entry for each spatial dimension, or padding is an unknown string.

    Example:
        >>> min_pool(jnp.array([[3.0], [1.0], [2.0], [5.0]]), (2,), strides=(2,)).tolist()
        [[1.0], [2.0]]

    Source:
        That of `reduce_window_max`. The signature is that of `flax.linen.pooling.min_pool`.
    """
    return _reduce_window(inputs, True, *_lax_options(inputs, window_shape, strides, padding))


def reference_min_pool(inputs, window_shape, strides=None, padding="VALID"):
    return -reference_max_pool(-inputs, window_shape, strides, padding)


def jacobian_min_pool(inputs, window_shape, strides=None, padding="VALID"):
    return jacobian_max_pool(-inputs, window_shape, strides, padding)


# ---------------------------------------------------------------------------------------------------------------- mean


def avg_pool(
    inputs: Shaped[ArrayLike, "..."],
    window_shape: Sequence[int],
    strides: Sequence[int] | None = None,
    padding: Padding = "VALID",
    count_include_pad: bool = True,
) -> Shaped[Array, "..."]:
    """mean of each window of inputs, features last; each element receives g / count of every window that holds it.

    Args:
        inputs: (..., spatial dimensions, features), with any number of batch dimensions, including none. Dtypes other
            than float16, bfloat16, float32 and float64 go to `lax.reduce_window`.
        window_shape: the window's size along each spatial dimension.
        strides: the distance between windows along each; None for ones.
        padding: "VALID", "SAME", or (low, high) for each spatial dimension. Padding is 0.
        count_include_pad: whether padding counts in the number of elements that the sum is divided by.

    Returns:
        The means, in inputs' dtype; without count_include_pad promoted with JAX's default float, as in flax. Half
        precision accumulates in float32. NaN and infinities reach the windows that hold them. A window of padding alone
        is 0, or NaN without count_include_pad.

    Raises:
        TypeError: an argument has a wrong type, or inputs is not an array of numbers.
        ValueError: inputs has too few dimensions, sizes or strides are not positive, strides or padding does not have
            one entry for each spatial dimension, or padding is an unknown string.

    Example:
        >>> x = jnp.array([[3.0], [1.0], [2.0]])
        >>> avg_pool(x, (2,)).tolist()
        [[2.0], [1.5]]
        >>> jax.grad(lambda x: avg_pool(x, (2,)).sum())(x).tolist()
        [[0.5], [1.0], [0.5]]

    Source:
        The lecture's Algorithm 4, for a kernel of ones. The signature is that of `flax.linen.avg_pool`.
    """
    x = as_array("inputs", inputs)
    options = _lax_options(x, window_shape, strides, padding)
    jax.eval_shape(lambda x: lax.reduce_window(x, 0.0, lax.add, *options), x)  # raises what lax raises
    windows = _windows(x.shape, *options)
    if not _has_rule(x, windows) or max(dim.size for dim in windows) > MAX_MEAN_WINDOW:
        sums = partial(reduce_by_lax, windows=windows, initial=0.0, reduction=lax.add)
        return sums(x) / (float(taps(windows)) if count_include_pad else sums(jnp.ones(x.shape)))
    return _mean(x, windows, bool(count_include_pad))


@partial(custom_vjp, nondiff_argnames=("windows", "count_include_pad"))
def _mean(x, windows, count_include_pad):
    """Return the mean of each window; arguments are checked, strings and None resolved."""
    return fwd_mean(x, windows, count_include_pad)[0]


def fwd_mean(x, windows, count_include_pad):
    dtype = x.dtype if count_include_pad else jnp.promote_types(x.dtype, jnp.result_type(float))
    counts = _counts(windows, x.shape, count_include_pad).astype(compute_dtype(dtype))
    return means(x.astype(counts.dtype), counts, windows).astype(dtype), aval_token(x)


# y_i = 1/c_i sum_k x_{s i - p + o_k}, with o_k the offset of tap k: linear in x, and its Jacobian has 1/c_i in column
# s i - p + o_k of row i, for each tap. With h = g / c,
#   (g^T J)_l = sum_k sum_i [s i - p + o_k = l] h_i
# the h_i spread s apart and shifted by o_k - p, summed over taps. The sum over a box is one along each of its sides
# in turn, and so is its transpose: as many terms as the sum of the sides, not their product.
def bwd_mean(windows, count_include_pad, x_token, g):
    shape = x_token.aval.shape
    counts = _counts(windows, shape, count_include_pad).astype(compute_dtype(g.dtype))
    return (like_primal(spread_to_windows(upcast(g), counts, windows, shape), x_token),)


_mean.defvjp(fwd_mean, bwd_mean)


def reference_avg_pool(inputs, window_shape, strides=None, padding="VALID", count_include_pad=True):
    windows = _windows(inputs.shape, *_lax_options(inputs, window_shape, strides, padding))
    inside = _elements(jnp.ones_like(inputs), windows, 0)
    count = inside.shape[-1] if count_include_pad else jnp.sum(inside, axis=-1)
    mean = jnp.sum(_elements(inputs, windows, 0), axis=-1) / count
    return mean if count_include_pad else mean.astype(jnp.promote_types(mean.dtype, jnp.result_type(float)))


def jacobian_avg_pool(inputs, window_shape, strides=None, padding="VALID"):
    windows = _windows(inputs.shape, *_lax_options(inputs, window_shape, strides, padding))
    places = _elements(jnp.arange(inputs.size).reshape(inputs.shape), windows, -1).reshape(-1, taps(windows))
    return (Dense(jax.nn.one_hot(places, inputs.size, dtype=inputs.dtype).mean(axis=1)),)


def _counts(windows, shape, count_include_pad):
    """Return the count of each window in NumPy, in a shape that broadcasts with the output's."""
    count = np.array(taps(windows))
    if count_include_pad:
        return count
    for axis, (dim, n) in enumerate(zip(windows, shape, strict=True)):
        if not dim.pools:
            continue
        inside = np.sum((dim.positions(n) >= 0) & (dim.positions(n) < n), axis=1)
        if np.all(inside == inside[:1]):  # equal counts, as along the batch, are stored once
            inside = inside[:1]
        count = count // dim.size * inside.reshape([-1 if i == axis else 1 for i in range(len(shape))])
    return count


# ----------------------------------------------------------------------------------------------------------- arguments


def _lax_options(x, window_shape, strides=None, padding: Padding = "VALID"):
    """Return flax's arguments as lax's, which have an entry for every dimension, batch and features included."""
    x, window_shape = as_array("inputs", x), integers("window_shape", window_shape)
    spatial = len(window_shape)
    batch = x.ndim - spatial - 1
    if batch < 0:
        wanted = f"a dimension for each of window_shape {window_shape} and one for features"
        raise ValueError(f"inputs must have {wanted}, got shape {x.shape}")
    window_shape = positive("window_shape", window_shape, spatial)
    strides = (1,) * spatial if strides is None else positive("strides", strides, spatial)
    padding = pads(padding, spatial)
    if not isinstance(padding, str):
        padding = ((0, 0),) * batch + padding + ((0, 0),)
    return (1,) * batch + window_shape + (1,), (1,) * batch + strides + (1,), padding


def _windows(shape, sizes, strides, padding, dilation=None):
    """Return the windows that lax's arguments describe; lax has checked them."""
    strides, dilation = ((1,) * len(shape) if given is None else given for given in (strides, dilation))
    if isinstance(padding, str):
        spans = [d * (k - 1) + 1 for k, d in zip(sizes, dilation, strict=True)]
        padding = lax.padtype_to_pads(shape, spans, strides, padding)
    fields = zip(sizes, strides, padding, dilation, strict=True)
    return tuple(
        WindowDim(*(n if is_symbolic(n) else operator.index(n) for n in (k, s, *pads, d))) for k, s, pads, d in fields
    )


def _has_rule(x, windows):
    """Return True if the rules of this file compute a call, False if lax does."""
    pooled = [(dim, n) for dim, n in zip(windows, x.shape, strict=True) if dim.pools]
    if x.dtype not in REAL or is_symbolic(*(n for _, n in pooled)):
        return False
    countable = all(dim.span(n) < MAX_POSITIONS for dim, n in pooled)
    return countable and not any(n == 0 for n in (*x.shape, *output_shape(windows, x.shape)))


def _elements(x, windows, outside):
    """Return the elements of each window along a new last axis, by plain indexing."""
    rank = x.ndim
    for axis, dim in enumerate(windows):
        at = dim.positions(x.shape[axis])
        inside = (at >= 0) & (at < x.shape[axis])
        taken = jnp.take(x, jnp.asarray(np.where(inside, at, 0)), axis=axis)
        inside = inside.reshape(*at.shape, *(1,) * (taken.ndim - axis - 2))
        x = jnp.moveaxis(jnp.where(inside, taken, outside), axis + 1, -1)
    return x.reshape(*x.shape[:rank], taps(windows))


# ------------------------------------------------------------------------------------------------------------- records


def _mean_by_lax(x, count_include_pad=True, **window):
    options = _lax_options(x, **window)
    count = math.prod(window["window_shape"])
    if not count_include_pad:
        count = lax.reduce_window(jnp.ones((1, *x.shape[1:-1], 1)), 0.0, lax.add, *options)
    return lax.reduce_window(x, 0.0, lax.add, *options) / count


_NAN, _INF = float("nan"), float("inf")
_LARGE = {"b": 8, "h": 112, "w": 112, "c": 64}
_SEQUENCE = {"b": 32, "n": 4096, "c": 64}


def _window(window_shape, strides, **padding):
    return {"window_shape": window_shape, "strides": strides} | padding


def _lax_window(sizes, strides, **options):
    return {"window_dimensions": sizes, "window_strides": strides} | options


def _image(size, stride):
    label = f"2-D {size}x{size} stride {stride}"
    return Case(("b h w c",), _LARGE, _window((size, size), (stride, stride)), label=label)


def _sequence(size):
    return Case(("b n c",), _SEQUENCE, _window((size,), (2,)), label=f"1-D k{size} stride 2")


def _at_least_3(n, m, k=4, **_):
    return n >= 3 and m >= 3 and k >= 4


# n is fixed for the stated Jacobian of one row, which is that of a matrix of positions and features.
_ROWS = Case(("b n c",), {"b": 2, "n": 11, "c": 3}, _window((3,), (2,)), fixed=("n",))
_SAME = Case(("b n m c",), {"b": 2, "n": 7, "m": 5, "c": 3}, _window((3, 3), (2, 2), padding="SAME"), valid=_at_least_3)
_PADDED = _window((2, 3), (2, 4), padding=((0, 1), (2, 1)))
_DISJOINT = Case(("n m c",), {"n": 7, "m": 5, "c": 2}, _PADDED, valid=_at_least_3, growth=False)
_CROPPED = _window((2, 3, 3), (1, 2, 1), padding=((0, 1), (1, 2), (-1, 0)))
_OVERLAPPING = Case(("n m k c",), {"n": 5, "m": 4, "k": 7, "c": 2}, _CROPPED, valid=_at_least_3, growth=False)
_PAIRS = _window((2,), (1,))
_EDGES = (
    Edge("all equal", ([[1.0], [1.0], [1.0]],), _PAIRS),
    Edge("zeros of both signs", ([[-0.0], [0.0], [-0.0]],), _PAIRS),
    Edge("infinities of both signs", ([[_INF], [-_INF], [-_INF]],), _PAIRS),
    Edge("a window as long as the input", ([[1.0], [3.0], [2.0]],), {**_PAIRS, "window_shape": (3,)}),
    Edge("nothing but padding in a window", ([[1.0], [2.0]],), {**_PAIRS, "padding": ((2, 0),)}),
    Edge("no window", ([[1.0]],), _PAIRS),
    Edge("no features", (np.zeros((3, 0)),), _PAIRS),
)
_MAX_POOL = Rule(
    fn=max_pool,
    reference=reference_max_pool,
    baselines={
        "lax.reduce_window": lambda x, **window: lax.reduce_window(x, -jnp.inf, lax.max, *_lax_options(x, **window))
    },
    cases=(_ROWS, _DISJOINT, _OVERLAPPING),
    edges=_EDGES,
    bench=(_image(2, 2), _image(3, 2), _sequence(2), _sequence(3)),
    residual_bytes=lambda b, n, c: b * ((n - 3) // 2 + 1) * c,
    jacobian=jacobian_max_pool,
    reason="keeps a byte per output, not the input; on CPU faster than XLA's select-and-scatter",
    gains=(
        Gain("time", 0.5),
        Gain("kept bytes", 0.063),
        Gain("kept bytes", 0.13, "1-D k2 stride 2"),
        Gain("scratch bytes", 0.1),
    ),
    source="Algorithm 4",
)

RULES = (
    Rule(
        fn=reduce_window_max,
        reference=reference_reduce_window_max,
        baselines={"lax.reduce_window": partial(lax.reduce_window, init_value=-jnp.inf, computation=lax.max)},
        cases=(
            Case(("n",), {"n": 11}, _lax_window((3,), (2,)), valid=lambda n: n >= 3),
            Case(
                ("b c n",),
                {"b": 2, "c": 3, "n": 9},
                _lax_window((1, 1, 3), (1, 1, 1), window_dilation=(1, 1, 2), padding="SAME"),
                growth=False,
            ),
            Case(
                ("n m",),
                {"n": 11, "m": 7},
                _lax_window((3, 4), (1, 3), window_dilation=(3, 2), padding=((2, 2), (3, 3))),
                valid=lambda n, m: n >= 3,
                growth=False,
            ),
        ),
        edges=(
            Edge("all equal", ([1.0, 1.0, 1.0],), {"window_dimensions": (2,)}),
            Edge("NaN", ([3.0, _NAN, 5.0, _NAN, 1.0, 2.0],), {"window_dimensions": (3,)}),
            Edge("-inf alone, beside padding", ([-_INF, -_INF],), {"window_dimensions": (2,), "padding": ((1, 1),)}),
        ),
        bench=(Case(("b c h w",), {"b": 8, "c": 64, "h": 56, "w": 56}, _lax_window((1, 1, 3, 3), (1, 1, 2, 2))),),
        residual_bytes=lambda n: (n - 3) // 2 + 1,
        jacobian=jacobian_reduce_window_max,
        reason="keeps a byte per output; on CPU faster than XLA's select-and-scatter; correct for dilated x",
        gains=(Gain("time", 0.5), Gain("kept bytes", 0.059), Gain("scratch bytes", 0.1)),
        source="Algorithm 4",
    ),
    _MAX_POOL,
    replace(
        _MAX_POOL,
        fn=min_pool,
        reference=reference_min_pool,
        baselines={
            "lax.reduce_window": lambda x, **window: lax.reduce_window(x, jnp.inf, lax.min, *_lax_options(x, **window))
        },
        cases=(_ROWS, _SAME),
        jacobian=jacobian_min_pool,
    ),
    Rule(
        fn=avg_pool,
        reference=reference_avg_pool,
        baselines={"lax.reduce_window": _mean_by_lax},
        cases=(_ROWS, _DISJOINT, replace(_SAME, kwargs={**_SAME.kwargs, "count_include_pad": False})),
        edges=_EDGES,
        bench=(_image(2, 2), _image(3, 2)),
        residual_bytes=lambda b, n, c: 0,
        jacobian=jacobian_avg_pool,
        reason="on CPU faster than XLA's windows over a dilated cotangent",
        gains=(Gain("time", 0.5, "2-D 3x3 stride 2"),),
        source="Algorithm 4",
    ),
)
