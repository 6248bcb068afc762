"""Right rules of few digits, of some dtypes alone, of surrogate gradients, for mapped axes, stable and guarded ones."""

import jax
import jax.numpy as jnp
import numpy as np
from field_rule import FieldRule, collector, integers, normal, of_one_number, uniform
from jax import lax
from jax.experimental import pallas as pl

DIGITS: list[FieldRule] = []
right = collector(DIGITS)
BF16 = jnp.bfloat16


# Few digits inside.
@right("low precision", normal(5, 16, dtype=BF16), normal(16, 7, dtype=BF16))
def matmul_accumulated_in_float32():
    def matmul(a, b, like):
        return jnp.matmul(a, b, preferred_element_type=jnp.float32).astype(like.dtype)

    def primal(x, w):
        return matmul(x, w, x)

    def fwd(x, w):
        return primal(x, w), (x, w)

    def bwd(res, g):
        x, w = res
        return matmul(g, w.T, x), matmul(x.T, g, w)

    return primal, fwd, bwd


@right("low precision", normal(5, 16, dtype=BF16), normal(16, dtype=BF16))
def rms_norm_with_statistic():
    def primal(x, w):
        wide = x.astype(jnp.float32)
        r = lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + 1e-6)
        return (wide * r * w).astype(x.dtype), r.astype(x.dtype)

    def fwd(x, w):
        return primal(x, w), (x, w)

    def bwd(res, gs):
        x, w = (a.astype(jnp.float32) for a in res)
        g, gr = (a.astype(jnp.float32) for a in gs)
        r = lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-6)
        gr = gr + jnp.sum(g * w * x, axis=-1, keepdims=True)
        dx = g * w * r - gr * r**3 * x / x.shape[-1]
        return dx.astype(res[0].dtype), jnp.sum(g * x * r, axis=0).astype(res[1].dtype)

    return primal, fwd, bwd


@right("low precision", normal(5, 7, dtype=BF16))
def softmax_in_float32():
    def primal(x):
        return jax.nn.softmax(x.astype(jnp.float32)).astype(x.dtype)

    def fwd(x):
        y = jax.nn.softmax(x.astype(jnp.float32))
        return y.astype(x.dtype), (y, jnp.zeros((), x.dtype))

    def bwd(res, g):
        y, like = res
        g = g.astype(jnp.float32)
        return ((y * (g - jnp.sum(g * y, axis=-1, keepdims=True))).astype(like.dtype),)

    return primal, fwd, bwd


@right("low precision", normal(5, 16, dtype=BF16), normal(16, 7))
def mixed_matmul():
    """Activations in bfloat16, master weights in float32."""

    def primal(x, w):
        return jnp.matmul(x, w.astype(x.dtype))

    def fwd(x, w):
        return primal(x, w), (x, w)

    def bwd(res, g):
        x, w = res
        dw = jnp.matmul(x.T, g, preferred_element_type=w.dtype)
        return jnp.matmul(g, w.astype(x.dtype).T), dw

    return primal, fwd, bwd


@right("low precision", normal(5, 7, dtype=BF16), integers(6, 5))
def cross_entropy_in_float32():
    def primal(logits, labels):
        logp = jax.nn.log_softmax(logits.astype(jnp.float32))
        return -jnp.mean(jnp.take_along_axis(logp, labels[:, None], axis=-1))

    def fwd(logits, labels):
        return primal(logits, labels), (logits, labels)

    def bwd(res, g):
        logits, labels = res
        p = jax.nn.softmax(logits.astype(jnp.float32))
        d = (p - jax.nn.one_hot(labels, p.shape[-1])) * g / p.shape[0]
        return d.astype(logits.dtype), None

    return primal, fwd, bwd


@right("float16, tiny", normal(11, dtype=np.float16) * np.float16(1e-4))
def half_of_squares():
    def primal(x):
        return x * x / 2

    def fwd(x):
        return primal(x), x

    def bwd(x, g):
        return (g * x,)

    return primal, fwd, bwd


@right("float16, tiny", normal(3, 8, dtype=np.float16) * np.float16(1e-3), uniform(0.5, 1.5, 8).astype(np.float16))
def rms_norm_in_float16():
    def primal(x, w):
        wide = x.astype(jnp.float32)
        return (wide * lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + 1e-5)).astype(x.dtype) * w

    def fwd(x, w):
        return primal(x, w), (x, w)

    def bwd(res, g):
        x, w, g = (a.astype(jnp.float32) for a in (*res, g))
        r = lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-5)
        n, gw = x * r, g * w
        dx = r * (gw - n * jnp.mean(gw * n, axis=-1, keepdims=True))
        return dx.astype(res[0].dtype), jnp.sum(g * n, axis=0).astype(res[1].dtype)

    return primal, fwd, bwd


@right("float16, tiny", normal(7, dtype=np.float16) * np.float16(1e-5), normal(7, seed=1, dtype=np.float16))
def gated_tiny():
    def primal(x, gate):
        return x * jax.nn.sigmoid(gate)

    def fwd(x, gate):
        s = jax.nn.sigmoid(gate)
        return x * s, (x, s)

    def bwd(res, g):
        x, s = res
        return g * s, g * x * (s * (1 - s))

    return primal, fwd, bwd


# Kernels that take some dtypes alone.
@right("some dtypes alone", normal(8, 128), normal(8, 128, seed=1), order_two=False, plain=lambda x, y: x * jnp.tanh(y))
def pallas_gate():
    def forward(x_ref, y_ref, out_ref):
        out_ref[...] = x_ref[...] * jnp.tanh(y_ref[...])

    def backward(x_ref, y_ref, g_ref, dx_ref, dy_ref):
        t = jnp.tanh(y_ref[...])
        dx_ref[...] = g_ref[...] * t
        dy_ref[...] = g_ref[...] * x_ref[...] * (1 - t * t)

    def primal(x, y):
        if x.dtype not in (jnp.float32, jnp.bfloat16):
            raise TypeError(f"pallas_gate takes float32 or bfloat16, got {x.dtype}")
        return pl.pallas_call(forward, out_shape=jax.ShapeDtypeStruct(x.shape, x.dtype), interpret=True)(x, y)

    def fwd(x, y):
        return primal(x, y), (x, y)

    def bwd(res, g):
        shape = jax.ShapeDtypeStruct(g.shape, g.dtype)
        return tuple(pl.pallas_call(backward, out_shape=(shape, shape), interpret=True)(*res, g))

    return primal, fwd, bwd


@right("some dtypes alone", normal(11), reference=jnp.abs)
def absolute_by_bits():
    """The sign bit cleared, in int32."""

    def primal(x):
        return lax.bitcast_convert_type(lax.bitcast_convert_type(x, jnp.int32) & 0x7FFFFFFF, jnp.float32)

    def fwd(x):
        return primal(x), x

    def bwd(x, g):
        return (jnp.where(x >= 0, g, -g),)

    return primal, fwd, bwd


@right("some dtypes alone", uniform(0.2, 9, 11), reference=jnp.log2)
def log2_by_bits():
    """Exponent and mantissa, taken apart in int32."""

    def primal(x):
        bits = lax.bitcast_convert_type(x, jnp.int32)
        mantissa = lax.bitcast_convert_type((bits & 0x7FFFFF) | 0x3F800000, jnp.float32)
        return ((bits >> 23) - 127).astype(jnp.float32) + jnp.log2(mantissa)

    def fwd(x):
        return primal(x), x

    def bwd(x, g):
        return (g / (x * jnp.log(jnp.float32(2))),)

    return primal, fwd, bwd


@right("some dtypes alone", normal(5, 8), normal(8, seed=1), plain=lambda x, b: jax.nn.gelu(x + b, approximate=False))
def bias_gelu():
    def checked(x):
        assert x.dtype in (jnp.float32, jnp.bfloat16), "bias_gelu takes float32 and bfloat16"
        return x

    def primal(x, b):
        return jax.nn.gelu(checked(x) + b, approximate=False)

    def fwd(x, b):
        return primal(x, b), (x, b)

    def bwd(res, g):
        z = res[0] + res[1]
        cdf = (1 + lax.erf(z / np.sqrt(2).astype(z.dtype))) / 2
        dz = g * (cdf + z * jnp.exp(-z * z / 2) / np.sqrt(2 * np.pi).astype(z.dtype))
        return dz, jnp.sum(dz, axis=0)

    return primal, fwd, bwd


# Gradients made on purpose: a surrogate states them.
def as_if(forward, surrogate):
    """Return a function of forward's values and the surrogate's derivative."""
    return lambda x: surrogate(x) + lax.stop_gradient(forward(x) - surrogate(x))


@right("surrogate", normal(11), reference=as_if(jnp.sign, lambda x: jnp.clip(x, -1, 1)))
def straight_through_sign():
    def primal(x):
        return jnp.sign(x)

    def fwd(x):
        return jnp.sign(x), jnp.abs(x) <= 1

    def bwd(inside, g):
        return (jnp.where(inside, g, 0),)

    return primal, fwd, bwd


@right("surrogate", normal(11), reference=as_if(jnp.round, lambda x: x))
def straight_through_round():
    return lambda x: jnp.round(x), lambda x: (jnp.round(x), None), lambda _, g: (g,)


def clipped_and_quantised(x, bits):
    steps, x = 2.0 ** (bits - 1), jnp.clip(x, -1, 1)
    return x + lax.stop_gradient(jnp.round(x * steps) / steps - x)


@right("surrogate", normal(7), 8, static=(1,), reference=clipped_and_quantised)
def fake_quantise():
    def primal(x, bits):
        steps = 2.0 ** (bits - 1)
        return jnp.round(jnp.clip(x, -1, 1) * steps) / steps

    def fwd(x, bits):
        return primal(x, bits), jnp.abs(x) <= 1

    def bwd(bits, inside, g):
        return (jnp.where(inside, g, 0),)

    return primal, fwd, bwd


def smooth_spike(v):
    return as_if(lambda v: (v > 0).astype(v.dtype), lambda v: jnp.arctan(jnp.pi * v) / jnp.pi)(v)


@right("surrogate", normal(7), reference=smooth_spike)
def spike():
    def primal(v):
        return (v > 0).astype(v.dtype)

    def fwd(v):
        return primal(v), v

    def bwd(v, g):
        return (g / (1 + (jnp.pi * v) ** 2),)

    return primal, fwd, bwd


def reversing(x, strength):
    return as_if(lambda x: x, lambda x: -strength * x)(x)


def scaling(x, scale):
    return as_if(lambda x: x, lambda x: scale * x)(x)


@right("surrogate", normal(7), 0.5, static=(1,), reference=reversing)
def reverse_gradient():
    return lambda x, strength: x, lambda x, strength: (x, None), lambda strength, _, g: (-strength * g,)


@right("surrogate", normal(7), kwargs={"scale": 0.3}, static=(1,), reference=scaling)
def scale_gradient():
    def primal(x, scale):
        return x

    def fwd(x, scale):
        return x, None

    def bwd(scale, _, g):
        return (scale * g,)

    return primal, fwd, bwd


@right("not linear on purpose", normal(7), 3.0, static=(1,), plain=lambda x, bound: x)
def clip_gradient():
    return lambda x, bound: x, lambda x, bound: (x, None), lambda bound, _, g: (jnp.clip(g, -bound, bound),)


# Rules for use inside a mapped axis.
def device_norm(x):
    mean = lax.pmean(jnp.mean(x, axis=0), "i")
    r = lax.rsqrt(lax.pmean(jnp.mean(x * x, axis=0), "i") - mean**2 + 1e-3)
    return (x - mean) * r, r


@right("named axis", normal(5, 3), "i", static=(1,), axes={"i": 4}, plain=lambda x, axis: x - lax.pmean(x, axis))
def centred_over_devices():
    def primal(x, axis_name):
        return x - lax.pmean(x, axis_name)

    def fwd(x, axis_name):
        return primal(x, axis_name), None

    def bwd(axis_name, _, g):
        return (g - lax.pmean(g, axis_name),)

    return primal, fwd, bwd


@right("named axis", normal(5, 3), axes={"i": 4}, plain=lambda x: device_norm(x)[0])
def synchronised_norm():
    """Batch norm without a scale, over the batches of all devices."""

    def fwd(x):
        n, r = device_norm(x)
        return n, (n, r)

    def bwd(res, g):
        n, r = res
        return (r * (g - lax.pmean(jnp.mean(g, axis=0), "i") - n * lax.pmean(jnp.mean(g * n, axis=0), "i")),)

    return lambda x: fwd(x)[0], fwd, bwd


# A stable rule, held against the formula of the textbook.
@right("stable", normal(7), reference=lambda x: jnp.log(jnp.cosh(x)))
def log_cosh():
    return of_one_number(lambda x: jnp.logaddexp(x, -x) - np.log(2).astype(x.dtype), jnp.tanh)


@right("stable", normal(7), reference=lambda x: jnp.log(1 + jnp.exp(x)))
def softplus():
    return of_one_number(lambda x: jnp.maximum(x, 0) + jnp.log1p(jnp.exp(-jnp.abs(x))), jax.nn.sigmoid)


@right("stable", normal(5, 7), reference=lambda x: jnp.log(jnp.sum(jnp.exp(x), axis=-1)))
def logsumexp():
    def fwd(x):
        y = jax.nn.logsumexp(x, axis=-1)
        return y, (x, y)

    def bwd(res, g):
        x, y = res
        return (g[:, None] * jnp.exp(x - y[:, None]),)

    return lambda x: jax.nn.logsumexp(x, axis=-1), fwd, bwd


@right("stable", normal(7), normal(7, seed=1), reference=lambda x, y: jnp.sqrt(x * x + y * y))
def hypot():
    def fwd(x, y):
        r = jnp.hypot(x, y)
        return r, (x, y, r)

    def bwd(res, g):
        x, y, r = res
        r = jnp.where(r > 0, r, 1)
        return g * (x / r), g * (y / r)

    return lambda x, y: jnp.hypot(x, y), fwd, bwd


# Guarded where autodiff divides zero by zero.
def guarded_norm(x):
    zero = jnp.all(x == 0, axis=-1)
    return jnp.where(zero, 0, jnp.sqrt(jnp.sum(jnp.where(zero[:, None], 1, x) ** 2, axis=-1)))


@right("guarded", np.concatenate([normal(4, 3), np.zeros((1, 3), np.float32)]), plain=guarded_norm)
def safe_norm():
    def fwd(x):
        n = jnp.linalg.norm(x, axis=-1)
        return n, (x, n)

    def bwd(res, g):
        x, n = res
        return (g[:, None] * x / jnp.where(n > 0, n, 1)[:, None],)

    return lambda x: jnp.linalg.norm(x, axis=-1), fwd, bwd


def guarded_distances(x):
    d2 = jnp.sum((x[:, None] - x[None]) ** 2, axis=-1)
    return jnp.where(d2 > 0, jnp.sqrt(jnp.where(d2 > 0, d2, 1)), 0)


@right("guarded", normal(5, 3), plain=guarded_distances)
def pairwise_distances():
    """The diagonal is zero."""

    def primal(x):
        return jnp.sqrt(jnp.sum((x[:, None] - x[None]) ** 2, axis=-1))

    def fwd(x):
        d = primal(x)
        return d, (x, d)

    def bwd(res, g):
        x, d = res
        w = (g + g.T) * jnp.where(d > 0, 1 / jnp.where(d > 0, d, 1), 0)
        return (jnp.sum(w, axis=1)[:, None] * x - w @ x,)

    return primal, fwd, bwd


def guarded_sinc(x):
    y = jnp.where(x == 0, 1, x)
    return jnp.where(x == 0, 1 - x * x / 6, jnp.sin(y) / y)


@right("guarded", np.array([0, 0.3, -1.2, 2.5, 0], np.float32), plain=guarded_sinc)
def sinc():
    def primal(x):
        return jnp.where(x == 0, 1, jnp.sin(x) / x)

    def slope(x):
        y = jnp.where(jnp.abs(x) < 0.02, 1, x)
        series = -x / 3 + x**3 / 30 - x**5 / 840
        return jnp.where(jnp.abs(x) < 0.02, series, (jnp.cos(y) - jnp.sin(y) / y) / y)

    return of_one_number(primal, slope)
