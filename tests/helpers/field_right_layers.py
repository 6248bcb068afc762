"""Right rules of layers, images and losses."""

import jax
import jax.numpy as jnp
import numpy as np
from field_rule import FieldRule, collector, integers, normal, simplex
from jax import lax

NEWER = getattr(jax.config, "jax_custom_vjp3", False)  # JAX's coming implementation of custom_vjp
OF_REMAT = {} if NEWER else {"order_two": {"reverse": False, "forward": True}}
LAYERS: list[FieldRule] = []
right = collector(LAYERS)


# Programs that devices must split.
@right("scan in the backward", normal(6, 12), 4, static=(1,))
def chunked_logsumexp():
    def chunks(x, size):
        return jnp.moveaxis(x.reshape(x.shape[0], -1, size), 1, 0)

    def primal(x, chunk):
        if x.shape[1] % chunk:
            raise ValueError(f"chunk must divide {x.shape[1]}, got {chunk}")

        def step(carry, part):
            m, s = carry
            new = jnp.maximum(m, jnp.max(part, axis=-1))
            return (new, s * jnp.exp(m - new) + jnp.sum(jnp.exp(part - new[:, None]), axis=-1)), None

        first = x[:, 0]
        (m, s), _ = lax.scan(step, (first, jnp.zeros_like(first)), chunks(x, chunk))
        return m + jnp.log(s)

    def fwd(x, chunk):
        y = primal(x, chunk)
        return y, (x, y)

    def bwd(chunk, res, g):
        x, y = res
        _, dx = lax.scan(lambda c, part: (c, g[:, None] * jnp.exp(part - y[:, None])), None, chunks(x, chunk))
        return (jnp.moveaxis(dx, 0, 1).reshape(x.shape),)

    return primal, fwd, bwd


@right("scan in the backward", normal(8, 5), normal(5, 7), integers(6, 8))
def fused_linear_cross_entropy():
    """The logits of one row at a time."""

    def primal(h, W, labels):
        def row(total, pair):
            logits = pair[0] @ W
            return total + jax.nn.logsumexp(logits) - logits[pair[1]], None

        return lax.scan(row, jnp.zeros((), h.dtype), (h, labels))[0] / h.shape[0]

    def fwd(h, W, labels):
        return primal(h, W, labels), (h, W, labels)

    def bwd(res, g):
        h, W, labels = res

        def row(dW, pair):
            d = jax.nn.softmax(pair[0] @ W).at[pair[1]].add(-1) * g / h.shape[0]
            return dW + jnp.outer(pair[0], d), W @ d

        dW, dh = lax.scan(row, jnp.zeros_like(W), (h, labels))
        return dh, dW, None

    return primal, fwd, bwd


@right("communication", normal(6, 5))
def tanh_with_scaled_cotangents():
    """The cotangent is scaled by its largest number first, as loss scaling has it."""

    def bwd(y, g):
        largest = lax.stop_gradient(jnp.max(jnp.abs(g)))
        scale = jnp.where(largest > 0, 2.0 ** jnp.round(jnp.log2(jnp.where(largest > 0, largest, 1))), 1)
        return (scale * ((g / scale) * (1 - y * y)),)

    return lambda x: jnp.tanh(x), lambda x: (jnp.tanh(x),) * 2, bwd


@right("communication", normal(6, 5))
def sort_rows_by_score():
    """Rows in the order of their first number, as a sorted dispatch has it."""

    def order(x):
        return jnp.argsort(x[:, 0])

    def primal(x):
        return x[order(x)]

    def fwd(x):
        return primal(x), jnp.argsort(order(x))

    def bwd(back, g):
        return (g[back],)

    return primal, fwd, bwd


# Norms and layers.
@right("layer", normal(5, 7), {"scale": normal(7, seed=1), "bias": normal(7, seed=2)})
def layer_norm():
    def primal(x, params):
        mean, var = jnp.mean(x, axis=-1, keepdims=True), jnp.var(x, axis=-1, keepdims=True)
        return (x - mean) * lax.rsqrt(var + 1e-5) * params["scale"] + params["bias"]

    def fwd(x, params):
        r = lax.rsqrt(jnp.var(x, axis=-1, keepdims=True) + 1e-5)
        n = (x - jnp.mean(x, axis=-1, keepdims=True)) * r
        return n * params["scale"] + params["bias"], (n, r, params["scale"])

    def bwd(res, g):
        n, r, scale = res
        gs = g * scale
        dx = r * (gs - jnp.mean(gs, axis=-1, keepdims=True) - n * jnp.mean(gs * n, axis=-1, keepdims=True))
        return dx, {"scale": jnp.sum(g * n, axis=0), "bias": jnp.sum(g, axis=0)}

    return primal, fwd, bwd


@right("layer", normal(2, 3, 8), normal(8, seed=1), kwargs={"groups": 2}, static=(2,))
def group_rms_norm():
    def parts(x, groups):
        return x.reshape(*x.shape[:-1], groups, -1)

    def primal(x, w, groups):
        p = parts(x, groups)
        return (p * lax.rsqrt(jnp.mean(p * p, axis=-1, keepdims=True) + 1e-6)).reshape(x.shape) * w

    def fwd(x, w, groups):
        return primal(x, w, groups), (x, w)

    def bwd(groups, res, g):
        x, w = res
        p, gw = parts(x, groups), parts(g * w, groups)
        r = lax.rsqrt(jnp.mean(p * p, axis=-1, keepdims=True) + 1e-6)
        n = p * r
        dx = r * (gw - n * jnp.mean(gw * n, axis=-1, keepdims=True))
        return dx.reshape(x.shape), jnp.sum(g * n.reshape(x.shape), axis=(0, 1))

    return primal, fwd, bwd


@right("layer", normal(2, 5, 6), np.arange(5, dtype=np.int32), 100.0, static=(2,))
def rotary():
    def angles(x, positions, base):
        half = x.shape[-1] // 2
        theta = positions[:, None] * base ** (-jnp.arange(half) / half)
        return jnp.cos(theta).astype(x.dtype), jnp.sin(theta).astype(x.dtype)

    def turned(x, c, s):
        a, b = jnp.split(x, 2, axis=-1)
        return jnp.concatenate([a * c - b * s, b * c + a * s], axis=-1)

    def primal(x, positions, base):
        return turned(x, *angles(x, positions, base))

    def fwd(x, positions, base):
        return primal(x, positions, base), positions

    def bwd(base, positions, g):
        c, s = angles(g, positions, base)
        return turned(g, c, -s), None

    return primal, fwd, bwd


@right("layer", normal(5, 7), normal(7, 3), normal(7, 3, seed=1))
def swiglu():
    def primal(x, W, V):
        return jax.nn.silu(x @ W) * (x @ V)

    def fwd(x, W, V):
        return primal(x, W, V), (x, W, V)

    def bwd(res, g):
        x, W, V = res
        a, b = x @ W, x @ V
        s = jax.nn.sigmoid(a)
        da, db = g * b * s * (1 + a * (1 - s)), g * a * s
        return da @ W.T + db @ V.T, x.T @ da, x.T @ db

    return primal, fwd, bwd


@right("layer", normal(5, 4), normal(6, 4, seed=1), normal(6, 3, seed=2), kwargs={"block": 2}, static=(3,))
def flash_attention():
    """Keys and values in blocks, with the logarithm of the sum of exponentials as a second output."""

    def in_blocks(k, v, block):
        return k.reshape(-1, block, k.shape[1]), v.reshape(-1, block, v.shape[1])

    def primal(q, k, v, block):
        if k.shape[0] % block:
            raise ValueError(f"block must divide {k.shape[0]}, got {block}")

        def step(carry, kv):
            m, s, o = carry
            scores = q @ kv[0].T / q.shape[-1] ** 0.5
            new = jnp.maximum(m, jnp.max(scores, axis=-1))
            p, old = jnp.exp(scores - new[:, None]), jnp.exp(m - new)
            return (new, s * old + jnp.sum(p, axis=-1), o * old[:, None] + p @ kv[1]), None

        blocks = in_blocks(k, v, block)
        start = (
            jnp.full_like(q[:, 0], -jnp.inf),
            jnp.zeros_like(q[:, 0]),
            jnp.zeros((q.shape[0], v.shape[1]), v.dtype),
        )
        (m, s, o), _ = lax.scan(step, start, blocks)
        return o / s[:, None], m + jnp.log(s)

    def fwd(q, k, v, block):
        o, lse = primal(q, k, v, block)
        return (o, lse), (q, k, v, o, lse)

    def bwd(block, res, gs):
        q, k, v, o, lse = res
        g, glse = gs
        delta, scale = jnp.sum(g * o, axis=-1) - glse, q.shape[-1] ** -0.5

        def step(dq, kv):
            p = jnp.exp(q @ kv[0].T * scale - lse[:, None])
            ds = p * (g @ kv[1].T - delta[:, None]) * scale
            return dq + ds @ kv[0], (ds.T @ q, p.T @ g)

        dq, (dk, dv) = lax.scan(step, jnp.zeros_like(q), in_blocks(k, v, block))
        return dq, dk.reshape(k.shape), dv.reshape(v.shape)

    return primal, fwd, bwd


@right("layer", normal(5, 7), np.random.default_rng(0).random((5, 7)) < 0.7)
def masked_softmax():
    def primal(x, mask):
        return jax.nn.softmax(jnp.where(mask, x, -1e9))

    def fwd(x, mask):
        y = primal(x, mask)
        return y, (y, mask)

    def bwd(res, g):
        y, mask = res
        return jnp.where(mask, y * (g - jnp.sum(g * y, axis=-1, keepdims=True)), 0), None

    return primal, fwd, bwd


@right("layer", normal(5, 3), normal(3), normal(3, 7), jax.nn.relu, static=(3,))
def activated():
    """A layer whose activation is an argument."""

    def primal(x, b, W, activation):
        return activation(x + b) @ W

    def fwd(x, b, W, activation):
        return primal(x, b, W, activation), (x, b, W)

    def bwd(activation, res, g):
        x, b, W = res
        a, back = jax.vjp(activation, x + b)
        (dz,) = back(g @ W.T)
        return dz, jnp.sum(dz, axis=0), a.T @ g

    return primal, fwd, bwd


@right("layer", normal(5, 4), normal(5, seed=1))
def spectral_norm():
    """The left singular vector is the state of a power iteration, and no gradient passes through it."""

    def direction(W, u):
        v = W.T @ u
        return u, v / jnp.linalg.norm(v)

    def primal(W, u):
        u, v = lax.stop_gradient(direction(W, u))
        return W / (u @ W @ v)

    def fwd(W, u):
        u, v = lax.stop_gradient(direction(W, u))
        sigma = u @ W @ v
        return W / sigma, (W, u, v, sigma)

    def bwd(res, g):
        W, u, v, sigma = res
        return g / sigma - jnp.sum(g * W) / sigma**2 * jnp.outer(u, v), jnp.zeros_like(u)

    return primal, fwd, bwd


@right("indexing", normal(5, 7), integers(6, 5, 3))
def take_along():
    def primal(x, indices):
        return jnp.take_along_axis(x, indices, axis=1)

    def fwd(x, indices):
        return primal(x, indices), (jnp.zeros_like(x), indices)

    def bwd(res, g):
        zeros, indices = res
        return zeros.at[jnp.arange(zeros.shape[0])[:, None], indices].add(g), None

    return primal, fwd, bwd


@right("indexing", normal(5, 7), 3, static=(1,))
def top_k():
    def primal(x, k):
        return lax.top_k(x, k)

    def fwd(x, k):
        values, indices = lax.top_k(x, k)
        return [values, indices], (jnp.zeros_like(x), indices)

    def bwd(k, res, gs):
        zeros, indices = res
        return (zeros.at[jnp.arange(zeros.shape[0])[:, None], indices].add(gs[0]),)

    return primal, fwd, bwd


# Images.
def resize_weights(n, m, dtype):
    """Linear interpolation from n to m pixels, as a matrix of m rows."""
    place = jnp.clip((jnp.arange(m) + 0.5) * n / m - 0.5, 0, n - 1)
    return jnp.maximum(0, 1 - jnp.abs(place[:, None] - jnp.arange(n))).astype(dtype)


@right("resize", normal(2, 6, 4, 3), (9, 7), static=(1,))
def resize_bilinear():
    def weights(shape, dtype, size):
        return resize_weights(shape[1], size[0], dtype), resize_weights(shape[2], size[1], dtype)

    def primal(image, size):
        A, B = weights(image.shape, image.dtype, size)
        return jnp.einsum("nhwc,Hh,Ww->nHWc", image, A, B)

    def fwd(image, size):
        return primal(image, size), jnp.zeros((0, *image.shape[1:3]), image.dtype)

    def bwd(size, like, g):
        A, B = weights(like.shape, g.dtype, size)
        return (jnp.einsum("nHWc,Hh,Ww->nhwc", g, A, B),)

    return primal, fwd, bwd


@right("resize", normal(2, 5, 4), 2, static=(1,))
def upsample_nearest():
    def primal(image, factor):
        return jnp.repeat(jnp.repeat(image, factor, axis=1), factor, axis=2)

    def fwd(image, factor):
        return primal(image, factor), None

    def bwd(factor, _, g):
        n, h, w = g.shape
        return (jnp.sum(g.reshape(n, h // factor, factor, w // factor, factor), axis=(2, 4)),)

    return primal, fwd, bwd


@right("resize", normal(2, 6, 4), kwargs={"height": 9, "width": 3}, static=(1, 2))
def resize_by_library():
    def primal(image, height, width):
        return jax.image.resize(image, (image.shape[0], height, width), "linear")

    def fwd(image, height, width):
        return primal(image, height, width), jnp.zeros((0, *image.shape[1:]), image.dtype)

    def bwd(height, width, like, g):
        shape = jax.ShapeDtypeStruct((g.shape[0], *like.shape[1:]), g.dtype)
        return tuple(jax.linear_transpose(lambda image: primal(image, height, width), shape)(g))

    return primal, fwd, bwd


# Losses.
@right("loss", normal(7), normal(7, seed=1), 0.8, static=(2,))
def huber():
    def primal(x, y, delta):
        d = x - y
        return jnp.mean(jnp.where(jnp.abs(d) <= delta, d * d / 2, delta * (jnp.abs(d) - delta / 2)))

    def fwd(x, y, delta):
        return primal(x, y, delta), x - y

    def bwd(delta, d, g):
        dx = g * jnp.clip(d, -delta, delta) / d.size
        return dx, -dx

    return primal, fwd, bwd


@right("loss", normal(5, 3), normal(5, 3, seed=1), kwargs={"q": 0.9}, static=(2,))
def pinball():
    def primal(prediction, target, q):
        d = target - prediction
        return jnp.mean(jnp.maximum(q * d, (q - 1) * d), axis=-1)

    def fwd(prediction, target, q):
        return primal(prediction, target, q), target - prediction

    def bwd(q, d, g):
        slope = jnp.where(d > 0, q, jnp.where(d < 0, q - 1, q - 0.5)) / d.shape[-1]
        dt = g[:, None] * slope
        return -dt, dt

    return primal, fwd, bwd


@right("loss", normal(5, 7), integers(6, 5), kwargs={"smoothing": 0.1}, static=(2,))
def smoothed_cross_entropy():
    def targets(logits, labels, smoothing):
        n = logits.shape[-1]
        return jax.nn.one_hot(labels, n, dtype=logits.dtype) * (1 - smoothing) + smoothing / n

    def primal(logits, labels, smoothing):
        return -jnp.sum(targets(logits, labels, smoothing) * jax.nn.log_softmax(logits), axis=-1)

    def fwd(logits, labels, smoothing):
        return primal(logits, labels, smoothing), (logits, labels)

    def bwd(smoothing, res, g):
        logits, labels = res
        return g[:, None] * (jax.nn.softmax(logits) - targets(logits, labels, smoothing)), None

    return primal, fwd, bwd


@right("manifold", simplex(5, 7), normal(5, 7))
def soft_cross_entropy():
    """Targets that are probabilities, so that the logits' gradient is the difference."""

    def primal(targets, logits):
        return -jnp.sum(targets * jax.nn.log_softmax(logits), axis=-1)

    def fwd(targets, logits):
        return primal(targets, logits), (targets, logits)

    def bwd(res, g):
        targets, logits = res
        logp = jax.nn.log_softmax(logits)
        return -g[:, None] * logp, g[:, None] * (jnp.exp(logp) - targets)

    return primal, fwd, bwd


@right("second order", normal(5, 7), optimize_remat=True, **OF_REMAT)
def softmax_for_remat():
    def bwd(y, g):
        return (y * (g - jnp.sum(g * y, axis=-1, keepdims=True)),)

    return lambda x: jax.nn.softmax(x), lambda x: (jax.nn.softmax(x),) * 2, bwd


@right("second order", normal(5, 7), normal(7, seed=1), optimize_remat=True, **OF_REMAT)
def scale_for_remat():
    def primal(x, w):
        return jnp.tanh(x * w)

    def fwd(x, w):
        y = primal(x, w)
        return y, (x, w, y)

    def bwd(res, g):
        x, w, y = res
        d = g * (1 - y * y)
        return d * w, jnp.sum(d * x, axis=0)

    return primal, fwd, bwd
