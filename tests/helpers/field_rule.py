"""A rule as researchers write it, with a call of it: the record, and the decorator that makes one."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

Maker = Callable[[], tuple[Callable, Callable, Callable]]


class FieldRule(NamedTuple):
    """A rule and a call of it.

    `options` are what an author may be asked to tell `verify`. `plain` is a function that JAX differentiates rightly at
    the call, where neither the primal nor the reference is one.
    """

    name: str
    kind: str
    fn: Any
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    options: Mapping[str, Any]
    plain: Callable | None = None


def collector(table: list[FieldRule]) -> Callable[..., Callable[[Maker], Maker]]:
    """Return a decorator that adds to a table the rule whose primal, fwd and bwd the decorated function returns."""

    def of_kind(
        kind: str,
        *args: Any,
        static: Sequence[int] = (),
        kwargs: Mapping[str, Any] | None = None,
        plain: Callable | None = None,
        optimize_remat: bool = False,
        **options: Any,
    ) -> Callable[[Maker], Maker]:
        def add(make: Maker) -> Maker:
            primal, fwd, bwd = make()
            primal.__name__ = make.__name__
            made = jax.custom_vjp(primal, nondiff_argnums=tuple(static))
            made.defvjp(fwd, bwd, optimize_remat=optimize_remat)
            table.append(FieldRule(make.__name__, kind, made, args, kwargs or {}, options, plain))
            return make

        return add

    return of_kind


def normal(*shape: int, seed: int = 0, dtype: Any = np.float32) -> np.ndarray:
    return np.random.default_rng((seed, *shape)).standard_normal(shape).astype(dtype)


def complex_normal(*shape: int) -> np.ndarray:
    return normal(*shape) + np.complex64(1j) * normal(*shape, seed=1)


def uniform(low: float, high: float, *shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng((seed, *shape)).uniform(low, high, shape).astype(np.float32)


def integers(most: int, *shape: int, seed: int = 0) -> np.ndarray:
    """Return integers from 0 to `most`, which is among them."""
    drawn = np.random.default_rng((seed, most, *shape)).integers(0, most + 1, shape).astype(np.int32)
    drawn.flat[-1] = most
    return drawn


def simplex(*shape: int, seed: int = 0) -> np.ndarray:
    """Return positive numbers that sum to 1 along the last axis."""
    drawn = uniform(0.2, 1.0, *shape, seed=seed)
    return drawn / drawn.sum(axis=-1, keepdims=True)


def symmetric(n: int, seed: int = 0) -> np.ndarray:
    A = normal(n, n, seed=seed)
    return (A + A.T) / 2


def positive_definite(n: int, seed: int = 0) -> np.ndarray:
    A = normal(n, n, seed=seed)
    return A @ A.T / n + np.eye(n, dtype=np.float32)


def of_one_number(function: Callable, slope: Callable) -> tuple[Callable, Callable, Callable]:
    """Return the passes of an elementwise function."""
    return lambda x: function(x), lambda x: (function(x), x), lambda x, g: (g * slope(x),)
