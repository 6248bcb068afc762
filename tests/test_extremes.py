"""Absurd pads and dilations, large windows, infinities: nothing aborts, runs out of memory or spreads unsaid."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from convolution_calls import random_call
from jax import lax

import vjplib as vl
from vjplib.convolution import dense
from vjplib.convolution.choice import OUTPUT, output_formulation
from vjplib.convolution.xla import call_of

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
    y, back = jax.vjp(lambda x, k: vl.conv_general_dilated(x, k, **given), x, k)
    return y, *back(jnp.ones_like(y))


@pytest.mark.parametrize("name", FAR_CALLS)
@pytest.mark.parametrize("groups", [3, 1])
def test_far_convolutions_are_right(name, groups):
    far, near = FAR_CALLS[name]
    kernel = KERNEL if groups == 3 else np.repeat(KERNEL, 3, axis=2)
    for a, b in zip(
        *(products(IMAGE, kernel, feature_group_count=groups, **given) for given in (far, near)), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-6)


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
    ended = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=300, check=False)
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


def containment(call):
    """Yield each formulation of a call, the array with an infinity, and whether that stays where it is multiplied."""
    rng = np.random.default_rng(0)
    for problem in (call.problem, call.problem.transposed):
        formulation = output_formulation(problem)
        if formulation.run is None:  # XLA's own
            continue
        shapes = (problem.batch, *problem.size, problem.channels), (*problem.kernel, problem.depth, problem.features)
        for infinite in (0, 1):
            arrays = [rng.standard_normal(shape).astype(np.float32) for shape in shapes]
            arrays[infinite].reshape(-1)[rng.integers(arrays[infinite].size)] = np.inf
            y, alone = (np.isfinite(run(problem, *map(jnp.asarray, arrays))) for run in (formulation.run, dense.places))
            assert not np.any(y & ~alone)
            yield formulation, infinite, bool((y == alone).all())


def test_infinities_are_contained_wherever_a_formulation_does_not_say_otherwise():
    rng, spread = np.random.default_rng(0), set()
    seen = set()
    for _ in range(60):
        lhs, rhs, arguments = random_call(rng, largest=6)
        y = jax.eval_shape(
            lambda x, k, a=arguments: lax.conv_general_dilated(x, k, **a),
            *(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in (lhs, rhs)),
        )
        call = call_of(lhs, rhs, y, **arguments).trimmed
        if call.empty:
            continue
        for formulation, infinite, contained in containment(call):
            seen.add(formulation.name)
            if not contained:
                assert formulation.nonfinite, formulation.name
                spread.add((formulation.name, infinite))
    assert len(seen) > len(OUTPUT) // 2
    assert {("shifted copies", 1), ("dense convolutions of blocks of groups", 0)} <= spread  # what is said does happen


def test_an_explanation_says_where_infinities_spread():
    x, k = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((8, 12, 12, 64), (3, 3, 16, 64)))
    explanation = vl.explain_convolution(x, k, (1, 1), "SAME", dimension_numbers=CHANNELS_LAST, feature_group_count=4)
    assert "NaN in the other groups of its block" in str(explanation)
