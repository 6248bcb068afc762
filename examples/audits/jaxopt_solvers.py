"""Solvers, projections and perturbed maxima of jaxopt, differentiated: needs jaxopt.

vjplib audit examples/audits/jaxopt_solvers.py:step
"""

import jax
import jax.numpy as jnp
import jaxopt
from jaxopt import isotonic, perturbations, projection


def step():
    """Gradients through each."""
    A, b = jax.random.normal(jax.random.key(0), (11, 3)), jax.random.normal(jax.random.key(1), (11,))
    x = jax.random.normal(jax.random.key(2), (7,))

    def ridge(params, strength):
        return jnp.mean((A @ params - b) ** 2) + 0.5 * strength * jnp.sum(params**2)

    solver = jaxopt.GradientDescent(ridge, maxiter=500, tol=1e-6)
    perturbed = perturbations.make_perturbed_fun(lambda v: jax.nn.one_hot(jnp.argmax(v), 7), num_samples=50)
    return (
        jax.grad(lambda s: jnp.sum(solver.run(jnp.zeros(3), s).params))(0.3),
        jax.grad(lambda x: jnp.sum(projection.projection_simplex(x) * jnp.arange(7.0)))(x),
        jax.grad(lambda x: jnp.sum(projection.projection_box_section(x, (-(x**2), 1.0, jnp.ones(7), 0.5)) ** 2))(x),
        jax.grad(lambda x: jnp.sum(isotonic.isotonic_l2_pav(x, jnp.zeros(7)) * jnp.arange(7.0)))(x),
        jax.grad(lambda x: jnp.sum(perturbed(x, jax.random.key(3)) * jnp.arange(7.0)))(x),
    )
