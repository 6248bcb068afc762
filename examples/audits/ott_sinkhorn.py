"""Optimal transport with ott-jax, differentiated: needs ott-jax.

vjplib audit examples/audits/ott_sinkhorn.py:step
"""

import jax
import jax.numpy as jnp
from ott.geometry import costs, pointcloud
from ott.math import matrix_square_root, utils
from ott.solvers import linear


def step():
    """Gradients of an entropic cost, unrolled and implicit, of a soft norm, and of a matrix square root."""
    x, y = jax.random.normal(jax.random.key(0), (7, 3)), jax.random.normal(jax.random.key(1), (5, 3)) + 0.5

    def cost(x, **options):
        return linear.solve(pointcloud.PointCloud(x, y, epsilon=0.5), **options).reg_ot_cost

    def root(x):
        return jnp.sum(matrix_square_root.sqrtm(x.T @ x + jnp.eye(3))[0])

    def bures(x):
        a = jnp.concatenate([x.mean(0), (x.T @ x + jnp.eye(3)).ravel()])
        b = jnp.concatenate([y.mean(0), (y.T @ y + jnp.eye(3)).ravel()])
        return costs.Bures(3)(a, b)

    return (
        jax.jit(jax.value_and_grad(cost))(x),
        jax.grad(lambda x: jnp.sum(linear.solve(pointcloud.PointCloud(x, y, epsilon=0.5)).matrix ** 2))(x),
        jax.grad(root)(x),
        jax.grad(bures)(x),
        jax.grad(lambda x: jnp.sum(utils.norm(x, axis=1)))(x),
        jax.grad(lambda x: jnp.sum(utils.logsumexp(x, axis=1)))(x),
        jax.grad(lambda x: jnp.sum(utils.softmin(x, 0.1, axis=1)))(x),
    )
