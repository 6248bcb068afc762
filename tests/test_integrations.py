"""Layers of flax, Equinox and Haiku compute on vjplib what they compute unmodified: outputs and all gradients."""

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax import lax

import vjplib as vl
from vjplib.compat import holds_custom_vjp, x64

KEY = jax.ShapeDtypeStruct((), jax.eval_shape(lambda: jax.random.key(0)).dtype)


def drawn(promised):
    """Arrays of the shapes and dtypes promised: no layer's own initialisation is compiled for nothing."""
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda a: jnp.asarray(rng.standard_normal(a.shape), a.dtype), promised)


def outcome(apply, params, x):
    """y of apply(params, x) and the cotangents of params and x for one that has no symmetry."""

    def evaluated(params, x):
        y, back = jax.vjp(apply, params, x)
        return y, back(jnp.cos(jnp.arange(y.size)).reshape(y.shape).astype(y.dtype))

    return jax.jit(evaluated, compiler_options={"xla_backend_optimization_level": 0})(params, x)


def require_equal(expected, given):
    """Float64 to rounding errors of sums, other dtypes to one rounding of a sum that was kept wider."""
    for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(given), strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        tolerance = 1e-13 if a.dtype == np.float64 else 2 * float(jnp.finfo(a.dtype).eps)
        a, b = np.float64(a), np.float64(b)
        np.testing.assert_allclose(b, a, rtol=0, atol=tolerance * max(1.0, np.abs(a).max()))


def batch(shape):
    return jnp.asarray(np.random.default_rng(0).standard_normal(shape))


def is_served(apply, params, x):
    return holds_custom_vjp(jax.make_jaxpr(lambda params, x: apply(params, x))(params, x))


# ---------------------------------------------------------------------------------------------------------- flax.linen

IMAGE, SEQUENCE, VOLUME = (2, 9, 8, 4), (2, 9, 4), (2, 5, 4, 3, 4)
MASK = np.arange(3 * 3 * 4).reshape(3, 3, 1, 4) % 3 > 0
DEPTHWISE = {"features": 4, "feature_group_count": 4}
LINEN = {
    "dense, with a bias": (IMAGE, {"features": 6, "kernel_size": (3, 3)}),
    "dense 1x1": (IMAGE, {"features": 6, "kernel_size": (1, 1)}),
    "patches": (IMAGE, {"features": 6, "kernel_size": (4, 4), "strides": 4, "padding": "VALID"}),
    "depthwise": (IMAGE, {**DEPTHWISE, "kernel_size": (3, 3)}),
    "depthwise, without a bias": (IMAGE, {**DEPTHWISE, "kernel_size": (3, 3), "use_bias": False}),
    "depthwise, strides": (IMAGE, {**DEPTHWISE, "kernel_size": (3, 3), "strides": (2, 1)}),
    "depthwise, dilated": (IMAGE, {**DEPTHWISE, "kernel_size": (3, 3), "kernel_dilation": 2}),
    "depthwise, dilated input": (IMAGE, {**DEPTHWISE, "kernel_size": (3, 3), "padding": 2, "input_dilation": 2}),
    "depthwise, masked": (IMAGE, {**DEPTHWISE, "kernel_size": (3, 3), "mask": MASK}),
    "depthwise, circular": (IMAGE, {**DEPTHWISE, "kernel_size": (3, 5), "padding": "CIRCULAR"}),
    "depthwise, reflected": (IMAGE, {**DEPTHWISE, "kernel_size": (3, 5), "padding": "REFLECT"}),
    "depthwise, padded by pairs": (IMAGE, {**DEPTHWISE, "kernel_size": (3, 3), "padding": ((2, 0), (1, 3))}),
    "depthwise, causal": (SEQUENCE, {**DEPTHWISE, "kernel_size": (4,), "padding": "CAUSAL"}),
    "depthwise, 3-D": (VOLUME, {**DEPTHWISE, "kernel_size": (3, 3, 3)}),
    "depthwise, no batch": (IMAGE[1:], {**DEPTHWISE, "kernel_size": (3, 3)}),
    "depthwise, two batch axes": ((2, *IMAGE), {**DEPTHWISE, "kernel_size": (3, 3)}),
    "two features a channel": (IMAGE, {"features": 8, "feature_group_count": 4, "kernel_size": (3, 3)}),
    "grouped": (IMAGE, {"features": 6, "feature_group_count": 2, "kernel_size": (3, 3)}),
    "depthwise in bfloat16": (IMAGE, {**DEPTHWISE, "kernel_size": (3, 3), "dtype": jnp.bfloat16}),
    "depthwise, float32 promoted": (IMAGE, {**DEPTHWISE, "kernel_size": (3, 3), "param_dtype": np.float32}),
}


@pytest.mark.parametrize("case", LINEN)
def test_linen_conv(case):
    shape, arguments = LINEN[case]
    with x64():
        x, arguments = batch(shape), {"param_dtype": np.float64, **arguments}
        plain = nn.Conv(**arguments)
        fast = nn.Conv(**arguments, conv_general_dilated=vl.conv_general_dilated)
        params = drawn(jax.eval_shape(plain.init, KEY, x))
        require_equal(outcome(plain.apply, params, x), outcome(fast.apply, params, x))
        assert not is_served(plain.apply, params, x)
        if "depthwise" in case:
            assert is_served(fast.apply, params, x)


def test_linen_local_conv():
    """Its kernels differ from place to place, which no rule of ours serves; the argument is taken all the same."""
    with x64():
        x, arguments = batch(IMAGE), {"features": 6, "kernel_size": (3, 3), "param_dtype": np.float64}
        plain, fast = nn.ConvLocal(**arguments), nn.ConvLocal(**arguments, conv_general_dilated=vl.conv_general_dilated)
        params = drawn(jax.eval_shape(plain.init, KEY, x))
        require_equal(outcome(plain.apply, params, x), outcome(fast.apply, params, x))


@pytest.mark.parametrize(
    ("shape", "arguments"),
    [
        (IMAGE, {"kernel_size": (2, 2), "strides": (2, 2)}),
        (IMAGE, {"kernel_size": (4, 4), "strides": (2, 2), "transpose_kernel": True}),
        (IMAGE, {"kernel_size": (3, 3), "strides": (2, 2), "padding": "CIRCULAR"}),
        (SEQUENCE, {"kernel_size": (4,), "strides": (2,), "padding": "VALID", "kernel_dilation": (2,)}),
    ],
    ids=["2x2", "4x4, kernel transposed", "circular", "dilated"],
)
def test_linen_conv_transpose(shape, arguments):
    with x64():
        x, layer = batch(shape), nn.ConvTranspose(6, **arguments, param_dtype=np.float64)
        params = drawn(jax.eval_shape(layer.init, KEY, x))
        expected = outcome(layer.apply, params, x)
        with vl.use_in_lax():
            require_equal(expected, outcome(layer.apply, params, x))


class Net(nn.Module):
    """What a user has: layers that take no convolution from anyone."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(4, (3, 3), feature_group_count=4, param_dtype=x.dtype)(x))
        x = nn.max_pool(x, (3, 3), (2, 2), "SAME")
        x = nn.ConvTranspose(4, (2, 2), (2, 2), param_dtype=x.dtype)(x)
        return nn.avg_pool(x, (2, 2), (2, 2))


def test_a_flax_network_that_names_no_convolution():
    with x64():
        x, net = batch(IMAGE), Net()
        params = drawn(jax.eval_shape(net.init, KEY, x))
        expected = outcome(net.apply, params, x)
        with vl.use_in_lax():
            assert is_served(net.apply, params, x)
            require_equal(expected, outcome(net.apply, params, x))


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [(vl.max_pool, nn.max_pool), (vl.avg_pool, nn.avg_pool)],
    ids=["max_pool", "avg_pool"],
)
@pytest.mark.parametrize("padding", ["SAME", "VALID", ((1, 0), (0, 1))])
def test_pools_take_flaxs_arguments(ours, theirs, padding):
    with x64():
        x = batch(IMAGE)
        plain, fast = (lambda _, x, pool=pool: pool(x, (3, 2), (2, 1), padding) for pool in (theirs, ours))
        require_equal(outcome(plain, (), x), outcome(fast, (), x))


# ----------------------------------------------------------------------------------------------------------- flax.nnx


def split(make):
    graph, state = nnx.split(nnx.eval_shape(make))
    return lambda state, x: nnx.merge(graph, state)(x), drawn(state)


@pytest.mark.parametrize(
    ("shape", "arguments"),
    [
        (IMAGE, {"kernel_size": (3, 3), "feature_group_count": 4}),
        (SEQUENCE, {"kernel_size": 4, "padding": "CAUSAL", "feature_group_count": 4}),
        (IMAGE, {"kernel_size": (3, 3), "padding": "CIRCULAR", "feature_group_count": 4}),
        (IMAGE, {"kernel_size": (3, 3), "strides": 2, "use_bias": False}),
    ],
    ids=["depthwise", "causal", "circular", "dense, strides"],
)
def test_nnx_conv(shape, arguments):
    with x64():
        x, arguments = batch(shape), {"param_dtype": jnp.float64, **arguments}
        plain, fast = (
            split(lambda given=given: nnx.Conv(4, 4, **arguments, **given, rngs=nnx.Rngs(0)))
            for given in ({}, {"conv_general_dilated": vl.conv_general_dilated})
        )
        require_equal(outcome(*plain, x), outcome(*fast, x))


def test_nnx_model_that_exists_already():
    def make():
        return nnx.Sequential(
            nnx.Conv(4, 4, (3, 3), feature_group_count=4, param_dtype=jnp.float64, rngs=nnx.Rngs(0)),
            nnx.ConvTranspose(4, 2, (2, 2), (2, 2), param_dtype=jnp.float64, rngs=nnx.Rngs(1)),
        )

    def made_fast():
        model = make()
        for _, layer in nnx.iter_modules(model):
            if isinstance(layer, nnx.Conv):
                layer.conv_general_dilated = vl.conv_general_dilated
        return model

    with x64():
        x = batch(IMAGE)
        expected = outcome(*split(make), x)
        assert is_served(*split(made_fast), x)
        with vl.use_in_lax():
            require_equal(expected, outcome(*split(made_fast), x))


# ------------------------------------------------------------------------------------------------------------ Equinox

EQUINOX = {
    "dense": ((2, 3, 7, 6), lambda: eqx.nn.Conv2d(3, 4, 3, key=jax.random.key(0))),
    "depthwise": ((2, 4, 7, 6), lambda: eqx.nn.Conv2d(4, 4, 3, padding=1, groups=4, key=jax.random.key(0))),
    "depthwise, circular": (
        (2, 4, 7, 6),
        lambda: eqx.nn.Conv2d(4, 4, 3, 2, "SAME", groups=4, padding_mode="CIRCULAR", key=jax.random.key(0)),
    ),
    "depthwise, dilated": (
        (2, 4, 9),
        lambda: eqx.nn.Conv1d(4, 8, 3, dilation=2, groups=4, use_bias=False, key=jax.random.key(0)),
    ),
    "depthwise, transposed": (
        (2, 4, 9),
        lambda: eqx.nn.ConvTranspose1d(4, 4, 4, 2, padding=1, groups=4, key=jax.random.key(0)),
    ),
    "transposed": ((2, 3, 7, 6), lambda: eqx.nn.ConvTranspose2d(3, 4, 2, 2, output_padding=1, key=jax.random.key(0))),
    "max-pool": ((2, 4, 7, 6), lambda: eqx.nn.MaxPool2d(3, 2, padding=1)),
    "avg-pool": ((2, 4, 7, 6), lambda: eqx.nn.AvgPool2d(2, 2)),
}


def parted(make):
    params, static = eqx.partition(eqx.filter_eval_shape(make), lambda a: isinstance(a, jax.ShapeDtypeStruct))
    return drawn(params), static


@pytest.mark.parametrize("case", EQUINOX)
def test_equinox(case):
    with x64():
        shape, make = EQUINOX[case]
        x, (params, static) = batch(shape), parted(make)
        apply = lambda params, x: jax.vmap(eqx.combine(params, static))(x)  # noqa: E731
        expected = outcome(apply, params, x)
        with vl.use_in_lax():
            require_equal(expected, outcome(apply, params, x))
            assert is_served(apply, params, x) or case in ("dense", "transposed", "avg-pool")


def test_equinox_gradients_of_each_example():
    with x64():
        x, (params, static) = batch((3, 4, 7, 6)), parted(EQUINOX["depthwise"][1])
        each = jax.jit(jax.vmap(jax.grad(lambda params, x: jnp.sin(eqx.combine(params, static)(x)).sum()), (None, 0)))
        expected = each(params, x)
        with vl.use_in_lax():
            require_equal(expected, each(params, x))


# -------------------------------------------------------------------------------------------------------------- Haiku

HAIKU = {
    "dense": (IMAGE, lambda: hk.Conv2D(6, 3)),
    "grouped": (IMAGE, lambda: hk.Conv2D(6, 3, stride=2, feature_group_count=2)),
    "channels first": ((2, 4, 9), lambda: hk.Conv1D(4, 3, rate=2, data_format="NCW", feature_group_count=4)),
    "causal": (SEQUENCE, lambda: hk.Conv1D(4, 3, padding=hk.pad.causal, feature_group_count=4)),
    "depthwise": (IMAGE, lambda: hk.DepthwiseConv2D(2, (3, 3))),
    "3-D": (VOLUME, lambda: hk.Conv3D(4, 3, feature_group_count=4)),
    "transposed": (IMAGE, lambda: hk.Conv2DTranspose(6, 2, 2)),
    "max-pool": (IMAGE, lambda: hk.MaxPool((3, 3, 1), (2, 2, 1), "SAME")),
    "avg-pool": (IMAGE, lambda: hk.AvgPool((3, 3, 1), (2, 2, 1), "SAME")),
}


@pytest.mark.parametrize("case", HAIKU)
def test_haiku(case):
    shape, make = HAIKU[case]
    with x64():
        x, layer = batch(shape), hk.without_apply_rng(hk.transform(lambda x: make()(x)))
        params = drawn(jax.eval_shape(layer.init, KEY, x))
        expected = outcome(layer.apply, params, x)
        with vl.use_in_lax():
            require_equal(expected, outcome(layer.apply, params, x))
            assert is_served(layer.apply, params, x) or case in ("dense", "grouped", "transposed", "avg-pool")


# -------------------------------------------------------------------------------- attention, norms, activations, losses


def attention_fn(query, key, value, bias=None, mask=None, is_causal=False, **_):
    """What flax's layers take: their other options are of dropout and precision, and their masks may be numbers."""
    mask = None if mask is None else mask != 0
    return vl.dot_product_attention(query, key, value, bias, mask, is_causal=is_causal)


@pytest.mark.parametrize("masked", [False, True])
def test_linen_attention(masked):
    with x64():
        x, given = batch((2, 7, 8)), {"num_heads": 2, "param_dtype": np.float64}
        mask = nn.make_causal_mask(x[..., 0]) if masked else None
        plain, fast = nn.MultiHeadAttention(**given), nn.MultiHeadAttention(**given, attention_fn=attention_fn)
        params = drawn(jax.eval_shape(plain.init, KEY, x))
        of_plain, of_fast = (lambda params, x, m=m: m.apply(params, x, mask=mask) for m in (plain, fast))
        require_equal(outcome(of_plain, params, x), outcome(of_fast, params, x))
        assert is_served(of_fast, params, x)


def test_nnx_attention():
    """Beside linen's formula: what nnx calls by itself, JAX's, rounds the logits to float32."""
    with x64():
        x, arguments = batch((2, 7, 8)), {"decode": False, "param_dtype": jnp.float64}
        plain, fast = (
            split(lambda f=f: nnx.MultiHeadAttention(2, 8, **arguments, attention_fn=f, rngs=nnx.Rngs(0)))
            for f in (lambda *qkv, **_: nn.dot_product_attention(*qkv), attention_fn)
        )
        require_equal(outcome(*plain, x), outcome(*fast, x))
        assert is_served(*fast, x)


class LinenBlock(nn.Module):
    """Norm, gelu and a projection, with flax's norm or with ours on the same parameters."""

    ours: bool

    @nn.compact
    def __call__(self, x):
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:], x.dtype)
        bias = self.param("bias", nn.initializers.zeros, x.shape[-1:], x.dtype)
        if self.ours:
            return vl.gelu(vl.layer_norm(x, scale, bias))
        return nn.gelu(nn.LayerNorm(use_bias=False, use_scale=False)(x) * scale + bias)


def test_linen_norm_and_activation():
    with x64():
        x, plain, fast = batch((2, 7, 8)), LinenBlock(False), LinenBlock(True)
        params = drawn(jax.eval_shape(plain.init, KEY, x))
        require_equal(outcome(plain.apply, params, x), outcome(fast.apply, params, x))


def test_equinox_norm_and_activation():
    """The parameters of a model that exists stay where they are; the functions that read them are ours."""
    with x64():
        make = lambda act: eqx.nn.MLP(8, 4, 16, 2, activation=act, key=jax.random.key(0))  # noqa: E731
        x, results = batch((5, 8)), []
        for act, fast in ((jax.nn.silu, False), (vl.silu, True)):
            params, static = parted(lambda act=act: (eqx.nn.LayerNorm(8), make(act)))

            def apply(params, x, static=static, fast=fast):
                norm, mlp = eqx.combine(params, static)
                y = vl.layer_norm(x, norm.weight, norm.bias, epsilon=norm.eps) if fast else jax.vmap(norm)(x)
                return jax.vmap(mlp)(y)

            results.append(outcome(apply, params, x))
            assert is_served(apply, params, x) == fast
        require_equal(*results)


def test_haiku_norm_activation_and_loss():
    with x64():
        x, labels, results = batch((5, 8)), jnp.array([0, 3, 1, 2, 3]), []
        for fast in (False, True):
            norm, act = (vl.rms_norm, vl.gelu) if fast else (None, jax.nn.gelu)

            def layers(x, norm=norm, act=act):
                scale = hk.get_parameter("scale", x.shape[-1:], x.dtype, jnp.ones)
                plain = lambda x, s: s * x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6)  # noqa: E731
                return hk.nets.MLP([16, 4], activation=act)((norm or plain)(x, scale))

            net = hk.without_apply_rng(hk.transform(layers))
            loss = (vl if fast else optax).softmax_cross_entropy_with_integer_labels
            params = drawn(jax.eval_shape(net.init, KEY, x))
            results.append(outcome(lambda p, x, net=net, loss=loss: loss(net.apply(p, x), labels), params, x))
        require_equal(*results)


# ------------------------------------------------------------------------------------------------------- what is bound


def test_which_names_are_bound_when_flax_is_imported():
    """The page on flax says which layers look lax's function up when they are called, and which when imported."""
    layer = nnx.Conv(1, 1, (1,), rngs=nnx.Rngs(0))
    assert layer.conv_general_dilated is lax.conv_general_dilated
    with vl.use_in_lax():
        assert nnx.Conv(1, 1, (1,), rngs=nnx.Rngs(0)).conv_general_dilated is not lax.conv_general_dilated
    assert nn.Conv(1, (1,)).conv_general_dilated is None
