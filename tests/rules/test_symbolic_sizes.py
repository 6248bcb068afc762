"""Convolutions and poolings are exported with symbolic sizes wherever the incumbent is, and give the same numbers."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export, lax

import vjplib as vl

SIZES = {"b": 3, "n": 11, "m": 9, "c": 4}
CHANNELS_LAST = {1: ("NWC", "WIO", "NWC"), 2: ("NHWC", "HWIO", "NHWC"), 3: ("NDHWC", "DHWIO", "NDHWC")}
BATCH = {1: ("b", 11, 4), 2: ("b", 11, 9, 4), 3: ("b", 5, 6, 7, 4)}
ALL = {1: ("b", "n", 4), 2: ("b", "n", "m", 4)}


def symbolic(*shapes):
    letters = sorted({n for shape in shapes for n in shape if isinstance(n, str)} & {"n", "m"})
    scope = export.SymbolicScope([f"{n} >= 5" for n in letters])  # lax asks for a place of each unpadded window
    return [
        tuple(export.symbolic_shape(n, scope=scope)[0] if isinstance(n, str) else n for n in shape) for shape in shapes
    ]


def exported(f, *shapes):
    """Return an exported function of float32 arrays whose sizes given as letters are symbolic."""
    return export.export(jax.jit(f))(*(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in symbolic(*shapes)))


def drawn(*shapes):
    rng = np.random.default_rng(0)
    known = [[SIZES[n] if isinstance(n, str) else n for n in shape] for shape in shapes]
    return [rng.standard_normal(shape).astype(np.float32) for shape in known]


def with_gradients(f):
    def products(*arrays):
        y, back = jax.vjp(f, *arrays)
        return y, *back(jnp.cos(y))

    return products


def require_right(f, incumbent, *shapes):
    """Require that f is exported and gives the incumbent's numbers in float64, with known sizes."""
    arrays = drawn(*shapes)
    found = exported(f, *shapes).call(*arrays)
    with jax.enable_x64(True):
        right = jax.jit(incumbent)(*(np.asarray(a, np.float64) for a in arrays))
    for a, b in zip(jax.tree.leaves(found), map(np.asarray, jax.tree.leaves(right)), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * max(1, np.abs(b).max()))


CONVOLUTIONS: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {
    "dense": ((3, 3, 4, 5), {}),
    "dense, unpadded": ((3, 3, 4, 5), {"padding": "VALID"}),
    "dense, misread by XLA": ((3, 3, 4, 5), {"padding": ((4, 0), (-1, 5))}),
    "one tap": ((1, 1, 4, 5), {}),
    "strided": ((3, 3, 4, 5), {"window_strides": (2, 2)}),
    "strided, misread by XLA": ((3, 2, 4, 5), {"window_strides": (2, 3), "padding": ((5, -1), (0, 0))}),
    "patches": ((2, 2, 4, 5), {"window_strides": (2, 2), "padding": "VALID"}),
    "depthwise": ((3, 3, 1, 4), {"feature_group_count": 4}),
    "depthwise, strided": ((3, 3, 1, 8), {"feature_group_count": 4, "window_strides": (2, 2)}),
    "depthwise, many taps": ((5, 5, 1, 4), {"feature_group_count": 4}),
    "grouped": ((3, 3, 2, 6), {"feature_group_count": 2}),
    "dilated": ((3, 3, 4, 5), {"rhs_dilation": (2, 2)}),
    "transposed": ((3, 3, 4, 5), {"lhs_dilation": (2, 2), "padding": ((1, 2), (1, 2))}),
    "few features": ((3, 3, 4, 2), {}),
    "one dimension, depthwise": ((4, 1, 4), {"feature_group_count": 4}),
    "one dimension, one feature": ((3, 4, 1), {}),
    "three dimensions": ((2, 2, 2, 4, 5), {}),
}


def convolution(library, name):
    kernel, given = CONVOLUTIONS[name]
    n = len(kernel) - 2
    arguments = {"window_strides": (1,) * n, "padding": "SAME", "dimension_numbers": CHANNELS_LAST[n]} | given
    return lambda x, k: library.conv_general_dilated(x, k, **arguments)


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_a_convolution_of_a_symbolic_batch(name):
    kernel, _ = CONVOLUTIONS[name]
    ours, theirs = (with_gradients(convolution(library, name)) for library in (vl, lax))
    require_right(ours, theirs, BATCH[len(kernel) - 2], kernel)


@pytest.mark.parametrize("name", [name for name in CONVOLUTIONS if name != "three dimensions"])
def test_a_convolution_of_symbolic_batch_and_space(name):
    kernel, given = CONVOLUTIONS[name]
    ours, theirs = (convolution(library, name) for library in (vl, lax))
    if "window_strides" not in given:  # JAX exports no gradient of a stride over a symbolic size
        ours, theirs = with_gradients(ours), with_gradients(theirs)
    require_right(ours, theirs, ALL[len(kernel) - 2], kernel)


def test_a_symbolic_batch_is_served_by_the_same_formulations():
    kernel, shapes = jax.ShapeDtypeStruct((3, 3, 1, 64), jnp.float32), ((8, 56, 56, 64), *symbolic(("b", 56, 56, 64)))
    known, open_ = (
        vl.explain_convolution(
            jax.ShapeDtypeStruct(shape, jnp.float32),
            kernel,
            (1, 1),
            "SAME",
            dimension_numbers=CHANNELS_LAST[2],
            feature_group_count=64,
        )
        for shape in shapes
    )
    assert known == open_


def lax_conv1d(x, h, stride):
    return lax.conv_general_dilated(x, h, (stride,), "SAME", dimension_numbers=CHANNELS_LAST[1])


@pytest.mark.parametrize("shape", [BATCH[1], (3, "n", 4), ("b", "n", "c")])
@pytest.mark.parametrize("taps", [1, 4])
def test_conv1d_with_channels(shape, taps):
    require_right(
        with_gradients(vl.conv1d), with_gradients(lambda x, h: lax_conv1d(x, h, 1)), shape, (taps, shape[-1], 5)
    )
    require_right(lambda x, h: vl.conv1d(x, h, stride=2), lambda x, h: lax_conv1d(x, h, 2), shape, (taps, shape[-1], 5))


@pytest.mark.parametrize("shape", [("b", 11), ("b", "n")])
@pytest.mark.parametrize("taps", [1, 4, 11])
def test_conv1d_of_one_kernel(shape, taps):
    def theirs(x, h):
        return lax_conv1d(x[..., None], h[:, None, None], 1)[..., 0]

    require_right(with_gradients(vl.conv1d), with_gradients(theirs), shape, (taps,))


def test_conv1d_of_a_symbolic_kernel():
    require_right(
        lambda x, h: vl.conv1d(x, h),
        lambda x, h: lax_conv1d(x[..., None], h[:, None, None], 1)[..., 0],
        (3, 11),
        ("c",),
    )


@pytest.mark.parametrize("shape", [BATCH[2], ALL[2]])
@pytest.mark.parametrize("padding", ["SAME", "VALID"])
def test_a_transposed_convolution(shape, padding):
    def transposed(library):
        return with_gradients(lambda x, k: library.conv_transpose(x, k, (2, 2), padding))

    require_right(transposed(vl), transposed(lax), shape, (3, 3, 4, 5))


@pytest.mark.parametrize("shape", [BATCH[2], ALL[2]])
@pytest.mark.parametrize("strides", [(1, 1), (3, 2)])
@pytest.mark.parametrize("padding", ["SAME", ((3, -1), (0, 0))])
def test_patches(shape, strides, padding):
    def patches(library):
        return lambda x: library.conv_general_dilated_patches(
            x, (3, 2), strides, padding, dimension_numbers=CHANNELS_LAST[2]
        )

    require_right(patches(vl), patches(lax), shape)
    if shape == BATCH[2] or strides == (1, 1):
        require_right(with_gradients(patches(vl)), with_gradients(patches(lax)), shape)


POOLS = {
    "max": (vl.max_pool, nn.max_pool),
    "min": (vl.min_pool, nn.pooling.min_pool),
    "mean": (vl.avg_pool, nn.avg_pool),
    "mean without pads": (
        lambda *a: vl.avg_pool(*a, count_include_pad=False),
        lambda *a: nn.avg_pool(*a, count_include_pad=False),
    ),
    "lax": (
        lambda x, w, s, p: vl.reduce_window_max(x, (1, *w, 1), (1, *s, 1), p),
        lambda x, w, s, p: lax.reduce_window(x, -jnp.inf, lax.max, (1, *w, 1), (1, *s, 1), p),
    ),
}


@pytest.mark.parametrize("shape", [("b", 11, 9, 4), (3, 11, 9, "c"), ("b", "n", "m", "c")])
@pytest.mark.parametrize("window", [((2, 2), (2, 2), "VALID"), ((3, 3), (2, 2), "SAME")])
@pytest.mark.parametrize("name", POOLS)
def test_pools(name, window, shape):
    ours, theirs = POOLS[name]
    require_right(with_gradients(lambda x: ours(x, *window)), with_gradients(lambda x: theirs(x, *window)), shape)


class Network(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.max_pool(nn.relu(nn.Conv(8, (3, 3))(x)), (2, 2), (2, 2))
        x = nn.relu(nn.Conv(8, (3, 3), strides=(2, 2), feature_group_count=8)(x))
        x = nn.ConvTranspose(4, (2, 2), strides=(2, 2))(x)
        return nn.Dense(3)(nn.avg_pool(x, (2, 2), (2, 2)).mean((1, 2)))


@pytest.mark.parametrize("inside", [True, False])
def test_a_flax_network_of_a_symbolic_batch(inside):
    model, shape = Network(), ("b", 12, 12, 3)
    parameters = model.init(jax.random.key(0), jnp.ones((1, 12, 12, 3)))

    def loss(parameters, x):
        y: Any = model.apply(parameters, x)
        return jnp.sum(jnp.sin(y))

    def gradient(x):
        return jax.value_and_grad(loss)(parameters, x)

    (x,) = drawn(shape)
    plain = jax.jit(gradient)(x)
    if inside:
        with vl.use_in_lax():
            program = exported(gradient, shape)
    else:
        program = exported(gradient, shape)
    for a, b in zip(jax.tree.leaves(program.call(x)), jax.tree.leaves(plain), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
