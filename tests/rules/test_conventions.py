"""Kinks, zeros, ties, NaN, infinities, masks and empty axes; and the numbers of what each rule replaces."""

import itertools
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import vjplib
from vjplib.rule import rules

INF, NAN = jnp.inf, jnp.nan


def cotangent(fn, x, **kwargs):
    y, back = jax.vjp(lambda x: fn(x, **kwargs), x)
    return back(jnp.ones_like(y))[0]


def require_close(ours, theirs, *args, rtol, atol=0.0, mask=None):
    """Requires the same values and cotangents of two functions, in one compiled program; g is 0 outside the mask."""
    rng, kept = np.random.default_rng(1), True if mask is None else mask
    drawn = lambda y: np.where(kept, rng.standard_normal(y.shape), 0).astype(y.dtype)  # noqa: E731
    g = jax.tree.map(drawn, jax.eval_shape(ours, *args))

    @jax.jit
    def both(g, *args):
        pairs = [jax.vjp(f, *args) for f in (ours, theirs)]
        return [(y, back(g)) for y, back in pairs]

    chex.assert_trees_all_close(*both(g, *args), rtol=rtol, atol=atol)


def test_relu_at_zero():
    zeros = jnp.array([0.0, -0.0])
    assert cotangent(vjplib.relu, zeros).tolist() == [1.0, 1.0]
    assert cotangent(vjplib.relu, zeros, derivative_at_zero=0).tolist() == [0.0, 0.0]


def test_relu_of_nan_and_infinities():
    x = jnp.array([NAN, INF, -INF])
    chex.assert_trees_all_equal(vjplib.relu(x), jnp.array([NAN, INF, 0.0]))
    assert cotangent(vjplib.relu, x).tolist() == [0.0, 1.0, 0.0]


@pytest.mark.parametrize(("fn", "limits"), [(vjplib.tanh, (-1.0, 1.0)), (vjplib.sigmoid, (0.0, 1.0))])
def test_saturating_functions_at_infinity(fn, limits):
    x = jnp.array([-INF, INF, NAN])
    chex.assert_trees_all_equal(fn(x), jnp.array([*limits, NAN]))
    chex.assert_trees_all_equal(cotangent(fn, x), jnp.array([0.0, 0.0, NAN]))


@pytest.mark.parametrize(
    ("x", "partials"),
    [
        ([3.0, 7.0, 4.0], [28.0, 12.0, 21.0]),
        ([3.0, 0.0, 4.0], [0.0, 12.0, 0.0]),
        ([0.0, 0.0, 4.0], [0.0, 0.0, 0.0]),
        ([1e-30, 1e-30], [1e-30, 1e-30]),
        ([5.0], [1.0]),
        ([], []),
        ([NAN, 2.0, 3.0], [6.0, NAN, NAN]),
    ],
)
def test_prod_by_the_others(x, partials):
    chex.assert_trees_all_equal(cotangent(vjplib.prod, jnp.array(x)), jnp.array(partials))


def test_prod_of_nothing_is_one():
    assert vjplib.prod(jnp.zeros((2, 0)), axis=1).tolist() == [1.0, 1.0]
    assert vjplib.prod(jnp.zeros((2, 0)), axis=()).shape == (2, 0)


@pytest.mark.parametrize("axis", [None, 0, -1, (0, 2), (2, 0, 1), ()])
@pytest.mark.parametrize("keepdims", [False, True])
def test_prod_takes_axes_as_jnp_does(axis, keepdims, rng):
    x = rng.standard_normal((2, 3, 4)).astype(np.float32)
    x[0, 1, 2] = 0
    require_close(*(partial(f, axis=axis, keepdims=keepdims) for f in (vjplib.prod, jnp.prod)), x, rtol=1e-5)


SOFT = {"softmax": (vjplib.softmax, jax.nn.softmax), "log_softmax": (vjplib.log_softmax, jax.nn.log_softmax)}


@pytest.mark.parametrize("name", SOFT)
@pytest.mark.parametrize("axis", [None, 0, -1, (0, 1)])
@pytest.mark.parametrize("masked", [False, True])
def test_softmax_family_gives_jax_nn_numbers(name, axis, masked, rng):
    x = rng.standard_normal((3, 5)).astype(np.float32)
    where = jnp.asarray(rng.random((3, 5)) < 0.6).at[0].set(True).at[:, 0].set(True) if masked else None
    ours, theirs = (lambda x, f=f: f(x, axis, where) for f in SOFT[name])
    require_close(ours, theirs, x, rtol=2e-6, atol=1e-6, mask=where)


@pytest.mark.parametrize("name", SOFT)
def test_softmax_family_at_the_edges(name):
    ours, theirs = SOFT[name]
    for x in ([1e4, -1e4, 0.0], [0.0, -INF, 1.0], [-INF, -INF], [NAN, 0.0], [INF, 0.0], [3.0]):
        chex.assert_trees_all_close(ours(jnp.array(x)), theirs(jnp.array(x)), rtol=1e-6)
    assert ours(jnp.zeros((2, 0))).shape == (2, 0)
    assert ours(jnp.zeros((0, 2))).shape == (0, 2)
    assert np.isfinite(cotangent(ours, jnp.array([1e4, -1e4, 0.0]))).all()


def test_masked_elements_take_no_part():
    where = jnp.array([True, False, True])
    x = jnp.array([1.0, NAN, 2.0])
    kept = jnp.array([1.0, 2.0])
    chex.assert_trees_all_equal(vjplib.softmax(x, where=where)[::2], vjplib.softmax(kept))
    chex.assert_trees_all_equal(vjplib.softmax(x, where=where)[1], jnp.array(0.0))
    assert cotangent(lambda x: jnp.log(vjplib.softmax(x, where=where)), x)[1] == 0
    nothing = jnp.zeros(3, bool)
    assert vjplib.softmax(x, where=nothing).tolist() == [0.0, 0.0, 0.0]
    assert cotangent(vjplib.softmax, x, where=nothing).tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("axis", [-1, 0, (0, 2), (2, 0)])
@pytest.mark.parametrize("masked", [False, True])
def test_cross_entropies_give_optax_numbers(axis, masked, rng):
    logits = rng.standard_normal((2, 3, 5)).astype(np.float32)
    where = None
    if masked:
        where = jnp.asarray(rng.random((2, 3, 5)) < 0.7).at[0, :, 0].set(True).at[:, 0, :].set(True)
    soft = jax.nn.softmax(jnp.asarray(rng.standard_normal((2, 3, 5)), jnp.float32), axis)
    axes = axis if isinstance(axis, tuple) else (axis,)
    shape = [n for i, n in enumerate((2, 3, 5)) if i not in {a % 3 for a in axes}]
    labels = rng.integers(0, 2, shape)
    for ours, theirs, target in (
        (vjplib.softmax_cross_entropy, optax.softmax_cross_entropy, soft),
        (
            vjplib.softmax_cross_entropy_with_integer_labels,
            optax.softmax_cross_entropy_with_integer_labels,
            labels.astype(np.int32),
        ),
    ):
        pair = (lambda x, f=f, t=target: f(x, t, axis, where) for f in (ours, theirs))
        require_close(*pair, logits, rtol=1e-5, atol=1e-6)


def test_cross_entropy_takes_optax_masks_without_the_class_axis():
    logits, labels = jnp.array([[1.0, 2.0], [3.0, 4.0]]), jnp.array([[0.5, 0.5], [1.0, 0.0]])
    where = jnp.array([True, False])
    ours = vjplib.softmax_cross_entropy(logits, labels, where=where)
    chex.assert_trees_all_close(ours, optax.softmax_cross_entropy(logits, labels, where=where), rtol=1e-6)
    assert ours[1] == 0


def test_labels_of_few_bits_may_count_many_classes_from_the_end(rng):
    logits = rng.standard_normal((2, 300)).astype(np.float32)
    labels = np.array([-1, -100], np.int8)
    ours, theirs = (
        jax.grad(lambda x, f=f: f(x, labels).sum())(logits)
        for f in (
            vjplib.softmax_cross_entropy_with_integer_labels,
            optax.softmax_cross_entropy_with_integer_labels,
        )
    )
    chex.assert_trees_all_close(ours, theirs, atol=1e-6)


def test_negative_labels_count_from_the_end():
    logits = jnp.array([[1.0, 2.0, 4.0]])
    last, negative = (
        jax.value_and_grad(lambda x, i=i: vjplib.softmax_cross_entropy_with_integer_labels(x, jnp.array([i])).sum())(
            logits
        )
        for i in (2, -1)
    )
    chex.assert_trees_all_equal(last, negative)


def test_cross_entropy_of_large_logits_keeps_its_digits():
    loss = vjplib.softmax_cross_entropy_with_integer_labels(jnp.array([1e6, 1e6 - 1.0]), jnp.array(0))
    np.testing.assert_allclose(loss, np.log1p(np.exp(-1.0)), rtol=1e-6)


def test_squared_error_gives_optax_numbers(rng):
    p, t = rng.standard_normal((2, 3, 4)).astype(np.float32)
    chex.assert_trees_all_close(vjplib.squared_error(p, t), optax.squared_error(p, t), rtol=1e-6)
    chex.assert_trees_all_close(vjplib.squared_error(p), optax.squared_error(p), rtol=1e-6)


def lax_conv1d(x, h, stride):
    x3, h3 = (x[..., None], h[:, None, None]) if h.ndim == 1 else (x, h)
    batch = x3.shape[:-2]
    flat = x3.reshape(-1, *x3.shape[-2:])
    y = jax.lax.conv_general_dilated(flat, h3, (stride,), "SAME", dimension_numbers=("NWC", "WIO", "NWC"))
    y = y.reshape(*batch, *y.shape[1:])
    return y[..., 0] if h.ndim == 1 else y


@pytest.mark.parametrize("stride", [1, 2, 3, 5])
@pytest.mark.parametrize("channels", [False, True])
def test_conv1d_gives_lax_same_numbers(channels, stride, rng):
    calls = []
    for n, k in itertools.product((1, 2, 7, 12), (1, 2, 3, 4, 7, 11)):
        if k <= n:
            shapes = ((2, n, 3), (k, 3, 2)) if channels else ((2, 3, n), (k,))
            calls.append([rng.standard_normal(shape).astype(np.float32) for shape in shapes])

    def each(f):
        return lambda calls: [f(x, h, stride=stride) for x, h in calls]

    require_close(each(vjplib.conv1d), each(lax_conv1d), calls, rtol=1e-4, atol=1e-5)


def test_conv1d_of_nan_and_infinity_stays_local():
    y = vjplib.conv1d(jnp.array([1.0, 2.0, NAN, 4.0, 5.0, 6.0]), jnp.ones(3))
    assert np.isnan(y).tolist() == [False, True, True, True, False, False]


def test_conv1d_keeps_its_calls_apart_on_cpu():
    """XLA must not fuse the shifted copies into what consumes them: their calls survive in the compiled program."""
    if jax.default_backend() != "cpu":
        pytest.skip("the calls are kept apart in the program for CPU alone; this process runs on another platform")
    x, h = jnp.ones(64), jnp.ones(3)
    program = jax.jit(jax.grad(lambda x, h: jnp.sum(jnp.tanh(vjplib.conv1d(x, h))), (0, 1))).lower(x, h).compile()
    lines = (program.as_text() or "").splitlines()
    assert sum(" call(" in line and 'inlineable="false"' in line for line in lines) == 2  # forward, and dx


def test_no_rule_leans_on_implicit_promotion(rng):
    logits = jnp.asarray(rng.standard_normal((2, 3)), jnp.float32)
    with jax.numpy_dtype_promotion("strict"):
        for rule in rules():
            call = rule.cases[0].call(rng)
            floats = [i for i, a in enumerate(call.args) if np.issubdtype(a.dtype, np.floating)]
            f = lambda *a, r=rule, c=call: sum(y.sum() for y in jax.tree.leaves(r.fn(*a, **c.kwargs)))  # noqa: E731
            dxs = jax.eval_shape(jax.grad(f, floats), *map(jnp.asarray, call.args))
            assert [(dx.shape, dx.dtype) for dx in dxs] == [(call.args[i].shape, jnp.float32) for i in floats]
        assert jnp.isfinite(jax.grad(lambda x: vjplib.softmax(x, where=x > 0).sum())(logits)).all()


ELEMENTWISE = ("multiply", "quadratic", "swiglu", "geglu", "kl_divergence", "huber_loss", "log_cosh")
ELEMENTWISE += ("sigmoid_binary_cross_entropy", "sigmoid_focal_loss")  # of arrays that may have two ranks


def test_no_rule_leans_on_ranks_being_raised(rng):
    """Where what users would call is not refused either: products of arrays of two ranks are."""
    with jax.numpy_rank_promotion("raise"):
        for rule in rules():
            for case in rule.cases:
                if rule.name in ELEMENTWISE and len({len(shape.split()) for shape in case.shapes if shape}) > 1:
                    continue
                call = case.call(rng)
                floats = [i for i, a in enumerate(call.args) if a is not None and np.issubdtype(a.dtype, np.floating)]
                f = lambda *a, r=rule, c=call: sum(y.sum() for y in jax.tree.leaves(r.fn(*a, **c.kwargs)))  # noqa: E731
                dxs = jax.eval_shape(jax.grad(f, floats), *call.args)
                assert [dx.shape for dx in dxs] == [call.args[i].shape for i in floats], rule.name


def test_forward_mode_is_refused_by_jax():
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(vjplib.tanh, (jnp.ones(2),), (jnp.ones(2),))


def test_half_precision_accumulates_in_float32():
    x = jnp.full((1, 4096), 1.0, jnp.bfloat16)
    W = jnp.full((1, 4096), 1.0 + 2**-7, jnp.bfloat16)
    assert float(vjplib.linear(x, W)[0, 0]) == float(jnp.bfloat16(4096 * (1 + 2**-7)))


def test_python_numbers_and_numpy_arrays_are_arguments():
    assert float(vjplib.multiply(2.0, np.float32(3.0))) == 6.0
    assert jax.grad(vjplib.sigmoid)(0.0) == 0.25
    assert jax.hessian(vjplib.quadratic, argnums=1)(2.0, 3.0) == 14.0


def test_conv1d_of_mixed_dtypes(rng):
    for shapes in (((2, 7), (3,), ()), ((2, 7, 2), (3, 2, 4), (4,))):
        dtypes = (jnp.bfloat16, jnp.float32, jnp.float16)
        args = [jnp.asarray(rng.standard_normal(s), d) for s, d in zip(shapes, dtypes, strict=True)]
        for stride in (1, 2):
            y, back = jax.vjp(lambda *a, stride=stride: vjplib.conv1d(*a, stride=stride), *args)
            assert y.dtype == jnp.float32
            assert [d.dtype for d in back(y)] == [*dtypes]


def test_mixed_dtypes_promote_and_cotangents_go_back():
    y, back = jax.vjp(vjplib.multiply, jnp.ones((2, 3), jnp.bfloat16), jnp.ones(3, jnp.float32))
    assert y.dtype == jnp.float32
    assert [d.dtype for d in back(y)] == [jnp.bfloat16, jnp.float32]


def test_losses_of_small_errors_keep_their_digits():
    e = jnp.array([1e-6, -1e-3, 0.5, 30.0])
    exact = np.log(np.cosh(np.asarray(e, np.longdouble)))
    exact[:2] = np.asarray(e, np.longdouble)[:2] ** 2 / 2 * (1 - np.asarray(e, np.longdouble)[:2] ** 2 / 6)
    np.testing.assert_allclose(vjplib.log_cosh(e), exact.astype(float), rtol=1e-6)


@pytest.mark.parametrize("loss", [vjplib.sigmoid_binary_cross_entropy, vjplib.sigmoid_focal_loss])
def test_binary_losses_at_infinite_logits(loss):
    x, fits = jnp.array([INF, -INF, INF, -INF]), jnp.array([1.0, 0.0, 0.0, 1.0])
    losses, slopes = jax.vmap(jax.value_and_grad(loss))(x, fits)
    assert losses[:2].tolist() == slopes[:2].tolist() == [0.0, 0.0]
    assert (losses[2:] > 1e30).all()
    assert slopes[2:].tolist() == [1.0, -1.0]


def test_focal_loss_has_finite_derivatives_of_any_exponent():
    x = jnp.array([-1e4, -100.0, -60.0, -20.0, 0.0, 20.0, 60.0, 100.0, 1e4, INF])
    for gamma in (0.0, 0.5, 1.0, 2.0, 5.0):
        for label in (0.0, 0.3, 1.0):
            loss = lambda x, p, gamma=gamma: vjplib.sigmoid_focal_loss(x, p, gamma=gamma)  # noqa: E731
            first = jax.vmap(jax.grad(loss, (0, 1)), (0, None))(x, label)
            second = jax.vmap(jax.grad(jax.grad(loss)), (0, None))(x, label)
            assert all(jnp.isfinite(d).all() for d in (*first, second))


def test_safe_cross_entropy_and_divergence_where_a_class_is_impossible():
    logits, labels = jnp.array([1.0, -INF, 3.0]), jnp.array([0.0, 0.0, 1.0])
    loss, slope = jax.value_and_grad(vjplib.safe_softmax_cross_entropy)(logits, labels)
    y = 1 / (1 + np.exp(2.0))
    np.testing.assert_allclose(loss, -np.log(1 - y), rtol=1e-6)
    np.testing.assert_allclose(slope, [y, 0, -y], rtol=1e-6)
    loss, slopes = jax.value_and_grad(vjplib.kl_divergence, (0, 1))(jax.nn.log_softmax(logits), labels)
    np.testing.assert_allclose(loss, -np.log(1 - y), rtol=1e-6)
    np.testing.assert_allclose(slopes[0], -labels)
    np.testing.assert_allclose(slopes[1], [0, 0, 1 - np.log(1 - y)], rtol=1e-6)
