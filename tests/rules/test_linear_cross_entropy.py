"""The cross-entropy of a linear layer in chunks: optax's of all logits, with a fraction of its memory."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vjplib import linear_softmax_cross_entropy
from vjplib.compat import x64
from vjplib.rules.linear_cross_entropy import FEWEST_TOKENS, by_optax, chunk_plan

TOKENS, WIDTH, CLASSES = 2 * FEWEST_TOKENS + 3, 3, 11
ROW, COLUMN = 4 * CLASSES, 4 * TOKENS
CHUNKS = {"in one": None, "of tokens": FEWEST_TOKENS * ROW, "of the vocabulary": 4 * COLUMN}
OPTIONS = {
    "plain": {},
    "smooth": {"label_smoothing": 0.3},
    "z-loss": {"z_loss": 0.1},
    "capped": {"logits_soft_cap": 1.5},
    "all": {"label_smoothing": 0.3, "z_loss": 0.1, "logits_soft_cap": 1.5},
}


def arrays(seed=0):
    rng = np.random.default_rng(seed)
    x, weights, bias = (rng.standard_normal(shape) for shape in ((TOKENS, WIDTH), (WIDTH, CLASSES), (CLASSES,)))
    labels = rng.integers(0, CLASSES, TOKENS)
    labels[::5] = -100
    return x, labels, weights, bias


def by_definition(x, labels, weights, bias, label_smoothing=0.0, z_loss=0.0, logits_soft_cap=None):
    logits = x @ weights + bias
    if logits_soft_cap is not None:
        logits = logits_soft_cap * jnp.tanh(logits / logits_soft_cap)
    target = optax.smooth_labels(jax.nn.one_hot(labels, CLASSES), label_smoothing)
    loss = optax.softmax_cross_entropy(logits, target) + z_loss * jax.nn.logsumexp(logits, -1) ** 2
    return jnp.where(labels == -100, 0, loss)


@pytest.mark.parametrize(
    ("chunks", "options"), [*((c, o) for c in CHUNKS for o in ("plain", "all")), *(("in one", o) for o in OPTIONS)]
)
def test_chunks_and_options_have_the_values_and_gradients_of_all_logits(chunks, options):
    x, labels, weights, bias = arrays()
    with x64():
        g = np.random.default_rng(1).standard_normal(TOKENS)
        reductions = {
            "sum": jnp.sum,
            "mean": lambda losses: jnp.sum(losses) / np.sum(labels != -100),
            "none": lambda losses: jnp.sum(g * losses),
        }
        for reduction, reduce in reductions.items():
            finish = reduce if reduction == "none" else lambda loss: loss

            def ours(x, weights, bias, reduction=reduction, finish=finish):
                given = {"reduction": reduction, "chunk_bytes": CHUNKS[chunks], **OPTIONS[options]}
                return finish(linear_softmax_cross_entropy(x, labels, weights, bias, **given))

            def theirs(x, weights, bias, reduce=reduce):
                return reduce(by_definition(x, labels, weights, bias, **OPTIONS[options]))

            both = jax.jit(lambda *a, fs=(ours, theirs): [jax.value_and_grad(f, (0, 1, 2))(*a) for f in fs])
            for a, b in zip(*map(jax.tree.leaves, both(x, weights, bias)), strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("vocabulary", [32768, 65536])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_temporary_bytes_are_a_tenth_and_residual_bytes_a_sixth_of_all_logits(reduction, vocabulary):
    tokens, width = 4096, 512
    given = {"x": (tokens, width), "weights": (width, vocabulary), "g": () if reduction == "mean" else (tokens,)}
    x, weights, g = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in given.values())
    labels = jax.ShapeDtypeStruct((tokens,), jnp.int32)

    def pulled(f):
        def program(x, labels, weights, g):
            y, back = jax.vjp(lambda x, weights: f(x, labels, weights, reduction=reduction), x, weights)
            return y, back(g)

        return program

    def kept(f):
        residuals = jax.eval_shape(lambda x, w, t: jax.vjp(lambda x, w: f(x, t, w), x, w)[1], x, weights, labels)
        return sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(residuals))

    compiled = jax.jit(pulled(linear_softmax_cross_entropy)).lower(x, labels, weights, g).compile()
    analysis = compiled.memory_analysis()
    assert analysis is not None
    assert analysis.temp_size_in_bytes <= 2 * 4 * tokens * vocabulary / 10  # logits and their cotangent
    assert kept(linear_softmax_cross_entropy) <= kept(by_optax) / 6


def test_chunks_are_picked_from_the_shapes():
    assert chunk_plan(8, 512, 1000, True, None) == (True, 1)
    assert chunk_plan(8, 512, 1000, False, None) == (False, 1)
    assert chunk_plan(4096, 512, 32768, True, None) == (True, 32)
    assert chunk_plan(4096, 512, 32768, False, None) == (False, 32)
    assert chunk_plan(4096, 16, 1 << 20, True, None) == (False, 1024)  # a chunk of tokens would have 4
    assert chunk_plan(4099, 512, 32768, True, None) == (True, 33)  # a prime number of tokens
    assert chunk_plan(10, 4, 10, False, 1) == (False, 10)
    assert chunk_plan(0, 4, 10, True, None) == (True, 1)


def test_chunks_under_vmap_and_in_half_precision():
    x, labels, weights, bias = arrays()
    xs = jnp.asarray(np.stack([x, -x, 2 * x]), jnp.bfloat16)
    w, b = jnp.asarray(weights, jnp.bfloat16), jnp.asarray(bias, jnp.bfloat16)

    def gradients(f):
        return jax.jit(jax.vmap(lambda x: jax.value_and_grad(lambda *a: f(a[0], labels, *a[1:]), (0, 1, 2))(x, w, b)))

    def ours(*a):
        return linear_softmax_cross_entropy(*a, chunk_bytes=CHUNKS["of tokens"])

    def wide(x, labels, *a):
        return by_definition(x.astype(jnp.float32), labels, *(i.astype(jnp.float32) for i in a)).sum()

    loss, found = gradients(ours)(xs)
    expected_loss, expected = gradients(wide)(xs)
    assert loss.dtype == jnp.float32
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-5)
    for a, e in zip(found, expected, strict=True):
        assert a.dtype == jnp.bfloat16
        np.testing.assert_allclose(a.astype(float), e.astype(float), rtol=2e-2, atol=2e-2)


def test_float16_keeps_gradients_below_its_smallest_number_until_they_are_scaled():
    x, weights = jnp.full((2, 1), 2.0**-12, jnp.float16), jnp.zeros((1, 4096), jnp.float16)

    def loss(weights):
        return 2.0**14 * linear_softmax_cross_entropy(x, jnp.array([0, 1]), weights)

    exact = 2.0**14 * 2 * 2.0**-12 / 4096
    np.testing.assert_allclose(jax.grad(loss)(weights)[0, 2:].astype(float), exact, rtol=1e-3)


def test_the_loss_of_an_almost_certain_label_keeps_its_digits():
    t = jnp.array([5.0, 20.0, 40.0, 80.0])
    losses = linear_softmax_cross_entropy(t[:, None], jnp.zeros(4, int), jnp.array([[1.0, 0.0]]), reduction="none")
    np.testing.assert_allclose(losses, np.log1p(np.exp(-np.asarray(t, float))), rtol=1e-5)


@pytest.mark.parametrize("chunks", CHUNKS)
@pytest.mark.parametrize("reduction", ["sum", None])
def test_an_ignored_token_counts_for_nothing_whatever_it_holds(reduction, chunks):
    x, labels, weights, bias = arrays()

    @jax.jit
    def gradients(number):
        def loss(x, *a):
            given = {"reduction": reduction, "chunk_bytes": CHUNKS[chunks]}
            return jnp.sum(linear_softmax_cross_entropy(x, labels, *a, **given))

        filled = jnp.where(labels[:, None] == -100, number, jnp.asarray(x))
        return jax.value_and_grad(loss, (0, 1, 2))(filled, *map(jnp.asarray, (weights, bias)))

    zeros = gradients(0.0)
    assert jnp.isfinite(zeros[0])
    for number in (np.nan, np.inf):
        for a, b in zip(*map(jax.tree.leaves, (gradients(number), zeros)), strict=True):
            np.testing.assert_array_equal(a, b)


def test_a_label_is_ignored_by_its_number_alone():
    x, weights = jnp.ones((2, 1)), jnp.zeros((1, 4))
    loss = lambda labels, **kwargs: linear_softmax_cross_entropy(  # noqa: E731
        x, jnp.array(labels), weights, reduction="mean", **kwargs
    )
    assert loss([1, -100]) == loss([1, 2]) == loss([-1, -2])
    assert loss([-1, -1], ignore_index=-1) == 0
    assert jnp.isnan(loss([1, -100], ignore_index=None))
    assert jnp.isnan(loss([1, 4]))


def test_labels_outside_the_classes_have_optax_s_value_and_gradient():
    x, weights = jnp.ones((2, 3)), jnp.eye(3, 4)

    @jax.jit
    def both(labels):
        fs = (linear_softmax_cross_entropy, by_optax)
        return [jax.value_and_grad(lambda w, f=f: f(x, labels, w))(weights) for f in fs]

    for label in (0, 3, 4, 99, -1, -4, -5):
        ours, theirs = both(jnp.array([label, 1]))
        np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-6)
        np.testing.assert_allclose(ours[1], theirs[1], rtol=1e-5, atol=1e-6)


def test_the_precision_is_that_of_every_product():
    x, labels, weights, _ = (jnp.asarray(a, jnp.float32) if a.dtype == float else a for a in arrays())
    for reduction, products in (("sum", 3), ("none", 4)):

        def loss(*a, reduction=reduction):
            return jnp.sum(linear_softmax_cross_entropy(a[0], labels, a[1], reduction=reduction, precision="highest"))

        program = str(jax.make_jaxpr(jax.grad(loss, (0, 1)))(x, weights))
        assert program.count("precision=(Precision.HIGHEST") + program.count("precision=Precision.HIGHEST") == products
