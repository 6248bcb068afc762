"""Comparisons are in the digits that a function has: float64 where it takes that, else fewer; tails by their own."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from field_right_rules import RIGHT
from field_wrong_rules import FIELD_WRONG_RULES
from wrong_rule import keeping

import vjplib
from vjplib.rule import rules
from vjplib.verification.api import at_case
from vjplib.verification.call import CallUnderTest
from vjplib.verification.tails import in_tails


def normal(*shape, dtype: Any = np.float32):
    return np.random.default_rng(shape).standard_normal(shape).astype(dtype)


def sine_of(*dtypes, factor=1.0):
    """Returns a rule that takes some dtypes alone, by any exception."""

    def checked(x):
        assert x.dtype in [jnp.dtype(d) for d in dtypes]
        return x

    return keeping(
        lambda x: jnp.sin(checked(x)), lambda res, g: ((factor * g * jnp.cos(checked(res[0]))).astype(g.dtype),)
    )


def test_what_is_compared_in_which_dtype():
    def found(fn, dtype: Any = np.float32, **options):
        call = CallUnderTest(fn, (normal(5, dtype=dtype),), **options)
        return call.compared_in, call.working, call.coarse_oracle

    assert found(jnp.sin) == ("float64", np.float32, False)
    assert found(sine_of("float32")) == ("float32", np.float32, True)
    assert found(sine_of("float32"), reference=jnp.sin) == ("float32", np.float32, False)
    assert found(sine_of("bfloat16"), jnp.bfloat16) == ("bfloat16", None, True)
    assert found(sine_of("float16", "bfloat16", "float32"), jnp.bfloat16) == ("float32", np.float32, True)
    assert found(sine_of()) == ("float64", np.float32, False)  # it takes none: the claims report that it raises
    assert found(jnp.sin, dtypes=("float32",)) == ("float32", np.float32, False)
    assert CallUnderTest(sine_of("float32"), (normal(5),)).eps == np.finfo(np.float32).eps


@pytest.mark.parametrize("given", [np.float32, jnp.bfloat16])
def test_a_rule_of_one_dtype_alone(given):
    name = jnp.dtype(given).name
    claims = ("contract", "value", "linearity", "transforms", "taylor", "variations")
    report = vjplib.verify(sine_of(name), (normal(7, dtype=given),), claims=claims)
    assert report.ok, report
    assert any(
        f"compared in {name}, to half of its digits; in float64: AssertionError" in f.message for f in report.notes
    )
    assert not vjplib.verify(sine_of(name, factor=1.5), (normal(7, dtype=given),), claims=("value",)).ok


def test_stated_dtypes_are_those_examined():
    x = (normal(7),)
    report = vjplib.verify(sine_of("float32", "bfloat16"), x, dtypes=("float32", "bfloat16"))
    assert report.ok, report
    assert not any("float16" in f.message.replace("bfloat16", "") or "float64: " in f.message for f in report.findings)
    for wrong in ((), ("float8",), ("int32",)):
        with pytest.raises((ValueError, TypeError), match=r"float8|dtypes must be"):
            vjplib.verify(jnp.sin, x, dtypes=wrong)
    with pytest.raises(TypeError, match="dtypes must be a sequence"):
        vjplib.verify(jnp.sin, x, dtypes="float32")


def test_a_record_states_dtypes():
    record = next(record for record in rules() if record.name == "tanh")
    report = vjplib.verify_rule(replace(record, dtypes=("float32",)), effort="quick", claims=("contract",))
    assert not any("float16" in f.message for f in report.findings)
    with pytest.raises(ValueError, match="dtypes must be among"):
        vjplib.verify_rule(replace(record, dtypes=("float8",)), claims=("contract",))


def test_noise_in_float32_is_of_float32_to_another_program():
    def noisy(x):
        return x + jax.random.normal(jax.random.key(0), x.shape, jnp.float32)

    weights = jnp.asarray(normal(3))
    assert CallUnderTest(noisy, (normal(3),)).eps_elsewhere == np.finfo(np.float32).eps
    assert CallUnderTest(lambda x: x * weights[None, 1:].T, (normal(3),)).eps_elsewhere == np.finfo(np.float64).eps


def scaled(factor=1.0):
    """Returns a rule that takes an array and a switch by keyword."""

    def primal(x, *, scale, negative=False):
        return made(x, -scale if negative else scale)

    made = keeping(lambda x, s: x * s, lambda res, g: (g * res[1], factor * jnp.sum(g * res[0], 0)))
    return primal


def test_arrays_by_keyword_are_differentiated():
    args, kwargs = (normal(5, 3),), {"scale": normal(3), "negative": True}
    report = vjplib.verify(scaled(), args, kwargs)
    assert report.ok, report
    assert {"cotangent of x", "cotangent of scale"} <= {f.argument for f in report.findings}
    report = vjplib.verify(scaled(2.0), args, kwargs, claims=("value",))
    assert {f.argument for f in report.failures} == {"cotangent of scale"}
    (source,) = {f.counterexample for f in report.failures if f.counterexample}
    assert "primal(x, scale=scale, negative=True)" in source
    space: dict[str, Any] = {"primal": scaled(2.0)}
    exec(source, space)
    np.testing.assert_allclose(space["given"], 2 * space["right"], rtol=1e-5)


def test_a_number_by_keyword_is_no_argument():
    def shifted(x, *, epsilon=1e-6):
        return x + epsilon

    report = vjplib.verify(shifted, (normal(3),), {"epsilon": 1e-3}, claims=("value",))
    assert {f.argument for f in report.findings} == {
        "output",
        "output of the forward pass",
        "output 0",
        "cotangent of x",
    }


def test_a_dtype_that_the_call_itself_has_is_noted_only():
    """Activations in bfloat16, weights in float32: a cotangent in float32 is right as called."""
    rule = keeping(
        lambda x, w: (x.astype(jnp.float32) * w).astype(x.dtype),
        lambda res, g: ((g * res[1]).astype(res[0].dtype), jnp.sum(g * res[0], 0).astype(jnp.float32)),
    )
    mixed = vjplib.verify(rule, (normal(5, 3, dtype=jnp.bfloat16), normal(3)), claims=("contract",))
    assert mixed.ok, mixed
    assert any("as called, that is its dtype" in f.message for f in mixed.notes)
    assert not vjplib.verify(rule, (normal(5, 3), normal(3)), claims=("contract",)).ok


def cancelling(x):
    """sin(x), whose derivative JAX takes as a difference of numbers of which float32 keeps nothing."""
    large = (1e8 * x + jnp.cos(x)) - 1e8 * x
    return jnp.sin(x) + (large - jax.lax.stop_gradient(large))


def test_garbage_by_autodiff_too_is_someones_fault():
    x = (np.abs(normal(7)) + 1,)
    rule = keeping(lambda x: cancelling(x), lambda res, g: jax.vjp(cancelling, *res)[1](g))
    for effort in ("quick", "standard"):
        report = vjplib.verify(rule, x, effort=effort, claims=("value",))
        assert [(f.code, f.argument) for f in report.failures] == [("both_wrong", "cotangent of x")], report
        assert "someone's derivative is wrong" in str(report)
    right = keeping(lambda x: cancelling(x), lambda res, g: (g * (jnp.cos(*res) - jnp.sin(*res)),))
    assert vjplib.verify(right, x, claims=("value",)).ok


def test_random_numbers_stay_undecided():
    def noisy(x, key):
        return x * jax.random.normal(key, x.shape, x.dtype)

    report = vjplib.verify(noisy, (normal(7), jax.random.key(0)), claims=("value",))
    assert not report.failures, report
    assert any("undecided" in f.message for f in report.findings)


def test_a_total_error_where_autodiff_is_right_is_not_excused_by_large_numbers():
    case = FIELD_WRONG_RULES["float16: squares overflow"]
    report = vjplib.verify(case.fn, case.args, claims=("accuracy",))
    assert [f.argument for f in report.failures] == ["cotangent of x"], report


def test_cotangents_of_one_sign_raise_no_alarm_where_sums_are_wide():
    wide = keeping(lambda x, b: x + b, lambda res, g: (g, jnp.sum(g, 0, dtype=jnp.float32).astype(g.dtype)))
    args = (normal(4096, 3, dtype=jnp.bfloat16), normal(3, dtype=jnp.bfloat16))
    report = vjplib.verify(wide, args, claims=("accuracy",))
    assert report.ok, report


def test_a_tail_where_autodiff_errs_too_is_noted():
    case = FIELD_WRONG_RULES["tail: sigmoid by y (1 - y), as JAX has it"]
    report = vjplib.verify(case.fn, case.args, claims=("accuracy",))
    assert report.ok, report
    (note,) = (f for f in report.notes if "in the tails" in f.message)
    assert note.argument == "cotangent of x"
    assert "autodiff errs too" in note.message


def test_a_tail_of_the_other_sign_is_examined_where_the_domain_says_so():
    case = FIELD_WRONG_RULES["tail: logistic by y (1 - y)"]  # wrong for large numbers
    negative = (np.linspace(-3, -0.1, 11, dtype=np.float32),)
    reports = [
        vjplib.verify(case.fn, negative, claims=("accuracy",), domain=stated) for stated in (None, {"x": "real"})
    ]
    assert [report.ok for report in reports] == [True, False]


def test_tails_are_those_of_elementwise_functions_of_one_array_alone():
    def of(fn, *args):
        return [f.level for f in in_tails(CallUnderTest(fn, args))]

    x = normal(3, 5)
    assert of(vjplib.tanh, x) == ["pass"]
    assert of(jnp.tanh, np.float32(2.5)) == ["pass", "note"]  # 1 - y * y is 0 from 9 on
    for fn in (jax.nn.softmax, lambda x: jnp.cumsum(x, 1), lambda x: x * jnp.arange(5.0), jnp.sort, jnp.sum):
        assert of(fn, x) == []
    assert of(jnp.multiply, x, x) == of(jnp.tanh, np.zeros(3, np.float32)) == []


ELEMENTWISE = [record for record in rules() if len(record.cases[0].inputs) == 1]


@pytest.mark.parametrize("record", ELEMENTWISE, ids=lambda record: record.name)
def test_no_tail_of_the_librarys_rules_is_lost(record):
    assert not [f for f in in_tails(at_case(record, record.cases[0])) if f.level == "fail"]


ONE_ARRAY = [field for field in RIGHT if len(field.args) == 1 and not field.kwargs and "axes" not in field.options]


@pytest.mark.parametrize("field", ONE_ARRAY, ids=lambda field: field.name)
def test_no_tail_of_a_right_rule_is_lost(field):
    call = CallUnderTest(field.fn, field.args, reference=field.options.get("reference"))
    if call.differentiable and call.undifferentiable is None:
        assert not [f for f in in_tails(call) if f.level == "fail"]


def rescaled(x, rate):
    return x / (1 - rate)


def rescaled_bwd(res, g):
    x, rate = res
    return g / (1 - rate), jnp.sum(g * x / (1 - rate) ** 2)


def test_a_python_number_takes_the_dtype_of_its_neighbours(rng):
    rule = jax.custom_vjp(rescaled)
    rule.defvjp(lambda x, rate: (rescaled(x, rate), (x, rate)), rescaled_bwd)
    x = jnp.asarray(rng.standard_normal((5, 7)), jnp.bfloat16)
    assert vjplib.verify(rule, (x, 0.2), claims=("contract", "value", "accuracy")).ok
    (audited,) = vjplib.audit(jax.grad(lambda x: rule(x, 0.2).sum()), x).rules
    assert audited.verdict == "pass"


def root_mean_square_norm(term=1.0):
    """Returns x / r along the last axis; of one number the cotangent is what epsilon leaves of terms that cancel."""

    def norm(x):
        return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6)

    def bwd(res, g):
        (x,) = res
        inverse = jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6)
        h = x * inverse
        return (inverse * (g - term * h * jnp.mean(g * h, -1, keepdims=True)),)

    return keeping(norm, bwd)


@pytest.mark.parametrize("slip", [{"term": 0.0}, {"term": 0.99}])
def test_along_an_axis_of_one_number_a_term_that_does_not_cancel_is_caught(slip):
    report = vjplib.verify(root_mean_square_norm(**slip), (normal(5, 1),), claims=("value",))
    assert {f.argument for f in report.failures} == {"cotangent of x"}


def test_along_an_axis_of_one_number_what_does_not_cancel_is_judged_as_ever():
    fn = keeping(jnp.sin, lambda res, g: (1.001 * g * jnp.cos(res[0]),))
    for claims in (("value",), ("taylor",)):
        assert not vjplib.verify(fn, (normal(5, 1),), claims=claims).ok
