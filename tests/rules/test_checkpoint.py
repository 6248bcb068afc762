"""Policies of `jax.checkpoint` keep what rules name: shown by the bytes between forward and backward."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vjplib as vl
from vjplib.verification.claims.residuals import residual_bytes

POLICIES = jax.checkpoint_policies
B, T, N, H, V = 2, 64, 2, 8, 30
X = jnp.asarray(np.random.default_rng(0).standard_normal((B, T, N * H)), jnp.float32)
W = jnp.asarray(np.random.default_rng(1).standard_normal((N * H, V)), jnp.float32)
LABELS = jnp.arange(B * T).reshape(B, T) % V


def attended(x):
    """Attention of positions to one another, between two functions whose backward needs what they return."""
    q = jnp.sin(x).reshape(B, T, N, H)
    return jnp.tanh(vl.dot_product_attention(q, q, q, is_causal=True))


def loss(x):
    return jnp.sin(vl.linear_softmax_cross_entropy(jnp.sin(x), LABELS, W))


def offloaded(name):
    return POLICIES.save_and_offload_only_these_names(
        names_which_can_be_saved=[],
        names_which_can_be_offloaded=[name],
        offload_src="device",
        offload_dst="pinned_host",
    )


ATTENTION = 4 * (B * T * N * H + 2 * B * T * N)  # the result, and two numbers a query
CONSTANTS = LABELS.nbytes + W.nbytes
GRADIENTS = 4 * (1 + X.size + W.size)  # beside the loss
KEPT = {
    "nothing": (attended, None, 0),
    "attention": (attended, POLICIES.save_only_these_names("dot_product_attention"), ATTENTION),
    "attention, offloaded": (attended, offloaded("dot_product_attention"), ATTENTION),
    "loss, nothing": (loss, None, CONSTANTS),
    "loss": (loss, POLICIES.save_only_these_names("linear_softmax_cross_entropy"), GRADIENTS),
}


@pytest.mark.parametrize("name", KEPT)
def test_a_policy_keeps_what_is_named(name):
    f, policy, expected = KEPT[name]
    light = jax.checkpoint(f, policy=policy)
    assert residual_bytes(light, X) - X.nbytes == expected
    slopes = [jax.jit(jax.grad(lambda x, g=g: jnp.sum(g(x)))) for g in (light, f)]
    chex.assert_trees_all_close(*(slope(X) for slope in slopes), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["attention", "loss"])
def test_what_is_kept_is_not_computed_again(name):
    """The exponentials of the whole gradient: of the forward once more if nothing is kept."""
    f, policy, _ = KEPT[name]
    counts = []
    for kept in (policy, None):
        light = jax.checkpoint(f, policy=kept)
        counts.append(str(jax.make_jaxpr(jax.grad(lambda x, g=light: jnp.sum(g(x))))(X)).count(" exp "))
    assert counts[0] < counts[1]
