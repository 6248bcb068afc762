"""Named axes: a function that names an axis, as `psum` does, becomes one of arrays with that axis in front.

`jax.vmap` with the axis's name stands for the devices. The derivative is taken inside it, on each device, as it is in
use: JAX cannot differentiate from outside a mapped rule whose backward names the axis.
"""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import wraps
from inspect import Parameter, Signature
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vjplib.compat import is_key, strip_custom_rules
from vjplib.verification.call import CallUnderTest, Static, attempt, combine, is_inexact, kind_of, parameters

_UNBOUND = re.compile(r"unbound axis name: (\w+)")


def unbound_axis(subject: CallUnderTest) -> str:
    """Return the name of an axis that the function itself asks for and nothing binds, empty for none."""
    error = attempt(lambda: subject.outputs(subject.leaves()))
    match = _UNBOUND.search(str(error)) if isinstance(error, NameError) else None
    return match[1] if match else ""


def over_axes(fn: Callable[..., Any], axes: Mapping[str, int], static: Collection[int] = ()) -> Callable[..., Any]:
    """Return fn mapped over named axes, which are the leading axes of every positional array; differentiated inside.

    Args:
        fn: the function of one device's arrays.
        axes: the names, outermost first.
        static: the positions of arguments that are no arrays; keyword arguments are not mapped over either.

    Example:
        >>> centred = over_axes(lambda x: x - jax.lax.pmean(x, "i"), {"i": 2})
        >>> y, back = jax.vjp(centred, jnp.array([1.0, 3.0]))
        >>> y.tolist(), back(jnp.array([1.0, 0.0]))[0].tolist()
        ([-1.0, 1.0], [0.5, -0.5])
    """
    depth = len(axes)

    @wraps(fn)
    def call(*args: Any, **kwargs: Any) -> Any:
        places = [i for i in range(len(args)) if i not in static]
        leaves, tree = jax.tree.flatten([args[i] for i in places])
        moving = [i for i, leaf in enumerate(leaves) if is_inexact(leaf)]

        def one(*leaves: Any) -> Any:
            return fn(*combine(args, places, jax.tree.unflatten(tree, leaves)), **kwargs)

        def forward(*leaves: Any) -> Any:
            return jax.vjp(lambda *moved: one(*combine(leaves, moving, moved)), *(leaves[i] for i in moving))

        def bwd(back: Any, g: Any) -> tuple[Any, ...]:
            gs, outputs = jax.tree.flatten(g)
            known = [i for i, a in enumerate(gs) if a.dtype != jax.dtypes.float0]
            zeros = [np.zeros(np.shape(a)[depth:], jax.dtypes.float0) for a in gs]  # of integers

            def backward(back: Any, *given: Any) -> Any:
                return back(jax.tree.unflatten(outputs, combine(zeros, known, given)))

            dxs = mapped(backward, axes)(back, *(gs[i] for i in known))
            return tuple(combine([None] * len(leaves), moving, dxs))

        primal: Any = mapped(strip_custom_rules(one), axes)
        primal.over_axes = True  # so that `rules_called` leaves it out
        rule = jax.custom_vjp(primal)
        rule.defvjp(mapped(forward, axes), bwd)
        return rule(*leaves)

    return call


def mapped(f: Callable[..., Any], axes: Mapping[str, int]) -> Callable[..., Any]:
    """Return f mapped over the leading axes of all its arguments, the first the outermost."""
    for name in reversed(list(axes)):
        f = jax.vmap(f, axis_name=name)
    return f


def along_axes(call: CallUnderTest, axes: Mapping[str, int]) -> CallUnderTest:
    """Return the call of one device on all, with the arrays of `on_all_devices`; the call itself for no axes."""
    if not axes:
        return call
    static = [i for i, a in enumerate(call.args) if isinstance(a, Static)]
    shape = tuple(axes.values())
    fn: Any = over_axes(call.fn, axes, static)
    named = [Parameter(n, Parameter.POSITIONAL_ONLY) for n in parameters(call.fn, len(call.args)) if n.isidentifier()]
    fn.__signature__ = Signature(named) if len(named) == len(call.args) else Signature()

    def resize(sizes: Mapping[str, int]) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
        assert call.resize is not None
        args, kwargs = call.resize(sizes)
        return jax.tree.map(lambda a: jax.ShapeDtypeStruct((*shape, *a.shape), a.dtype), args), kwargs

    return replace(
        call,
        fn=fn,
        args=on_all_devices(call.args, axes, call.seed),
        reference=call.reference and _reference(call.reference, axes, static),
        resize=call.resize and resize,
        residuals=None if call.residuals is None else call.residuals * int(np.prod(shape)),
        compared=call.compared and _reference(call.compared, axes, static),
        tails=None,
        axes=dict(axes),
    )


def on_all_devices(args: Sequence[Any], axes: Mapping[str, int], seed: int) -> tuple[Any, ...]:
    """Return the arrays of all devices: each has those given, floating ones times a number of its own.

    The first device has them as they are. The number, from 1/2 to 1, leaves sorted arrays sorted, positive ones
    positive and matrices positive definite.
    """
    if not axes:
        return tuple(args)
    shape = tuple(axes.values())
    factors = np.random.default_rng((seed, 9)).uniform(0.5, 1.0, shape)
    factors.flat[0] = 1.0

    def wide(leaf: Any) -> Any:
        if is_key(leaf):
            return jnp.broadcast_to(leaf, (*shape, *jnp.shape(leaf)))
        leaf = np.asarray(leaf)
        if not is_inexact(leaf):
            return np.array(np.broadcast_to(leaf, (*shape, *leaf.shape)))
        given = leaf.astype(kind_of(leaf.dtype, np.float64))
        return (given * factors.reshape(shape + (1,) * leaf.ndim)).astype(leaf.dtype)

    return tuple(a if isinstance(a, Static) else jax.tree.map(wide, a) for a in args)


def _reference(fn: Callable[..., Any], axes: Mapping[str, int], static: Sequence[int]) -> Callable[..., Any]:
    """Return a function that JAX differentiates, mapped over named axes."""

    def call(*args: Any, **kwargs: Any) -> Any:
        places = [i for i in range(len(args)) if i not in static]
        run = lambda *moved: fn(*combine(args, places, moved), **kwargs)  # noqa: E731
        return mapped(run, axes)(*(args[i] for i in places))

    return call
