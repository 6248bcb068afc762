"""Places: the axes of space in an array cut out, padded and summed, those before and after them left as they are."""

from collections.abc import Iterable, Iterator, Sequence

import jax
import jax.numpy as jnp
from jax import lax

Array = jax.Array


def every(x: Array, bounds: Sequence[tuple[int, int, int]], first: int = 1) -> Array:
    """Returns of each axis of space so many places from a start, a step apart.

    Args:
        x: the array.
        bounds: (start, count, step) for each axis of space.
        first: which axis of x is the first of space.

    Example:
        >>> every(jnp.arange(10.0)[None, :, None], [(1, 3, 4)])[0, :, 0].tolist()
        [1.0, 5.0, 9.0]
    """
    before, rest = x.shape[:first], x.shape[first + len(bounds) :]
    start = [*(0 for _ in before), *(at if n else 0 for at, n, _ in bounds), *(0 for _ in rest)]
    limit = [*before, *(at + (n - 1) * step + 1 if n else 0 for at, n, step in bounds), *rest]
    return lax.slice(x, start, limit, [*(1 for _ in before), *(step for _, _, step in bounds), *(1 for _ in rest)])


def padded(x: Array, pads: Iterable[tuple[int, int] | tuple[int, int, int]], first: int = 1) -> Array:
    """Returns x with zeros before and after each axis of space, and between its places; below 0 places are cut off.

    Args:
        x: the array.
        pads: (low, high) or (low, high, interior) for each axis of space, or for the first of them.
        first: which axis of x is the first of space.

    Example:
        >>> padded(jnp.ones((1, 2, 1)), [(1, -1)])[0, :, 0].tolist()
        [0.0, 1.0]
    """
    of_space, none = [(low, high, *(interior or (0,))) for low, high, *interior in pads], (0, 0, 0)
    widths = [*[none] * first, *of_space, *[none] * (x.ndim - first - len(of_space))]
    return lax.pad(x, jnp.zeros((), x.dtype), widths)


def total(parts: Iterator[Array], shape: Sequence[int], dtype: jnp.dtype) -> Array:
    """Returns the sum of the parts, zeros of a shape and dtype if there is none.

    Example:
        >>> [total(iter(parts), (2,), jnp.float32).tolist() for parts in ((), (jnp.ones(2), jnp.ones(2)))]
        [[0.0, 0.0], [2.0, 2.0]]
    """
    first = next(parts, None)
    return jnp.zeros(shape, dtype) if first is None else sum(parts, first)
