"""Two shorter ways to define a rule than jax.custom_vjp, tried and left out: docs/add_a_rule.md says why."""

import inspect
from collections.abc import Callable, Generator
from typing import Any

import jax
import jax.numpy as jnp


class Avals:
    """Shapes and dtypes, a pytree without leaves: known to the backward, and no bytes kept."""

    def __init__(self, avals: tuple[Any, ...]) -> None:
        self.avals = avals


jax.tree_util.register_pytree_node(Avals, lambda held: ((), held.avals), lambda avals, _: Avals(avals))


def fitted(dx: Any, shape: tuple[int, ...], dtype: Any) -> Any:
    """Returns a cotangent summed over the axes along which its argument was broadcast, zeros for None."""
    if dx is None:
        return jnp.zeros(shape, dtype)
    dx = jnp.sum(dx, tuple(range(dx.ndim - len(shape))))
    stretched = tuple(i for i, (m, n) in enumerate(zip(dx.shape, shape, strict=True)) if n == 1 != m)
    return jnp.sum(dx, stretched, keepdims=True).astype(dtype)


def by_keywords(primal: Callable[..., Any], **cotangents: Callable[..., Any]) -> Any:
    """Returns a rule of one function a cotangent: what these take by name, arguments, y or g, is what is kept."""
    taken = {name: tuple(inspect.signature(c).parameters) for name, c in cotangents.items()}
    names = tuple(inspect.signature(primal).parameters)
    rule = jax.custom_vjp(primal)

    def fwd(*args: Any) -> Any:
        y = primal(*args)
        have = dict(zip(names, args, strict=True)) | {"y": y}
        kept = {n: have[n] for parameters in taken.values() for n in parameters if n != "g"}
        return y, (kept, Avals(tuple((jnp.shape(a), jnp.result_type(a)) for a in args)))

    def bwd(res: Any, g: Any) -> Any:
        have = res[0] | {"g": g}
        made = [cotangents[n](**{p: have[p] for p in taken[n]}) if n in taken else None for n in names]
        return tuple(fitted(dx, *aval) for dx, aval in zip(made, res[1].avals, strict=True))

    rule.defvjp(fwd, bwd)
    return rule


def by_generator(steps: Callable[..., Generator[Any, Any, Any]]) -> Any:
    """Returns a rule of one generator, that yields the output and is sent its cotangent."""

    def primal(*args: Any) -> Any:
        return next(steps(*args))

    def bwd(args: tuple[Any, ...], g: Any) -> Any:
        running = steps(*args)  # JAX traces the backward when the forward is long over: it begins anew
        next(running)
        try:
            running.send(g)
        except StopIteration as end:
            return tuple(fitted(dx, a.shape, a.dtype) for dx, a in zip(end.value, args, strict=True))
        raise TypeError("steps must yield once")

    rule = jax.custom_vjp(primal)
    rule.defvjp(lambda *args: (primal(*args), args), bwd)
    return rule
