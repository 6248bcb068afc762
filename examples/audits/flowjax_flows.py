"""Normalizing flows of flowjax, one of them inverted numerically: needs flowjax.

vjplib audit examples/audits/flowjax_flows.py:step
"""

from functools import partial

import equinox as eqx
import flowjax.bijections as bij
import jax
import jax.numpy as jnp
from flowjax.distributions import Normal, StudentT, Transformed
from flowjax.flows import coupling_flow
from flowjax.root_finding import bisection_search, root_finder_to_inverter


def step():
    """Gradients of likelihoods, and of a sample through an inverse that is found by bisection."""
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (7, 2))
    flow = coupling_flow(
        keys[1],
        base_dist=Normal(jnp.zeros(2)),
        transformer=bij.RationalQuadraticSpline(knots=4, interval=3),
        flow_layers=2,
        nn_width=8,
        nn_depth=1,
    )
    heavy = Transformed(StudentT(jnp.full(2, 3.0)), bij.Chain([bij.LeakyTanh(2.0, (2,)), bij.Affine(jnp.ones(2), 2.0)]))

    @eqx.filter_jit
    @eqx.filter_grad
    def likelihood(flow):
        return -jnp.mean(flow.log_prob(x))

    @eqx.filter_jit
    @eqx.filter_grad
    def inverted(bijection):
        return jnp.sum(jax.vmap(bijection.inverse)(x[:, 0]) ** 2)

    inverter = root_finder_to_inverter(partial(bisection_search, lower=-1.0, upper=1.0, atol=1e-6))
    numerical = bij.NumericalInverse(bij.Chain([bij.Affine(1.0, 2.0), bij.LeakyTanh(2.0)]), inverter)
    return likelihood(flow), likelihood(heavy), inverted(numerical)
