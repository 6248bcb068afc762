"""Locate: a mistake in a backward is found: a factor, a missing product or term; else nothing is suggested."""

import inspect
import re
from pathlib import Path

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
    assert all(f.level == "fail" for f in report.findings if f.explanation is not None)
    return [f.explanation for f in report.findings if f.explanation is not None]


@pytest.mark.parametrize(
    ("wrong", "factor", "primitive", "line"),
    [
        ({"n": 1.0}, 1 / 8, "reduce_sum", "inner ="),
        ({"n": 7.0}, 7 / 8, "div|mul|reduce_sum", "inner ="),
        ({"sign": -1.0}, -1, "mul", "dx ="),
        ({"once": 1.001}, 1 / 1.001, "mul|reduce_sum", "return dx"),
    ],
    ids=["1/n forgotten", "1/(n-1)", "sign", "a thousandth"],
)
def test_one_wrong_factor_is_found(wrong, factor, primitive, line):
    (explanation,) = located(norm_rule(**wrong), X, S)
    assert explanation.kind == "factor"
    assert explanation.factor == pytest.approx(factor, rel=1e-5)
    assert {Path(place.file) for place in explanation.places} == {Path(__file__)}
    (place,) = [place for place in explanation.places if place.line == line_of(line)]
    assert re.fullmatch(primitive, place.primitive)
    assert place.where.endswith(f"test_locate.py:{place.line} in bwd")


def test_a_factor_is_recognized_as_a_size_of_the_call():
    (explanation,) = located(norm_rule(n=1.0), X, S)
    assert explanation.meaning == "the size of x's last axis"
    (explanation,) = located(norm_rule(n=7.0), X, S)
    assert explanation.meaning == "", "7 is written down, and stays so where the axis is longer"
    var = rule(
        lambda x: jnp.var(x, ddof=1), lambda x: (jnp.var(x, ddof=1), x), lambda x, g: (g * 2 * (x - x.mean()) / x.size,)
    )
    (explanation,) = located(var, normal(7))
    assert explanation.meaning == "n / (n - 1), where n is the size of x"
    (explanation,) = located(norm_rule(n=1.0), np.float32(np.arange(1, 9)).reshape(8, 1) * S, S)
    assert explanation.meaning == "the size of x's first axis or the size of x's last axis"
    half = rule(lambda x: x**3, lambda x: (x**3, x), lambda x, g: (1.5 * x * x * g,))
    (explanation,) = located(half, normal(2, 5))
    assert (explanation.factor, explanation.meaning) == (2.0, ""), "2 is no size, though x has 2 rows"


def test_a_missing_term_is_found_and_said_in_the_variables_of_the_backward():
    (explanation,) = located(norm_rule(drop=True), X, S)
    assert explanation.kind == "addition"
    assert explanation.term == "-y * jnp.mean(y * dx, axis=-1, keepdims=True)"
    assert explanation.places[0].line == line_of("return dx")


def test_a_missing_operand_is_found():
    softmax = rule(
        lambda x: jax.nn.softmax(x),
        lambda x: 2 * (jax.nn.softmax(x),),
        lambda y, g: (y * (g - jnp.sum(g, axis=-1, keepdims=True)),),
    )
    (explanation,) = located(softmax, X)
    assert (explanation.kind, explanation.operand, explanation.term) == ("product", "g", "y")


def test_a_forgotten_sum_is_found():
    bias = rule(lambda x, b: x + b, lambda x, b: (x + b, None), lambda _, g: (g, g[0]))
    (explanation,) = located(bias, X, S)
    assert (explanation.kind, explanation.term) == ("replacement", "jnp.sum(g, axis=0)")
    assert explanation.cotangents == ("cotangent of b",)


def test_each_of_two_mistakes_is_found():
    first, second = located(norm_rule(sign=-1.0, once=3.0), X, S)
    assert (first.cotangents, first.factor) == (("cotangent of x",), -1.0)
    assert (second.cotangents, second.factor) == (("cotangent of scale",), pytest.approx(1 / 3))


def test_what_no_correction_makes_right_gets_no_suggestion():
    wrong = rule(jnp.sin, lambda x: (jnp.sin(x), x), lambda x, g: (g * jnp.tanh(x),))
    (explanation,) = located(wrong, X)
    assert not explanation.complete
    assert not explanation.term
    assert explanation.reason.startswith("no factor on one expression, and no single missing factor or term")
    assert 0.01 < explanation.unexplained < 1


def test_what_makes_one_number_right_is_no_explanation():
    """Some factor makes any one number right; at another number it is another."""
    (explanation,) = located(rule(jnp.sin, lambda x: (jnp.sin(x), x), lambda x, g: (g * jnp.tanh(x),)), np.float32(0.3))
    assert not explanation.complete


def test_a_right_rule_is_not_spoken_of():
    assert located(norm_rule(), X, S) == []


def test_it_stands_beside_the_failure_of_v2():
    report = vjplib.verify(norm_rule(n=1.0), (X, S), effort="quick")
    assert report.level("value") == "fail"
    assert "8 times too large" in str(report)


def test_a_residual_that_is_used_twice_is_tried_not_extrapolated():
    square = rule(lambda x: x**3, lambda x: (x**3, x * 2.0), lambda r, g: (3 * r * r * g,))
    (explanation,) = located(square, X)
    assert explanation.kind == "factor"
    assert explanation.factor == pytest.approx(0.25)


def test_what_is_not_finite_is_said_to_be():
    fn = rule(jnp.sin, lambda x: (jnp.sin(x), x), lambda x, g: (g * jnp.inf,))
    (explanation,) = located(fn, X)
    assert str(explanation) == "a cotangent is not finite, so no factor can be computed"


def test_long_programs_are_not_looked_through():
    def bwd(x, g):
        for _ in range(400):
            g = jnp.sin(g)
        return (g,)

    (explanation,) = located(rule(jnp.sin, lambda x: (jnp.sin(x), x), bwd), X)
    assert "more than 300 equations" in explanation.reason


def test_an_equation_without_a_derivative_is_said_to_be_one():
    def bwd(x, g):
        return (jax.pure_callback(np.asarray, jax.ShapeDtypeStruct(g.shape, g.dtype), 2 * g * jnp.cos(x)),)

    (explanation,) = located(rule(jnp.sin, lambda x: (jnp.sin(x), x), bwd), X)
    assert explanation.reason.startswith("no place can be looked for: ")


def test_the_subject_of_a_located_fault_is_evaluated_in_float64():
    subject = CallUnderTest(norm_rule(sign=-1.0), (X, S))
    assert {leaf.dtype for leaf in subject.leaves(np.float64)} == {np.dtype(np.float64)}
