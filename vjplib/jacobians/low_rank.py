"""DiagonalMinusLowRank: the Jacobian of functions with a normalising sum, such as softmax."""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vjplib.jacobians.dense import Jacobian, matmul, shape_of
from vjplib.jacobians.diagonal import Diagonal, scale
from vjplib.precision import upcast


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class DiagonalMinusLowRank(Jacobian):
    """diag(d) - U V^T: all entries may differ from zero, and n (1 + 2 r) numbers determine them.

    Both products take n (1 + 2 r) multiplications: g^T J = g d - (g^T U) V^T and J t = d t - U (V^T t). Softmax has
    diag(y) - y y^T, log_softmax has I - 1 y^T with y the softmax.

    Args:
        diagonal: d, n numbers, floating.
        U: n x r, floating.
        V: n x r, floating.

    Example:
        >>> y = jnp.array([0.25, 0.75])
        >>> DiagonalMinusLowRank(y, y[:, None], y[:, None]).dense().tolist()
        [[0.1875, -0.1875], [-0.1875, 0.1875]]

    Source:
        Example 2.6 of the lecture, Eq. 16 and 17.
    """

    diagonal: Float[Array, " n"]
    U: Float[Array, "n r"]
    V: Float[Array, "n r"]

    @property
    def shape(self) -> tuple[int, int]:
        """(n, n)."""
        (n,) = shape_of("diagonal", self.diagonal, 1)
        U, V = shape_of("U", self.U, 2), shape_of("V", self.V, 2)
        if U != V or U[0] != n:
            raise ValueError(f"U and V must have one shape, with {n} rows like the diagonal, got {U} and {V}")
        return n, n

    def _vjp(self, g: Array) -> Array:
        product = scale(upcast(g), self.diagonal) - matmul(self.V, matmul(upcast(g), self.U))
        return product.astype(jnp.result_type(g, self._dtype))

    def _jvp(self, t: Array) -> Array:
        return replace(self, U=self.V, V=self.U)._vjp(t)

    def dense(self) -> Float[Array, "n n"]:
        """J as a matrix."""
        diagonal = jnp.where(jnp.eye(*self.shape, dtype=bool), upcast(self.diagonal), 0)
        return (diagonal - matmul(upcast(self.U), self.V.T)).astype(self._dtype)

    @property
    def _dtype(self) -> jnp.dtype:
        return jnp.result_type(self.diagonal, self.U, self.V)

    def _times(self, right: Jacobian) -> "DiagonalMinusLowRank":
        return _product(self, right) if isinstance(right, Diagonal | DiagonalMinusLowRank) else NotImplemented

    def _times_from_left(self, left: Jacobian) -> Jacobian:
        return _product(_lifted(left), self) if isinstance(left, Diagonal) else super()._times_from_left(left)


def _lifted(jacobian: Diagonal | DiagonalMinusLowRank) -> DiagonalMinusLowRank:
    """Return a diagonal as diagonal minus rank 0."""
    if isinstance(jacobian, DiagonalMinusLowRank):
        return jacobian
    nothing = jnp.zeros((jacobian.shape[0], 0), jacobian.diagonal.dtype)
    return DiagonalMinusLowRank(jacobian.diagonal, nothing, nothing)


# (D1 - U1 V1^T) J2 = D1 (D2 - U2 V2^T) - U1 (J2^T V1)^T = D1 D2 - [D1 U2, U1] [V2, J2^T V1]^T: the ranks add.
def _product(left: DiagonalMinusLowRank, right: Diagonal | DiagonalMinusLowRank) -> DiagonalMinusLowRank:
    inner = _lifted(right)
    return DiagonalMinusLowRank(
        scale(left.diagonal, inner.diagonal),
        jnp.concatenate((scale(left.diagonal[:, None], inner.U), left.U), axis=1),
        jnp.concatenate((inner.V, jax.vmap(right.vjp, in_axes=1, out_axes=1)(left.V)), axis=1),
    )
