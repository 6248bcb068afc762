"""Dropout that keeps its key alone: the mask is drawn again for the backward, bit for bit."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Shaped

from vjplib.compat import custom_vjp, is_key
from vjplib.precision import upcast
from vjplib.rule import Case, Edge, Gain, Input, Rule
from vjplib.rules._arguments import as_inexact, as_number, by_rule, normalize_axes
from vjplib.rules._cotangents import aval_token, like_primal


def dropout(
    key: Any, x: Shaped[ArrayLike, "..."], rate: float, broadcast_dims: int | Sequence[int] = ()
) -> Shaped[Array, "..."]:
    """x / (1 - rate) with probability 1 - rate, else 0, elementwise and at random; the mask is a function of the key.

    Args:
        key: a random key, of `jax.random.key` or the uint32 numbers of `jax.random.PRNGKey`.
        x: any shape and dtype; complex numbers are computed by the plain expression.
        rate: the probability of 0, a number in [0, 1].
        broadcast_dims: the axis or axes along which the mask is constant.

    Returns:
        An array of x's shape and dtype (JAX's default float for integers), with mean x over the keys. Rate 0 gives x,
        rate 1 zeros. What is dropped is 0 also where x is infinite or NaN, and its cotangent is 0. Where forward and
        backward are one program without a loop, XLA draws once for both; elsewhere, as in `jax.lax.scan` over layers,
        the backward draws again: memory is saved for time.

    Raises:
        TypeError: key is not a random key, x is not an array of numbers, or rate is not a number.
        ValueError: rate is not in [0, 1], or an axis is out of range or named twice.

    Example:
        >>> y = dropout(jax.random.key(0), jnp.ones(1000), 0.75)
        >>> sorted(set(y.tolist())), 200 < int((y > 0).sum()) < 300
        ([0.0, 4.0], True)

    Source:
        Srivastava et al., Dropout: a simple way to prevent neural networks from overfitting, 2014. For the same key the
        mask is that of `flax.linen.Dropout`.
    """
    if not is_key(key):
        key = _raw(key)
    x = as_inexact("x", x)
    rate = as_number("rate", rate, "in [0, 1]", lambda n: 0 <= n <= 1)
    shared = normalize_axes(broadcast_dims, x.ndim)
    incumbent = partial(reference_dropout, key, rate=rate, broadcast_dims=shared)
    return by_rule(lambda x: _dropout(key, x, rate, shared), incumbent, x=x)


def _raw(key: Any) -> jax.Array:
    array = jnp.asarray(key) if isinstance(key, (jax.Array, np.ndarray)) else None
    if array is None or array.dtype != jnp.uint32 or array.ndim != 1:
        given = type(key).__name__ if array is None else f"{array.dtype} of shape {array.shape}"
        raise TypeError(f"key must be a random key, of jax.random.key or jax.random.PRNGKey, got {given}")
    return array


@partial(custom_vjp, nondiff_argnames=("rate", "shared"))
def _dropout(key, x, rate, shared):
    return fwd(key, x, rate, shared)[0]


def fwd(key, x, rate, shared):
    return _dropped(key, upcast(x), rate, shared).astype(x.dtype), (key, aval_token(x))


def _dropped(key, x, rate, shared):
    """Return x / (1 - rate) where the mask of this key is True, else 0."""
    if rate in (0, 1):
        return x if rate == 0 else jnp.zeros_like(x)
    return jnp.where(_mask(key, x.shape, rate, shared), x / (1 - rate), 0)


def _mask(key, shape, rate, shared):
    """Return the mask that flax draws; always from float32, so that it is the same in any precision."""
    drawn = tuple(1 if i in shared else n for i, n in enumerate(shape))
    return jnp.broadcast_to(jax.random.bernoulli(key, np.float32(1 - rate), drawn), shape)


# y = x m / (1 - rate) with a mask m of zeros and ones that does not depend on x: linear, with a diagonal of numbers
# that the key determines.
#   g^T J = g * m / (1 - rate)
# That is the forward itself, applied to g: the key tells all, and neither x nor m is kept.
def bwd(rate, shared, res, g):
    key, x_token = res
    return None, like_primal(_dropped(key, upcast(g), rate, shared), x_token)


_dropout.defvjp(fwd, bwd)


def reference_dropout(key, x, rate, broadcast_dims=()):
    if rate in (0, 1):
        return x * (1 - rate)
    return jnp.where(_mask(key, x.shape, rate, normalize_axes(broadcast_dims, x.ndim)), x / (1 - rate), 0)


def _key(rng, shape, dims):
    return rng.integers(0, 2**32, shape, dtype=np.uint32)


def haiku_dropout(key, x, rate, broadcast_dims=()):
    """What `haiku.dropout` computes."""
    drawn = tuple(1 if i in broadcast_dims else n for i, n in enumerate(x.shape))
    keep = jnp.broadcast_to(jax.random.bernoulli(key, np.float32(1 - rate), drawn), x.shape)
    return keep * x / (1 - rate)


def flax_dropout(key, x, rate, broadcast_dims=()):
    """What `flax.linen.Dropout` computes."""
    drawn = tuple(1 if i in broadcast_dims else n for i, n in enumerate(x.shape))
    keep = jnp.broadcast_to(jax.random.bernoulli(key, np.float32(1 - rate), drawn), x.shape)
    return jax.lax.select(keep, x / (1 - rate), jnp.zeros_like(x))


_KEY = Input("2", _key)
_NUMBERS = [0.0, 1.0, float("inf"), float("nan"), -1.0, 2.0]

RULES = (
    Rule(
        fn=dropout,
        reference=reference_dropout,
        baselines={"flax.linen.Dropout": flax_dropout, "haiku.dropout": haiku_dropout},
        cases=(
            Case((_KEY, "b n"), {"b": 3, "n": 7}, {"rate": 0.25}),
            Case((_KEY, "b n c"), {"b": 2, "n": 3, "c": 5}, {"rate": 0.5, "broadcast_dims": (0, -1)}),
            Case((_KEY, "n"), {"n": 5}, {"rate": 0.0}),
            Case((_KEY, "n"), {"n": 5}, {"rate": 1.0}),
            Case((_KEY, ""), {}, {"rate": 0.5}),
        ),
        edges=(
            Edge("no element", (np.zeros(2, np.uint32), np.zeros((0, 3))), {"rate": 0.5}),
            Edge("infinity and NaN", (np.zeros(2, np.uint32), _NUMBERS), {"rate": 0.5}),
        ),
        bench=(Case((_KEY, "b n"), {"b": 1024, "n": 1024}, {"rate": 0.1}),),
        residual_bytes=lambda b, n: 8,
        whole_array=True,
        reason="keeps the key, where autodiff keeps the mask",
        gains=(Gain("kept bytes", 1.6e-6), Gain("kept bytes", 2e-6, baseline="haiku.dropout")),
        source="Srivastava et al., 2014",
    ),
)
