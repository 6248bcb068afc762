"""A training step of a neural ODE, and a root found implicitly: needs diffrax and optimistix.

vjplib audit examples/audits/diffrax_neural_ode.py:step
"""

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import optimistix as optx


def step():
    """Gradients by the recursive checkpoint adjoint, the backsolve adjoint, and the implicit function theorem."""
    field = eqx.nn.MLP(2, 2, 5, 1, key=jax.random.key(0), activation=jax.nn.softplus)
    y0 = jnp.array([0.5, -0.3])

    @eqx.filter_jit
    @eqx.filter_grad
    def loss(field, adjoint):
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(lambda t, y, field: field(y)), diffrax.Tsit5(), 0.0, 1.0, 0.1, y0, field, adjoint=adjoint
        )
        return jnp.sum(solution.ys**2)

    def root(a):
        solver = optx.Newton(rtol=1e-6, atol=1e-6)
        return jnp.sum(optx.root_find(lambda y, a: y**3 - a, solver, jnp.ones(3), a).value)

    return (
        loss(field, diffrax.RecursiveCheckpointAdjoint()),
        loss(field, diffrax.BacksolveAdjoint()),
        jax.grad(root)(jnp.array([1.0, 2.0, 3.0])),
    )
