"""Dropout draws flax's mask, and draws it again in the backward, bit for bit, for keys of each kind."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vjplib as vl
from vjplib.compat import x64

X = jnp.asarray(np.random.default_rng(0).standard_normal((4, 50)), jnp.float32)
KEYS = {"typed": jax.random.key(3), "raw": jax.random.PRNGKey(3), "of another kind": jax.random.key(3, impl="rbg")}


def flax_dropout(key, x, rate, broadcast_dims=()) -> Any:
    dropout = nn.Dropout(rate, broadcast_dims, deterministic=False)
    return dropout.apply({}, x, rng=key)


@pytest.mark.parametrize("broadcast_dims", [(), (0,), (-1,)])
@pytest.mark.parametrize("rate", [0.0, 0.25, 0.9, 1.0])
@pytest.mark.parametrize("kind", KEYS)
def test_values_and_gradients_are_those_of_flax(kind, rate, broadcast_dims):
    key = KEYS[kind]
    (y, back), (expected, expected_back) = (
        jax.vjp(lambda x, f=f: f(key, x, rate, broadcast_dims), X) for f in (vl.dropout, flax_dropout)
    )
    for ours, theirs in ((y, expected), (back(X)[0], expected_back(X)[0])):
        np.testing.assert_array_equal(ours == 0, theirs == 0)
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_the_mask_is_that_of_the_key_in_every_precision_and_program(dtype):
    with x64():
        x = jnp.ones(200, dtype)
        mask = np.asarray(vl.dropout(KEYS["typed"], jnp.ones(200, jnp.float32), 0.5)) > 0
        y, back = jax.vjp(lambda x: vl.dropout(KEYS["typed"], x, 0.5), x)
        assert y.dtype == dtype
        np.testing.assert_array_equal(y > 0, mask)
        np.testing.assert_array_equal(back(x)[0] > 0, mask)
        np.testing.assert_array_equal(jax.jit(jax.grad(lambda x: vl.dropout(KEYS["typed"], x, 0.5).sum()))(x) > 0, mask)


@pytest.mark.parametrize("kind", ["typed", "raw"])
def test_keys_are_mapped_and_scanned_over(kind):
    keys = jax.random.split(KEYS[kind], 3)
    xs = jnp.stack([X, 2 * X, 3 * X])

    def loss(key, x):
        return jnp.sum(jnp.sin(vl.dropout(key, x, 0.5)))

    each = jnp.stack([jax.grad(loss, 1)(key, x) for key, x in zip(keys, xs, strict=True)])
    np.testing.assert_allclose(jax.vmap(jax.grad(loss, 1))(keys, xs), each, rtol=1e-6)

    def summed(xs):
        return jax.lax.scan(lambda total, pair: (total + loss(*pair), None), 0.0, (keys, xs))[0]

    np.testing.assert_allclose(jax.jit(jax.grad(summed))(xs), each, rtol=1e-6)


def test_the_share_that_is_kept():
    y = vl.dropout(KEYS["typed"], jnp.ones(100_000), 0.3)
    assert abs(float(jnp.mean(y > 0)) - 0.7) < 0.01
    assert abs(float(jnp.mean(y)) - 1) < 0.01
