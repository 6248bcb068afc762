"""Softmax, its logarithm and relatives: backward rules in Jacobian-vector form, without the n x n Jacobian."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Shaped

from vjplib.compat import custom_vjp
from vjplib.jacobians import Dense, DiagonalMinusLowRank
from vjplib.precision import upcast
from vjplib.rule import Case, Edge, Gain, Input, Rule, Tail, random_mask
from vjplib.rules._arguments import as_floating, as_inexact, broadcast_mask, by_rule, normalize_axes
from vjplib.rules._cotangents import aval_token, like_primal

# ------------------------------------------------------------------------------------------------------ exponentials


def max_shifted_exp(
    x: jax.Array, axes: tuple[int, ...], mask: jax.Array | None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return exp(x - shift), its sum along axes, kept with size 1, and the shift, which is the maximum along axes.

    No exponential overflows, and the largest is 1, so no sum is 0. The shift is not differentiated: it must cancel in
    the caller's result. Where the mask, of x's shape, is False, the exponential is 0; a wholly masked slice has shift 0
    and sum 1.
    """
    shift = jax.lax.stop_gradient(jnp.max(x, axes, keepdims=True, initial=-jnp.inf, where=mask))
    if mask is None:
        e = jnp.exp(x - shift)
        return e, jnp.sum(e, axes, keepdims=True), shift
    empty = ~jnp.any(mask, axes, keepdims=True)
    shift = jnp.where(empty, 0, shift)
    e = jnp.where(mask, jnp.exp(jnp.where(mask, x - shift, 0)), 0)
    return e, jnp.where(empty, 1, jnp.sum(e, axes, keepdims=True)), shift


# ------------------------------------------------------------------------------------------------------------- softmax


def softmax(
    x: Shaped[ArrayLike, "..."], axis: int | Sequence[int] | None = -1, where: Bool[ArrayLike, "..."] | None = None
) -> Shaped[Array, "..."]:
    """exp(x_i) / sum_j exp(x_j); its Jacobian diag(y) - y y^T acts on a cotangent as y (g - <g, y>).

    Args:
        x: any shape and dtype. Integers become floats before they are subtracted (in `jax.nn.softmax` unsigned ones
            wrap around). Complex numbers go to `jax.nn.softmax`.
        axis: the axis or axes that sum to one; None for all.
        where: booleans that broadcast with x: the elements to include. None includes all.

    Returns:
        An array of x's shape and dtype (JAX's default float for integers), in [0, 1], summing to 1 along axis, 0 where
        masked. Logits are shifted by their maximum, so large ones do not overflow. -inf gives 0; NaN, +inf or a slice
        of -inf alone make their slice NaN. A wholly masked slice is 0, with cotangent 0, and an empty slice is empty.
        Every component of the cotangent keeps its relative accuracy where one class is almost certain.

    Raises:
        TypeError: x is not an array of numbers, or where is not boolean.
        ValueError: an axis is out of range or named twice, or where does not broadcast with x.

    Example:
        >>> y = softmax(jnp.array([0.0, jnp.log(3.0)]))
        >>> [round(float(v), 6) for v in y]
        [0.25, 0.75]

    Source:
        Example 2.6 of the lecture, Eq. 16 and 17. The signature is that of `jax.nn.softmax`.
    """
    x, mask = broadcast_mask(where, x=as_inexact("x", x))
    axes = normalize_axes(axis, x.ndim)
    return by_rule(lambda x: _softmax(x, mask, axes), lambda x: jax.nn.softmax(x, axes, mask), x=x)


@partial(custom_vjp, nondiff_argnames=("axes",))
def _softmax(x, mask, axes):
    return fwd_softmax(x, mask, axes)[0]


def fwd_softmax(x, mask, axes):
    e, total, _ = max_shifted_exp(upcast(x), axes, mask)
    y = (e / total).astype(x.dtype)
    return y, (y, mask, aval_token(x))


# With S = sum_k exp(x_k): dy_i/dx_j = exp(x_i) delta_ij / S - exp(x_i) exp(x_j) / S^2, so J = diag(y) - y y^T.
#   g^T J = g * y - (sum_i g_i y_i) y = y * (g - <g, y>)
# The diagonal and the rank-one term act on g in O(n). A masked element has y = 0 and drops out of both; its g is set
# to 0 first, for 0 times an infinite g would be NaN.
# Where one y_m rounds to 1, <g, y> rounds to g_m, and the small difference that dx_m is made of is lost. But as y sums
# to 1, every constant may be taken from g beforehand:
#   g^T J = y * (d - <d, y>) with d = g - c, for any c
# and with c = <g, y> the large term is gone: d_m is as small as dx_m, and so is what rounding leaves of the sum.
def bwd_softmax(axes, res, g):
    y, mask, x_token = res
    y, wide_g = upcast(y), upcast(g) if mask is None else jnp.where(mask, upcast(g), 0)
    d = wide_g - _finite(jnp.sum(wide_g * y, axes, keepdims=True))
    dx = y * (d - jnp.sum(d * y, axes, keepdims=True))
    return like_primal(dx, x_token), None


def _finite(correction):
    """Return a correction, replaced by 0 where an infinite cotangent made it infinite or NaN."""
    return jnp.where(jnp.isfinite(correction), correction, 0)


_softmax.defvjp(fwd_softmax, bwd_softmax)


def reference_softmax(x, axis=-1, where=None):
    return jnp.exp(reference_log_softmax(x, axis, where))


def jacobian_softmax(x, axis=-1, where=None):
    y = reference_softmax(x, axis, where)
    return (DiagonalMinusLowRank(y, y[:, None], y[:, None]),)


# --------------------------------------------------------------------------------------------------------- log_softmax


def log_softmax(
    x: Shaped[ArrayLike, "..."], axis: int | Sequence[int] | None = -1, where: Bool[ArrayLike, "..."] | None = None
) -> Shaped[Array, "..."]:
    """x_i - log sum_j exp(x_j); its Jacobian I - 1 s^T, s the softmax, acts on a cotangent as g - s sum(g).

    Args:
        x: any shape and dtype. Integers become floats before they are subtracted (in `jax.nn.log_softmax` unsigned ones
            wrap around). Complex numbers go to `jax.nn.log_softmax`.
        axis: the axis or axes whose exponentials sum to one; None for all.
        where: booleans that broadcast with x: the elements to include. None includes all.

    Returns:
        An array of x's shape and dtype (JAX's default float for integers), in [-inf, 0], -inf where masked or where x
        is -inf. Logits are shifted by their maximum, so large ones neither overflow nor lose the difference between
        them. NaN, +inf or a slice of -inf alone make their slice NaN. Output cotangents of masked elements are ignored,
        and their input cotangents are 0. Every component of the cotangent keeps its relative accuracy where one class
        is almost certain; an output below the rounding error of 1 is 0.

    Raises:
        TypeError: x is not an array of numbers, or where is not boolean.
        ValueError: an axis is out of range or named twice, or where does not broadcast with x.

    Example:
        >>> [round(float(v), 6) for v in log_softmax(jnp.array([0.0, 1000.0]))]
        [-1000.0, 0.0]

    Source:
        Example 2.6 of the lecture, composed with the logarithm. The signature is that of `jax.nn.log_softmax`.
    """
    x, mask = broadcast_mask(where, x=as_inexact("x", x))
    axes = normalize_axes(axis, x.ndim)
    return by_rule(lambda x: _log_softmax(x, mask, axes), lambda x: jax.nn.log_softmax(x, axes, mask), x=x)


@partial(custom_vjp, nondiff_argnames=("axes",))
def _log_softmax(x, mask, axes):
    return fwd_log_softmax(x, mask, axes)[0]


def fwd_log_softmax(x, mask, axes):
    e, total, shift = max_shifted_exp(upcast(x), axes, mask)
    y = (upcast(x) - shift) - jnp.log(total)
    y = (y if mask is None else jnp.where(mask, y, -jnp.inf)).astype(x.dtype)
    return y, (e.astype(x.dtype), mask, aval_token(x))


# y_i = x_i - log S, so dy_i/dx_j = delta_ij - exp(x_j) / S = delta_ij - s_j with s = exp(x) / S: J = I - 1 s^T.
#   g^T J = d with d = g - (sum_i g_i) s
# The exponentials are kept, whose sum is S: y in their place would be rounded, in bfloat16 to a few per cent of s.
# Where one s_m rounds to 1, the small difference d_m is lost. But as s sums to 1, d sums to 0 exactly, and what
# rounding leaves is the error of d_m, for the others have all their digits. s takes it off, almost wholly from m:
#   g^T J = d - (sum_i d_i) s
# A masked y_i is the constant -inf: its g is not used.
def bwd_log_softmax(axes, res, g):
    e, mask, x_token = res
    e, wide_g = upcast(e), upcast(g) if mask is None else jnp.where(mask, upcast(g), 0)
    total = jnp.sum(e, axes, keepdims=True)
    if mask is not None:
        total = jnp.where(jnp.any(mask, axes, keepdims=True), total, 1)
    d = wide_g - e * (jnp.sum(wide_g, axes, keepdims=True) / total)
    dx = d - e * (_finite(jnp.sum(d, axes, keepdims=True)) / total)
    return like_primal(dx, x_token), None


_log_softmax.defvjp(fwd_log_softmax, bwd_log_softmax)


def reference_log_softmax(x, axis=-1, where=None):
    mask = True if where is None else where
    some = jnp.any(jnp.broadcast_to(mask, x.shape), axis, keepdims=True)
    shift = jax.lax.stop_gradient(jnp.max(x, axis, keepdims=True, where=mask, initial=-jnp.inf))
    shifted = jnp.where(mask, x - jnp.where(some, shift, 0), 0)
    total = jnp.sum(jnp.where(mask, jnp.exp(shifted), 0), axis, keepdims=True)
    return jnp.where(mask, shifted - jnp.log(jnp.where(some, total, 1)), -jnp.inf)


def jacobian_log_softmax(x, axis=-1, where=None):
    s = reference_softmax(x, axis, where)
    return (DiagonalMinusLowRank(jnp.ones_like(s), jnp.ones_like(s)[:, None], s[:, None]),)


# ----------------------------------------------------------------------------------------------------------- logsumexp


def logsumexp(
    a: Shaped[ArrayLike, "..."],
    axis: int | Sequence[int] | None = None,
    b: Shaped[ArrayLike, "..."] | None = None,
    keepdims: bool = False,
    return_sign: bool = False,
    where: Bool[ArrayLike, "..."] | None = None,
) -> Any:
    """log sum_i exp(a_i) along axis; its derivative is the softmax.

    Args:
        a: any shape and dtype; complex numbers go to `jax.nn.logsumexp`.
        axis: the axis or axes of the sum; None for all.
        b: factors of the exponentials, of any shape that broadcasts with a's, or None. With factors `jax.nn.logsumexp`
            is called.
        keepdims: whether the axes stay, with size 1.
        return_sign: whether the sign of the sum is returned, too; `jax.nn.logsumexp` is called then.
        where: booleans that broadcast with a: the elements to include. None includes all.

    Returns:
        An array of a's dtype (JAX's default float for integers), without axis; half precision accumulates in float32. A
        slice of -inf alone, a wholly masked one and an empty one give -inf, with cotangent 0, where autodiff may give
        NaN. +inf gives inf, with cotangent NaN at its place; NaN gives NaN.

    Raises:
        TypeError: a is not an array of numbers, or where is not boolean.
        ValueError: an axis is out of range or named twice, or where does not broadcast with a.

    Example:
        >>> round(float(logsumexp(jnp.array([1000.0, 1000.0]))), 2)
        1000.69

    Source:
        Example 2.6 of the lecture: the logarithm of softmax's denominator. The signature is that of
        `jax.nn.logsumexp`.
    """
    x, mask = broadcast_mask(where, a=as_inexact("a", a))
    axes = normalize_axes(axis, x.ndim)
    if b is not None or return_sign or jnp.iscomplexobj(x):
        return jax.nn.logsumexp(x, axes, b, keepdims, return_sign, mask)
    incumbent = partial(jax.nn.logsumexp, axis=axes, keepdims=keepdims, where=mask)
    return by_rule(lambda a: _logsumexp(a, mask, axes, bool(keepdims)), incumbent, a=x)


@partial(custom_vjp, nondiff_argnames=("axes", "keepdims"))
def _logsumexp(x, mask, axes, keepdims):
    return fwd_logsumexp(x, mask, axes, keepdims)[0]


def fwd_logsumexp(x, mask, axes, keepdims):
    largest = jax.lax.stop_gradient(jnp.max(upcast(x), axes, keepdims=True, initial=-jnp.inf, where=mask))
    shift = jnp.where(jnp.isfinite(largest), largest, 0)
    total = jnp.sum(_exponentials(upcast(x), shift, mask), axes, keepdims=True)
    empty = total == 0
    y = jnp.where(empty, -jnp.inf, jnp.log(jnp.where(empty, 1, total)) + shift)
    return (y if keepdims else jnp.squeeze(y, axes)).astype(x.dtype), (x, mask, total, shift)


def _exponentials(x, shift, mask):
    return jnp.exp(x - shift) if mask is None else jnp.where(mask, jnp.exp(jnp.where(mask, x - shift, 0)), 0)


# y = log S with S = sum_k exp(x_k): dy/dx_j = exp(x_j) / S, the softmax.
#   g^T J = g exp(x) / S, or 0 where S = 0
# x, S and the shift of the exponentials are kept: exp(x - y) would multiply the rounding of a large y.
def bwd_logsumexp(axes, keepdims, res, g):
    x, mask, total, shift = res
    g = upcast(g) if keepdims else jnp.expand_dims(upcast(g), axes)
    slope = _exponentials(upcast(x), shift, mask) / jnp.where(total == 0, 1, total)
    return like_primal(g * slope, x), None


_logsumexp.defvjp(fwd_logsumexp, bwd_logsumexp)


def reference_logsumexp(a, axis=None, keepdims=False, where=None):
    included = jnp.isfinite(a) | jnp.isnan(a) | (a > 0) if where is None else where & (a != -jnp.inf)
    largest = jax.lax.stop_gradient(jnp.max(a, axis, keepdims=True, where=included, initial=-jnp.inf))
    shift = jnp.where(jnp.isfinite(largest), largest, 0)
    total = jnp.sum(jnp.where(included, jnp.exp(jnp.where(included, a - shift, 0)), 0), axis, keepdims=True)
    y = jnp.where(total == 0, -jnp.inf, jnp.log(jnp.where(total == 0, 1, total)) + shift)
    return y if keepdims else jnp.squeeze(y, normalize_axes(axis, a.ndim))


def jacobian_logsumexp(x, axis=None):
    return (Dense(reference_softmax(x)[None, :]),)


# ----------------------------------------------------------------------------------------------------------- sparsemax


def sparsemax(x: Shaped[ArrayLike, "..."], axis: int = -1) -> Shaped[Array, "..."]:
    """max(x_i - t, 0), with t such that the sum along axis is 1: the probability vector nearest to x.

    Args:
        x: any shape, floating or integers.
        axis: the axis that sums to one.

    Returns:
        An array of x's shape and dtype (JAX's default float for integers), in [0, 1], with exact zeros. Large logits do
        not overflow. At a kink, where x_i is t, the derivative is that of y_i = 0. -inf gives 0; NaN, +inf or a slice
        of -inf alone make their slice NaN; an empty slice is empty.

    Raises:
        TypeError: x is not an array of real numbers, or axis is not an integer.
        ValueError: axis is out of range.

    Example:
        >>> sparsemax(jnp.array([1.0, 0.5, -1.0])).tolist()
        [0.75, 0.25, 0.0]

    Source:
        Martins and Astudillo, From softmax to sparsemax, 2016. It is `optax.projections.projection_simplex` along an
        axis.
    """
    x = as_floating("x", as_inexact("x", x))
    if not hasattr(axis, "__index__"):
        raise TypeError(f"axis must be an integer, got {axis!r}")
    (along,) = normalize_axes(axis, x.ndim)
    return by_rule(lambda x: _sparsemax(x, along), partial(reference_sparsemax, axis=along), x=x)


@partial(custom_vjp, nondiff_argnames=("axis",))
def _sparsemax(x, axis):
    return fwd_sparsemax(x, axis)[0]


def fwd_sparsemax(x, axis):
    y = reference_sparsemax(upcast(x), axis)
    return y.astype(x.dtype), (y > 0, aval_token(x))


# On the support, the m elements with y_i > 0, y_i = x_i - t and their sum is 1: t = (sum of the support's x - 1) / m,
# so dt/dx_j = 1 / m there and 0 elsewhere. With s the indicator of the support: J = diag(s) - s s^T / m.
#   g^T J = s * (g - mean of g over the support)
# A byte an element tells the support; sorting is needed to find it, but not to differentiate.
def bwd_sparsemax(axis, res, g):
    support, x_token = res
    g = jnp.where(support, upcast(g), 0)
    count = jnp.sum(support, axis, keepdims=True, dtype=g.dtype)
    return (like_primal(jnp.where(support, g - jnp.sum(g, axis, keepdims=True) / count, 0), x_token),)


_sparsemax.defvjp(fwd_sparsemax, bwd_sparsemax)


def reference_sparsemax(x, axis=-1):
    if x.shape[axis] == 0:
        return x
    x = x - jax.lax.stop_gradient(jnp.max(x, axis, keepdims=True))
    z = jnp.flip(jnp.sort(x, axis), axis)
    counts = jax.lax.broadcasted_iota(x.dtype, x.shape, axis % x.ndim) + 1
    over = jnp.cumsum(z, axis) - 1
    count = jnp.sum(jnp.where(z * counts > over, 1, 0), axis, keepdims=True)
    t = jnp.take_along_axis(over, count - 1, axis) / count.astype(x.dtype)
    return jnp.maximum(x - t, 0)


def jacobian_sparsemax(x):
    s = (reference_sparsemax(x) > 0).astype(x.dtype)
    return (DiagonalMinusLowRank(s, s[:, None] / jnp.sum(s), s[:, None]),)


# ------------------------------------------------------------------------------------------------------------- records


def saturating(t):
    """Return logits of three classes, the first t above the second, with their softmax y and 1 - y in float64.

    1 - y_i is computed as the sum of the others, so that no digit is lost by cancellation.
    """
    x = np.stack([t, np.zeros_like(t), np.full_like(t, -1.5)], -1)
    e = np.exp(x - x.max(-1, keepdims=True))
    total = e.sum(-1, keepdims=True)
    return x, e / total, e @ (1 - np.eye(3)) / total


def _tails_of_softmax(t):
    x, y, rest = saturating(t)
    first = np.eye(3)[0]
    return Tail((x,), np.broadcast_to(first, x.shape), (y[:, :1] * np.where(first, rest, -y),))


def _tails_of_log_softmax(t):
    x, y, rest = saturating(t)
    first = np.eye(3)[0]
    return Tail((x,), np.broadcast_to(first, x.shape), (np.where(first, rest, -y),))


_SOFTMAX = Rule(
    fn=softmax,
    reference=reference_softmax,
    baselines={"jax.nn.softmax": jax.nn.softmax},
    cases=(
        Case(("b n",), {"b": 2, "n": 7}),
        Case(("n b",), {"b": 3, "n": 5}, {"axis": 0}),
        Case(("b n c",), {"b": 2, "n": 3, "c": 5}, {"axis": (0, 2)}),
        Case(("n",), {"n": 11}, {"axis": None}),
        Case(("b n",), {"b": 2, "n": 7}, {"where": Input("b n", random_mask)}),
    ),
    edges=(
        Edge("large logits", ([1e4, -1e4, 9999.0, 0.0],)),
        Edge("logits whose exponentials overflow float32", ([100.0, 98.0, 0.0],)),
        Edge("ties", ([2.0, 2.0, 2.0],)),
        Edge("one class", ([[3.0], [-1.0]],)),
        Edge("a logit of -inf", ([0.0, float("-inf"), 1.0],)),
        Edge("a slice wholly masked", ([[1.0, 2.0], [3.0, 4.0]],), {"where": np.array([[True, False], [False] * 2])}),
        Edge("a masked NaN", ([1.0, float("nan"), 2.0],), {"where": np.array([True, False, True])}),
        Edge("empty axis", (np.zeros((2, 0)),)),
    ),
    bench=(Case(("b n",), {"b": 1024, "n": 1024}),),
    residual_bytes=lambda b, n: 4 * b * n,
    jacobian=jacobian_softmax,
    reason="a layer of the lecture; accurate for a saturated component, where autodiff loses all digits",
    gains=(Gain("error", 1e-4),),
    lecture=True,
    source="Example 2.6",
    tails=_tails_of_softmax,
)

RULES = (
    _SOFTMAX,
    replace(
        _SOFTMAX,
        fn=log_softmax,
        reference=reference_log_softmax,
        baselines={"jax.nn.log_softmax": jax.nn.log_softmax},
        jacobian=jacobian_log_softmax,
        reason="accurate for a saturated class, where autodiff loses all digits",
        lecture=False,
        tails=_tails_of_log_softmax,
    ),
    replace(
        _SOFTMAX,
        fn=logsumexp,
        reference=reference_logsumexp,
        baselines={"jax.nn.logsumexp": jax.nn.logsumexp},
        cases=(
            Case(("b n",), {"b": 2, "n": 7}, {"axis": -1}),
            Case(("b n c",), {"b": 2, "n": 3, "c": 5}, {"axis": (0, 2), "keepdims": True}),
            Case(("n",), {"n": 11}),
            Case(("b n",), {"b": 2, "n": 7}, {"axis": -1, "where": Input("b n", random_mask)}),
        ),
        edges=(
            *_SOFTMAX.edges[:5],
            Edge("slices of -inf", ([[float("-inf"), float("-inf")], [1.0, float("-inf")]],), {"axis": -1}),
            _SOFTMAX.edges[5]._replace(kwargs={"axis": -1, **_SOFTMAX.edges[5].kwargs}),
            *_SOFTMAX.edges[6:7],
            Edge("empty axis", (np.zeros((2, 0)),), {"axis": -1}),
        ),
        bench=(Case(("b n",), {"b": 1024, "n": 1024}, {"axis": -1}),),
        residual_bytes=lambda b, n: 4 * (b * n + 2 * b),
        jacobian=jacobian_logsumexp,
        reason="the gradient of a slice of -inf is 0, where autodiff gives NaN",
        gains=(Gain("error", 1e-5, "slices of -inf"),),
        lecture=False,
        tails=None,
    ),
    Rule(
        fn=sparsemax,
        reference=reference_sparsemax,
        baselines={
            "optax.projections.projection_simplex": lambda x, axis=-1: jnp.apply_along_axis(
                optax.projections.projection_simplex, axis, x
            )
        },
        cases=(
            Case(("b n",), {"b": 2, "n": 7}),
            Case(("n b",), {"b": 3, "n": 5}, {"axis": 0}),
            Case(("n",), {"n": 11}),
        ),
        edges=(
            Edge("large logits", ([1e4, -1e4, 9999.5, 0.0],)),
            Edge("ties", ([2.0, 2.0, 2.0],)),
            Edge("a tie of none in the support", ([2.0, -3.0, -3.0],)),
            Edge("one class", ([[3.0], [-1.0]],)),
            Edge("a logit of -inf", ([0.0, float("-inf"), 0.5],)),
            Edge("empty axis", (np.zeros((2, 0)),)),
        ),
        bench=(Case(("b n",), {"b": 1024, "n": 1024}),),
        residual_bytes=lambda b, n: b * n,
        jacobian=jacobian_sparsemax,
        reason="keeps one byte per element, and sorts only in the forward",
        gains=(Gain("kept bytes", 0.12),),
        source="Martins and Astudillo, 2016",
    ),
)
