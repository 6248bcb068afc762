"""XLA:CPU misreads float32 where a pad crops or exceeds the kernel's reach (openxla/xla#48713): it gets no such pad."""

import json
import re
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from convolution_calls import differences, random_call, unusual_call
from jax import lax

import vjplib as vl

CLOSE = 1e-5  # of the largest entry: where XLA misreads, the error is 0.3 to 1e36, or NaN
SPACE = {1: "W", 2: "HW", 3: "DHW"}


def dense(size, kernel, padding, channels=8, layout="last", **kwargs):
    n = len(size)
    space = SPACE[n]
    arguments: dict[str, Any] = {"window_strides": (1,) * n, "padding": padding} | kwargs
    if layout == "last":
        numbers = (f"N{space}C", f"{space}IO", f"N{space}C")
        return (4, *size, channels), (*kernel, channels, channels), arguments | {"dimension_numbers": numbers}
    numbers = (f"NC{space}", f"OI{space}", f"NC{space}")
    return (4, channels, *size), (channels, channels, *kernel), arguments | {"dimension_numbers": numbers}


MISREAD: dict[str, Any] = {
    "kernel 3 at low pad 4": dense((16, 16), (3, 3), ((4, 0), (4, 0))),
    "kernel 2 at low pad 2": dense((16, 16), (2, 2), ((2, 0), (2, 0))),
    "one tap, cropped": dense((16, 16), (1, 1), ((-1, 0), (0, -2))),
    "one tap, padded": dense((16,), (1,), ((3, 0),)),
    "one dimension": dense((16,), (3,), ((4, 0),)),
    "three dimensions": dense((6, 8, 8), (3, 3, 3), ((4, 0),) * 3, channels=4),
    "channels first": dense((16, 16), (3, 3), ((4, 0), (4, 0)), layout="first"),
    "a dilated input": dense((9, 9), (3, 3), ((4, 0), (0, 5)), lhs_dilation=(2, 2)),
    "a dilated kernel": dense((16, 16), (3, 3), ((6, 0), (0, 6)), rhs_dilation=(2, 2)),
    "a stride that leaves places unused": dense((16, 16), (3, 3), ((0, 0), (0, 0)), window_strides=(2, 3)),
    "a crop with a stride": dense((16, 16), (3, 3), ((-3, 5), (5, -3)), window_strides=(2, 2)),
    "an image of one place": dense((1, 1), (3, 3), ((3, 1), (1, 3))),
}


@pytest.mark.parametrize("name", MISREAD)
def test_products_are_right_where_xla_misreads(name):
    assert max(differences(np.random.default_rng(0), *MISREAD[name], dtype=np.float32)) < CLOSE


def second_derivatives(convolution, x, k, g, tx, tk):
    def grads(x, k):
        return jax.vjp(convolution, x, k)[1](g)

    return jax.jvp(grads, (x, k), (tx, tk))[1], jax.vjp(grads, x, k)[1]((tx, tk))


def arrays(rng, call):
    lhs, rhs, kwargs = call
    x, k, tx, tk = (rng.standard_normal(shape) for shape in (lhs, rhs, lhs, rhs))
    y = jax.eval_shape(lambda x, k: lax.conv_general_dilated(x, k, **kwargs), x, k)
    return x, k, rng.standard_normal(y.shape), tx, tk


@pytest.mark.parametrize("name", MISREAD)
def test_second_derivatives_are_right_where_xla_misreads(name):
    call = MISREAD[name]
    given = arrays(np.random.default_rng(1), call)

    def run(library, dtype):
        def convolution(x, k):
            return library.conv_general_dilated(x, k, **call[2])

        return jax.jit(lambda *a: second_derivatives(convolution, *a))(*(np.asarray(a, dtype) for a in given))

    ours = run(vl, np.float32)
    with jax.enable_x64(True):
        right = jax.tree.map(np.asarray, run(lax, np.float64))
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(right), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=2 * CLOSE * max(1, np.abs(b).max(initial=0)))


CONVOLUTION = re.compile(
    r"stablehlo\.convolution\(.*?dim_numbers = \[.*?\]x\[(?P<spec>.*?)\]->\[.*?\],\s*window = \{(?P<window>.*?)\}\s*\{"
    r".*?: (?P<types>\(tensor<[^>]*>, tensor<(?P<kernel>[^>]*)>\) -> tensor<[^>]*>)"
)


def pads_beyond_reach(program):
    """Yield the pads of each convolution of a program's text that are negative or exceed the kernel's reach."""
    for found in CONVOLUTION.finditer(program):
        kernel = [int(n) for n in found["kernel"].split("x")[:-1]]
        of_space = {int(e): n for e, n in zip(found["spec"].split(", "), kernel, strict=True) if e.isdigit()}
        if not of_space or re.search("[<x]0x", found["types"]):  # nothing to pad, or nothing to read
            continue
        window = dict(re.findall(r"(\w+) = (\[.*?\](?=, \w|$))", found["window"]))
        pads = np.array(json.loads(window.get("pad", str([[0, 0]] * len(of_space)))))
        dilation = np.array(json.loads(window.get("rhs_dilate", str([1] * len(of_space)))))
        reach = dilation * (np.array([of_space[i] for i in range(len(of_space))]) - 1)
        if (pads < 0).any() or (pads > reach[:, None]).any():
            yield found.group()


def lowered(f, *shapes):
    return jax.jit(f).lower(*(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)).as_text()


def test_the_search_finds_a_pad_beyond_reach():
    def convolution(x, k):
        return lax.conv_general_dilated(x, k, (1, 1), ((3, 0), (0, 0)), rhs_dilation=(1, 2))

    assert len(list(pads_beyond_reach(lowered(convolution, (1, 1, 5, 7), (1, 1, 3, 3))))) == 1


@pytest.mark.parametrize("seed", range(6))
def test_no_convolution_that_reaches_xla_pads_beyond_reach(seed):
    rng = np.random.default_rng(seed)
    for draw in (random_call, unusual_call, unusual_call):
        lhs, rhs, kwargs = draw(rng)

        def convolution(x, k, kwargs=kwargs):
            return vl.conv_general_dilated(x, k, **kwargs)

        y = jax.eval_shape(convolution, *(jax.ShapeDtypeStruct(s, jnp.float32) for s in (lhs, rhs))).shape

        def everything(x, k, g, tx, tk, convolution=convolution):
            return convolution(x, k), second_derivatives(convolution, x, k, g, tx, tk)

        assert not list(pads_beyond_reach(lowered(everything, lhs, rhs, y, lhs, rhs))), (lhs, rhs, kwargs)


LAST = ("NWC", "WIO", "NWC")
OTHERS = {
    "transposed, padded": lambda x, k: vl.conv_transpose(x, k, (2,), ((6, -1),)),
    "transposed, with gaps": lambda x, k: vl.conv_transpose(x, k, (3,), "VALID"),
    "conv1d": lambda x, k: vl.conv1d(x, k),
    "conv1d, strided": lambda x, k: vl.conv1d(x, k, stride=3),
    "conv1d, one tap, strided": lambda x, k: vl.conv1d(x, k[:1], stride=4),
    "conv1d, one channel": lambda x, k: vl.conv1d(x[..., 0], jnp.tile(k[:, 0, 0], 5)[:13], stride=5),
    "patches": lambda x, k: vl.conv_general_dilated_patches(x, (2,), (3,), ((5, -1),), dimension_numbers=LAST),
    "pooling": lambda x, k: vl.avg_pool(x, (3,), (2,), ((5, -1),)),
    "a mapped kernel": jax.vmap(
        lambda x, k: vl.conv_general_dilated(x[None], k, (1,), ((7, 0),), dimension_numbers=LAST), in_axes=(0, None)
    ),
    "complex": lambda x, k: (
        vl.conv_general_dilated(
            jax.lax.complex(x, x), jax.lax.complex(k, k), (1,), ((7, -2),), dimension_numbers=LAST
        ).real
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_no_other_function_gives_xla_a_pad_beyond_reach(name):
    f = OTHERS[name]

    def products(x, k, tx, tk):
        def grads(x, k):
            y, back = jax.vjp(f, x, k)
            return y, back(jnp.cos(y))

        return jax.vjp(grads, x, k)[1](jax.jvp(grads, (x, k), (tx, tk))[1])

    x, k = (2, 13, 3), (3, 3, 4)
    assert not list(pads_beyond_reach(lowered(products, x, k, x, k)))


class Causal(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(8, (3, 3), padding=((4, 0), (4, 0)))(x))
        return nn.Conv(8, (2, 2), strides=(2, 2), padding=((2, 0), (2, 0)))(x)


def test_a_flax_model_is_right_inside_use_in_lax_where_it_was_wrong():
    rng = np.random.default_rng(2)
    x = rng.standard_normal((4, 16, 16, 8)).astype(np.float32)
    model = Causal()
    parameters = model.init(jax.random.key(0), x)

    def loss(parameters, x):
        y: Any = model.apply(parameters, x)
        return jnp.sum(jnp.sin(y))

    with vl.use_in_lax():
        ours = jax.jit(jax.grad(loss, argnums=(0, 1)))(parameters, x)
    with jax.enable_x64(True):
        double = jax.tree.map(lambda a: np.asarray(a, np.float64), (parameters, x))
        right = jax.tree.map(np.asarray, jax.jit(jax.grad(loss, argnums=(0, 1)))(*double))
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(right), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=10 * CLOSE * np.abs(b).max())
