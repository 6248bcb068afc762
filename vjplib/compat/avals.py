"""What shapes and dtypes may be besides plain: sizes that `jax.export` leaves open, and dtypes that are weak."""

from typing import Any

import jax
from jax.export import is_symbolic_dim
from jax.extend.core.primitives import convert_element_type_p


def is_symbolic(*sizes: Any) -> bool:
    """Return whether any of the sizes is symbolic, as a dimension that `jax.export` leaves open.

    Such a size refuses comparisons and `operator.index`: decide on the others, and fall back to what needs none.

    Example:
        >>> (n,) = jax.export.symbolic_shape("n")
        >>> is_symbolic(3, n), is_symbolic(3, 4)
        (True, False)
    """
    return any(map(is_symbolic_dim, sizes))


def is_key(value: Any) -> bool:
    """Return True for typed keys of random numbers, arrays or avals.

    Example:
        >>> is_key(jax.random.key(0)), is_key(jax.random.key_data(jax.random.key(0))), is_key(0.5)
        (True, False, False)
    """
    return hasattr(value, "dtype") and jax.numpy.issubdtype(value.dtype, jax.dtypes.extended)


def weakly_typed(x: jax.Array) -> jax.Array:
    """Return x with a weak dtype, which JAX's public functions offer for Python scalars alone.

    Example:
        >>> weakly_typed(jax.numpy.ones(2))
        Array([1., 1.], dtype=float32, weak_type=True)
    """
    return convert_element_type_p.bind(x, new_dtype=x.dtype, weak_type=True, sharding=None)
