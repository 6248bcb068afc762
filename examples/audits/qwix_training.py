"""A training step of a small flax network that qwix quantizes to int8: needs qwix, flax and optax.

vjplib audit examples/audits/qwix_training.py:step
"""

import jax
import jax.numpy as jnp
import optax
import qwix
from flax import linen as nn


class Network(nn.Module):
    """A convolution and two dense layers."""

    @nn.compact
    def __call__(self, images):
        """Logits."""
        y = nn.relu(nn.Conv(4, (3, 3))(images))
        y = nn.relu(nn.Dense(16)(y.reshape(y.shape[0], -1)))
        return nn.Dense(3)(y)


def step():
    """Value and gradient of the cross entropy."""
    images = jax.random.normal(jax.random.key(0), (4, 6, 6, 2))
    rule = qwix.QtRule(weight_qtype="int8", act_qtype="int8", bwd_qtype="int8")
    model = qwix.quantize_model(Network(), qwix.QtProvider([rule]))
    params = model.init(jax.random.key(1), images)

    def loss(params):
        logits = model.apply(params, images)
        return optax.softmax_cross_entropy_with_integer_labels(logits, jnp.array([0, 1, 2, 0])).mean()

    return jax.jit(jax.value_and_grad(loss))(params)
