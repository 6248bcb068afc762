"""Gamma variates of TensorFlow Probability on JAX, which are differentiable: needs tfp-nightly.

vjplib audit examples/audits/tfp_samplers.py:step
"""

import jax
import jax.numpy as jnp
from tensorflow_probability.substrates.jax import distributions as tfd


def step():
    """Gradient of the mean square of gamma variates by their shape and rate."""
    concentration, rate = jnp.linspace(0.7, 4.0, 5), jnp.linspace(1.0, 2.0, 5)

    def loss(concentration, rate):
        return jnp.mean(tfd.Gamma(concentration, rate).sample(3, seed=jax.random.key(0)) ** 2)

    return jax.jit(jax.grad(loss, (0, 1)))(concentration, rate)
