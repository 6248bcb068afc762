"""The product f' g' h' of the chain rule in both orders, with the operations and bytes of each step."""

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax

from vjplib.compat import cost_of
from vjplib.jacobians.dense import Jacobian


class Step(NamedTuple):
    """One product of two Jacobians."""

    left: tuple[int, int]  # the shapes of both factors and of their product
    right: tuple[int, int]
    product: tuple[int, int]
    multiplications: int
    nbytes: int  # of the product
    held: int  # bytes of all remaining factors, including these two, and of the product, without temporaries


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Chain:
    """A product of Jacobians and its steps, which are static, so that they outlive tracing.

    Args:
        jacobian: the product.
        steps: the pairwise products that led to it, in order.
    """

    jacobian: Jacobian
    steps: tuple[Step, ...] = field(metadata={"static": True})

    @property
    def multiplications(self) -> int:
        """The multiplications of all steps."""
        return sum(s.multiplications for s in self.steps)

    @property
    def peak_bytes(self) -> int:
        """The largest `Step.held` of all steps."""
        return max((s.held for s in self.steps), default=self.jacobian.nbytes)


def backward_order(jacobians: Sequence[Jacobian]) -> Chain:
    """(f' g') h': multiply from the loss backwards, which leaves a row vector after every step.

    Args:
        jacobians: the layers' Jacobians, at least one, the last layer first, as in f' g' h'.

    Returns:
        The product with its steps. Under `jax.eval_shape` only the steps are computed, and no array is made.

    Raises:
        ValueError: jacobians is empty, or neighbours differ in size.

    Example:
        >>> import jax.numpy as jnp
        >>> from vjplib.jacobians import BandedToeplitz, Dense, Diagonal
        >>> f, g, h = Dense(jnp.ones((1, 5))), Diagonal(jnp.ones(5)), BandedToeplitz(jnp.ones(3), n=5)
        >>> chain = backward_order([f, g, h])
        >>> chain.jacobian.dense().tolist(), chain.multiplications, chain.peak_bytes
        ([[2.0, 3.0, 3.0, 3.0, 2.0]], 20, 72)

    Source:
        Example 4.1 of the lecture, Eq. 33a and Fig. 5(a).
    """
    return _multiply(jacobians, lambda factors: 0)


def forward_order(jacobians: Sequence[Jacobian]) -> Chain:
    """f' (g' h'): multiply from the input forwards, through matrices with the widths of two layers as their sizes.

    Args:
        jacobians: the layers' Jacobians, at least one, the last layer first, as in f' g' h'.

    Returns:
        The product with its steps. Under `jax.eval_shape` only the steps are computed, and no array is made.

    Raises:
        ValueError: jacobians is empty, or neighbours differ in size.

    Example:
        >>> import jax.numpy as jnp
        >>> from vjplib.jacobians import BandedToeplitz, Dense, Diagonal
        >>> def factors(n):
        ...     return Dense(jnp.ones((1, n))), Diagonal(jnp.ones(n)), BandedToeplitz(jnp.ones(3), n=n)
        >>> chain = jax.eval_shape(lambda: forward_order(factors(1_000_000)))
        >>> [f"{step.nbytes:.0e}" for step in chain.steps]
        ['4e+12', '4e+06']

    Source:
        Example 4.1 of the lecture, Eq. 33b and Fig. 5(b).
    """
    return _multiply(jacobians, lambda factors: len(factors) - 2)


def _multiply(jacobians: Sequence[Jacobian], place: Callable[[list[Jacobian]], int]) -> Chain:
    """Multiply the factors at place(factors) and the next, until one factor is left."""
    factors, steps = list(jacobians), []
    if not factors:
        raise ValueError("jacobians must hold at least one Jacobian, got none")
    while len(factors) > 1:
        i = place(factors)
        left, right = factors[i : i + 2]
        product = left @ right
        work = multiplications(operator.matmul, left, right)
        held = sum(factor.nbytes for factor in factors) + product.nbytes
        steps.append(Step(left.shape, right.shape, product.shape, work, product.nbytes, held))
        factors[i : i + 2] = [product]
    return Chain(factors[0], tuple(steps))


def multiplications(fn: Callable[..., Any], *args: Any) -> int:
    """Return the number of floating-point multiplications of fn, counted in its jaxpr.

    It counts elementwise and matrix products and convolutions: in a loop of known length for every iteration, and of
    branches (`jax.lax.platform_dependent` makes one a platform) the most expensive one.

    Args:
        fn: the function.
        *args: its arguments: pytrees of arrays or of `jax.ShapeDtypeStruct`.

    Raises:
        ValueError: fn holds a while loop, whose number of iterations depends on values.

    Example:
        >>> import jax.numpy as jnp
        >>> multiplications(lambda W, x: 2 * (W @ x), jnp.ones((3, 5)), jnp.ones(5))
        18
        >>> multiplications(lambda x, h: jnp.convolve(x, h, "same"), jnp.ones(10), jnp.ones(3))
        30
    """
    cost = cost_of(jax.make_jaxpr(fn)(*args).jaxpr)
    if not cost.decided:
        raise ValueError("fn must do an amount of work that its shapes determine, got a while loop")
    return cost.multiplications
