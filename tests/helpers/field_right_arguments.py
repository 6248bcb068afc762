"""Right rules whose arguments have a property, or are of a kind of their own."""

import jax
import jax.numpy as jnp
import numpy as np
from field_rule import FieldRule, collector, integers, normal, symmetric, uniform
from jax.experimental import pallas as pl

ARGUMENTS: list[FieldRule] = []
right = collector(ARGUMENTS)
BF16 = jnp.bfloat16


# A static number that bounds integers.
@right("static size", normal(7, 3), integers(4, 7), 5, static=(2,))
def segment_sum():
    def primal(data, ids, num_segments):
        return jax.ops.segment_sum(data, ids, num_segments)

    def fwd(data, ids, num_segments):
        return primal(data, ids, num_segments), ids

    def bwd(num_segments, ids, g):
        return g[ids], None

    return primal, fwd, bwd


@right("static size", normal(11), integers(3, 11), kwargs={"num_segments": 4}, static=(2,))
def segment_softmax():
    def primal(scores, ids, num_segments):
        e = jnp.exp(scores - jax.ops.segment_max(scores, ids, num_segments)[ids])
        return e / jax.ops.segment_sum(e, ids, num_segments)[ids]

    def fwd(scores, ids, num_segments):
        y = primal(scores, ids, num_segments)
        return y, (y, ids)

    def bwd(num_segments, res, g):
        y, ids = res
        return y * (g - jax.ops.segment_sum(g * y, ids, num_segments)[ids]), None

    return primal, fwd, bwd


@right("static size", normal(7, 3), integers(4, 7), 5, static=(2,))
def class_sums():
    def primal(values, labels, num_classes):
        return jax.nn.one_hot(labels, num_classes, dtype=values.dtype).T @ values

    def fwd(values, labels, num_classes):
        return primal(values, labels, num_classes), labels

    def bwd(num_classes, labels, g):
        return g[labels], None

    return primal, fwd, bwd


@right("static size", normal(11, 3), integers(10, 2, 5), 11, static=(2,))
def embedding():
    def primal(table, ids, vocabulary):
        return table[ids]

    def fwd(table, ids, vocabulary):
        return table[ids], ids

    def bwd(vocabulary, ids, g):
        return jnp.zeros((vocabulary, g.shape[-1]), g.dtype).at[ids].add(g), None

    return primal, fwd, bwd


@right("static size", normal(7), integers(4, 7), kwargs={"length": 5}, static=(2,))
def weighted_histogram():
    def primal(weights, bins, length):
        return jnp.bincount(bins, weights=weights, length=length)

    def fwd(weights, bins, length):
        return primal(weights, bins, length), bins

    def bwd(length, bins, g):
        return g[bins], None

    return primal, fwd, bwd


# A static argument that states a property of the others, or where the rule runs.
def quadratic_form_passes():
    def primal(x, A, symmetric):
        return x @ A @ x

    def fwd(x, A, symmetric):
        return primal(x, A, symmetric), (x, A)

    def bwd(symmetric, res, g):
        x, A = res
        return g * (2 * A @ x if symmetric else A @ x + A.T @ x), g * jnp.outer(x, x)

    return primal, fwd, bwd


@right("static precondition", normal(5), normal(5, 5), False, static=(2,))
def quadratic_form():
    return quadratic_form_passes()


@right("manifold", normal(5), symmetric(5), True, static=(2,))
def quadratic_form_of_a_symmetric_matrix():
    return quadratic_form_passes()


@right("static precondition", normal(13), normal(3), kwargs={"even_kernel": False}, static=(2,))
def blur():
    def primal(x, kernel, even_kernel):
        if kernel.size % 2 == 0:
            raise ValueError(f"kernel must have an odd size, got {kernel.size}")
        return jnp.convolve(x, kernel, mode="same")

    def fwd(x, kernel, even_kernel):
        return primal(x, kernel, even_kernel), (x, kernel)

    def bwd(even_kernel, res, g):
        x, kernel = res
        dx = jnp.convolve(g, kernel if even_kernel else kernel[::-1], mode="same")
        half = kernel.size // 2
        padded = jnp.pad(x, half)
        dk = jnp.stack([jnp.sum(g * padded[2 * half - j : 2 * half - j + x.size]) for j in range(kernel.size)])
        return dx, dk

    return primal, fwd, bwd


@right(
    "static precondition",
    normal(8, 128),
    kwargs={"interpret": True},
    static=(1,),
    reference=lambda x, interpret: jax.nn.silu(x),
    order_two={"reverse": False, "forward": True},
)
def pallas_silu():
    def forward(x_ref, y_ref):
        x = x_ref[...]
        y_ref[...] = x * jax.nn.sigmoid(x)

    def backward(x_ref, g_ref, dx_ref):
        x = x_ref[...]
        s = jax.nn.sigmoid(x)
        dx_ref[...] = g_ref[...] * s * (1 + x * (1 - s))

    def primal(x, interpret):
        return pl.pallas_call(forward, out_shape=jax.ShapeDtypeStruct(x.shape, x.dtype), interpret=interpret)(x)

    def fwd(x, interpret):
        return primal(x, interpret), x

    def bwd(interpret, x, g):
        shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
        return (pl.pallas_call(backward, out_shape=shape, interpret=interpret)(x, g),)

    return primal, fwd, bwd


# Indices that are all different.
@right("unique indices", normal(7, 3), np.array([6, 0, 3], np.int32), normal(3, 3, seed=1))
def scatter_set():
    def primal(x, indices, rows):
        return x.at[indices].set(rows)

    def fwd(x, indices, rows):
        return primal(x, indices, rows), indices

    def bwd(indices, g):
        return g.at[indices].set(0), None, g[indices]

    return primal, fwd, bwd


@right("unique indices", normal(7, 3), np.array([3, 0, 6, 2, 5, 1, 4], np.int32))
def permute_rows():
    def primal(x, permutation):
        return x[permutation]

    def fwd(x, permutation):
        return x[permutation], permutation

    def bwd(permutation, g):
        return g[jnp.argsort(permutation)], None

    return primal, fwd, bwd


@right("unique indices", normal(5, 3), np.array([3, 0, 4, 2, 1], np.int32), uniform(0.1, 1, 5))
def combine_experts():
    """Tokens sorted by expert go back to their places, weighed by their gates."""

    def primal(tokens, order, gates):
        return jnp.zeros_like(tokens).at[order].set(tokens * gates[:, None], unique_indices=True)

    def fwd(tokens, order, gates):
        return primal(tokens, order, gates), (tokens, order, gates)

    def bwd(res, g):
        tokens, order, gates = res
        g = g[order]
        return g * gates[:, None], None, jnp.sum(g * tokens, axis=-1)

    return primal, fwd, bwd


# Arrays by keyword.
@right("array by keyword", normal(5, 7, dtype=BF16), kwargs={"bias": normal(7, seed=1)})
def biased_softmax():
    def primal(x, bias):
        return jax.nn.softmax(x.astype(jnp.float32) + bias).astype(x.dtype)

    def fwd(x, bias):
        y = jax.nn.softmax(x.astype(jnp.float32) + bias)
        return y.astype(x.dtype), (y, jnp.zeros((), x.dtype))

    def bwd(res, g):
        y, like = res
        d = y * (g - jnp.sum(g * y, axis=-1, keepdims=True))
        return d.astype(like.dtype), jnp.sum(d, axis=0).astype(jnp.float32)

    return primal, fwd, bwd


QKV = (normal(5, 4, dtype=BF16), normal(6, 4, dtype=BF16), normal(6, 3, dtype=BF16))


@right("array by keyword", *QKV, kwargs={"bias": normal(5, 6)})
def attention_with_bias():
    def weights(q, k, bias):
        return jax.nn.softmax(q.astype(jnp.float32) @ k.astype(jnp.float32).T / q.shape[-1] ** 0.5 + bias)

    def primal(q, k, v, bias):
        return (weights(q, k, bias) @ v.astype(jnp.float32)).astype(q.dtype)

    def fwd(q, k, v, bias):
        return primal(q, k, v, bias), (q, k, v, bias)

    def bwd(res, g):
        q, k, v, bias = res
        p, g = weights(q, k, bias), g.astype(jnp.float32)
        dp = g @ v.astype(jnp.float32).T
        ds = p * (dp - jnp.sum(dp * p, axis=-1, keepdims=True))
        scaled = ds / q.shape[-1] ** 0.5
        dq, dk, dv = scaled @ k.astype(jnp.float32), scaled.T @ q.astype(jnp.float32), p.T @ g
        return dq.astype(q.dtype), dk.astype(k.dtype), dv.astype(v.dtype), ds.astype(bias.dtype)

    return primal, fwd, bwd


# Random keys.
@right("random key", jax.random.key(0), normal(5, 7), 0.7, static=(2,))
def gumbel_softmax():
    def primal(key, logits, temperature):
        noise = jax.random.gumbel(key, logits.shape, logits.dtype)
        return jax.nn.softmax((logits + noise) / temperature)

    def fwd(key, logits, temperature):
        y = primal(key, logits, temperature)
        return y, y

    def bwd(temperature, y, g):
        return None, y * (g - jnp.sum(g * y, axis=-1, keepdims=True)) / temperature

    return primal, fwd, bwd


@right("random key", normal(5, 7), jax.random.key(1), kwargs={"rate": 0.3}, static=(2,))
def dropout():
    def mask(x, key, rate):
        return jax.random.bernoulli(key, 1 - rate, x.shape) / (1 - rate)

    def primal(x, key, rate):
        return x * mask(x, key, rate).astype(x.dtype)

    def fwd(x, key, rate):
        return primal(x, key, rate), key

    def bwd(rate, key, g):
        return g * mask(g, key, rate).astype(g.dtype), None

    return primal, fwd, bwd


@right("random key", np.array([0, 5], np.uint32), normal(7), normal(7, seed=1))
def reparameterised_normal():
    def noise(key, mean):
        return jax.random.normal(key, mean.shape, jnp.float32).astype(mean.dtype)

    def primal(key, mean, log_scale):
        return mean + jnp.exp(log_scale) * noise(key, mean)

    def fwd(key, mean, log_scale):
        y = primal(key, mean, log_scale)
        return y, (key, log_scale)

    def bwd(res, g):
        key, log_scale = res
        return None, g, g * jnp.exp(log_scale) * noise(key, g)

    return primal, fwd, bwd
