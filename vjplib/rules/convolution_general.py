"""The convolution of `jax.lax` in all its generality, with a derivative in the form that suits each shape."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Num

from vjplib.compat import as_varying, automatic, custom_vjp, separate_call
from vjplib.convolution.choice import XLA, Formulation, kernel_formulation, output_formulation
from vjplib.convolution.shapes import SHAPES
from vjplib.convolution.whole_batch import whole_batch
from vjplib.convolution.xla import Call, call_of
from vjplib.convolution.xla import conv_general_dilated as lax_convolution
from vjplib.precision import compute_dtype
from vjplib.rule import Case, Edge, Rule
from vjplib.rules._arguments import as_array, convolution_arguments, shaped

Padding = str | Sequence[tuple[int, int]]
REAL = (jnp.float16, jnp.bfloat16, jnp.float32, jnp.float64)


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
    """y_i = sum_j k_j x_l over s i + r j = d l + p: `jax.lax.conv_general_dilated`, arguments and all.

    Where a formulation is known to be faster than XLA's convolution on CPU, y, the cotangent of x and that of the
    kernel are each computed in the form that suits the shapes; elsewhere, and on other platforms, this is lax's
    function with its own derivative. `explain_convolution` tells which.

    Args:
        lhs: x, of rank n + 2, any dtype that lax takes.
        rhs: the kernel, of rank n + 2 and x's dtype.
        window_strides: s, n integers.
        padding: "SAME", "SAME_LOWER", "VALID", or n pairs (low, high), which may be negative.
        lhs_dilation: d, n integers; None for ones.
        rhs_dilation: r, n integers; None for ones.
        dimension_numbers: where batch, features and space lie: three strings such as ("NHWC", "HWIO", "NHWC"), a
            `lax.ConvDimensionNumbers`, or None for ("NCHW", "OIHW", "NCHW") and its like.
        feature_group_count: groups that channels and features are divided into.
        batch_group_count: groups that batch and features are divided into.
        precision: as in lax; it matters on GPU and TPU.
        preferred_element_type: dtype of the result, None for that of the arguments.
        out_sharding: sharding of the result under explicit axes; lax's function serves such calls.

    Returns:
        y, with the shape and dtype that lax gives it; half precision accumulates in float32 and is rounded once. NaN
        and infinities reach the outputs that they are multiplied into, and in some formulations more: a kernel's as NaN
        where it meets padding, those of a group the other groups of its block. `explain_convolution` says where.

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
    return _convolve(**convolution_arguments(**locals()))


@whole_batch
def _convolve(lhs, rhs, **arguments):
    call = _call(lhs=lhs, rhs=rhs, **arguments)
    if call.trimmed is not call:  # no formulation pads for taps that meet nothing
        if call.trimmed.empty:  # 0, varying over devices as x and k do
            no_numbers = (lax.slice_in_dim(jnp.expand_dims(a, 0), 0, 0) for a in (lhs, rhs))
            zero = lax.add(*map(jnp.sum, no_numbers))
            return jnp.broadcast_to(zero.astype(jax.eval_shape(call, lhs, rhs).dtype), call.out)
        call, rhs = call.trimmed, call.trim(rhs)
    return _rule(call)(lhs, rhs) if _served(call, lhs, rhs) else call(lhs, rhs)


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
        window_strides: s, an integer a spatial dimension.
        padding: "SAME", "SAME_LOWER" or "VALID".
        precision: as in lax.
        preferred_element_type: dtype of the result, None for that of the arguments.

    Returns:
        (batch, features, *space).

    Raises:
        TypeError: as `conv_general_dilated`.
        ValueError: as `conv_general_dilated`.

    Example:
        >>> conv(jnp.array([[[1.0, 2.0, 3.0]]]), jnp.array([[[1.0, 0.0, -1.0]]]), (1,), "SAME").tolist()
        [[[-2.0, -2.0, 2.0]]]

    Source:
        Example 4.2 of the lecture.
    """
    return conv_general_dilated(
        lhs, rhs, window_strides, padding, precision=precision, preferred_element_type=preferred_element_type
    )


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
        window_strides: s, an integer a spatial dimension.
        padding: "SAME", "SAME_LOWER", "VALID", or a pair (low, high) a spatial dimension.
        lhs_dilation: d, an integer a spatial dimension; None for ones.
        rhs_dilation: r, an integer a spatial dimension; None for ones.
        precision: as in lax.
        preferred_element_type: dtype of the result, None for that of the arguments.

    Returns:
        (batch, features, *space).

    Raises:
        TypeError: as `conv_general_dilated`.
        ValueError: as `conv_general_dilated`.

    Example:
        >>> x, k = jnp.array([[[1.0, 2.0, 3.0]]]), jnp.array([[[1.0, 10.0]]])
        >>> conv_with_general_padding(x, k, (1,), [(2, 0)], None, (2,)).tolist()
        [[[10.0, 20.0, 31.0]]]

    Source:
        Example 4.2 of the lecture, dilated.
    """
    return conv_general_dilated(
        lhs,
        rhs,
        window_strides,
        padding,
        lhs_dilation,
        rhs_dilation,
        precision=precision,
        preferred_element_type=preferred_element_type,
    )


class Explanation(NamedTuple):
    """What computes each product of a convolution on CPU, and why; elsewhere XLA's convolution does.

    Args:
        y: the forward.
        dx: the cotangent of x.
        dk: the cotangent of the kernel.
    """

    y: Formulation
    dx: Formulation
    dk: Formulation

    def __str__(self) -> str:
        """Return a line a product, and below it where that spreads NaN and infinities."""
        return "\n".join(
            f"{product}: {f.name} ({f.why})" + (f"\n    {f.nonfinite}" if f.nonfinite else "")
            for product, f in zip(self._fields, self, strict=True)
        )


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
) -> Explanation:
    """Returns which formulation serves each product of `conv_general_dilated` on CPU for these arguments, and why.

    Args:
        lhs: x, or a `jax.ShapeDtypeStruct` in its place.
        rhs: the kernel, or a `jax.ShapeDtypeStruct` in its place.
        window_strides: this and all others as for `conv_general_dilated`.
        padding: see there.
        lhs_dilation: see there.
        rhs_dilation: see there.
        dimension_numbers: see there.
        feature_group_count: see there.
        batch_group_count: see there.
        precision: see there.
        preferred_element_type: see there.
        out_sharding: see there.

    Returns:
        An `Explanation`: a name and a reason for y, dx and dk; it prints a line for each.

    Raises:
        TypeError: as `conv_general_dilated`.
        ValueError: as `conv_general_dilated`.

    Example:
        >>> x, k = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((8, 56, 56, 64), (3, 3, 1, 64)))
        >>> channels_last = ("NHWC", "HWIO", "NHWC")
        >>> explain_convolution(
        ...     x, k, (1, 1), "SAME", dimension_numbers=channels_last, feature_group_count=64
        ... ).y.name
        'shifted copies'

    Source:
        The tables in `vjplib.convolution.choice`.
    """
    lhs, rhs = shaped("lhs", lhs), shaped("rhs", rhs)
    call = _call(**convolution_arguments(**locals())).trimmed
    return Explanation(*(_served(call, lhs, rhs) or (XLA, XLA, XLA)))


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
    x = lax.pad(
        x, np.zeros((), x.dtype), [(0, 0, 0), *((*p, e - 1) for p, e in zip(padding, d, strict=True)), (0, 0, 0)]
    )
    out = [max(0, (m - w) // e + 1) for m, w, e in zip(x.shape[1:-1], window, window_strides, strict=True)]
    places = [
        np.arange(m)[:, None] * e + np.arange(taps) * f
        for m, e, taps, f in zip(out, window_strides, kernel, r, strict=True)
    ]
    for axis, place in enumerate(places):  # (batch, out, tap, out, tap, ..., channels)
        x = jnp.take(x, place, axis=1 + 2 * axis)
    x = jnp.moveaxis(x, range(2, 2 + 2 * len(size), 2), range(-1 - len(size), -1))
    groups, features, taps = feature_group_count * batch_group_count, k.shape[-1], math.prod(kernel)
    x = x.reshape(batch_group_count, x.shape[0] // batch_group_count, *out, taps, feature_group_count, k.shape[-2])
    k = k.reshape(taps, k.shape[-2], batch_group_count, feature_group_count, features // groups)
    y = jnp.einsum("bn...tfi,tibfo->n...bfo", x, k)
    y = y.reshape(*y.shape[:-3], features)
    (n, c, *s) = dimensions.out_spec
    return lax.transpose(y, np.argsort((n, *s, c)))


@functools.lru_cache(maxsize=4096)
def served_by(call: Call) -> tuple[Formulation, Formulation, Formulation] | None:
    """Return what gives y, dx and dk of a call on CPU, None where XLA's convolution does throughout."""
    if call.out_sharding is not None or call.empty or not call.known:
        return None
    problem = call.problem
    served = output_formulation(problem), output_formulation(problem.transposed), kernel_formulation(problem)
    return None if all(f.run is None for f in served) else served


def _served(call: Call, lhs: Any, rhs: Any) -> tuple[Formulation, Formulation, Formulation] | None:
    return served_by(call) if lhs.dtype in REAL and rhs.dtype in REAL else None


def _call(*, lhs, rhs, out_sharding, **arguments) -> Call:
    """Return a call's shapes and static arguments; raise what lax raises."""
    y = jax.eval_shape(functools.partial(lax_convolution, out_sharding=out_sharding, **arguments), lhs, rhs)
    return call_of(lhs.shape, rhs.shape, y, out_sharding=out_sharding, **arguments)


@functools.lru_cache(maxsize=4096)
def _rule(call: Call) -> Callable[[Array, Array], Array]:
    problem = call.problem
    output, input_cotangent, kernel_cotangent = (f.run for f in served_by(call) or ())

    def y_on_cpu(x, k):
        dtype = jax.eval_shape(call, x, k).dtype
        y = _in_one_dtype(output, problem, dtype)(call.x_to_canonical(x), call.k_to_canonical(k))
        return call.y_from_canonical(y)

    def dx_on_cpu(g, k, x):
        k = problem.transposed_kernel(call.k_to_canonical(k))
        dx = _in_one_dtype(input_cotangent, problem.transposed, x.dtype)(call.y_to_canonical(g), k)
        return as_varying(call.x_from_canonical(dx), x)

    def dk_on_cpu(g, x, k):
        dk = _in_one_dtype(kernel_cotangent, problem, k.dtype)(call.x_to_canonical(x), call.y_to_canonical(g))
        return as_varying(call.k_from_canonical(dk), k)

    y_of = by_platform(output and y_on_cpu, call)
    dx_of = by_platform(input_cotangent and dx_on_cpu, call.input_cotangent)
    dk_of = by_platform(kernel_cotangent and dk_on_cpu, call.kernel_cotangent)

    @custom_vjp
    def convolve(x: Array, k: Array) -> Array:
        return y_of(x, k)

    def fwd(x, k):
        return y_of(x, k), (x, k)

    # y_i = sum_j k_j x_l over all j, l with s i + r j = d l + p: linear in x and in k, and so
    #   (g^T J_x)_l = sum of g_i k_j over all i, j with s i + r j = d l + p
    #   (g^T J_k)_j = sum of g_i x_l over all i, l with s i + r j = d l + p
    # with sums over features for the one and over the batch for the other. The equation is the same for all three; only
    # which index is free differs. With j' = k - 1 - j it reads d l + r j' = s i + (r (k - 1) - p): dx is a convolution
    # again, with stride d, of g dilated by s. Neither Jacobian, with an entry for each pair of numbers, is formed.
    def bwd(res, g):
        x, k = res
        return dx_of(g, k, x), dk_of(g, x, k)

    convolve.defvjp(fwd, bwd)
    return convolve


def by_platform(on_cpu, default):
    """Return a product as one jitted function: on CPU in a form of ours, if there is one, else by XLA."""
    if on_cpu is None:
        return jax.jit(default)

    def product(*arrays):
        on_devices = automatic(on_cpu, jax.eval_shape(default, *arrays))
        return lax.platform_dependent(*arrays, cpu=on_devices, default=default)

    return jax.jit(product)


def _in_one_dtype(run, problem, dtype):
    """Returns a formulation as a call of its own, computed in float32 or wider and rounded to dtype at its end."""

    def rounded(*arrays):
        computing = compute_dtype(jnp.result_type(*arrays, dtype))
        return run(problem, *(a.astype(computing) for a in arrays)).astype(dtype)

    return separate_call(rounded)


CHANNELS_LAST = {1: ("NWC", "WIO", "NWC"), 2: ("NHWC", "HWIO", "NHWC"), 3: ("NDHWC", "DHWIO", "NDHWC")}


def _residuals(n, h, w, c):
    return 4 * (n * h * w * c + 6 * c)


def _general(
    *inputs,
    label="",
    dims=None,
    growth=False,
    fixed=(),
    space=2,
    window_strides=None,
    padding: Padding = "SAME",
    **kwargs: Any,
):
    """Returns a case of `conv_general_dilated`, channels last; what its kwargs do not give has its default."""
    strides = window_strides or (1,) * space
    given = {"window_strides": strides, "padding": padding, "dimension_numbers": CHANNELS_LAST[space]}
    return Case(inputs, dims or {}, given | kwargs, fixed=fixed, growth=growth, label=label)


def _edge(name, x, **kwargs):
    case = _general(space=1, feature_group_count=2, **kwargs)
    return Edge(name, (x, np.ones((3, 1, 2))), case.kwargs)


RULES = (
    Rule(
        fn=conv_general_dilated,
        whole_array=True,
        reference=reference,
        baselines={"lax.conv_general_dilated": lax_convolution},
        cases=(
            _general(
                "n h w c",
                "3 2 1 c",
                dims={"n": 2, "h": 5, "w": 7, "c": 3},
                fixed=("c",),
                growth=True,
                feature_group_count=3,
            ),
            _general("2 7 3", "4 1 6", space=1, window_strides=(2,), padding="SAME_LOWER", feature_group_count=3),
            _general("2 5 6 8", "3 3 4 6", window_strides=(2, 1), feature_group_count=2),
            _general("2 3 4 3", "3 2 3 5", padding=((2, 1), (1, -1)), lhs_dilation=(2, 3)),
            _general("4 3 5 7", "6 3 2 3", padding="VALID", dimension_numbers=None, batch_group_count=2),
            _general("1 9 1", "3 1 1", space=1, rhs_dilation=(2,)),
        ),
        edges=(
            _edge("an infinity", np.array([[[np.inf, 1.0], [1.0, 1.0], [2.0, 0.0]]])),
            _edge("places cut off", np.ones((1, 5, 2)), padding=((-1, -1),)),
            _edge("no output", np.ones((1, 2, 2)), padding="VALID"),
            _edge("empty batch", np.ones((0, 4, 2))),
        ),
        bench=tuple(
            _general(x, k, label=label, space=len(k.split()) - 2, **arguments) for label, x, k, arguments in SHAPES
        ),
        residual_bytes=_residuals,
        reason="lax's convolution; on CPU depthwise, grouped and transposed many times faster, and right at any pad",
        source="Example 4.2, generalised",
    ),
    Rule(
        fn=conv,
        whole_array=True,
        reference=reference,
        baselines={"lax.conv": lax.conv},
        cases=(Case(("n 1 h w", "1 1 3 2"), {"n": 2, "h": 7, "w": 5}, {"window_strides": (2, 1), "padding": "SAME"}),),
        edges=(
            Edge("one place", (np.ones((1, 1, 1)), np.ones((1, 1, 2))), {"window_strides": (1,), "padding": "SAME"}),
        ),
        bench=(
            Case(
                ("1 1 1000000", "1 1 3"), {}, {"window_strides": (1,), "padding": "SAME"}, label="one channel n=1e6 k3"
            ),
        ),
        residual_bytes=lambda n, h, w: 4 * (n * h * w + 6),
        reason="conv_general_dilated by its shortest name",
        source="Example 4.2",
    ),
    Rule(
        fn=conv_with_general_padding,
        whole_array=True,
        reference=reference,
        baselines={"lax.conv_with_general_padding": lax.conv_with_general_padding},
        cases=(
            Case(
                ("n 5 m", "2 5 3"),
                {"n": 2, "m": 7},
                {"window_strides": (1,), "padding": ((1, 2),), "lhs_dilation": (2,), "rhs_dilation": None},
            ),
        ),
        edges=(
            Edge(
                "places cut off",
                (np.ones((1, 1, 5)), np.ones((1, 1, 2))),
                {"window_strides": (1,), "padding": ((-1, -1),), "lhs_dilation": None, "rhs_dilation": None},
            ),
        ),
        bench=(
            Case(
                ("8 128 28 28", "64 128 2 2"),
                {},
                {
                    "window_strides": (1, 1),
                    "padding": ((1, 1), (1, 1)),
                    "lhs_dilation": (2, 2),
                    "rhs_dilation": None,
                },
                label="transposed 2x2s2, channels first (jax#23783)",
            ),
        ),
        residual_bytes=lambda n, m: 4 * (5 * n * m + 30),
        reason="conv_general_dilated of dilated, padded arrays by a shorter name",
        source="Example 4.2",
    ),
)
