"""A dot product quantized to int8 by AQT, in a training step: needs aqtp.

vjplib audit examples/audits/aqt_dense.py:step
"""

import aqt.jax.v2.config as aqt_config
import jax
import jax.numpy as jnp


def step():
    """Gradient of the mean square of a product quantized forwards and backwards."""
    x, w = jax.random.normal(jax.random.key(0), (8, 16)), jax.random.normal(jax.random.key(1), (16, 4))
    dot_general = aqt_config.config_v4()

    def loss(x, w):
        return jnp.mean(dot_general(x, w, (((1,), (0,)), ((), ()))) ** 2)

    del dot_general
    from aqt.jax.v2 import aqt_dot_general

    dot_general = aqt_dot_general.make_dot_general(aqt_config.config_v4())
    return jax.jit(jax.value_and_grad(loss, (0, 1)))(x, w)
