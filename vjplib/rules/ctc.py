"""Connectionist temporal classification: the loss of a sequence of labels whose places in time are not known."""

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, Shaped

from vjplib.compat import auto_sharded, custom_vjp, is_symbolic, varying_like
from vjplib.precision import compute_dtype, upcast
from vjplib.rule import Case, Edge, Gain, Input, Rule, Tail, index_below
from vjplib.rules._arguments import as_array, as_floating, as_number, by_rule
from vjplib.rules._cotangents import aval_token, like_primal
from vjplib.rules.softmax import reference_log_softmax, saturating

BLOCK = 32  # frames: 16 and 64 take as long
NEVER = -1e30  # the logarithm of 0: finite, so that differences are not NaN
IMPOSSIBLE = 1e29  # a loss above this has a factor of 0


class _Options(NamedTuple):
    """The class of the blank, and the logarithm of the probability of a forbidden step, finite."""

    blank_id: int
    log_epsilon: float


def ctc_loss(
    logits: Float[ArrayLike, "*b t k"],
    logit_paddings: Shaped[ArrayLike, "*b t"],
    labels: Int[ArrayLike, "*b n"],
    label_paddings: Shaped[ArrayLike, "*b n"],
    *,
    blank_id: int = 0,
    log_epsilon: float = -1e5,
) -> Float[Array, "*b"]:
    """-log sum_a prod_t softmax(logits_t)_{a_t}, over the alignments a of frames that spell labels.

    An alignment has a class for each frame. It spells the labels that are left when each run of equal classes is
    written once and blanks are dropped; so a blank must lie between two equal labels.

    Args:
        logits: (*b, t, k), floating: unnormalised log probabilities of k classes, with any batch axes.
        logit_paddings: (*b, t), numbers or booleans: 1 for frames to leave out, 0 for others. More than 1/2 is 1.
        labels: (*b, n), integers: classes, in [0, k).
        label_paddings: (*b, n), numbers or booleans: 1 for labels to leave out, which must be the last of their row, 0
            for others. As in optax only their number counts.
        blank_id: the class of the blank, in [0, k).
        log_epsilon: the logarithm of the probability of a forbidden step, below 0: to start elsewhere than before the
            first label, or to go from a label to an equal one. -inf forbids these altogether.

    Returns:
        (*b,), at least 0 but for rounding, in float32, or in logits' dtype where that is wider. Half precision is
        computed in float32. Without labels it is the loss of blanks alone, without frames or labels 0.

        If the frames are too few for the labels, no alignment spells them. Then the loss is about -log_epsilon, as in
        optax, and its gradient that of the alignments with fewest forbidden steps. To leave such rows out, compare the
        loss with -log_epsilon / 2, or pass log_epsilon=-inf: then the loss is inf and the cotangent 0.

        A logit of -inf excludes its class. NaN, +inf or a frame of -inf alone make the loss and the cotangent of that
        row NaN, and so does a label out of range, unless they are padded: a padded frame may hold anything, and has
        cotangent 0. Components of the cotangent keep their relative accuracy where a class is almost certain; a loss
        below the rounding error of 1 is 0. Paddings select, so they have no derivative: their cotangent is 0, where
        that of optax is a difference of logarithms before and after a frame.

    Raises:
        TypeError: logits are not floating, labels are not integers, or an option is not a number.
        ValueError: the shapes do not fit, there is no class, or an option is out of its range.

    Example:
        >>> frames, labels = jnp.zeros((2, 3)), jnp.array([1])  # of the 9 alignments, 11, 01 and 10 spell 1
        >>> round(float(ctc_loss(frames, jnp.zeros(2), labels, jnp.zeros(1))), 6)  # log 3
        1.098612

    Source:
        Graves, Fernandez, Gomez and Schmidhuber (2006). The signature and the value are those of `optax.ctc_loss`.
    """
    logits, labels = as_floating("logits", logits), as_array("labels", labels)
    paddings = as_array("logit_paddings", logit_paddings), as_array("label_paddings", label_paddings)
    _require_shapes(logits, labels, *paddings)
    classes = logits.shape[-1]
    is_class = lambda n: n.is_integer() and n >= 0 and (is_symbolic(classes) or n < classes)  # noqa: E731
    blank = as_number("blank_id", blank_id, f"a class in [0, {classes})", is_class)
    epsilon = as_number("log_epsilon", log_epsilon, "below 0", lambda n: n < 0)
    counted, given = (padding.astype(jnp.float32) <= 0.5 for padding in paddings)
    lengths = jnp.sum(given, -1, dtype=jnp.int32)
    options = _Options(int(blank), max(epsilon, NEVER))

    def loss(counted, labels, lengths, logits):
        return _ctc_loss(logits, counted, labels, lengths, options)

    core = auto_sharded(loss, jax.typeof(lengths))
    incumbent = partial(reference, logit_paddings=~counted, labels=labels, label_paddings=~given)
    return by_rule(partial(core, counted, labels, lengths), incumbent, logits=logits)


def _require_shapes(logits, labels, logit_paddings, label_paddings):
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise TypeError(f"labels must be integers, got {labels.dtype} of shape {labels.shape}")
    if logits.ndim < 2 or logits.shape[-1] == 0:
        raise ValueError(f"logits must have shape (..., t, k) with at least one class, got {logits.shape}")
    if labels.shape[:-1] != logits.shape[:-2] or labels.ndim != logits.ndim - 1:
        wanted = "the batch axes of logits and one more"
        raise ValueError(f"labels must have {wanted}, got {labels.shape} and logits {logits.shape}")
    if logit_paddings.shape != logits.shape[:-1]:
        wanted = "the shape of logits without their last axis"
        raise ValueError(f"logit_paddings must have {wanted}, got {logit_paddings.shape} and logits {logits.shape}")
    if label_paddings.shape != labels.shape:
        wanted = "the shape of labels"
        raise ValueError(f"label_paddings must have {wanted}, got {label_paddings.shape} and labels {labels.shape}")


# ------------------------------------------------------------------------------------------------ states, and one frame


class _States(NamedTuple):
    """The logarithm of a number for each state in which an alignment can be after a frame."""

    blank: Any  # (*b, n + 1): i labels have been spelt, and the frame is a blank
    label: Any  # (*b, n): the frame is label i

    @property
    def largest(self) -> Any:
        """The largest logarithm of each row, (*b, 1)."""
        return lax.stop_gradient(jnp.maximum(_largest(self.blank), _largest(self.label)))


class _Frames(NamedTuple):
    """A block of frames, time first, or one frame."""

    log_y: Any  # (l, *b, k): log-softmax of the logits
    largest: Any  # (l, *b, 1): its largest number at the classes of states
    states: _States  # (l, *b, 1) and (l, *b, n): that of each state, less the largest
    counted: Any  # (l, *b, 1)


class _Lattice(NamedTuple):
    """The arguments of a call, and what all its frames share."""

    logits: Any
    counted: Any  # (*b, t)
    lengths: Any  # (*b, 1)
    is_class: Any  # (*b, n, k), 1 where the label is the class
    known: Any  # (*b, n): the label is a class
    repeated: Any  # (*b, n + 1): log_epsilon where labels i - 1 and i are equal, else 0
    options: _Options

    @classmethod
    def of(cls, logits, counted, labels, lengths, options) -> "_Lattice":
        """Return the lattice of the arguments of the rule."""
        dtype, classes = compute_dtype(logits.dtype), logits.shape[-1]
        if jnp.iinfo(labels.dtype).bits < 32:  # int8 cannot count 300 classes
            labels = labels.astype(jnp.int32)
        known = (labels >= 0) & (labels < classes)
        labels = labels.astype(jnp.int32)
        is_class = labels[..., None] == _count(labels.ndim + 1, classes)
        repeated = jnp.where(labels[..., 1:] == labels[..., :-1], options.log_epsilon, 0).astype(dtype)
        return cls(
            logits,
            counted,
            lengths[..., None],
            is_class.astype(dtype),
            known,
            jnp.concatenate(
                [jnp.zeros((*labels.shape[:-1], 1), dtype), repeated, jnp.zeros_like(labels[..., :1], dtype)], -1
            ),
            options,
        )

    def varying(self, tree):
        """Return arrays that are to be carried from frame to frame."""
        return jax.tree.map(lambda a: varying_like(a, self.logits, self.counted, self.lengths, self.known), tree)

    @property
    def before(self) -> _States:
        """The states before the first frame: no label has been spelt, or against the rules any."""
        i, epsilon = _count(self.known.ndim, self.known.shape[-1] + 1), self.options.log_epsilon
        blank = jnp.where(i == 0, 0.0, jnp.where(i <= self.lengths, epsilon, NEVER))
        label = jnp.where(i[..., :-1] < self.lengths, epsilon, NEVER)
        return self.varying(_States(*(a.astype(self.repeated.dtype) for a in (blank, label))))

    @property
    def after(self) -> _States:
        """The states after the last frame: all labels have been spelt."""
        i = _count(self.known.ndim, self.known.shape[-1] + 1)
        blank, label = (jnp.where(a == self.lengths, 0.0, NEVER).astype(self.repeated.dtype) for a in (i, i[..., 1:]))
        return self.varying(_States(blank, label))

    def blocks(self) -> tuple[Any, Any]:
        """Return the number of frames in a block, and of blocks; the last one begins earlier where they do not fit."""
        t = self.logits.shape[-2]
        if is_symbolic(t):
            return t, 1
        size = min(t, BLOCK)
        return size, -(-t // max(1, size))

    def frames(self, number) -> _Frames:
        """Return a block of frames; those of the block before it count as padded."""
        size, _ = self.blocks()
        t = self.logits.shape[-2]
        start = jnp.minimum(number * size, t - size)
        logits = jnp.moveaxis(lax.dynamic_slice_in_dim(self.logits, start, size, self.logits.ndim - 2), -2, 0)
        counted = jnp.moveaxis(lax.dynamic_slice_in_dim(self.counted, start, size, self.counted.ndim - 1), -1, 0)
        own = start + jnp.arange(size) >= number * size
        counted = (counted & own.reshape(-1, *(1,) * (counted.ndim - 1)))[..., None]
        log_y = jax.nn.log_softmax(jnp.where(counted, upcast(logits), 0))  # 0, for NaN times 0 is NaN in derivatives
        label = _product("l...k,...nk->l...n", jnp.maximum(log_y, NEVER), self.is_class)
        label = jnp.where(self.known[None], label, jnp.nan)
        is_given = _count(self.known.ndim, self.known.shape[-1]) < self.lengths
        label = jnp.where(is_given[None], label, NEVER)
        blank = jnp.maximum(log_y[..., self.options.blank_id, None], NEVER)
        largest = _States(blank, label).largest
        return _Frames(log_y, largest, _States(blank - largest, label - largest), counted)


def _count(ndim, size):
    """Return 0, 1, ... along the last of ndim axes, the others of size 1."""
    return lax.broadcasted_iota(jnp.int32, (*(1,) * (ndim - 1), size), ndim - 1)


def _largest(logs):
    return jnp.max(logs, -1, keepdims=True, initial=NEVER)


def _log_sum(*logs):
    """Return the logarithm of the sum of exponentials; selected, not a maximum, so that derivatives hold at ties."""
    largest, others = logs[0], []
    for a in logs[1:]:
        others.append(jnp.where(largest >= a, a, largest))
        largest = jnp.where(largest >= a, largest, a)
    return largest + jnp.log(sum((jnp.exp(a - largest) for a in others), 1))


_product = partial(jnp.einsum, precision=lax.Precision.HIGHEST)


def _forward(lattice, alpha, frame):
    """Return alpha after a frame."""
    earlier = _pad(alpha.label, (1, 0))  # the label before
    blank = _log_sum(alpha.blank, earlier + _twice(lattice)) + frame.states.blank
    label = _log_sum(alpha.blank[..., :-1], earlier[..., :-1] + lattice.repeated[..., :-1], alpha.label)
    return _step(_States(blank, label + frame.states.label), alpha, frame)


def _backward(lattice, beta, frame):
    """Return beta before a frame."""
    through = _States(*(b + y for b, y in zip(beta, frame.states, strict=True)))
    later = _pad(through.label, (0, 1))  # the label after
    blank = _log_sum(through.blank, later)
    label = _log_sum(
        through.blank[..., 1:] + _twice(lattice), later[..., 1:] + lattice.repeated[..., 1:], through.label
    )
    return _step(_States(blank, label), beta, frame)


def _pad(logs, by):
    return jnp.pad(logs, [(0, 0)] * (logs.ndim - 1) + [by], constant_values=NEVER)


def _step(states, before, frame):
    """Return the states, or where the frame is padded those before."""
    return jax.tree.map(partial(jnp.where, frame.counted), states, before)


def _twice(lattice):
    """Return the logarithm of the ways from a label to a blank: optax has two, one of them against the rules."""
    return math.log1p(math.exp(lattice.options.log_epsilon))


# ---------------------------------------------------------------------------------------------------------------- rule


@partial(custom_vjp, nondiff_argnames=("options",))
def _ctc_loss(logits, counted, labels, lengths, options) -> jax.Array:
    return _loss(_Lattice.of(logits, counted, labels, lengths, options))[0]


def fwd(logits, counted, labels, lengths, options):
    lattice = _Lattice.of(logits, counted, labels, lengths, options)
    loss, *found = _loss(lattice)
    lattice = lattice._replace(counted=counted & ~(loss > IMPOSSIBLE)[..., None])
    return loss, (_gradient(lattice, *found).astype(_kept_dtype(logits.dtype)), aval_token(logits))


def _kept_dtype(dtype):
    """Return the dtype of a gradient that is kept: float16 has too short a range."""
    return dtype if dtype == jnp.bfloat16 else compute_dtype(dtype)


def _loss(lattice):
    """Return the loss, alpha before each block, what was subtracted from it after, and log p less all subtractions."""

    def block(alpha, number):
        frames = lattice.frames(number)
        reached, _ = lax.scan(lambda alpha, frame: (_forward(lattice, alpha, frame), None), alpha, frames)
        shift = reached.largest
        subtracted = jnp.sum(jnp.where(frames.counted, frames.largest, 0), 0) + shift
        return jax.tree.map(lambda a: a - shift, reached), (alpha, shift, subtracted)

    alpha, (starts, shifts, subtracted) = lax.scan(block, lattice.before, jnp.arange(lattice.blocks()[1]))
    logs = _States(*(a + b for a, b in zip(alpha, lattice.after, strict=True)))
    shift = logs.largest
    log_p = shift + jnp.log(sum(jnp.sum(jnp.exp(a - shift), -1, keepdims=True) for a in logs))
    loss = -(jnp.sum(subtracted, 0) + log_p)[..., 0]
    return jnp.where(loss > IMPOSSIBLE, jnp.inf, loss), starts, shifts, log_p


def _gradient(lattice, starts, shifts, log_p):
    """Return the derivative of the loss in the logits."""
    size, blocks = lattice.blocks()
    classes = _count(lattice.logits.ndim, lattice.logits.shape[-1])
    is_blank = (classes == lattice.options.blank_id).astype(log_p.dtype)

    def block(carry, given):
        (beta, gradient), (number, alpha, shift) = carry, given
        frames = lattice.frames(number)

        def forward(alpha, frame):
            alpha = _forward(lattice, alpha, frame)
            return alpha, alpha

        def backward(beta, given):
            frame, alpha = given
            share = _States(*(jnp.exp(a + b) for a, b in zip(alpha, beta, strict=True)))
            return _backward(lattice, beta, frame), share

        beta = jax.tree.map(lambda b: b - shift, beta)
        beta, (blank, label) = lax.scan(backward, beta, (frames, lax.scan(forward, alpha, frames)[1]), reverse=True)
        blank = jnp.sum(blank, -1, keepdims=True)
        total = blank + jnp.sum(label, -1, keepdims=True)
        posterior = (blank * is_blank + _product("l...n,...nk->l...k", label, lattice.is_class)) / total
        y = jnp.exp(frames.log_y)
        d = y - posterior
        d = jnp.moveaxis(jnp.where(frames.counted, d - y * jnp.sum(d, -1, keepdims=True), 0), 0, -2)
        start = jnp.minimum(number * size, lattice.logits.shape[-2] - size)
        return (beta, lax.dynamic_update_slice_in_dim(gradient, d, start, d.ndim - 2)), None

    beta = _States(*(a - log_p for a in lattice.after))
    gradient = lattice.varying(jnp.zeros(lattice.logits.shape, log_p.dtype))
    (_, gradient), _ = lax.scan(block, (beta, gradient), (jnp.arange(blocks), starts, shifts), reverse=True)
    return gradient


# An alignment is a path through states, one a frame: after i labels a blank, or label i. With y = softmax(x) of each
# frame, p the sum over paths of the product of y at their classes, and w(r, s) the weight of a step, 0 or 1,
#   alpha_t(s) = sum_r alpha_t-1(r) w(r, s) y_t(s),   beta_t-1(r) = sum_s w(r, s) y_t(s) beta_t(s)
# sum the paths up to frame t and those from there on, and alpha_t(s) beta_t(s) the paths that are in s at t. Each path
# is in one state at each frame: p = sum_s alpha_t(s) beta_t(s), whatever t. The product of a path has one factor y_t,
# so with l = -log p
#   dl/dlog y_t(k) = -q_t(k),   q_t(k) = sum over the states s of class k of alpha_t(s) beta_t(s) / p
# the posterior of the class. As d log y_j / dx_k = [j = k] - y_k, and q_t sums to 1 over classes,
#   dl/dx_t = y_t - q_t,   g^T J = g (y_t - q_t)
# The Jacobian of the softmax has cancelled. A padded frame passes alpha and beta on, and has no part in l.
#
# Products of thousands of y underflow, so alpha and beta are held as logarithms. But logarithms of thousands have few
# digits after the point, and q is the exponential of their sum. So the largest of log y_t at the states is subtracted
# from each frame, and after each block of frames the largest of log alpha from it, and the same number from log beta:
# alpha beta remains a share of p. q_t is divided by its own sum. d = y - q loses its digits where both round to 1; as d
# sums to 0, d - y sum(d) is d without that error, as in the losses.
# The weight of a forbidden step is exp(log_epsilon), as in optax, where besides a path goes from a label to a blank in
# two ways, of weights 1 and exp(log_epsilon).
#
# As g is one number a row, the forward forms d with the loss and keeps it alone, and the backward is one pass. alpha is
# stored only before each block, and computed again within it as beta arrives. Bytes and times of loss and gradient, in
# float32, of (b, t, n, k) = (16, 512, 64, 64) and (8, 2048, 128, 32):
#   kept                            MB kept       MB temporary   ms
#   d                               2.1 and  2.1   1.5 and  1.6  17 and  47   this rule
#   logits, alpha before blocks     2.2 and  2.6   1.5 and  1.6  18 and  47
#   logits                          2.1 and  2.1   1.5 and  1.6  23 and  63   alpha twice more, not once
#   logits, alpha of each frame     6.3 and 19.0  13.0 and 52.9  18 and 144   fresh memory costs more than alpha
#   by autodiff of optax.ctc_loss  15.1 and 52.8  23.7 and 95.0  17 and 160
# Small calls are slower than optax's: (32, 50, 10, 40) 3.3 ms in place of 1.2, (4, 200, 20, 1000) 6.1 in place of 2.8.
def bwd(options, res, g):
    gradient, logits = res
    return like_primal(g[..., None, None] * upcast(gradient), logits), None, None, None


_ctc_loss.defvjp(fwd, bwd)


# ------------------------------------------------------------------------------------------------------------- records


def reference(logits, logit_paddings, labels, label_paddings, *, blank_id=0, log_epsilon=-1e5):
    """Return the loss by the matrix of weights of steps among 2 n + 1 states: a blank, a label, ..., a blank."""
    counted, given, labels = logit_paddings <= 0.5, label_paddings <= 0.5, labels.astype(jnp.int32)
    epsilon, lengths = max(log_epsilon, NEVER), jnp.sum(given, -1, keepdims=True)
    blanks = jnp.full((*labels.shape[:-1], labels.shape[-1] + 1), blank_id, labels.dtype)
    pairs = jnp.stack([blanks[..., 1:], labels], -1).reshape(*labels.shape[:-1], 2 * labels.shape[-1])
    classes = jnp.concatenate([pairs, blanks[..., :1]], -1)
    log_y = reference_log_softmax(jnp.where(counted[..., None], upcast(logits), 0))
    unknown = (classes < 0) | (classes >= logits.shape[-1])
    picked = jnp.take_along_axis(log_y, jnp.where(unknown, 0, classes)[..., None, :], -1)
    s = _count(classes.ndim, classes.shape[-1])
    beyond = s > 2 * lengths
    picked = jnp.where((unknown & ~beyond)[..., None, :], jnp.nan, jnp.maximum(picked, NEVER))
    s, r = s[..., None, :], s[..., :, None]
    skips = jnp.where(classes[..., :, None] == classes[..., None, :], epsilon, 0.0)
    steps = jnp.where((s == r + 2) & (s % 2 == 1), skips, NEVER)
    to_blank = jnp.where((s == r + 1) & (s % 2 == 0), float(np.logaddexp(0, epsilon)), 0.0)
    steps = jnp.where((s == r) | (s == r + 1), to_blank, steps).astype(log_y.dtype)

    def frame(alpha, now):
        picked, counted = now
        after = _log_sum_over(alpha[..., :, None] + steps, -2) + picked
        return jnp.where(counted[..., None], after, alpha), None

    s = s[..., 0, :]
    alpha = jnp.where(s == 0, 0.0, jnp.where(beyond, NEVER, epsilon)).astype(log_y.dtype)
    alpha, _ = lax.scan(frame, alpha, (jnp.moveaxis(picked, -2, 0), jnp.moveaxis(counted, -1, 0)))
    loss = -_log_sum_over(jnp.where((s == 2 * lengths) | (s == 2 * lengths - 1), alpha, NEVER), -1)
    return jnp.where(loss > IMPOSSIBLE, jnp.inf, loss)


def _log_sum_over(logs, axis):
    largest = lax.stop_gradient(jnp.max(logs, axis, keepdims=True))
    return jnp.squeeze(largest, axis) + jnp.log(jnp.sum(jnp.exp(logs - largest), axis))


def last_frames(rng, shape, dims):
    """Return booleans, True for some of the last frames of each row; enough others are left to spell n labels."""
    t = shape[-1]
    return np.arange(t) >= rng.integers(min(t, 2 * dims["n"]), t + 1, shape[:-1])[..., None]


def last_labels(rng, shape, dims):
    """Return 1 for some of the last labels of each row, else 0."""
    return (np.arange(shape[-1]) >= rng.integers(0, shape[-1] + 1, shape[:-1])[..., None]).astype(np.int32)


def _tails(t):
    x, y, rest = saturating(t)
    d, order = np.where(np.eye(3)[0], -rest, y), [1, 0, 2]  # one frame and one label: class 1
    no = np.zeros((len(t), 1), bool)
    return Tail((x[:, None, order], no, np.ones((len(t), 1), np.int32), no), np.ones(len(t)), (d[:, None, order],))


def _inputs(batch):
    frames, labels = Input(f"{batch} t", last_frames), Input(f"{batch} n", index_below("k"))
    return (f"{batch} t k", frames, labels, Input(f"{batch} n", last_labels))


def _enough(t, n, **_):
    return t >= 2 * n


_SIZES = {"b": 3, "t": 11, "k": 5, "n": 3}
_X = np.sin(np.arange(12.0)).reshape(1, 4, 3)
_ALL, _NO = np.zeros((1, 4)), np.zeros((1, 2))
_CERTAIN = 300 * np.eye(3)[[0, 1, 1, 0]]


def _rows(*rows):
    """Return the arguments of rows, each of logits, how many frames count, labels, and how many of these count."""
    x, frames, labels, lengths = zip(*rows, strict=True)
    paddings, label_paddings = (
        (np.arange(size) >= np.array(count)[:, None]).astype(float) for size, count in ((4, frames), (2, lengths))
    )
    return np.stack(x), paddings, np.array(labels), label_paddings


RULES = (
    Rule(
        fn=ctc_loss,
        reference=reference,
        baselines={"optax.ctc_loss": optax.ctc_loss},
        cases=(
            Case(_inputs("b"), _SIZES, valid=_enough),
            Case(_inputs("b"), _SIZES | {"t": 2 * BLOCK + 3}, {"blank_id": 4}, fixed=("t", "k"), growth=False),
            Case(_inputs("a b"), _SIZES | {"a": 2}, valid=_enough, growth=False),
            Case(_inputs(""), _SIZES, {"log_epsilon": -2.0}, growth=False),
        ),
        edges=(
            Edge(
                "equal labels in as many frames as they need; padded labels; a certain row, a hopeless one; "
                "a logit of -inf; a padded frame of NaN; a label out of range",
                _rows(
                    (_X[0], 3, [1, 1], 2),
                    (_X[0], 4, [1, -5], 0),
                    (_CERTAIN, 4, [1, 0], 1),
                    (_CERTAIN, 4, [2, 2], 2),
                    (np.where(np.eye(4, 3) > 0, -np.inf, _X[0]), 4, [1, 2], 2),
                    (np.where(np.eye(4, 3, -3) > 0, np.nan, _X[0]), 3, [1, 2], 2),
                    (_X[0], 4, [1, 3], 2),
                ),
            ),
            Edge(
                "frames all padded; fewer than labels; too few between equal labels",
                _rows((_X[0], 0, [1, 2], 2), (_X[0], 1, [1, 2], 2), (_X[0], 2, [1, 1], 2)),
                {"log_epsilon": -50.0},
            ),
            Edge(
                "too few frames, or a class that no frame has, where nothing else is possible",
                _rows((_X[0], 1, [1, 2], 2), (_X[0] + np.array([0, -np.inf, 0]), 4, [1, 2], 2), (_X[0], 4, [1, 2], 2)),
                {"log_epsilon": -np.inf},
            ),
            Edge("one class, one frame", (_X[:, :1, :1], _ALL[:, :1], np.array([[0]]), _NO[:, :1])),
            Edge("no label", (_X, _ALL, np.zeros((1, 0), np.int32), _NO[:, :0])),
            Edge("no frame", (_X[:, :0], _ALL[:, :0], np.array([[1, 2]]), _NO), {"log_epsilon": -50.0}),
            Edge("no row", (_X[:0], _ALL[:0], np.zeros((0, 2), np.int32), _NO[:0])),
        ),
        bench=(
            Case(_inputs("b"), {"b": 16, "t": 512, "k": 64, "n": 64}),
            Case(_inputs("b"), {"b": 8, "t": 2048, "k": 32, "n": 128}),
        ),
        residual_bytes=lambda b, t, k, n: 4 * b * t * k,
        whole_array=True,
        reason="lighter: keeps its gradient, not what every frame reached; right to 8e-05, autodiff to 1e-02",
        gains=(Gain("kept bytes", 0.14), Gain("scratch bytes", 0.05, "b=8 t=2048 k=32 n=128")),
        source="Graves et al. (2006)",
        tails=_tails,
    ),
)
