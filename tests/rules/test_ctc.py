"""The CTC loss: optax's numbers with a fraction of its memory and of its rounding error."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vjplib import ctc_loss
from vjplib.compat import x64
from vjplib.rules.ctc import BLOCK
from vjplib.verification.claims.residuals import residual_bytes

SHAPES = {
    "a few frames": (3, 7, 3, 5),
    "several blocks": (2, 2 * BLOCK + 5, 9, 4),
    "whole blocks": (2, 2 * BLOCK, 5, 3),
    "too few frames": (2, 3, 5, 4),
    "no label": (3, 5, 0, 3),
    "one frame": (3, 1, 1, 3),
    "two classes": (3, 9, 3, 2),
}
OPTIONS = {"optax's own": {}, "another blank": {"blank_id": 1}, "mild": {"log_epsilon": -3.0}}
X = jnp.asarray(np.sin(np.arange(12.0)).reshape(1, 4, 3), jnp.float32)
ALL, NO = jnp.zeros((1, 4)), jnp.zeros((1, 2))


def arrays(b, t, n, k, seed=0):
    """Returns logits, labels with repetitions, and paddings of both of various lengths, floats as optax has them."""
    rng = np.random.default_rng(seed)
    frames, lengths = rng.integers(t // 2, t + 1, b), rng.integers(0, n + 1, b)
    logit_paddings, label_paddings = (
        (np.arange(size) >= count[:, None]).astype(np.float64) for size, count in ((t, frames), (n, lengths))
    )
    return 3 * rng.standard_normal((b, t, k)), logit_paddings, rng.integers(0, k, (b, n)), label_paddings


def with_gradient(f, g, **options):
    """Returns a function of logits and the other arguments: the losses, and the cotangent of the logits for g."""

    @jax.jit
    def both(logits, *others):
        loss, back = jax.vjp(lambda logits: f(logits, *others, **options), logits)
        return loss, back(jnp.asarray(g, loss.dtype))[0]

    return both


@pytest.mark.parametrize(
    ("shape", "options"),
    [*((s, "optax's own") for s in SHAPES), *(("several blocks", o) for o in OPTIONS), ("too few frames", "mild")],
)
def test_values_and_gradients_of_each_row_are_optax_s(shape, options):
    given = arrays(*SHAPES[shape])
    g = np.arange(1.0, 1 + len(given[0]))
    with x64():
        fs = [with_gradient(f, g, **OPTIONS[options]) for f in (ctc_loss, optax.ctc_loss)]
        ours, theirs = jax.jit(lambda *a: [f(*a) for f in fs])(*given)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9)


def test_the_loss_is_minus_the_logarithm_of_the_sum_over_alignments():
    logits, labels = np.asarray(X, float)[0], [1, 1]
    log_y = np.log(np.exp(logits) / np.exp(logits).sum(-1, keepdims=True))

    def spelt(alignment):
        return [k for k, _ in itertools.groupby(alignment) if k]

    total = sum(
        math.exp(sum(row[k] for row, k in zip(log_y, alignment, strict=True)))
        for alignment in itertools.product(range(3), repeat=4)
        if spelt(alignment) == labels
    )
    np.testing.assert_allclose(ctc_loss(logits, ALL[0], np.array(labels), NO[0]), -math.log(total), rtol=1e-6)


def test_the_gradient_is_that_of_finite_differences():
    logits, *others = arrays(*SHAPES["several blocks"])
    with x64():
        g = np.array([1.0, -2.0])
        loss = jax.jit(lambda x: jnp.sum(g * ctc_loss(x, *others)))
        t = np.random.default_rng(1).standard_normal(logits.shape)
        slope = float(jnp.sum(t * jax.grad(loss)(logits)))
        found = (loss(logits + 1e-5 * t) - loss(logits - 1e-5 * t)) / 2e-5
    np.testing.assert_allclose(found, slope, rtol=1e-7)


@pytest.mark.parametrize("shape", [(2, 5, 2, 3), (1, BLOCK + 1, 2, 2)])
def test_second_derivatives_are_those_of_finite_differences_also_where_all_logits_are_equal(shape):
    logits, *others = arrays(*shape)
    t = np.random.default_rng(1).standard_normal(logits.shape)
    with x64():
        gradient = jax.grad(lambda x: jnp.sum(ctc_loss(x, *others)))

        @jax.jit
        def products(x):
            by_reverse = jax.grad(lambda x: jnp.vdot(gradient(x), t))(x)
            return (
                by_reverse,
                jax.jvp(gradient, (x,), (t,))[1],
                (gradient(x + 1e-5 * t) - gradient(x - 1e-5 * t)) / 2e-5,
            )

        for scale in (0, 1):
            *found, expected = products(scale * logits)
            for product in found:
                np.testing.assert_allclose(product, expected, atol=1e-9)


# ------------------------------------------------------------------------------------------------ memory and accuracy


def compiled_bytes(f, b, t, n, k):
    avals = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((b, t, k), (b, t), (b, n))]
    labels = jax.ShapeDtypeStruct((b, n), jnp.int32)
    program = jax.jit(with_gradient(f, np.ones(b))).lower(avals[0], avals[1], labels, avals[2])
    analysis = program.compile().memory_analysis()
    assert analysis is not None
    return analysis.temp_size_in_bytes


@pytest.mark.parametrize(("shape", "times"), [((16, 512, 64, 64), 15), ((8, 2048, 128, 32), 50)])
def test_temporary_bytes_are_a_small_part_of_optax_s(shape, times):
    assert times * compiled_bytes(ctc_loss, *shape) <= compiled_bytes(optax.ctc_loss, *shape)


def test_what_is_kept_is_as_large_as_the_logits():
    b, t, n, k = 16, 512, 64, 64
    paddings, label_paddings, labels = np.zeros((b, t)), np.zeros((b, n)), np.ones((b, n), np.int32)
    for dtype, size in (("float32", 4), ("bfloat16", 2), ("float16", 4)):
        logits = jax.ShapeDtypeStruct((b, t, k), dtype)
        kept = residual_bytes(lambda x: ctc_loss(x, paddings, labels, label_paddings), logits)
        assert kept == size * b * t * k
    logits = jax.ShapeDtypeStruct((b, t, k), jnp.float32)
    assert 7 * 4 * b * t * k <= residual_bytes(lambda x: optax.ctc_loss(x, paddings, labels, label_paddings), logits)


def test_float32_keeps_its_digits_over_thousands_of_frames():
    logits, paddings, labels, label_paddings = arrays(1, 2048, 32, 8)
    given = (logits.astype(np.float32), paddings.astype(np.float32), labels, label_paddings.astype(np.float32))
    with x64():
        exact = [np.asarray(a) for a in with_gradient(optax.ctc_loss, np.ones(1))(given[0].astype(float), *given[1:])]
    ours, theirs = (
        [
            np.max(np.abs(np.asarray(a, float) - b))
            for a, b in zip(with_gradient(f, np.ones(1))(*given), exact, strict=True)
        ]
        for f in (ctc_loss, optax.ctc_loss)
    )
    assert ours[1] < 1e-4 < 1e-3 < theirs[1]
    assert ours[0] < 1e-6 * float(exact[0][0])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_rounds_the_gradient_alone(dtype):
    logits, *others = arrays(*SHAPES["several blocks"])
    half = jnp.asarray(logits, dtype)
    loss, gradient = with_gradient(ctc_loss, np.ones(2))(half, *others)
    expected, expected_gradient = with_gradient(ctc_loss, np.ones(2))(half.astype(jnp.float32), *others)
    assert (loss.dtype, gradient.dtype) == (jnp.float32, dtype)
    assert optax.ctc_loss(half, *others).dtype == jnp.float32
    np.testing.assert_array_equal(loss, expected)
    eps = float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(gradient.astype(float), expected_gradient, rtol=eps, atol=float(jnp.finfo(dtype).tiny))


def test_float16_keeps_gradients_below_its_smallest_number_until_they_are_scaled():
    logits = jnp.zeros((1, 1, 4096), jnp.float16)
    logits = logits.at[..., 0].set(12)
    _, gradient = with_gradient(ctc_loss, 2.0**14 * np.ones(1))(logits, ALL[:, :1], jnp.array([[1]]), NO[:, :1])
    exact = 2.0**14 / (4095 + math.exp(12))
    np.testing.assert_allclose(gradient[0, 0, 2:].astype(float), exact, rtol=1e-3)


# --------------------------------------------------------------------------------------------------------- conventions


def test_paddings_select_whatever_their_dtype_and_have_no_derivative():
    logits, logit_paddings, labels, label_paddings = arrays(*SHAPES["a few frames"])
    losses = [
        jax.jit(ctc_loss)(logits, logit_paddings.astype(dtype), labels, label_paddings.astype(dtype))
        for dtype in (bool, np.int8, np.float16, np.float32)
    ]
    for loss in losses:
        np.testing.assert_array_equal(loss, losses[0])
    total = lambda *paddings: jnp.sum(ctc_loss(logits, paddings[0], labels, paddings[1]))  # noqa: E731
    for d in jax.jit(jax.grad(total, (0, 1)))(jnp.asarray(logit_paddings), jnp.asarray(label_paddings)):
        assert not d.any()


def test_padded_frames_may_be_anywhere_and_hold_anything():
    paddings, labels = jnp.array([[0.0, 1, 0, 0]]), jnp.array([[1, 2]])
    without = with_gradient(ctc_loss, np.ones(1))(X[:, [0, 2, 3]], ALL[:, :3], labels, NO)
    both = with_gradient(ctc_loss, np.ones(1))
    for number in (0.0, jnp.nan, jnp.inf, -jnp.inf):
        loss, gradient = both(X.at[0, 1].set(number), paddings, labels, NO)
        np.testing.assert_allclose(loss, without[0], rtol=1e-6)
        np.testing.assert_allclose(gradient[:, [0, 2, 3]], without[1], atol=1e-6)
        assert not gradient[:, 1].any()


def test_padded_labels_may_be_anything():
    loss = jax.jit(ctc_loss)
    losses = [loss(X, ALL, jnp.array([[1, label]]), jnp.array([[0.0, 1]])) for label in (0, 1, 2, 99, -1)]
    assert all(loss == losses[0] for loss in losses)
    np.testing.assert_allclose(losses[0], loss(X, ALL, jnp.array([[1]]), NO[:, :1]), rtol=1e-6)


def test_an_excluded_class_has_probability_0_where_optax_has_nan():
    logits = X.at[0, 1, 1].set(-jnp.inf)
    given = (ALL, jnp.array([[1, 2]]), NO)
    both = with_gradient(ctc_loss, np.ones(1))
    loss, gradient = both(logits, *given)
    near = both(X.at[0, 1, 1].set(-1e4), *given)
    np.testing.assert_allclose(loss, near[0], rtol=1e-6)
    np.testing.assert_allclose(gradient, near[1], atol=1e-6)
    assert jnp.isnan(optax.ctc_loss(logits, *given)).all()


@pytest.mark.parametrize("labels", [[1, 1], [1, 2, 1, 2, 1]])
def test_too_few_frames_cost_log_epsilon_or_everything(labels):
    frames = len(labels)  # one too few for equal labels; or as many, and one is padded
    given = (jnp.array([[0.0] * (frames - 1) + [float(labels != [1, 1])]]), jnp.array([labels]), jnp.zeros((1, frames)))
    logits = jnp.asarray(np.cos(np.arange(3.0 * frames)), jnp.float32).reshape(1, frames, 3)
    loss = jax.jit(ctc_loss)(logits, *given)
    assert 0.99e5 < loss[0] < 1.01e5
    np.testing.assert_allclose(loss, jax.jit(optax.ctc_loss)(logits, *given), rtol=1e-6)
    loss, gradient = with_gradient(ctc_loss, np.ones(1), log_epsilon=-jnp.inf)(logits, *given)
    assert loss[0] == jnp.inf
    assert not gradient.any()


def test_a_forbidden_step_of_minus_infinity_leaves_possible_alignments_as_they_are():
    given = arrays(3, 20, 3, 4)
    for a, b in zip(
        *(with_gradient(ctc_loss, np.ones(3), **o)(*given) for o in ({}, {"log_epsilon": -np.inf})), strict=True
    ):
        np.testing.assert_array_equal(a, b)


def test_a_label_out_of_range_makes_its_row_nan_alone():
    labels = jnp.array([[1, 3], [1, -1], [1, 99], [1, 2]], jnp.int8)
    x, paddings = (jnp.tile(a, (4,) + (1,) * (a.ndim - 1)) for a in (X, ALL))
    loss, gradient = with_gradient(ctc_loss, np.ones(4))(x, paddings, labels, jnp.zeros((4, 2)))
    assert jnp.isnan(loss).tolist() == [True, True, True, False]
    assert jnp.isnan(gradient).all((1, 2)).tolist() == [True, True, True, False]
    assert jnp.isfinite(gradient[3]).all()


def test_nan_and_infinite_logits_make_their_row_nan():
    both = with_gradient(ctc_loss, np.ones(1))
    for number in (jnp.nan, jnp.inf):
        loss, gradient = both(X.at[0, 2, 1].set(number), ALL, jnp.array([[1, 2]]), NO)
        assert jnp.isnan(loss).all()
        assert jnp.isnan(gradient).all()


def test_without_frames_the_loss_is_0_or_log_epsilon():
    none = X[:, :0], ALL[:, :0]
    assert ctc_loss(*none, jnp.zeros((1, 0), int), NO[:, :0]) == 0
    np.testing.assert_allclose(ctc_loss(*none, jnp.array([[1, 2]]), NO), 1e5, rtol=1e-4)
    assert ctc_loss(X[:0], ALL[:0], jnp.zeros((0, 2), int), NO[:0]).shape == (0,)


def test_any_batch_axes_and_vmap():
    logits, *others = arrays(4, 6, 2, 3)

    @jax.jit
    def losses(logits, *others):
        folded = ctc_loss(*(a.reshape(2, 2, *a.shape[1:]) for a in (logits, *others)))
        return ctc_loss(logits, *others), folded.reshape(4), jax.vmap(ctc_loss)(logits, *others)

    for loss in losses(logits, *others)[1:]:
        np.testing.assert_allclose(loss, losses(logits, *others)[0], rtol=1e-6)
