"""Grouped convolutions are lax's: value, both cotangents, maps, half precision and second derivatives."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from convolution_calls import differences, random_call
from jax import lax

import vjplib
from vjplib.rules.convolution.algorithms import grouped
from vjplib.rules.convolution.dispatch import forward_algorithm, weight_grad_algorithm
from vjplib.rules.convolution.problem import Problem

ULPS = 1e-12  # float64 sums of some hundred terms in another order
CALL = {"window_strides": (1,), "padding": "SAME", "dimension_numbers": ("NWC", "WIO", "NWC"), "feature_group_count": 3}


@pytest.mark.parametrize(("ndim", "seed"), [(1, 0), (1, 1), (2, 2), (2, 3), (2, 4), (3, 5)])
def test_random_grouped_calls_agree_with_lax(ndim, seed):
    rng = np.random.default_rng(seed)
    for _ in range(3):
        call = random_call(rng, 6, {"grouped": 0.8, "batch": 0.2}, ndim)
        assert max(differences(rng, *call)) < ULPS, call


# The library keeps each call's program: x has another size for each of these.
@pytest.mark.parametrize(("numbers", "block", "size"), [(1, 1, 6), (50, 8, 7)])
def test_parts_of_any_size_add_up_to_the_whole(monkeypatch, numbers, block, size):
    monkeypatch.setattr(grouped, "MAX_KERNEL_NUMBERS", numbers)
    monkeypatch.setattr(grouped, "BLOCK_FEATURES", block)
    monkeypatch.setattr(grouped, "FEW_GROUP_CHANNELS", 2)
    monkeypatch.setattr(grouped, "SMALL_OUTPUT", 0)
    for depth, stride in itertools.product((2, 3), (1, 2)):
        call = (
            (2, 5, size, 5 * depth),
            (3, 2, depth, 10),
            {
                "window_strides": (stride, stride),
                "padding": "SAME",
                "dimension_numbers": ("NHWC", "HWIO", "NHWC"),
                "feature_group_count": 5,
            },
        )
        assert max(differences(np.random.default_rng(size), *call)) < ULPS, call


@pytest.mark.parametrize(("multiplier", "stride", "dilation"), [(1, 1, 1), (2, 1, 2), (3, 2, 1), (1, 3, 2)])
def test_depthwise_kernels_of_many_taps_agree_with_lax(rng, multiplier, stride, dilation):
    call = (
        (2, 13, 11, 3),
        (4, 3, 1, 3 * multiplier),
        {
            "window_strides": (stride, 1),
            "padding": ((2, -1), (0, 3)),
            "rhs_dilation": (1, dilation),
            "dimension_numbers": ("NHWC", "HWIO", "NHWC"),
            "feature_group_count": 3,
        },
    )
    assert max(differences(rng, *call)) < ULPS


def test_four_dimensions_dilated_on_both_sides_agree_with_lax(rng):
    call = (
        (1, 3, 3, 3, 3, 4),
        (2, 2, 2, 2, 2, 4),
        {
            "window_strides": (2, 1, 1, 1),
            "padding": ((2, 2),) * 4,
            "lhs_dilation": (2, 1, 1, 1),
            "dimension_numbers": ("NABHWC", "ABHWIO", "NABHWC"),
            "feature_group_count": 2,
        },
    )
    assert max(differences(rng, *call)) < ULPS


def test_no_grouped_problem_falls_to_xlas_grouped_convolution():
    for depth, strides, dilation, k in itertools.product((2, 4, 32), (1, 2), (1, 2), (1, 3, 7)):
        p = Problem(2, (9, 9), 4 * depth, (k, k), 4 * depth, (strides,) * 2, (1, 1), (dilation,) * 2, (1, 1), 4, (5, 5))
        for problem in (p, p.transposed):
            assert forward_algorithm(problem).run is not None
            assert weight_grad_algorithm(problem).run is not None


def _loss(x, k):
    return jnp.sum(jnp.sin(vjplib.conv_general_dilated(x, k, **CALL)))


def _lax_loss(x, k):
    return jnp.sum(jnp.sin(lax.conv_general_dilated(x, k, **CALL)))


def _arrays(*axes, dtype=jnp.float32):
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.standard_normal((*axes, *shape)), dtype) for shape in ((2, 5, 6), (3, 2, 6))]


@pytest.mark.parametrize("axes", [(0, None), (None, 0), (0, 0)])
def test_mapped_gradients_agree_with_lax(axes):
    x, k = (a[0] if axis is None else a for a, axis in zip(_arrays(3), axes, strict=True))
    ours, theirs = (jax.vmap(jax.grad(f, (0, 1)), axes)(x, k) for f in (_loss, _lax_loss))
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_second_derivatives_agree_with_lax():
    with jax.enable_x64(True):
        x, k = _arrays(dtype=jnp.float64)
        ours, theirs = (jax.jit(jax.hessian(f, (0, 1)))(x, k) for f in (_loss, _lax_loss))
        for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-11)


def test_half_precision_is_rounded_once():
    x, k = _arrays(dtype=jnp.bfloat16)
    y, back = jax.vjp(lambda x, k: vjplib.conv_general_dilated(x, k, **CALL), x, k)
    wide, wide_back = jax.vjp(
        lambda x, k: lax.conv_general_dilated(x, k, **CALL), x.astype(jnp.float32), k.astype(jnp.float32)
    )
    given, exact = (y, *back(jnp.ones_like(y))), (wide, *wide_back(jnp.ones_like(wide)))
    for a, b in zip(given, exact, strict=True):
        assert a.dtype == jnp.bfloat16
        np.testing.assert_allclose(a.astype(jnp.float32), b, rtol=2**-8, atol=1e-6)


def test_what_is_not_finite_in_one_group_of_dk_stays_there():
    x, k = _arrays()
    g = jnp.ones((2, 5, 6)).at[0, 0, 0].set(jnp.inf)
    _, back = jax.vjp(lambda k: vjplib.conv_general_dilated(x, k, **CALL), k)
    assert np.isfinite(np.asarray(back(g)[0])[..., 2:]).all()
