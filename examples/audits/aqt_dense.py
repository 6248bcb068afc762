"""A dot product quantized to int8 by AQT, in a training step: needs aqtp.

vjplib audit examples/audits/aqt_dense.py:step
"""

import jax
import jax.numpy as jnp
from aqt.jax.v2 import config


def step():
    """Gradient of the mean square of a product quantized forwards and backwards."""
    x, w = jax.random.normal(jax.random.key(0), (8, 16)), jax.random.normal(jax.random.key(1), (16, 4))
    dot_general = config.config_v4(fwd_bits=8, dlhs_bits=8, drhs_bits=None)
    config.set_stochastic_rounding(dot_general, False, False, "jax.uniform")

    def loss(x, w):
        return jnp.mean(dot_general(x, w, (((1,), (0,)), ((), ()))) ** 2)

    return jax.jit(jax.value_and_grad(loss, (0, 1)))(x, w)
