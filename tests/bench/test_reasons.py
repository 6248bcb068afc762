"""Reasons: a gain that holds is measured as such, one that has gone is caught, and what is not measured says so."""

import json
import math
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vjplib import Case, Edge, Gain, Input, Rule
from vjplib.bench import Measurement, measure_reason, reasons
from vjplib.rule import Tail, rules

CASE = Case(("b n",), {"b": 3, "n": 5})
ZERO = Edge("zeros", ([0.0, 0.0],))


@jax.custom_vjp
def light_silu(x):
    return fwd(x)[0]


def fwd(x):
    return x * jax.nn.sigmoid(x), x


def bwd(x, g):
    s = jax.nn.sigmoid(x)
    return (g * s * (1 + x * (1 - s)),)


light_silu.defvjp(fwd, bwd)


def plain_silu(x):
    return x * jax.nn.sigmoid(x)


@jax.custom_vjp
def safe_root(x):
    """The square root, whose derivative at 0 is 0 by convention."""
    return jnp.sqrt(x)


safe_root.defvjp(
    lambda x: (jnp.sqrt(x), x), lambda x, g: (jnp.where(x > 0, g / (2 * jnp.sqrt(jnp.maximum(x, 1e-30))), 0),)
)


def reference_root(x):
    return jnp.sqrt(jnp.where(x > 0, x, 1)) * (x > 0)


@jax.custom_vjp
def exact_logistic(x):
    return 1 / (1 + jnp.exp(-x))


exact_logistic.defvjp(
    lambda x: (1 / (1 + jnp.exp(-x)), x), lambda x, g: (g * jnp.exp(-jnp.abs(x)) / (1 + jnp.exp(-jnp.abs(x))) ** 2,)
)


def logistic(x):
    return 1 / (1 + jnp.exp(-x))


def tails(x):
    e = np.exp(-np.abs(x))
    return Tail((x,), np.ones_like(x), (e / (1 + e) ** 2,))


def running_sum(x):
    return jnp.cumsum(x)


def by_matrix(x):
    return jax.jacobian(jnp.cumsum)(x) @ x


LIGHT = Rule(light_silu, plain_silu, {"plain": plain_silu}, (CASE,), bench=(CASE,), reason="keeps x alone")
SAFE = Rule(safe_root, reference_root, {"jnp.sqrt": jnp.sqrt}, (CASE,), (ZERO,), reason="right at 0")
ACCURATE = Rule(exact_logistic, logistic, {"plain": logistic}, (CASE,), reason="exact tails", tails=tails)
SMALL = Rule(running_sum, running_sum, {"J x": by_matrix}, (CASE,), bench=(Case(("n",), {"n": 128}),), reason="no J")
ROOTS = Case((Input("n", lambda rng, shape, dims: np.arange(1.0, 1 + shape[0])),), {"n": 4})


def measured(rule, *gains):
    return measure_reason(replace(rule, gains=gains), seconds=0)


@pytest.mark.parametrize(
    ("rule", "gain"),
    [
        (LIGHT, Gain("kept bytes", 0.5)),
        (SMALL, Gain("scratch bytes", 0.5)),
        (ACCURATE, Gain("error", 1e-4)),
        (ACCURATE, Gain("error", 0.1, dtype="bfloat16")),
        (SAFE, Gain("error", 1e-6, "zeros")),
        (SAFE, Gain("error", 1e-6, Edge("another zero", ([0.0],)))),
    ],
    ids=["kept", "scratch", "tails", "tails in bfloat16", "edge", "own edge"],
)
def test_a_gain_holds_and_has_gone_once_the_baseline_is_the_rule(rule, gain):
    (here,) = measured(rule, gain)
    assert here.verdict == "holds"
    assert here.ratio <= gain.at_most
    (baseline,) = rule.baselines
    (gone,) = measured(replace(rule, baselines={baseline: rule.fn}), gain)
    assert gone.gone
    assert gone.ratio == 1.0
    (line,) = reasons.remarks([here, gone])
    assert line.startswith(f"{rule.name}: {gain.quantity} ({gone.call}) is 1 of {baseline}'s, but the record claims")


def test_a_gain_smaller_than_claimed_has_gone():
    (found,) = measured(LIGHT, Gain("kept bytes", 0.1))
    assert found.gone
    assert (found.ours, found.call, found.baseline) == (4 * 15, "b=3 n=5", "plain")


def test_a_rule_that_is_wrong_gains_no_accuracy():
    (found,) = measured(replace(SAFE, fn=jnp.sqrt), Gain("error", 0.5, "zeros"))
    assert found.gone  # infinite errors of both
    assert math.isnan(found.ratio)


def test_an_error_at_a_case_is_relative_to_the_largest_entry():
    off = replace(SAFE, fn=safe_root, baselines={"1 % more": lambda x: 1.01 * jnp.sqrt(x)})
    (found,) = measured(off, Gain("error", 1e-4, ROOTS))
    assert found.theirs == pytest.approx(0.01, rel=1e-3)
    assert found.verdict == "holds"


def test_a_named_case_of_the_benchmarks_and_another_baseline_are_measured():
    rule = replace(
        LIGHT,
        bench=(CASE, replace(CASE, dims={"b": 3, "n": 50}, label="long")),
        baselines={"itself": light_silu, "plain": plain_silu},
    )
    (first, second) = measured(rule, Gain("kept bytes", 0.5), Gain("kept bytes", 0.5, "long", baseline="plain"))
    assert first.gone
    assert (second.verdict, second.ours, second.call) == ("holds", 600, "long")


def test_a_time_is_measured_again_before_its_gain_has_gone(monkeypatch):
    asked = []

    def timed(runs, seconds):
        asked.append(seconds)
        return np.array([[3.0, 4.0, 9.0], [5.0, 5.0, 5.0]]) + np.array([[len(asked) - 1], [0]])

    monkeypatch.setattr(reasons, "interleaved", timed)
    rule = replace(LIGHT, gains=(Gain("time", 0.7),))
    (found,) = measure_reason(rule, seconds=0.1)
    assert found.gone
    assert found.ratio == 0.8  # of medians, at the first try, which is the best
    assert asked == [0.1, 0.2, 0.4, 0.8]
    asked.clear()
    (found,) = measure_reason(replace(rule, gains=(Gain("time", 0.8),)), seconds=0.1)
    assert found.verdict == "holds"
    assert len(asked) == 1
    assert (found.ours, found.theirs) == (4.0, 5.0)


def test_what_is_claimed_for_another_platform_is_not_measured():
    for quantity in ("time", "scratch bytes"):
        (found,) = measured(LIGHT, Gain(quantity, 0.5, platform="tpu"))
        assert not found.gone
        assert found.verdict == "not measured: claimed for tpu, this is cpu"


def test_a_reason_in_words_is_kept_and_not_measured():
    (found,) = measure_reason(LIGHT)
    assert (found.reason, found.verdict, found.gone) == ("keeps x alone", reasons.NOTHING, False)
    (lecture,) = measure_reason(replace(LIGHT, lecture=True))
    assert lecture.verdict == "a layer of the lecture"


def test_negative_seconds_are_refused():
    with pytest.raises(ValueError, match="seconds must be at least 0, got -1"):
        measure_reason(LIGHT, seconds=-1)


@pytest.mark.parametrize(
    ("rule", "gain", "message"),
    [
        (LIGHT, {"quantity": "speed", "at_most": 0.5}, "quantity must be one of kept bytes, .*, got 'speed'"),
        (LIGHT, {"quantity": "time", "at_most": 1}, "at_most must be at least 0 and below 1, got 1"),
        (LIGHT, {"quantity": "time", "at_most": 0.5, "at": ZERO}, "at must be a case, .* got 'zeros'"),
        (LIGHT, {"quantity": "time", "at_most": 0.5, "at": "long"}, "at a case of bench of the record, .* got 'long'"),
        (SAFE, {"quantity": "error", "at_most": 0.5, "at": "ones"}, "a case of bench or an edge of .* got 'ones'"),
        (LIGHT, {"quantity": "error", "at_most": 0.5}, "light_silu must name a call in at, .* gives no tails"),
        (SAFE, {"quantity": "time", "at_most": 0.5}, "safe_root must name a call in at, .* gives no bench"),
        (LIGHT, {"quantity": "time", "at_most": 0.5, "baseline": "lax"}, "must name a baseline of .*, got 'lax'"),
    ],
)
def test_a_gain_that_cannot_be_measured_is_refused(rule, gain, message):
    with pytest.raises(ValueError, match=message):
        replace(rule, gains=(Gain(**gain),))


def test_json_has_verdicts_and_no_number_that_json_lacks():
    found = [*measured(SAFE, Gain("error", 1e-6, "zeros")), *measure_reason(LIGHT)]
    written = json.loads(json.dumps(reasons.to_dict(found), allow_nan=False))
    assert [row["verdict"] for row in written["reasons"]] == ["holds", reasons.NOTHING]
    assert written["reasons"][0]["theirs"] == "inf"
    assert written["environment"]["jax"] == jax.__version__


def test_a_figure_that_is_not_known_is_no_gain():
    found = Measurement("f", "", "kept bytes", "n=8", "g", 0.5, ours=0, theirs=0)
    assert (found.ratio, found.gone) == (1.0, True)
    assert replace(found, ours=8).ratio == math.inf


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule.name)
def test_each_rule_of_the_library_has_a_reason_and_keeps_the_bytes_it_claims(rule):
    assert rule.reason
    assert rule.gains or rule.lecture
    for found in measured(rule, *(gain for gain in rule.gains if gain.quantity == "kept bytes")):
        assert not found.gone
        assert found.at_most is None or found.ratio > 0.75 * found.at_most  # the claim is not far from the gain


@pytest.mark.deep
@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule.name)
def test_each_rule_of_the_library_is_as_accurate_as_it_claims(rule):
    for found in measured(rule, *(g for g in rule.gains if g.quantity == "error")):
        assert not found.gone, found
