"""A training step of a small Haiku network: needs dm-haiku and optax.

vjplib audit examples/audits/haiku_resnet.py:step
"""

import haiku as hk
import jax
import jax.numpy as jnp
import optax


def network(images):
    """Two convolutions, a recurrence over rows, and logits."""
    y = jax.nn.relu(hk.Conv2D(5, 3)(images))
    y = jax.nn.leaky_relu(hk.Conv2D(3, 3)(y))
    core = hk.GRU(7)
    rows = y.reshape(y.shape[0], y.shape[1], -1).transpose(1, 0, 2)
    _, state = hk.scan(lambda s, row: core(row, s)[::-1], core.initial_state(y.shape[0]), rows)
    return hk.Linear(4)(jax.nn.elu(state[-1]))


def step():
    """Value and gradient of the cross entropy."""
    net = hk.without_apply_rng(hk.transform(network))
    images, labels = jax.random.normal(jax.random.key(0), (3, 6, 5, 2)), jnp.arange(3)
    params = net.init(jax.random.key(1), images)

    def loss(params):
        return optax.softmax_cross_entropy_with_integer_labels(net.apply(params, images), labels).mean()

    return jax.jit(jax.value_and_grad(loss))(params)
