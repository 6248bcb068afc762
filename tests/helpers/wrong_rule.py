"""WrongRule: an entry of the tables of wrong rules, and the proof that a rule is wrong."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vjplib.compat import custom_vjp_of

_RNG = np.random.default_rng(16)
NARROW = (np.float32, jnp.bfloat16, jnp.float16)


def normal(*shape: int) -> np.ndarray:
    return _RNG.standard_normal(shape).astype(np.float32)


class WrongRule(NamedTuple):
    """A wrong rule, a call of it, and what a right report of that call says.

    Args:
        fn: the rule, or a function that calls it.
        args: positional arguments of the call.
        argument: what a failure must name: the argument whose cotangent is wrong, or the transform under which.
        claims: the claims under any of which it counts as caught.
        kwargs: keyword arguments of the call.
        options: of `verify`.
        plain: the same function, which JAX differentiates; None for the primal of the rule.
        wrong_at: the call at which it is wrong, if the given one is right.
        vary: values that static arguments may take, as an author would state them.
        shown: returns what was given and what is right, where comparing cotangents at a call does not show it.
        relative: whether the error shows element by element only.
        ones: whether it shows for cotangents of one sign only.
        level: of the finding that tells it: "note" where autodiff of the plain function errs as much.
    """

    fn: Callable[..., Any]
    args: tuple[Any, ...]
    argument: str
    claims: tuple[str, ...] = ("value",)
    kwargs: Mapping[str, Any] = {}
    options: Mapping[str, Any] = {}
    plain: Callable[..., Any] | None = None
    wrong_at: tuple[tuple[Any, ...], Mapping[str, Any]] | None = None
    vary: Mapping[str, tuple[Any, ...]] = {}
    shown: Callable[[], tuple[Any, Any]] | None = None
    relative: bool = False
    ones: bool = False
    level: str = "fail"


def keeping(primal: Callable, bwd: Callable, *static: int) -> Any:
    """Return the rule that keeps its arguments: bwd takes static arguments, then the others as a tuple, then g."""
    made = jax.custom_vjp(primal, nondiff_argnums=static)

    def fwd(*args: Any) -> Any:
        return primal(*args), tuple(a for i, a in enumerate(args) if i not in static)

    made.defvjp(fwd, bwd)
    return made


def pullback(fn: Callable, args: tuple[Any, ...], kwargs: Mapping[str, Any], g: Callable) -> list[np.ndarray]:
    """Return the cotangents of all floating arrays, keyword ones too, for cotangents that g makes of the outputs."""
    leaves, tree = jax.tree.flatten((args, dict(kwargs)))
    moving = [i for i, a in enumerate(leaves) if hasattr(a, "dtype") and jnp.issubdtype(a.dtype, jnp.inexact)]

    def flat(*moved: Any) -> Any:
        filled = list(leaves)
        for i, a in zip(moving, moved, strict=True):
            filled[i] = a
        a, k = jax.tree.unflatten(tree, filled)
        return fn(*a, **k)

    y, back = jax.vjp(flat, *(leaves[i] for i in moving))
    return [np.asarray(a) for a in back(jax.tree.map(g, y))]


def given_and_right(case: WrongRule) -> tuple[Any, Any]:
    """Return the rule's cotangents where it is wrong, and those of autodiff of the plain function in float64."""
    if case.shown is not None:
        return case.shown()
    parts = custom_vjp_of(case.fn)
    plain = case.plain or (parts.primal if parts else None)
    assert plain is not None, "a function that is no custom_vjp itself needs plain"
    args, kwargs = case.wrong_at or (case.args, case.kwargs)

    def g(y: Any) -> Any:
        if not jnp.issubdtype(y.dtype, jnp.inexact):
            return np.zeros(y.shape, jax.dtypes.float0)
        drawn = np.ones(y.shape) if case.ones else np.random.default_rng(3).standard_normal(y.shape)
        return jnp.asarray(drawn, y.dtype)

    with jax.enable_x64(True):
        wide = jax.tree.map(lambda a: a.astype(np.float64) if getattr(a, "dtype", 0) in NARROW else a, (args, kwargs))
        right = pullback(plain, wide[0], wide[1], g)
    return pullback(case.fn, args, kwargs, g), right


def rows(a: Any) -> Any:
    return jnp.mean(a, -1, keepdims=True)


def total(a: Any) -> Any:
    return jnp.sum(a, -1, keepdims=True)


def slope_of_tanh(x: Any) -> Any:
    return 1 - jnp.tanh(x) ** 2
