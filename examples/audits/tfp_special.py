"""Special functions of TensorFlow Probability on JAX that have custom rules, and its gamma sampler: needs tfp-nightly.

vjplib audit examples/audits/tfp_special.py:step
"""

import jax
import jax.numpy as jnp
from tensorflow_probability.substrates import jax as tfp


def step():
    """Gradients of a function of two or three parameters each, and of gamma variates."""
    x, y = jnp.linspace(0.3, 4.0, 9), jnp.linspace(5.0, 1.0, 9)
    p = jnp.linspace(0.1, 0.9, 9)
    of_two = (
        tfp.math.log_gamma_difference,
        tfp.math.lbeta,
        tfp.math.owens_t,
        tfp.math.bessel_iv_ratio,
        tfp.math.log_bessel_ive,
        tfp.math.log_bessel_kve,
        tfp.math.bessel_ive,
        tfp.math.bessel_kve,
    )
    of_one = (tfp.math.erfcx, tfp.math.dawsn, tfp.math.lambertw, tfp.math.log_cosh, tfp.math.erfcinv)

    def functions(x, y, p):
        values = [f(x, y) for f in of_two] + [f(p) for f in of_one]
        values += [tfp.math.igammainv(x, p), tfp.math.igammacinv(x, p), tfp.math.betaincinv(x, y, p)]
        values += [tfp.math.betainc(x, y, p)]
        return sum(map(jnp.sum, values))

    def variates(x):
        return jnp.sum(tfp.random.gamma((7,), x, seed=jax.random.key(0)) ** 2)

    return jax.grad(functions, (0, 1, 2))(x, y, p), jax.grad(variates)(x)
