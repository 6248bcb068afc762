"""Wrong rules as researchers write them that are right, or nearly, for numbers of usual size in float32.

Numbers added in few digits, kernels that refuse float64, tails, boundaries, garbage by JAX itself, second order,
state and stale residuals.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from wrong_rule import WrongRule, keeping, normal, slope_of_tanh, total
from wrong_rules import rule


def halves(a: Any) -> Any:
    return jnp.asarray(a, jnp.bfloat16)


# Numbers added in few digits
def added_one_by_one(g: Any) -> Any:
    return lax.scan(lambda s, row: (s + row, None), jnp.zeros_like(g[0]), g)[0]


def in_blocks(a: Any, b: Any) -> Any:
    """Return a.T @ b, accumulated over blocks of 4 rows in their own dtype."""
    a, b = (m.reshape(-1, 4, m.shape[-1]) for m in (a, b))
    return lax.scan(lambda s, ab: (s + ab[0].T @ ab[1], None), jnp.zeros(a.shape[2:] + b.shape[2:], a.dtype), (a, b))[0]


def unit(x: Any) -> Any:
    wide = x.astype(jnp.float32)
    return (wide / jnp.sqrt(total(wide * wide))).astype(x.dtype)


def unit_bwd(res: Any, g: Any) -> Any:
    (x,) = res
    n = jnp.sqrt(total(x * x))
    return ((g - x / n * total(g * x / n)) / n,)


PRECISION = {
    "bfloat16: bias added up row by row": WrongRule(
        keeping(lambda x, bias: x + bias, lambda res, g: (g, added_one_by_one(g))),
        (halves(normal(4096, 3)), halves(normal(3))),
        "bias",
        ("accuracy",),
        ones=True,
    ),
    "bfloat16: scale added up row by row": WrongRule(
        keeping(lambda x, scale: x * scale, lambda res, g: (g * res[1], added_one_by_one(g * res[0]))),
        (halves(np.abs(normal(4096, 3))), halves(normal(3))),
        "scale",
        ("accuracy",),
        ones=True,
    ),
    "bfloat16: weights added up in blocks": WrongRule(
        keeping(lambda x, w: x @ w, lambda res, g: (g @ res[1].T, in_blocks(res[0], g))),
        (halves(np.abs(normal(4096, 3))), halves(normal(3, 5))),
        "w",
        ("accuracy",),
        ones=True,
    ),
    "float16: squares overflow": WrongRule(
        keeping(unit, unit_bwd), (np.float16(300 * normal(3, 11)),), "x", ("accuracy", "edges")
    ),
    "bfloat16: a branch of its own, by a series cut off": WrongRule(
        keeping(
            lambda x: jnp.sin(x),
            lambda res, g: (g * (1 - res[0] ** 2 / 2 if res[0].dtype == jnp.bfloat16 else jnp.cos(res[0])),),
        ),
        (2 * normal(11),),
        "x",
        ("accuracy", "value"),
        wrong_at=((halves(2 * normal(11)),), {}),
    ),
}


# Kernels that refuse float64, a thousandth off
def kernel(x: Any) -> Any:
    if x.dtype == np.float64:
        raise TypeError("the kernel takes float32 and bfloat16")
    return x


def fast_rsqrt(x: Any) -> Any:
    """Return 1 / sqrt(x) by the bit trick and one Newton step: 0.17 % off."""
    y = lax.bitcast_convert_type(0x5F3759DF - (lax.bitcast_convert_type(x, jnp.int32) >> 1), jnp.float32)
    return y * (1.5 - 0.5 * x * y * y)


def table_of_cosine(x: Any) -> Any:
    nodes = jnp.linspace(-4, 4, 65, dtype=kernel(x).dtype)
    return jnp.interp(x, nodes, jnp.cos(nodes))


REFUSING = {
    "refuses float64: a factor 1.001": WrongRule(
        keeping(lambda x: jnp.tanh(kernel(x)), lambda res, g: (1.001 * g * slope_of_tanh(res[0]),)),
        (normal(11),),
        "x",
        plain=jnp.tanh,
    ),
    "refuses float64: the bit trick": WrongRule(
        keeping(lambda x: jnp.sqrt(x), lambda res, g: (g * 0.5 * fast_rsqrt(res[0]),)), (np.abs(normal(11)),), "x"
    ),
    "refuses float64: a table of 65 nodes": WrongRule(
        keeping(lambda x: jnp.sin(kernel(x)), lambda res, g: (g * table_of_cosine(res[0]),)),
        (normal(11),),
        "x",
        plain=jnp.sin,
    ),
}


# Tails
def logistic(x: Any) -> Any:
    return 1 / (1 + jnp.exp(-x))


def logistic_bwd(res: Any, g: Any) -> Any:
    y = logistic(*res)
    return (g * y * (1 - y),)


def tanh_by_exp(x: Any) -> Any:
    e = jnp.exp(-2 * jnp.abs(x))
    return jnp.sign(x) * (1 - e) / (1 + e)


def asinh(x: Any) -> Any:
    """A formula that neither overflows nor cancels."""
    a = jnp.abs(x)
    small = jnp.minimum(a, 1e4)
    return jnp.sign(x) * jnp.where(a < 1e4, jnp.arcsinh(small), jnp.log(2 * jnp.maximum(a, 1e4)))


def softplus(x: Any) -> Any:
    return jnp.logaddexp(x, 0)


def log_ndtr(x: Any) -> Any:
    return jax.scipy.special.log_ndtr(x)


def log_ndtr_bwd(res: Any, g: Any) -> Any:
    (x,) = res
    return (g * jax.scipy.stats.norm.pdf(x) / jnp.maximum(jax.scipy.stats.norm.cdf(x), 1e-30),)


def tail(primal: Callable, bwd: Callable, at: list[float], **more: Any) -> WrongRule:
    where = ((np.array(at, np.float32),), {})
    return WrongRule(
        keeping(primal, bwd), (3 * normal(11),), "x", ("accuracy", "edges"), wrong_at=where, relative=True, **more
    )


TAILS = {
    "tail: logistic by y (1 - y)": tail(logistic, logistic_bwd, [17.5, 20, 30]),
    "tail: tanh by 1 - y^2": tail(tanh_by_exp, lambda res, g: (g * slope_of_tanh(res[0]),), [10, 15, 20]),
    "tail: softplus by 1 - exp(-y)": tail(
        softplus, lambda res, g: (g * (1 - jnp.exp(-softplus(res[0]))),), [-18, -25, -40]
    ),
    "tail: log sigmoid by 1 - sigmoid": tail(
        lambda x: jax.nn.log_sigmoid(x), lambda res, g: (g * (1 - jax.nn.sigmoid(res[0])),), [18, 25, 40]
    ),
    "tail: asinh by x * x": tail(
        asinh, lambda res, g: (g / jnp.sqrt(res[0] * res[0] + 1),), [1e20, 1e22], options={"reference": asinh}
    ),
    "tail: normal's hazard by a quotient": tail(log_ndtr, log_ndtr_bwd, [-13, -15, -20]),
    "tail: sigmoid by y (1 - y), as JAX has it": tail(
        lambda x: jax.nn.sigmoid(x), logistic_bwd, [17.5, 20, 30], plain=logistic, level="note"
    ),
}


# Convolutions whose derivative by JAX is garbage in float32 on the CPU (openxla/xla#48713), where JAX is 0.10
def causal(x: Any, k: Any) -> Any:
    return lax.conv_general_dilated(x, k, (1,), ((4, 0),), dimension_numbers=("NWC", "WIO", "NWC"))


def cropped(x: Any, k: Any) -> Any:
    return lax.conv_general_dilated(x, k, (1,), ((-1, 1),), dimension_numbers=("NWC", "WIO", "NWC"))


GARBAGE = {
    "garbage in float32: JAX's own cotangents of a causal convolution": WrongRule(
        keeping(causal, lambda res, g: jax.vjp(causal, *res)[1](g)), (normal(4, 16, 8), normal(3, 8, 8)), "x"
    ),
    "garbage in float32: JAX's own cotangents of a cropped one": WrongRule(
        keeping(cropped, lambda res, g: jax.vjp(cropped, *res)[1](g)), (normal(4, 16, 8), normal(1, 8, 8)), "k"
    ),
}


# Second order, boundaries
def log_sum(x: Any) -> Any:
    return jax.nn.logsumexp(x)


def root(x: Any) -> Any:
    return jnp.sqrt(x)


def second(fn: Callable, plain: Callable, x: Any, argument: str = "x") -> WrongRule:
    def shown() -> Any:
        one, two = (
            jax.grad(lambda x, f=f: jnp.sum(jnp.sin(jax.grad(lambda x: jnp.sum(f(x)))(x))))(x) for f in (fn, plain)
        )
        return one, two

    return WrongRule(fn, (x,), argument, ("second_order",), shown=shown)


SECOND = {
    "second order: the root detached": second(
        rule(root, lambda x: (root(x), lax.stop_gradient(root(x))), lambda y, g: (g / (2 * y),)),
        root,
        np.abs(normal(7)) + 1,
    ),
    "second order: the probabilities detached": second(
        keeping(log_sum, lambda res, g: (g * lax.stop_gradient(jax.nn.softmax(res[0])),)), log_sum, normal(7)
    ),
    "boundary: product by y / x": WrongRule(
        keeping(lambda x: jnp.prod(x), lambda res, g: (g * jnp.prod(res[0]) / res[0],)),
        (normal(7),),
        "x",
        ("edges",),
        wrong_at=((np.array([1, 0, 2], np.float32),), {}),
    ),
    "boundary: sinc at 0": WrongRule(
        keeping(
            lambda x: jnp.sinc(x / np.pi), lambda res, g: (g * (jnp.cos(res[0]) - jnp.sin(res[0]) / res[0]) / res[0],)
        ),
        (normal(7),),
        "x",
        ("edges",),
        wrong_at=((np.array([1, 0, 2], np.float32),), {}),
    ),
    "boundary: norm with a guard in the forward alone": WrongRule(
        keeping(
            lambda x: jnp.sqrt(jnp.sum(x * x) + 1e-12), lambda res, g: (g * res[0] / jnp.sqrt(jnp.sum(res[0] ** 2)),)
        ),
        (normal(7),),
        "x",
        ("edges",),
        wrong_at=((np.zeros(7, np.float32),), {}),
    ),
}


# State
def by_tracer(traced: float, concrete: float) -> WrongRule:
    def bwd(res: Any, g: Any) -> Any:
        return ((traced if isinstance(g, Tracer) else concrete) * g * jnp.cos(res[0]),)

    made = keeping(lambda x: jnp.sin(x), bwd)

    def shown() -> Any:
        _, back = jax.vjp(made, normal(7))
        g = np.ones(7, np.float32)
        return (jax.jit(back)(g), back(g))[:: 1 if traced != 1 else -1]

    argument = "x" if traced != 1 else "not jitted"
    return WrongRule(made, (normal(7),), argument, ("value", "transforms"), shown=shown)


def every_second_call() -> WrongRule:
    calls = []

    def bwd(res: Any, g: Any) -> Any:
        calls.append(0)
        return (g * jnp.cos(res[0]) * (1 + len(calls) % 2),)

    made = keeping(lambda x: jnp.sin(x), bwd)

    def shown() -> Any:
        x = normal(7)
        return tuple(jax.grad(lambda x: jnp.sum(made(x)))(x) for _ in range(2))

    return WrongRule(made, (normal(7),), "x", ("value", "transforms"), shown=shown)


def host_sum() -> WrongRule:
    """The host's accumulator is never set to zero."""
    kept: dict[tuple[int, ...], Any] = {}

    def host(g: Any) -> Any:
        kept[g.shape] = kept.get(g.shape, 0) + np.asarray(g)
        return np.asarray(kept[g.shape], g.dtype)

    def bwd(res: Any, g: Any) -> Any:
        added = jax.pure_callback(host, jax.ShapeDtypeStruct(g.shape, g.dtype), g, vmap_method="sequential")
        return (added * jnp.cos(res[0]),)

    made = keeping(lambda x: jnp.sin(x), bwd)

    def shown() -> Any:
        x = normal(7)
        return tuple(jax.grad(lambda x: jnp.sum(made(x)))(x) for _ in range(2))[::-1]

    return WrongRule(made, (normal(7),), "x", ("value", "transforms"), shown=shown)


def host_slot() -> WrongRule:
    """The residual lies in one slot on the host, which the next call overwrites."""
    slot: dict[str, Any] = {}

    def put(x: Any) -> Any:
        slot["x"] = np.array(x)
        return np.sin(slot["x"])

    def like(x: Any) -> Any:
        return jax.ShapeDtypeStruct(x.shape, x.dtype)

    def fwd(x: Any) -> Any:
        y = jax.pure_callback(put, like(x), x, vmap_method="sequential")
        return y, y

    def bwd(y: Any, g: Any) -> Any:
        def host(g: Any, y: Any) -> Any:
            return (g * np.cos(slot["x"])).astype(g.dtype)

        return (jax.pure_callback(host, like(g), g, y, vmap_method="sequential"),)

    made = rule(lambda x: jnp.sin(x), fwd, bwd)

    def shown() -> Any:
        a, b = normal(7), normal(7)
        both = jax.grad(lambda a, b: jnp.sum(made(a)) + jnp.sum(made(b)), argnums=(0, 1))(a, b)
        return both, (jnp.cos(a), jnp.cos(b))

    return WrongRule(made, (normal(7),), "x", ("transforms", "value"), shown=shown)


STATE = {
    "a factor missing under jit only": by_tracer(2.0, 1.0),
    "a factor missing without jit only": by_tracer(1.0, 2.0),
    "state: every second call doubled": every_second_call(),
    "state: the host's sum not set to zero": host_sum(),
    "state: one slot for the residual": host_slot(),
    "stop_gradient: the gate cut off in the forward": WrongRule(
        rule(
            lambda x, gate: x * jax.nn.sigmoid(gate),
            lambda x, gate: (x * jax.nn.sigmoid(gate), (x, lax.stop_gradient(jax.nn.sigmoid(gate)))),
            lambda res, g: (g * res[1], jnp.zeros_like(g)),
        ),
        (normal(7), normal(7)),
        "gate",
    ),
    "stop_gradient: a temperature believed to be constant": WrongRule(
        keeping(
            lambda x, t: jax.nn.softmax(x / t),
            lambda res, g: (jax.vjp(lambda x: jax.nn.softmax(x / res[1]), res[0])[1](g)[0], jnp.zeros_like(res[1])),
        ),
        (normal(3, 5), np.float32(0.7)),
        "t",
    ),
    "stale residual: kept after the update": WrongRule(
        rule(lambda x: jnp.sin(x) ** 2, lambda x: (jnp.sin(x) ** 2, jnp.sin(x)), lambda x, g: (g * jnp.sin(2 * x),)),
        (normal(7),),
        "x",
    ),
}

DIGITS: dict[str, WrongRule] = PRECISION | REFUSING | TAILS | GARBAGE | SECOND | STATE
