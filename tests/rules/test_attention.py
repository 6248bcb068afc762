"""Attention equals JAX's and its own plain formula, in one block and in many, and its memory is that of a block."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

import vjplib
from vjplib.compat import x64
from vjplib.rules import attention
from vjplib.rules.attention import _Options, _plan, reference_dot_product_attention

B, T, S, N, K, H = 2, 37, 41, 4, 2, 3

OPTIONS = {
    "all keys": {},
    "causal": {"is_causal": True},
    "window": {"local_window_size": (3, 2)},
    "causal window": {"local_window_size": 5, "is_causal": True},
    "scale": {"scale": 0.1},
    "mask": {"mask": (1, N, T, S)},
    "mask of keys": {"mask": (B, 1, 1, S), "is_causal": True},
    "bias": {"bias": (B, N, T, S)},
    "bias of heads": {"bias": (N, T, S), "is_causal": True},
    "bias of keys": {"bias": (1, 1, 1, S), "local_window_size": 4},
    "bias of queries": {"bias": (B, N, T, 1)},
    "lengths": {"query_seq_lengths": (30, 17), "key_value_seq_lengths": (5, 41)},
}


def call(rng, options):
    """Returns the arrays to differentiate and a call of a function of them."""
    shapes = [(B, T, N, H), (B, S, K, H), (B, S, K, H), *([options["bias"]] if "bias" in options else [])]
    given = {k: v for k, v in options.items() if k != "bias"}
    if "mask" in given:
        given["mask"] = rng.random(given["mask"]) < 0.7
        given["mask"][..., 0] = True  # a key for each query
    for name in ("query_seq_lengths", "key_value_seq_lengths"):
        if name in given:
            given[name] = np.array(given[name], np.int32)
    return [rng.standard_normal(shape) for shape in shapes], given


def all_results(f, arrays, g, **options):
    def run(*arrays):
        y, back = jax.vjp(lambda *arrays: f(*arrays, **options), *arrays)
        return (y, *back(g))

    return jax.jit(run)(*arrays)


@pytest.fixture
def many_blocks(monkeypatch):
    monkeypatch.setattr(attention, "WHOLE", 0)
    monkeypatch.setattr(attention, "MOST", 100)


@pytest.mark.parametrize("name", OPTIONS)
def test_one_block_gives_what_jax_gives(name, rng):
    arrays, options = call(rng, OPTIONS[name])
    g = rng.standard_normal((B, T, N, H))
    arrays, g = [np.float32(a) for a in arrays], np.float32(g)
    ours, theirs = (
        all_results(f, arrays, g, **options) for f in (vjplib.dot_product_attention, jax.nn.dot_product_attention)
    )
    for a, b in zip(ours, theirs, strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        np.testing.assert_allclose(a, b, atol=2e-5)


@pytest.mark.parametrize("name", OPTIONS)
def test_many_blocks_give_the_plain_formula(name, rng, many_blocks):
    with x64():
        arrays, options = call(rng, OPTIONS[name])
        plan = _plan(arrays[0], arrays[1], _Options(1.0, "is_causal" in options, None))
        assert plan.blocks > 8
        g = rng.standard_normal((B, T, N, H))
        ours, theirs = (
            all_results(f, arrays, g, **options)
            for f in (vjplib.dot_product_attention, reference_dot_product_attention)
        )
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-13)


def test_stripes_leave_out_keys_that_no_query_sees():
    q: Any = jax.ShapeDtypeStruct((4, 2048, 8, 64), jnp.float32)
    causal, window = (_plan(q, q, _Options(1.0, *rest)) for rest in ((True, None), (False, (100, 0))))
    share = lambda plan: sum(s.blocks * plan.rows * (s.high - s.low) for s in plan.stripes) / 2048**2  # noqa: E731
    assert share(causal) < 0.65
    assert share(window) < 0.35


def test_no_array_holds_the_weights_of_all_queries():
    q = jax.ShapeDtypeStruct((1, 1024, 4, 16), jnp.float32)

    def bytes_of(f):
        gradient = jax.jit(jax.grad(lambda q, k, v: jnp.sum(f(q, k, v) ** 2), (0, 1, 2)))
        analysis: Any = gradient.lower(q, q, q).compile().memory_analysis()
        return analysis.temp_size_in_bytes

    assert bytes_of(vjplib.dot_product_attention) * 7 <= bytes_of(jax.nn.dot_product_attention)


def test_a_query_without_keys_is_zero(rng, many_blocks):
    (q, k, v), _ = call(rng, {})
    mask = np.ones((1, 1, T, S), bool)
    mask[..., 3, :] = False
    y, *dxs = all_results(
        vjplib.dot_product_attention, [np.float32(a) for a in (q, k, v)], jnp.ones(q.shape), mask=mask
    )
    assert not np.any(y[:, 3])
    assert not np.any(dxs[0][:, 3])
    assert all(np.isfinite(dx).all() for dx in dxs)


def test_the_residual_is_the_logarithm_of_the_sums(rng):
    arrays = [np.float32(a) for a in call(rng, {})[0]]
    ours, theirs = (
        f(*arrays, is_causal=True, return_residual=True)
        for f in (vjplib.dot_product_attention, jax.nn.dot_product_attention)
    )
    for a, b in zip(ours, theirs, strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_arrays_without_a_batch(rng):
    q, k, v = (np.float32(a[0]) for a in call(rng, {})[0])
    y = vjplib.dot_product_attention(q, k, v)
    np.testing.assert_allclose(y, jax.nn.dot_product_attention(q, k, v), atol=1e-5)


def test_a_scale_that_is_an_array_has_a_derivative(rng):
    q, k, v = (np.float32(a) for a in call(rng, {})[0])
    ours, theirs = (
        jax.grad(lambda scale, f=f: jnp.sum(f(q, k, v, scale=scale) ** 2))(0.3)
        for f in (vjplib.dot_product_attention, reference_dot_product_attention)
    )
    np.testing.assert_allclose(ours, theirs, rtol=1e-4)


def test_an_implementation_is_jaxs(rng):
    q, k, v = (np.float32(a) for a in call(rng, {})[0])
    given = {"implementation": "xla", "is_causal": True}
    np.testing.assert_array_equal(
        vjplib.dot_product_attention(q, k, v, **given), jax.nn.dot_product_attention(q, k, v, **given)
    )


def test_sizes_may_be_symbolic():
    b, t = export.symbolic_shape("b, t")
    q = jax.ShapeDtypeStruct((b, t, 2, 3), jnp.float32)
    gradient = jax.jit(jax.grad(lambda q: jnp.sum(vjplib.dot_product_attention(q, q, q, is_causal=True) ** 2)))
    exported = export.export(gradient, platforms=("cpu", "cuda", "tpu"))(q)
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 5, 2, 3)), jnp.float32)
    np.testing.assert_allclose(exported.call(x), gradient(x), atol=1e-5)


def test_half_precision_answers_in_half_precision(rng):
    q, k, v = (jnp.asarray(a, jnp.bfloat16) for a in call(rng, {})[0])
    y, *dxs = all_results(vjplib.dot_product_attention, (q, k, v), jnp.ones(q.shape, jnp.bfloat16))
    exact = all_results(reference_dot_product_attention, [np.float32(a) for a in (q, k, v)], jnp.ones(q.shape))
    assert {a.dtype for a in (y, *dxs)} == {jnp.dtype(jnp.bfloat16)}
    for a, b in zip((y, *dxs), exact, strict=True):
        np.testing.assert_allclose(np.float32(a), b, atol=0.02 * np.abs(b).max())
