"""The functions stand in for JAX's and optax's: they take what those take, and give what those give."""

import itertools
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import export

import vjplib
from vjplib.compat import x64
from vjplib.precision import upcast
from vjplib.rules._arguments import as_inexact

vl: Any = vjplib  # calls that a type checker refuses are among these


def plain_quadratic(x, y):
    return 4 * x + 7 * y**2


def plain_linear(x, W, b=None):
    return x @ W.T if b is None else x @ W.T + b


ALPHAS = np.array([0.5, 1, 2], np.float32)
ONE_ARRAY = {
    "relu": (vl.relu, jax.nn.relu),
    "tanh": (vl.tanh, jnp.tanh),
    "sigmoid": (vl.sigmoid, lambda x: jax.nn.sigmoid(as_inexact("x", x))),  # JAX's takes no integers
    "prod": (vl.prod, jnp.prod),
}
ACTIVATIONS = {
    "gelu": (vl.gelu, jax.nn.gelu),
    "gelu, exact": (partial(vl.gelu, approximate=False), partial(jax.nn.gelu, approximate=False)),
    "silu": (vl.silu, lambda x: jax.nn.silu(as_inexact("x", x))),
    "softplus": (vl.softplus, lambda x: jax.nn.softplus(as_inexact("x", x))),
    "log_sigmoid": (vl.log_sigmoid, lambda x: jax.nn.log_sigmoid(as_inexact("x", x))),
    "mish": (vl.mish, lambda x: jax.nn.mish(as_inexact("x", x))),
    "elu": (partial(vl.elu, alpha=0.5), lambda x: jax.nn.elu(as_inexact("x", x), 0.5)),
    "elu of an array": (partial(vl.elu, alpha=ALPHAS), lambda x: jax.nn.elu(jnp.asarray(x), jnp.asarray(ALPHAS))),
    "selu": (vl.selu, lambda x: jax.nn.selu(as_inexact("x", x))),
    "celu": (partial(vl.celu, alpha=2), lambda x: jax.nn.celu(as_inexact("x", x), 2)),
    "hard_silu": (vl.hard_swish, lambda x: jax.nn.hard_silu(as_inexact("x", x))),
    "relu6": (vl.relu6, jax.nn.relu6),
}
LOG_SUMS = (vl.logsumexp, lambda a, **options: jax.nn.logsumexp(as_inexact("a", a), **options))
SOFTMAXES = {"softmax": (vl.softmax, jax.nn.softmax), "log_softmax": (vl.log_softmax, jax.nn.log_softmax)}
TWO_ARRAYS = {"multiply": (vl.multiply, jnp.multiply), "quadratic": (vl.quadratic, plain_quadratic)}
GATED = {
    "swiglu": (vl.swiglu, lambda gate, x: jax.nn.silu(as_inexact("gate", gate)) * x),
    "geglu": (vl.geglu, lambda gate, x: jax.nn.gelu(gate) * x),
}
CROSS_ENTROPY = (vl.softmax_cross_entropy, optax.softmax_cross_entropy)
INTEGER_CROSS_ENTROPY = (
    vl.softmax_cross_entropy_with_integer_labels,
    optax.softmax_cross_entropy_with_integer_labels,
)

NUMBERS = np.array([[1.5, 2, -1], [0.25, 3, 1]])
DTYPES = ("bool", "int8", "uint8", "int32", "float16", "bfloat16", "float32", "complex64")
WIDE_DTYPES = ("int64", "float64", "complex128")
SCALARS = {"True": True, "2": 2, "0.5": 0.5, "0.5j": 0.5j, "float32(0.5)": np.float32(0.5), "int8(2)": np.int8(2)}


def array(dtype):
    return jnp.asarray(NUMBERS + (1j * NUMBERS[::-1] if dtype.startswith("complex") else 0)).astype(dtype)


def require_same(ours, incumbent, *arguments, **options):
    """Requires the same value, shape, dtype and weak type, and the same derivative where the incumbent has one."""
    y = ours(*arguments, **options)
    expected = jax.eval_shape(lambda: incumbent(*arguments, **options))
    assert (y.shape, y.dtype, y.weak_type) == (expected.shape, expected.dtype, expected.weak_type)
    moving = [i for i, a in enumerate(arguments) if jnp.issubdtype(jnp.result_type(a), jnp.floating)]
    if not jnp.issubdtype(expected.dtype, jnp.floating):
        moving = []
    g = np.random.default_rng(1).standard_normal(expected.shape).astype(expected.dtype)

    def pulled(f, g, given):
        def moved(*given):
            every = list(arguments)
            for i, a in zip(moving, given, strict=True):
                every[i] = a
            return f(*every, **options)

        return jax.vjp(moved, *given)[1](g)

    @jax.jit  # one program: compiled operation by operation, the incumbent takes most of the time
    def compared(g, *given):
        y = incumbent(*arguments, **options)
        return y, [pulled(f, jnp.where(jnp.isfinite(y), g, 0), given) for f in (ours, incumbent) if moving]

    value, cotangents = compared(g, *(jnp.asarray(arguments[i]) for i in moving))
    require_close(y, value, expected.dtype)
    for dx, expected_dx, i in zip(*cotangents or ([], []), moving, strict=True):
        assert dx.dtype == expected_dx.dtype
        coarse = min((jnp.result_type(arguments[i]), expected.dtype), key=lambda d: jnp.finfo(d).bits)
        dx, expected_dx = (np.asarray(a, np.float64) for a in (dx, expected_dx))
        known = ~np.isnan(expected_dx)  # autodiff gives NaN beside a mask
        assert not np.isnan(dx).any()
        require_close(np.where(known, dx, 0), np.where(known, expected_dx, 0), coarse)


def require_close(y, expected, dtype):
    kind = complex if jnp.issubdtype(dtype, jnp.complexfloating) else float
    eps = float(jnp.finfo(dtype).eps) if jnp.issubdtype(dtype, jnp.inexact) else 0
    y, expected = (np.asarray(a).astype(kind) for a in (y, expected))
    size = np.max(np.abs(expected), initial=1, where=np.isfinite(expected))
    np.testing.assert_allclose(y, expected, rtol=20 * eps, atol=20 * eps * size)


# ------------------------------------------------------------------------------------------------------------- dtypes


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", [*ONE_ARRAY, *SOFTMAXES])
def test_arrays_of_every_dtype(name, dtype):
    x = array(dtype)
    if name in SOFTMAXES and dtype in ("bool", "uint8"):
        # jax.nn's refuse booleans and wrap unsigned integers around; their numbers are what is right.
        require_same(SOFTMAXES[name][0], lambda x: SOFTMAXES[name][1](x.astype(np.float32)), x)
    elif name in SOFTMAXES and dtype in ("int8", "int32"):
        with np.errstate(invalid="ignore"):  # of -inf, which they make an integer
            require_same(*SOFTMAXES[name], x)
    elif name in SOFTMAXES and dtype == "complex64":
        y, expected = (f(x) for f in SOFTMAXES[name])
        np.testing.assert_array_equal(y, expected)
    else:
        require_same(*{**ONE_ARRAY, **SOFTMAXES}[name], x)


@pytest.mark.parametrize("dtype", ["bool", "int32", "bfloat16", "float32"])  # jax.nn refuses most complex ones
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_of_every_dtype(name, dtype):
    require_same(*ACTIVATIONS[name], array(dtype))


@pytest.mark.parametrize("number", ["2", "0.5"])
@pytest.mark.parametrize("name", [name for name in ACTIVATIONS if "array" not in name])
def test_activations_of_scalars(name, number):
    require_same(*ACTIVATIONS[name], SCALARS[number])


@pytest.mark.parametrize(
    ("gate", "x"),
    [
        ("float32", "float32"),
        ("bfloat16", "bfloat16"),
        ("float32", "int32"),
        ("int32", "float32"),
        ("float32", "float16"),
    ],
)
@pytest.mark.parametrize("name", GATED)
def test_gated_activations_of_pairs(name, gate, x):
    require_same(*GATED[name], array(gate), array(x)[:1])


@pytest.mark.parametrize("axis", [-1, 0])
@pytest.mark.parametrize("dtype", ["int32", "bfloat16", "float32"])
def test_glu_of_halves(dtype, axis):
    x = jnp.concatenate((array(dtype), array(dtype)[::-1]), axis)
    require_same(vl.glu, lambda x, axis: jax.nn.glu(as_inexact("x", x), axis), x, axis=axis)


@pytest.mark.parametrize("dtype", WIDE_DTYPES)
@pytest.mark.parametrize("name", ONE_ARRAY)
def test_arrays_of_every_wide_dtype(name, dtype):
    with x64():
        require_same(*ONE_ARRAY[name], array(dtype))


@pytest.mark.parametrize("dtype", ["int8", "uint16", "int32", "int64"])
@pytest.mark.parametrize("name", SOFTMAXES)
def test_the_float_that_integers_make_under_x64(name, dtype):
    with x64():
        x = jnp.asarray(np.abs(NUMBERS)).astype(dtype)
        assert SOFTMAXES[name][0](x).dtype == jax.nn.softmax(x).dtype  # jax.nn.log_softmax of integers warns


def test_numpy_s_integers_are_options():
    x = jnp.ones((2, 3, 4))
    assert vl.softmax(x, axis=np.array([0, 2])).shape == x.shape
    assert float(jax.grad(lambda x: vl.relu(x, np.int64(0)))(0.0)) == 0


@pytest.mark.parametrize("number", SCALARS)
@pytest.mark.parametrize("name", ONE_ARRAY)
def test_scalars_of_python_and_numpy(name, number):
    require_same(*ONE_ARRAY[name], SCALARS[number])


def test_a_weak_array_stays_weak_where_the_incumbent_leaves_it_weak():
    weak = jnp.full((2, 3), 0.5) * jnp.asarray(2.0)
    for pair in ONE_ARRAY.values():
        require_same(*pair, jnp.asarray(0.5))
        require_same(*pair, weak)
    require_same(*SOFTMAXES["softmax"], jax.lax.broadcast(jnp.asarray(0.5), (3,)))


@pytest.mark.parametrize("name", TWO_ARRAYS)
def test_every_pair_of_dtypes(name):
    ours, incumbent = TWO_ARRAYS[name]
    for a, b in itertools.product(("bool", "uint8", "int32", "float16", "bfloat16", "float32", "complex64"), repeat=2):
        require_same(ours, incumbent, array(a), array(b)[:1])


@pytest.mark.parametrize("number", SCALARS)
@pytest.mark.parametrize("dtype", ["bool", "int32", "bfloat16", "float32"])
def test_products_with_scalars(dtype, number):
    require_same(*TWO_ARRAYS["multiply"], array(dtype), SCALARS[number])
    require_same(*TWO_ARRAYS["multiply"], SCALARS[number], array(dtype))


@pytest.mark.parametrize(("x", "W"), list(itertools.product(["int32", "bfloat16", "float32", "complex64"], repeat=2)))
def test_the_linear_map_of_every_dtype_and_any_bias(x, W):
    require_same(vl.linear, plain_linear, array(x), array(W))
    for b in (array(W)[:, 0], array(W)[0, :1], array("float32")[:, :2], array("int32")[0, 0]):
        require_same(vl.linear, plain_linear, array(x), array(W), b)


@pytest.mark.parametrize("dtype", ["bool", "int8", "int32", "bfloat16", "float32"])
def test_targets_and_one_hot_labels_of_every_dtype(dtype):
    x = array("float32")
    require_same(vl.squared_error, optax.squared_error, x, array(dtype))
    require_same(*CROSS_ENTROPY, x, array(dtype))


ELEMENTWISE_LOSSES = {
    "huber_loss": (vl.huber_loss, optax.huber_loss),
    "log_cosh": (vl.log_cosh, optax.log_cosh),
    "sigmoid_binary_cross_entropy": (vl.sigmoid_binary_cross_entropy, optax.sigmoid_binary_cross_entropy),
    "sigmoid_focal_loss": (vl.sigmoid_focal_loss, optax.sigmoid_focal_loss),
}


@pytest.mark.parametrize("dtype", ["bool", "int8", "bfloat16", "float32"])
@pytest.mark.parametrize("name", ELEMENTWISE_LOSSES)
def test_losses_with_targets_of_every_dtype_that_broadcast(name, dtype):
    labels = jnp.asarray(NUMBERS > 1).astype(dtype)
    if labels.dtype in (jnp.bfloat16, jnp.float32):
        labels = labels / 2 + 0.25  # at 0 and 1 optax's focal loss has no gradient in labels through their logarithm
    require_same(*ELEMENTWISE_LOSSES[name], array("float32"), labels)
    require_same(*ELEMENTWISE_LOSSES[name], array("bfloat16")[0], labels)
    require_same(*ELEMENTWISE_LOSSES[name], jnp.float32(0.5), labels[:, :1])


@pytest.mark.parametrize("options", [{"delta": 2}, {"delta": np.float32(0.5)}, {"delta": np.array([0.5, 1.0, 2.0])}])
def test_huber_losses_of_every_bound(options):
    for dtype in ("bfloat16", "float32"):
        require_same(*ELEMENTWISE_LOSSES["huber_loss"], array(dtype), **options)


@pytest.mark.parametrize("options", [{"alpha": 0.25}, {"gamma": 0}, {"gamma": 1.5, "alpha": np.float32(0.5)}])
def test_focal_losses_of_every_weight_and_exponent(options):
    labels = np.array([[0.25, 0.875, 0.125], [0.5, 0.25, 0.75]])
    require_same(*ELEMENTWISE_LOSSES["sigmoid_focal_loss"], array("float32"), labels, **options)


@pytest.mark.parametrize("name", ["huber_loss", "sigmoid_focal_loss"])
def test_parameters_of_losses_have_optax_s_gradients(name):
    x, labels = array("float32"), jnp.array([[0.25, 0.5, 0.75], [0.0, 1.0, 0.5]])
    if name == "huber_loss":
        calls = [lambda a, b, f=f: (f(x, labels, delta=a) * x + b).sum() for f in ELEMENTWISE_LOSSES[name]]
    else:
        calls = [lambda a, b, f=f: (f(x, labels, alpha=a, gamma=b) * x).sum() for f in ELEMENTWISE_LOSSES[name]]
    ours, theirs = (jax.grad(f, (0, 1))(0.75, jnp.float32(1.5)) for f in calls)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)


DIVERGENCE = (vl.kl_divergence, optax.kl_divergence)


@pytest.mark.parametrize(
    "options",
    [{}, {"axis": None}, {"axis": (0, -1)}, {"where": NUMBERS > 0}, {"axis": 0, "where": NUMBERS[:, :1] > 1}],
    ids=["plain", "all axes", "two axes", "masked", "masked by rows"],
)
def test_divergences_with_options(options):
    q, t = jax.nn.log_softmax(array("float32")), jax.nn.softmax(array("float32")[::-1])
    require_same(*DIVERGENCE, q, t, **options)
    require_same(*DIVERGENCE, q[0], t, **options)


@pytest.mark.parametrize("labels", [np.eye(4)[:2], np.eye(4)[1], np.eye(4), np.ones((2, 1))])
def test_safe_cross_entropies_of_labels_that_broadcast(labels):
    logits = LOGITS[0] if labels.shape == (4, 4) else LOGITS
    require_same(vl.safe_softmax_cross_entropy, optax.safe_softmax_cross_entropy, logits, jnp.asarray(labels))


# ------------------------------------------------------------------------------------------------------------- options

PRODUCTS = {
    "of dtype float16": {"dtype": jnp.float16},
    "of dtype float": {"dtype": float, "axis": 0},
    "of dtype int": {"dtype": int},
    "of dtype complex": {"dtype": complex},
    "initial": {"initial": 2},
    "initial of a NumPy dtype": {"initial": np.float16(1.5), "axis": -1},
    "masked": {"where": np.array([True, False, True]), "axis": 1, "keepdims": True},
    "masked by rows, initial": {"where": np.array([[True], [False]]), "axis": 0, "initial": 1.5},
    "masked by one boolean": {"where": True},
    "masked by more rows": {"where": np.array([[True], [False], [True]]), "axis": 0},
    "integers not promoted": {"promote_integers": False},
    "no axis": {"axis": ()},
    "axes in a list": {"axis": [0, -1]},
}


@pytest.mark.parametrize("dtype", ["int8", "bfloat16", "float32"])
@pytest.mark.parametrize("options", PRODUCTS)
def test_products_with_options(options, dtype):
    x = array(dtype)
    x = x[:1] if "more rows" in options else x
    require_same(vl.prod, jnp.prod, x, **PRODUCTS[options])


def test_a_masked_product_has_the_derivative_of_the_rule():
    x, where = jnp.array([2.0, 0.0, jnp.nan, 5.0]), jnp.array([True, True, False, True])
    assert jax.grad(vl.prod)(x, where=where, initial=3.0).tolist() == [0.0, 30.0, 0.0, 0.0]
    assert jax.grad(lambda initial: vl.prod(x, where=where, initial=initial))(3.0) == 0.0
    program = str(jax.make_jaxpr(jax.grad(lambda x: vl.prod(x, where=where, initial=3.0)))(x))
    assert "reduce_prod" in program
    assert "cumprod" not in program  # autodiff of jnp.prod has them


def test_positions_and_keywords_are_those_of_the_incumbents():
    x = array("float32")
    assert vl.prod(x, 0, None, None, True).shape == (1, 3)
    assert vl.prod(a=x, where=x > 0) == jnp.prod(x, where=x > 0)
    assert jax.grad(vl.prod)(x, where=x > 0, keepdims=False).shape == x.shape
    np.testing.assert_array_equal(vl.softmax(x=x, axis=0), vl.softmax(x, 0))
    np.testing.assert_array_equal(
        vl.softmax_cross_entropy(labels=x, logits=x, where=None), vl.softmax_cross_entropy(x, x)
    )
    np.testing.assert_array_equal(vl.linear(W=x, x=x), vl.linear(x, x))
    np.testing.assert_array_equal(vl.squared_error(targets=x, predictions=x), jnp.zeros((2, 3)))


@pytest.mark.parametrize("name", SOFTMAXES)
@pytest.mark.parametrize(
    "options",
    [{"axis": None}, {"axis": (0, 1)}, {"axis": ()}, {"where": NUMBERS > 0}, {"where": NUMBERS > -2}],
    ids=["all axes", "two axes", "no axis", "masked", "nothing masked"],
)
def test_softmax_with_options(name, options):
    require_same(*SOFTMAXES[name], array("float32"), **options)


@pytest.mark.parametrize("name", SOFTMAXES)
def test_one_slice_under_several_masks(name):
    require_same(*SOFTMAXES[name], array("float32")[:1], where=np.array([[True, True, False], [False, True, True]]))


@pytest.mark.parametrize("dtype", ["int32", "float16", "bfloat16", "float32"])
@pytest.mark.parametrize(
    "options",
    [{}, {"axis": 0}, {"axis": (0, 1), "keepdims": True}, {"where": NUMBERS > 0}, {"axis": -1, "where": NUMBERS > -2}],
    ids=["all", "axis", "kept", "masked", "nothing masked"],
)
def test_logsumexp_with_options(options, dtype):
    def theirs(a, **options):  # in half precision jax.nn's rounds each exponential
        return LOG_SUMS[1](upcast(as_inexact("a", a)), **options).astype(as_inexact("a", a).dtype)

    require_same(LOG_SUMS[0], theirs, array(dtype), **options)


def test_logsumexp_goes_to_jax_with_factors_signs_and_complex_numbers():
    x, b = array("float32"), jnp.array([1.0, -2.0, 3.0])
    np.testing.assert_array_equal(vl.logsumexp(x, 1, b), jax.nn.logsumexp(x, 1, b))
    ours, theirs = (f(x, b=b, return_sign=True) for f in (vl.logsumexp, jax.nn.logsumexp))
    np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_array_equal(vl.logsumexp(array("complex64")), jax.nn.logsumexp(array("complex64")))


def test_sparsemax_is_the_projection_on_the_simplex():
    x = jnp.asarray(np.random.default_rng(0).standard_normal((4, 7)), jnp.float32)
    project = jax.vmap(optax.projections.projection_simplex)
    require_same(vl.sparsemax, project, x)
    np.testing.assert_allclose(vl.sparsemax(x, 0), project(x.T).T, atol=1e-6)
    np.testing.assert_allclose(vl.sparsemax(1e6 * x).sum(-1), 1, rtol=1e-6)
    assert vl.sparsemax(jnp.arange(3)).tolist() == [0, 0, 1]


# ------------------------------------------------------------------------------------------------------------- labels

LOGITS = jnp.asarray(np.random.default_rng(0).standard_normal((2, 4)), jnp.float32)


@pytest.mark.parametrize(
    ("logits", "labels"),
    [
        (LOGITS, np.eye(4, dtype=np.float32)[1]),
        (LOGITS, np.ones((2, 1), np.float32)),
        (LOGITS[0], np.eye(4, dtype=np.int32)),
        (LOGITS[:1], np.eye(4, dtype=bool)),
        (LOGITS, 1.0),
        (LOGITS[:, :1], LOGITS),
    ],
    ids=["a row", "a column", "one slice of logits", "one row of logits", "a number", "one class"],
)
def test_labels_that_broadcast(logits, labels):
    require_same(*CROSS_ENTROPY, logits, labels)
    require_same(*CROSS_ENTROPY, logits, labels, axis=None) if jnp.ndim(logits) == jnp.ndim(labels) else None


@pytest.mark.parametrize("where", [np.array([True, False]), np.array([[True, True, False, True]])])
def test_labels_that_broadcast_under_a_mask(where):
    require_same(*CROSS_ENTROPY, LOGITS, np.eye(4, dtype=np.float32)[:1], where=jnp.asarray(where))
    require_same(*INTEGER_CROSS_ENTROPY, LOGITS, np.array([1]), where=jnp.asarray(where))


@pytest.mark.parametrize(
    ("logits", "labels", "axis"),
    [
        (LOGITS, [3], -1),
        (LOGITS[:1], [1, 2, 3], -1),
        (LOGITS[:, None], [[0, 1, 2]], 2),
        (LOGITS[:, :, None], [[1], [0]], 1),
        (LOGITS.reshape(1, 2, 2, 2), [[1], [2]], (3, 1)),
    ],
    ids=["one label", "one row of logits", "both", "an axis between", "two axes"],
)
def test_integer_labels_that_broadcast(logits, labels, axis):
    require_same(*INTEGER_CROSS_ENTROPY, logits, np.array(labels), axis=axis)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int32, np.uint32])
@pytest.mark.parametrize("label", [0, 3, 4, 100, -1, -4, -5, -100])
def test_labels_outside_the_classes_have_optax_s_value_and_gradient(label, dtype):
    labels = jnp.full((2,), label, np.int32).astype(dtype)
    ours, theirs = (f(LOGITS, labels) for f in INTEGER_CROSS_ENTROPY)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)
    if label in (4, 100, -5, -100):
        assert jnp.isnan(ours).all()
    for where in (None, jnp.array([True, False])):
        ours, theirs = (
            jax.grad(lambda x, f=f, where=where: f(x, labels, where=where).sum())(LOGITS) for f in INTEGER_CROSS_ENTROPY
        )
        kept = slice(None) if where is None else slice(1)  # in a slice wholly masked optax's gradient is NaN
        np.testing.assert_allclose(ours[kept], theirs[kept], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("logits", "labels", "paddings"),
    [("float16", "int8", bool), ("bfloat16", "uint8", np.int32), ("float32", "int32", np.float32)],
)
def test_labels_of_unknown_places_of_every_dtype(logits, labels, paddings):
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 6, 4)), logits)
    given = {"labels": jnp.asarray([[1, 1], [2, 3]], labels), "label_paddings": np.array([[0.0, 0], [0, 1]])}
    frames = np.arange(6) >= np.array([[6], [4]])

    def theirs(logits, **options):  # in half precision optax's rounds each log-softmax
        return optax.ctc_loss(upcast(logits), **options)

    require_same(vl.ctc_loss, theirs, x, logit_paddings=frames.astype(paddings), blank_id=0, log_epsilon=-50, **given)


def test_losses_of_no_class_are_optax_s():
    require_same(*CROSS_ENTROPY, LOGITS[:, :0], LOGITS[:, :0])
    ours, theirs = (f(LOGITS[:, :0], jnp.array([0, 1])) for f in INTEGER_CROSS_ENTROPY)
    np.testing.assert_array_equal(ours, theirs)


# ------------------------------------------------------------------------------------------------------------- lists

LISTS = {
    "relu": lambda x: vl.relu([[x, -1.0]]),
    "tanh": lambda x: vl.tanh((x, 1)),
    "sigmoid": lambda x: vl.sigmoid([x]),
    "quadratic": lambda x: vl.quadratic(x, [1, 2.0]),
    "multiply": lambda x: vl.multiply((1, 2), x),
    "prod": lambda x: vl.prod([x, 2.0], where=[True, False], initial=3),
    "linear": lambda x: vl.linear([x, x], [[1, 2.0]], [3]),
    "softmax": lambda x: vl.softmax([x, 1.0, 3.0], where=[True, True, False]),
    "log_softmax": lambda x: vl.log_softmax((x, 1.0)),
    "softmax_cross_entropy": lambda x: vl.softmax_cross_entropy([x, 1.0], [0, 1]),
    "softmax_cross_entropy, logits alone": lambda x: vl.softmax_cross_entropy(jnp.stack([x, x]), [False, True]),
    "integer labels": lambda x: vl.softmax_cross_entropy_with_integer_labels([[x, 1.0]], [1], where=[[True, True]]),
    "squared_error": lambda x: vl.squared_error(jnp.stack([x, x]), [1.0, 2.0]),
    "huber_loss": lambda x: vl.huber_loss(jnp.stack([x, 2 * x]), [1, 2.0], delta=[0.75, 2.0]),
    "log_cosh": lambda x: vl.log_cosh([x, 2.0]),
    "sigmoid_binary_cross_entropy": lambda x: vl.sigmoid_binary_cross_entropy([x, 1.0], [False, True]),
    "sigmoid_focal_loss": lambda x: vl.sigmoid_focal_loss([x, 1.0], [0.5, 1], alpha=[0.25]),
    "safe_softmax_cross_entropy": lambda x: vl.safe_softmax_cross_entropy([x, 1.0], [0, 1]),
    "kl_divergence": lambda x: vl.kl_divergence([x, 1.0], [0.25, x], where=[True, True]),
    "squared_error of lists": lambda x: vl.squared_error([x, 2.0], [1, 2]),
}


@pytest.mark.parametrize("name", LISTS)
def test_lists_and_tuples_have_values_and_gradients(name):
    def loss(x):
        return jnp.sum(LISTS[name](x) ** 2)

    h = 2.0**-7
    slope = (loss(jnp.float32(0.5 + h)) - loss(jnp.float32(0.5 - h))) / (2 * h)
    np.testing.assert_allclose(jax.grad(loss)(0.5), slope, rtol=2e-3, atol=2e-3)


# ----------------------------------------------------------------------------------------------------- symbolic sizes

ROWS = jnp.asarray(np.random.default_rng(0).standard_normal((3, 5)), jnp.float32)
MASK = jnp.array([[True] * 4 + [False]] * 3)
EXPORTED = {
    "relu": (vl.relu, ("a, b",), (ROWS,)),
    "tanh": (vl.tanh, ("a, b",), (ROWS,)),
    "sigmoid": (vl.sigmoid, ("a, b",), (ROWS,)),
    "quadratic": (vl.quadratic, ("a, b", "b"), (ROWS, ROWS[0])),
    "gelu": (vl.gelu, ("a, b",), (ROWS,)),
    "elu": (vl.elu, ("a, b",), (ROWS,)),
    "relu6": (vl.relu6, ("a, b",), (ROWS,)),
    "glu": (lambda x: vl.glu(x, 1), ("a, 2, b",), (ROWS[:2].reshape(1, 2, 5),)),
    "swiglu": (vl.swiglu, ("a, b", "b"), (ROWS, ROWS[0])),
    "layer_norm": (vl.layer_norm, ("a, b", "b", "b"), (ROWS, ROWS[0], ROWS[1])),
    "layer_norm of all": (lambda x: vl.layer_norm(x, axis=None), ("a, b",), (ROWS,)),
    "rms_norm": (vl.rms_norm, ("a, b", "b"), (ROWS, ROWS[0])),
    "group_norm": (lambda x: vl.group_norm(x, num_groups=1), ("a, b, 5",), (ROWS.reshape(1, 3, 5),)),
    "weight_norm": (vl.weight_norm, ("a, b", "b"), (ROWS, ROWS[0])),
    "norm": (lambda x: vl.norm(x, axis=-1), ("a, b",), (ROWS,)),
    "normalize": (vl.normalize, ("a, b",), (ROWS,)),
    "multiply": (vl.multiply, ("a, b", "a, 1"), (ROWS, ROWS[:, :1])),
    "prod": (lambda x: vl.prod(x, -1), ("a, b",), (ROWS,)),
    "prod of all": (vl.prod, ("a, b",), (ROWS,)),
    "prod along a known axis": (lambda x: vl.prod(x, -1), ("a, 5",), (ROWS,)),
    "prod, masked": (lambda x, m: vl.prod(x, 0, where=m, initial=2.0), ("a, b", "a, b"), (ROWS, MASK)),
    "softmax": (vl.softmax, ("a, b",), (ROWS,)),
    "softmax, masked": (lambda x, m: vl.softmax(x, 0, m), ("a, b", "a, b"), (ROWS, MASK)),
    "log_softmax": (lambda x: vl.log_softmax(x, None), ("a, b",), (ROWS,)),
    "logsumexp": (lambda x: vl.logsumexp(x, -1), ("a, b",), (ROWS,)),
    "sparsemax": (vl.sparsemax, ("a, b",), (ROWS,)),
    "softmax_cross_entropy": (vl.softmax_cross_entropy, ("a, b", "a, b"), (ROWS, ROWS)),
    "labels that broadcast": (vl.softmax_cross_entropy, ("a, b", "b"), (ROWS, ROWS[0])),
    "integer labels": (INTEGER_CROSS_ENTROPY[0], ("a, b", "a"), (ROWS, jnp.array([1, 2, 4]))),
    "integer labels that broadcast": (INTEGER_CROSS_ENTROPY[0], ("a, b", "1"), (ROWS, jnp.array([1]))),
    "integer labels of two axes": (
        lambda x, labels: vl.softmax_cross_entropy_with_integer_labels(x, labels, (0, 2)),
        ("a, b, c", "b"),
        (ROWS.reshape(3, 1, 5), jnp.array([14])),
    ),
    "a linear layer's integer labels": (
        vl.linear_softmax_cross_entropy,
        ("a, n", "a", "n, m"),
        (ROWS, jnp.array([1, 2, 0]), ROWS.T),
    ),
    "a linear layer's integer labels, of each token": (
        lambda *a: vl.linear_softmax_cross_entropy(*a, reduction="none", label_smoothing=0.5),
        ("a, n", "a", "n, m"),
        (ROWS, jnp.array([1, 2, 0]), ROWS.T),
    ),
    "ctc_loss": (
        lambda x, frames, *labels: vl.ctc_loss(x, frames > 0, *labels),
        ("a, b, c", "a, b", "a, n", "a, n"),
        (jnp.stack([ROWS, ROWS**2], -1), 1.0 * ~MASK, jnp.array([[1, 1], [0, 1], [1, 0]]), jnp.zeros((3, 2))),
    ),
    "ctc_loss of several blocks": (
        lambda x, labels: vl.ctc_loss(x, jnp.zeros(x.shape[:2]), labels, jnp.zeros(labels.shape)),
        ("a, 70, c", "a, 2"),
        (jnp.sin(jnp.arange(420.0)).reshape(3, 70, 2), jnp.array([[1, 1], [0, 1], [1, 0]])),
    ),
    "squared_error": (vl.squared_error, ("a, b", "a, b"), (ROWS, ROWS + 1)),
    "huber_loss": (vl.huber_loss, ("a, b", "b"), (ROWS, ROWS[0] + 1)),
    "log_cosh": (vl.log_cosh, ("a, b", "b"), (ROWS, ROWS[0] + 1)),
    "sigmoid_binary_cross_entropy": (vl.sigmoid_binary_cross_entropy, ("a, b", "a, b"), (ROWS, MASK)),
    "sigmoid_focal_loss": (vl.sigmoid_focal_loss, ("a, b", "a, b"), (ROWS, MASK)),
    "safe_softmax_cross_entropy": (vl.safe_softmax_cross_entropy, ("a, b", "b"), (ROWS, MASK[0])),
    "kl_divergence": (vl.kl_divergence, ("a, b", "a, b"), (ROWS, jnp.exp(ROWS))),
    "linear": (vl.linear, ("a, n", "m, n", "m"), (ROWS, ROWS[:2], ROWS[0, :2])),
}


@pytest.mark.parametrize("name", EXPORTED)
def test_every_size_may_be_symbolic(name):
    f, shapes, arguments = EXPORTED[name]
    scope = export.SymbolicScope()
    given = [
        jax.ShapeDtypeStruct(export.symbolic_shape(shape, scope=scope), a.dtype)
        for shape, a in zip(shapes, arguments, strict=True)
    ]
    moving = tuple(i for i, a in enumerate(arguments) if jnp.issubdtype(a.dtype, jnp.floating))

    def loss(*arguments):
        return jnp.sum(jnp.sin(f(*arguments)))

    for g in (f, jax.grad(loss, argnums=moving)):
        jitted = jax.jit(g)
        found, expected = (jax.tree.leaves(h(*arguments)) for h in (export.export(jitted)(*given).call, jitted))
        for y, right in zip(found, expected, strict=True):
            np.testing.assert_allclose(y, right, rtol=2e-5, atol=1e-6)


# ----------------------------------------------------------------------------------------------------------- messages


def test_wrong_calls_are_refused_as_python_and_jax_do():
    x = array("float32")
    for f in (vl.relu, vl.tanh, vl.sigmoid, vl.prod, vl.softmax, vl.log_softmax):
        with pytest.raises(TypeError, match=rf"{f.__name__}\(\) got an unexpected keyword argument 'no_such_option'"):
            f(x, no_such_option=1)
        with pytest.raises(TypeError, match=rf"{f.__name__}\(\) missing 1 required positional argument: '[ax]'"):
            f()
        with pytest.raises(TypeError, match=r"[ax] must be an array of numbers, got str 'one'"):
            f("one")
    with pytest.raises(TypeError, match=r"multiply\(\) missing 1 required positional argument: 'y'"):
        vl.multiply(x)


BAD_OPTIONS = {
    "out": (lambda: vl.prod(NUMBERS, out=NUMBERS), ValueError, "out must be None"),
    "initial": (
        lambda: vl.prod(NUMBERS, initial=NUMBERS[0]),
        ValueError,
        r"initial must be a scalar, got shape \(3,\)",
    ),
    "mask of integers": (lambda: vl.prod(NUMBERS, where=NUMBERS.astype(int)), TypeError, "where must be boolean, got"),
    "mask of four": (
        lambda: vl.prod(NUMBERS, where=np.ones(4, bool)),
        ValueError,
        r"where and a must broadcast together, got shapes",
    ),
    "mask of more axes than logits": (
        lambda: vl.softmax_cross_entropy(LOGITS, LOGITS, where=np.ones((1, 2, 4), bool)),
        ValueError,
        "where must not have more axes than logits",
    ),
    "mask of more classes than logits": (
        lambda: vl.softmax_cross_entropy_with_integer_labels(LOGITS[:, :1], [0, 0], where=np.ones((2, 4), bool)),
        ValueError,
        "where must not have more classes than logits",
    ),
}


@pytest.mark.parametrize("name", BAD_OPTIONS)
def test_bad_options_are_refused_by_name(name):
    call, error, message = BAD_OPTIONS[name]
    with pytest.raises(error, match=message):
        call()
