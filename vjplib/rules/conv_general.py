"""The convolution of `jax.lax` in all its generality, with a derivative in the form that suits each shape."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Num

from vjplib.compat import custom_vjp, separate_call
from vjplib.convolution.choice import Formulation, kernel_formulation, output_formulation
from vjplib.convolution.xla import Call, call_of
from vjplib.convolution.xla import conv_general_dilated as lax_convolution
from vjplib.numerics import wide_dtype
from vjplib.rule import Case, Rule

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
        and infinities reach the outputs whose window they lie in.

    Raises:
        TypeError: as lax raises it.
        ValueError: as lax raises it.

    Example:
        >>> x, k = jnp.arange(8.0).reshape(1, 4, 2), jnp.ones((3, 1, 2))
        >>> y = conv_general_dilated(x, k, (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC"), feature_group_count=2)
        >>> y[0].T.tolist()
        [[2.0, 6.0, 12.0, 10.0], [4.0, 9.0, 15.0, 12.0]]

    Source:
        Example 4.2 and Algorithm 4 of the lecture, generalised.
    """
    given = locals()
    call = _call(**given)
    if call is None or served_by(call) is None:
        return lax_convolution(**given)
    return _rule(call)(lhs, rhs)


def reference(lhs, rhs, window_strides, padding, **kwargs):
    return lax_convolution(lhs, rhs, window_strides, padding, **kwargs)


class Served(NamedTuple):
    """What computes each product of a call on CPU."""

    y: Formulation
    dx: Formulation
    dk: Formulation


@functools.lru_cache(maxsize=4096)
def served_by(call: Call) -> Served | None:
    """Returns what serves a call on CPU, None where XLA's convolution and JAX's derivative of it do throughout."""
    problem = call.problem
    served = Served(output_formulation(problem), output_formulation(problem.transposed), kernel_formulation(problem))
    return None if all(f.run is None for f in served) else served


def _call(*, lhs, rhs, out_sharding, **arguments) -> Call | None:
    """Returns a call's shapes and static arguments, None where no rule of ours applies; raises what lax raises."""
    y = jax.eval_shape(functools.partial(lax_convolution, out_sharding=out_sharding, **arguments), lhs, rhs)
    if out_sharding is not None or not all(a.dtype in REAL and a.size for a in (lhs, rhs, y)):
        return None
    return call_of(lhs.shape, rhs.shape, y, **arguments)


# y_i = sum_j k_j x_l over all j, l with s i + r j = d l + p: linear in x and in k, and so
#   (g^T J_x)_l = sum of g_i k_j over all i, j with s i + r j = d l + p
#   (g^T J_k)_j = sum of g_i x_l over all i, l with s i + r j = d l + p
# with sums over features for the one and over the batch for the other. The equation is the same for all three; only
# which index is free differs. With j' = k - 1 - j it reads d l + r j' = s i + (r (k - 1) - p): dx is a convolution
# again, with stride d, of g dilated by s. Neither Jacobian, an entry for each pair of x and y, or k and y, is formed.
@functools.lru_cache(maxsize=4096)
def _rule(call: Call) -> Callable[[Array, Array], Array]:
    problem = call.problem
    output, input_cotangent, kernel_cotangent = (f.run for f in served_by(call) or ())
    y_of = _by_platform(
        output
        and (lambda x, k: call.y_from_canonical(output(problem, call.x_to_canonical(x), call.k_to_canonical(k)))),
        call,
    )
    dx_of = _by_platform(
        input_cotangent
        and (
            lambda g, k, x: call.x_from_canonical(
                input_cotangent(
                    problem.transposed, call.y_to_canonical(g), problem.transposed_kernel(call.k_to_canonical(k))
                )
            )
        ),
        call.input_cotangent,
    )
    dk_of = _by_platform(
        kernel_cotangent
        and (
            lambda g, x, k: call.k_from_canonical(
                kernel_cotangent(problem, call.x_to_canonical(x), call.y_to_canonical(g))
            )
        ),
        call.kernel_cotangent,
    )

    @custom_vjp
    def convolve(x: Array, k: Array) -> Array:
        return y_of(x, k)

    def fwd(x, k):
        return y_of(x, k), (x, k)

    def bwd(res, g):
        x, k = res
        return dx_of(g, k, x), dk_of(g, x, k)

    convolve.defvjp(fwd, bwd)
    return convolve


def _by_platform(cpu, default):
    """Returns a product as one jitted function: on CPU in cpu's form, if there is one; else by XLA's convolution."""
    if cpu is None:
        return jax.jit(default)

    def in_one_dtype(*arrays):
        dtype = wide_dtype(jnp.result_type(*arrays))
        return cpu(*(a.astype(dtype) for a in arrays)).astype(jax.eval_shape(default, *arrays).dtype)

    walled = separate_call(in_one_dtype)
    return jax.jit(lambda *arrays: lax.platform_dependent(*arrays, cpu=walled, default=default))


RULES = (
    Rule(
        fn=conv_general_dilated,
        reference=reference,
        baselines={"lax.conv_general_dilated": reference},
        cases=(
            Case(
                ("n h w c", "3 2 1 c"),
                {"n": 2, "h": 5, "w": 7, "c": 3},
                {
                    "window_strides": (1, 1),
                    "padding": "SAME",
                    "dimension_numbers": ("NHWC", "HWIO", "NHWC"),
                    "feature_group_count": 3,
                },
                fixed=("c",),
            ),
        ),
        edges=(),
        bench=(),
        reason="JAX's convolution; depthwise, grouped and transposed ones are many times faster on CPU",
        source="Example 4.2",
    ),
)
