"""Second derivatives: what a rule offers is stated by mode, and the statement is put to the test."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from wrong_rules import rule

import vjplib
from vjplib.rule import Case, Input, Rule, second_derivatives
from vjplib.verification.api import verify_rule

X = np.linspace(0.5, 2.0, 7, dtype=np.float32)
REVERSE = {"reverse": False, "forward": True}


def newton(a):
    def unsettled(state):
        return jnp.max(jnp.abs(state[0] - state[1]) / state[0]) > 8 * jnp.finfo(a.dtype).eps

    return lax.while_loop(unsettled, lambda state: ((state[0] + a / state[0]) / 2, state[0]), ((a + 1) / 2, a + 2))[0]


def root():
    return rule(newton, lambda a: (newton(a), newton(a)), lambda y, g: (g / (2 * y),))


def second(fn, order_two: Any = True, **options):
    return vjplib.verify(fn, (X,), claims=("second_order",), order_two=order_two, **options)


def test_a_mode_that_is_refused_is_stated_and_shown():
    report = second(root(), REVERSE, reference=jnp.sqrt)
    assert report.ok, report
    messages = [f.message for f in report.findings]
    assert messages[0].startswith("reverse over reverse is refused, as declared, by ValueError")
    assert messages[1] == "forward over reverse equals the oracle"


@pytest.mark.parametrize("effort", ["quick", "standard"])
@pytest.mark.parametrize(("order_two", "code"), [(True, "raises"), (False, "not_refused")])
def test_a_failure_says_which_statement_holds(order_two, code, effort):
    report = second(root(), order_two, reference=jnp.sqrt, effort=effort)
    (failure,) = report.failures
    assert failure.code == code
    assert f"order_two={REVERSE}" in failure.message
    assert second(root(), REVERSE, reference=jnp.sqrt, effort=effort).ok


def test_a_statement_that_does_not_hold_fails_in_its_mode_alone():
    report = second(vjplib.tanh, {"forward": False})
    (failure,) = report.failures
    assert failure.message.startswith("forward over reverse is declared to be refused, yet runs: order_two=True")


def test_a_wrong_derivative_in_the_mode_that_runs_fails():
    wrong = rule(newton, lambda a: (newton(a), lax.stop_gradient(newton(a))), lambda y, g: (g / (2 * y),))
    failure = second(wrong, REVERSE, reference=jnp.sqrt).failures[-1]
    assert failure.message == "forward over reverse differs from the oracle in the derivative of the cotangent of a"


def straight_through(keep=lambda y: y, slope=lambda x: 1 / (1 + x**2)):
    """A step whose backward is that of arctan."""
    step = lambda x: (x > 1).astype(x.dtype)  # noqa: E731
    return rule(step, lambda x: (keep(step(x)), x), lambda x, g: (g * slope(x),))


def surrogate(x):
    return jnp.arctan(x) + lax.stop_gradient((x > 1).astype(x.dtype) - jnp.arctan(x))


def test_an_output_may_have_its_own_derivative_where_the_reference_has_a_surrogates():
    report = second(straight_through(), reference=surrogate)
    assert report.ok, report
    assert any("the derivative of output 0 is that of the function as it is written" in f.message for f in report.notes)


def test_the_cotangents_derivative_is_the_references():
    report = second(straight_through(slope=lambda x: lax.stop_gradient(1 / (1 + x**2))), reference=surrogate)
    assert {f.message.rpartition(" in ")[2] for f in report.failures} == {
        "the derivative with respect to x",
        "the derivative of the cotangent of x",
    }


def test_an_output_whose_derivative_is_neither_fails():
    fn = rule(jnp.sin, lambda x: (lax.stop_gradient(jnp.sin(x)), x), lambda x, g: (g * jnp.cos(x),))
    (failure,) = second(fn, reference=jnp.sin).failures
    assert failure.message == "forward over reverse differs from the oracle in the derivative of output 0"


def test_what_the_oracle_refuses_is_not_held_against_the_rule():
    once = rule(jnp.sin, lambda x: (jnp.sin(x), x), lambda x, g: (g * on_host(x),))
    report = second(once, reference=once)
    assert not report.failures, report
    assert all("so does that of the oracle" in f.message for f in report.notes)
    assert len(second(once).failures) == 2


def on_host(x):
    return jax.pure_callback(np.cos, jax.ShapeDtypeStruct(x.shape, x.dtype), x, vmap_method="expand_dims")


def test_a_record_states_it_too():
    def record(order_two):
        return Rule(fn=root(), reference=jnp.sqrt, baselines={}, cases=(CASE,), order_two=order_two)

    assert verify_rule(record(REVERSE), claims=("second_order",)).ok
    assert not verify_rule(record(True), claims=("second_order",)).ok
    with pytest.raises(ValueError, match="order_two must name modes among reverse, forward, got 'backward'"):
        record({"backward": True})


def positive(rng, shape, dims):
    return rng.uniform(0.5, 2, shape)


CASE = Case((Input("n", positive),), {"n": 5})


def test_a_statement_of_another_kind_is_refused():
    assert second_derivatives({}) == {"reverse": True, "forward": True}
    with pytest.raises(TypeError, match="order_two must be True, False or a mapping"):
        second(vjplib.tanh, "reverse")
    with pytest.raises(ValueError, match="order_two must name modes"):
        second(vjplib.tanh, {"reverse over reverse": False})
