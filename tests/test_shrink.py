"""Shrink: a failure comes with a counterexample of a few numbers, which fails where it is pasted."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_complex import WRONG
from wrong_rules import FAULTS, normal, rule

import vjplib
from vjplib.rule import rules
from vjplib.verification.api import at_case
from vjplib.verification.call import CallUnderTest
from vjplib.verification.explain import shrink

OF_VALUE = [name for name, fault in FAULTS.items() if {"value", "variations"} & set(fault.claims)]
AT_OTHER_SIZES = ("wrong for an axis of one", "wrong for even lengths")
MOST = 12  # numbers


@pytest.fixture
def in_time(monkeypatch):
    """Time enough, however slow the machine: the numbers of shapes and evaluations are the limit then."""
    monkeypatch.setattr(shrink, "SECONDS", 600.0)


def pasted(source, fn):
    """Returns what the rule gives and what it should give, by the counterexample's own account."""
    name = getattr(fn, "__name__", "fn")
    namespace = {name if name.isidentifier() else "fn": fn}
    exec(source, namespace)
    return np.asarray(namespace["given"]), np.asarray(namespace["right"]), namespace


def numbers(namespace):
    kept = {k: v for k, v in namespace.items() if k not in ("given", "right", "y", "pullback")}
    return sum(a.size for a in jax.tree.leaves(kept) if isinstance(a, (jax.Array, np.ndarray)))


def holds(source, fn, capsys):
    given, right, namespace = pasted(source, fn)
    assert given.shape == right.shape
    assert not np.allclose(given, right, rtol=5e-5, atol=1e-6)
    assert numbers(namespace) <= MOST
    assert "should be" in capsys.readouterr().out


@pytest.mark.parametrize("name", OF_VALUE)
@pytest.mark.usefixtures("in_time")
def test_failure_is_shown_on_a_few_numbers(name, capsys):
    fault = FAULTS[name]
    claims, effort = (("value", "variations"), "standard") if name in AT_OTHER_SIZES else (("value",), "quick")
    if name == "wrong for one scale of inputs":
        effort = "standard"
    report = vjplib.verify(fault.fn, fault.args, claims=claims, effort=effort)
    source = next(finding.counterexample for finding in report.findings if finding.counterexample)
    holds(source, fault.fn, capsys)


def add(p, n, *, twice):
    return jnp.sum(p["a"] * n + twice * p["b"]), jnp.argmax(p["b"])


WRITTEN = {
    "a complex rule": (*WRONG["the conjugate in multiply"][:2], {}),
    "a tree, integers, a switch and a second output": (
        lambda p, n, *, twice: rule(
            lambda p, n: add(p, n, twice=twice),
            lambda p, n: (add(p, n, twice=twice), (p, n)),
            lambda res, g: (
                {"a": jnp.full_like(res[0]["a"], g[0]) * res[1], "b": jnp.full_like(res[0]["b"], g[0])},
                None,
            ),
        )(p, n),
        ({"a": normal(5), "b": normal(5)}, np.arange(5)),
        {"twice": 2},
    ),
    "an axis": (
        lambda x, axis: rule(lambda x: jnp.sum(x, axis), lambda x: (jnp.sum(x, axis), x), lambda x, g: (x,))(x),
        (normal(3, 5), 0),
        {},
    ),
}


@pytest.mark.parametrize("name", WRITTEN)
@pytest.mark.usefixtures("in_time")
def test_whatever_the_arguments_are_they_are_written_down(name, capsys):
    fn, args, kwargs = WRITTEN[name]
    report = vjplib.verify(fn, args, kwargs, claims=("value",), effort="quick")
    finding = report.failures[0]
    holds(finding.counterexample, fn, capsys)


@pytest.mark.usefixtures("in_time")
def test_infinity_at_an_edge_is_shown(capsys):
    fault = FAULTS["0 times infinity at a boundary"]
    report = vjplib.verify(fault.fn, fault.args, claims=("edges",), effort="quick")
    source = next(finding.counterexample for finding in report.failures)
    holds(source, fault.fn, capsys)


def test_a_kink_is_no_counterexample():
    """At 0 the slope of relu is a choice, and the oracle has made another."""
    x = np.array([0.0, 0.0], np.float32)
    subject = CallUnderTest(vjplib.relu, (x,))
    assert not shrink.counterexample(subject, (x,), (np.ones_like(x),))


def test_right_rules_have_none():
    cases = [at_case(r, r.cases[0]) for r in rules() if r.name in ("softmax", "linear", "prod", "relu", "logsumexp")]
    assert len(cases) > 3
    assert not any(map(shrink.smallest, cases))


def test_it_ends_when_its_time_is_over():
    slow = rule(lambda x: jnp.sum(x), lambda x: (jnp.sum(x), x), lambda x, g: (2 * jnp.full_like(x, g),))
    subject = CallUnderTest(slow, (normal(101),), hurried=True)
    assert shrink.smallest(subject)
