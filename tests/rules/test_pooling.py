"""Pooling is lax's and flax's: values, gradients, ties, dtypes and refusals; on every platform, and partitioned."""

import subprocess
import sys
from typing import Any

import chex
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from flax.linen import pooling as flax_pooling
from jax import lax

import vjplib
from vjplib.compat import x64
from vjplib.rules.pooling.pooling import reference_reduce_window_max
from vjplib.rules.pooling.windows import argmax_window
from vjplib.verification.claims.residuals import residual_bytes

INF, NAN = jnp.inf, jnp.nan


def lax_max(x, *args):
    return lax.reduce_window(x, -INF, lax.max, *args)


def y_and_dx(f, x, g=None):
    y, back = jax.vjp(f, jnp.asarray(x))
    return y, back(jnp.ones_like(y) if g is None else jnp.asarray(g, y.dtype))[0]


def in_one_program(ours, theirs, x, g):
    """Returns y and dx of two functions in float64, and of the first in float32, in this order."""

    @jax.jit
    def run(x, g, *in_float32):
        return y_and_dx(ours, x, g), y_and_dx(theirs, x, g), y_and_dx(ours, *in_float32)

    return jax.device_get(run(x, g, np.asarray(x, np.float32), np.asarray(g, np.float32)))


def as_type(dtype, arrays):
    return jax.tree.map(lambda a: a.astype(dtype), arrays)


# ------------------------------------------------------------------------------------------------- against lax and flax


def random_windows(rng):
    """Returns a shape of one to four dimensions and arguments of reduce_window for one to three of them."""
    rank = int(rng.integers(1, 5))
    shape, sizes, strides, pads, dilation = rng.integers(1, 5, rank), *np.ones((2, rank), int), [(0, 0)] * rank, None
    for axis in rng.choice(rank, int(rng.integers(1, min(3, rank) + 1)), replace=False):
        shape[axis] = rng.integers(1, 12)
        sizes[axis] = rng.integers(1, 4) if rng.random() < 0.8 else rng.integers(4, 20)
        strides[axis] = rng.integers(1, 5)
        pads[axis] = tuple(rng.integers(-1, 4, 2).tolist())
    if rng.random() < 0.3:
        dilation = tuple(np.where(sizes > 1, rng.integers(1, 4, rank), 1).tolist())
    padding = rng.choice(["VALID", "SAME", "SAME_LOWER", "pairs"])
    padding = tuple(pads) if padding == "pairs" else str(padding)
    return shape.tolist(), (tuple(sizes.tolist()), tuple(strides.tolist()), padding, None, dilation)


def assert_maxima_are_lax_s(seed):
    """Values of few distinct numbers tie often; g of integers adds exactly, in any order."""
    rng = np.random.default_rng(seed)
    shape, args = random_windows(rng)
    with x64():
        x = rng.integers(-3, 4, shape).astype(np.float64)
        y = jax.eval_shape(lambda x: lax_max(x, *args), x)
        if y.size == 0:
            return
        g = rng.integers(-9, 10, y.shape).astype(np.float64)
        dilated, cut = args[4] is not None, not isinstance(args[2], str) and np.min(args[2]) < 0
        oracle = reference_reduce_window_max if dilated or cut else lax_max  # lax cannot differentiate these
        ours, theirs, in_float32 = in_one_program(
            lambda x: vjplib.reduce_window_max(x, *args), lambda x: oracle(x, *args), x, g
        )
        chex.assert_trees_all_equal(ours, theirs)
        if oracle is not lax_max:
            chex.assert_trees_all_equal(ours[0], lax_max(x, *args))
        chex.assert_trees_all_equal(as_type(np.float64, in_float32), theirs)


@pytest.mark.parametrize("seed", range(24))
def test_random_windows_have_lax_s_maxima_and_gradient(seed):
    assert_maxima_are_lax_s(seed)


@pytest.mark.sweep
@pytest.mark.parametrize("start", range(1000, 1600, 20))
def test_600_random_windows_have_lax_s_maxima_and_gradient(start):
    for seed in range(start, start + 20):
        assert_maxima_are_lax_s(seed)
    jax.clear_caches()


POOLS = {
    "max_pool": (vjplib.max_pool, flax_pooling.max_pool),
    "min_pool": (vjplib.min_pool, flax_pooling.min_pool),
    "avg_pool": (vjplib.avg_pool, flax_pooling.avg_pool),
}


def random_pool(rng):
    spatial = int(rng.integers(1, 4))
    window = tuple(rng.integers(1, 4, spatial).tolist())
    strides = None if rng.random() < 0.3 else tuple(rng.integers(1, 4, spatial).tolist())
    padding = rng.choice(["VALID", "SAME", "pairs"])
    pairs = tuple(tuple(rng.integers(0, k + 1, 2).tolist()) for k in window)
    batch = rng.integers(1, 4, int(rng.integers(0, 2 if padding == "pairs" else 3)))  # of pairs flax takes no two
    shape = (*batch, *rng.integers(4, 9, spatial), int(rng.integers(1, 4)))
    return shape, (window, strides, pairs if padding == "pairs" else str(padding))


def assert_pool_is_flax_s(name, seed):
    rng = np.random.default_rng(seed)
    shape, args = random_pool(rng)
    ours, theirs = POOLS[name]
    options = {"count_include_pad": bool(rng.random() < 0.5)} if name == "avg_pool" else {}
    with x64():
        x = rng.standard_normal(shape).astype(np.float32).astype(np.float64)
        y = jax.eval_shape(lambda x: theirs(x, *args, **options), x)
        g = rng.standard_normal(y.shape).astype(np.float32).astype(np.float64)
        *pair, in_float32 = in_one_program(
            lambda x: ours(x, *args, **options), lambda x: theirs(x, *args, **options), x, g
        )
        chex.assert_trees_all_close(as_type(np.float32, in_float32), as_type(np.float32, pair[1]), rtol=1e-5, atol=1e-6)
    if name == "avg_pool":  # adds along one side after the other
        chex.assert_trees_all_close(*pair, rtol=1e-13, atol=1e-14)
    else:
        chex.assert_trees_all_equal(*pair)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("name", POOLS)
def test_pools_are_flax_s(name, seed):
    assert_pool_is_flax_s(name, seed)


@pytest.mark.sweep
@pytest.mark.parametrize("name", POOLS)
def test_100_pools_are_flax_s(name):
    for seed in range(1000, 1100):
        assert_pool_is_flax_s(name, seed)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "int32", "uint8", "complex64", "float8_e4m3fn"])
@pytest.mark.parametrize("name", POOLS)
def test_dtypes_are_flax_s(name, dtype):
    ours, theirs = POOLS[name]
    x = jnp.arange(24).reshape(2, 4, 3).astype(dtype)
    y, y_flax = (f(x, (2,), padding="SAME") for f in (ours, theirs))
    assert (y.dtype, y.shape) == (y_flax.dtype, y_flax.shape)
    # Two roundings: ours adds in float32 and rounds once, flax's in the dtype.
    unit = float(jnp.finfo(dtype).eps) if jnp.issubdtype(dtype, jnp.inexact) else 0.0
    chex.assert_trees_all_close(y.astype("complex64"), y_flax.astype("complex64"), rtol=2 * unit)
    if name == "avg_pool" and dtype != "float8_e4m3fn":  # which JAX does not promote
        y, y_flax = (f(x, (2,), padding="SAME", count_include_pad=False) for f in (ours, theirs))
        assert y.dtype == y_flax.dtype


def test_half_precision_adds_in_float32():
    x = jnp.ones((2048, 1), jnp.float16)
    dx = jax.grad(lambda x: vjplib.max_pool(x, (1,), (1,), ((0, 0),)).astype(jnp.float32).sum())(x)
    chex.assert_trees_all_equal(dx, x)
    peak = jnp.zeros((9, 1), jnp.bfloat16).at[4].set(1)
    y, back = jax.vjp(lambda x: vjplib.max_pool(x, (5,)), peak)
    g = jnp.array([[256.0], [1.0], [1.0], [1.0], [1.0]], jnp.bfloat16)
    assert y.shape == g.shape
    assert float(back(g)[0][4, 0]) == 260.0


def test_other_calls_are_lax_s():
    x = jnp.array([1.0, 3.0, 2.0, 3.0])
    dilated = ((3,), (1,), "VALID", (2,), None)
    f, by_lax = (lambda x, h=h: h(x, *dilated) for h in (vjplib.reduce_window_max, lax_max))
    chex.assert_trees_all_equal(y_and_dx(f, x), y_and_dx(by_lax, x))
    assert vjplib.reduce_window_max(jnp.zeros((2, 3)), (1, 4)).shape == (2, 0)
    square = jnp.zeros((2, 2, 1))
    assert vjplib.reduce_window_max(square, (4, 4, 1)).shape == (0, 0, 1)
    for pool in (vjplib.max_pool, vjplib.min_pool, vjplib.avg_pool):
        assert pool(square, (4, 4)).shape == (0, 0, 1)
    chex.assert_trees_all_equal(vjplib.reduce_window_max(x, (1,), None, "VALID", None, (2,)), x)
    long = jnp.arange(300.0)[:, None]
    chex.assert_trees_all_close(vjplib.avg_pool(long, (200,)), flax_pooling.avg_pool(long, (200,)), rtol=1e-6)


# ------------------------------------------------------------------------------------------------ ties, infinities, NaN


@pytest.mark.parametrize(
    "x", [[-0.0, 0.0, -0.0], [0.0, -0.0, 0.0], [2.0, 2.0, 2.0], [-INF, -INF, -INF], [-INF, INF, INF]]
)
@pytest.mark.parametrize("padding", [((0, 0),), ((1, 0),), ((0, 2),), ((2, 2),)])
@pytest.mark.parametrize("smallest", [False, True])
def test_ties_go_where_xla_s_do(x, padding, smallest):
    x = jnp.array(x)[:, None] * (-1 if smallest else 1)
    name = "min_pool" if smallest else "max_pool"
    ours, theirs = (y_and_dx(lambda x, f=f: f(x, (2,), (1,), padding), x) for f in POOLS[name])
    chex.assert_trees_all_equal(ours, theirs)


@pytest.mark.parametrize(
    ("x", "at"), [([NAN, 1, 5], 0), ([1, NAN, 5], 1), ([5, NAN, NAN], 1), ([NAN] * 3, 0), ([1, 5, NAN], 2)]
)
def test_a_window_with_nan_is_nan_and_its_first_nan_is_its_place(x, at):
    for f in (vjplib.max_pool, vjplib.min_pool):
        y, dx = y_and_dx(lambda x, f=f: f(x, (3,)), jnp.array(x, jnp.float32)[:, None])
        assert np.isnan(y).all()
        assert dx[:, 0].tolist() == [float(i == at) for i in range(3)]


def test_nan_is_found_in_every_form_of_window(rng):
    for shape, window, strides in (((40, 2), (19,), (1,)), ((9, 9, 2), (5, 5), (1, 2)), ((8, 8, 2), (4, 4), (4, 4))):
        x = rng.standard_normal(shape).astype(np.float32)
        x.flat[::7] = NAN
        ours, theirs = (f(x, window, strides) for f in POOLS["max_pool"])
        chex.assert_trees_all_equal(ours, theirs)
        dx = y_and_dx(lambda x, w=window, s=strides: vjplib.max_pool(x, w, s), x)[1]
        assert dx.sum() == ours.size
        assert (np.isnan(x) | (dx == 0)).all() == np.isnan(ours).all()


# ---------------------------------------------------------------------------------------------------- residuals, memory


@pytest.mark.parametrize(("window", "size"), [((16, 16), 1), ((16, 17), 2)])
def test_one_byte_is_kept_for_each_output_two_for_large_windows(window, size):
    x = jnp.zeros((2, 20, 20, 3))
    y = jax.eval_shape(lambda x: vjplib.max_pool(x, window), x)
    assert residual_bytes(lambda x: vjplib.max_pool(x, window), x) == size * y.size


def test_the_mean_keeps_nothing():
    assert residual_bytes(lambda x: vjplib.avg_pool(x, (3, 3), (2, 2)), jnp.zeros((2, 9, 9, 3))) == 0


# ------------------------------------------------------------------------------------------- platforms and partitioning

FORMS = {
    "apart": ((2, 2), (2, 2)),
    "phases": ((3, 3), (2, 2)),
    "scattered": ((5, 5), (2, 2)),
}


def both(f):
    return jax.jit(lambda x: jax.value_and_grad(lambda x: jnp.sum(jnp.sin(f(x))))(x))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["max_pool", "avg_pool"])
def test_calls_are_kept_apart_on_cpu_alone(name, form):
    f = both(lambda x: POOLS[name][0](x, *FORMS[form]))
    x = jnp.zeros((2, 12, 12, 4))
    alone = jax.jit(lambda x: POOLS[name][0](x, *FORMS[form]))
    for platform in ("cuda", "tpu"):
        assert "inlineable" not in jax.export.export(f, platforms=[platform])(x).mlir_module()
        assert "reduce_window" in jax.export.export(alone, platforms=[platform])(x).mlir_module()
    if jax.default_backend() == "cpu":
        text = f.lower(x).compile().as_text() or ""
        assert sum(" call(" in line and 'inlineable="false"' in line for line in text.splitlines()) >= 2
        assert "select-and-scatter" not in text
        assert " reduce-window(" not in (alone.lower(x).compile().as_text() or "")


def test_eager_calls_compile_once():
    x = jnp.arange(24.0).reshape(2, 4, 3)
    y_and_dx(lambda x: vjplib.max_pool(x, (2,)), x)
    jitted: Any = argmax_window  # whose cache JAX does not type
    compiled = jitted._cache_size()
    y_and_dx(lambda x: vjplib.max_pool(x, (2,)), x + 1)
    assert jitted._cache_size() == compiled


PARTITIONED = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
import vjplib
x = np.random.default_rng(0).standard_normal((4, 12, 12, 8)).astype(np.float32)
for name, f in (("max", vjplib.max_pool), ("avg", vjplib.avg_pool)):
    for window, strides in (((2, 2), (2, 2)), ((3, 3), (2, 2)), ((5, 5), (2, 2))):
        both = jax.jit(lambda x: jax.value_and_grad(lambda x: jnp.sum(jnp.sin(f(x, window, strides))))(x))
        expected = both(x)
        for kind in (AxisType.Auto, AxisType.Explicit):
            mesh = jax.make_mesh((2, 2), ("b", "c"), axis_types=(kind, kind))
            with jax.set_mesh(mesh):
                at = NamedSharding(mesh, P("b", None, None, "c"))
                placed = jax.device_put(x, at)
                compiled = both.lower(placed).compile()
                found = compiled(placed)
            assert found[1].sharding.is_equivalent_to(at, 4), (name, window, kind, found[1].sharding)
            np.testing.assert_allclose(found[0], expected[0], rtol=1e-5)
            np.testing.assert_allclose(found[1], expected[1], rtol=1e-5, atol=1e-6)
            for collective in ("all-gather", "all-to-all", "collective-permute"):
                assert collective not in compiled.as_text(), (name, window, kind, collective)
print("partitioned")
"""


def test_sharded_batch_and_channels_are_pooled_where_they_are():
    code = "import os\nos.environ['XLA_FLAGS'] = '--xla_force_host_platform_device_count=4'\n" + PARTITIONED
    run = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert run.stdout.strip() == "partitioned", run.stderr[-2000:]


# ----------------------------------------------------------------------------------------------------------- refusals

X = jnp.ones((2, 5, 3))
LINE = jnp.ones(5)
BAD_FOR_LAX = {
    "size 0": (LINE, (0,)),
    "size negative": (LINE, (-2,)),
    "size a float": (LINE, (2.5,)),
    "sizes an integer": (LINE, 2),
    "too few sizes": (X, (2, 2)),
    "stride 0": (LINE, (2,), (0,)),
    "strides an integer": (LINE, (2,), 1),
    "too many strides": (LINE, (2,), (1, 1)),
    "unknown padding": (LINE, (2,), (1,), "FULL"),
    "padding of three": (LINE, (2,), (1,), ((1, 2, 3),)),
    "padding of floats": (LINE, (2,), (1,), ((0.5, 1),)),
    "padding twice": (LINE, (2,), (1,), ((0, 0), (0, 0))),
    "dilation 0": (LINE, (2,), (1,), "VALID", None, (0,)),
    "too many dilations": (LINE, (2,), (1,), "VALID", None, (1, 1)),
    "base dilation of two": (LINE, (2,), (1,), "VALID", (2, 2)),
}


@pytest.mark.parametrize("name", BAD_FOR_LAX)
def test_what_lax_refuses_is_refused_by_name(name):
    args = BAD_FOR_LAX[name]
    with pytest.raises(Exception):  # noqa: B017, PT011 - whatever lax raises
        lax_max(*args)
    with pytest.raises((TypeError, ValueError), match=r"(window_dimensions|window_strides|padding|_dilation) must "):
        vjplib.reduce_window_max(*args)


BAD = {
    "no room for features": (
        lambda f: f(LINE, (2,)),
        ValueError,
        r"a dimension for each of window_shape \(2,\) and one for features, got shape \(5,\)",
    ),
    "strides of another length": (
        lambda f: f(X, (2,), (1, 2)),
        ValueError,
        r"strides must have length 1 and positive entries, got \(1, 2\)",
    ),
    "padding of another length": (
        lambda f: f(X, (2,), None, ((0, 0), (0, 0))),
        ValueError,
        r"padding must be .* 1 x \(low, high\), integers, got \(\(0, 0\), \(0, 0\)\)",
    ),
    "padding of three": (
        lambda f: f(X, (2,), None, ((0, 0, 0),)),
        ValueError,
        r"padding must be .* got \(\(0, 0, 0\),\)",
    ),
    "padding of floats": (lambda f: f(X, (2,), None, ((0.5, 0),)), TypeError, "integer"),
    "unknown padding": (lambda f: f(X, (2,), None, "FULL"), ValueError, "padding must be .* got 'FULL'"),
    "size 0": (lambda f: f(X, (0,)), ValueError, r"window_shape must .* positive entries, got \(0,\)"),
    "stride 0": (lambda f: f(X, (2,), (0,)), ValueError, r"strides must .* positive entries, got \(0,\)"),
    "nothing": (lambda f: f(None, ()), TypeError, "inputs must be an array of numbers, got NoneType None"),
}


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_by_name(name, pool):
    call, error, message = BAD[name]
    with pytest.raises(error, match=message):
        call(POOLS[pool][0])


def test_the_mean_of_booleans_is_refused_as_by_flax():
    for f in POOLS["avg_pool"]:
        with pytest.raises(TypeError, match="number dtype"):
            f(X > 0, (2,))


CROPS = ((-1, 0), (0, 0)), ((-1, 2), (1, -1)), ((0, 0), (0, -3))


@pytest.mark.parametrize("dtype", [np.int32, np.float32, np.complex64])
@pytest.mark.parametrize("padding", CROPS)
def test_windows_of_one_element_that_crop_compile(dtype, padding):
    # Those that XLA were given would abort the process (openxla/xla#48719).
    x = np.arange(1, 33).reshape(8, 4).astype(dtype)
    (top, bottom), (left, right) = padding
    crop = x[max(0, -top) : 8 + min(0, bottom), max(0, -left) : 4 + min(0, right)]
    outside = [(max(0, top), max(0, bottom)), (max(0, left), max(0, right))]

    def check(f, expected):
        np.testing.assert_array_equal(jax.jit(f)(x), expected)

    def filled(value):
        return np.pad(crop.astype(np.result_type(dtype, np.float32)), outside, constant_values=value)

    worst = np.iinfo(dtype).min if dtype == np.int32 else -np.inf
    check(lambda x: vjplib.reduce_window_max(x, (1, 1), None, padding), np.pad(crop, outside, constant_values=worst))
    check(lambda x: vjplib.avg_pool(x[..., None], (1, 1), None, padding)[..., 0], filled(0))
    check(lambda x: vjplib.avg_pool(x[..., None], (1, 1), None, padding, False)[..., 0], filled(np.nan))


@pytest.mark.parametrize(("padding", "dilation"), [(((-1, 0),), None), ("VALID", (2,))])
def test_no_window_at_all_has_a_derivative(padding, dilation):
    x = jnp.arange(3.0)
    y, back = jax.vjp(lambda x: vjplib.reduce_window_max(x, (9,), None, padding, None, dilation), x)
    assert y.shape == (0,)
    np.testing.assert_array_equal(back(y)[0], np.zeros(3))
