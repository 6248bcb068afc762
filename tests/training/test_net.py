"""Networks: promised shapes, purity, and composition as the chain rule (L12)."""

from functools import cache, partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vjplib as vl
from vjplib.training import net

KEY = jax.random.key(0)

LAYERS = {
    "linear": (net.linear(3), (5,)),
    "conv1d": (net.conv1d(4, 3), (7, 2)),
    "conv1d, stride 2, even kernel": (net.conv1d(4, 2, stride=2), (7, 2)),
    "conv1d, stride above kernel": (net.conv1d(1, 1, stride=3), (7, 2)),
    "swiglu": (net.swiglu(3), (5,)),
    "self_attention": (net.self_attention(2), (7, 4)),
    "self_attention, causal": (net.self_attention(1, is_causal=True), (7, 4)),
    "layer_norm": (net.layer_norm(), (5,)),
    "rms_norm": (net.rms_norm(), (3, 5)),
    "relu": (net.relu, (4,)),
    "gelu": (net.gelu, (4,)),
    "silu": (net.silu, (4,)),
    "tanh": (net.tanh, ()),
    "sigmoid": (net.sigmoid, (2, 3)),
    "softmax": (net.softmax, (4,)),
    "flatten": (net.flatten(), (3, 4)),
    "flatten three axes": (net.flatten(3), (2, 3, 4)),
    "swap_axes": (net.swap_axes(-3, -2), (3, 4, 2)),
    "mean_pool": (net.mean_pool(), (5, 3)),
    "mean_pool of an image": (net.mean_pool(2), (4, 5, 3)),
    "serial": (net.serial(net.conv1d(4, 3), net.relu, net.flatten(), net.linear(2)), (6, 1)),
    "serial of nothing": (net.serial(), (3,)),
    "residual": (net.residual(net.conv1d(2, 3), net.tanh), (6, 2)),
}
layers = pytest.mark.parametrize("name", LAYERS)


@cache
def started(name):
    """Return a layer, its input shape, and what it promises and draws for that."""
    layer, shape = LAYERS[name]
    return layer, shape, *layer.init(KEY, shape)


def sample(*shape):
    return jnp.asarray(np.random.default_rng(1).standard_normal(shape), jnp.float32)


@layers
@pytest.mark.parametrize("batch", [(), (2,), (2, 3)])
def test_the_shape_promised_is_the_shape_returned(name, batch):
    layer, shape, promised, params = started(name)
    assert jax.eval_shape(layer.apply, params, sample(*batch, *shape)).shape == (*batch, *promised)


@layers
def test_batch_axes_may_be_given_to_init_and_change_no_parameter(name):
    layer, shape, promised, params = started(name)
    with_batch, same = layer.init(KEY, (2, 3, *shape))
    assert with_batch == (2, 3, *promised)
    chex.assert_trees_all_equal(params, same)


@layers
def test_layers_jit_vmap_and_differentiate(name):
    layer, shape, _, params = started(name)
    x = sample(3, *shape)
    y = layer.apply(params, x)  # not jitted
    chex.assert_trees_all_close(jax.jit(layer.apply)(params, x), y, rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_close(jax.vmap(partial(layer.apply, params))(x), y, rtol=1e-5, atol=1e-6)
    grads = jax.jit(jax.grad(lambda params, x: jnp.sum(layer.apply(params, x) ** 2), argnums=(0, 1)))(params, x)
    chex.assert_trees_all_equal_shapes_and_dtypes(grads, (params, x))
    chex.assert_tree_all_finite(grads)


def test_other_keys_draw_other_parameters_and_each_layer_its_own():
    layer = net.serial(net.linear(4), net.linear(4))
    _, (first, second) = layer.init(KEY, (4,))
    _, (other, _) = layer.init(jax.random.key(1), (4,))
    assert not jnp.allclose(first["W"], second["W"])
    assert not jnp.allclose(first["W"], other["W"])


@pytest.mark.parametrize(
    ("layer", "shape", "name", "variance"),
    [
        (net.linear(300), (200,), "W", 2 / 200),
        (net.linear(300, initializer=jax.nn.initializers.glorot_normal), (200,), "W", 2 / (200 + 300)),
        (net.conv1d(100, 5), (9, 80), "h", 2 / (5 * 80)),
        (net.conv1d(100, 5, initializer=jax.nn.initializers.glorot_normal), (9, 80), "h", 2 / (5 * (80 + 100))),
    ],
    ids=["linear, He", "linear, Glorot", "conv1d, He", "conv1d, Glorot"],
)
def test_weights_start_with_the_variance_of_he_or_glorot(layer, shape, name, variance):
    _, params = layer.init(KEY, shape)
    # The variance of n normal samples has a standard deviation of sqrt(2 / n) of itself: five of them are allowed.
    allowed = 5 * (2 / params[name].size) ** 0.5
    assert abs(float(jnp.var(params[name])) / variance - 1) < allowed
    assert not params["b"].any()


def test_serial_is_composition_and_its_derivative_the_product_of_derivatives():
    """L12: l(x) = f(g(h(x))), so l'(x) = f'(g(h(x))) g'(h(x)) h'(x)."""
    h, g, f = (net.activation(fn) for fn in (lambda x: vl.quadratic(x, x), vl.sigmoid, vl.tanh))
    network = net.serial(h, g, f)
    _, params = network.init(KEY, ())
    x = jnp.array(0.3)
    a = 4 * x + 7 * x**2
    b = 1 / (1 + jnp.exp(-a))
    chex.assert_trees_all_close(network.apply(params, x), jnp.tanh(b), rtol=1e-6)
    by_hand = (1 - jnp.tanh(b) ** 2) * (b * (1 - b)) * (4 + 14 * x)
    chex.assert_trees_all_close(jax.grad(network.apply, argnums=1)(params, x), by_hand, rtol=1e-5)


def test_residual_adds_its_input():
    inner = net.serial(net.linear(3), net.tanh)
    _, params = inner.init(KEY, (3,))
    x = sample(2, 3)
    chex.assert_trees_all_equal(net.residual(net.linear(3), net.tanh).apply(params, x), x + inner.apply(params, x))


def test_conv1d_along_both_axes_is_a_separable_convolution():
    rows_then_columns = net.serial(net.conv1d(1, 3), net.swap_axes(-3, -2), net.conv1d(1, 3), net.swap_axes(-3, -2))
    _, params = rows_then_columns.init(KEY, (5, 6, 1))
    x = sample(2, 5, 6, 1)
    along_columns, along_rows = params[0]["h"], params[2]["h"]
    kernel = along_rows[:, None] * along_columns[None, :]
    expected = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    chex.assert_trees_all_close(rows_then_columns.apply(params, x), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("is_causal", [False, True])
def test_self_attention_is_the_softmax_of_products_in_each_head(is_causal):
    layer = net.self_attention(2, is_causal=is_causal)
    _, params = layer.init(KEY, (5, 4))
    x = sample(3, 5, 4)
    q, k, v = (a.reshape(3, 5, 2, 2) for a in jnp.split(x @ params["QKV"].T, 3, -1))
    logits = jnp.einsum("btnh,bsnh->bnts", q, k) / 2**0.5
    if is_causal:
        logits = jnp.where(jnp.tri(5, dtype=bool), logits, -jnp.inf)
    y = jnp.einsum("bnts,bsnh->btnh", jax.nn.softmax(logits), v).reshape(x.shape) @ params["W"].T
    chex.assert_trees_all_close(layer.apply(params, x), y, rtol=1e-5, atol=1e-6)


def test_swiglu_and_norms_are_their_formulas():
    x = sample(3, 4)
    gate = net.swiglu(5)
    _, params = gate.init(KEY, (4,))
    y = jax.nn.silu(x @ params["G"].T) * (x @ params["W"].T)
    chex.assert_trees_all_close(gate.apply(params, x), y, rtol=1e-5, atol=1e-6)
    scale, bias = jnp.arange(4.0), jnp.ones(4)
    root = jnp.sqrt(jnp.mean(x**2, -1, keepdims=True) + 0.5)
    chex.assert_trees_all_close(net.rms_norm(epsilon=0.5).apply({"scale": scale}, x), scale * x / root, rtol=1e-5)
    y = scale * jax.nn.standardize(x, epsilon=0.5) + bias
    chex.assert_trees_all_close(net.layer_norm(epsilon=0.5).apply({"scale": scale, "bias": bias}, x), y, rtol=1e-4)


@pytest.mark.parametrize(
    ("make", "shape", "message"),
    [
        (lambda: net.linear(0), None, "linear: features must be positive, got 0"),
        (lambda: net.conv1d(0, 3), None, "conv1d: channels must be positive, got 0"),
        (lambda: net.conv1d(2, 0), None, "conv1d: kernel_size must be positive, got 0"),
        (lambda: net.conv1d(2, 3, stride=-1), None, "conv1d: stride must be positive, got -1"),
        (lambda: net.flatten(0), None, "flatten: axes must be positive, got 0"),
        (lambda: net.mean_pool(0), None, "mean_pool: axes must be positive, got 0"),
        (lambda: net.swap_axes(0, -1), None, "swap_axes: axis1 and axis2 must be negative, got 0 and -1"),
        (lambda: net.swiglu(0), None, "swiglu: features must be positive, got 0"),
        (lambda: net.self_attention(0), None, "self_attention: heads must be positive, got 0"),
        (lambda: net.self_attention(3), (5, 4), "self_attention: c must be a multiple of heads, got 4 and 3"),
        (lambda: net.self_attention(2), (4,), r"self_attention: input_shape must be \(\.\.\., n, c\), got \(4,\)"),
        (lambda: net.swiglu(2), (), r"swiglu: input_shape must be \(\.\.\., n\), got \(\)"),
        (lambda: net.layer_norm(), (), r"layer_norm: input_shape must be \(\.\.\., n\), got \(\)"),
        (lambda: net.rms_norm(), (), r"rms_norm: input_shape must be \(\.\.\., n\), got \(\)"),
        (lambda: net.linear(2), (), r"linear: input_shape must be \(\.\.\., n\), got \(\)"),
        (lambda: net.conv1d(2, 3), (7,), r"conv1d: input_shape must be \(\.\.\., n, c\), got \(7,\)"),
        (lambda: net.conv1d(2, 8), (7, 1), r"conv1d: kernel_size must be at most n, got 8 for input_shape \(7, 1\)"),
        (lambda: net.softmax, (), r"softmax: input_shape must be \(\.\.\., n\), got \(\)"),
        (lambda: net.flatten(), (4,), r"flatten: input_shape must be 2 axes or more, got \(4,\)"),
        (lambda: net.swap_axes(-3, -2), (4, 2), r"swap_axes: input_shape must be 3 axes or more, got \(4, 2\)"),
        (lambda: net.mean_pool(), (4,), r"mean_pool: input_shape must be 2 axes or more, got \(4,\)"),
        (lambda: net.mean_pool(), (0, 4), r"there must be a position to average over, got input_shape \(0, 4\)"),
        (lambda: net.residual(net.linear(2)), (3,), r"must keep the shape, got \(2,\) from input_shape \(3,\)"),
    ],
)
def test_bad_sizes_and_shapes_are_refused_by_name(make, shape, message):
    with pytest.raises(ValueError, match=message):
        make().init(KEY, shape)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda size: net.linear(size), "linear: features must be an integer, got 2.0"),
        (lambda size: net.conv1d(size, 3), "conv1d: channels must be an integer, got 2.0"),
        (lambda size: net.conv1d(2, size), "conv1d: kernel_size must be an integer, got 2.0"),
        (lambda size: net.conv1d(2, 3, stride=size), "conv1d: stride must be an integer, got 2.0"),
        (lambda size: net.swiglu(size), "swiglu: features must be an integer, got 2.0"),
        (lambda size: net.self_attention(size), "self_attention: heads must be an integer, got 2.0"),
        (lambda size: net.flatten(size), "flatten: axes must be an integer, got 2.0"),
        (lambda size: net.mean_pool(size), "mean_pool: axes must be an integer, got 2.0"),
        (lambda size: net.swap_axes(-1, -size), "swap_axes: axis2 must be an integer, got -2.0"),
    ],
)
def test_sizes_that_are_no_integers_are_refused_by_name(make, message):
    with pytest.raises(TypeError, match=message):
        make(2.0)


def test_serial_tells_which_layer_refused():
    network = net.serial(net.linear(4), net.relu, net.conv1d(2, 3))
    with pytest.raises(ValueError, match="conv1d: input_shape") as error:
        network.init(KEY, (3,))
    assert error.value.__notes__ == ["in layer 2 of serial, whose input has shape (4,)"]


def test_serial_refuses_params_of_another_network():
    network = net.serial(net.linear(4), net.relu)
    with pytest.raises(ValueError, match="params must have one entry a layer, got 1 for 2 layers"):
        network.apply(((),), jnp.ones(3))
