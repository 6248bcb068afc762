"""Wrong rules as researchers write them, each wrong at the call given.

Each differs from a right rule by one slip: a dropped term, the wrong axis of a square, a mask forgotten.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from wrong_rule import WrongRule, keeping, normal, rows, total


# Norms
def rms(x: Any) -> Any:
    return jnp.sqrt(rows(x * x) + 1e-5)


def layer_norm(x: Any, scale: Any, bias: Any) -> Any:
    centred = x - rows(x)
    return centred / jnp.sqrt(rows(centred**2) + 1e-5) * scale + bias


def layer_norm_bwd(drop: str) -> Callable:
    def bwd(res: Any, g: Any) -> Any:
        x, scale, _ = res
        sigma = jnp.sqrt(rows((x - rows(x)) ** 2) + 1e-5)
        xhat, h = (x - rows(x)) / sigma, g * scale
        dx = h - (0 if drop == "mean" else rows(h)) - (0 if drop == "variance" else xhat * rows(h * xhat))
        dscale = jnp.sum((g if drop == "axis" else g * xhat), 1 if drop == "axis" else 0)
        return dx / sigma, dscale, jnp.sum(g, 0)

    return bwd


def batch_norm(x: Any) -> Any:
    return (x - jnp.mean(x, 0)) / jnp.sqrt(jnp.var(x, 0) + 1e-5)


def group_norm(x: Any) -> Any:
    """Two groups of channels, each normalised."""
    parts = x.reshape(x.shape[0], 2, -1)
    return (parts / rms(parts)).reshape(x.shape)


def group_norm_bwd(res: Any, g: Any) -> Any:
    (x,), parts = res, g.reshape(g.shape[0], 2, -1)
    r = rms(x.reshape(parts.shape))
    y = x.reshape(parts.shape) / r
    return (((parts - y * jnp.mean(parts * y, (1, 2), keepdims=True)) / r).reshape(x.shape),)


def weight_norm(v: Any, gain: Any) -> Any:
    return gain * v / jnp.linalg.norm(v)


def cosine(a: Any, b: Any) -> Any:
    return jnp.sum(a * b) / (jnp.linalg.norm(a) * jnp.linalg.norm(b))


NORMS = {
    "layer norm: the variance term dropped": WrongRule(
        keeping(layer_norm, layer_norm_bwd("variance")), (normal(3, 7), normal(7), normal(7)), "x"
    ),
    "layer norm: the mean term dropped": WrongRule(
        keeping(layer_norm, layer_norm_bwd("mean")), (normal(3, 7), normal(7), normal(7)), "x"
    ),
    "layer norm: square, scale's cotangent along the wrong axis": WrongRule(
        keeping(layer_norm, layer_norm_bwd("axis")), (normal(5, 5), normal(5), normal(5)), "scale"
    ),
    "RMS norm: sum for mean": WrongRule(
        keeping(
            lambda x: x / rms(x), lambda res, g: ((g - res[0] / rms(res[0]) ** 2 * total(g * res[0])) / rms(*res),)
        ),
        (normal(4, 5),),
        "x",
    ),
    "RMS norm: epsilon forgotten in the backward": WrongRule(
        keeping(
            lambda x: x / jnp.sqrt(rows(x * x) + 1e-2),
            lambda res, g: ((g - res[0] * rows(g * res[0]) / rows(res[0] ** 2)) / jnp.sqrt(rows(res[0] ** 2)),),
        ),
        (normal(4, 5),),
        "x",
    ),
    "batch norm: the statistics held constant": WrongRule(
        keeping(batch_norm, lambda res, g: (g / jnp.sqrt(jnp.var(res[0], 0) + 1e-5),)), (normal(7, 3),), "x"
    ),
    "group norm: the mean over all groups": WrongRule(keeping(group_norm, group_norm_bwd), (normal(3, 10),), "x"),
    "weight norm: v's direction not projected out": WrongRule(
        keeping(weight_norm, lambda res, g: (g * res[1] / (n := jnp.linalg.norm(res[0])), jnp.sum(g * res[0]) / n)),
        (normal(7), np.float32(1.5)),
        "v",
    ),
    "cosine: the second norm not squared": WrongRule(
        keeping(
            cosine,
            lambda res, g: tuple(
                g * (b / jnp.linalg.norm(a) / jnp.linalg.norm(b) - cosine(a, b) * a / jnp.linalg.norm(a))
                for a, b in (res, res[::-1])
            ),
        ),
        (normal(7), normal(7)),
        "a",
    ),
}


# Attention
def scores(q: Any, k: Any, causal: bool = True) -> Any:
    s = q @ k.T / np.sqrt(q.shape[-1])
    return jnp.where(jnp.tri(*s.shape, dtype=bool), s, -jnp.inf) if causal else s


def attention(q: Any, k: Any, v: Any) -> Any:
    return jax.nn.softmax(scores(q, k)) @ v


def attention_bwd(slip: str) -> Callable:
    def bwd(res: Any, g: Any) -> Any:
        q, k, v = res
        p = jax.nn.softmax(scores(q, k, causal=slip != "mask"))
        dp = g @ v.T
        ds = p * (dp - (0 if slip == "row sum" else total(p * dp))) / np.sqrt(q.shape[-1])
        return ds @ k, ds.T @ q * (np.sqrt(q.shape[-1]) if slip == "scale" else 1), p.T @ g

    return bwd


QKV = (normal(5, 4), normal(5, 4), normal(5, 4))


def grouped(q: Any, k: Any) -> Any:
    """Scores of grouped queries: two heads of queries for each of keys."""
    return jnp.einsum("hqd,hkd->hqk", q, jnp.repeat(k, 2, 0))


def grouped_bwd(res: Any, g: Any) -> Any:
    q, k = res
    return jnp.einsum("hqk,hkd->hqd", g, jnp.repeat(k, 2, 0)), jnp.einsum("hqk,hqd->hkd", g, q)[::2]


def rotated(x: Any, angle: Any) -> Any:
    a, b = jnp.split(x, 2, -1)
    return jnp.concatenate((a * jnp.cos(angle) - b * jnp.sin(angle), a * jnp.sin(angle) + b * jnp.cos(angle)), -1)


ATTENTION = {
    "attention: no row sum": WrongRule(keeping(attention, attention_bwd("row sum")), QKV, "q"),
    "attention: the scale on one side alone": WrongRule(keeping(attention, attention_bwd("scale")), QKV, "k"),
    "attention: the mask dropped in the backward": WrongRule(keeping(attention, attention_bwd("mask")), QKV, "v"),
    "attention: of grouped queries the first alone counts": WrongRule(
        keeping(grouped, grouped_bwd), (normal(4, 3, 5), normal(2, 7, 5)), "k"
    ),
    "attention: soft cap without its slope": WrongRule(
        keeping(lambda s: 2 * jnp.tanh(s / 2), lambda res, g: (g,)), (normal(3, 5),), "s"
    ),
    "rotary embedding: turned forward in the backward": WrongRule(
        keeping(rotated, lambda res, g: (rotated(g, res[1]), jax.vjp(rotated, *res)[1](g)[1])),
        (normal(3, 8), normal(3, 4)),
        "x",
    ),
    "attention: position bias not summed over heads, but the first": WrongRule(
        keeping(lambda s, bias: s + bias, lambda res, g: (g, g[0])), (normal(2, 3, 5), normal(3, 5)), "bias"
    ),
}


# Losses and masks
def masked_loss(x: Any, y: Any, mask: Any) -> Any:
    return jnp.sum(jnp.where(mask, (x - y) ** 2, 0)) / jnp.sum(mask)


def cross_entropy(logits: Any, labels: Any) -> Any:
    """Labels of -1 are padding."""
    picked = jnp.take_along_axis(jax.nn.log_softmax(logits), jnp.maximum(labels, 0)[:, None], -1)[:, 0]
    return -jnp.sum(jnp.where(labels >= 0, picked, 0))


def cross_entropy_bwd(res: Any, g: Any) -> Any:
    logits, labels = res
    return g * (jax.nn.softmax(logits) - jax.nn.one_hot(labels, logits.shape[-1])), None


def focal(z: Any) -> Any:
    return -((1 - jax.nn.sigmoid(z)) ** 2) * jax.nn.log_sigmoid(z)


def gaussian_kl(mean: Any, logvar: Any) -> Any:
    return 0.5 * jnp.sum(jnp.exp(logvar) + mean**2 - 1 - logvar)


def dropout(x: Any, key: Any) -> Any:
    return jnp.where(jax.random.bernoulli(key, 0.5, x.shape), x / 0.5, 0)


def dropout_bwd(other: Callable) -> Callable:
    return lambda res, g: (dropout(g, other(res[1])), None)


def gumbel(x: Any, key: Any) -> Any:
    return jax.nn.softmax(x + jax.random.gumbel(key, x.shape))


def gumbel_bwd(res: Any, g: Any) -> Any:
    x, key = res
    y = jax.nn.softmax(x + jax.random.gumbel(jax.random.split(key)[0], x.shape))
    return y * (g - total(g * y)), None


MASK, KEY = np.arange(7) % 3 > 0, np.array([0, 7], np.uint32)

LOSSES = {
    "masked loss: divided by all, not by the kept": WrongRule(
        keeping(masked_loss, lambda res, g: (*(s * g * 2 * (res[0] - res[1]) * res[2] / 7 for s in (1, -1)), None)),
        (normal(7), normal(7), MASK),
        "x",
    ),
    "masked loss: the mask dropped": WrongRule(
        keeping(
            masked_loss, lambda res, g: (*(s * g * 2 * (res[0] - res[1]) / jnp.sum(res[2]) for s in (1, -1)), None)
        ),
        (normal(7), normal(7), MASK),
        "x",
    ),
    "cross entropy: padding has a gradient": WrongRule(
        keeping(cross_entropy, cross_entropy_bwd), (normal(4, 5), np.array([1, -1, 4, 0])), "logits"
    ),
    "focal loss: the power held constant": WrongRule(
        keeping(focal, lambda res, g: (-g * (1 - jax.nn.sigmoid(res[0])) ** 3,)), (normal(7),), "z"
    ),
    "cotangents of equal shape swapped: mean and logvar": WrongRule(
        keeping(gaussian_kl, lambda res, g: (g * 0.5 * (jnp.exp(res[1]) - 1), g * res[0])),
        (normal(7), normal(7)),
        "mean",
    ),
    "Huber: the sign lost beyond delta": WrongRule(
        keeping(
            lambda r: jnp.where(jnp.abs(r) < 1, 0.5 * r * r, jnp.abs(r) - 0.5),
            lambda res, g: (g * jnp.where(jnp.abs(res[0]) < 1, res[0], 1),),
        ),
        (3 * normal(11),),
        "r",
    ),
    "binary cross entropy: the weight of positives dropped": WrongRule(
        keeping(
            lambda z, y: -(3 * y * jax.nn.log_sigmoid(z) + (1 - y) * jax.nn.log_sigmoid(-z)),
            lambda res, g: (g * (jax.nn.sigmoid(res[0]) - res[1]), None),
        ),
        (normal(6), np.array([0, 1, 1, 0, 1, 0])),
        "z",
    ),
    "dropout: another key in the backward": WrongRule(
        keeping(dropout, dropout_bwd(lambda key: jax.random.split(key)[1])), (normal(5, 7), KEY), "x"
    ),
    "dropout: not divided by the share kept": WrongRule(
        keeping(dropout, lambda res, g: (jnp.where(jax.random.bernoulli(res[1], 0.5, g.shape), g, 0), None)),
        (normal(5, 7), KEY),
        "x",
    ),
    "Gumbel softmax: noise drawn anew": WrongRule(keeping(gumbel, gumbel_bwd), (normal(3, 5), KEY), "x"),
}


# Products, axes, indices
def dense(x: Any, w: Any, bias: Any) -> Any:
    return x @ w + bias


def segments(x: Any, ids: Any) -> Any:
    return jax.ops.segment_sum(x, ids, 4)


IDS = np.array([0, 0, 1, 2, 2, 3, 3])


def embed(table: Any, ids: Any) -> Any:
    return table[ids]


def permuted(x: Any, order: Any) -> Any:
    return x[order]


def bilinear(x: Any, w: Any, y: Any) -> Any:
    return x @ w @ y


def cumulated(x: Any) -> Any:
    return jnp.cumprod(x)


def solve(a: Any, b: Any) -> Any:
    return jnp.linalg.solve(a, b)


def solve_bwd(res: Any, g: Any) -> Any:
    a, b = res
    db = jnp.linalg.solve(a, g)
    return -jnp.outer(db, jnp.linalg.solve(a, b)), db


def cholesky_bwd(res: Any, g: Any) -> Any:
    """Phi keeps the whole diagonal."""
    low = jnp.linalg.cholesky(res[0])
    s = jax.scipy.linalg.solve_triangular(low, jnp.tril(low.T @ g), lower=True, trans=1)
    s = jax.scipy.linalg.solve_triangular(low, s.T, lower=True, trans=1).T
    return ((s + s.T) / 2,)


SPD = (lambda a: a @ a.T + 4 * np.eye(4, dtype=np.float32))(normal(4, 4))

PRODUCTS = {
    "dense: square, bias summed over features": WrongRule(
        keeping(dense, lambda res, g: (g @ res[1].T, res[0].T @ g, jnp.sum(g, 1))),
        (normal(5, 5), normal(5, 5), normal(5)),
        "bias",
    ),
    "dense: square, w not transposed": WrongRule(
        keeping(dense, lambda res, g: (g @ res[1], res[0].T @ g, jnp.sum(g, 0))),
        (normal(3, 5), normal(5, 5), normal(5)),
        "x",
    ),
    "dense: the batch's mean for its sum": WrongRule(
        keeping(dense, lambda res, g: (g @ res[1].T, res[0].T @ g / len(g), jnp.mean(g, 0))),
        (normal(3, 7), normal(7, 5), normal(5)),
        "w",
    ),
    "broadcast scale not summed": WrongRule(
        keeping(lambda x, scale: x * scale, lambda res, g: (g * res[1], g * res[0])),
        (normal(3, 5), normal(5)),
        "scale",
        ("contract",),
        shown=lambda: ((3, 5), (5,)),
    ),
    "cotangents of equal shape swapped: bilinear": WrongRule(
        keeping(bilinear, lambda res, g: (g * res[0] @ res[1], g * jnp.outer(res[0], res[2]), g * res[1] @ res[2])),
        (normal(5), normal(5, 5), normal(5)),
        "x",
    ),
    "a dictionary's cotangents swapped": WrongRule(
        keeping(
            lambda p: p["weight"] * p["bias"] + p["bias"] ** 2,
            lambda res, g: ({"weight": g * (res[0]["weight"] + 2 * res[0]["bias"]), "bias": g * res[0]["bias"]},),
        ),
        ({"weight": normal(5), "bias": normal(5)},),
        "bias",
    ),
    "segment sum: off by one at the last segment": WrongRule(
        keeping(segments, lambda res, g: (g[jnp.minimum(res[1], 2)], None)), (normal(7, 3), IDS), "x"
    ),
    "segment sum: the last row lost": WrongRule(
        keeping(segments, lambda res, g: (g[res[1]].at[-1].set(0), None)), (normal(7, 3), IDS), "x"
    ),
    "embedding: set, where ids repeat": WrongRule(
        keeping(embed, lambda res, g: (jnp.zeros_like(res[0]).at[res[1]].set(g), None)),
        (normal(5, 3), np.array([0, 2, 2, 4, 0])),
        "table",
    ),
    "gather: not by the inverse order": WrongRule(
        keeping(permuted, lambda res, g: (g[res[1]], None)), (normal(5), np.array([2, 0, 3, 4, 1])), "x"
    ),
    "cumulated sum: exclusive in the backward": WrongRule(
        keeping(lambda x: jnp.cumsum(x), lambda res, g: (jnp.cumsum(g[::-1])[::-1] - g,)), (normal(7),), "x"
    ),
    "solve: the matrix not transposed": WrongRule(keeping(solve, solve_bwd), (normal(4, 4), normal(4)), "b"),
    "logdet: the inverse not transposed": WrongRule(
        keeping(lambda a: jnp.linalg.slogdet(a)[1], lambda res, g: (g * jnp.linalg.inv(res[0]),)), (normal(4, 4),), "a"
    ),
    "Cholesky: the diagonal not halved": WrongRule(
        keeping(lambda a: jnp.linalg.cholesky((a + a.T) / 2), cholesky_bwd), (SPD,), "a"
    ),
    "transposed convolution by numpy's order": WrongRule(
        keeping(
            lambda x, k: jnp.convolve(x, k, mode="same"),
            lambda res, g: (
                jnp.convolve(g, res[1], mode="same"),
                jax.vjp(lambda k: jnp.convolve(res[0], k, mode="same"), res[1])[1](g)[0],
            ),
        ),
        (normal(11), normal(3)),
        "x",
    ),
}


# Activations, complex numbers, integers
def swiglu(x: Any, gate: Any) -> Any:
    return x * jax.nn.silu(gate)


def gelu(x: Any) -> Any:
    return 0.5 * x * (1 + jnp.tanh(0.7978845608 * (x + 0.044715 * x**3)))


def gelu_bwd(res: Any, g: Any) -> Any:
    (x,) = res
    t = jnp.tanh(0.7978845608 * (x + 0.044715 * x**3))
    return (g * (0.5 * (1 + t) + 0.5 * x * (1 - t * t) * 0.7978845608 * (1 + 0.044715 * x**2)),)


def wave(*shape: int) -> np.ndarray:
    return (normal(*shape) + 1j * normal(*shape)).astype(np.complex64)


def quantized(x: Any) -> Any:
    return jnp.clip(jnp.round(x), -1, 1)


def straight_through(x: Any) -> Any:
    return jnp.clip(x, -1, 1) + lax.stop_gradient(quantized(x) - jnp.clip(x, -1, 1))


def shared_max(x: Any) -> Any:
    return jnp.sum(jnp.where(x == jnp.max(x), x, 0)) / lax.stop_gradient(jnp.sum(x == jnp.max(x)))


OTHERS = {
    "SwiGLU: the gate's slope without its second term": WrongRule(
        keeping(swiglu, lambda res, g: (g * jax.nn.silu(res[1]), g * res[0] * jax.nn.sigmoid(res[1]))),
        (normal(3, 5), normal(3, 5)),
        "gate",
    ),
    "GELU by tanh: the cube's factor 3 forgotten": WrongRule(keeping(gelu, gelu_bwd), (normal(11),), "x"),
    "PReLU: the slope's cotangent over all, not over the negative": WrongRule(
        keeping(
            lambda x, slope: jnp.where(x > 0, x, slope * x),
            lambda res, g: (g * jnp.where(res[0] > 0, 1, res[1]), jnp.sum(g * res[0])),
        ),
        (normal(11), np.float32(0.2)),
        "slope",
    ),
    "complex product: conjugated as in PyTorch": WrongRule(
        keeping(lambda x, w: x * w, lambda res, g: (g * jnp.conj(res[1]), g * jnp.conj(res[0]))),
        (wave(5), wave(5)),
        "x",
    ),
    "complex modulus: the conjugate forgotten": WrongRule(
        keeping(lambda z: jnp.abs(z), lambda res, g: (g * res[0] / jnp.abs(res[0]),)), (wave(5),), "z"
    ),
    "FFT: by the inverse transform": WrongRule(
        keeping(lambda z: jnp.fft.fft(z), lambda res, g: (jnp.fft.ifft(g) * len(g),)), (wave(7),), "z"
    ),
    "integers: a float cotangent for ids": WrongRule(
        keeping(embed, lambda res, g: (jnp.zeros_like(res[0]).at[res[1]].add(g), jnp.zeros(res[1].shape))),
        (normal(5, 3), np.array([0, 2, 2])),
        "ids",
        ("contract",),
        shown=lambda: (np.float32, jax.dtypes.float0),
    ),
    "integers: a float cotangent for a mask": WrongRule(
        keeping(
            lambda x, mask: jnp.where(mask, x, 0), lambda res, g: (jnp.where(res[1], g, 0), jnp.zeros(res[1].shape))
        ),
        (normal(7), MASK),
        "mask",
        ("contract",),
        shown=lambda: (np.float32, jax.dtypes.float0),
    ),
    "straight through: passed where the clip is active": WrongRule(
        keeping(quantized, lambda res, g: (g,)),
        (2 * normal(11),),
        "x",
        options={"reference": straight_through},
        plain=straight_through,
    ),
    "ties: in full to the first, where shares are claimed": WrongRule(
        keeping(lambda x: jnp.max(x), lambda res, g: (g * jax.nn.one_hot(jnp.argmax(res[0]), res[0].size),)),
        (normal(5),),
        "x",
        ("edges",),
        options={"reference": shared_max},
        plain=shared_max,
        wrong_at=((np.array([1, 2, 2, 0, 2], np.float32),), {}),
    ),
    "ties: median of an even number takes the lower": WrongRule(
        keeping(
            lambda x: jnp.median(x),
            lambda res, g: (g * jax.nn.one_hot(jnp.argsort(res[0])[(res[0].size - 1) // 2], res[0].size),),
        ),
        (normal(8),),
        "x",
    ),
}

LAYERS: dict[str, WrongRule] = NORMS | ATTENTION | LOSSES | PRODUCTS | OTHERS
