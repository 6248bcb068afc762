"""The example that writes a rule from nothing: wrong backward caught, right one proved, record enough."""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vjplib import verify
from vjplib.lecture import rule_pages
from vjplib.rule import find

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture
def example(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    (rule,) = find("define_a_rule")
    return sys.modules[rule.fn.__module__]


def test_the_wrong_backward_is_caught_and_the_right_one_proved(example, capsys):
    example.main(["--effort", "quick"])
    wrong, right = capsys.readouterr().out.split("As derived:")
    assert "careless: the cotangent of x is wrong" in wrong
    assert "FAIL" not in right


def test_only_the_derivative_of_the_wrong_rule_is_wrong(example):
    x = np.linspace(-1, 2, 14, dtype=np.float32).reshape(2, 7)
    report = verify(example.careless, (x,), effort="quick")
    assert {f.claim for f in report.failures} >= {"value", "second_order"}
    assert {f.argument for f in report.failures if f.claim == "value"} == {"cotangent of x"}


def test_the_jacobian_that_the_record_states_is_that_of_the_rule(example):
    x = jnp.linspace(-1, 2, 5)
    (stated,) = example.jacobian(x)
    np.testing.assert_allclose(stated.dense(), jax.jacrev(example.rms_norm)(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("x", "error"), [(3.0, ValueError), (np.arange(3), TypeError)])
def test_bad_input_is_refused_by_name(example, x, error):
    with pytest.raises(error, match="x must have"):
        example.rms_norm(x)


def test_the_page_of_the_rule_holds_its_derivation(example):
    text = rule_pages.page(example.RULES[0])
    assert "g^T J = (g - mean(g * y) y) / r" in text
    assert "`4*b*n + 4*b` bytes, here 64" in text
