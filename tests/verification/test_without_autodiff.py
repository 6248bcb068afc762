"""Taylor: a derivative is judged by steps alone where JAX cannot take it; noise and kinks decide nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from claims_at_a_call import examine
from jax.experimental import pallas as pl
from wrong_rules import normal, rule

import vjplib
from vjplib.rule import rules
from vjplib.verification.api import at_case

X, W = normal(5), normal(5)


def by_callback(x, w):
    return jax.pure_callback(
        lambda x, w: (np.sin(x) * w).astype(x.dtype),
        jax.ShapeDtypeStruct(x.shape, x.dtype),
        x,
        w,
        vmap_method="expand_dims",
    )


def by_single_precision(x, w):
    return jax.pure_callback(
        lambda x, w: np.sin(np.asarray(x, np.float32)) * np.asarray(w, np.float32),
        jax.ShapeDtypeStruct(x.shape, jnp.float32),
        x,
        w,
        vmap_method="expand_dims",
    )


def by_kernel(x, w):
    def kernel(x, w, y):
        y[...] = jnp.sin(x[...]) * w[...]

    return pl.pallas_call(kernel, out_shape=jax.ShapeDtypeStruct(x.shape, x.dtype), interpret=True)(x, w)


def by_loop(x, w):
    """sin(x) w by its series, ended where the terms no longer count."""

    def goes_on(state):
        k, term, _ = state
        return (k < 40) & (jnp.max(jnp.abs(term)) > 1e-17)

    def step(state):
        k, term, total = state
        term = -term * x * x / ((2 * k + 2) * (2 * k + 3))
        return k + 1, term, total + term

    return jax.lax.while_loop(goes_on, step, (0, x, x))[2] * w


def right(x, w, g):
    return g * w * jnp.cos(x), g * jnp.sin(x)


def scaled(dx=1.0, dw=1.0):
    def backward(x, w, g):
        first, second = right(x, w, g)
        return dx * first, dw * second

    return backward


def made(primal, backward):
    return rule(primal, lambda x, w: (primal(x, w), (x, w)), lambda res, g: backward(*res, g))


PRIMALS = {"callback": by_callback, "Pallas": by_kernel, "while": by_loop}
FAULTS = {
    "sign": (scaled(dx=-1.0), "x"),
    "a thousandth": (scaled(dw=1.001), "w"),
    "a factor missing": (lambda x, w, g: (g * jnp.cos(x), g * jnp.sin(x)), "x"),
    "one argument forgotten": (lambda x, w, g: (right(x, w, g)[0], jnp.zeros_like(w)), "w"),
    "swapped": (lambda x, w, g: right(x, w, g)[::-1], "x"),
}


def judged(fn, args, **options):
    report = vjplib.verify(fn, args, claims=("taylor",), **options)
    return {f.argument.removeprefix("cotangent of "): f for f in report.findings}


@pytest.mark.parametrize("primal", PRIMALS)
def test_right_rule_passes_without_a_reference(primal):
    found = judged(made(PRIMALS[primal], right), (X, W))
    assert {name: f.level for name, f in found.items()} == {"x": "pass", "w": "pass"}
    assert "falls as h^" in found["x"].message
    assert found["x"].data["order"] == pytest.approx(2, abs=0.1)
    assert len(found["x"].data["h"]) == len(found["x"].data["remainder"])
    assert "is 0, up to rounding" in found["w"].message  # the function is linear in it
    assert ("forward mode says the same" in found["x"].message) is (primal == "while" or primal == "Pallas")


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("primal", PRIMALS)
def test_wrong_rule_is_caught_and_its_argument_named(primal, fault):
    backward, argument = FAULTS[fault]
    found = judged(made(PRIMALS[primal], backward), (X, W))
    assert found[argument].level == "fail", found
    assert "falls as h^1.00, not h^2" in found[argument].message
    others = {f.level for name, f in found.items() if name != argument}
    assert others == ({"fail"} if fault == "swapped" else {"pass"})


def test_whole_report_of_a_primal_that_jax_cannot_differentiate():
    report = vjplib.verify(made(by_callback, right), (X, W), effort="quick")
    assert report.ok, report
    assert (report.level("value"), report.level("taylor")) == ("skipped", "pass")
    report = vjplib.verify(made(by_callback, scaled(dx=1.001)), (X, W), effort="quick")
    assert {(f.claim, f.argument) for f in report.failures} == {("taylor", "cotangent of x")}


def test_quick_leaves_it_out_where_autodiff_is_at_hand():
    assert vjplib.verify(vjplib.tanh, (X,), effort="quick").level("taylor") is None
    assert vjplib.verify(vjplib.tanh, (X,), claims=("taylor",)).level("taylor") == "pass"


def test_single_precision_inside_hides_what_is_small_and_no_more():
    assert judged(made(by_single_precision, scaled(dx=1.01)), (X, W))["x"].level == "fail"
    assert judged(made(by_single_precision, scaled(dx=1 + 1e-6)), (X, W))["x"].level != "fail"
    found = judged(made(by_single_precision, right), (X, W))
    assert {f.level for f in found.values()} <= {"pass", "skipped"}


def noisy(x):
    """tanh with a noise of a thousandth, the same for the same x."""

    def on_host(x):
        return np.tanh(x) * (1 + 1e-3 * np.modf(np.sin(x * 1e12) * 1e5)[0])

    return jax.pure_callback(on_host, jax.ShapeDtypeStruct(x.shape, x.dtype), x, vmap_method="expand_dims")


UNDECIDED = {
    "|x| at its kink": (
        rule(jnp.abs, lambda x: (jnp.abs(x), x), lambda x, g: (g * jnp.sign(x),)),
        np.array([0, 1, -2], np.float32),
    ),
    "relu of zeros": (vjplib.relu, np.zeros(5, np.float32)),
    "a step function at its steps": (
        rule(jnp.floor, lambda x: (jnp.floor(x), None), lambda _, g: (jnp.zeros_like(g),)),
        np.array([0, 1, -2], np.float32),
    ),
    "noise": (rule(noisy, lambda x: (noisy(x), x), lambda x, g: (g * (1 - jnp.tanh(x) ** 2),)), X),
}


@pytest.mark.parametrize("name", UNDECIDED)
def test_what_steps_cannot_decide_is_not_passed(name):
    fn, x = UNDECIDED[name]
    found = judged(fn, (x,))
    assert [f.level for f in found.values()] == ["skipped"], found
    assert "undecided" in found["x"].message


def test_a_derivative_made_up_for_a_step_function_is_not_its_derivative():
    straight_through = rule(jnp.floor, lambda x: (jnp.floor(x), None), lambda _, g: (g,))
    assert judged(straight_through, (np.array([0.5, 1.25, -2.5], np.float32),))["x"].level == "fail"


def test_kinks_a_step_away_do_not_confuse():
    x = np.array([0.5, -0.25, 2.0], np.float32)
    near = rule(lambda x: jnp.abs(x - 0.51), lambda x: (jnp.abs(x - 0.51), x), lambda x, g: (g * jnp.sign(x - 0.51),))
    assert judged(near, (x,))["x"].level == "pass"
    wrong = rule(lambda x: jnp.abs(x - 0.51), lambda x: (jnp.abs(x - 0.51), x), lambda x, g: (g * 1.001,))
    assert judged(wrong, (x,))["x"].level == "fail"


def test_a_derivative_of_zero_and_a_cubic_remainder():
    cube = rule(lambda x: x**3, lambda x: (x**3, x), lambda x, g: (3 * x * x * g,))
    found = judged(cube, (np.zeros(3, np.float32),))["x"]
    assert (found.level, found.data["order"]) == ("pass", pytest.approx(3, abs=0.1))


def test_a_kernel_of_single_precision_alone():
    def single(x):
        if x.dtype != jnp.float32:
            raise TypeError("float32 only")
        return jnp.sin(x)

    def backward(factor):
        return rule(single, lambda x: (single(x), x), lambda x, g: (factor * g * jnp.cos(x),))

    found = judged(backward(1.0), (X,))["x"]
    assert found.level in ("pass", "skipped")
    assert "in float32" in found.message
    assert judged(backward(1.01), (X,))["x"].level == "fail"


@pytest.mark.deep
@pytest.mark.parametrize("record", rules(), ids=lambda record: record.name)
def test_no_false_alarm_on_the_librarys_rules_at_random_sizes(record):
    rng = np.random.default_rng(9)
    for case in record.cases:
        for number in range(3):
            subject = at_case(record, case, number, **case.sizes(rng))
            assert not [f for f in examine(subject, claims=("taylor",)) if f.level == "fail"]


def test_a_clip_in_the_backward_of_a_kernel_that_adds_in_float32_is_named():
    """What the trap is looked for by, the casts of the oracle's backward, does not exist."""

    def kernel(x, w, y):
        y[...] = jnp.matmul(x[...], w[...], preferred_element_type=jnp.float32).astype(y.dtype)

    def matmul(x, w):
        shape = jax.ShapeDtypeStruct((x.shape[0], w.shape[1]), x.dtype)
        return pl.pallas_call(kernel, out_shape=shape, interpret=True)(x, w)

    def bwd(bound, res, g):
        x, w = res
        return matmul(jnp.clip(g, -bound, bound), w.T), matmul(x.T, g)

    for bound, level in ((np.inf, "pass"), (0.5, "fail")):
        fn = rule(matmul, lambda x, w: (matmul(x, w), (x, w)), lambda res, g, bound=bound: bwd(bound, res, g))
        report = vjplib.verify(fn, (normal(3, 7), normal(7, 5)), effort="quick", claims=("linearity",))
        assert report.level("linearity") == level, report
        assert not any("raises" in f.message for f in report.findings), report
