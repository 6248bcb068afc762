"""A training step of a flax Dense layer in emulated FP8: needs flax.

vjplib audit examples/audits/flax_fp8.py:step
"""

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen import fp8_ops


def step():
    """Value and gradient of the mean square of a Dense layer's output, its dot_general in FP8, twice."""
    x = jax.random.normal(jax.random.key(0), (16, 32))
    losses = []
    for cls in (fp8_ops.Fp8DotGeneralOp, fp8_ops.Fp8DirectDotGeneralOp):
        model = nn.Dense(16, dot_general_cls=cls)
        variables = model.init(jax.random.key(1), x)
        loss = jax.jit(jax.value_and_grad(lambda v, model=model: jnp.mean(model.apply(v, x) ** 2), allow_int=True))
        losses.append(loss(variables)[0])
    return losses
