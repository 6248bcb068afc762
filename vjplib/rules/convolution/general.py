"""The convolution of `jax.lax` in full generality, each product by the algorithm that suits the shapes."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Num

from vjplib.compat import custom_vjp
from vjplib.rule import Case, Edge, Gain, Rule
from vjplib.rules._arguments import as_array, shaped
from vjplib.rules._cotangents import like_primal
from vjplib.rules.convolution.batching import merge_vmapped_batch
from vjplib.rules.convolution.call import ConvCall, lax_convolution, make_call
from vjplib.rules.convolution.dispatch import Plan, forward, input_grad, plan, weight_grad

Padding = str | Sequence[tuple[int, int]]


def conv_general_dilated(
    lhs: Num[Array, "..."],
    rhs: Num[Array, "..."],
    window_strides: Sequence[int],
    padding: Padding,
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    batch_group_count: int = 1,
    precision: Any = None,
    preferred_element_type: DTypeLike | None = None,
    out_sharding: Any = None,
) -> Num[Array, "..."]:
    """y_i = sum_j k_j x_l over s i + r j = d l + p: `jax.lax.conv_general_dilated`, argument for argument.

    Where an algorithm is known to be faster than XLA's convolution on CPU, y and the cotangents of x and of the kernel
    are each computed by the algorithm that suits the shapes. Otherwise, and on other platforms, this is lax's function
    with its own derivative. `explain_convolution` shows which algorithms a call uses.

    Args:
        lhs: x, of rank n + 2, any dtype that lax takes.
        rhs: the kernel, of rank n + 2 and x's dtype.
        window_strides: s, n integers.
        padding: "SAME", "SAME_LOWER", "VALID", or n pairs (low, high), which may be negative.
        lhs_dilation: d, n integers; None for ones.
        rhs_dilation: r, n integers; None for ones.
        dimension_numbers: the axes of batch, features and space: three strings such as ("NHWC", "HWIO", "NHWC"), a
            `lax.ConvDimensionNumbers`, or None for channels first, such as ("NCHW", "OIHW", "NCHW").
        feature_group_count: the number of groups that channels and features are divided into.
        batch_group_count: the number of groups that batch and features are divided into.
        precision: as in lax; it matters on GPU and TPU.
        preferred_element_type: dtype of the result, None for the dtype of the arguments.
        out_sharding: sharding of the result under explicit axes; lax's function computes such calls.

    Returns:
        y, with the shape and dtype of lax's result; half precision accumulates in float32 and is rounded once. NaN and
        infinities reach the outputs that they are multiplied into, and with some algorithms more: from the kernel they
        give NaN where it meets padding, and from one group they reach the other groups of its block.
        `explain_convolution` shows where.

    Raises:
        TypeError: an argument has a wrong type, or ranks or dtypes differ; the message names it.
        ValueError: strides, dilations, padding, groups or dimension_numbers do not fit the arrays.

    Example:
        >>> x, k = jnp.arange(8.0).reshape(1, 4, 2), jnp.ones((3, 1, 2))
        >>> y = conv_general_dilated(x, k, (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC"), feature_group_count=2)
        >>> y[0].T.tolist()
        [[2.0, 6.0, 12.0, 10.0], [4.0, 9.0, 15.0, 12.0]]

    Source:
        Example 4.2 and Algorithm 4 of the lecture, generalised.
    """
    lhs, rhs = as_array("lhs", lhs), as_array("rhs", rhs)
    window = (window_strides, padding, lhs_dilation, rhs_dilation, dimension_numbers)
    options = (feature_group_count, batch_group_count, precision, preferred_element_type, out_sharding)
    return _trim_and_convolve(lhs, rhs, make_call(lhs, rhs, *window, *options))


@merge_vmapped_batch
def _trim_and_convolve(x, k, call):
    if call.trimmed is not call:  # no algorithm pads for taps that multiply nothing
        if call.trimmed.empty:  # 0, varying over devices as x and k do
            no_numbers = (lax.slice_in_dim(jnp.expand_dims(a, 0), 0, 0) for a in (x, k))
            zero = lax.add(*map(jnp.sum, no_numbers))
            return jnp.broadcast_to(zero.astype(call.out_dtype(x)), call.out)
        call, k = call.trimmed, call.trim(k)
    return _convolve(x, k, call) if any(algorithm.run for algorithm in plan(call)) else call(x, k)


@partial(custom_vjp, nondiff_argnames=("call",))
def _convolve(x: Array, k: Array, call: ConvCall) -> Array:
    return forward(x, k, call)


def fwd(x, k, call):
    return forward(x, k, call), (x, k)


# y_i = sum_j k_j x_l over all j, l with s i + r j = d l + p: linear in x and in k, and so
#   (g^T J_x)_l = sum of g_i k_j over all i, j with s i + r j = d l + p
#   (g^T J_k)_j = sum of g_i x_l over all i, l with s i + r j = d l + p
# with sums over features for the one and over the batch for the other. The equation is the same for all three; only
# which index is free differs. With j' = k - 1 - j it reads d l + r j' = s i + (r (k - 1) - p): dx is a convolution
# again, with stride d, of g dilated by s. Neither Jacobian, with an entry for each pair of numbers, is formed.
def bwd(call, res, g):
    x, k = res
    return like_primal(input_grad(g, k, x, call), x), like_primal(weight_grad(g, x, k, call), k)


_convolve.defvjp(fwd, bwd)


def explain_convolution(
    lhs: Any,
    rhs: Any,
    window_strides: Sequence[int],
    padding: Padding,
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    batch_group_count: int = 1,
    precision: Any = None,
    preferred_element_type: DTypeLike | None = None,
    out_sharding: Any = None,
) -> Plan:
    """Return the algorithm that computes each product of `conv_general_dilated` on CPU for these arguments, and why.

    The arguments are those of `conv_general_dilated`; lhs and rhs may be a `jax.ShapeDtypeStruct`.

    Returns:
        A `Plan` with an algorithm for y, dx and dk, each with a name and a reason; it prints a line for each.

    Raises:
        TypeError, ValueError: as `conv_general_dilated`.

    Example:
        >>> import jax
        >>> x, k = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((8, 56, 56, 64), (3, 3, 1, 64)))
        >>> channels_last = ("NHWC", "HWIO", "NHWC")
        >>> explain_convolution(
        ...     x, k, (1, 1), "SAME", dimension_numbers=channels_last, feature_group_count=64
        ... ).y.name
        'shifted copies'

    Source:
        The tables in `vjplib.rules.convolution.dispatch`.
    """
    window = (window_strides, padding, lhs_dilation, rhs_dilation, dimension_numbers)
    options = (feature_group_count, batch_group_count, precision, preferred_element_type, out_sharding)
    return plan(make_call(shaped("lhs", lhs), shaped("rhs", rhs), *window, *options).trimmed)


def conv(
    lhs: Num[Array, "..."],
    rhs: Num[Array, "..."],
    window_strides: Sequence[int],
    padding: str,
    precision: Any = None,
    preferred_element_type: DTypeLike | None = None,
) -> Num[Array, "..."]:
    """y_i = sum_j k_j x_{s i + j - p}: `jax.lax.conv`, that is `conv_general_dilated` of (N, C, ...) with (O, I, ...).

    Args:
        lhs: x, (batch, channels, *space).
        rhs: the kernel, (features, channels, *space).
        window_strides: this and the others as for `conv_general_dilated`.
        padding: "SAME", "SAME_LOWER" or "VALID".
        precision: as in lax.
        preferred_element_type: dtype of the result.

    Returns:
        (batch, features, *space).

    Raises:
        TypeError, ValueError: as `conv_general_dilated`.

    Example:
        >>> conv(jnp.array([[[1.0, 2.0, 3.0]]]), jnp.array([[[1.0, 0.0, -1.0]]]), (1,), "SAME").tolist()
        [[[-2.0, -2.0, 2.0]]]

    Source:
        Example 4.2 of the lecture.
    """
    return conv_with_general_padding(lhs, rhs, window_strides, padding, None, None, precision, preferred_element_type)


def conv_with_general_padding(
    lhs: Num[Array, "..."],
    rhs: Num[Array, "..."],
    window_strides: Sequence[int],
    padding: Padding,
    lhs_dilation: Sequence[int] | None,
    rhs_dilation: Sequence[int] | None,
    precision: Any = None,
    preferred_element_type: DTypeLike | None = None,
) -> Num[Array, "..."]:
    """y_i = sum_j k_j x_l over s i + r j = d l + p: `jax.lax.conv_with_general_padding`, (N, C, ...) with (O, I, ...).

    Args:
        lhs: x, (batch, channels, *space).
        rhs: the kernel, (features, channels, *space).
        window_strides: this and the others as for `conv_general_dilated`.
        padding: a string or pairs.
        lhs_dilation: d.
        rhs_dilation: r.
        precision: as in lax.
        preferred_element_type: dtype of the result.

    Returns:
        (batch, features, *space).

    Raises:
        TypeError, ValueError: as `conv_general_dilated`.

    Example:
        >>> x, k = jnp.array([[[1.0, 2.0, 3.0]]]), jnp.array([[[1.0, 10.0]]])
        >>> conv_with_general_padding(x, k, (1,), [(2, 0)], None, (2,)).tolist()
        [[[10.0, 20.0, 31.0]]]

    Source:
        Example 4.2 of the lecture, dilated.
    """
    given = {"precision": precision, "preferred_element_type": preferred_element_type}
    return conv_general_dilated(lhs, rhs, window_strides, padding, lhs_dilation, rhs_dilation, **given)


def reference(
    lhs,
    rhs,
    window_strides,
    padding,
    lhs_dilation=None,
    rhs_dilation=None,
    dimension_numbers=None,
    feature_group_count=1,
    batch_group_count=1,
):
    dimensions = lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers)
    (n, c, *s), (o, i, *t) = dimensions.lhs_spec, dimensions.rhs_spec
    x, k = jnp.transpose(lhs, (n, *s, c)), jnp.transpose(rhs, (*t, i, o))
    size, kernel = x.shape[1:-1], k.shape[:-2]
    d, r = lhs_dilation or (1,) * len(size), rhs_dilation or (1,) * len(size)
    window = [(taps - 1) * e + 1 for taps, e in zip(kernel, r, strict=True)]
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(size, window, window_strides, padding)
    pads = [(*p, e - 1) for p, e in zip(padding, d, strict=True)]
    x = lax.pad(x, np.zeros((), x.dtype), [(0, 0, 0), *pads, (0, 0, 0)])
    out = [max(0, (m - w) // e + 1) for m, w, e in zip(x.shape[1:-1], window, window_strides, strict=True)]
    for axis, (m, e, taps, f) in enumerate(zip(out, window_strides, kernel, r, strict=True)):
        # (batch, out, tap, out, tap, ..., channels)
        x = jnp.take(x, np.arange(m)[:, None] * e + np.arange(taps) * f, axis=1 + 2 * axis)
    x = jnp.moveaxis(x, range(2, 2 + 2 * len(size), 2), range(-1 - len(size), -1))
    groups, features, taps = feature_group_count * batch_group_count, k.shape[-1], math.prod(kernel)
    x = x.reshape(batch_group_count, x.shape[0] // batch_group_count, *out, taps, feature_group_count, k.shape[-2])
    k = k.reshape(taps, k.shape[-2], batch_group_count, feature_group_count, features // groups)
    y = jnp.einsum("bn...tfi,tibfo->n...bfo", x, k)
    y = y.reshape(*y.shape[:-3], features)
    (n, c, *s) = dimensions.out_spec
    return lax.transpose(y, np.argsort((n, *s, c)))


CHANNELS_LAST = {1: ("NWC", "WIO", "NWC"), 2: ("NHWC", "HWIO", "NHWC"), 3: ("NDHWC", "DHWIO", "NDHWC")}


def _general(x, k, groups=1, label="", **kwargs: Any):
    """Return a case of `conv_general_dilated`, channels last, with SAME padding unless kwargs say otherwise."""
    space = len(k.split()) - 2
    given = {"window_strides": (1,) * space, "padding": "SAME", "dimension_numbers": CHANNELS_LAST[space]}
    grouped = {"feature_group_count": groups} if groups > 1 else {}
    return Case((x, k), {}, given | grouped | kwargs, growth=False, label=label)


def _edge(name, x, **kwargs):
    return Edge(name, (x, np.ones((3, 1, 2))), _general("", "3 1 2", 2, **kwargs).kwargs)


def _padded(padding, lhs_dilation=None):
    strides = (1,) * len(padding)
    return {"window_strides": strides, "padding": padding, "lhs_dilation": lhs_dilation, "rhs_dilation": None}


_SAME = {"window_strides": (1,), "padding": "SAME"}
_SHAPES = (  # of open issues of JAX, and of common networks
    _general("8 1024 256", "4 1 256", 256, label="depthwise 1-D k4"),
    _general("8 1024 256", "31 1 256", 256, label="depthwise 1-D k31"),
    _general("8 1024 256", "3 1 256", 256, label="depthwise 1-D k3 dilation 8 (jax#26266)", rhs_dilation=(8,)),
    _general("8 1024 256", "4 1 256", 256, label="depthwise 1-D k4 stride 2", window_strides=(2,)),
    _general("32 1024 512", "5 1 512", 512, label="depthwise 1-D k5 (jax#13800)"),
    _general("1 124 124 256", "3 3 1 256", 256, label="depthwise 2-D k3 (jax#23713)"),
    _general("8 56 56 64", "3 3 1 64", 64, label="depthwise 2-D k3"),
    _general("8 56 56 64", "3 3 1 64", 64, label="depthwise 2-D k3 dilation 2", rhs_dilation=(2, 2)),
    _general("8 28 28 32", "3 3 1 64", 32, label="depthwise 2-D k3, 2 features a channel"),
    _general("8 56 56 64", "5 5 1 64", 64, label="depthwise 2-D k5"),
    _general("8 56 56 96", "7 7 1 96", 96, label="depthwise 2-D k7"),
    _general("8 112 112 64", "3 3 1 64", 64, label="depthwise 2-D k3 stride 2", window_strides=(2, 2)),
    _general("8 28 28 128", "3 3 32 128", 4, label="grouped 3x3, 4 groups"),
    _general("8 28 28 128", "3 3 4 128", 32, label="grouped 3x3, 32 groups"),
    _general("8 28 28 128", "3 3 4 128", 32, label="grouped 3x3, 32 groups, stride 2", window_strides=(2, 2)),
    _general("1 1000000 1", "3 1 1", label="one channel n=1e6 k3"),
    _general("1 1000000 1", "15 1 1", label="one channel n=1e6 k15"),
    _general("1 10000000 1", "3 1 1", label="one channel n=1e7 k3"),
    _general("8 56 56 64", "1 1 64 64", label="dense 1x1"),
    _general("8 28 28 64", "3 3 64 64", label="dense 3x3, 64 channels"),
    _general("8 14 14 256", "3 3 256 256", label="dense 3x3, 256 channels"),
    _general("8 56 56 64", "3 3 64 128", label="dense 3x3 stride 2", window_strides=(2, 2)),
    _general("8 224 224 3", "7 7 3 64", label="stem 7x7 stride 2", window_strides=(2, 2)),
    _general(
        "8 224 224 3",
        "16 16 3 384",
        label="patch embedding 16x16 (jax#23085)",
        window_strides=(16, 16),
        padding="VALID",
    ),
)

RULES = (
    Rule(
        fn=conv_general_dilated,
        whole_array=True,
        reference=reference,
        baselines={"lax.conv_general_dilated": lax_convolution},
        cases=(
            Case(
                ("n h w c", "3 2 1 c"),
                {"n": 2, "h": 5, "w": 7, "c": 3},
                _general("", "3 2 1 3", 3).kwargs,
                fixed=("c",),
            ),
            _general("2 7 3", "4 1 6", 3, window_strides=(2,), padding="SAME_LOWER"),
            _general("2 5 6 8", "3 3 4 6", 2, window_strides=(2, 1)),
            _general("2 3 4 3", "3 2 3 5", padding=((2, 1), (1, -1)), lhs_dilation=(2, 3)),
            _general("4 3 5 7", "6 3 2 3", padding="VALID", dimension_numbers=None, batch_group_count=2),
            _general("1 9 1", "3 1 1", rhs_dilation=(2,)),
        ),
        edges=(
            _edge("an infinity", np.array([[[np.inf, 1.0], [1.0, 1.0], [2.0, 0.0]]])),
            _edge("a cropping pad", np.ones((1, 5, 2)), padding=((-1, -1),)),
            _edge("no output", np.ones((1, 2, 2)), padding="VALID"),
            _edge("empty batch", np.ones((0, 4, 2))),
        ),
        bench=_SHAPES,
        residual_bytes=lambda n, h, w, c: 4 * (n * h * w * c + 6 * c),
        reason="lax's convolution; on CPU depthwise, grouped and transposed ones are faster, and right at any pad",
        gains=(Gain("time", 0.5), Gain("time", 0.5, "depthwise 2-D k3"), Gain("time", 0.5, "grouped 3x3, 4 groups")),
        source="Example 4.2, generalised",
    ),
    Rule(
        fn=conv,
        whole_array=True,
        reference=reference,
        baselines={"lax.conv": lax.conv},
        cases=(Case(("n 1 h w", "1 1 3 2"), {"n": 2, "h": 7, "w": 5}, {"window_strides": (2, 1), "padding": "SAME"}),),
        edges=(Edge("one element", (np.ones((1, 1, 1)), np.ones((1, 1, 2))), _SAME),),
        bench=(Case(("1 1 1000000", "1 1 3"), {}, _SAME, label="one channel n=1e6 k3"),),
        residual_bytes=lambda n, h, w: 4 * (n * h * w + 6),
        reason="conv_general_dilated by its shortest name",
        gains=(Gain("time", 0.5),),
        source="Example 4.2",
    ),
    Rule(
        fn=conv_with_general_padding,
        whole_array=True,
        reference=reference,
        baselines={"lax.conv_with_general_padding": lax.conv_with_general_padding},
        cases=(Case(("n 5 m", "2 5 3"), {"n": 2, "m": 7}, _padded(((1, 2),), (2,))),),
        edges=(Edge("a cropping pad", (np.ones((1, 1, 5)), np.ones((1, 1, 2))), _padded(((-1, -1),))),),
        bench=(
            Case(
                ("8 128 28 28", "64 128 2 2"),
                {},
                _padded(((1, 1),) * 2, (2, 2)),
                label="transposed 2x2s2, channels first (jax#23783)",
            ),
        ),
        residual_bytes=lambda n, m: 4 * (5 * n * m + 30),
        reason="conv_general_dilated of dilated, padded arrays by a shorter name",
        gains=(Gain("time", 0.5),),
        source="Example 4.2",
    ),
)
