"""BandedToeplitz: the Jacobian of a one-dimensional convolution."""

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vjplib.jacobians.dense import Jacobian, shape_of
from vjplib.precision import upcast


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class BandedToeplitz(Jacobian):
    """J_ij = h_{j - i + (k - 1) // 2} within the band, 0 outside: constant along each of its k diagonals.

    It is the Jacobian of y_i = sum_p x_{i + p - (k - 1) // 2} h_p, with x zero beyond its ends: for k = 3 the matrix
    with h_2 (counted from 1) on the diagonal, h_1 below it and h_3 above. Its products with vectors take k n
    multiplications. The ends cut the band off, so products with other Jacobians are not Toeplitz; they are dense.

    Args:
        kernel: the k entries of a row's band, from left to right; floating.
        n: the number of rows and of columns.

    Example:
        >>> BandedToeplitz(jnp.array([1.0, 2.0, 3.0]), n=4).dense().tolist()
        [[2.0, 3.0, 0.0, 0.0], [1.0, 2.0, 3.0, 0.0], [0.0, 1.0, 2.0, 3.0], [0.0, 0.0, 1.0, 2.0]]

    Source:
        Example 4.2 of the lecture, Eq. 34 and 35. `vjp` is its Algorithm 4; `Dense(J.dense()).vjp` its Algorithm 3.
    """

    kernel: Float[Array, " k"]
    n: int = field(metadata={"static": True})

    @property
    def shape(self) -> tuple[int, int]:
        """(n, n)."""
        if shape_of("kernel", self.kernel, 1) == (0,):
            raise ValueError("kernel must hold at least one entry, got shape (0,)")
        return self.n, self.n

    def _vjp(self, g: Array) -> Array:
        return _correlate(g, self.kernel[::-1], self.kernel.size // 2)

    def _jvp(self, t: Array) -> Array:
        return _correlate(t, self.kernel, (self.kernel.size - 1) // 2)

    def dense(self) -> Float[Array, "n n"]:
        """J as a matrix."""
        (m, n), k = self.shape, self.kernel.size
        place = jnp.arange(n)[None, :] - jnp.arange(m)[:, None] + (k - 1) // 2
        return jnp.where((place >= 0) & (place < k), self.kernel[jnp.clip(place, 0, k - 1)], 0)


# g^T J has elements v_j = sum_i g_i h_{j - i + c} with c = (k - 1) // 2; put i = j + q - (k - 1 - c), q = 0 .. k - 1:
#   v_j = sum_q g_{j + q - (k - 1 - c)} h_{k - 1 - q},
# so both products are one sum over shifted copies; the vjp flips the kernel and puts k - 1 - c = k // 2 for c.
def _correlate(x: Float[Array, " n"], kernel: Float[Array, " k"], centre: int) -> Float[Array, " n"]:
    """Return y_i = sum_p x_{i + p - centre} h_p, with x zero beyond its ends."""
    (n,) = x.shape
    total, zero = jnp.zeros(n, upcast(x).dtype), jnp.zeros((), upcast(x).dtype)
    for p, h in enumerate(upcast(kernel)):
        shift = max(-n, min(n, p - centre))
        total = total + h * jax.lax.pad(upcast(x), zero, [(-shift, shift, 0)])
    return total.astype(jnp.result_type(x, kernel))
