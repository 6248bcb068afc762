"""Spherical harmonics and an equivariant linear layer of e3nn-jax: needs e3nn-jax.

vjplib audit examples/audits/e3nn_harmonics.py:step
"""

import e3nn_jax as e3nn
import jax
import jax.numpy as jnp


def step():
    """Gradient of an energy by positions: the forces of a model of atoms."""
    positions = jax.random.normal(jax.random.key(0), (6, 3))

    def energy(positions):
        edges = e3nn.IrrepsArray("1o", positions[1:] - positions[:-1])
        algorithm = ("legendre", "dense", "custom_jvp")
        harmonics = e3nn.spherical_harmonics([0, 1, 2, 3], edges, normalize=False, algorithm=algorithm)
        product = e3nn.tensor_product(harmonics, harmonics, filter_ir_out=["0e", "1o"])
        return jnp.sum(product.array**2)

    return jax.jit(jax.value_and_grad(energy))(positions)
