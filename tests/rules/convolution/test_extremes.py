"""Absurd pads and dilations, large windows, infinities: nothing aborts, runs out of memory or spreads unsaid."""

import itertools
import os
import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import PartitionSpec as P

import vjplib as vl
from vjplib.rules.convolution.algorithms import dense
from vjplib.rules.convolution.dispatch import FORWARD, GAPS, GROUPS, PADDING, forward_algorithm
from vjplib.rules.convolution.problem import Problem

FAR = 2**31
CHANNELS_LAST = ("NHWC", "HWIO", "NHWC")
IMAGE = np.repeat(np.arange(1.0, 26.0, dtype=np.float32).reshape(1, 5, 5, 1), 3, axis=-1)
KERNEL = np.arange(1.0, 28.0, dtype=np.float32).reshape(3, 3, 1, 3)

# Each call, and the ordinary one that it equals.
FAR_CALLS = {
    "a far dilation": ({"padding": "SAME", "rhs_dilation": (FAR, FAR)}, {"padding": "SAME", "rhs_dilation": (9, 9)}),
    "a far pad and stride": (
        {"padding": ((FAR, 0), (0, 0)), "window_strides": (FAR, 1)},
        {"padding": ((7, 0), (0, 0)), "window_strides": (7, 1)},
    ),
    "a far dilation of x and stride": (
        {"padding": ((1, 1), (1, 1)), "lhs_dilation": (FAR, 1), "window_strides": (FAR, 1)},
        {"padding": ((1, 1), (1, 1)), "lhs_dilation": (9, 1), "window_strides": (9, 1)},
    ),
    "nothing but padding": ({"padding": ((FAR, 4 - FAR), (1, 1))}, {"padding": ((12, -8), (1, 1))}),
}


def products(x, k, **arguments):
    given = {"window_strides": (1, 1), "dimension_numbers": CHANNELS_LAST, "feature_group_count": 3} | arguments

    @jax.jit
    def run(x, k):
        y, back = jax.vjp(lambda x, k: vl.conv_general_dilated(x, k, **given), x, k)
        return y, *back(jnp.ones_like(y))

    return run(x, k)


@pytest.mark.parametrize("name", FAR_CALLS)
@pytest.mark.parametrize("groups", [3, 1])
def test_far_convolutions_are_right(name, groups):
    far, near = FAR_CALLS[name]
    kernel = KERNEL if groups == 3 else np.repeat(KERNEL, 3, axis=2)
    for a, b in zip(
        *(products(IMAGE, kernel, feature_group_count=groups, **given) for given in (far, near)), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-6)


def test_far_convolutions_of_many_taps_do_not_compile_for_long():
    x, k = jax.ShapeDtypeStruct((1, 2, 500), jnp.float32), jax.ShapeDtypeStruct((2, 2, 500), jnp.float32)
    explanation = vl.explain_convolution(x, k, (99999,), ((0, 0),), (100000,))
    assert [f.run for f in explanation] == [None, None, None]


def test_a_convolution_of_padding_alone_is_sharded_and_varies_as_its_arguments():
    mesh = jax.make_mesh((4,), ("i",), axis_types=(jax.sharding.AxisType.Explicit,))
    with jax.set_mesh(mesh):
        x, k = jax.device_put(jnp.ones((4, 3, 6)), P("i")), jax.device_put(jnp.ones((4, 3, 3)), P())
        for padding in (((4, 0),), ((20, -8),), ((FAR, 4 - FAR),), "SAME"):
            y = vl.conv_general_dilated(x, k, (1,), padding, out_sharding=P("i"))
            assert jax.typeof(y).sharding.spec == P("i", None, None)

    def rows(x, k):
        def step(carry, _):
            return vl.conv_general_dilated(
                carry, k, (1,), ((FAR, -FAR),), dimension_numbers=("NCW", "OIW", "NCW")
            ), None

        return jax.lax.scan(step, x, length=2)[0]

    automatic = jax.make_mesh((4,), ("i",), axis_types=(jax.sharding.AxisType.Auto,))
    y = jax.shard_map(rows, mesh=automatic, in_specs=(P("i"), P()), out_specs=P("i"))(
        jnp.ones((4, 3, 6)), jnp.ones((3, 3, 1))
    )
    np.testing.assert_array_equal(y, np.zeros((4, 3, 6)))


SCRIPT = f"""
import jax, jax.numpy as jnp, vjplib as vl
far = {FAR}
x, k = jnp.ones((1, 8, 8, 4)), jnp.ones((3, 3, 1, 4))
arguments = dict(dimension_numbers={CHANNELS_LAST}, feature_group_count=4)
def loss(x, k):
    return vl.conv_general_dilated(x, k, (1, 1), "SAME", rhs_dilation=(far, far), **arguments).sum()
print(*(float(g.sum()) for g in jax.jit(jax.grad(loss, argnums=(0, 1)))(x, k)))
print(float(vl.conv_general_dilated_patches(x, (3, 3), (1, 1), "SAME", rhs_dilation=(far, far)).sum()))
print(float(vl.conv1d(jnp.ones(5), jnp.ones(3), stride=far).sum()))
print(float(vl.max_pool(x, (3, 3), (far, far), ((far, 0), (0, far)))[0, 1, 0, 0]))
print(float(vl.avg_pool(x[..., :1], (far, 1), (far, 1), ((far, 0), (0, 0))).max()))
print(float(vl.reduce_window_max(jnp.arange(6.0), (3,), None, "SAME", None, (far,)).sum()))
"""


def test_far_calls_do_not_abort_the_process():
    environment = os.environ | {"XLA_FLAGS": ""}  # the older code generator runs over two thousand million pads
    command = [sys.executable, "-c", SCRIPT]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert ended.stdout.split() == ["256.0", "256.0", "256.0", "3.0", "1.0", "0.0", "15.0"]


@pytest.mark.parametrize("padding", ["VALID", "SAME"])
def test_patches_of_a_large_window_need_little_more_than_their_result(padding):
    def patches(x):
        return vl.conv_general_dilated_patches(x, (33, 33), (1, 1), padding)

    def back(x, g):
        return jax.vjp(patches, x)[1](g)[0]

    x = jnp.asarray(np.random.default_rng(0).standard_normal((1, 16, 33, 33)), jnp.float32)
    y = patches(x)
    expected = lax.conv_general_dilated_patches(x[:, :1], (33, 33), (1, 1), padding)
    np.testing.assert_array_equal(y[:, : 33 * 33], expected)
    for program in (jax.jit(patches).lower(x), jax.jit(back).lower(x, y)):
        memory = program.compile().memory_analysis()
        assert memory is not None
        assert memory.temp_size_in_bytes <= 2 * (y.nbytes + x.nbytes)


# (batch, size, channels, kernel, features, strides, low, dilation of x, of the kernel, groups, size of y)
PROBLEMS = {
    "a matrix product": Problem(1, (5, 5), 3, (1, 1), 2, (2, 1), (1, 0), (1, 1), (1, 1), 1, (3, 5)),
    "a matrix product of patches": Problem(1, (5,), 2, (2,), 3, (2,), (1,), (1,), (1,), 1, (3,)),
    "a matrix product for all of y": Problem(2, (1,), 2, (3,), 3, (1,), (4,), (1,), (2,), 1, (5,)),
    "multiples of one channel": Problem(1, (5, 5), 1, (3, 3), 2, (1, 1), (1, 1), (1, 1), (1, 1), 1, (5, 5)),
    "all phases as features": Problem(1, (4, 4), 2, (2, 2), 3, (1, 1), (0, 0), (2, 2), (1, 1), 1, (6, 6)),
    "shifted copies": Problem(1, (5, 5), 3, (3, 3), 3, (1, 1), (1, 1), (1, 1), (1, 1), 3, (5, 5)),
    "shifted copies by phase": Problem(1, (4,), 2, (4,), 2, (1,), (2,), (2,), (1,), 2, (8,)),
    "a column a tap": Problem(1, (6,), 4, (3,), 1, (1,), (1,), (1,), (1,), 1, (6,)),
    "planes of columns": Problem(1, (5, 5), 4, (3, 3), 2, (1, 1), (1, 1), (1, 1), (1, 1), 1, (5, 5)),
    "a convolution of fewer dimensions a tap": Problem(
        1, (4, 4, 4), 2, (2, 3, 3), 3, (1, 1, 1), (1, 1, 1), (1, 1, 1), (1, 1, 1), 1, (5, 4, 4)
    ),
    "shifted copies of each channel of a group": Problem(
        1, (5, 5), 4, (3, 3), 4, (1, 1), (1, 1), (1, 1), (1, 1), 2, (5, 5)
    ),
    "dense convolutions of blocks of groups": Problem(
        1, (5, 5), 32, (3, 3), 4, (1, 1), (1, 1), (1, 1), (1, 1), 2, (5, 5)
    ),
}


@pytest.mark.parametrize("name", PROBLEMS)
def test_infinities_are_contained_unless_the_algorithm_says_otherwise(name):
    problem, rng = PROBLEMS[name], np.random.default_rng(0)
    algorithm = forward_algorithm(problem)
    assert algorithm.name == name
    assert algorithm.run is not None
    shapes = (problem.batch, *problem.size, problem.channels), (*problem.kernel, problem.depth, problem.features)
    run, alone = (jax.jit(partial(f, problem)) for f in (algorithm.run, dense.tap_products))
    spread = {"x": False, "k": False}
    for infinite, _ in itertools.product(spread, range(8)):
        arrays = [rng.standard_normal(shape).astype(np.float32) for shape in shapes]
        changed = arrays["xk".index(infinite)].reshape(-1)
        changed[rng.integers(changed.size)] = np.inf
        y, expected = np.isfinite(run(*arrays)), np.isfinite(alone(*arrays))
        assert not np.any(y & ~expected)
        spread[infinite] |= bool(np.any(~y & expected))
    said = {
        "x": GAPS in algorithm.nonfinite or GROUPS in algorithm.nonfinite,
        "k": PADDING in algorithm.nonfinite,
    }
    assert all(said[array] for array in spread if spread[array]), spread


def test_every_algorithm_is_among_them():
    assert {f.name for f in FORWARD if f.run} - {"places alone"} == set(PROBLEMS)


def test_an_explanation_says_where_infinities_spread():
    x, k = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((8, 12, 12, 64), (3, 3, 16, 64)))
    explanation = vl.explain_convolution(x, k, (1, 1), "SAME", dimension_numbers=CHANNELS_LAST, feature_group_count=4)
    assert "NaN in the other groups of its block" in str(explanation)
