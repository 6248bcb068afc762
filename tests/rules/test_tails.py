"""Gradients keep their relative accuracy, component by component, where a function saturates: from -80 to 80."""

from dataclasses import replace
from decimal import Decimal, localcontext
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vjplib as vl
from vjplib.compat import x64
from vjplib.rule import find, rules
from vjplib.rules.softmax import saturating
from vjplib.verification import verify_rule
from vjplib.verification.call import CallUnderTest
from vjplib.verification.claims.accuracy import tail_error

TAILED = {rule.name: (rule.fn, rule.tails) for rule in rules() if rule.tails}
# Some parts in a hundred thousand and in a hundred: what exp makes of the rounding of an argument of 80 is 4e-6.
BOUNDS = {"float32": 1e-5, "bfloat16": 0.02, "float64": 1e-13}
SECOND = {"reverse over reverse": jax.jacrev, "forward over reverse": jax.jacfwd}
CLASSES = range(3)

by_dtype = pytest.mark.parametrize("dtype", BOUNDS)
by_mode = pytest.mark.parametrize("second", SECOND.values(), ids=SECOND)


@pytest.fixture(autouse=True)
def _precision(dtype):
    if dtype == "float64":
        with x64():
            yield
    else:
        yield


@pytest.fixture
def dtype():
    return "float32"


def log_spaced(dtype, smallest=1e-3, count=60):
    """Returns numbers of both signs up to 80, rounded to the dtype, in float64."""
    x = np.outer((-1.0, 1.0), np.geomspace(smallest, 80.0, count)).ravel()
    return np.unique(np.asarray(jnp.asarray(x, dtype), np.float64))


def assert_every_component_right(found, exact, dtype):
    found, exact = np.asarray(found, np.float64), np.broadcast_to(exact, found.shape)
    normal = np.abs(exact) >= float(jnp.finfo(dtype).tiny)
    assert normal.any()
    np.testing.assert_allclose(found[normal], exact[normal], rtol=BOUNDS[dtype], atol=0)


def softmax_in_decimals(logits):
    """Returns the softmax of one vector and what each of its elements lacks to 1, to 80 digits, in float64."""
    with localcontext() as context:
        context.prec = 80
        e = [Decimal(float(x)).exp() for x in logits]
        total = sum(e)
        return np.array([float(v / total) for v in e]), np.array([float((total - v) / total) for v in e])


# ---------------------------------------------------------------------------------------------------- first derivatives


def test_which_rules_declare_their_tails():
    assert list(TAILED) == [
        "tanh",
        "sigmoid",
        "dot_product_attention",
        "ctc_loss",
        "swiglu",
        "geglu",
        "linear_softmax_cross_entropy",
        "softmax_cross_entropy",
        "softmax_cross_entropy_with_integer_labels",
        "safe_softmax_cross_entropy",
        "elu",
        "selu",
        "celu",
        "log_cosh",
        "sigmoid_binary_cross_entropy",
        "sigmoid_focal_loss",
        "silu",
        "gelu",
        "softplus",
        "log_sigmoid",
        "mish",
        "softmax",
        "log_softmax",
    ]


@by_dtype
@pytest.mark.parametrize("name", TAILED)
def test_gradient_at_the_tails_of_the_record(name, dtype):
    fn, tails = TAILED[name]
    assert tail_error(CallUnderTest(fn, ()), tails, jnp.dtype(dtype)) <= BOUNDS[dtype]


@pytest.mark.parametrize("naive", [lambda x: 1 / (1 + jnp.exp(-x)), lambda x: (1 + jnp.tanh(x / 2)) / 2])
def test_what_autodiff_loses_is_seen(naive):
    _, tails = TAILED["sigmoid"]
    assert tail_error(CallUnderTest(naive, ()), tails) >= 0.5


def test_accuracy_is_refuted_where_a_rule_loses_its_tails():
    (sigmoid,) = find("sigmoid")
    naive = replace(sigmoid, fn=lambda x: 1 / (1 + jnp.exp(-x)))
    failures = verify_rule(naive, claims=("accuracy",)).failures
    assert {f.message.partition(":")[0] for f in failures} == {"float32", "bfloat16", "float16"}
    assert all("in the tails" in f.message for f in failures)
    assert verify_rule(sigmoid, claims=("accuracy",)).ok


def test_tails_of_the_records_are_exact_to_decimals():
    t = log_spaced("bfloat16", count=8)
    with localcontext() as context:
        context.prec = 80
        for name, twice in (("sigmoid", 1), ("tanh", 2)):
            e = [(-twice * Decimal(float(abs(x)))).exp() for x in t]
            exact = [float(twice**2 * v / (1 + v) ** 2) for v in e]
            _, tails = TAILED[name]
            np.testing.assert_allclose(tails(t).exact[0], exact, rtol=1e-14)
    x, y, rest = saturating(t)
    for row, *found in zip(x, y, rest, strict=True):
        np.testing.assert_allclose(found, softmax_in_decimals(row), rtol=1e-13)


def slopes_in_decimals(x):
    """Returns the slopes of the smooth activations at a number, by their textbook formulas, to 120 digits."""
    one, two, e = Decimal(1), Decimal(2), x.exp()
    c, pi = Decimal("0.044715"), Decimal("3.14159265358979323846264338327950288419716939937510")
    u = ((two / pi).sqrt() * (x + c * x**3) * 2).exp()
    t, du = (u - 1) / (u + 1), (two / pi).sqrt() * (1 + 3 * c * x**2)
    w = ((1 + e) ** 2 - 1) / ((1 + e) ** 2 + 1)
    return {
        "silu": e / (1 + e) + x * e / (1 + e) ** 2,
        "gelu": (1 + t) / 2 + x / 2 * (1 - t**2) * du,
        "softplus": e / (1 + e),
        "log_sigmoid": one / (1 + e),
        "mish": w + x * (1 - w**2) * e / (1 + e),
        "elu": e if x <= 0 else one,
        "celu": e if x <= 0 else one,
    }


def test_tails_of_activations_are_exact_to_decimals():
    t = log_spaced("bfloat16", count=12)
    t = t[np.abs(t) < 9]  # the exponent of gelu is a polynomial, of which float64 has 13 digits there
    with localcontext() as context:
        context.prec = 120
        exact = [slopes_in_decimals(Decimal(float(x))) for x in t]
    for name in exact[0]:
        _, tails = TAILED[name]
        np.testing.assert_allclose(tails(t).exact[0], [float(row[name]) for row in exact], rtol=2e-13)


@by_dtype
def test_every_component_of_the_jacobians_of_softmax_and_its_logarithm(dtype):
    x, y, rest = saturating(log_spaced(dtype))
    own = np.eye(3, dtype=bool)
    of_log = np.where(own, rest[:, :, None], -y[:, None, :])
    xs = jnp.asarray(x, dtype)
    assert_every_component_right(jax.vmap(jax.jacrev(vl.log_softmax))(xs), of_log, dtype)
    assert_every_component_right(jax.vmap(jax.jacrev(vl.softmax))(xs), y[:, :, None] * of_log, dtype)


@by_dtype
@pytest.mark.parametrize("label", CLASSES)
def test_every_component_of_the_gradients_of_the_cross_entropies(label, dtype):
    x, y, rest = saturating(log_spaced(dtype))
    one_hot = np.eye(3)[label]
    exact = np.where(one_hot, -rest, y)
    xs, p = jnp.asarray(x, dtype), jnp.broadcast_to(jnp.asarray(one_hot, dtype), x.shape)
    by_integer = jax.grad(lambda x: jnp.sum(vl.softmax_cross_entropy_with_integer_labels(x, jnp.full(len(x), label))))
    assert_every_component_right(by_integer(xs), exact, dtype)
    dlogits, dlabels = jax.grad(lambda x, p: jnp.sum(vl.softmax_cross_entropy(x, p)), (0, 1))(xs, p)
    assert_every_component_right(dlogits, exact, dtype)
    assert_every_component_right(dlabels, np.log1p(rest / y), dtype)


@by_dtype
def test_labels_that_are_smooth_keep_every_component(dtype):
    x, y, _ = saturating(log_spaced(dtype))
    p = np.array([1.0, 2.0**-9, 0.0])  # of which the second is lost in a sum of bfloat16, and 1 - p_0 is not
    exact = y * (p.sum() - p) - p * (1 - y)
    far = np.abs(exact) > 1e-2 * (y * p.sum() + p)  # elsewhere label and softmax themselves cancel
    dlogits = jax.grad(lambda x: jnp.sum(vl.softmax_cross_entropy(x, jnp.broadcast_to(jnp.asarray(p, dtype), x.shape))))
    found = np.asarray(dlogits(jnp.asarray(x, dtype)), np.float64)
    np.testing.assert_allclose(found[far], exact[far], rtol=BOUNDS[dtype])


@by_dtype
@pytest.mark.parametrize("height", [12.0, 20.0, 60.0])
def test_one_large_logit_among_a_thousand(height, dtype):
    """The order in which a compiler sums does not matter."""
    rng = np.random.default_rng(0)
    x = np.asarray(jnp.asarray(rng.standard_normal((4, 1000)), dtype), np.longdouble)
    x[np.arange(4), [0, 1, 500, 999]] = height
    g = np.asarray(jnp.asarray(rng.uniform(1, 2, x.shape), dtype), np.longdouble)
    top = x == height
    e = np.exp(x - height)
    y = e / e.sum(-1, keepdims=True)
    # Of softmax, the cotangent of the largest is 0, so that no terms of other signs meet; of its logarithm, 1 alone.
    of_softmax = y * (np.where(top, 0, g) - np.where(top, 0, g * y).sum(-1, keepdims=True))
    of_log = np.where(top, np.where(top, 0, y).sum(-1, keepdims=True), -y)
    for f, cotangent, exact in ((vl.softmax, np.where(top, 0, g), of_softmax), (vl.log_softmax, top, of_log)):
        _, pullback = jax.vjp(f, jnp.asarray(x, dtype))
        assert_every_component_right(pullback(jnp.asarray(cotangent, dtype))[0], exact.astype(float), dtype)
    labels = jnp.asarray([0, 1, 500, 999])
    loss = lambda x: jnp.sum(vl.softmax_cross_entropy_with_integer_labels(x, labels))  # noqa: E731
    assert_every_component_right(jax.jit(jax.grad(loss))(jnp.asarray(x, dtype)), -of_log.astype(float), dtype)


# --------------------------------------------------------------------------------------------------- second derivatives


@by_mode
@by_dtype
@pytest.mark.parametrize(("f", "twice"), [(vl.sigmoid, 1), (vl.tanh, 2)], ids=["sigmoid", "tanh"])
def test_second_derivative_near_zero_and_in_the_tails(f, twice, second, dtype):
    x = log_spaced(dtype, smallest=1e-6)
    e = np.exp(-twice * np.abs(x))
    exact = -(twice**3) * np.tanh(twice * x / 2) * e / (1 + e) ** 2
    assert_every_component_right(jax.vmap(second(jax.grad(f)))(jnp.asarray(x, dtype)), exact, dtype)


@by_mode
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "f",
    [vl.silu, vl.gelu, partial(vl.gelu, approximate=False), vl.softplus, vl.log_sigmoid, vl.mish, vl.elu, vl.celu],
    ids=["silu", "gelu", "gelu exact", "softplus", "log_sigmoid", "mish", "elu", "celu"],
)
def test_second_derivative_of_activations_in_the_tails(f, second, dtype):
    """In few digits it is what it is in float64, but beside the roots, where digits cancel in any formula."""
    x = log_spaced(dtype)
    with x64():
        exact = np.asarray(jax.jit(jax.vmap(second(jax.grad(f))))(jnp.asarray(x)))
    signs = np.sign(exact)
    single = np.concatenate(([True], (signs[1:-1] == signs[:-2]) & (signs[1:-1] == signs[2:]), [True]))
    assert single.mean() > 0.9
    found = jax.jit(jax.vmap(second(jax.grad(f))))(jnp.asarray(x, dtype))
    assert_every_component_right(found[single], exact[single], dtype)


@by_mode
@pytest.mark.parametrize("f", [vl.sigmoid, vl.tanh], ids=["sigmoid", "tanh"])
def test_third_derivative_at_zero(f, second):
    assert jax.grad(second(jax.grad(f)))(0.0) == {vl.sigmoid: -1 / 8, vl.tanh: -2}[f]


LOSSES = {
    "log_softmax": lambda x: -vl.log_softmax(x)[0],
    "softmax_cross_entropy": lambda x: vl.softmax_cross_entropy(x, jnp.array([1.0, 0.0, 0.0], x.dtype)),
    "softmax_cross_entropy_with_integer_labels": partial(vl.softmax_cross_entropy_with_integer_labels, labels=0),
}


@by_mode
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", LOSSES)
def test_every_component_of_the_hessian_where_the_label_is_likely(name, dtype, second):
    t = log_spaced(dtype, count=20)
    x, y, rest = saturating(t[t > 0])
    exact = y[:, :, None] * np.where(np.eye(3, dtype=bool), rest[:, :, None], -y[:, None, :])
    hessians = jax.jit(jax.vmap(second(jax.grad(LOSSES[name]))))
    assert_every_component_right(hessians(jnp.asarray(x, dtype)), exact, dtype)


# ---------------------------------------------------------------------------------------------------------- conventions


@pytest.mark.parametrize("extreme", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("place", CLASSES)
def test_extreme_cotangents_do_what_the_plain_formulas_do(place, extreme):
    for x in (np.array([20.0, 0.0, -1.5], np.float32), np.array([0.1, 0.0, -1.5], np.float32)):
        g = np.ones(3, np.float32)
        g[place] = extreme
        y = np.asarray(vl.softmax(x))
        with np.errstate(invalid="ignore"):
            plain = {vl.softmax: y * (g - np.sum(g * y)), vl.log_softmax: g - y * np.sum(g)}
        for f, expected in plain.items():
            np.testing.assert_array_equal(jax.vjp(f, x)[1](g)[0], expected)


@pytest.mark.parametrize("label", [3, -4, 100, -100])
def test_a_label_out_of_range_leaves_the_softmax(label):
    x = jnp.array([1.0, 2.0, 3.0])
    _, pullback = jax.vjp(vl.softmax_cross_entropy_with_integer_labels, x, jnp.array(label))
    np.testing.assert_allclose(pullback(jnp.float32(2))[0], 2 * jax.nn.softmax(x), rtol=1e-6)


@pytest.mark.parametrize("f", [vl.softmax, vl.log_softmax], ids=["softmax", "log_softmax"])
def test_ties_at_the_top_share_alike(f):
    _, pullback = jax.vjp(f, jnp.array([7.0, 7.0, -70.0]))
    np.testing.assert_allclose(
        pullback(jnp.array([1.0, 0, 0]))[0][:2], {vl.softmax: 0.25, vl.log_softmax: 0.5}[f] * np.array([1, -1])
    )
