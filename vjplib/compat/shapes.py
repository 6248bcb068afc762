"""Symbolic sizes, as of `jax.export`."""

from typing import Any

from jax.export import is_symbolic_dim


def is_symbolic(*sizes: Any) -> bool:
    """Return whether any of the sizes is symbolic, as a dimension that `jax.export` leaves open.

    Such a size refuses comparisons and `operator.index`: decide on the others, and fall back to what needs none.

    Example:
        >>> import jax
        >>> (n,) = jax.export.symbolic_shape("n")
        >>> is_symbolic(3, n), is_symbolic(3, 4)
        (True, False)
    """
    return any(map(is_symbolic_dim, sizes))
