"""Primitives as `jax.experimental.hijax` asks for them: a right one, and wrong ones in each of their parts.

The class is `VJPHiPrimitive` on JAX 0.10 and 0.11, `HiPrim` from 0.12 on, where dce and remat have other signatures.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_derivatives import linear_call
from jax.experimental import hijax

from vjplib.compat import bind_eqn, interpreted, without_dead_code

Base: Any = getattr(hijax, "HiPrim", None) or getattr(hijax, "VJPHiPrimitive")  # noqa: B009
NEW = hasattr(hijax, "HiPrim")


class Primitive(Base):
    """A primitive of arrays: under one signature on both lines, `without` for dce and `recomputed` for remat."""

    def __init__(self, *avals: Any, **params: Any) -> None:
        self.in_avals, self.params = avals, params
        self.out_aval = jax.tree.map(jax.typeof, jax.eval_shape(lambda *args: self.body(params, *args), *avals))
        super().__init__()

    @staticmethod
    def body(params: Any, *args: Any) -> Any:
        raise NotImplementedError

    def expand(self, *args: Any) -> Any:
        return self.body(self.params, *args)

    def recomputed(self, *args: Any) -> Any:
        return self(*args)

    def dce(self, used_outs: Any, live_ins: Any = None) -> Any:
        return self.without(used_outs) or super().dce(used_outs, *([live_ins] if NEW else []))

    def without(self, used_outs: Any) -> Any:
        return None

    def remat(self, policy: Any, *args: Any) -> Any:
        out = self(*args)
        return (out, (), lambda _, *args: self.recomputed(*args)) if NEW else (out, self.recomputed)


def calls(primitive: Callable) -> Callable:
    """Return the function that applies a primitive made for the types of its arguments."""

    def call(x: Any, w: Any) -> Any:
        x, w = jnp.asarray(x), jnp.asarray(w)
        return primitive(jax.typeof(x), jax.typeof(w))(x, w)

    return call


class ScaledSoftmax(Primitive):
    """softmax(x) times w, and log sum exp(x), over the last axis; x and w are of one shape."""

    def __init__(self, x: Any, w: Any, slip: str = "") -> None:
        super().__init__(x, w, slip=slip)

    @staticmethod
    def body(params: Any, *args: Any) -> Any:
        x, w = args
        return jax.nn.softmax(x) * w, jax.nn.logsumexp(x, axis=-1)

    def vjp_fwd(self, nzs_in: Any, /, *args: Any) -> Any:
        x, w = args
        y, lse = self(x, w)
        return ((1.001 * y if self.params["slip"] == "forward" else y), lse), (jax.nn.softmax(x), w)

    def vjp_bwd_retval(self, res: Any, outgrad: Any, /) -> Any:
        (p, w), (g, h) = res, map(hijax.instantiate_zeros, outgrad)
        slip, weighted = self.params["slip"], g * w
        row = 0 if slip == "vjp" else jnp.sum(p * weighted, -1, keepdims=True)
        aside = 0 if slip == "vjp of the second output" else p * h[..., None]
        return p * (weighted - row) + aside, g * p * (2 if slip == "vjp of w" else 1)

    def tangent(self, p: Any, w: Any, tx: Any, tw: Any, drop: bool) -> Any:
        tx, tw = map(hijax.instantiate_zeros, (tx, tw))
        mean = jnp.sum(p * tx, -1, keepdims=True)
        return p * (tx - (0 if drop else mean)) * w + p * tw, mean[..., 0]

    def jvp(self, primals: Any, tangents: Any) -> Any:
        (x, w), slip = primals, self.params["slip"]
        y, lse = self(x, w)
        y = 1.001 * y if slip == "jvp's primal" else y
        return (y, lse), self.tangent(jax.nn.softmax(x), w, *tangents, drop=slip == "jvp")

    def lin(self, nzs_in: Any, *primals: Any) -> Any:
        x, w = primals
        return self(x, w), (jax.nn.softmax(x), w)

    def linearized(self, residuals: Any, *tangents: Any) -> Any:
        return self.tangent(*residuals, *tangents, drop=self.params["slip"] == "lin")

    def batch(self, axis_data: Any, args: Any, dims: Any) -> Any:
        """Stack in front: every operation is along the last axis."""
        slip, size = self.params["slip"], axis_data.size
        stacked = []
        for a, d in zip(args, dims, strict=True):
            moved = a if d is None or slip == "batch axis" else jnp.moveaxis(a, d, 0)
            stacked.append(jnp.broadcast_to(a, (size, *a.shape)) if d is None else moved)
        inner = {"batched vjp": "vjp", "batched jvp": "jvp"}.get(slip, slip)
        return ScaledSoftmax(*map(jax.typeof, stacked), slip=inner)(*stacked), (0, 0)

    def recomputed(self, *args: Any) -> Any:
        y, lse = self(*args)
        return (y, 1.01 * lse) if self.params["slip"] == "remat" else (y, lse)

    def without(self, used_outs: Any) -> Any:
        if tuple(used_outs) != (False, True):
            return None
        return (True, False), (False, True), LogSumExp(self.in_avals[0], slip=self.params["slip"])


class LogSumExp(Primitive):
    """What is left of `ScaledSoftmax` where its first output is not used: a primitive of one argument and output."""

    def __init__(self, x: Any, slip: str = "") -> None:
        super().__init__(x, slip=slip)

    @staticmethod
    def body(params: Any, *args: Any) -> Any:
        (x,) = args
        return (jnp.max(x, -1) if params["slip"] == "dce" else jax.nn.logsumexp(x, axis=-1),)

    def vjp_fwd(self, nzs_in: Any, /, *args: Any) -> Any:
        return self(*args), args

    def vjp_bwd_retval(self, res: Any, outgrad: Any, /) -> Any:
        (g,) = map(hijax.instantiate_zeros, outgrad)
        factor = 2 if self.params["slip"] == "vjp after dce" else 1
        return (factor * g[..., None] * jax.nn.softmax(res[0]),)


class Product(Primitive):
    """x times w, whose backward adds to accumulators in place of returning cotangents."""

    def __init__(self, x: Any, w: Any, slip: str = "") -> None:
        super().__init__(x, w, slip=slip)

    @staticmethod
    def body(params: Any, *args: Any) -> Any:
        return args[0] * args[1]

    def vjp_fwd(self, nzs_in: Any, /, *args: Any) -> Any:
        return self(*args), args

    def vjp_bwd(self, res: Any, outgrad: Any, /, *arg_accums: Any) -> None:
        (x, w), g = res, hijax.instantiate_zeros(outgrad)
        arg_accums[0].accum(g * w)
        arg_accums[1].accum(g * x)
        if self.params["slip"] == "accumulated twice":
            arg_accums[1].accum(g * x)


def product(slip: str = "") -> Callable:
    return calls(lambda x, w: Product(x, w, slip))


def linear_product(transpose: Callable) -> Callable:
    """Return x @ w.T by `linear_call`, linear in x, with a transpose of its own: of g and w."""

    def call(x: Any, w: Any) -> Any:
        w = lax.stop_gradient(w)  # JAX does not differentiate what such a function is not linear in
        return linear_call(lambda w, x: x @ w.T, lambda w, g: transpose(g, w), w, x)

    return call


def scaled_softmax(slip: str = "") -> Callable:
    return calls(lambda x, w: ScaledSoftmax(x, w, slip))


class WrongPrimitive(NamedTuple):
    """A wrong primitive, what is wrong, how the program that shows it is made, and whether plain use shows it."""

    fn: Callable[..., Any]
    part: str
    shows: Callable[[Callable], Any]


X, W = (np.random.default_rng(n).standard_normal((5, 5)).astype(np.float32) for n in (1, 2))
ONES = np.ones((5, 5), np.float32)


def plain(x: Any, w: Any) -> Any:
    return ScaledSoftmax.body({}, x, w)


def _pulled(f: Callable, *args: Any) -> Any:
    y, back = jax.vjp(f, *args)
    return y, back(jax.tree.map(lambda a: jnp.cos(jnp.arange(a.size, dtype=a.dtype)).reshape(a.shape), y))


def _second_alone(f: Callable) -> Any:
    return jax.jit(lambda x: f(x, W)[1])(X)


def _gradient_of_second(f: Callable) -> Any:
    return jax.grad(lambda x: jnp.sum(f(x, W)[1]))(X)


def _cut(f: Callable, back: bool) -> Any:
    """Evaluate the program after dead code is gone, as lowering does."""
    closed = jax.make_jaxpr(lambda x, w: f(x, w)[1])(X, W)
    program = without_dead_code(closed.jaxpr)

    def run(x: Any, w: Any) -> Any:
        return interpreted(program, closed.consts, [x, w], bind_eqn)[0]

    return jax.grad(lambda x: jnp.sum(run(x, W)))(X) if back else run(X, W)


def _recomputed(f: Callable) -> Any:
    prim = ScaledSoftmax(*map(jax.typeof, map(jnp.asarray, (X, W))), slip=slip_of(f))
    rest = prim.remat(None, X, W)[1:]
    return rest[1](rest[0], X, W) if NEW else rest[0](X, W)


def slip_of(f: Callable) -> str:
    (eqn,) = jax.make_jaxpr(f)(X, W).eqns
    return getattr(eqn.params.get("_prim"), "params", {}).get("slip", "")


SHOWS: dict[str, Callable[[Callable], Any]] = {
    "vjp": lambda f: _pulled(f, X, W),
    "vjp of w": lambda f: _pulled(f, X, W),
    "vjp of the second output": lambda f: _pulled(f, X, W),
    "forward": lambda f: _pulled(f, X, W),
    "jvp": lambda f: jax.jvp(f, (X, W), (ONES * X, ONES)),
    "jvp's primal": lambda f: jax.jvp(f, (X, W), (ONES, ONES)),
    "lin": lambda f: jax.linearize(f, X, W)[1](X, ONES),
    "batch axis": lambda f: jax.vmap(f, in_axes=(1, 0))(X, W),
    "batched vjp": lambda f: _pulled(jax.vmap(f), X, W),
    "batched jvp": lambda f: jax.jvp(jax.vmap(f), (X, W), (X, ONES)),
    "remat": _recomputed,
    "dce": lambda f: _cut(f, back=False),
    "vjp after dce": lambda f: _cut(f, back=True),
}
RIGHT = scaled_softmax()
RIGHT_ONES = {"primitive": RIGHT, "accumulators": product(), "linear_call": linear_product(lambda g, w: g @ w)}
WRONG = {slip: WrongPrimitive(scaled_softmax(slip), slip, shows) for slip, shows in SHOWS.items()}
WRONG |= {
    "accumulated twice": WrongPrimitive(product("accumulated twice"), "vjp", SHOWS["vjp"]),
    "linear_call: not transposed": WrongPrimitive(linear_product(lambda g, w: g @ w.T), "transpose", SHOWS["vjp"]),
    "linear_call: twice as much": WrongPrimitive(linear_product(lambda g, w: 2 * g @ w), "transpose", SHOWS["vjp"]),
}
PLAIN = {"accumulated twice": lambda x, w: x * w} | dict.fromkeys(
    list(WRONG)[-2:], lambda x, w: x @ lax.stop_gradient(w).T
)
