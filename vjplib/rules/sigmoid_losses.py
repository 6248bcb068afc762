"""Losses of binary classifiers, each class with a logit of its own, with optax's signatures."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Shaped

from vjplib.compat import custom_vjp
from vjplib.jacobians import Diagonal
from vjplib.precision import upcast
from vjplib.rule import Case, Edge, Gain, Input, Rule, Tail
from vjplib.rules._arguments import as_array, as_floating, broadcast_shapes, by_rule
from vjplib.rules._cotangents import like_primal

# ---------------------------------------------------------------------------------------- sigmoid_binary_cross_entropy


def sigmoid_binary_cross_entropy(
    logits: Float[ArrayLike, "..."], labels: Shaped[ArrayLike, "..."]
) -> Float[Array, "..."]:
    """-p log s(x) - (1 - p) log s(-x), elementwise, with s the sigmoid; its derivative in x is s(x) - p.

    Args:
        logits: x, any shape, floating: unnormalised log probabilities.
        labels: p, any dtype and any shape that broadcasts with logits': probabilities, or 0 and 1. They are converted
            to logits' dtype, as in optax.

    Returns:
        The broadcast shape, in logits' dtype; in [0, inf] for labels in [0, 1]. A logit of -inf at a label of 0, or of
        inf at 1, gives 0, where optax gives NaN; other infinite logits give inf. The loss and its derivative in x keep
        their relative accuracy however certain a label of 0 or 1 is.

    Raises:
        TypeError: logits are not floating, as in optax, or labels are not numbers.
        ValueError: logits and labels do not broadcast.

    Example:
        >>> jax.grad(sigmoid_binary_cross_entropy)(0.0, 1).item()
        -0.5

    Source:
        The logistic loss; sigmoid is Example 2.5 of the lecture. The signature is that of
        `optax.sigmoid_binary_cross_entropy`.
    """
    return by_rule(_binary_cross_entropy, optax.sigmoid_binary_cross_entropy, **_fitting(logits, labels))


def _fitting(logits, labels):
    """Return logits and labels by name, labels in the dtype of logits, if they broadcast."""
    logits, labels = as_floating("logits", logits), as_array("labels", labels)
    broadcast_shapes(logits=logits, labels=labels)
    return {"logits": logits, "labels": labels.astype(logits.dtype)}


@custom_vjp
def _binary_cross_entropy(logits, labels) -> jax.Array:
    return fwd_binary_cross_entropy(logits, labels)[0]


def fwd_binary_cross_entropy(logits, labels):
    size, q, t = _parts(upcast(logits), upcast(labels))
    loss = jnp.where((q == 0) & jnp.isinf(size), 0, size) * q + jnp.log1p(t)
    return loss.astype(logits.dtype), (logits, labels)


# With d log s(x) / dx = s(-x), the loss l = -p log s(x) - (1 - p) log s(-x) has
#   g^T J_x = g ((1 - p) s(x) - p s(-x)),   g^T J_p = -g x
# The first is s(x) - p, which would cancel where s(x) rounds to p = 1; the second is log s(-x) - log s(x).
def bwd_binary_cross_entropy(res, g):
    logits, labels = res
    g, x, p = upcast(g), upcast(logits), upcast(labels)
    dx = g * ((1 - p) * lax.logistic(x) - p * lax.logistic(-x))
    return like_primal(dx, logits), like_primal(-g * x, labels)


_binary_cross_entropy.defvjp(fwd_binary_cross_entropy, bwd_binary_cross_entropy)


def _parts(x, p):
    """Return |x|, q and t = exp(-|x|) of the loss |x| q + log(1 + t); q is 1 - p where x >= 0, else p.

    Where the label is what the sign of x says, q is exactly 0.
    """
    size = jnp.where(x >= 0, x, -x)  # not jnp.abs, whose derivative at 0 is 0
    return size, jnp.where(x >= 0, 1 - p, p), jnp.exp(-size)


def reference_sigmoid_binary_cross_entropy(logits, labels):
    size = jnp.where(logits >= 0, logits, -logits)
    share = jnp.where(logits >= 0, 1 - labels, labels)
    return jnp.where((share == 0) & jnp.isinf(logits), 0, size) * share + jnp.log1p(jnp.exp(-size))


def jacobian_sigmoid_binary_cross_entropy(logits, labels):
    return Diagonal(lax.logistic(logits) - labels), Diagonal(-logits)


# --------------------------------------------------------------------------------------------------- sigmoid_focal_loss


def sigmoid_focal_loss(
    logits: Float[ArrayLike, "..."],
    labels: Shaped[ArrayLike, "..."],
    *,
    alpha: Float[ArrayLike, "..."] | None = None,
    gamma: Float[ArrayLike, "..."] = 2.0,
) -> Float[Array, "..."]:
    """a u^gamma l, elementwise: l the binary cross-entropy and u = (1 - p) s(x) + p s(-x) the error of the sigmoid.

    Args:
        logits: x, any shape, floating: unnormalised log probabilities.
        labels: p, any dtype and any shape that broadcasts with logits': probabilities, or 0 and 1. They are converted
            to logits' dtype, as in optax.
        alpha: the weight of the class 1, in (0, 1): a = alpha p + (1 - alpha) (1 - p). None for a = 1.
        gamma: the exponent, at least 0.

    Returns:
        The broadcast shape of all arguments, in the dtype that logits, alpha and gamma promote to; in [0, inf] for
        labels in [0, 1]. An infinite logit counts as 2^100: it gives 0 where it fits a label of 0 or
        1, and no NaN, as in optax. The loss and its derivative in x keep their relative accuracy however certain a
        label of 0 or 1 is.

    Raises:
        TypeError: logits are not floating, as in optax, or another argument is not of numbers.
        ValueError: the arguments do not broadcast.

    Example:
        >>> round(sigmoid_focal_loss(jnp.array(0.0), 1).item(), 6)  # log(2) / 4
        0.173287

    Source:
        Lin et al., Focal Loss for Dense Object Detection (2017). The signature is that of `optax.sigmoid_focal_loss`.
    """
    arrays = _fitting(logits, labels)
    weights = {"gamma": as_array("gamma", gamma)} | ({} if alpha is None else {"alpha": as_array("alpha", alpha)})
    broadcast_shapes(**arrays, **weights)

    def incumbent(logits, labels, gamma, alpha=None):
        return optax.sigmoid_focal_loss(logits, labels, alpha=alpha, gamma=gamma)

    return by_rule(_focal_loss, incumbent, **arrays, **weights)


@custom_vjp
def _focal_loss(logits, labels, gamma, alpha=None) -> jax.Array:
    return fwd_focal_loss(logits, labels, gamma, alpha)[0]


def fwd_focal_loss(logits, labels, gamma, alpha):
    p = upcast(labels)
    _, entropy, _, log_u = _focal_terms(logits, p)
    loss = _class_weight(p, alpha) * entropy * jnp.exp(upcast(gamma) * log_u)
    dtype = jnp.result_type(*(a for a in (logits, gamma, alpha) if a is not None))
    return loss.astype(dtype), (logits, labels, gamma, alpha)


# With l the cross-entropy above, w = u^gamma and u = (1 - p) s(x) + p s(-x):
#   du/dx = (1 - 2 p) s(x) s(-x),   du/dp = s(-x) - s(x) = -tanh(x / 2),   dw/du = gamma w / u
# so for the loss a w l
#   g^T J_x = g a w ((1 - p) s(x) - p s(-x) + gamma (l / u) (1 - 2 p) s(x) s(-x))
#   g^T J_p = g w ((2 alpha - 1) l - a (gamma (l / u) tanh(x / 2) + x))
#   g^T J_gamma = g a w l log u,   g^T J_alpha = g w l (2 p - 1)
# The quotient l / u stays finite where both vanish.
def bwd_focal_loss(res, g):
    logits, labels, gamma, alpha = res
    g, p, power = upcast(g), upcast(labels), upcast(gamma)
    x, entropy, quotient, log_u = _focal_terms(logits, p)
    s, s_not, a, w = lax.logistic(x), lax.logistic(-x), _class_weight(p, alpha), jnp.exp(power * log_u)
    dx = g * a * w * ((1 - p) * s - p * s_not + power * (1 - 2 * p) * quotient * s * s_not)
    dp = -a * w * (power * quotient * jnp.tanh(x / 2) + x)
    weighted = g * entropy * w
    dp = g * dp + (0 if alpha is None else (2 * upcast(alpha) - 1) * weighted)
    return (
        like_primal(dx, logits),
        like_primal(dp, labels),
        like_primal(a * weighted * log_u, gamma),
        None if alpha is None else like_primal((2 * p - 1) * weighted, alpha),
    )


_focal_loss.defvjp(fwd_focal_loss, bwd_focal_loss)


def _class_weight(p, alpha):
    return 1 if alpha is None else upcast(alpha) * p + (1 - upcast(alpha)) * (1 - p)


HUGE, TINY = 2.0**100, 2.0**-120  # what an infinite logit counts as, and the least exp(-|x|)


def _focal_terms(logits, p):
    """Return finite logits, the cross-entropy l, l / u and log u, for u = (q + (1 - q) t) / (1 + t).

    The quotient is that of exponentials, for the square of a small u, which its derivative divides by, underflows.
    """
    x = jnp.clip(upcast(logits), -HUGE, HUGE)
    size, q, t = _parts(x, p)
    t = jnp.maximum(t, TINY)
    entropy, log_m = size * q + jnp.log1p(t), jnp.log(q + (1 - q) * t)
    return x, entropy, (1 + t) * jnp.exp(jnp.log(entropy) - log_m), log_m - jnp.log1p(t)


def reference_sigmoid_focal_loss(logits, labels, *, alpha=None, gamma=2.0):
    size = jnp.where(logits >= 0, logits, -logits)
    share = jnp.where(logits >= 0, 1 - labels, labels)
    certain = (share == 0) & jnp.isinf(logits)
    size = jnp.where(certain, 0, size)
    t = jnp.where(certain, 0, jnp.exp(-size))
    error = (share + (1 - share) * t) / (1 + t)
    loss = (size * share + jnp.log1p(t)) * error**gamma
    return loss if alpha is None else loss * (alpha * labels + (1 - alpha) * (1 - labels))


def jacobian_sigmoid_focal_loss(logits, labels, *, alpha=None, gamma=2.0):
    def partial_in(argument):
        f = lambda x, p: reference_sigmoid_focal_loss(x, p, alpha=alpha, gamma=gamma)  # noqa: E731
        return Diagonal(jax.vmap(jax.grad(f, argument))(logits, labels))

    return partial_in(0), partial_in(1)


# ------------------------------------------------------------------------------------------------------------- records


def probability(rng: np.random.Generator, shape: tuple[int, ...], dims: Mapping[str, int]) -> np.ndarray:
    """Return probabilities, a third of them 0 or 1."""
    return np.clip(rng.random(shape) * 1.5 - 0.25, 0, 1)


def _tails_of_binary_cross_entropy(t):
    s, s_not = (np.exp(-np.logaddexp(0, a)) for a in (-t, t))
    return Tail(
        (np.stack([t, t]), np.stack([np.ones_like(t), np.zeros_like(t)])),
        np.ones((2, t.size)),
        (np.stack([-s_not, s]), -np.stack([t, t])),
    )


def _tails_of_focal_loss(t):
    t = t[np.abs(t) < 25]  # float32 has the cube of exp(-25)
    s, s_not, entropy = np.exp(-np.logaddexp(0, -t)), np.exp(-np.logaddexp(0, t)), np.logaddexp(0, -t)
    dx = -(s_not**2) * (s_not + 2 * entropy * s)
    dp = -(s_not**2) * t - 2 * entropy * s_not * np.tanh(t / 2)
    return Tail((t, np.ones_like(t)), np.ones_like(t), (dx, dp))


_P = Input("b n", probability)
_SOFT = Input(
    "b n", lambda rng, shape, dims: rng.uniform(0.1, 0.9, shape)
)  # at 0 and 1 autodiff of optax errs in labels
_SIZES = {"b": 3, "n": 7}
_EDGES: tuple[Any, ...] = (
    Edge("a perfect and a hopeless fit", ([200.0, -200.0, 200.0, -200.0], [1.0, 0.0, 0.0, 1.0])),
    Edge("a logit of 0", ([0.0, 0.0, 0.0], [0.0, 0.5, 1.0])),
    Edge("no element", (np.zeros((0, 2)), np.zeros((0, 2)))),
)

RULES = (
    Rule(
        fn=sigmoid_binary_cross_entropy,
        reference=reference_sigmoid_binary_cross_entropy,
        baselines={"optax.sigmoid_binary_cross_entropy": optax.sigmoid_binary_cross_entropy},
        cases=(
            Case(("b n", _P), _SIZES),
            Case(("b n", Input("n", probability)), _SIZES),
            Case(("", Input("", probability)), {}),
        ),
        edges=_EDGES,
        bench=(Case(("b n", _P), {"b": 1024, "n": 1024}),),
        residual_bytes=lambda b, n: 4 * 2 * b * n,
        jacobian=jacobian_sigmoid_binary_cross_entropy,
        reason="keeps its arguments alone; 0, not NaN, for a logit of -inf at a label of 0",
        gains=(Gain("kept bytes", 0.25), Gain("error", 0.01)),
        source="Example 2.5",
        tails=_tails_of_binary_cross_entropy,
    ),
    Rule(
        fn=sigmoid_focal_loss,
        reference=reference_sigmoid_focal_loss,
        baselines={"optax.sigmoid_focal_loss": optax.sigmoid_focal_loss},
        cases=(
            Case(("b n", _P), _SIZES),
            Case(("b n", Input("n", probability)), _SIZES, {"alpha": 0.25, "gamma": 1.5}),
            Case(("b n", _P), _SIZES, {"gamma": 0.0}),
        ),
        edges=_EDGES,
        bench=(Case(("b n", _SOFT), {"b": 1024, "n": 1024}),),
        residual_bytes=lambda b, n: 4 * 2 * b * n,
        jacobian=jacobian_sigmoid_focal_loss,
        tails=_tails_of_focal_loss,
        domain={"labels": "in [0, 1]"},
        reason="keeps its arguments alone; right at confident and infinite logits, and in labels of 0 and 1",
        gains=(
            Gain("kept bytes", 0.087),
            Gain("time", 0.7),
            Gain("error", 1e-4),
            Gain("error", 1e-4, Edge("infinite logits", ([-np.inf, np.inf], [0.0, 1.0]))),
            Gain("error", 1e-4, Edge("labels of 0 and 1", ([0.5, -1.0], [0.0, 1.0]))),
        ),
        source="Lin et al. (2017)",
    ),
)
