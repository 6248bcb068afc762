"""Locate: one wrong equation of a backward is found, with its factor; what no factor explains is said to be so."""

import inspect
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from wrong_rules import normal, rule

import vjplib
from vjplib.verification.call import CallUnderTest

X, S = normal(4, 8), normal(8)


def norm(x, scale):
    return x * jax.lax.rsqrt(jnp.mean(x**2, axis=-1, keepdims=True)) * scale


def norm_fwd(x, scale):
    r = jax.lax.rsqrt(jnp.mean(x**2, axis=-1, keepdims=True))
    return x * r * scale, (x * r, r, scale)


def norm_rule(*, n=8.0, sign=1.0, once=1.0, drop=False):
    def bwd(res, g):
        y, r, scale = res
        gs = g * scale
        inner = jnp.sum(gs * y, axis=-1, keepdims=True) / n
        dx = r * gs if drop else r * (gs - sign * (y * inner))
        return dx, once * jnp.sum(g * y, axis=0)

    return rule(norm, norm_fwd, bwd)


def line_of(text):
    (number,) = [i for i, line in enumerate(inspect.getsource(norm_rule).splitlines()) if line.strip().startswith(text)]
    return number + inspect.getsourcelines(norm_rule)[1]


def located(fn, *args):
    report = vjplib.verify(fn, args, claims=("value",))
    explained = [f for f in report.findings if f.explanation is not None]
    assert all(finding.level == "fail" for finding in explained)
    return [str(finding.explanation) for finding in explained]


@pytest.mark.parametrize(
    ("wrong", "factor", "primitive", "line"),
    [
        ({"n": 1.0}, 1 / 8, "div|mul|reduce_sum", "inner ="),
        ({"n": 7.0}, 7 / 8, "div|mul|reduce_sum", "inner ="),
        ({"sign": -1.0}, -1, "mul", "dx ="),
        ({"once": 1.001}, 1 / 1.001, "mul|reduce_sum", "return dx"),
    ],
    ids=["1/n forgotten", "1/(n-1)", "sign", "a thousandth"],
)
def test_one_wrong_factor_is_found(wrong, factor, primitive, line):
    (message,) = located(norm_rule(**wrong), X, S)
    pattern = r"multiplying by (\S+) the output of (.*) makes every cotangent right"
    ((number, place),) = re.findall(pattern, message)
    assert float(number) == pytest.approx(factor, rel=1e-5)
    assert re.search(rf"({primitive}) at \S*test_locate\.py:{line_of(line)}:\S* \(norm_rule\.<locals>\.bwd\)", place)


def test_a_missing_term_is_no_factor():
    (message,) = located(norm_rule(drop=True), X, S)
    assert message.startswith("no factor on a single equation explains the error, so a term may be missing")
    (left,) = re.findall(r"leaves (\d+)% of it", message)
    assert 1 <= int(left) <= 100


def test_a_right_rule_is_not_spoken_of():
    assert located(norm_rule(), X, S) == []


def test_it_stands_beside_the_failure_of_v2():
    report = vjplib.verify(norm_rule(n=1.0), (X, S), effort="quick")
    assert report.level("value") == "fail"
    assert "by 0.125" in str(report)


def test_a_residual_that_is_used_twice_is_tried_not_extrapolated():
    square = rule(lambda x: x**3, lambda x: (x**3, x * 2.0), lambda r, g: (3 * r * r * g,))
    (message,) = located(square, X)
    assert "makes every cotangent right" in message
    assert "by 0.25 " in message


def test_what_is_not_finite_is_said_to_be():
    fn = rule(jnp.sin, lambda x: (jnp.sin(x), x), lambda x, g: (g * jnp.inf,))
    assert located(fn, X) == ["a cotangent is not finite: no factor leads from there"]


def test_long_programs_are_not_looked_through():
    def bwd(x, g):
        for _ in range(400):
            g = jnp.sin(g)
        return (g,)

    (message,) = located(rule(jnp.sin, lambda x: (jnp.sin(x), x), bwd), X)
    assert "more than 300 equations" in message


def test_an_equation_without_a_derivative_is_said_to_be_one():
    def bwd(x, g):
        return (jax.pure_callback(np.asarray, jax.ShapeDtypeStruct(g.shape, g.dtype), 2 * g * jnp.cos(x)),)

    (message,) = located(rule(jnp.sin, lambda x: (jnp.sin(x), x), bwd), X)
    assert message.startswith("no place can be looked for: ")


def test_the_subject_of_a_located_fault_is_evaluated_in_float64():
    subject = CallUnderTest(norm_rule(sign=-1.0), (X, S))
    assert {leaf.dtype for leaf in subject.leaves(np.float64)} == {np.dtype(np.float64)}
