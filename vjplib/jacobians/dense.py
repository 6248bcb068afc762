"""Jacobian, the interface of all structures; and Dense, the structure that stores every entry."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vjplib.precision import upcast


class Jacobian(ABC):
    """The m x n matrix of partial derivatives dy_i/dx_j of a layer y = f(x), in a form that multiplies cheaply.

    A structure is one subclass, a frozen dataclass registered as a pytree, with `shape`, `dense`, `_vjp` and `_jvp`. It
    need not know the other structures: `@` asks the left factor, then the right one, for a structured product.

    Example:
        >>> from vjplib.jacobians import Diagonal
        >>> Dense(jnp.ones((1, 3))) @ Diagonal(jnp.ones(2))
        Traceback (most recent call last):
        ValueError: a product of Jacobians needs as many columns on the left as rows on the right, got (1, 3) @ (2, 2):
        the chain rule for f(g(x)) is f' @ g', in this order

    Source:
        Definition 2.4 of the lecture, Eq. 13; composition: Theorem 3.1, Eq. 19.
    """

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int]:
        """(m, n): the number of outputs and of inputs."""

    @abstractmethod
    def dense(self) -> Float[Array, "m n"]:
        """J as a matrix."""

    @abstractmethod
    def _vjp(self, g: Array) -> Array:
        """Return g^T J; g is checked."""

    @abstractmethod
    def _jvp(self, t: Array) -> Array:
        """Return J t; t is checked."""

    def vjp(self, g: Float[Array, " m"]) -> Float[Array, " n"]:
        """g^T J, the cotangent of the input, in the dtype that J and g promote to.

        Raises:
            TypeError: g is not floating.
            ValueError: g is not a vector of m numbers.

        Example:
            >>> Dense(jnp.ones((2, 3))).vjp(jnp.ones(3))
            Traceback (most recent call last):
            ValueError: g must have shape (2,) to multiply a Jacobian of shape (2, 3), got (3,)
        """
        return self._vjp(_operand("g", g, self.shape[0], self))

    def jvp(self, t: Float[Array, " n"]) -> Float[Array, " m"]:
        """J t, the tangent of the output, in the dtype that J and t promote to; t is checked as g in `vjp`."""
        return self._jvp(_operand("t", t, self.shape[1], self))

    @property
    def nbytes(self) -> int:
        """The bytes of the stored arrays, including traced and abstract ones."""
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(self))

    def __matmul__(self, right: "Jacobian") -> "Jacobian":
        """The Jacobian of the composition; self belongs to the layer that is applied last."""
        if not isinstance(right, Jacobian):
            return NotImplemented
        if self.shape[1] != right.shape[0]:
            raise ValueError(
                "a product of Jacobians needs as many columns on the left as rows on the right, got "
                f"{self.shape} @ {right.shape}: the chain rule for f(g(x)) is f' @ g', in this order"
            )
        product = self._times(right)
        return right._times_from_left(self) if product is NotImplemented else product

    def _times(self, right: "Jacobian") -> Any:
        """Return self @ right, or NotImplemented to let the right factor choose."""
        return NotImplemented

    def _times_from_left(self, left: "Jacobian") -> "Jacobian":
        """Return left @ self where left returned NotImplemented; a dense matrix, unless overridden."""
        return left @ Dense(self.dense())


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Dense(Jacobian):
    """J as a matrix, which multiplies in m n multiplications; the Jacobian of y = W x + b is W.

    Args:
        matrix: m x n, floating.

    Example:
        >>> J = Dense(jnp.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]))
        >>> J.shape, J.vjp(jnp.array([1.0, 10.0])).tolist()
        ((2, 3), [41.0, 52.0, 63.0])

    Source:
        Definition 2.4, and Example 2.5 (Eq. 15) of the lecture.
    """

    matrix: Float[Array, "m n"]

    @property
    def shape(self) -> tuple[int, int]:
        """(m, n)."""
        m, n = shape_of("matrix", self.matrix, 2)
        return m, n

    def _vjp(self, g: Array) -> Array:
        return matmul(g, self.matrix)

    def _jvp(self, t: Array) -> Array:
        return matmul(self.matrix, t)

    def dense(self) -> Float[Array, "m n"]:
        """The matrix."""
        return self.matrix

    # A matrix times J is J's vjp of every row, and J times a matrix J's jvp of every column: a structured J on either
    # side keeps its cheap products.
    def _times(self, right: Jacobian) -> "Dense":
        by_matrix = isinstance(right, Dense)
        return Dense(matmul(self.matrix, right.matrix) if by_matrix else jax.vmap(right.vjp)(self.matrix))

    def _times_from_left(self, left: Jacobian) -> "Dense":
        return Dense(jax.vmap(left.jvp, in_axes=1, out_axes=1)(self.matrix))


def matmul(a: Float[Array, "..."], b: Float[Array, "..."]) -> Float[Array, "..."]:
    """Return a @ b, summed in float32 or wider at full precision, in the dtype that both promote to."""
    return jnp.matmul(upcast(a), upcast(b), precision="highest").astype(jnp.result_type(a, b))


def shape_of(name: str, x: Array, rank: int) -> tuple[int, ...]:
    """Return the shape of an array of a Jacobian, after a check of its rank.

    The check runs when a Jacobian is used, not when it is made, because one that `jax.vmap` returns holds a batch.
    """
    if x.ndim != rank:
        raise ValueError(f"{name} must be of rank {rank}, got shape {x.shape}; for a batch of Jacobians use jax.vmap")
    return x.shape


def _operand(name: str, x: Array, size: int, jacobian: Jacobian) -> jax.Array:
    """Return the vector that a Jacobian multiplies, after checks of its dtype and shape."""
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"{name} must have a floating dtype, got {x.dtype} of shape {x.shape}")
    if x.shape != (size,):
        wanted = f"shape ({size},) to multiply a Jacobian of shape {jacobian.shape}"
        raise ValueError(f"{name} must have {wanted}, got {x.shape}")
    return x
