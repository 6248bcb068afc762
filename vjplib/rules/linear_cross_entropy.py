"""Cross-entropy of a linear layer's softmax, in chunks: the logits of all tokens are never held at once."""

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int

from vjplib.compat import auto_sharded, custom_vjp, is_symbolic, varying_like
from vjplib.jacobians import Dense
from vjplib.precision import compute_dtype, upcast
from vjplib.rule import Case, Edge, Gain, Input, Rule, Tail, index_below
from vjplib.rules._arguments import as_array, as_floating, as_number, by_rule
from vjplib.rules._cotangents import aval_token, like_primal
from vjplib.rules.softmax import saturating

REDUCTIONS = ("sum", "mean", "none", None)
CHUNK_BYTES = 16 << 20  # larger temporaries cost fresh pages
NAME = "linear_softmax_cross_entropy"  # of what policies of `jax.checkpoint` may keep
FEWEST_TOKENS = 64  # of a chunk: below, adding to the gradient of weights takes longer than logits computed twice


class _Options(NamedTuple):
    """The options of the loss of one token, the precision of products, and the number of chunks."""

    label_smoothing: float
    logits_soft_cap: float | None
    z_loss: float
    precision: Any
    chunks: Any


def linear_softmax_cross_entropy(
    x: Float[ArrayLike, "*b d"],
    labels: Int[ArrayLike, "*b"],
    weights: Float[ArrayLike, "d v"],
    bias: Float[ArrayLike, " v"] | None = None,
    *,
    reduction: str | None = "sum",
    precision: Any = None,
    label_smoothing: float = 0.0,
    ignore_index: int | None = -100,
    logits_soft_cap: float | None = None,
    z_loss: float = 0.0,
    chunk_bytes: int | None = None,
) -> Float[Array, "..."]:
    """log sum_v exp(l_v) - l_label with l = x weights + bias, summed over tokens; the logits l are never all held.

    Args:
        x: (*b, d), floating: the features of each token, with any batch axes.
        labels: (*b,), integers: the right classes, in [-v, v), negative ones counted from the end.
        weights: (d, v), floating.
        bias: (v,), floating, or None. A bias of -inf excludes its class.
        reduction: "sum"; "mean" over the tokens that are not ignored; "none" or None for the loss of each token, which
            computes the logits twice, because their cotangents are not known in the forward pass.
        precision: that of the matrix products, as `jax.lax.dot_general` takes it.
        label_smoothing: e in [0, 1]: the target is 1 - e at the label, plus e / v at every class.
        ignore_index: the label of tokens to leave out; None leaves out none.
        logits_soft_cap: c > 0: the logits are c tanh(l / c). None for no cap.
        z_loss: the coefficient of (log sum_v exp(l_v))^2, which is added to the loss of each token.
        chunk_bytes: the bytes of logits in float32 to hold at once, at least one chunk of one row. None for 16 MiB, or
            a quarter of the bytes of weights (of x where each token has its loss) if that is more.

    Returns:
        A scalar, or (*b,) without reduction; in float32, or in the dtype that x, weights and bias promote to where that
        is wider. Half precision accumulates in float32. The loss and the cotangent keep their relative accuracy where
        the label is almost certain. An ignored token has loss 0 and cotangent 0, whatever its x. The mean over no
        tokens is 0. A label out of range gives NaN, and the cotangent of a loss without a label; so it is in optax.
        NaN or +inf among a token's logits make its loss NaN.

        A loss that is summed or averaged keeps its gradients, which were computed beside it; under `jax.checkpoint`
        only the policy `jax.checkpoint_policies.save_only_these_names("linear_softmax_cross_entropy")` keeps them too.

        Under `jax.vmap` each call has its own chunks. Where the compiler splits the tokens over devices, the gradient
        of weights of each chunk of tokens may be summed over devices by itself, not once as in `jax.shard_map` and
        without reduction.

    Raises:
        TypeError: x, weights or bias are not floating, labels are not integers, or an option is not a number.
        ValueError: the shapes of x, labels, weights and bias do not fit, there is no class, or an option is out of its
            range.

    Example:
        >>> x, weights = jnp.array([[1.0, 0.0]]), jnp.zeros((2, 4))
        >>> round(float(linear_softmax_cross_entropy(x, jnp.array([3]), weights)), 6)  # log 4
        1.386294

    Source:
        Example 2.6 of the lecture, composed with a linear layer. The order of arguments and the reductions "sum" and
        "mean" are those of `tokamax.linear_softmax_cross_entropy_loss`, ignored labels those of PyTorch.
    """
    x, labels, weights = as_floating("x", x), as_array("labels", labels), as_floating("weights", weights)
    arrays = {"x": x, "weights": weights} | ({} if bias is None else {"bias": as_floating("bias", bias)})
    _require_shapes(labels=labels, **arrays)
    smoothing = as_number("label_smoothing", label_smoothing, "in [0, 1]", lambda n: 0 <= n <= 1)
    z_loss = as_number("z_loss", z_loss, "finite", math.isfinite)
    if logits_soft_cap is not None:
        logits_soft_cap = as_number("logits_soft_cap", logits_soft_cap, "above 0", lambda n: 0 < n < math.inf)
    if chunk_bytes is not None:
        chunk_bytes = int(as_number("chunk_bytes", chunk_bytes, "at least 1", lambda n: 1 <= n < math.inf))
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction must be one of {', '.join(map(repr, REDUCTIONS))}, got {reduction!r}")
    features, vocabulary = weights.shape
    labels, count = _prepared(labels, vocabulary, ignore_index)
    tokens, summed = math.prod(labels.shape), reduction in ("sum", "mean")
    by_tokens, chunks = chunk_plan(tokens, features, vocabulary, summed, chunk_bytes)
    options = _Options(smoothing, logits_soft_cap, z_loss, precision, chunks)

    def loss(labels, x, weights, bias=None):
        rows, positions = x.reshape(tokens, features), labels.reshape(tokens)
        if by_tokens:
            return _summed_loss(*_dealt(rows, positions, chunks), weights, bias, options)
        return _token_losses(rows, positions, weights, bias, options).reshape(labels.shape)

    core = auto_sharded(loss, jax.typeof(count if by_tokens else labels))
    losses = by_rule(partial(core, labels), partial(reference, labels=labels), **arrays)
    y = jnp.sum(losses) if summed else losses
    return y / jnp.maximum(1, count) if reduction == "mean" else y


def _require_shapes(x, labels, weights, bias=None):
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise TypeError(f"labels must be integers, got {labels.dtype} of shape {labels.shape}")
    if x.ndim < 1:
        raise ValueError(f"x must have at least one axis, its features, got shape {x.shape}")
    if labels.shape != x.shape[:-1]:
        raise ValueError(f"labels must have the shape of x without its last axis, got {labels.shape} and x {x.shape}")
    if weights.ndim != 2 or weights.shape[0] != x.shape[-1] or weights.shape[1] == 0:
        wanted = "shape (d, v) with d the last axis of x and v at least 1"
        raise ValueError(f"weights must have {wanted}, got {weights.shape} and x {x.shape}")
    if bias is not None and bias.shape != weights.shape[1:]:
        wanted = "shape (v,) with v the columns of weights"
        raise ValueError(f"bias must have {wanted}, got {bias.shape} and weights {weights.shape}")


def _prepared(labels, vocabulary, ignore_index):
    """Return the labels as positions, v where out of range and -1 where ignored, and how many are not ignored."""
    if jnp.iinfo(labels.dtype).bits < 32:  # int8 cannot count 300 classes
        labels = labels.astype(jnp.int32)
    counted = jnp.ones(labels.shape, bool)
    if ignore_index is not None:
        counted = labels != int(as_number("ignore_index", ignore_index, "an integer", float.is_integer))
    positions = jnp.where(labels < 0, labels + vocabulary, labels)
    positions = jnp.where((positions < 0) | (positions >= vocabulary), vocabulary, positions)
    return jnp.where(counted, positions, -1), jnp.sum(counted)


def chunk_plan(tokens, features, vocabulary, summed, chunk_bytes):
    """Return whether to go by chunks of tokens, else of the vocabulary, and how many.

    The sum's gradients are formed with its value, a chunk of tokens after the other, which saves computing the logits
    a second time; but each chunk adds to the whole gradient of weights, which wants chunks of many tokens. Chunks of
    the vocabulary write each column of that gradient once.
    """
    if is_symbolic(tokens, features, vocabulary):
        return summed, 1
    for by_tokens, many, size in ((True, tokens, vocabulary), (False, vocabulary, tokens)):
        row = 4 * max(1, size)
        most = max(1, (chunk_bytes or max(CHUNK_BYTES, features * row // 4)) // row)
        if not by_tokens or (summed and (many <= most or most >= FEWEST_TOKENS)):
            fewest = max(1, -(-many // most))
            return by_tokens, next((n for n in range(fewest, 2 * fewest) if many % n == 0), fewest)
    raise AssertionError


# ------------------------------------------------------------------------------------ what both kinds of chunks compute


class _Statistics(NamedTuple):
    """Numbers of each token over the logits seen so far, each (t,)."""

    largest: Any
    rest: Any  # the sum of exp(logit - largest) over all but the label's
    label: Any  # the label's logit
    total: Any  # the sum of the logits, for label smoothing


class _Coefficients(NamedTuple):
    """What the loss of each token is, and its derivative in the logits, each (t,)."""

    loss: Any
    scale: Any  # factor of exp(logit - largest)
    label: Any  # the derivative in the label's logit


def _dtype(*arrays):
    return compute_dtype(jnp.result_type(*(a for a in arrays if a is not None)))


def _without_ignored(x, labels):
    """Return x, 0 where ignored, for 0 times NaN would be NaN in the sums over tokens."""
    return jnp.where(labels[:, None] < 0, 0, x)


def _linear(x, weights, bias, options):
    dtype = _dtype(x, weights, bias)
    z = jnp.einsum("td,dv->tv", x, weights, precision=options.precision, preferred_element_type=dtype)
    return z if bias is None else z + bias[None, :].astype(dtype)


def _capped(z, cap):
    return z if cap is None else cap * jnp.tanh(z / cap)


def _is_label(positions, z):
    return lax.broadcasted_iota(positions.dtype, z.shape, 1) == positions[:, None]


def _none_seen(x, labels, weights, bias):
    dtype = _dtype(x, weights, bias)
    zero = varying_like(jnp.zeros(labels.shape, dtype), x, labels, weights, bias)
    return _Statistics(zero + jnp.finfo(dtype).min, zero, zero, zero)


def _seen(before, z, positions, options):
    """Return the statistics with some more logits; positions are those of the labels among them, or lie outside."""
    logits = _capped(z, options.logits_soft_cap)
    largest = jnp.maximum(before.largest, lax.stop_gradient(jnp.max(logits, 1)))
    e = jnp.exp(logits - largest[:, None])
    rest = before.rest * jnp.exp(before.largest - largest) + jnp.sum(jnp.where(_is_label(positions, z), 0, e), 1)
    inside = (positions >= 0) & (positions < z.shape[1])
    picked = jnp.take_along_axis(logits, jnp.where(inside, positions, 0)[:, None], 1)[:, 0]
    total = before.total + jnp.sum(logits, 1) if options.label_smoothing else before.total
    return _Statistics(largest, rest, jnp.where(inside, picked, before.label), total)


# With S = sum_k exp(l_k) and y_j = exp(l_j) / S, the loss of a token with label m is
#   (1 - e) (log S - l_m) + e (log S - sum_j l_j / v) + c (log S)^2
# of label smoothing e, z-loss c and v classes. As d log S / dl_j = y_j, its derivative in the logits is
#   d_j = (1 + 2 c log S) y_j - e / v - (1 - e) [j = m]
# The label's component cancels where y_m rounds to 1. With r the sum without the label's exponential, y_m = 1 - r / S:
#   d_m = 2 c log S y_m + e (1 - 1 / v) - r / S
# and log S - l_m = log(1 + r / exp(l_m)), exact where the label is the largest and shifted to exp(l_m) = 1; it stays
# in the logarithm as exp(l_m) - 1, for its derivative. The shift by the largest logit is no variable: it cancels.
def _coefficients(statistics, labels, vocabulary, options):
    largest, rest, label, total = statistics
    at_label = jnp.where(labels < vocabulary, jnp.exp(label - largest), 0)
    s = rest + at_label
    log_s = jnp.where(label == largest, jnp.log1p(rest + (at_label - 1)), jnp.log(s))  # both less the largest
    loss, scale, d_label = log_s - (label - largest), 1 / s, -rest / s
    if options.label_smoothing:
        mean = total / vocabulary - largest
        loss = (1 - options.label_smoothing) * loss + options.label_smoothing * (log_s - mean)
        d_label += options.label_smoothing * (1 - jnp.ones((), s.dtype) / vocabulary)
    if options.z_loss:
        twice = 2 * options.z_loss * (largest + log_s)
        loss, scale, d_label = loss + twice * (largest + log_s) / 2, scale * (1 + twice), d_label + twice * at_label / s
    loss = jnp.where(labels < 0, 0, jnp.where(labels < vocabulary, loss, jnp.nan))
    return _Coefficients(loss, scale, d_label)


def _cotangent_of_linear(z, positions, g, largest, coefficients, vocabulary, options):
    """Return g d, d the derivative above, in what the linear layer gave: times 1 - tanh^2 under a cap."""
    d = (g * coefficients.scale)[:, None] * jnp.exp(_capped(z, options.logits_soft_cap) - largest[:, None])
    if options.label_smoothing:
        d -= (g * options.label_smoothing / vocabulary)[:, None]
    d = jnp.where(_is_label(positions, z), (g * coefficients.label)[:, None], d)
    if options.logits_soft_cap is None:
        return d
    t = jnp.exp(-2 * jnp.abs(z) / options.logits_soft_cap)
    return d * (4 * t / jnp.square(1 + t))


def _pulled_back(d, x, weights, bias, options):
    """Return the cotangents of x, and of weights and bias."""
    dtype = _derivative_dtype(jnp.result_type(x, weights))
    product = partial(jnp.einsum, precision=options.precision, preferred_element_type=d.dtype)
    narrow, x, weights = d.astype(dtype), x.astype(dtype), weights.astype(dtype)
    in_bias = None if bias is None else jnp.sum(d, 0)
    return product("tv,dv->td", narrow, weights), (product("td,tv->dv", x, narrow), in_bias)


def _derivative_dtype(dtype):
    """Return the dtype of derivatives that are multiplied or kept: other half precision has too short a range."""
    return dtype if dtype == jnp.bfloat16 else compute_dtype(dtype)


# --------------------------------------------------------------------------------------- the sum, in chunks of tokens


def _dealt(x, labels, chunks):
    """Return x (t, d) as (t / n, n, d), n the chunks along axis 1, and labels likewise; ignored tokens fill up.

    Chunk i has every n-th token from i on: so tokens that are split over devices are so in each chunk.
    """
    if chunks == 1:
        return x, labels
    if missing := -len(x) % chunks:
        x, labels = jnp.pad(x, ((0, missing), (0, 0))), jnp.pad(labels, (0, missing), constant_values=-1)
    return x.reshape(-1, chunks, x.shape[1]), labels.reshape(-1, chunks)


@partial(custom_vjp, nondiff_argnames=("options",))
def _summed_loss(x, labels, weights, bias, options) -> jax.Array:
    return _by_tokens(x, labels, weights, bias, options, gradients=False)[0]


def fwd_summed_loss(x, labels, weights, bias, options):
    loss, dx, (dweights, dbias) = _by_tokens(x, labels, weights, bias, options, gradients=True)
    primals, gradients = (x, weights, bias), (dx, dweights, dbias)
    kept = [p if p is None else a.astype(_derivative_dtype(p.dtype)) for a, p in zip(gradients, primals, strict=True)]
    loss, kept = checkpoint_name((loss, kept), NAME)
    return loss, (kept, [p if p is None else aval_token(p) for p in primals])


# The logits are l = x W + b, so with d the derivative of the tokens' losses in them, one row a token,
#   g^T J_x = g d W^T,   g^T J_W = g x^T d,   g^T J_b = g sum_t d_t
# As g is one number for all tokens, the forward forms the products and the backward multiplies by g.
def bwd_summed_loss(options, res, g):
    (dx, dweights, dbias), (x, weights, bias) = res
    return (
        like_primal(g * upcast(dx), x),
        None,
        like_primal(g * upcast(dweights), weights),
        None if bias is None else like_primal(g * upcast(dbias), bias),
    )


_summed_loss.defvjp(fwd_summed_loss, bwd_summed_loss)


def _by_tokens(x, labels, weights, bias, options, gradients):
    """Return the summed loss and its gradients, in x and in weights and bias; without gradients None for these."""

    @jax.checkpoint
    def chunk(x, labels, weights, bias):
        x = _without_ignored(x, labels)
        z = _linear(x, weights, bias, options)
        statistics = _seen(_none_seen(x, labels, weights, bias), z, labels, options)
        found = _coefficients(statistics, labels, weights.shape[1], options)
        if not gradients:
            return jnp.sum(found.loss), None, None
        g = (labels >= 0).astype(z.dtype)
        d = _cotangent_of_linear(z, labels, g, statistics.largest, found, weights.shape[1], options)
        return jnp.sum(found.loss), *_pulled_back(d, x, weights, bias, options)

    if x.ndim == 2:
        return chunk(x, labels, weights, bias)

    def step(sums, i):
        loss, dx, in_weights = chunk(
            *(lax.dynamic_index_in_dim(a, i, 1, keepdims=False) for a in (x, labels)), weights, bias
        )
        before, every_dx, in_weights_before = sums
        if gradients:
            every_dx = lax.dynamic_update_index_in_dim(every_dx, dx, i, 1)
        return (before + loss, every_dx, jax.tree.map(jnp.add, in_weights_before, in_weights)), None

    dtype = _dtype(x, weights, bias)
    zeros = lambda shape: varying_like(jnp.zeros(shape, dtype), x, labels, weights, bias)  # noqa: E731
    summed = (x, (weights, bias)) if gradients else (None, None)
    start = (zeros(()), *jax.tree.map(lambda a: zeros(a.shape), summed))
    (loss, dx, in_weights), _ = lax.scan(step, start, jnp.arange(x.shape[1]))
    return loss, dx, in_weights


# ------------------------------------------------------------------ the loss of each token, in chunks of the vocabulary


@partial(custom_vjp, nondiff_argnames=("options",))
def _token_losses(x, labels, weights, bias, options) -> jax.Array:
    return fwd_token_losses(x, labels, weights, bias, options)[0]


def fwd_token_losses(x, labels, weights, bias, options):
    known = _without_ignored(x, labels)

    def step(statistics, start, weights, bias):
        return _seen(statistics, _linear(known, weights, bias, options), labels - start, options)

    statistics = _by_vocabulary(step, _none_seen(x, labels, weights, bias), weights, bias, options.chunks)
    loss = _coefficients(statistics, labels, weights.shape[1], options).loss
    return loss, (x, labels, weights, bias, statistics)


# With g one number a token, and d the derivative of the losses in the logits, as above:
#   g^T J_x = (g d) W^T,   g^T J_W = x^T (g d),   g^T J_b = sum_t g_t d_t
# The statistics of all logits are known from the forward. So d is computed again, one chunk of columns after the other:
# each adds to g^T J_x, and is a part of the other two.
def bwd_token_losses(options, res, g):
    x, labels, weights, bias, statistics = res
    found = _coefficients(statistics, labels, weights.shape[1], options)
    known, g = _without_ignored(x, labels), jnp.where(labels < 0, 0, g)

    def step(sums, start, columns, column_bias):
        z = _linear(known, columns, column_bias, options)
        d = _cotangent_of_linear(z, labels - start, g, statistics.largest, found, weights.shape[1], options)
        dx, parts = _pulled_back(d, known, columns, column_bias, options)
        put = lambda whole, part: lax.dynamic_update_slice_in_dim(whole, part, start, whole.ndim - 1)  # noqa: E731
        return sums[0] + dx, jax.tree.map(put, sums[1], parts)

    zeros = lambda a: varying_like(jnp.zeros(a.shape, g.dtype), x, labels, weights, bias, g)  # noqa: E731
    sums = jax.tree.map(zeros, (x, (weights, bias)))
    dx, (dweights, dbias) = _by_vocabulary(step, sums, weights, bias, options.chunks)
    return like_primal(dx, x), None, like_primal(dweights, weights), None if bias is None else like_primal(dbias, bias)


_token_losses.defvjp(fwd_token_losses, bwd_token_losses)


def _by_vocabulary(step, carry, weights, bias, chunks):
    """Return the carry after step(carry, start, columns of weights, their bias) of every chunk of columns."""
    step = jax.checkpoint(step)
    if chunks == 1:
        return step(carry, 0, weights, bias)
    size, left_over = divmod(weights.shape[1], chunks)

    def chunk(carry, start, size):
        parts = (a if a is None else lax.dynamic_slice_in_dim(a, start, size, a.ndim - 1) for a in (weights, bias))
        return step(carry, start, *parts)

    carry, _ = lax.scan(lambda carry, i: (chunk(carry, i * size, size), None), carry, jnp.arange(chunks))
    return chunk(carry, chunks * size, left_over) if left_over else carry


# ------------------------------------------------------------------------------------------------------------- records


def reference(x, labels, weights, bias=None, *, label_smoothing=0.0, logits_soft_cap=None, z_loss=0.0, **options):
    counted = labels != options.get("ignore_index", -100)
    dtype = _dtype(x, weights, bias)
    z = jnp.einsum("...d,dv->...v", jnp.where(counted[..., None], x, 0).astype(dtype), weights.astype(dtype))
    z = z if bias is None else z + jnp.broadcast_to(bias, z.shape).astype(dtype)
    logits = z if logits_soft_cap is None else logits_soft_cap * jnp.tanh(z / logits_soft_cap)
    largest = lax.stop_gradient(jnp.max(logits, -1, keepdims=True))
    shifted = logits - largest
    log_s = jnp.log(jnp.sum(jnp.exp(shifted), -1, keepdims=True))
    is_label = labels.astype(jnp.int32)[..., None] % logits.shape[-1] == lax.broadcasted_iota(
        jnp.int32, logits.shape, logits.ndim - 1
    )
    loss = jnp.sum(jnp.where(is_label, log_s - shifted, 0), -1) * (1 - label_smoothing)
    if label_smoothing:
        loss += jnp.mean(log_s - shifted, -1) * label_smoothing
    loss = jnp.where(counted, loss + z_loss * jnp.squeeze(largest + log_s, -1) ** 2, 0)
    if options.get("reduction", "sum") in ("none", None):
        return loss
    return jnp.sum(loss) / (jnp.maximum(1, jnp.sum(counted)) if options.get("reduction") == "mean" else 1)


def by_optax(x, labels, weights, bias=None, *, reduction="sum", **options):
    logits = x @ weights if bias is None else x @ weights + bias
    loss = optax.softmax_cross_entropy_with_integer_labels(upcast(logits), labels)
    return loss if reduction in ("none", None) else getattr(jnp, reduction)(loss)


def jacobian(x, labels, weights, bias=None, **options):
    d = jax.nn.softmax(x @ weights) - jax.nn.one_hot(labels, weights.shape[1], dtype=x.dtype)
    return Dense((weights @ d)[None, :]), None, None


def some_ignored(rng, shape, dims):
    """Return labels of v classes, the first of each row ignored."""
    labels = rng.integers(-dims["v"], dims["v"], shape, dtype=np.int32)
    labels[..., :1] = -100
    return labels


def _tails(t):
    logits, y, rest = saturating(t)
    x, weights = np.stack([t, np.ones_like(t)], 1), np.array([[1, 0, 0], [0, 0, -1.5]])  # x @ weights are the logits
    d = np.where(np.eye(3)[0], -rest, y)
    assert (x @ weights == logits).all()
    return Tail((x, np.zeros(t.shape, np.int32), weights), np.ones(()), (d @ weights.T, x.T @ d))


_ARRAYS = ("b d", Input("b", index_below("v")), "d v")
_SIZES = {"b": 3, "d": 5, "v": 7}
_ROW, _MANY = [[1.0, 2.0]], np.linspace(-1, 1, 600).reshape(2, 300)
_IGNORED = ("b c d", Input("b c", some_ignored), "d v", "v")
_LARGE = {"b": 4096, "d": 512, "v": 32768}

RULES = (
    Rule(
        fn=linear_softmax_cross_entropy,
        reference=reference,
        baselines={"optax on x @ weights": by_optax},
        cases=(
            Case(_ARRAYS, _SIZES),
            Case((*_ARRAYS, "v"), {"b": 131, "d": 3, "v": 5}, {"chunk_bytes": 64 * 20, "reduction": "mean"}),
            Case((*_ARRAYS, "v"), _SIZES, {"chunk_bytes": 24, "reduction": "none"}),
            Case(
                _IGNORED,
                {"b": 2, "c": 5, "d": 3, "v": 7},
                {"label_smoothing": 0.25, "z_loss": 0.125, "logits_soft_cap": 2.0, "reduction": "mean"},
            ),
            Case(
                _IGNORED,
                {"b": 2, "c": 3, "d": 5, "v": 11},
                {"label_smoothing": 0.25, "z_loss": 0.125, "logits_soft_cap": 2.0, "chunk_bytes": 24},
            ),
            Case(("d", Input("", index_below("v")), "d v"), {"d": 5, "v": 7}, {"reduction": None}),
        ),
        edges=(
            Edge("a perfect and a hopeless fit", ([[1e4, 0.0], [1e4, 0.0]], np.array([0, 1]), np.eye(2))),
            Edge("one class", ([[3.0, 1.0]], np.array([0]), [[1.0], [2.0]])),
            Edge("a class excluded by a bias of -inf", (_ROW, np.array([0]), np.eye(2), [0.5, float("-inf")])),
            Edge("a negative label of few bits, of many classes", (_ROW, np.array([-101], np.int8), _MANY)),
            Edge("a token ignored, of NaN", ([[1.0, 2.0], [np.nan, 0.0]], np.array([1, -100]), np.eye(2))),
            Edge("all tokens ignored", (_ROW, np.array([-100]), np.eye(2)), {"reduction": "mean"}),
            Edge("a capped logit", ([[9.0, -1.0]], np.array([1]), np.eye(2)), {"logits_soft_cap": 1.0}),
            Edge("no token", (np.zeros((0, 2)), np.zeros(0, np.int32), np.eye(2)), {"reduction": "mean"}),
            Edge("no token, its losses", (np.zeros((0, 2)), np.zeros(0, np.int32), np.eye(2)), {"reduction": "none"}),
        ),
        bench=(Case(_ARRAYS, _LARGE), Case(_ARRAYS, {**_LARGE, "v": 65536})),
        residual_bytes=lambda b, d, v: 4 * (b * d + d * v),
        jacobian=jacobian,
        reason="the logits exist a chunk at a time, and none are kept",
        gains=(Gain("kept bytes", 0.13), Gain("scratch bytes", 0.1), Gain("error", 1e-4)),
        source="Example 2.6",
        tails=_tails,
    ),
)
