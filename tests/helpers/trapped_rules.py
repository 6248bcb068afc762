"""Rules that fell into a trap, as an author would write them, with the claims that show it; and right ones of the kind.

Traps that `wrong_rules.FAULTS` hold already are named in `OF_FAULTS`.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero
from wrong_rules import hidden_state, normal, rule


class Call(NamedTuple):
    """A rule, a call of it, the claims to examine and options of `verify`."""

    fn: Any
    args: tuple[Any, ...]
    claims: tuple[str, ...]
    options: Mapping[str, Any] = {}


V, PAIR = normal(7), (normal(7), normal(7))
POWERS = {"vary": {"n": (1, 2, 3)}}


def static_rule(primal: Callable, fwd: Callable, bwd: Callable, *static: int) -> Any:
    made = jax.custom_vjp(primal, nondiff_argnums=static)
    made.defvjp(fwd, bwd)
    return made


def option_rule(primal: Callable, fwd: Callable, bwd: Callable, **options: bool) -> Any:
    made = jax.custom_vjp(primal)
    made.defvjp(fwd, bwd, **options)
    return made


# Broadcasting: the scale stands along the last axis, and both axes are equally long.
def scaled_rows(axis: int) -> Any:
    return rule(
        lambda x, s: x * s, lambda x, s: (x * s, (x, s)), lambda res, g: (g * res[1], jnp.sum(g * res[0], axis=axis))
    )


# What the forward pass returns.
def step(one: Callable) -> Any:
    return rule(lambda x: (x > 0).astype(x.dtype), lambda x: (jnp.where(x > 0, one(x), 0.0), None), lambda _, g: (g,))


def forward_of_another_shape() -> Any:
    return rule(lambda x: jnp.sum(x), lambda x: (jnp.sum(x, keepdims=True), x), lambda x, g: (jnp.full_like(x, g[0]),))


def doubled(last: Callable) -> Any:
    return rule(lambda x: 2 * x, lambda x: (2 * x, None), lambda _, g: (last(g),))


# Nondifferentiated and closed-over values.
def limited(*static: int) -> Any:
    def bwd(*given: Any) -> Any:
        (limit, x), g = given[-2:]
        dx = (g * limit * jnp.cos(x)).astype(x.dtype)
        return (dx,) if static else (jnp.zeros_like(limit), dx)

    return static_rule(
        lambda limit, x: limit * jnp.sin(x), lambda limit, x: (limit * jnp.sin(x), (limit, x)), bwd, *static
    )


def closing_over(x: Any, w: Any) -> Any:
    return rule(lambda x: x * w, lambda x: (x * w, None), lambda _, g: (g * w,))(x)


def kept_outside() -> Any:
    kept = {}

    def fwd(x: Any) -> Any:
        kept["x"] = x
        return jnp.sin(x), None

    return rule(jnp.sin, fwd, lambda _, g: (g * jnp.cos(kept["x"]),))


# Residuals.
def sine_keeping(more: Callable, cosine: Callable) -> Any:
    return rule(jnp.sin, lambda x: (jnp.sin(x), (x, more(x))), lambda res, g: (g * cosine(*res),))


# Second order.
def nested() -> Any:
    """The slope is made by a rule of its own, which gives its argument no cotangent."""
    slope = rule(lambda x: 3 * x**2, lambda x: (3 * x**2, None), lambda _, g: (None,))
    return rule(lambda x: x**3, lambda x: (x**3, slope(x)), lambda s, g: (g * s,))


def backward_of_rules() -> Any:
    """A forward that JAX cannot differentiate, for its callback."""
    cosine = rule(jnp.cos, lambda x: (jnp.cos(x), x), lambda x, g: (-g * jnp.sin(x),))
    return rule(jnp.sin, lambda x: (jnp.sin(x), x), lambda x, g: (g * cosine(x),))


def calls_itself() -> Any:
    """As JAX's own tutorial has it."""
    sine = jax.custom_vjp(lambda x: jnp.sin(x))
    sine.defvjp(lambda x: (sine(x), x), lambda x, g: (g * jnp.cos(x),))
    return sine


# Integer outputs, and masks.
def sorted_with_order(touch: Callable) -> Any:
    def primal(x: Any) -> Any:
        return jnp.sort(x), jnp.argsort(x)

    def bwd(order: Any, gs: Any) -> Any:
        return (jnp.zeros_like(gs[0]).at[order].set(touch(*gs)),)

    return rule(primal, lambda x: (primal(x), jnp.argsort(x)), bwd)


def masked_mean(count: Callable) -> Any:
    def primal(x: Any, kept: Any) -> Any:
        return jnp.sum(jnp.where(kept, x, 0)) / jnp.maximum(jnp.sum(kept), 1)

    def bwd(kept: Any, g: Any) -> Any:
        return kept * g / count(jnp.sum(kept)), None

    return rule(primal, lambda x, kept: (primal(x, kept), kept), bwd)


# Symbolic zeros.
def symbolic(bwd: Callable, bare: Callable = lambda a: a.value) -> Any:
    def primal(x: Any, y: Any) -> Any:
        return jnp.sin(x) * y, jnp.cos(x)

    def fwd(x: Any, y: Any) -> Any:
        return primal(bare(x), bare(y)), (bare(x), bare(y))

    return option_rule(primal, fwd, bwd, symbolic_zeros=True)


def multiplied(res: Any, gs: Any) -> Any:
    (x, y), (g, h) = res, gs
    return g * jnp.cos(x) * y - h * jnp.sin(x), g * jnp.sin(x)


def instantiated(g: Any) -> Any:
    symbolic = isinstance(g, SymbolicZero)
    shape, dtype = g.shape, g.dtype
    return jnp.zeros(shape, dtype) if symbolic else g


def filled(res: Any, gs: Any) -> Any:
    return multiplied(res, [instantiated(g) for g in gs])


def given_up(res: Any, gs: Any) -> Any:
    if any(isinstance(g, SymbolicZero) for g in gs):
        return tuple(map(jnp.zeros_like, res))
    return multiplied(res, gs)


# Batches.
def on_the_host(method: str) -> Any:
    def product(g: Any, x: Any) -> Any:
        return np.stack([a * np.cos(b) for a, b in zip(g, x, strict=True)]) if g.ndim > 1 else g * np.cos(x)

    def bwd(x: Any, g: Any) -> Any:
        return (jax.pure_callback(product, jax.ShapeDtypeStruct(g.shape, g.dtype), g, x, vmap_method=method),)

    return rule(jnp.sin, lambda x: (jnp.sin(x), x), bwd)


# Values, sizes, cotangents.
def power(slope: Callable) -> Any:
    return static_rule(lambda x, n: x**n, lambda x, n: (x**n, x), lambda n, x, g: (g * slope(x, n),), 1)


def pairs(front: Callable) -> Any:
    """Sums of pairs; of an odd number the last is left over."""

    def primal(x: Any) -> Any:
        return x[: x.shape[0] // 2 * 2].reshape(-1, 2).sum(1)

    def bwd(x: Any, g: Any) -> Any:
        dx, rest = jnp.repeat(g, 2), x.shape[0] % 2
        return (jnp.pad(dx, (front(rest), rest - front(rest))),)

    return rule(primal, lambda x: (primal(x), x), bwd)


def centred(mean: Callable) -> Any:
    return rule(lambda x, s: jnp.sin(x) * s, lambda x, s: (jnp.sin(x) * s, (x, s)), lambda res, g: mean(*res, g))


def scaled_by_one(ds: Callable) -> Any:
    """A scalar times a vector."""
    return rule(lambda x, s: x * s, lambda x, s: (x * s, (x, s)), lambda res, g: (g * res[1], ds(g, res[0])))


def through(dtype: Any) -> Any:
    def bwd(x: Any, g: Any) -> Any:
        return ((g.astype(dtype) * jnp.cos(x).astype(dtype)).astype(x.dtype),)

    return rule(jnp.sin, lambda x: (jnp.sin(x), x), bwd)


# Python in place of JAX.
def branching(x: Any) -> Any:
    return jnp.sin(x) if x[0] > 0 else -jnp.sin(x)


def measured(x: Any, g: Any) -> Any:
    return (g * jnp.cos(x) if float(jnp.sum(g)) != 0 else jnp.zeros_like(x),)


TRAPPED: dict[str, tuple[Call, ...]] = {
    "summed-over-the-wrong-axis": (Call(scaled_rows(1), (normal(5, 5), normal(5)), ("value",)),),
    "forward-is-not-the-primal": (Call(forward_of_another_shape(), (V,), ("contract",)),),
    "weak-type": (
        Call(step(lambda x: 1.0), (V,), ("contract",)),
        Call(doubled(lambda g: 2.0), (np.float32(3),), ("contract",)),
    ),
    "array-in-nondiff": (Call(limited(0), (np.array([2.0], np.float32), V), ("contract",)),),
    "closed-over-value": (Call(closing_over, PAIR, ("value",)),),
    "second-order-zero": (Call(nested(), (V,), ("value", "second_order")),),
    "forward-over-reverse": (
        Call(backward_of_rules(), (V,), ("second_order",)),
        Call(calls_itself(), (V,), ("second_order",)),
        Call(calls_itself(), (V,), ("second_order",), {"effort": "standard"}),
    ),
    "optimize-remat": (
        Call(
            option_rule(jnp.sin, lambda x: (jnp.sin(x), x), lambda x, g: (g * jnp.cos(x),), optimize_remat=True),
            (V,),
            ("second_order",),
        ),
    ),
    "residuals-kept": (
        Call(sine_keeping(jnp.cos, lambda x, more: more), (V,), ("residuals",), {"residual_bytes": 28}),
    ),
    "residual-is-no-array": (
        Call(sine_keeping(lambda x: "cos", lambda x, name: getattr(jnp, name)(x)), (V,), ("contract", "value")),
        Call(sine_keeping(lambda x: x.dtype, lambda x, dtype: jnp.cos(x).astype(dtype)), (V,), ("contract",)),
    ),
    "zero-times-infinity": (Call(masked_mean(lambda n: n), (V, np.arange(7) % 3 > 0), ("edges",)),),
    "integers": (Call(sorted_with_order(lambda g, order: g + 0 * order), (V,), ("contract", "value")),),
    "symbolic-zeros": (
        Call(symbolic(multiplied), PAIR, ("contract", "transforms")),
        Call(symbolic(given_up), PAIR, ("transforms",)),
        Call(symbolic(filled, lambda a: a), PAIR, ("contract", "value")),
    ),
    "unbatched-residuals": (Call(on_the_host("expand_dims"), (V,), ("transforms",)),),
    "one-static-value": (
        Call(power(lambda x, n: 2 * x ** (n - 1)), (V, 2), ("value", "variations"), {"effort": "standard", **POWERS}),
    ),
    "odd-or-even": (Call(pairs(lambda rest: rest), (V,), ("value", "variations"), {"effort": "standard"}),),
    "non-uniform-cotangent": (
        Call(scaled_by_one(lambda g, x: jnp.sum(x) * jnp.mean(g)), (V, np.float32(3)), ("value",)),
    ),
    "low-precision-inside": (Call(through(jnp.bfloat16), (V,), ("value",)),),
    "hidden-state": (Call(hidden_state(), (V,), ("transforms",)), Call(kept_outside(), (V,), ("transforms",))),
    "primal-not-jittable": (
        Call(rule(branching, lambda x: (branching(x), x), lambda x, g: (g * jnp.cos(x),)), (V,), ("contract", "value")),
    ),
    "backward-not-jittable": (Call(rule(jnp.sin, lambda x: (jnp.sin(x), x), measured), (V,), ("contract", "value")),),
}

OF_FAULTS = {
    "cotangent dtype": "cotangent-dtype",
    "one array for every leaf": "one-array-for-a-tree",
    "bias not summed at all": "broadcast-not-summed",
    "fwd value other than primal": "forward-is-not-the-primal",
    "zero gradient for one argument": "forgotten-gradient",
    "None for one argument": "forgotten-gradient",
    "second order wrong, first right": "second-order-zero",
    "bwd not linear in g": "not-linear",
    "cotangent clipped at 5": "not-linear",
    "small cotangents dropped": "not-linear",
    "0 times infinity at a boundary": "zero-times-infinity",
    "float cotangent for an integer": "integers",
    "wrong for an axis of one": "batch-of-one",
    "wrong for even lengths": "odd-or-even",
    "edge of the convolution": "edge-of-the-image",
    "no subgradient at a kink": "ties",
    "a tie paid in full to each": "ties",
    "float32 inside float64": "low-precision-inside",
    "overflow at large logits": "overflow",
    "n x n Jacobian formed": "n-by-n",
    "O(n^2) time": "quadratic-time",
    "swapped cotangents of equal shape": "permuted-cotangents",
}
NO_TRAP = ("sign", "factor 2", "0.1 % too large", "dropped rank-one term", "kernel not flipped", "sum(g) for <g, y>")
STANDARD = ("wrong for an axis of one", "wrong for even lengths")  # other sizes are not for "quick"

RIGHT = {
    "scaled along the last axis": Call(scaled_rows(0), (normal(5, 5), normal(5)), ("contract", "value")),
    "a step of its dtype": Call(step(jnp.ones_like), (V,), ("contract",)),
    "doubled": Call(doubled(lambda g: 2 * g), (V,), ("contract", "value")),
    "an array that is differentiated": Call(limited(), (np.array([2.0], np.float32), V), ("contract",)),
    "a number in nondiff": Call(limited(0), (2.0, V), ("contract", "value")),
    "an output of integers": Call(sorted_with_order(lambda g, order: g), (V,), ("contract", "value")),
    "a mean of what is kept": Call(
        masked_mean(lambda n: jnp.maximum(n, 1)), (V, np.arange(7) % 3 > 0), ("value", "edges")
    ),
    "symbolic zeros": Call(symbolic(filled), PAIR, ("contract", "value", "transforms", "second_order")),
    "on the host": Call(on_the_host("sequential"), (V,), ("value", "transforms")),
    "any power": Call(
        power(lambda x, n: n * x ** (n - 1)), (V, 2), ("value", "variations"), {"effort": "standard", **POWERS}
    ),
    "pairs": Call(pairs(lambda rest: 0), (V,), ("value", "variations"), {"effort": "standard"}),
    "a scalar times a vector": Call(scaled_by_one(lambda g, x: jnp.vdot(g, x)), (V, np.float32(3)), ("value",)),
}
