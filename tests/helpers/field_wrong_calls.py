"""Wrong rules as researchers write them that are right at the call given: each is wrong at another call.

Other static values, sizes and batches; and arrays given by keyword.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_batching import custom_vmap
from wrong_rule import WrongRule, keeping, normal, slope_of_tanh, total
from wrong_rules import rule


# Nested batches
def host_softmax_bwd(res: Any, g: Any) -> Any:
    """The host's code takes one batch axis for granted."""

    def host(y: Any, g: Any) -> Any:
        return y * (g - np.sum(g * y, axis=min(1, y.ndim - 1), keepdims=True))

    y = jax.nn.softmax(*res)
    return (jax.pure_callback(host, jax.ShapeDtypeStruct(g.shape, g.dtype), y, g, vmap_method="expand_dims"),)


@custom_vmap
def centred(g: Any) -> Any:
    """Subtract the mean over the last axis of one array, or of a batch."""
    return g - jnp.mean(g, axis=min(1, g.ndim - 1), keepdims=True)


@centred.def_vmap
def _(size: int, batched: Any, g: Any) -> Any:
    return centred(g), True


@custom_vmap
def averaged(g: Any, x: Any) -> Any:
    n = x.shape[min(1, x.ndim - 1)]
    return jnp.broadcast_to(g[..., None], x.shape) / n


@averaged.def_vmap
def _(size: int, batched: Any, g: Any, x: Any) -> Any:
    g, x = (a if b else jnp.broadcast_to(a, (size, *a.shape)) for a, b in zip((g, x), batched, strict=True))
    return averaged(g, x), True


def under_two_vmaps(fn: Callable, plain: Callable) -> Callable:
    def shown() -> Any:
        x = normal(2, 3, 5)
        one, two = (jax.vmap(jax.vmap(jax.grad(lambda x, f=f: jnp.sum(jnp.sin(f(x)))))) for f in (fn, plain))
        return one(x), two(x)

    return shown


def nested(primal: Callable, bwd: Callable) -> WrongRule:
    made = keeping(primal, bwd)
    return WrongRule(made, (normal(5),), "vmap", ("transforms",), shown=under_two_vmaps(made, primal))


NESTED = {
    "nested vmap: the host reduces axis 1": nested(lambda x: jax.nn.softmax(x), host_softmax_bwd),
    "nested vmap: a batching rule that reduces axis 1": nested(lambda x: x - jnp.mean(x), lambda _, g: (centred(g),)),
    "nested vmap: a batching rule that counts axis 1": nested(
        lambda x: jnp.mean(x), lambda res, g: (averaged(g, *res),)
    ),
}


# Static tuples and configurations
def pooled(x: Any, window: Any) -> Any:
    return lax.reduce_window(x, 0.0, lax.add, window, window, "VALID") / np.prod(window)


def pooled_bwd(window: Any, res: Any, g: Any) -> Any:
    """Cells of window[0] by window[1], divided by window[0] twice."""
    spread = jnp.repeat(jnp.repeat(g, window[0], 0), window[1], 1) / window[0] ** 2
    return (jnp.pad(spread, [(0, a - b) for a, b in zip(res[0].shape, spread.shape, strict=True)]),)


def padded(x: Any, pad: Any) -> Any:
    return jnp.pad(x, ((pad[0], pad[0]), (pad[1], pad[1])))


def padded_bwd(pad: Any, res: Any, g: Any) -> Any:
    return (lax.dynamic_slice(g, (pad[0], pad[0]), res[0].shape),)


def rolled_bwd(shift: Any, res: Any, g: Any) -> Any:
    return (jnp.roll(g, (-shift[0], -shift[0]), (0, 1)),)


def mean_over(x: Any, axes: Any) -> Any:
    return jnp.mean(x, axes)


def mean_over_bwd(axes: Any, res: Any, g: Any) -> Any:
    (x,) = res
    return (jnp.broadcast_to(jnp.expand_dims(g, axes), x.shape) / x.shape[axes[0]],)


@dataclass(frozen=True)
class Config:
    """A configuration as models have it, hashable."""

    scale: float = 1.0
    offset: float = 0.0
    causal: bool = False


def configured_norm(x: Any, w: Any, config: Config) -> Any:
    return x * lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-5) * (w + config.offset)


def configured_norm_bwd(config: Config, res: Any, g: Any) -> Any:
    x, w = res
    return jax.vjp(lambda x, w: configured_norm(x, w, Config()), x, w)[1](g)


def configured_scores(q: Any, k: Any, config: Config) -> Any:
    s = config.scale * q @ k.T
    return jax.nn.softmax(jnp.where(jnp.tri(*s.shape, dtype=bool), s, -1e30) if config.causal else s)


def configured_scores_bwd(keep: Callable) -> Callable:
    return lambda config, res, g: jax.vjp(lambda q, k: configured_scores(q, k, keep(config)), *res)[1](g)


def reduced(x: Any, reduction: str = "sum") -> Any:
    return getattr(jnp, reduction)(x**2)


def normed(x: Any, axis: int = -1) -> Any:
    return jax.nn.softmax(x, axis)


def normed_bwd(axis: int, res: Any, g: Any) -> Any:
    y = jax.nn.softmax(res[0], axis)
    return (y * (g - total(g * y)),)


def powered(x: Any, steps: int) -> Any:
    return x**steps


def powered_bwd(steps: int, res: Any, g: Any) -> Any:
    """Unrolled for steps up to 4."""
    (x,) = res
    return (steps * g * jnp.prod(jnp.stack([x] * min(steps - 1, 3) + [jnp.ones_like(x)]), 0),)


IMAGE, PLANE = normal(6, 6), (normal(5, 7),)

STATIC = {
    "static tuple: window[0] for both axes": WrongRule(
        keeping(pooled, pooled_bwd, 1),
        (IMAGE, (2, 2)),
        "window",
        ("variations",),
        wrong_at=((IMAGE, (3, 2)), {}),
        vary={"window": ((2, 3), (3, 2))},
    ),
    "static tuple: pad[0] for both axes": WrongRule(
        keeping(padded, padded_bwd, 1),
        (IMAGE, (1, 1)),
        "pad",
        ("variations",),
        wrong_at=((IMAGE, (1, 2)), {}),
        vary={"pad": ((1, 2),)},
    ),
    "static tuple: shift[0] for both axes, by keyword": WrongRule(
        keeping(lambda x, shift: jnp.roll(x, shift, (0, 1)), rolled_bwd, 1),
        (IMAGE,),
        "shift",
        ("variations",),
        kwargs={"shift": (1, 1)},
        wrong_at=((IMAGE, (1, 2)), {}),
        vary={"shift": ((1, 2),)},
    ),
    "static tuple: the first axis alone counts": WrongRule(
        keeping(mean_over, mean_over_bwd, 1),
        (*PLANE, (0,)),
        "axes",
        ("variations",),
        wrong_at=((*PLANE, (0, 1)), {}),
        vary={"axes": ((1,), (0, 1))},
    ),
    "static config: the offset ignored": WrongRule(
        keeping(configured_norm, configured_norm_bwd, 2),
        (normal(3, 5), normal(5), Config()),
        "config",
        ("variations",),
        wrong_at=((normal(3, 5), normal(5), Config(offset=1.0)), {}),
        vary={"config": (Config(offset=1.0),)},
    ),
    "static config: the scale ignored": WrongRule(
        keeping(configured_scores, configured_scores_bwd(lambda c: Config(causal=c.causal)), 2),
        (normal(5, 3), normal(7, 3), Config()),
        "config",
        ("variations",),
        wrong_at=((normal(5, 3), normal(7, 3), Config(scale=0.5)), {}),
        vary={"config": (Config(scale=0.5),)},
    ),
    "static config: the causal mask ignored": WrongRule(
        keeping(configured_scores, configured_scores_bwd(lambda c: Config(scale=c.scale)), 2),
        (normal(5, 3), normal(5, 3), Config()),
        "config",
        ("variations",),
        wrong_at=((normal(5, 3), normal(5, 3), Config(causal=True)), {}),
        vary={"config": (Config(causal=True),)},
    ),
    "static string: the mean's divisor": WrongRule(
        keeping(reduced, lambda reduction, res, g: (2 * g * res[0],), 1),
        (normal(7),),
        "reduction",
        ("variations",),
        kwargs={"reduction": "sum"},
        wrong_at=((normal(7), "mean"), {}),
        vary={"reduction": ("sum", "mean")},
    ),
    "static axis: the last whatever is asked": WrongRule(
        keeping(normed, normed_bwd, 1),
        (normal(3, 5), -1),
        "axis",
        ("variations",),
        wrong_at=((normal(3, 5), 0), {}),
        vary={"axis": (0, -1)},
    ),
    "static number: loop unrolled four times": WrongRule(
        keeping(powered, powered_bwd, 1),
        (normal(5), 3),
        "steps",
        ("variations",),
        wrong_at=((normal(5), 7), {}),
        vary={"steps": (1, 2, 7)},
    ),
}


# Arrays by keyword
def weighted(x: Any, scale: Any) -> Any:
    return jnp.tanh(x) * scale


def by_keyword(bwd: Callable, argument: str = "scale", claims: tuple[str, ...] = ("value",)) -> WrongRule:
    made = keeping(weighted, bwd)
    return WrongRule(made, (normal(3, 5),), argument, claims, kwargs={"scale": normal(5)})


def tempered(x: Any, temperature: Any) -> Any:
    return jax.nn.softmax(x / temperature)


_tempered = keeping(
    tempered, lambda res, g: (jax.vjp(tempered, *res)[1](g)[0], jax.vjp(tempered, *res)[1](g)[1] * res[1])
)

KEYWORDS = {
    "keyword array: no gradient": by_keyword(
        lambda res, g: (g * slope_of_tanh(res[0]) * res[1], jnp.zeros_like(res[1]))
    ),
    "keyword array: the mean for the sum": by_keyword(
        lambda res, g: (g * slope_of_tanh(res[0]) * res[1], jnp.mean(g * jnp.tanh(res[0]), 0))
    ),
    "keyword array: ignored in the other cotangent": by_keyword(
        lambda res, g: (g * slope_of_tanh(res[0]), jnp.sum(g * jnp.tanh(res[0]), 0)), "x"
    ),
    "keyword number: temperature's cotangent times temperature": WrongRule(
        lambda x, *, temperature: _tempered(x, temperature),
        (normal(3, 5),),
        "temperature",
        kwargs={"temperature": np.float32(0.7)},
        plain=tempered,
    ),
}


# Sizes
def blocks(a: Any, n: int = 64) -> Any:
    return jnp.pad(a, (0, -a.shape[0] % n)).reshape(-1, n)


def recurrence(x: Any) -> Any:
    return lax.scan(lambda h, a: (0.9 * h + a,) * 2, jnp.zeros_like(x[0]), x)[1]


def by_blocks(bwd: Callable) -> Callable:
    """Blocks of 64, without a carry from one to the next."""
    return lambda _, g: (jax.vmap(bwd)(blocks(g)).reshape(-1)[: g.shape[0]],)


def attended(q: Any, keys: Any) -> Any:
    return jnp.sum(jnp.tanh(keys @ q))


def attended_bwd(res: Any, g: Any) -> Any:
    """Of each block of 64 keys, dq overwrites the one before."""
    q, keys = res
    ds, dq = g * slope_of_tanh(keys @ q), jnp.zeros_like(q)
    for start in range(0, keys.shape[0], 64):
        dq = ds[start : start + 64] @ keys[start : start + 64]
    return dq, jnp.outer(ds, q)


def log_sum(x: Any) -> Any:
    return jax.nn.logsumexp(x)


def log_sum_bwd(res: Any, g: Any) -> Any:
    """The running sum is not scaled when the maximum of a block of 64 exceeds the one before."""
    (x,), m, s = res, -jnp.inf, 0.0
    for start in range(0, res[0].shape[0], 64):
        block = x[start : start + 64]
        m = jnp.maximum(m, jnp.max(block))
        s = s + jnp.sum(jnp.exp(block - m))
    return (g * jnp.exp(x - m) / s,)


def smoothed(x: Any, h: Any) -> Any:
    return jnp.convolve(x, h)


def smoothed_bwd(res: Any, g: Any) -> Any:
    """By FFTs of the power of two above len(x), where the cotangent is longer and wraps."""
    x, h = res
    n = 1 << (x.shape[0] - 1).bit_length()
    dx = jnp.fft.irfft(jnp.fft.rfft(jnp.concatenate((g, jnp.zeros(n)))[:n], n) * jnp.conj(jnp.fft.rfft(h, n)), n)
    return dx[: x.shape[0]].astype(x.dtype), jnp.correlate(g, x, mode="valid")


def filtered(x: Any) -> Any:
    n = x.shape[0]
    return jnp.fft.irfft(jnp.fft.rfft(x) / (1 + jnp.arange(n // 2 + 1)), n)


LONG = normal(200)

SIZES = {
    "blocks of 64: cumulated sum without a carry": WrongRule(
        keeping(lambda x: jnp.cumsum(x), by_blocks(lambda g: jnp.cumsum(g[::-1])[::-1])),
        (normal(11),),
        "x",
        ("variations",),
        wrong_at=((LONG,), {}),
    ),
    "blocks of 64: recurrence without a carry": WrongRule(
        keeping(recurrence, by_blocks(lambda g: recurrence(g[::-1])[::-1])),
        (normal(11),),
        "x",
        ("variations",),
        wrong_at=((LONG,), {}),
    ),
    "blocks of 64: the last overwrites": WrongRule(
        keeping(attended, attended_bwd),
        (normal(3), normal(11, 3)),
        "q",
        ("variations",),
        wrong_at=((normal(3), normal(100, 3)), {}),
    ),
    "blocks of 64: the running sum not rescaled": WrongRule(
        keeping(log_sum, log_sum_bwd), (normal(11),), "x", ("variations",), wrong_at=((np.sort(LONG),), {})
    ),
    "order kept in int8": WrongRule(
        rule(
            lambda x: jnp.sort(x),
            lambda x: (jnp.sort(x), jnp.argsort(x).astype(jnp.int8)),
            lambda order, g: (jnp.zeros_like(g).at[order.astype(int)].set(g),),
        ),
        (normal(11),),
        "x",
        ("variations",),
        wrong_at=((LONG,), {}),
    ),
    "FFT: wraps where length and kernel exceed a power of two": WrongRule(
        keeping(smoothed, smoothed_bwd),
        (normal(11), normal(3)),
        "x",
        ("variations",),
        wrong_at=((normal(16), normal(3)), {}),
    ),
    "FFT: odd lengths raise": WrongRule(
        keeping(filtered, lambda _, g: (jnp.fft.irfft(jnp.fft.rfft(g) / (1 + jnp.arange(g.size // 2 + 1))),)),
        (normal(8),),
        "x",
        ("variations",),
        shown=lambda: ("raises", filtered(normal(9))),
    ),
    "rows beyond a multiple of 8 lost": WrongRule(
        keeping(
            lambda x, w: x @ w,
            lambda res, g: (g @ res[1].T, res[0][: len(g) // 8 * 8].T @ g[: len(g) // 8 * 8]),
        ),
        (normal(16, 3), normal(3, 5)),
        "w",
        ("variations",),
        wrong_at=((normal(11, 3), normal(3, 5)), {}),
    ),
}


CALLS: dict[str, WrongRule] = NESTED | STATIC | KEYWORDS | SIZES
