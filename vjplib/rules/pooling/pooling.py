"""Pooling: maximum, minimum and mean of sliding windows. The backward of a maximum needs its place, not the input."""

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
from vjplib.precision import compute_dtype, upcast
from vjplib.rule import Case, Edge, Rule
from vjplib.rules._arguments import as_array, integers, pads, positive, reduce_window_arguments
from vjplib.rules._cotangents import aval_token
from vjplib.rules.pooling.windows import Side, first_best, means, places, taps, to_all, to_best

Padding = str | Sequence[tuple[int, int]]
MOST_PLACES = 2**31
"""The places that windows and x span together, beyond which int32 does not count them and lax serves."""
LONGEST = 128
"""The longest side of a window whose mean is served by hand: the program of a longer one takes long to compile."""

# ---------------------------------------------------------------------------------------------------- maximum, minimum


def reduce_window_max(
    operand: Shaped[ArrayLike, "..."],
    window_dimensions: Sequence[int],
    window_strides: Sequence[int] | None = None,
    padding: Padding = "VALID",
    base_dilation: Sequence[int] | None = None,
    window_dilation: Sequence[int] | None = None,
) -> Shaped[Array, "..."]:
    """y_i = max_j x_{s i + d j - p}, x -inf outside; g_i goes to the first of the places where the maximum is attained.

    `lax.reduce_window(operand, -inf, lax.max, ...)`, which differentiates slowly on CPU, and not at all with a window
    dilation.

    Args:
        operand: x, any shape. Other dtypes than float16 to float64, and any base dilation, are lax's to serve.
        window_dimensions: the window's size along each dimension of x.
        window_strides: s along each dimension; None for ones.
        padding: "VALID", "SAME", "SAME_LOWER", or (low, high) for each dimension, which may be negative.
        base_dilation: the distance to set between neighbours of x; None for ones.
        window_dilation: d along each dimension; None for ones.

    Returns:
        The maxima, of x's dtype. Ties go to the first place in row-major order, padding included, as with lax; 0.0 and
        -0.0 tie, and either may be returned. NaN makes NaN of every window that holds it, whose cotangent goes to its
        first NaN (lax's to the largest element after the last one). For the backward one byte is kept for each output,
        two where a window has more than 256 elements.

    Raises:
        TypeError: an argument has a wrong type; the message names it.
        ValueError: sizes, strides or dilations are not positive, any of them or padding do not have one entry for each
            dimension, or padding is an unknown string.

    Example:
        >>> x = jnp.array([3.0, 1.0, 2.0, 5.0, 5.0])
        >>> reduce_window_max(x, (3,), (2,)).tolist()
        [3.0, 5.0]
        >>> jax.grad(lambda x: reduce_window_max(x, (3,), (2,)).sum())(x).tolist()
        [1.0, 0.0, 0.0, 1.0, 0.0]

    Source:
        The sparse products of the lecture's Algorithm 4, with one nonzero entry a row. The signature is that of
        `jax.lax.reduce_window` less its reduction.
    """
    return _reduce_window(operand, False, window_dimensions, window_strides, padding, base_dilation, window_dilation)


def reference_reduce_window_max(
    operand,
    window_dimensions,
    window_strides=None,
    padding: Padding = "VALID",
    base_dilation=None,
    window_dilation=None,
):
    del base_dilation
    windows = _windows(operand.shape, window_dimensions, window_strides, padding, window_dilation)
    elements = _elements(operand, windows, -jnp.inf)
    return jnp.take_along_axis(elements, jnp.argmax(elements, axis=-1, keepdims=True), axis=-1)[..., 0]


def jacobian_reduce_window_max(
    operand, window_dimensions, window_strides=None, padding: Padding = "VALID", window_dilation=None
):
    windows = _windows(operand.shape, window_dimensions, window_strides, padding, window_dilation)
    first = jnp.argmax(_elements(operand, windows, -jnp.inf), axis=-1, keepdims=True)
    place = jnp.take_along_axis(_elements(jnp.arange(operand.size).reshape(operand.shape), windows, -1), first, axis=-1)
    return (Dense(jax.nn.one_hot(place.reshape(-1), operand.size, dtype=operand.dtype)),)


def _reduce_window(operand, smallest, window_dimensions, window_strides, padding, base_dilation, window_dilation):
    x = as_array("operand", operand)
    window_dimensions, window_strides, padding, base_dilation, window_dilation = reduce_window_arguments(
        x.ndim, window_dimensions, window_strides, padding, base_dilation, window_dilation
    )
    reduction = (jnp.inf, lax.min) if smallest else (-jnp.inf, lax.max)
    options = (window_dimensions, window_strides, padding, base_dilation, window_dilation)
    jax.eval_shape(lambda x: lax.reduce_window(x, *reduction, *options), x)  # lax refuses what it does not take
    # XLA:CPU reduces a dilated x wrongly at some sizes (openxla/xla#48714): x is dilated before.
    if any(d != 1 for d in base_dilation):
        x = lax.pad(x, _worst(x.dtype, smallest), [(0, 0, d - 1) for d in base_dilation])
    windows = _windows(x.shape, window_dimensions, window_strides, padding, window_dilation)
    if not _by_hand(x, windows):
        if _only_pad(windows):
            return _padded(x, _worst(x.dtype, smallest), windows)
        return lax.reduce_window(x, *reduction, window_dimensions, window_strides, padding, None, window_dilation)
    if not any(side.pools for side in windows):
        return x
    return _best(x, windows, smallest)


def _only_pad(windows):
    """Return whether windows hold one element each, all of them: where they crop x, XLA aborts (openxla/xla#48719)."""
    return all(side[:2] == (1, 1) for side in windows)


def _padded(x, outside, windows):
    return lax.pad(x, jnp.asarray(outside, x.dtype), [(side.low, side.high, 0) for side in windows])


def _worst(dtype, smallest):
    """Return the number that is no better than any other, in a dtype."""
    if jnp.issubdtype(dtype, jnp.inexact):
        return jnp.asarray(jnp.inf if smallest else -jnp.inf, dtype)
    if dtype == jnp.bool_:
        return jnp.asarray(smallest)
    return jnp.asarray(jnp.iinfo(dtype).max if smallest else jnp.iinfo(dtype).min, dtype)


@partial(custom_vjp, nondiff_argnames=("windows", "smallest"))
def _best(x, windows, smallest):
    """The rule itself, for maximum and minimum: arguments checked, strings and None resolved."""
    return first_best(x, windows, smallest, indexed=False)[0]


def fwd_best(x, windows, smallest):
    y, index = first_best(x, windows, smallest, indexed=True)
    return y, (index, aval_token(x))


# y_i = x_{place(i)}, where place(i) is the first place in window i at which its maximum (or minimum) is attained. Near
# x it does not change: row i of the Jacobian has one entry that differs from 0, a 1 in column place(i), and
#   (g^T J)_l = sum of the g_i with place(i) = l
# Kept is not place(i) but which of the window's taps it is, k(i): a number so small that it fits in a byte. With o_k
# the offset of tap k from the start of its window, and s i - p that start:
#   (g^T J)_l = sum_k sum_i [s i - p + o_k = l] [k(i) = k] g_i
# a sum over taps of those g_i whose maximum is at the tap, spread s apart and shifted by o_k - p.
def bwd_best(windows, smallest, res, g):
    del smallest
    index, kept = res
    return (to_best(index, upcast(g), windows, kept.shape[1:]).astype(kept.dtype),)


_best.defvjp(fwd_best, bwd_best)


def max_pool(
    inputs: Shaped[ArrayLike, "..."],
    window_shape: Sequence[int],
    strides: Sequence[int] | None = None,
    padding: Padding = "VALID",
) -> Shaped[Array, "..."]:
    """max of each window of inputs, features last; g goes to the first of the places where it is attained.

    Args:
        inputs: (..., spatial dimensions, features), with any number of batch dimensions, none included. Other dtypes
            than float16 to float64 are lax's to serve.
        window_shape: the window's size along each spatial dimension.
        strides: the distance between windows along each; None for ones.
        padding: "VALID", "SAME", or (low, high) for each spatial dimension. What is padded is -inf.

    Returns:
        The maxima, of inputs' dtype; ties, NaN and what is kept for the backward as in `reduce_window_max`.

    Raises:
        TypeError: an argument has a wrong type; the message names it.
        ValueError: inputs have too few dimensions, sizes or strides are not positive, strides or padding do not have
            one entry for each spatial dimension, or padding is an unknown string.

    Example:
        >>> x = jnp.array([[3.0], [1.0], [2.0], [5.0]])
        >>> max_pool(x, (2,), strides=(2,)).tolist()
        [[3.0], [5.0]]
        >>> jax.grad(lambda x: max_pool(x, (2,), strides=(2,)).sum())(x).tolist()
        [[1.0], [0.0], [0.0], [1.0]]

    Source:
        As `reduce_window_max`. The signature is that of `flax.linen.max_pool`.
    """
    return _reduce_window(inputs, False, *_features_last(inputs, window_shape, strides, padding), None, None)


def reference_max_pool(inputs, window_shape, strides=None, padding="VALID"):
    return reference_reduce_window_max(inputs, *_features_last(inputs, window_shape, strides, padding))


def jacobian_max_pool(inputs, window_shape, strides=None, padding="VALID"):
    return jacobian_reduce_window_max(inputs, *_features_last(inputs, window_shape, strides, padding))


def min_pool(
    inputs: Shaped[ArrayLike, "..."],
    window_shape: Sequence[int],
    strides: Sequence[int] | None = None,
    padding: Padding = "VALID",
) -> Shaped[Array, "..."]:
    """min of each window of inputs, features last; g goes to the first of the places where it is attained.

    Args:
        inputs: (..., spatial dimensions, features), with any number of batch dimensions, none included. Other dtypes
            than float16 to float64 are lax's to serve.
        window_shape: the window's size along each spatial dimension.
        strides: the distance between windows along each; None for ones.
        padding: "VALID", "SAME", or (low, high) for each spatial dimension. What is padded is inf.

    Returns:
        The minima, of inputs' dtype; ties, NaN and what is kept for the backward as in `reduce_window_max`.

    Raises:
        TypeError: an argument has a wrong type; the message names it.
        ValueError: inputs have too few dimensions, sizes or strides are not positive, strides or padding do not have
            one entry for each spatial dimension, or padding is an unknown string.

    Example:
        >>> min_pool(jnp.array([[3.0], [1.0], [2.0], [5.0]]), (2,), strides=(2,)).tolist()
        [[1.0], [2.0]]

    Source:
        As `reduce_window_max`. The signature is that of `flax.linen.pooling.min_pool`.
    """
    return _reduce_window(inputs, True, *_features_last(inputs, window_shape, strides, padding), None, None)


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
    """mean of each window of inputs, features last; each place receives g / count of every window that holds it.

    Args:
        inputs: (..., spatial dimensions, features), with any number of batch dimensions, none included. Other dtypes
            than float16 to float64 are lax's to serve.
        window_shape: the window's size along each spatial dimension.
        strides: the distance between windows along each; None for ones.
        padding: "VALID", "SAME", or (low, high) for each spatial dimension. What is padded is 0.
        count_include_pad: whether padded places count among those that the mean is taken of.

    Returns:
        The means, of inputs' dtype; without count_include_pad, of what that and JAX's default float promote to, as in
        flax. Half precision adds in float32. NaN and infinities reach the windows that hold them. A window that holds
        nothing but padding is 0, without count_include_pad NaN.

    Raises:
        TypeError: an argument has a wrong type, the message names it; or inputs have no number dtype.
        ValueError: inputs have too few dimensions, sizes or strides are not positive, strides or padding do not have
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
    dims, given_strides, given_padding = _features_last(x, window_shape, strides, padding)

    def sum_by_lax(x):
        return lax.reduce_window(x, 0.0, lax.add, dims, given_strides, given_padding)

    jax.eval_shape(sum_by_lax, x)  # lax refuses what it does not take
    windows = _windows(x.shape, dims, given_strides, given_padding, None)
    if not _by_hand(x, windows) or max(side.size for side in windows) > LONGEST:
        sums = (lambda x: _padded(x, 0, windows)) if _only_pad(windows) else sum_by_lax
        counts = float(taps(windows)) if count_include_pad else sums(jnp.ones(x.shape))
        return sums(x) / counts
    return _mean(x, windows, bool(count_include_pad))


def reference_avg_pool(inputs, window_shape, strides=None, padding="VALID", count_include_pad=True):
    windows = _windows(inputs.shape, *_features_last(inputs, window_shape, strides, padding))
    inside = _elements(jnp.ones_like(inputs), windows, 0)
    count = inside.shape[-1] if count_include_pad else jnp.sum(inside, axis=-1)
    mean = jnp.sum(_elements(inputs, windows, 0), axis=-1) / count
    return mean if count_include_pad else mean.astype(jnp.promote_types(mean.dtype, jnp.result_type(float)))


def jacobian_avg_pool(inputs, window_shape, strides=None, padding="VALID"):
    windows = _windows(inputs.shape, *_features_last(inputs, window_shape, strides, padding))
    places = _elements(jnp.arange(inputs.size).reshape(inputs.shape), windows, -1).reshape(-1, taps(windows))
    return (Dense(jax.nn.one_hot(places, inputs.size, dtype=inputs.dtype).mean(axis=1)),)


@partial(custom_vjp, nondiff_argnames=("windows", "count_include_pad"))
def _mean(x, windows, count_include_pad):
    """The rule itself: arguments checked, strings and None resolved."""
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
def bwd_mean(windows, count_include_pad, kept, g):
    shape = kept.shape[1:]
    counts = _counts(windows, shape, count_include_pad).astype(compute_dtype(g.dtype))
    return (to_all(upcast(g), counts, windows, shape).astype(kept.dtype),)


_mean.defvjp(fwd_mean, bwd_mean)


def _counts(windows, shape, count_include_pad):
    """Returns how many elements each window counts, in NumPy, of a shape that broadcasts with the output's."""
    count = np.array(taps(windows))
    if count_include_pad:
        return count
    for axis, (side, n) in enumerate(zip(windows, shape, strict=True)):
        if not side.pools:
            continue
        inside = np.sum((side.positions(n) >= 0) & (side.positions(n) < n), axis=1)
        if np.all(inside == inside[:1]):  # as along the batch: what is the same everywhere takes no room
            inside = inside[:1]
        count = count // side.size * inside.reshape([-1 if i == axis else 1 for i in range(len(shape))])
    return count


# ----------------------------------------------------------------------------------- arguments, and what they stand for


def _features_last(x, window_shape, strides, padding):
    """Returns flax's arguments as lax's: of each dimension of x, batch and features included."""
    x, window_shape = as_array("inputs", x), integers("window_shape", window_shape)
    spatial = len(window_shape)
    batch = x.ndim - spatial - 1
    if batch < 0:
        raise ValueError(
            f"inputs must have a dimension for each of window_shape {window_shape} and one of features, "
            f"got shape {x.shape}"
        )
    window_shape = positive("window_shape", window_shape, spatial)
    strides = (1,) * spatial if strides is None else positive("strides", strides, spatial)
    padding = pads(padding, spatial)
    if not isinstance(padding, str):
        padding = ((0, 0),) * batch + padding + ((0, 0),)
    return (1,) * batch + window_shape + (1,), (1,) * batch + strides + (1,), padding


def _windows(shape, sizes, strides, padding, dilation=None):
    """Returns the windows that arguments of lax describe, accepted by it already."""
    strides, dilation = ((1,) * len(shape) if given is None else given for given in (strides, dilation))
    if isinstance(padding, str):
        spans = [d * (k - 1) + 1 for k, d in zip(sizes, dilation, strict=True)]
        padding = lax.padtype_to_pads(shape, spans, strides, padding)
    fields = zip(sizes, strides, padding, dilation, strict=True)
    return tuple(
        Side(*(n if is_symbolic(n) else operator.index(n) for n in (k, s, *pads, d))) for k, s, pads, d in fields
    )


def _by_hand(x, windows):
    """Return whether the rules of this file serve a call; lax serves what they do not."""
    served = (jnp.float16, jnp.bfloat16, jnp.float32, jnp.float64)
    pooled = [(side, n) for side, n in zip(windows, x.shape, strict=True) if side.pools]
    if x.dtype not in served or is_symbolic(*(n for _, n in pooled)):
        return False
    countable = all(side.span(n) < MOST_PLACES for side, n in pooled)
    return countable and not any(n == 0 for n in (*x.shape, *places(windows, x.shape)))


def _elements(x, windows, outside):
    """Returns the elements of each window in a last axis, by plain indexing."""
    rank = x.ndim
    for axis, side in enumerate(windows):
        at = side.positions(x.shape[axis])
        inside = (at >= 0) & (at < x.shape[axis])
        taken = jnp.take(x, jnp.asarray(np.where(inside, at, 0)), axis=axis)
        inside = inside.reshape(*at.shape, *(1,) * (taken.ndim - axis - 2))
        x = jnp.moveaxis(jnp.where(inside, taken, outside), axis + 1, -1)
    return x.reshape(*x.shape[:rank], taps(windows))


# ------------------------------------------------------------------------------------------------------------- records


def _by_lax(reduction, init):
    def pool(x, window_shape, strides=None, padding="VALID"):
        return lax.reduce_window(x, init, reduction, *_features_last(x, window_shape, strides, padding))

    return pool


def _mean_by_lax(x, window_shape, strides=None, padding="VALID", count_include_pad=True):
    options = _features_last(x, window_shape, strides, padding)
    count = math.prod(window_shape)
    if not count_include_pad:
        count = lax.reduce_window(jnp.ones((1, *x.shape[1:-1], 1)), 0.0, lax.add, *options)
    return lax.reduce_window(x, 0.0, lax.add, *options) / count


def _max_by_lax(operand, *args, **kwargs):
    return lax.reduce_window(operand, -jnp.inf, lax.max, *args, **kwargs)


_NAN, _INF = float("nan"), float("inf")
_LARGE = {"b": 8, "h": 112, "w": 112, "c": 64}
_LONG = {"b": 32, "n": 4096, "c": 64}


def _image(window, stride, **options):
    label = f"2-D {window}x{window} stride {stride}"
    return Case(("b h w c",), _LARGE, {"window_shape": (window,) * 2, "strides": (stride,) * 2, **options}, label=label)


def _wide(n, m, **_):
    return n >= 3 and m >= 3


# The length is fixed where the Jacobian of one row is stated: it is that of a matrix of places and features.
_ROWS = Case(("b n c",), {"b": 2, "n": 11, "c": 3}, {"window_shape": (3,), "strides": (2,)}, fixed=("n",))
_SAME = Case(
    ("b n m c",),
    {"b": 2, "n": 7, "m": 5, "c": 3},
    {"window_shape": (3, 3), "strides": (2, 2), "padding": "SAME"},
    valid=_wide,
)
_APART = Case(
    ("n m c",),
    {"n": 7, "m": 5, "c": 2},
    {"window_shape": (2, 3), "strides": (2, 4), "padding": ((0, 1), (2, 1))},
    valid=_wide,
    growth=False,
)
_CROWDED = Case(
    ("n m k c",),
    {"n": 5, "m": 4, "k": 7, "c": 2},
    {"window_shape": (2, 3, 3), "strides": (1, 2, 1), "padding": ((0, 1), (1, 2), (-1, 0))},
    valid=lambda k, **sizes: k >= 4 and _wide(**sizes),
    growth=False,
)


def _edges(**options):
    call = {"window_shape": (2,), "strides": (1,), **options}
    return (
        Edge("all equal", ([[1.0], [1.0], [1.0]],), call),
        Edge("zeros of both signs", ([[-0.0], [0.0], [-0.0]],), call),
        Edge("infinities of both signs", ([[_INF], [-_INF], [-_INF]],), call),
        Edge("a window as long as the input", ([[1.0], [3.0], [2.0]],), {**call, "window_shape": (3,)}),
        Edge("nothing but padding in a window", ([[1.0], [2.0]],), {**call, "padding": ((2, 0),)}),
        Edge("no window", ([[1.0]],), call),
        Edge("no features", (np.zeros((3, 0)),), call),
    )


RULES = (
    Rule(
        fn=reduce_window_max,
        reference=reference_reduce_window_max,
        baselines={"lax.reduce_window": _max_by_lax},
        cases=(
            Case(("n",), {"n": 11}, {"window_dimensions": (3,), "window_strides": (2,)}, valid=lambda n: n >= 3),
            Case(
                ("b c n",),
                {"b": 2, "c": 3, "n": 9},
                {
                    "window_dimensions": (1, 1, 3),
                    "window_strides": (1, 1, 1),
                    "window_dilation": (1, 1, 2),
                    "padding": "SAME",
                },
                growth=False,
            ),
            Case(
                ("n m",),
                {"n": 11, "m": 7},
                {
                    "window_dimensions": (3, 4),
                    "window_strides": (1, 3),
                    "window_dilation": (3, 2),
                    "padding": ((2, 2), (3, 3)),
                },
                valid=lambda n, m: n >= 3,
                growth=False,
            ),
        ),
        edges=(
            Edge("all equal", ([1.0, 1.0, 1.0],), {"window_dimensions": (2,)}),
            Edge("NaN", ([3.0, _NAN, 5.0, _NAN, 1.0, 2.0],), {"window_dimensions": (3,)}),
            Edge("-inf alone, beside padding", ([-_INF, -_INF],), {"window_dimensions": (2,), "padding": ((1, 1),)}),
        ),
        bench=(
            Case(
                ("b c h w",),
                {"b": 8, "c": 64, "h": 56, "w": 56},
                {"window_dimensions": (1, 1, 3, 3), "window_strides": (1, 1, 2, 2)},
            ),
        ),
        residuals=lambda n: (n - 3) // 2 + 1,
        jacobian=jacobian_reduce_window_max,
        reason="on CPU many times faster than XLA's select-and-scatter, right if x is dilated; keeps a byte an output",
        source="Algorithm 4",
    ),
    *(
        Rule(
            fn=fn,
            reference=reference,
            baselines={"lax.reduce_window": _by_lax(reduction, init)},
            cases=cases,
            edges=_edges(),
            bench=(
                _image(2, 2),
                _image(3, 2),
                Case(("b n c",), _LONG, {"window_shape": (2,), "strides": (2,)}, label="1-D k2 stride 2"),
                Case(("b n c",), _LONG, {"window_shape": (3,), "strides": (2,)}, label="1-D k3 stride 2"),
            ),
            residuals=lambda b, n, c: b * ((n - 3) // 2 + 1) * c,
            jacobian=jacobian,
            reason="on CPU many times faster than XLA's select-and-scatter; keeps a byte an output, not the input",
            source="Algorithm 4",
        )
        for fn, reference, jacobian, reduction, init, cases in (
            (max_pool, reference_max_pool, jacobian_max_pool, lax.max, -jnp.inf, (_ROWS, _APART, _CROWDED)),
            (min_pool, reference_min_pool, jacobian_min_pool, lax.min, jnp.inf, (_ROWS, _SAME)),
        )
    ),
    Rule(
        fn=avg_pool,
        reference=reference_avg_pool,
        baselines={"lax.reduce_window": _mean_by_lax},
        cases=(_ROWS, _APART, replace(_SAME, kwargs={**_SAME.kwargs, "count_include_pad": False})),
        edges=_edges(),
        bench=(_image(2, 2), _image(3, 2)),
        residuals=lambda b, n, c: 0,
        jacobian=jacobian_avg_pool,
        reason="on CPU faster than XLA's windows over a dilated cotangent",
        source="Algorithm 4",
    ),
)
