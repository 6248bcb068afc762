"""The benchmark times only what is the same function, measures what it says, and prints the reason of a slow rule."""

import json
import math
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vjplib import Case, Input, Rule
from vjplib.bench import Cost, Growth, Row, bench_growth, bench_rule, rules, timing
from vjplib.rule import Scaling, find, index_below, random_mask

CASE = Case(("b n",), {"b": 3, "n": 5})


def rule(fn=jnp.sin, baselines=None, case=CASE, **fields):
    return Rule(fn, fn, {"sin": jnp.sin} if baselines is None else baselines, (case,), bench=(case,), **fields)


def row(ours, theirs):
    ours, theirs = (Cost(t, 0.9 * t, 1.2 * t, 9, 0.01, 0.02, 4_000_000, 8_000_000) for t in (ours, theirs))
    return Row("f", "n=8", "jnp.f", "forward", ours, theirs, "it is shown")


def test_a_row_for_each_case_baseline_and_measure():
    rows = bench_rule(rule(baselines={"a": jnp.sin, "b": lambda x: jnp.sin(x)}), seconds=0)
    assert [(r.baseline, r.measure) for r in rows] == [(b, m) for b in "ab" for m in rules.MEASURES]
    for r in rows:
        assert (r.case, r.error, r.baseline_error) == ("b=3 n=5", None, None)  # the record declares no tails
        for c in (r.ours, r.theirs):
            assert 0 < c.low <= c.median <= c.high
            assert c.rounds >= timing.FEWEST_QUICK
            assert min(c.lowering, c.compiling) > 0


def test_bytes_kept_and_the_largest_relative_error_in_the_tails_are_those_of_the_rule():
    (tanh,) = find("tanh")
    wasteful = {"twice": lambda x: jnp.where(x > 0, jnp.tanh(x), jnp.tanh(x))}
    rows = bench_rule(replace(tanh, baselines=wasteful, bench=(CASE,)), seconds=0)
    assert tanh.residual_bytes is not None
    assert [r.ours.residual for r in rows] == [0, *[tanh.residual_bytes(b=3, n=5)] * 3]
    for r in rows:
        assert r.error is not None
        assert r.error < 1e-6
        assert r.baseline_error is not None
        assert r.baseline_error > 0.1
        assert r.measure == "forward" or r.theirs.residual > r.ours.residual


def test_scratch_of_a_formed_jacobian_shows(monkeypatch):
    def formed(x):
        return jax.jacobian(jnp.cumsum)(x) @ x

    monkeypatch.setattr(rules, "MEASURES", {name: rules.MEASURES[name] for name in ("forward", "returned")})
    case = Case(("n",), {"n": 128})
    (first, _) = bench_rule(rule(jnp.cumsum, {"J x": formed}, case), seconds=0)
    ours, theirs = (c.temporary for c in (first.ours, first.theirs))
    assert ours is not None
    assert theirs is not None
    assert ours < 4 * 128**2 <= theirs


def test_labels_and_masks_are_arguments_not_constants(monkeypatch):
    (ours,) = find("softmax_cross_entropy_with_integer_labels")
    case = Case(("b n", Input("b", index_below("n"))), {"b": 3, "n": 5}, {"where": Input("b n", random_mask)})
    programs = []

    def traced(f, *args):
        programs.append((jax.make_jaxpr(f)(*args), args))
        return timing.Compiled(lambda: None)

    monkeypatch.setattr(rules, "compile_bound", traced)
    assert len(bench_rule(replace(ours, bench=(case,)), seconds=0)) == len(rules.MEASURES)
    assert len(programs) == 2 * len(rules.MEASURES)
    for program, args in programs:
        assert {str(a.dtype) for a in jax.tree.leaves(args)} == {"float32", "int32", "bool"}
        assert not [c for c in program.consts if np.ndim(c)]


@pytest.mark.parametrize(
    ("baseline", "difference"),
    [
        (lambda x: 1.000_01 * jnp.sin(x), "at b=3 n=5 the output differs by 1.0e-05"),
        (lambda x: jnp.sin(jax.lax.stop_gradient(x)), "the cotangent of x differs by 1.0e.00 of its largest entry"),
        (lambda x: jnp.sin(x)[:1], r"outputs have shapes \[\(3, 5\)\] against \[\(1, 5\)\]"),
        (lambda x: jnp.where(x == x.max(), jnp.nan, jnp.sin(x)), "differs by inf .* against nan"),
        (lambda x: (jnp.sin(x), x), r"have shapes \[\(3, 5\)\] against \[\(3, 5\), \(3, 5\)\]"),
    ],
    ids=["value", "cotangent", "shape", "NaN", "outputs"],
)
def test_what_is_not_the_same_function_is_not_timed(baseline, difference):
    with pytest.raises(ValueError, match=f"sin and its baseline other must be one function .*{difference}"):
        bench_rule(rule(baselines={"other": baseline}), seconds=0)


def test_negative_seconds_are_refused():
    with pytest.raises(ValueError, match="seconds must be at least 0, got -1"):
        bench_rule(rule(), seconds=-1)


def test_the_reason_of_a_slower_rule_is_printed():
    assert list(rules.remarks([row(1.0, 0.95), row(1.0, 3.0)])) == []
    (line,) = rules.remarks([row(1.2, 1.0)])
    assert line == "f [n=8] forward: 1.20 x the time of jnp.f. Reason for the rule: it is shown"


def test_json_holds_rows_growth_and_where_they_were_measured():
    growth = Growth("f", "Algorithm 3", "n", (10, 20, 40), (1.0, 4.0, 16.0))
    found = json.loads(json.dumps(rules.to_dict([row(1.0, 3.0)], [growth])))
    assert found["rows"][0]["ratio"] == 3.0
    assert found["rows"][0]["theirs"]["temporary"] == 4_000_000
    assert math.isclose(found["growth"][0]["exponent"], 2)
    assert found["environment"]["jax"] == jax.__version__


def test_growth_is_the_slope_of_the_shortest_time(monkeypatch):
    def timed(runs, seconds):
        assert seconds == 0
        return np.array([[2.0, 1.0, 3.0]]) * [[float(run())] for run in runs]  # a program takes the seconds it returns

    monkeypatch.setattr(rules, "interleaved", timed)
    case = Case(("n",), {"n": 1})
    scaling = {
        "n": Scaling(lambda x: x.size * jnp.ones(()), case, ("n", (100, 200, 400))),
        "n^2": Scaling(lambda x: x.size**2 * jnp.ones(()), case, ("n", (100, 200, 400))),
    }
    linear, quadratic = bench_growth(rule(case=case, scaling=scaling), seconds=0)
    assert linear.seconds == (100, 200, 400)
    assert math.isclose(linear.exponent, 1)
    assert math.isclose(quadratic.exponent, 2)
    assert (quadratic.name, quadratic.dimension, quadratic.sizes) == ("n^2", "n", (100, 200, 400))


def test_the_record_of_conv1d_times_a_million_numbers_against_both_baselines():
    (conv1d,) = find("conv1d")
    assert conv1d.bench[0].dims == {"n": 1_000_000, "k": 3}
    assert set(conv1d.baselines) == {"lax.conv_general_dilated", "jnp.convolve"}
    assert set(conv1d.scaling) == {"Algorithm 3", "Algorithm 4"}
