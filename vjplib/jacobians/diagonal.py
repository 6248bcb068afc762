"""Diagonal: the Jacobian of an elementwise function."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vjplib.jacobians.dense import Jacobian, shape_of
from vjplib.precision import upcast


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Diagonal(Jacobian):
    """diag(d): output i depends on input i only, and both products take n multiplications.

    Args:
        diagonal: the n derivatives, floating.

    Example:
        >>> J = Diagonal(jnp.array([2.0, 3.0]))
        >>> J.vjp(jnp.array([1.0, 10.0])).tolist(), (J @ J).diagonal.tolist()
        ([2.0, 30.0], [4.0, 9.0])

    Source:
        Example 2.1 of the lecture: relu, tanh and sigmoid, applied to the elements of a vector.
    """

    diagonal: Float[Array, " n"]

    @property
    def shape(self) -> tuple[int, int]:
        """(n, n)."""
        (n,) = shape_of("diagonal", self.diagonal, 1)
        return n, n

    def _vjp(self, g: Array) -> Array:
        return scale(g, self.diagonal)

    def _jvp(self, t: Array) -> Array:
        return scale(t, self.diagonal)

    def dense(self) -> Float[Array, "n n"]:
        """J as a matrix."""
        return jnp.where(jnp.eye(*self.shape, dtype=bool), self.diagonal, 0)

    def _times(self, right: Jacobian) -> "Diagonal":
        return Diagonal(scale(self.diagonal, right.diagonal)) if isinstance(right, Diagonal) else NotImplemented


def scale(x: Float[Array, "..."], d: Float[Array, "..."]) -> Float[Array, "..."]:
    """Return x d elementwise, computed in float32 or wider, in the dtype that both promote to."""
    return (upcast(x) * upcast(d)).astype(jnp.result_type(x, d))
