"""Norms are those of flax and jnp, for arrays and parameters of every dtype; right at 0 and at large means."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vjplib as vl
from vjplib.compat import x64

X = np.random.default_rng(0).standard_normal((4, 5, 6))
SCALE, BIAS = np.linspace(0.5, 2, 6), np.linspace(-1, 1, 6)
NORMALS = {"x": X, "scale": SCALE, "bias": BIAS}


def flax_module(module, x, scale=None, bias=None, **collections):
    """Return what a module of flax computes with these parameters."""
    parameters = {name: a for name, a in (("scale", scale), ("bias", bias)) if a is not None}
    return module.apply({"params": parameters, **collections}, x)


def layer_norm(x, scale=None, bias=None, **options):
    used = {"use_scale": scale is not None, "use_bias": bias is not None}
    return flax_module(nn.LayerNorm(use_fast_variance=False, **used, **options), x, scale, bias)


def group_norm(x, scale=None, bias=None, **options):
    used = {"use_scale": scale is not None, "use_bias": bias is not None}
    return flax_module(nn.GroupNorm(use_fast_variance=False, **used, **options), x, scale, bias)


def rms_norm(x, scale=None, **options):
    return flax_module(nn.RMSNorm(use_scale=scale is not None, **options), x, scale)


def batch_norm(x, scale=None, bias=None, momentum=0.99):
    used: dict[str, Any] = {"use_scale": scale is not None, "use_bias": bias is not None}
    module = nn.BatchNorm(use_running_average=False, use_fast_variance=False, momentum=momentum, **used)
    parameters = {name: a for name, a in (("scale", scale), ("bias", bias)) if a is not None}
    stats = {"mean": jnp.linspace(0.0, 1, 6), "var": jnp.linspace(1.0, 2, 6)}
    y, new = module.apply({"params": parameters, "batch_stats": stats}, x, mutable=["batch_stats"])
    return y, new["batch_stats"]["mean"], new["batch_stats"]["var"]


def our_batch_norm(x, scale=None, bias=None, **options):
    return vl.batch_norm(x, jnp.linspace(0.0, 1, 6), jnp.linspace(1.0, 2, 6), scale, bias, **options)


PAIRS = {
    "layer_norm": (vl.layer_norm, layer_norm, 3),
    "layer_norm, epsilon": (partial(vl.layer_norm, epsilon=0.1), partial(layer_norm, epsilon=0.1), 3),
    "layer_norm of two axes": (
        partial(vl.layer_norm, axis=(1, 2)),
        partial(layer_norm, reduction_axes=(1, 2)),
        3,
    ),
    "group_norm": (partial(vl.group_norm, num_groups=2), partial(group_norm, num_groups=2), 3),
    "instance norm": (partial(vl.group_norm, num_groups=6), partial(group_norm, num_groups=6), 3),
    "rms_norm": (vl.rms_norm, rms_norm, 2),
    "batch_norm": (our_batch_norm, batch_norm, 3),
    "batch_norm, momentum": (partial(our_batch_norm, momentum=0.5), partial(batch_norm, momentum=0.5), 3),
}


def activated(norm, activation):
    """Return a batch norm without an activation, followed by one of flax's."""

    def f(*args):
        y, *statistics = norm(*args)
        return getattr(nn, activation)(y), *statistics

    return f


PAIRS |= {
    f"batch_norm, {name}": (partial(our_batch_norm, activation=name), activated(batch_norm, name), 3)
    for name in ("relu", "relu6")
}
DTYPES = (("float32", "float32"), ("bfloat16", "float32"), ("bfloat16", "bfloat16"), ("float16", "float16"))


def require_same(ours, theirs, *args):
    """Require the same outputs and cotangents, in dtypes and within the rounding of the coarsest argument."""
    rng = np.random.default_rng(1)
    gs = jax.tree.map(lambda a: jnp.asarray(rng.standard_normal(a.shape), a.dtype), jax.eval_shape(theirs, *args))

    @jax.jit
    def results(gs, *args):
        pairs = [jax.vjp(f, *args) for f in (ours, theirs)]
        return [jax.tree.leaves((y, back(gs))) for y, back in pairs]

    coarsest = max(float(jnp.finfo(a.dtype).eps) for a in args)
    for a, b in zip(*results(gs, *args), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        np.testing.assert_allclose(a, b, rtol=0, atol=30 * coarsest * max(1, np.abs(b).max()))


@pytest.mark.parametrize(("dtype", "of_parameters"), DTYPES)
@pytest.mark.parametrize("name", PAIRS)
def test_values_dtypes_and_gradients_are_those_of_flax(name, dtype, of_parameters):
    ours, theirs, count = PAIRS[name]
    x, *parameters = (jnp.asarray(a, d) for a, d in zip(NORMALS.values(), (dtype, *[of_parameters] * 2), strict=True))
    for given in range(count) if name == "layer_norm" else (count - 1,):
        require_same(ours, theirs, x, *parameters[:given])


@pytest.mark.parametrize("feature_axes", [-1, 0, (0, 2)])
def test_weight_norm_is_flax_s(feature_axes):
    axes = feature_axes if isinstance(feature_axes, tuple) else (feature_axes,)
    scale = jnp.asarray(np.random.default_rng(2).uniform(0.5, 2, [X.shape[a] for a in axes]), jnp.float32)

    def by_flax(kernel, scale):
        others = tuple({0, 1, 2} - {a % 3 for a in axes})
        return nn.normalization._l2_normalize(kernel, axis=others) * jnp.expand_dims(scale, others)

    require_same(partial(vl.weight_norm, feature_axes=feature_axes), by_flax, jnp.asarray(X, jnp.float32), scale)


@pytest.mark.parametrize(
    "options",
    [{}, {"axis": -1}, {"axis": (0, 2), "keepdims": True}, {"axis": 1, "ord": 2}, {"axis": (0, 1), "ord": "fro"}],
)
def test_norm_is_jnp_s(options):
    require_same(partial(vl.norm, **options), partial(jnp.linalg.norm, **options), jnp.asarray(X, jnp.float32))


def test_other_norms_go_to_jnp():
    x = jnp.asarray(X, jnp.float32)
    for order in (1, np.inf, -np.inf, 0):
        assert (vl.norm(x, order, axis=-1) == jnp.linalg.norm(x, order, axis=-1)).all()
    assert vl.norm(x[0], 2) == jnp.linalg.norm(x[0], 2)  # the largest singular value
    assert vl.norm(x[0], "nuc") == jnp.linalg.norm(x[0], "nuc")


def test_integers_and_complex_numbers_are_those_of_the_plain_formulas():
    integers, numbers = jnp.arange(6).reshape(2, 3), jnp.asarray(X[0] + 1j * X[1], jnp.complex64)
    for f in (vl.layer_norm, vl.rms_norm, vl.normalize, vl.norm, vl.weight_norm):
        np.testing.assert_allclose(f(integers), f(integers.astype(jnp.float32)), rtol=1e-6)
        assert f(numbers).dtype == (jnp.float32 if f is vl.norm else jnp.complex64)
    np.testing.assert_allclose(jnp.abs(vl.normalize(numbers)) ** 2 @ np.ones(6), 1, rtol=1e-5)
    np.testing.assert_allclose(vl.layer_norm(integers, scale=np.arange(3), bias=1)[:, 1], 1, atol=1e-6)


# ------------------------------------------------------------------------------------------------------- conventions


@pytest.mark.parametrize("second", [jax.jacrev, jax.jacfwd], ids=["reverse", "forward"])
def test_derivatives_at_zero_are_finite(second):
    zeros = jnp.zeros(3)
    assert jax.grad(vl.norm)(zeros).tolist() == [0, 0, 0]
    assert second(jax.grad(vl.norm))(zeros).tolist() == np.zeros((3, 3)).tolist()
    assert (jax.jacrev(partial(vl.normalize, epsilon=0.5))(zeros) == 2 * np.eye(3)).all()
    assert (second(jax.jacrev(vl.normalize))(zeros) == 0).all()
    assert jnp.isnan(jax.grad(jnp.linalg.norm)(zeros)).all()


def test_float16_does_not_overflow():
    x = jnp.full((4,), 3e4, jnp.float16)
    assert jnp.isinf(jnp.linalg.norm(x))
    assert vl.norm(x / 2) == 3e4
    assert (vl.normalize(x) == 0.5).all()
    assert (vl.rms_norm(x) == 1).all()


def test_variance_keeps_its_digits_at_a_large_mean():
    x = np.float32(4096 + np.random.default_rng(3).integers(0, 4, (2, 8)))
    with x64():
        exact = np.asarray(jax.jacrev(layer_norm)(np.asarray(x, np.float64)))
    np.testing.assert_allclose(jax.jacrev(vl.layer_norm)(x), exact, atol=1e-5 * np.abs(exact).max())
    fast = jax.jacrev(lambda x: nn.LayerNorm(use_scale=False, use_bias=False).apply({}, x))(x)
    assert np.abs(np.asarray(fast) - exact).max() > 0.1 * np.abs(exact).max()


def test_rank_promotion_may_be_forbidden():
    x, scale = jnp.asarray(X, jnp.float32), jnp.asarray(SCALE, jnp.float32)
    with jax.numpy_rank_promotion("raise"):
        for f in (vl.layer_norm, vl.rms_norm, partial(vl.group_norm, num_groups=3), vl.weight_norm, our_batch_norm):
            jax.vjp(f, x, scale)[1](jax.tree.map(jnp.ones_like, f(x, scale)))


def test_batch_norm_recomputes_nothing_ahead_of_the_cotangent():
    """Of each layer its input and its output are held; what the backward recomputes is not."""
    x, w = jnp.zeros((4096, 64)), jnp.zeros((6, 64, 64))

    def loss(w, x):
        for layer in w:
            x, *_ = vl.batch_norm(x @ layer, jnp.zeros(64), jnp.ones(64), activation="relu6")
        return jnp.sum(x)

    memory = jax.jit(jax.grad(loss)).lower(w, x).compile().memory_analysis()
    assert memory is None or memory.temp_size_in_bytes < (2 * 6 + 4) * x.nbytes
