"""Losses of regressions, with optax's signatures."""

import math

import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Shaped

from vjplib.compat import custom_vjp
from vjplib.jacobians import Diagonal
from vjplib.precision import upcast
from vjplib.rule import Case, Edge, Gain, Rule, Tail
from vjplib.rules._arguments import as_array, as_floating, broadcast_shapes, by_rule
from vjplib.rules._cotangents import aval_token, like_primal

# ------------------------------------------------------------------------------------------------------- squared_error


def squared_error(
    predictions: Float[ArrayLike, "..."], targets: Shaped[ArrayLike, "..."] | None = None
) -> Float[Array, "..."]:
    """(predictions - targets)^2, elementwise; its partial derivatives are twice the difference, and minus that.

    Args:
        predictions: any shape, floating.
        targets: any dtype, of the same shape; None means zeros.

    Returns:
        An array of that shape, in the dtype that both promote to, in [0, inf]. For a factor 1/2 see `optax.l2_loss`,
        for a reduction `jnp.mean`. NaN and infinities follow arithmetic.

    Raises:
        TypeError: predictions are not floating, as in optax, or targets are not numbers.
        ValueError: the shapes differ. As in optax they are not broadcast, because (n, 1) against (n,) is a common
            mistake.

    Example:
        >>> import jax
        >>> jax.grad(squared_error)(5.0, 2.0).item()
        6.0

    Source:
        Eq. 1 of the lecture minimises such a loss. The signature is that of `optax.squared_error`.
    """
    predictions = as_floating("predictions", predictions)
    if targets is None:
        return by_rule(lambda predictions: _squared_error(predictions, None), jnp.square, predictions=predictions)
    targets = as_array("targets", targets)
    if targets.shape != predictions.shape:
        raise ValueError(f"targets must have the shape of predictions, got {targets.shape} and {predictions.shape}")
    return by_rule(_squared_error, optax.squared_error, predictions=predictions, targets=targets)


@custom_vjp
def _squared_error(predictions, targets):
    return fwd_squared_error(predictions, targets)[0]


def fwd_squared_error(predictions, targets):
    if targets is None:
        difference = upcast(predictions)
        return jnp.square(difference).astype(predictions.dtype), (difference, aval_token(predictions), None)
    difference, dtype = upcast(predictions) - upcast(targets), jnp.result_type(predictions, targets)
    return jnp.square(difference).astype(dtype), (difference, aval_token(predictions), aval_token(targets))


# With e = p - t: d(e^2)/dp = 2 e and d(e^2)/dt = -2 e. The difference is all that is kept of both.
#   g^T J_p = 2 g * e,   g^T J_t = -2 g * e
def bwd_squared_error(res, g):
    difference, predictions_token, targets_token = res
    d = 2 * upcast(g) * difference
    return like_primal(d, predictions_token), None if targets_token is None else like_primal(-d, targets_token)


_squared_error.defvjp(fwd_squared_error, bwd_squared_error)


def reference_squared_error(predictions, targets=0):
    return (predictions - targets) ** 2


def jacobian_squared_error(predictions, targets=None):
    difference = predictions - (0 if targets is None else targets)
    return (Diagonal(2 * difference), Diagonal(-2 * difference))[: 1 if targets is None else 2]


# ----------------------------------------------------------------------------------------------------------- huber_loss


def huber_loss(
    predictions: Float[ArrayLike, "..."],
    targets: Shaped[ArrayLike, "..."] | None = None,
    *,
    delta: Shaped[ArrayLike, "..."] = 1.0,
) -> Float[Array, "..."]:
    """e^2 / 2 where |e| <= delta, else delta (|e| - delta / 2), with e = predictions - targets, elementwise.

    Args:
        predictions: any shape, floating.
        targets: any dtype and any shape that broadcasts with predictions; None means zeros.
        delta: the error at which the parabola goes over into lines, at least 0; any shape that broadcasts.

    Returns:
        The broadcast shape, in the dtype that all arguments promote to, in [0, inf]. The derivative in predictions is
        e, clipped to [-delta, delta]. An infinite error gives inf, with the derivative delta or -delta; NaN gives NaN.

    Raises:
        TypeError: predictions are not floating, as in optax, or another argument is not of numbers.
        ValueError: the arguments do not broadcast.

    Example:
        >>> import jax
        >>> jax.grad(huber_loss)(5.0, 2.0).item()
        1.0

    Source:
        Huber, Robust Estimation of a Location Parameter (1964). The signature is that of `optax.huber_loss`.
    """
    arrays = _fitting(predictions, targets, delta=delta)

    def incumbent(predictions, delta, targets=None):
        return optax.huber_loss(predictions, targets, delta=delta)

    return by_rule(_huber_loss, incumbent, **arrays)


def _fitting(predictions, targets, **others):
    """Return the arguments as arrays by name, if they broadcast; targets last, if given."""
    arrays = {"predictions": as_floating("predictions", predictions)}
    arrays |= {name: as_array(name, a) for name, a in others.items()}
    arrays |= {} if targets is None else {"targets": as_array("targets", targets)}
    broadcast_shapes(**arrays)
    return arrays


def _error(predictions, targets):
    return upcast(predictions) if targets is None else upcast(predictions) - upcast(targets)


def _tokens(predictions, targets):
    return aval_token(predictions), None if targets is None else aval_token(targets)


@custom_vjp
def _huber_loss(predictions, delta, targets=None):
    return fwd_huber_loss(predictions, delta, targets)[0]


def fwd_huber_loss(predictions, delta, targets):
    e, bound = _error(predictions, targets), upcast(delta)
    size = jnp.abs(e)
    loss = jnp.where(size <= bound, jnp.square(e) / 2, bound * (size - bound / 2))
    dtype = jnp.result_type(*(a for a in (predictions, delta, targets) if a is not None))
    return loss.astype(dtype), (e, delta, *_tokens(predictions, targets))


# With c = clip(e, -delta, delta): the derivative of e^2 / 2 is e = c, that of delta (|e| - delta / 2) in e is
# delta sign(e) = c and in delta |e| - delta. The difference is all that is kept of predictions and targets.
#   g^T J_predictions = g c,   g^T J_targets = -g c,   g^T J_delta = g max(|e| - delta, 0)
def bwd_huber_loss(res, g):
    e, delta, predictions_token, targets_token = res
    g, bound = upcast(g), upcast(delta)
    d = g * jnp.clip(e, -bound, bound)
    return (
        like_primal(d, predictions_token),
        like_primal(g * jnp.maximum(jnp.abs(e) - bound, 0), delta),
        None if targets_token is None else like_primal(-d, targets_token),
    )


_huber_loss.defvjp(fwd_huber_loss, bwd_huber_loss)


def reference_huber_loss(predictions, targets=0.0, *, delta=1.0):
    e = predictions - targets
    size = jnp.where(e >= 0, e, -e)
    return jnp.where(size <= delta, e**2 / 2, delta * (size - delta / 2))


def jacobian_huber_loss(predictions, targets=None, *, delta=1.0):
    c = jnp.clip(predictions - (0 if targets is None else targets), -delta, delta)
    return (Diagonal(c), Diagonal(-c))[: 1 if targets is None else 2]


# ------------------------------------------------------------------------------------------------------------- log_cosh


def log_cosh(
    predictions: Float[ArrayLike, "..."], targets: Shaped[ArrayLike, "..."] | None = None
) -> Float[Array, "..."]:
    """log cosh(e) with e = predictions - targets, elementwise; its derivative in e is tanh(e).

    Args:
        predictions: any shape, floating.
        targets: any dtype and any shape that broadcasts with predictions; None means zeros.

    Returns:
        The broadcast shape, in the dtype that both promote to, in [0, inf]. About e^2 / 2 for small e, to full relative
        accuracy, and |e| - log 2 for large. Infinite errors give inf, with the derivative 1 or -1; NaN gives NaN.

    Raises:
        TypeError: predictions are not floating, as in optax, or targets are not numbers.
        ValueError: predictions and targets do not broadcast.

    Example:
        >>> round(log_cosh(jnp.array(1e-3)).item() * 1e6, 4)  # optax.log_cosh gives 0.5364
        0.5

    Source:
        Chen et al., Log Hyperbolic Cosine Loss Improves Variational Auto-Encoder (2019). The signature is that of
        `optax.log_cosh`.
    """
    return by_rule(_log_cosh, optax.log_cosh, **_fitting(predictions, targets))


@custom_vjp
def _log_cosh(predictions, targets=None):
    return fwd_log_cosh(predictions, targets)[0]


def fwd_log_cosh(predictions, targets):
    e = _error(predictions, targets)
    dtype = jnp.result_type(*(a for a in (predictions, targets) if a is not None))
    return _log_cosh_of(e).astype(dtype), (e, *_tokens(predictions, targets))


def _log_cosh_of(e):
    """Return -log(1 - tanh(e)^2) / 2 where |e| <= 1, for cosh^2 (1 - tanh^2) = 1, else |e| - log 2 + log(1 + e^-2|e|).

    One logarithm serves both, and the tangent is that of the backward.
    """
    size = jnp.abs(e)
    near = size <= 1
    log = jnp.log1p(jnp.where(near, -jnp.square(jnp.tanh(e)), jnp.exp(-2 * size)))
    return jnp.where(near, -log / 2, size + log - math.log(2))


# d log cosh(e) / de = sinh(e) / cosh(e) = tanh(e), which is small where e is and loses no digit:
#   g^T J_predictions = g tanh(e),   g^T J_targets = -g tanh(e)
def bwd_log_cosh(res, g):
    e, predictions_token, targets_token = res
    d = upcast(g) * jnp.tanh(e)
    return like_primal(d, predictions_token), None if targets_token is None else like_primal(-d, targets_token)


_log_cosh.defvjp(fwd_log_cosh, bwd_log_cosh)


def reference_log_cosh(predictions, targets=0.0):
    e = predictions - targets
    near = jnp.clip(e, -1, 1)
    size = jnp.where(e >= 0, e, -e)
    far = size + jnp.log1p(jnp.exp(-2 * size)) - math.log(2)
    return jnp.where(size <= 1, jnp.log1p(2 * jnp.sinh(near / 2) ** 2), far)


def jacobian_log_cosh(predictions, targets=None):
    slope = jnp.tanh(predictions - (0 if targets is None else targets))
    return (Diagonal(slope), Diagonal(-slope))[: 1 if targets is None else 2]


# ------------------------------------------------------------------------------------------------------------- records

_SIZES = {"b": 2, "n": 7}


def _tails_of_log_cosh(t):
    return Tail((t, np.zeros_like(t)), np.ones_like(t), (np.tanh(t), -np.tanh(t)))


RULES = (
    Rule(
        fn=squared_error,
        reference=reference_squared_error,
        baselines={"optax.squared_error": optax.squared_error},
        cases=(Case(("b n", "b n"), {"b": 2, "n": 7}), Case(("b n",), {"b": 2, "n": 7}), Case(("", ""), {})),
        edges=(Edge("a perfect fit", ([1.0, -2.0], [1.0, -2.0])),),
        bench=(Case(("b n", "b n"), {"b": 1024, "n": 1024}),),
        residual_bytes=lambda b, n: 4 * b * n,
        jacobian=jacobian_squared_error,
        reason="the lecture's loss of a regression; keeps only the difference",
        lecture=True,
        source="Eq. 1",
    ),
    Rule(
        fn=huber_loss,
        reference=reference_huber_loss,
        baselines={"optax.huber_loss": optax.huber_loss},
        cases=(
            Case(("b n", "b n"), _SIZES),
            Case(("b n",), _SIZES, {"delta": 0.5}),
            Case(("b n", "n"), _SIZES, {"delta": np.array([[0.25], [1.5]], np.float32)}, fixed=("b",)),
        ),
        edges=(
            Edge("a perfect fit, and errors of delta", ([0.0, 1.0, -1.0], [0.0, 0.0, 0.0])),
            Edge("large and infinite errors", ([1e30, np.inf, -np.inf], [0.0, 0.0, 0.0])),
        ),
        bench=(Case(("b n", "b n"), {"b": 1024, "n": 1024}),),
        residual_bytes=lambda b, n: 4 * b * n,
        jacobian=jacobian_huber_loss,
        reason="keeps the difference alone",
        gains=(Gain("kept bytes", 0.45),),
        source="Huber (1964)",
    ),
    Rule(
        fn=log_cosh,
        reference=reference_log_cosh,
        baselines={"optax.log_cosh": optax.log_cosh},
        cases=(Case(("b n", "b n"), _SIZES), Case(("b n",), _SIZES), Case(("b n", "n"), _SIZES)),
        edges=(
            Edge("a perfect fit, and errors of 1", ([0.0, 1.0, -1.0], [0.0, 0.0, 0.0])),
            Edge("large and infinite errors", ([1e30, np.inf, -np.inf], [0.0, 0.0, 0.0])),
        ),
        bench=(Case(("b n", "b n"), {"b": 1024, "n": 1024}),),
        residual_bytes=lambda b, n: 4 * b * n,
        jacobian=jacobian_log_cosh,
        reason="accurate for small errors; keeps the difference alone",
        gains=(
            Gain("kept bytes", 0.5),
            Gain("error", 0.01),
            Gain("error", 1e-5, Edge("errors below 1e-4", ([1e-5, -2e-5, 3e-6],))),
        ),
        source="Chen et al. (2019)",
        tails=_tails_of_log_cosh,
    ),
)
