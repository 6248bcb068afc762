"""The verifier is verified: each wrong rule is caught by the claim that it breaks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from wrong_rules import FAULTS

import vjplib
from vjplib.compat import strip_custom_rules


@pytest.mark.parametrize("name", FAULTS)
def test_fault_is_caught(name):
    fault = FAULTS[name]
    options = {"reference": fault.reference, "claims": fault.claims, **fault.options}
    report = vjplib.verify(fault.fn, fault.args, **options)
    caught = {finding.claim for finding in report.failures}
    assert caught == set(fault.claims), report
    assert fault.raises or not any("raises" in finding.message for finding in report.failures), report


@pytest.mark.parametrize("name", FAULTS)
def test_the_same_function_differentiated_by_jax_raises_no_alarm(name):
    fault = FAULTS[name]
    primal = jax.nn.softmax if "overflow" in name else lambda *args: fault.fn(*args)
    report = vjplib.verify(strip_custom_rules(primal), fault.args, claims=(*fault.claims, "value"))
    assert report.ok, report


def test_failure_names_argument_claim_error_and_worst_index():
    fault = FAULTS["edge of the convolution"]
    report = vjplib.verify(fault.fn, fault.args, claims=("value",))
    (finding, *_) = report.failures
    assert (finding.claim, finding.argument, finding.index) == ("value", "cotangent of x", (0,))
    assert finding.ratio is not None
    assert finding.ratio > 1e3
    assert "the cotangent of x is wrong" in str(report)
    assert "worst at (0,)" in str(finding)


def test_a_wrong_second_derivative_is_placed():
    fault = FAULTS["second order wrong, first right"]
    report = vjplib.verify(fault.fn, fault.args, claims=("second_order",))
    said = {finding.message for finding in report.failures}
    assert said == {
        "reverse over reverse differs from the oracle in the derivative with respect to x",
        "forward over reverse differs from the oracle in the derivative of the cotangent of x",
    }


def test_assert_verified_raises_with_the_report():
    fault = FAULTS["sign"]
    with pytest.raises(vjplib.NotVerifiedError, match="cotangent of x") as caught:
        vjplib.assert_verified(fault.fn, fault.args, claims=("value",))
    assert not caught.value.report.ok


def test_same_seed_gives_the_same_findings():
    fault = FAULTS["0.1 % too large"]
    first, second = (vjplib.verify(fault.fn, fault.args, claims=("value", "linearity"), seed=7) for _ in range(2))
    assert first.findings == second.findings


def test_another_subgradient_is_a_note_unless_a_reference_states_one():
    """jnp.maximum's derivative at a tie is 1/2; a rule that takes 1 is right by its own convention."""
    x = np.array([0.5, -1.0, 2.0], np.float32)
    claims = ("edges",)
    chosen = vjplib.verify(vjplib.relu, (x,), claims=claims)
    assert chosen.ok, chosen
    assert any("subgradient" in finding.message for finding in chosen.findings)
    assert vjplib.verify(vjplib.relu, (x,), reference=lambda x: jnp.where(x >= 0, x, 0), claims=claims).ok
    assert not vjplib.verify(vjplib.relu, (x,), reference=lambda x: jnp.where(x > 0, x, 0), claims=claims).ok


def test_formula_at_odds_with_its_own_limit_is_not_held_against_the_rule():
    """JAX differentiates |x| at 0 to 1, and with it this smooth function to 0 in place of 1/2."""

    def softplus(x):
        return jnp.log1p(jnp.exp(-jnp.abs(x))) + jnp.maximum(x, 0)

    rule = jax.custom_vjp(softplus)
    rule.defvjp(lambda x: (softplus(x), x), lambda x, g: (g * jax.nn.sigmoid(x),))
    report = vjplib.verify(rule, (np.array([0.5, -1.0, 2.0], np.float32),), claims=("edges",))
    assert report.ok, report
    assert any("limit" in finding.message for finding in report.findings)
