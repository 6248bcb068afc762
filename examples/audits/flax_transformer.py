"""A training step of a two-layer flax transformer: needs flax and optax.

vjplib audit examples/audits/flax_transformer.py:step
"""

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn


class Block(nn.Module):
    """Attention and a gated multilayer perceptron, each normalized before and added."""

    @nn.compact
    def __call__(self, x):
        """The same shape as x."""
        y = nn.LayerNorm()(x)
        x = x + nn.MultiHeadDotProductAttention(num_heads=2)(y, y, mask=nn.make_causal_mask(jnp.ones(x.shape[:2])))
        y = nn.LayerNorm()(x)
        return x + nn.Dense(x.shape[-1])(nn.silu(nn.Dense(4 * x.shape[-1])(y)) * nn.relu(nn.Dense(4 * x.shape[-1])(y)))


class Transformer(nn.Module):
    """Two blocks between an embedding and the logits."""

    @nn.compact
    def __call__(self, tokens):
        """Logits of the next token."""
        x = nn.Embed(31, 24)(tokens)
        for _ in range(2):
            x = Block()(x)
        return nn.Dense(31)(nn.LayerNorm()(x))


def step():
    """One step of Adam, jitted."""
    tokens = jax.random.randint(jax.random.key(0), (3, 13), 0, 31)
    model, optimizer = Transformer(), optax.adam(1e-3)
    params = model.init(jax.random.key(1), tokens)

    @jax.jit
    def update(params, state):
        def loss(params):
            logits = model.apply(params, tokens[:, :-1])
            return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()

        value, grads = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(grads, state)
        return optax.apply_updates(params, updates), state, value

    return update(params, optimizer.init(params))
