"""Special functions of TensorFlow Probability on JAX that have rules of their own: needs tfp-nightly.

vjplib audit examples/audits/tfp_special.py:step
"""

import jax
import jax.numpy as jnp
from tensorflow_probability.substrates.jax import math


def step():
    """Gradient of a sum of functions by all of their parameters."""
    x, y, p = jnp.linspace(0.3, 4.0, 5), jnp.linspace(5.0, 1.0, 5), jnp.linspace(0.1, 0.9, 5)

    def functions(x, y, p):
        values = [f(x, y) for f in (math.log_gamma_difference, math.lbeta, math.owens_t, math.bessel_iv_ratio)]
        values += [f(p) for f in (math.erfcx, math.dawsn, math.lambertw, math.log_cosh)]
        return sum(map(jnp.sum, [*values, math.igammainv(x, p)]))

    return jax.jit(jax.grad(functions, (0, 1, 2)))(x, y, p)
