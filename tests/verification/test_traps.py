"""Every trap that authors of a custom_vjp fall into is named by the verifier, and explained on its page."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from test_complex import WRONG
from trapped_rules import NO_TRAP, OF_FAULTS, RIGHT, STANDARD, TRAPPED, V
from wrong_rules import FAULTS, rule

import vjplib
from vjplib.verification.explain.traps import TRAPS, anchor

NEWER = getattr(jax.config, "jax_custom_vjp3", False)  # JAX's coming implementation of custom_vjp
DOCS = Path(__file__).parents[2] / "docs"
OF_COMPLEX = {trap for *_, trap in WRONG.values() if trap}
ELSEWHERE = {"double-psum"}  # in test_sharding_claim.py
CALLS = {f"{trap}-{i}": (trap, call) for trap, calls in TRAPPED.items() for i, call in enumerate(calls)}


def examined(call):
    return vjplib.verify(call.fn, call.args, claims=call.claims, **{"effort": "quick", **call.options})


def of_fault(name):
    fault = FAULTS[name]
    effort = "standard" if name in STANDARD else "quick"
    return vjplib.verify(fault.fn, fault.args, reference=fault.reference, claims=fault.claims, effort=effort)


def named(report):
    return {finding.trap for finding in report.findings if finding.trap}


def test_every_trap_has_a_rule_that_fell_into_it():
    assert set(TRAPPED) | set(OF_FAULTS.values()) | OF_COMPLEX | ELSEWHERE == set(TRAPS)


@pytest.mark.parametrize("name", CALLS)
def test_trap_is_named(name):
    trap, call = CALLS[name]
    if trap == "optimize-remat" and NEWER:
        pytest.skip("the newer custom_vjp has second order with optimize_remat")
    report = examined(call)
    assert trap in {finding.trap for finding in report.failures}, report
    assert f"{TRAPS[trap].words}" in str(report)
    assert anchor(trap) in str(report)
    assert named(report) <= {trap, *ALSO.get(trap, ())}, report


# What else is said of a rule: one mistake may be two, and some versions of JAX refuse what others let pass.
ALSO: dict[str, tuple[str, ...]] = {
    "second-order-zero": ("forward-over-reverse",),
    "array-in-nondiff": ("cotangent-dtype",),
    "weak-type": ("cotangent-dtype", "forward-is-not-the-primal"),
}


@pytest.mark.parametrize("name", OF_FAULTS)
def test_trap_of_a_fault_is_named(name):
    report = of_fault(name)
    assert OF_FAULTS[name] in {finding.trap for finding in report.failures}, report
    assert named(report) == {OF_FAULTS[name]}, report


def test_a_tie_is_seen_at_ones_too():
    """Rounding the tied numbers apart would count as conditioning, and excuse everything."""
    report = of_fault("a tie paid in full to each")
    assert {"zeros", "ties"} <= {finding.message.split(":")[0] for finding in report.failures}


@pytest.mark.parametrize("name", NO_TRAP)
def test_no_trap_is_named_where_none_is_known(name):
    report = of_fault(name)
    assert report.failures
    assert named(report) == set(), report


@pytest.mark.parametrize("name", RIGHT)
def test_right_rule_of_the_kind_is_passed_without_a_trap(name):
    call = RIGHT[name]
    if name == "symbolic zeros" and jax.__version__.startswith("0.10.") and NEWER:
        call = call._replace(claims=("contract", "value", "second_order"))  # that version cannot checkpoint them
    report = examined(call)
    assert report.ok, report
    assert named(report) == set(), report


def test_a_static_argument_that_cannot_be_varied_is_noted():
    report = examined(RIGHT["any power"]._replace(options={"effort": "quick"}))
    assert any("static argument n was tried at 2 only" in finding.message for finding in report.findings)


def test_residuals_that_are_never_used_are_counted():
    keeps = rule(lambda x: 2 * x, lambda x: (2 * x, (x, jnp.exp(x))), lambda res, g: (2 * g + 0 * res[0],))
    (finding,) = vjplib.verify(keeps, (V,), claims=("residuals",)).findings
    assert (finding.level, finding.trap) == ("note", "residuals-kept")
    assert "28 of them the backward never uses" in finding.message


def test_the_page_explains_every_trap():
    page = (DOCS / "traps.md").read_text(encoding="utf-8")
    parts = re.split(r"^## (.*)$", page, flags=re.M)[1:]
    told = {heading.lower().replace(" ", "-"): text for heading, text in zip(parts[::2], parts[1::2], strict=True)}
    assert list(told) == list(TRAPS)
    for key in TRAPS:
        assert "Remedy: " in told[key] or ". Remedy" in told[key], key
