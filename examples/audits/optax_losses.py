"""Losses, projections and safe norms of optax that have custom rules, in one gradient: needs optax.

vjplib audit examples/audits/optax_losses.py:step
"""

import jax
import jax.numpy as jnp
import optax


def step():
    """Gradient of a sum of losses."""
    logits = jax.random.normal(jax.random.key(0), (5, 7))
    labels = jax.nn.softmax(jax.random.normal(jax.random.key(1), (5, 7)))
    signs = jnp.where(jnp.arange(5) % 2, 1.0, -1.0)

    def loss(logits):
        return (
            jnp.sum(optax.losses.sparsemax_loss(logits[:, 0], signs))
            + jnp.sum(optax.losses.multiclass_sparsemax_loss(logits, jnp.arange(5)))
            + jnp.sum(labels * optax.projections.projection_simplex(logits.ravel()).reshape(5, 7))
            + jnp.sum(labels * optax.projections.projection_non_negative(logits))
            + jnp.sum(labels * optax.scale_gradient(logits, 0.5))
            + jnp.sum(optax.losses.convex_kl_divergence(jax.nn.log_softmax(logits), labels))
            + jnp.sum(optax.losses.sigmoid_binary_cross_entropy(logits, labels))
        )

    return jax.jit(jax.value_and_grad(loss))(logits)
