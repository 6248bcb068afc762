"""Losses of classifiers, and between distributions, with optax's signatures."""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, Shaped

from vjplib.compat import custom_vjp
from vjplib.jacobians import Dense
from vjplib.precision import upcast
from vjplib.rule import Case, Edge, Gain, Input, Rule, Tail, distribution, index_below, random_mask
from vjplib.rules._arguments import as_array, as_floating, broadcast_mask, broadcast_shapes, by_rule, normalize_axes
from vjplib.rules._cotangents import like_primal
from vjplib.rules.products import multiply
from vjplib.rules.softmax import log_softmax, max_shifted_exp, reference_log_softmax, saturating

# ----------------------------------------------------------------------------------------------- softmax_cross_entropy


def softmax_cross_entropy(
    logits: Float[ArrayLike, "*b n"],
    labels: Shaped[ArrayLike, "..."],
    axis: int | Sequence[int] | None = -1,
    where: Bool[ArrayLike, "..."] | None = None,
) -> Float[Array, "*b"]:
    """-sum_i labels_i log softmax(logits)_i along axis.

    Args:
        logits: any shape, floating: unnormalised log probabilities.
        labels: any dtype and any shape that broadcasts with logits': a distribution along axis, such as one-hot. It
            need not sum to one.
        axis: the class axis or axes; None for all.
        where: booleans that broadcast with logits, or of its shape without axis: the elements to include.

    Returns:
        The broadcast shape without axis, in the dtype that both promote to; in [0, inf] for distributions. A wholly
        masked slice gives 0. A label of 0 at a logit of -inf is 0 times inf, NaN, as in optax: exclude it by where.
        Both cotangents keep their relative accuracy where one class is almost certain; a loss below the rounding error
        of 1 is 0.

    Raises:
        TypeError: logits are not floating, as in optax, labels are not numbers, or where is not boolean.
        ValueError: labels or where do not broadcast with logits, or axis does not fit.

    Example:
        >>> loss = softmax_cross_entropy(jnp.array([0.0, 0.0]), jnp.array([1.0, 0.0]))
        >>> round(float(loss), 6)  # log 2
        0.693147

    Source:
        Example 2.6 of the lecture, composed with -<labels, log y>. The signature is that of
        `optax.softmax_cross_entropy`.
    """
    logits, labels = as_floating("logits", logits), as_array("labels", labels)
    axes = normalize_axes(axis, logits.ndim)
    where = None if where is None else _over_classes(where, logits, axes)
    shape = broadcast_shapes(logits=logits, labels=labels)
    shared = shape != logits.shape or (where is not None and broadcast_shapes(logits=logits, where=where) != shape)
    if shared or any(logits.shape[i] == 0 for i in axes):
        # Several label distributions share the logits (their log_softmax is computed once), or there is no class.
        return -jnp.sum(multiply(labels, log_softmax(logits, axis, where)), axis, where=where)
    _, mask = broadcast_mask(where, logits=logits)
    return by_rule(
        lambda logits, labels: _softmax_cross_entropy(logits, labels, mask, axes, safe=False),
        partial(optax.softmax_cross_entropy, axis=axes, where=mask),
        logits=logits,
        labels=jnp.broadcast_to(labels, shape),
    )


@partial(custom_vjp, nondiff_argnames=("axes", "safe"))
def _softmax_cross_entropy(logits, labels, mask, axes, safe):
    return fwd_softmax_cross_entropy(logits, labels, mask, axes, safe)[0]


def fwd_softmax_cross_entropy(logits, labels, mask, axes, safe):
    _, total, shift = max_shifted_exp(upcast(logits), axes, mask)
    terms = upcast(labels) * ((upcast(logits) - shift) - jnp.log(total))
    terms = jnp.where(labels == 0, 0, terms) if safe else terms
    loss = -jnp.sum(terms if mask is None else jnp.where(mask, terms, 0), axes)
    return loss.astype(jnp.result_type(logits, labels)), (logits, labels, mask, total, shift)


# l = -sum_i p_i (x_i - log S) with S = sum_k exp(x_k), so dl/dx_j = -p_j + (sum_i p_i) y_j with y_j = exp(x_j) / S, and
# dl/dp_j = -(x_j - log S). The softmax's n x n Jacobian and the logarithm's 1 / y have cancelled.
#   g^T J_x = g d with d = y sum(p) - p,   g^T J_p = -g (x - log S)
# The shift and the sum of exponentials, two numbers a slice, are kept beside the arguments: their logarithms added up
# would be one, but would round y where logits are large.
# Where one y_m rounds to 1, d_m may cancel. But d sums to 0 exactly, and what rounding leaves is the error of d_m, as
# in log_softmax:
#   g^T J_x = g (d - y sum(d))
# There S, in units of the largest exponential, rounds to 1 too, and its logarithm to 0. With r = S - 1, the sum without
# the largest, log S = log(1 + r) is exact; the largest stays in r as exp(x_m) - 1, for its derivative. S < 2 tells that
# there is one largest.
def bwd_softmax_cross_entropy(axes, safe, res, g):
    logits, labels, mask, total, shift = res
    g, x, p = jnp.expand_dims(upcast(g), axes), upcast(logits) - shift, upcast(labels)
    if mask is not None:
        g, x, p = jnp.where(mask, g, 0), jnp.where(mask, x, 0), jnp.where(mask, p, 0)
    e = jnp.exp(x)
    y = e / total if mask is None else jnp.where(mask, e / total, 0)
    d = y * jnp.sum(p, axes, keepdims=True) - p
    dlogits = g * (d - y * jnp.sum(d, axes, keepdims=True))
    rest = jnp.sum(e - (x == 0).astype(e.dtype), axes, keepdims=True)
    log_total = jnp.where(total < 1.5, jnp.log1p(rest), jnp.log(total))
    return like_primal(dlogits, logits), like_primal(-g * (x - log_total), labels), None


_softmax_cross_entropy.defvjp(fwd_softmax_cross_entropy, bwd_softmax_cross_entropy)


def reference_softmax_cross_entropy(logits, labels, axis=-1, where=None):
    mask = True if where is None else where
    log_y = jnp.where(mask, reference_log_softmax(logits, axis, where), 0)
    return -jnp.sum(jnp.where(mask, labels * log_y, 0), axis)


def jacobian_softmax_cross_entropy(logits, labels):
    y = jax.nn.softmax(logits)
    return Dense((jnp.sum(labels) * y - labels)[None, :]), Dense(-jnp.log(y)[None, :])


def _over_classes(where, logits, axes):
    """Return the mask with the class axes inserted if it lacks them, as optax does."""
    where = as_array("where", where)
    if where.ndim > logits.ndim:
        raise ValueError(f"where must not have more axes than logits, got {where.shape} and {logits.shape}")
    return jnp.expand_dims(where, axes) if where.ndim == logits.ndim - len(axes) else where


# ------------------------------------------------------------------------------------------ safe_softmax_cross_entropy


def safe_softmax_cross_entropy(
    logits: Float[ArrayLike, "*b n"], labels: Shaped[ArrayLike, "..."]
) -> Float[Array, "*b"]:
    """-sum_i labels_i log softmax(logits)_i along the last axis, where a label of 0 adds 0 even at a logit of -inf.

    Args:
        logits: any shape, floating: unnormalised log probabilities.
        labels: any dtype and any shape that broadcasts with logits': a distribution along the last axis.

    Returns:
        The broadcast shape without its last axis, in the dtype that both promote to; in [0, inf] for distributions.
        The cotangents are those of `softmax_cross_entropy`: 0 for a logit of -inf at a label of 0, and infinite for
        that label, as in optax. A slice of -inf alone gives NaN.

    Raises:
        TypeError: logits are not floating, as in optax, or labels are not numbers.
        ValueError: labels do not broadcast with logits, or logits are a scalar.

    Example:
        >>> loss = safe_softmax_cross_entropy(jnp.array([0.0, 0.0, -jnp.inf]), jnp.array([1.0, 0.0, 0.0]))
        >>> round(float(loss), 6)  # log 2
        0.693147

    Source:
        Example 2.6 of the lecture, composed with -<labels, log y>. The signature is that of
        `optax.safe_softmax_cross_entropy`.
    """
    logits, labels = as_floating("logits", logits), as_array("labels", labels)
    (axis,) = normalize_axes(-1, logits.ndim)
    shape = broadcast_shapes(logits=logits, labels=labels)
    axes = (axis + len(shape) - logits.ndim,)
    return by_rule(
        lambda logits, labels: _softmax_cross_entropy(logits, labels, None, axes, safe=True),
        optax.safe_softmax_cross_entropy,
        logits=jnp.broadcast_to(logits, shape),
        labels=jnp.broadcast_to(labels, shape),
    )


def reference_safe_softmax_cross_entropy(logits, labels):
    log_y = reference_log_softmax(logits)
    return -jnp.sum(jnp.where(labels == 0, 0, labels) * jnp.where(jnp.isinf(log_y) & (labels == 0), 0, log_y), -1)


# --------------------------------------------------------------------------- softmax_cross_entropy_with_integer_labels


def softmax_cross_entropy_with_integer_labels(
    logits: Float[ArrayLike, "*b n"],
    labels: Int[ArrayLike, "..."],
    axis: int | tuple[int, ...] = -1,
    where: Bool[ArrayLike, "..."] | None = None,
) -> Float[Array, "*b"]:
    """log sum_i exp(logits_i) - logits_label, which is -log softmax(logits)_label, along axis.

    Args:
        logits: any shape, floating: unnormalised log probabilities.
        labels: integers, of logits' shape without axis or a shape of the same rank that broadcasts with it: the right
            classes, in [-n, n), negative ones counted from the end. For several axes they index the flattened classes,
            in the order of axis.
        axis: the class axis, or a tuple of axes.
        where: booleans that broadcast with logits, or of its shape without axis: the elements of the sum to include.

    Returns:
        The broadcast shape of labels and of logits without axis, in logits' dtype; in [0, inf] if the label is not
        masked. A label out of range gives NaN, as in optax (values cannot raise under jit), and the cotangent g y, that
        of a loss without a label. A wholly masked slice gives 0, with cotangent 0; no classes at all give -inf. A logit
        of -inf excludes its class; NaN, +inf or a slice of -inf alone give NaN. Every component of the cotangent keeps
        its relative accuracy where the label is almost certain; a loss below the rounding error of 1 is 0.

    Raises:
        TypeError: logits are not floating or labels are not integers, both as in optax, where is not boolean, or axis
            is neither an integer nor a tuple.
        ValueError: labels' shape does not broadcast with logits' without axis, or axis or where does not fit.

    Example:
        >>> jax.grad(softmax_cross_entropy_with_integer_labels)(jnp.array([0.0, 0.0]), 1).tolist()
        [0.5, -0.5]

    Source:
        Example 2.6 of the lecture, composed with -log y_label. The signature is that of
        `optax.softmax_cross_entropy_with_integer_labels`.
    """
    logits, labels = as_floating("logits", logits), as_array("labels", labels)
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise TypeError(f"labels must be integers, got {labels.dtype} of shape {labels.shape}")
    if not isinstance(axis, tuple) and not hasattr(axis, "__index__"):
        raise TypeError(f"axis must be an integer or a tuple of integers, got {axis!r}")
    axes = normalize_axes(axis, logits.ndim)
    if any(logits.shape[i] == 0 for i in axes):
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels, axis, where)
    in_order = tuple(a % logits.ndim for a in axis) if isinstance(axis, tuple) else axes
    given, mask = logits.shape, None
    if where is not None:
        where = _over_classes(where, logits, axes)
        logits, mask = broadcast_mask(where, logits=logits)
        if any(logits.shape[i] != given[i] for i in axes):
            raise ValueError(f"where must not have more classes than logits, got {where.shape} and {given}")
        mask = _classes_last(mask, in_order)
    logits = _classes_last(logits, in_order)
    try:
        batch = jnp.broadcast_shapes(logits.shape[:-1], labels.shape)
    except ValueError:
        batch = None
    if batch is None or len(batch) != labels.ndim or len(batch) != logits.ndim - 1:
        wanted = f"logits' shape without axis {axis}, or broadcast with it"
        raise ValueError(f"labels must have {wanted}, got {labels.shape} and {given}")
    labels, logits = jnp.broadcast_to(labels, batch), jnp.broadcast_to(logits, (*batch, logits.shape[-1]))
    mask = None if mask is None else jnp.broadcast_to(mask, logits.shape)
    return by_rule(
        lambda logits: _integer_cross_entropy(logits, labels, mask),
        lambda logits: optax.softmax_cross_entropy_with_integer_labels(logits, labels, where=mask),
        logits=logits,
    )


def _classes_last(x, axes):
    """Return x with its class axes moved last, in this order, and flattened to one."""
    x = jnp.moveaxis(x, axes, range(-len(axes), 0))
    return x if len(axes) == 1 else x.reshape(*x.shape[: x.ndim - len(axes)], -1)


@custom_vjp
def _integer_cross_entropy(logits, labels, mask):
    return fwd_integer_cross_entropy(logits, labels, mask)[0]


def fwd_integer_cross_entropy(logits, labels, mask):
    _, total, shift = max_shifted_exp(upcast(logits), (logits.ndim - 1,), mask)
    label_logits = jnp.take_along_axis(upcast(logits), labels[..., None], axis=-1)
    loss = (jnp.log(total) - (label_logits - shift))[..., 0]
    if mask is not None:
        loss = jnp.where(jnp.any(mask, -1), loss, 0)
    return loss.astype(logits.dtype), (logits, labels, mask, total, shift)


# The cross-entropy above with p the indicator of the label, which sums to one:
#   g^T J = g (y - [i = label])
# The label's component, y - 1, cancels where y rounds to 1; as all sum to 0, it is minus the sum of the others:
#   (g^T J)_i = g y_i,   (g^T J)_label = -sum of these
# The one-hot matrix is a comparison inside the loop that writes the result; it is never stored.
def bwd_integer_cross_entropy(res, g):
    logits, labels, mask, total, shift = res
    classes = logits.shape[-1]
    labels = labels.astype(jnp.promote_types(labels.dtype, jnp.int32))  # int8 cannot count 300 classes
    labels = jnp.where(labels < 0, labels + classes, labels)
    is_label = lax.broadcasted_iota(labels.dtype, logits.shape, logits.ndim - 1) == labels[..., None]
    y = jnp.exp(upcast(logits) - shift) / total
    others = jnp.where(is_label if mask is None else is_label | ~mask, 0, upcast(g)[..., None] * y)
    positions = jnp.where(labels < 0, classes, labels)  # a scatter counts negative positions from the end
    return like_primal(_set_in_rows(others, positions, -jnp.sum(others, -1)), logits), None, None


def _set_in_rows(x, positions, values):
    """Return x with one value written at one position of each row; positions out of range are dropped.

    Rows are mapped over by vmap, not indexed, so that sharded rows stay on their devices. A scatter writes in place,
    where a comparison with all positions would read and write x once more.
    """
    put = lambda row, position, value: row.at[position].set(value, mode="drop")  # noqa: E731
    for _ in range(x.ndim - 1):
        put = jax.vmap(put)
    return put(x, positions, values)


_integer_cross_entropy.defvjp(fwd_integer_cross_entropy, bwd_integer_cross_entropy)


def reference_softmax_cross_entropy_with_integer_labels(logits, labels, axis=-1, where=None):
    axes = axis if isinstance(axis, tuple) else (axis,)
    logits = _classes_last(logits, axes)
    mask = jnp.ones(logits.shape, bool)
    if where is not None:
        mask &= _classes_last(jnp.broadcast_to(where, logits.shape), axes)
    shift = jax.lax.stop_gradient(jnp.max(logits, -1, keepdims=True, where=mask, initial=-jnp.inf))
    shift = jnp.where(jnp.any(mask, -1, keepdims=True), shift, 0)
    total = jnp.sum(jnp.where(mask, jnp.exp(jnp.where(mask, logits - shift, 0)), 0), -1)
    positions = lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1)
    is_label = jnp.asarray(labels, jnp.int32)[..., None] % logits.shape[-1] == positions
    loss = jnp.log(total) - jnp.sum(jnp.where(is_label, logits - shift, 0), -1)
    return jnp.where(jnp.any(mask, -1), loss, 0)


def jacobian_softmax_cross_entropy_with_integer_labels(logits, labels):
    return Dense((jax.nn.softmax(logits) - jax.nn.one_hot(labels, logits.size, dtype=logits.dtype))[None, :]), None


# -------------------------------------------------------------------------------------------------------- kl_divergence


def kl_divergence(
    log_predictions: Float[ArrayLike, "..."],
    targets: Float[ArrayLike, "..."],
    axis: int | Sequence[int] | None = -1,
    where: Bool[ArrayLike, "..."] | None = None,
) -> Float[Array, "..."]:
    """sum_i t_i (log t_i - q_i) along axis, with t the targets and q the log_predictions: KL(t || exp(q)).

    Args:
        log_predictions: any shape, floating: the logarithms of a distribution along axis.
        targets: floating, of any shape that broadcasts with log_predictions: a distribution along axis.
        axis: the axis or axes to sum over; None for all.
        where: booleans that broadcast to the shape of both: the elements to include.

    Returns:
        The broadcast shape without axis, in the dtype that both promote to; in [0, inf] for distributions. A target of
        0 adds 0, even at a log prediction of -inf, where optax gives NaN; its cotangent, in truth infinite, is 0, as in
        PyTorch. Another target at -inf gives inf; a negative one gives NaN. What where excludes has cotangent 0.

    Raises:
        TypeError: log_predictions or targets are not floating, as in optax, or where is not boolean.
        ValueError: the shapes do not broadcast, or axis does not fit.

    Example:
        >>> q = jnp.log(jnp.array([0.5, 0.5, 0.0]))
        >>> round(float(kl_divergence(q, jnp.array([1.0, 0.0, 0.0]))), 6)  # log 2
        0.693147

    Source:
        Kullback and Leibler, On Information and Sufficiency (1951). The signature is that of `optax.kl_divergence`.
    """
    q, t = as_floating("log_predictions", log_predictions), as_floating("targets", targets)
    shape = broadcast_shapes(log_predictions=q, targets=t)
    mask = None
    if where is not None:
        whole, mask = broadcast_mask(where, targets=jnp.broadcast_to(t, shape))
        if whole.shape != shape:
            raise ValueError(f"where must broadcast to the shape of the others, got {jnp.shape(where)} and {shape}")
    axes = normalize_axes(axis, len(shape))
    return by_rule(
        lambda log_predictions, targets: _kl_divergence(log_predictions, targets, mask, axes),
        partial(optax.kl_divergence, axis=axes, where=mask),
        log_predictions=q,
        targets=t,
    )


@partial(custom_vjp, nondiff_argnames=("axes",))
def _kl_divergence(log_predictions, targets, mask, axes) -> jax.Array:
    return fwd_kl_divergence(log_predictions, targets, mask, axes)[0]


def fwd_kl_divergence(log_predictions, targets, mask, axes):
    t, ratio = _log_ratio(log_predictions, targets)
    loss = jnp.sum(t * ratio, axes, where=mask)
    return loss.astype(jnp.result_type(log_predictions, targets)), (log_predictions, targets, mask)


def _log_ratio(log_predictions, targets):
    """Return the targets and log(targets / predictions), 0 where a target is 0."""
    t = upcast(targets)
    log_t = jnp.log(jnp.where(t == 0, 1, t))
    return t, jnp.where(t == 0, 0, log_t - upcast(log_predictions))


# d t (log t - q) / dq = -t and d t (log t - q) / dt = log t + 1 - q, but 0 at t = 0 by convention:
#   g^T J_q = -g t,   g^T J_t = g [t != 0] (log t + 1 - q)
def bwd_kl_divergence(axes, res, g):
    log_predictions, targets, mask = res
    t, ratio = _log_ratio(log_predictions, targets)
    g = jnp.expand_dims(upcast(g), axes)
    g = g if mask is None else jnp.where(mask, g, 0)
    dt = jnp.where((t == 0) | (g == 0), 0, g * (ratio + 1))
    return like_primal(_whole(-g * t, ratio), log_predictions), like_primal(dt, targets), None


def _whole(a, like):
    """Return a, of the shape of `like`: a cotangent is summed over the axes along which its argument was broadcast."""
    return jnp.broadcast_to(a, like.shape)


_kl_divergence.defvjp(fwd_kl_divergence, bwd_kl_divergence)


def reference_kl_divergence(log_predictions, targets, axis=-1, where=None):
    counts = targets != 0
    q, t = jnp.where(counts, log_predictions, 0), jnp.where(counts, targets, 1)
    loss = jnp.where(counts, t * (jnp.log(t) - q), 0)
    return jnp.sum(loss, axis, where=where)


def jacobian_kl_divergence(log_predictions, targets):
    return Dense(-targets[None, :]), Dense((jnp.log(targets) + 1 - log_predictions)[None, :])


# ------------------------------------------------------------------------------------------------------------- records

_SOFT = Input("b n", distribution)
_LABELS = Input("b", index_below("n"))
_MASKED = {"where": Input("b n", random_mask)}
_SIZES = {"b": 3, "n": 7}
_LARGE = {"b": 4096, "n": 1024}
_FIT = Edge("a perfect and a hopeless fit", ([[1e4, 0.0], [1e4, 0.0]], [[1.0, 0.0], [0.0, 1.0]]))


def _tails_of_softmax_cross_entropy(t):
    x, y, rest = saturating(t)
    labels = np.broadcast_to(np.eye(3)[0], x.shape)
    return Tail((x, labels), np.ones_like(t), (np.where(labels, -rest, y), np.log1p(rest / y)))


def _tails_of_integer_cross_entropy(t):
    x, y, rest = saturating(t)
    return Tail((x, np.zeros(t.shape, np.int32)), np.ones_like(t), (np.where(np.eye(3)[0], -rest, y),))


RULES = (
    Rule(
        fn=softmax_cross_entropy,
        reference=reference_softmax_cross_entropy,
        baselines={"optax.softmax_cross_entropy": optax.softmax_cross_entropy},
        cases=(
            Case(("b n", _SOFT), _SIZES),
            Case(("b n", _SOFT), _SIZES, {"axis": 0}),
            Case(("b n", _SOFT), _SIZES, {"axis": None}),
            Case(("b n", _SOFT), _SIZES, _MASKED),
            Case(("b n", "b n"), _SIZES),
        ),
        edges=(
            _FIT,
            Edge("ties", ([2.0, 2.0, 2.0], [0.5, 0.5, 0.0])),
            Edge("one class", ([[3.0]], [[1.0]])),
            Edge("nothing in the label", ([1.0, 2.0], [0.0, 0.0])),
            Edge("a slice wholly masked", ([[1.0, 2.0]], [[0.5, 0.5]]), {"where": np.zeros((1, 2), bool)}),
            Edge("empty batch", (np.zeros((0, 3)), np.zeros((0, 3)))),
        ),
        bench=(Case(("b n", _SOFT), _LARGE),),
        residual_bytes=lambda b, n: 4 * (2 * b * n + 2 * b),
        jacobian=jacobian_softmax_cross_entropy,
        reason="accurate at a class that is almost certain; keeps its arguments and two numbers per slice",
        gains=(Gain("error", 1e-4), Gain("kept bytes", 0.67)),
        source="Example 2.6",
        tails=_tails_of_softmax_cross_entropy,
    ),
    Rule(
        fn=softmax_cross_entropy_with_integer_labels,
        reference=reference_softmax_cross_entropy_with_integer_labels,
        baselines={"optax.softmax_cross_entropy_with_integer_labels": optax.softmax_cross_entropy_with_integer_labels},
        cases=(
            Case(("b n", _LABELS), _SIZES),
            Case(("n b", _LABELS), _SIZES, {"axis": 0}),
            Case(("n b c", Input("b", index_below("n"))), {"b": 2, "n": 5, "c": 3}, {"axis": (0, 2)}),
            Case(("b n", _LABELS), _SIZES, _MASKED),
            Case(("n", Input("", index_below("n"))), {"n": 11}),
        ),
        edges=(
            _FIT._replace(args=(_FIT.args[0], np.array([0, 1]))),
            Edge("a logit of -inf", ([0.0, float("-inf"), 1.0], np.array(0))),
            Edge("one class", ([[3.0]], np.array([0]))),
            Edge("a negative label of few bits, of many classes", (np.linspace(-1, 1, 300), np.array(-100, np.int8))),
            Edge("a slice wholly masked", ([[1.0, 2.0]], np.array([0])), {"where": np.zeros((1, 2), bool)}),
            Edge("empty batch", (np.zeros((0, 3)), np.zeros((0,), np.int32))),
        ),
        bench=(Case(("b n", _LABELS), _LARGE),),
        residual_bytes=lambda b, n: 4 * (b * n + 3 * b),
        jacobian=jacobian_softmax_cross_entropy_with_integer_labels,
        reason="accurate at a label that is almost certain, where autodiff loses all digits",
        gains=(Gain("error", 1e-4),),
        source="Example 2.6",
        tails=_tails_of_integer_cross_entropy,
    ),
    Rule(
        fn=safe_softmax_cross_entropy,
        reference=reference_safe_softmax_cross_entropy,
        baselines={"optax.safe_softmax_cross_entropy": optax.safe_softmax_cross_entropy},
        cases=(Case(("b n", _SOFT), _SIZES), Case(("b n", Input("n", distribution)), _SIZES)),
        edges=(
            _FIT,
            Edge("one class", ([[3.0]], [[1.0]])),
            Edge("empty batch", (np.zeros((0, 3)), np.zeros((0, 3)))),
        ),
        bench=(Case(("b n", _SOFT), _LARGE),),
        residual_bytes=lambda b, n: 4 * (2 * b * n + 2 * b),
        jacobian=jacobian_softmax_cross_entropy,
        reason="accurate at a class that is almost certain; keeps its arguments and two numbers per slice",
        gains=(Gain("error", 1e-4), Gain("kept bytes", 0.67)),
        source="Example 2.6",
        tails=_tails_of_softmax_cross_entropy,
    ),
    Rule(
        fn=kl_divergence,
        reference=reference_kl_divergence,
        baselines={"optax.kl_divergence": optax.kl_divergence},
        cases=(
            Case(("b n", _SOFT), _SIZES),
            Case(("b n", Input("n", distribution)), _SIZES, {"axis": None}),
            Case(("n", Input("b n", distribution)), _SIZES, {"axis": 0}),
            Case(("b n", _SOFT), _SIZES, _MASKED),
        ),
        edges=(
            Edge("equal distributions", (np.log([[0.5, 0.25, 0.25]]), [[0.5, 0.25, 0.25]])),
            Edge("a target of 0", ([[-1.0, -2.0]], [[0.0, 1.0]])),
            Edge("a class that neither has", ([[0.0, float("-inf")]], [[1.0, 0.0]])),
            Edge("empty batch", (np.zeros((0, 3)), np.zeros((0, 3)))),
        ),
        bench=(Case(("b n", _SOFT), _LARGE),),
        residual_bytes=lambda b, n: 4 * 2 * b * n,
        jacobian=jacobian_kl_divergence,
        reason="keeps its arguments alone; no NaN at a target of 0, or for a class of probability 0 in both",
        gains=(
            Gain("kept bytes", 0.62),
            Gain("error", 1e-5, "a target of 0"),
            Gain("error", 1e-5, "a class that neither has"),
        ),
        source="Kullback and Leibler (1951)",
    ),
)
