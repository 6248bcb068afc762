"""Softmax and its logarithm: backward rules in Jacobian-vector form, which never hold the n x n Jacobian."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Shaped

from vjplib.compat import custom_vjp
from vjplib.jacobians import DiagonalMinusLowRank
from vjplib.precision import upcast
from vjplib.rule import Case, Edge, Input, Rule, Tail, random_mask
from vjplib.rules._arguments import as_inexact, broadcast_mask, by_rule, normalize_axes
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
    reason="accuracy: the gradient of a saturated component, which autodiff loses, is right to 4e-06; a layer of the "
    "lecture",
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
        reason="accuracy: the component of a saturated class, which autodiff loses, is right to 4e-06",
        tails=_tails_of_log_softmax,
    ),
)
