"""The dtype policy: rules compute in float32 or wider, and answer in the caller's dtype."""

import jax
import jax.numpy as jnp

REAL = (jnp.float16, jnp.bfloat16, jnp.float32, jnp.float64)  # what convolution and pooling compute; others go to lax


def upcast(x: jax.Array) -> jax.Array:
    """Return x in the dtype that rules compute in: float32, or x's own where that is wider."""
    return x.astype(compute_dtype(x.dtype))


def compute_dtype(dtype: jnp.dtype) -> jnp.dtype:
    """Return float32, or dtype where that is wider; also for 8-bit floats, which JAX does not promote by itself.

    Example:
        >>> compute_dtype(jnp.dtype("bfloat16")), compute_dtype(jnp.dtype("float64"))
        (dtype('float32'), dtype('float64'))
    """
    return dtype if jnp.finfo(dtype).bits >= 32 else jnp.dtype(jnp.float32)
