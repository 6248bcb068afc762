"""Identities that hold at any shape and any numbers, hypothesis looking for those at which they do not."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

import vjplib
from vjplib.jacobians import BandedToeplitz
from vjplib.rule import find
from vjplib.rules._arguments import normalize_axes
from vjplib.rules._cotangents import unbroadcast

slow_to_compile = settings(deadline=None, max_examples=30)
numbers = st.floats(-8, 8, width=32)


@slow_to_compile
@given(arrays.mutually_broadcastable_shapes(num_shapes=2, max_dims=3, max_side=4), st.integers(0, 2**31))
def test_sum_to_is_the_transpose_of_broadcasting(shapes, seed):
    rng = np.random.default_rng(seed)
    shape, result = shapes.input_shapes[0], shapes.result_shape
    x, g = rng.integers(-9, 9, shape).astype(np.float32), rng.integers(-9, 9, result).astype(np.float32)
    assert np.vdot(np.broadcast_to(x, result), g) == np.vdot(x, unbroadcast(jnp.asarray(g), shape))


@slow_to_compile
@given(st.integers(1, 4).flatmap(lambda ndim: st.tuples(st.just(ndim), st.sets(st.integers(0, ndim - 1)))))
def test_axes_are_the_same_counted_from_either_end(drawn):
    ndim, axes = drawn
    assert (
        normalize_axes(tuple(axes), ndim) == normalize_axes(tuple(a - ndim for a in axes), ndim) == tuple(sorted(axes))
    )


@slow_to_compile
@given(arrays.arrays(np.float32, st.integers(1, 9), elements=st.sampled_from([0.0, -0.0, 1.0, -2.0, 0.5, 4.0])))
def test_prod_by_each_factor_is_the_product_of_the_others(x):
    others = [np.prod(np.delete(x, i)) for i in range(x.size)]
    assert jax.grad(vjplib.prod)(x).tolist() == others


@slow_to_compile
@given(arrays.arrays(np.float32, arrays.array_shapes(max_dims=2, max_side=6), elements=numbers))
def test_softmax_is_blind_to_a_shift_and_its_cotangent_sums_to_zero(x):
    y, back = jax.vjp(vjplib.softmax, jnp.asarray(x))
    np.testing.assert_allclose(y, vjplib.softmax(jnp.asarray(x) + 4), atol=1e-6)
    np.testing.assert_allclose(jnp.sum(back(jnp.cos(y))[0], -1), 0, atol=1e-6)


@slow_to_compile
@given(st.data())
def test_conv1d_is_linear_in_the_input_and_its_backward_is_the_adjoint(data):
    n = data.draw(st.integers(1, 12))
    k, stride = data.draw(st.integers(1, n)), data.draw(st.integers(1, 4))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**31)))
    x, h = (rng.integers(-4, 5, size).astype(np.float32) for size in ((2, n), k))
    y, back = jax.vjp(lambda x, h: vjplib.conv1d(x, h, stride=stride), x, h)
    g = rng.integers(-4, 5, y.shape).astype(np.float32)
    dx, dh = back(g)
    # Small integers, so that no operation rounds: <y, g> is bilinear in x and h, and each cotangent restores it.
    assert np.vdot(y, g) == np.vdot(x, dx) == np.vdot(h, dh)


@slow_to_compile
@given(
    arrays.arrays(np.float32, (5,), elements=numbers),
    arrays.arrays(np.float32, (5,), elements=numbers),
    st.integers(1, 5),
)
def test_every_jacobian_gives_the_same_number_from_either_side(g, t, k):
    x = jnp.linspace(-1, 1, 5)
    (softmax,), (tanh,) = find("softmax"), find("tanh")
    assert softmax.jacobian is not None
    assert tanh.jacobian is not None
    for jacobian in (*softmax.jacobian(x), *tanh.jacobian(x), BandedToeplitz(jnp.arange(1.0, k + 1), 5)):
        np.testing.assert_allclose(jnp.vdot(jacobian.vjp(g), t), jnp.vdot(g, jacobian.jvp(t)), rtol=1e-4, atol=1e-4)
