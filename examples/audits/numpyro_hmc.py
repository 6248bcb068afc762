"""Ten steps of NUTS in numpyro, on a model with distributions that have custom rules: needs numpyro.

vjplib audit examples/audits/numpyro_hmc.py:step
"""

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from numpyro.infer import MCMC, NUTS


def model(x, y, counts):
    """A robust regression, binomial counts, a multinomial, and a truncated power law."""
    slope = numpyro.sample("slope", dist.Normal(0.0, 1.0))
    scale = numpyro.sample("scale", dist.HalfNormal(1.0))
    logits = numpyro.sample("logits", dist.Normal(jnp.zeros(3), 1.0).to_event(1))
    alpha = numpyro.sample("alpha", dist.Normal(-2.0, 0.5))
    numpyro.sample("sizes", dist.DoublyTruncatedPowerLaw(alpha, 1.0, 9.0), obs=jnp.array([1.5, 2.0, 4.5]))
    late = -numpyro.sample("late", dist.HalfNormal(1.0))
    numpyro.factor("none before", dist.util.log1mexp(late))
    numpyro.sample("y", dist.StudentT(4.0, slope * x, scale), obs=y)
    numpyro.sample("counts", dist.Binomial(10, logits=slope * x), obs=counts)
    numpyro.sample("kinds", dist.MultinomialLogits(logits, 9), obs=jnp.array([2, 3, 4]))


def step():
    """Ten warm-up steps and ten samples."""
    x = jnp.linspace(-1.0, 1.0, 7)
    sampler = MCMC(NUTS(model, max_tree_depth=3), num_warmup=10, num_samples=10, progress_bar=False)
    sampler.run(jax.random.key(0), x, 0.7 * x, jnp.array([1, 2, 3, 5, 6, 8, 9]))
    return sampler.get_samples()
