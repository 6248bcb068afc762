"""Attention, normalization and a gated linear unit of tokamax in their XLA implementations: needs tokamax.

vjplib audit examples/audits/tokamax_ops.py:step
"""

import jax
import jax.numpy as jnp
import tokamax


def step():
    """One gradient through each."""
    keys = jax.random.split(jax.random.key(0), 6)
    q, k, v = (jax.random.normal(key, (2, 11, 3, 8)) for key in keys[:3])
    x, scale, offset = jax.random.normal(keys[3], (5, 16)), jnp.linspace(0.5, 1.5, 16), jnp.linspace(-1.0, 1.0, 16)
    w = jax.random.normal(keys[4], (16, 2, 7))

    def loss(q, k, v, x, scale, offset, w):
        y = tokamax.layer_norm(x, scale, offset, implementation="xla")
        z = tokamax.gated_linear_unit(y, w, activation=jax.nn.silu, implementation="xla")
        a = tokamax.dot_product_attention(q, k, v, is_causal=True, implementation="xla")
        return jnp.sum(z**2) + jnp.sum(a**2)

    return jax.jit(jax.grad(loss, range(7)))(q, k, v, x, scale, offset, w)
