"""Rules with one fault each, every one of which verification must catch; and right ones that look suspicious.

A fault is put into an otherwise right backward, so that only the claim about it can tell.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

_RNG = np.random.default_rng(0)


def normal(*shape: int) -> np.ndarray:
    return _RNG.standard_normal(shape).astype(np.float32)


def rule(primal: Callable, fwd: Callable, bwd: Callable) -> Any:
    made = jax.custom_vjp(primal)
    made.defvjp(fwd, bwd)
    return made


class Fault(NamedTuple):
    """A wrong rule, a call of it, what it should be (None for its primal), the claims that must fail, and how."""

    fn: Any
    args: tuple[Any, ...]
    reference: Callable | None
    claims: tuple[str, ...]
    raises: bool = False
    options: Mapping[str, Any] = {}


def softmax(bwd: Callable, primal: Callable = lambda x: jax.nn.softmax(x)) -> Any:
    return rule(primal, lambda x: (primal(x), primal(x)), lambda y, g: (bwd(y, g),))


def linear(bwd: Callable) -> Any:
    return rule(lambda x, W, b: x @ W.T + b, lambda x, W, b: (x @ W.T + b, (x, W)), bwd)


def right_linear(res: Any, g: Any) -> tuple[Any, Any, Any]:
    x, W = res
    return g @ W, g.T @ x, jnp.sum(g, axis=0)


def correlate(x: Any, h: Any) -> Any:
    k = h.shape[0]
    padded = jnp.pad(x, ((k - 1) // 2, k // 2))
    return sum(h[j] * padded[j : j + x.shape[0]] for j in range(k))


def convolution(dx: Callable, dh: Callable | None = None) -> Any:
    def right_dh(x: Any, h: Any, g: Any) -> Any:
        return jax.vjp(lambda h: correlate(x, h), h)[1](g)[0]

    def bwd(res: Any, g: Any) -> tuple[Any, Any]:
        x, h = res
        return dx(h, g), (dh or right_dh)(x, h, g)

    return rule(correlate, lambda x, h: (correlate(x, h), (x, h)), bwd)


def edge_lost(h: Any, g: Any) -> Any:
    return correlate(g, h[::-1]).at[0].set(0.0)


def toeplitz(h: Any, n: int) -> Any:
    offset = jnp.arange(n)[None, :] - jnp.arange(n)[:, None] + (h.shape[0] - 1) // 2
    return jnp.where((offset >= 0) & (offset < h.shape[0]), h[jnp.clip(offset, 0, h.shape[0] - 1)], 0)


def row_by_row(h: Any, g: Any) -> Any:
    """g^T J with each row of J made when it is needed: O(n) memory, O(n^2) time."""
    n = g.shape[0]

    def row(i: Any, dx: Any) -> Any:
        offset = jnp.arange(n) - i + (h.shape[0] - 1) // 2
        inside = (offset >= 0) & (offset < h.shape[0])
        return dx + g[i] * jnp.where(inside, h[jnp.clip(offset, 0, h.shape[0] - 1)], 0)

    return jax.lax.fori_loop(0, n, row, jnp.zeros_like(g))


def naive_softmax(x: Any) -> Any:
    e = jnp.exp(x)
    return e / jnp.sum(e, axis=-1, keepdims=True)


def inner(g: Any, y: Any) -> Any:
    return jnp.sum(g * y, axis=-1, keepdims=True)


def cube_with_detached_residual() -> Any:
    """x^3 whose backward uses 3 x^2 from a residual cut off from x: the first derivative is right, the second is 0."""

    def fwd(x: Any) -> Any:
        return x**3, jax.lax.stop_gradient(3 * x**2)

    return rule(lambda x: x**3, fwd, lambda res, g: (res * g,))


X, W, B = normal(2, 5), normal(3, 5), normal(3)
SQUARE = (normal(5, 5), normal(5, 5))
LOGITS = (normal(3, 7),)
SIGNAL = (normal(11), normal(3))

FAULTS = {
    "sign": Fault(softmax(lambda y, g: -y * (g - inner(g, y))), LOGITS, None, ("value",)),
    "factor 2": Fault(softmax(lambda y, g: 2 * y * (g - inner(g, y))), LOGITS, None, ("value",)),
    "0.1 % too large": Fault(softmax(lambda y, g: 1.001 * y * (g - inner(g, y))), LOGITS, None, ("value",)),
    "dropped rank-one term": Fault(softmax(lambda y, g: y * g), LOGITS, None, ("value",)),
    "sum(g) for <g, y>": Fault(
        softmax(lambda y, g: y * (g - jnp.sum(g, axis=-1, keepdims=True))), LOGITS, None, ("value",)
    ),
    "kernel not flipped": Fault(convolution(lambda h, g: correlate(g, h)), SIGNAL, None, ("value",)),
    "edge of the convolution": Fault(convolution(edge_lost), SIGNAL, None, ("value",)),
    "bias not summed, but its first row": Fault(
        linear(lambda res, g: (*right_linear(res, g)[:2], g[0])), (X, W, B), None, ("value",)
    ),
    "bias not summed at all": Fault(
        linear(lambda res, g: (*right_linear(res, g)[:2], g)), (X, W, B), None, ("contract",), True
    ),
    "swapped cotangents of equal shape": Fault(
        rule(jnp.matmul, lambda a, b: (a @ b, (a, b)), lambda res, g: (res[0].T @ g, g @ res[1].T)),
        SQUARE,
        None,
        ("value",),
    ),
    "cotangent dtype": Fault(
        softmax(lambda y, g: (y * (g - inner(g, y))).astype(jnp.float32)), LOGITS, None, ("contract",)
    ),
    "fwd value other than primal": Fault(
        rule(jnp.sin, lambda x: (jnp.sin(x) + 1e-3, x), lambda x, g: (g * jnp.cos(x),)), LOGITS, None, ("value",)
    ),
    "bwd not linear in g": Fault(
        rule(jnp.sin, lambda x: (jnp.sin(x), x), lambda x, g: (jnp.clip(g * jnp.cos(x), -1, 1),)),
        LOGITS,
        None,
        ("linearity",),
    ),
    "zero gradient for one argument": Fault(
        linear(lambda res, g: (right_linear(res, g)[0], jnp.zeros_like(res[1]), right_linear(res, g)[2])),
        (X, W, B),
        None,
        ("value",),
    ),
    "None for one argument": Fault(
        linear(lambda res, g: (right_linear(res, g)[0], None, right_linear(res, g)[2])), (X, W, B), None, ("value",)
    ),
    "second order wrong, first right": Fault(cube_with_detached_residual(), LOGITS, None, ("second_order",)),
    "overflow at large logits": Fault(
        softmax(lambda y, g: y * (g - inner(g, y)), naive_softmax), LOGITS, jax.nn.softmax, ("edges",)
    ),
    "n x n Jacobian formed": Fault(convolution(lambda h, g: g @ toeplitz(h, g.shape[0])), SIGNAL, None, ("growth",)),
    "n x n Jacobian of softmax formed": Fault(
        softmax(lambda y, g: jnp.einsum("bi,bij->bj", g, jax.vmap(lambda r: jnp.diag(r) - jnp.outer(r, r))(y))),
        LOGITS,
        None,
        ("growth",),
    ),
    "O(n^2) time": Fault(convolution(row_by_row), SIGNAL, None, ("growth",)),
}


def tree_sum(p: Any) -> Any:
    return p["a"] * p["b"]


def hidden_state() -> Any:
    """sin whose backward draws a number on the host: each run is another."""
    rng = np.random.default_rng(0)

    def noise(g: Any) -> Any:
        return g * np.float64(1 + 1e-12 * rng.standard_normal())

    def bwd(x: Any, g: Any) -> Any:
        drawn = jax.pure_callback(noise, jax.ShapeDtypeStruct(g.shape, g.dtype), g, vmap_method="sequential")
        return (drawn * jnp.cos(x),)

    return rule(jnp.sin, lambda x: (jnp.sin(x), x), bwd)


FAULTS |= {
    "one array for every leaf": Fault(
        rule(tree_sum, lambda p: (tree_sum(p), p), lambda p, g: (g * p["b"],)),
        ({"a": normal(5), "b": normal(5)},),
        None,
        ("contract",),
    ),
    "fails on NumPy arguments": Fault(
        rule(jnp.sin, lambda x: (jnp.sin(x), x), lambda x, g: (g.at[...].multiply(jnp.cos(x)),)),
        (normal(5),),
        None,
        ("transforms",),
        raises=True,
    ),
    "wrong for one scale of inputs": Fault(
        rule(jnp.sin, lambda x: (jnp.sin(x), x), lambda x, g: (g * jnp.where(jnp.abs(x) < 5, jnp.cos(x), 0),)),
        (normal(5),),
        None,
        ("value",),
    ),
    "float32 inside float64": Fault(
        rule(
            jnp.sin,
            lambda x: (jnp.sin(x), x),
            lambda x, g: ((g.astype(jnp.float32) * jnp.cos(x)).astype(g.dtype),),
        ),
        (normal(5),),
        None,
        ("linearity", "second_order"),
    ),
    "0 times infinity at a boundary": Fault(
        rule(lambda x: x * jnp.abs(x), lambda x: (x * jnp.abs(x), x), lambda x, g: (g * 2 * x * x / jnp.abs(x),)),
        (normal(5),),
        None,
        ("edges",),
    ),
}


@partial(jax.custom_vjp)
def scaled(x: Any, n: Any) -> Any:
    return x * n


scaled.defvjp(lambda x, n: (x * n, (x, n)), lambda res, g: (g * res[1], jnp.zeros_like(res[1])))
FAULTS["float cotangent for an integer"] = Fault(scaled, (normal(5), np.int32(3)), None, ("contract",))


def sine(bwd: Callable) -> Any:
    return rule(jnp.sin, lambda x: (jnp.sin(x), x), lambda x, g: (bwd(x, g),))


def clipped_norm(x: Any, g: Any) -> Any:
    return jnp.cos(x) * g * jnp.minimum(1, 10 / jnp.maximum(jnp.sqrt(jnp.sum(g * g)), 1e-30))


def every_tie(x: Any, g: Any) -> Any:
    return jnp.where(x == jnp.max(x), g, 0)


def mean_bwd(n: Any, g: Any) -> Any:
    return jnp.broadcast_to(g, (n,)) / max(n, 2)


def mean(x: Any) -> Any:
    return jnp.sum(x) / x.shape[0]


FAULTS |= {
    "cotangent clipped at 5": Fault(
        sine(lambda x, g: jnp.cos(x) * jnp.clip(g, -5, 5)), (normal(7),), None, ("linearity",)
    ),
    "small cotangents dropped": Fault(
        sine(lambda x, g: jnp.where(jnp.abs(g) < 1e-4, 0, g * jnp.cos(x))), (normal(7),), None, ("linearity",)
    ),
    "cotangent clipped by its norm": Fault(sine(clipped_norm), (normal(7),), None, ("linearity",)),
    "no subgradient at a kink": Fault(
        rule(jax.nn.relu, lambda x: (jax.nn.relu(x), x), lambda x, g: (g * jnp.where(x == 0, 12345, x > 0),)),
        (normal(5),),
        None,
        ("edges",),
    ),
    "a tie paid in full to each": Fault(
        rule(lambda x: jnp.max(x), lambda x: (jnp.max(x), x), lambda x, g: (every_tie(x, g),)),
        (normal(5),),
        None,
        ("edges",),
    ),
    "wrong for an axis of one": Fault(
        rule(mean, lambda x: (mean(x), x), lambda x, g: (mean_bwd(x.shape[0], g),)), (normal(7),), None, ("variations",)
    ),
    "wrong for even lengths": Fault(
        rule(mean, lambda x: (mean(x), x), lambda x, g: (jnp.full_like(x, g) / (x.shape[0] // 2 * 2 + 1),)),
        (normal(7),),
        None,
        ("variations",),
    ),
    "wrong for the other sign": Fault(
        rule(
            lambda x: jnp.where(x > 0, x, 0.1 * x),
            lambda x: (jnp.where(x > 0, x, 0.1 * x), None),
            lambda _, g: (g,),
        ),
        (np.abs(normal(7)),),
        None,
        ("edges",),
        options={"domain": {"x": "real"}},
    ),
    "float cotangent for an integer, under jit": Fault(jax.jit(scaled), (normal(5), np.int32(3)), None, ("contract",)),
}
