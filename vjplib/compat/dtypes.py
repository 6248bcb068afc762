"""Weak types: the dtypes of Python scalars, which give way to those of the arrays beside them."""

import jax
from jax.extend.core.primitives import convert_element_type_p


def weakly_typed(x: jax.Array) -> jax.Array:
    """Return x with a weak dtype, which JAX's public functions offer for Python scalars alone.

    Example:
        >>> weakly_typed(jax.numpy.ones(2))
        Array([1., 1.], dtype=float32, weak_type=True)
    """
    return convert_element_type_p.bind(x, new_dtype=x.dtype, weak_type=True, sharding=None)
