"""The transposed convolution of `jax.lax`: a convolution of the dilated input."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Num

from vjplib.rule import Case, Edge, Gain, Rule
from vjplib.rules._arguments import as_array, convolution_arguments
from vjplib.rules.convolution.call import lax_conv_transpose
from vjplib.rules.convolution.general import Padding, conv_general_dilated


def conv_transpose(
    lhs: Num[Array, "..."],
    rhs: Num[Array, "..."],
    strides: Sequence[int],
    padding: Padding,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = None,
    transpose_kernel: bool = False,
    precision: Any = None,
    preferred_element_type: DTypeLike | None = None,
    use_consistent_padding: bool = False,
) -> Num[Array, "..."]:
    """y_i = sum_j k_j x_l over i + r j = s l + p: `jax.lax.conv_transpose`, a convolution of x dilated by s.

    Args:
        lhs: x, of rank n + 2; channels last unless dimension_numbers says otherwise.
        rhs: the kernel, of rank n + 2.
        strides: s, n integers.
        padding: "SAME" or "VALID", of the convolution whose transpose this is; or n pairs, of the dilated x unless
            use_consistent_padding.
        rhs_dilation: r, n integers; None for ones.
        dimension_numbers: as for `conv_general_dilated`; None for channels last, as ("NHWC", "HWIO", "NHWC").
        transpose_kernel: True to reverse the kernel in space and exchange its channels and features, as in Keras.
        precision: as in lax.
        preferred_element_type: dtype of the result, None for the dtype of the arguments.
        use_consistent_padding: True if pairs, too, are the padding of the convolution whose transpose this is.

    Returns:
        y, with the shape and dtype of lax's result.

    Raises:
        TypeError: an argument has a wrong type, or dtypes differ; the message names it.
        ValueError: ranks differ, or strides, padding, dilation or dimension_numbers do not fit the arrays.

    Example:
        >>> x, k = jnp.array([[[1.0], [2.0]]]), jnp.array([[[1.0]], [[10.0]]])
        >>> conv_transpose(x, k, (2,), "VALID").ravel().tolist()
        [10.0, 1.0, 20.0, 2.0]

    Source:
        The backward of Example 4.2 of the lecture, with stride, taken as a forward.
    """
    lhs, rhs = as_array("lhs", lhs), as_array("rhs", rhs)
    if lhs.ndim != rhs.ndim or lhs.ndim < 2:  # lax asserts it
        raise ValueError(f"lhs and rhs must have the same rank of at least 2, got shapes {lhs.shape} and {rhs.shape}")
    window = {"strides": strides, "padding": padding, "rhs_dilation": rhs_dilation}
    checked = {"dimension_numbers": dimension_numbers, "preferred_element_type": preferred_element_type}
    given = convolution_arguments(lhs=lhs, rhs=rhs, **window, **checked)
    strides, padding, rhs_dilation = (given[name] for name in window)
    options = (dimension_numbers, transpose_kernel, precision, preferred_element_type, use_consistent_padding)
    theirs = lambda lhs, rhs: lax_conv_transpose(lhs, rhs, strides, padding, rhs_dilation, *options)  # noqa: E731
    jax.eval_shape(theirs, lhs, rhs)  # raises what lax raises
    if dimension_numbers is None:
        space = "HWD"[: lhs.ndim - 2]
        dimension_numbers = (f"N{space}C", f"{space}IO", f"N{space}C")
    dimensions = lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers)
    spatial = dimensions.rhs_spec[2:]
    dilation = (1,) * len(spatial) if rhs_dilation is None else rhs_dilation
    if use_consistent_padding or padding in ("SAME", "VALID"):
        window = [(rhs.shape[i] - 1) * r + 1 for i, r in zip(spatial, dilation, strict=True)]
        pads = [padding] * len(strides) if isinstance(padding, str) else padding
        padding = tuple(map(_transposed_padding, window, strides, pads))
    if transpose_kernel:
        rhs = jnp.swapaxes(lax.rev(rhs, spatial), *dimensions.rhs_spec[:2])
    window = ((1,) * len(spatial), padding, strides, dilation, dimensions)
    return conv_general_dilated(lhs, rhs, *window, 1, 1, precision, preferred_element_type)


def _transposed_padding(window: int, stride: int, padding: Any) -> tuple[int, int]:
    """Return the padding of the dilated x from the padding of the convolution whose transpose this is."""
    match padding:
        case "SAME":
            low = window - 1 if stride > window - 1 else -(-(window + stride - 2) // 2)
            return low, window + stride - 2 - low
        case "VALID":
            return window - 1, stride - 1 + max(window - stride, 0)
    low, high = padding  # lax has refused other strings
    return window - 1 - low, window - 1 - high


def reference(lhs, rhs, strides, padding):
    # The transpose of the convolution by the reversed k: the products of each x, added where windows overlap.
    k, s = rhs.shape[0], strides[0]
    size = lhs.shape[1]
    low, high = _transposed_padding(k, s, padding)
    positions = low + np.arange(size)[:, None] * s - np.arange(k)
    parts = jnp.einsum("nli,jio->nljo", lhs, rhs)
    out = (size - 1) * s + 1 + low + high - k + 1
    inside = (positions >= 0) & (positions < out)
    y = jnp.zeros((lhs.shape[0], out, rhs.shape[-1]), parts.dtype)
    return y.at[:, jnp.where(inside, positions, out)].add(parts, mode="drop")


def _bench(label, *shapes):
    return Case(shapes, {}, {"strides": (2,) * (len(shapes[0].split()) - 2), "padding": "SAME"}, label=label)


_SAME = {"strides": (2,), "padding": "SAME"}

RULES = (
    Rule(
        fn=conv_transpose,
        whole_array=True,
        reference=reference,
        baselines={"lax.conv_transpose": lax_conv_transpose},
        cases=(
            Case(("n m i", "3 i o"), {"n": 2, "m": 5, "i": 7, "o": 4}, _SAME, fixed=("i",)),
            Case(("2 4 7", "2 7 2"), {}, {"strides": (2,), "padding": "VALID"}, growth=False),
        ),
        edges=(
            Edge("one element", (np.ones((1, 1, 1)), np.ones((2, 1, 1))), _SAME),
            Edge("empty batch", (np.ones((0, 3, 1)), np.ones((2, 1, 1))), _SAME),
        ),
        bench=(
            _bench("transposed 2x2 stride 2 (jax#23783)", "8 28 28 128", "2 2 128 64"),
            _bench("transposed 4x4 stride 2", "8 28 28 128", "4 4 128 64"),
            _bench("transposed 3-D k3 stride 2, at 16^3 (jax#31662)", "1 16 16 16 64", "3 3 3 64 1"),
        ),
        residual_bytes=lambda n, m, i, o: 4 * (n * m * i + 3 * i * o),
        reason="the transposed convolution; on CPU no zero of the dilated x is multiplied",
        gains=(Gain("time", 0.5),),
        source="Example 4.2, transposed",
    ),
)
