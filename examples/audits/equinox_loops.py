"""An Equinox multilayer perceptron, custom rules by Equinox's own decorators, and its checkpointed loop: needs equinox.

vjplib audit examples/audits/equinox_loops.py:step
"""

import equinox as eqx
import equinox.internal as eqxi
import jax
import jax.numpy as jnp


@eqx.filter_custom_vjp
def scaled(x, factor):
    """x times factor."""
    return x * factor


@scaled.def_fwd
def scaled_fwd(perturbed, x, factor):
    """The value, and what the backward needs."""
    return x * factor, (x, factor)


@scaled.def_bwd
def scaled_bwd(residuals, g, perturbed, x, factor):
    """The cotangent of x."""
    return g * factor


def step():
    """Gradient of a loss of a network, and of a loop of 5 iterations that is checkpointed."""
    model = eqx.nn.MLP(5, 3, 7, 2, key=jax.random.key(0), activation=jax.nn.softplus)
    x = jax.random.normal(jax.random.key(1), (4, 5))

    @eqx.filter_jit
    @eqx.filter_value_and_grad
    def loss(model, x):
        y = jax.vmap(model)(x)
        y = scaled(y, 0.5)
        y = eqxi.while_loop(lambda y: jnp.all(y < 1e6), jnp.sin, y, max_steps=5, kind="checkpointed")
        return jnp.mean(jax.nn.relu(y + 0.1) ** 2)

    return loss(model, x)
