"""The benchmark times only what is the same function, measures what it says, and prints the reason of a slow rule."""

import json
import math
from dataclasses import replace
from io import StringIO

import jax
import jax.numpy as jnp
import pytest
from rich.console import Console

from vjplib import Case, Input, Rule, bench
from vjplib.rule import Scaling, find, index_below, random_mask

CASE = Case(("b n",), {"b": 3, "n": 5})


def rule(fn=jnp.sin, baselines=None, case=CASE, **fields):
    return Rule(fn, fn, {"sin": jnp.sin} if baselines is None else baselines, (case,), bench=(case,), **fields)


def cost(median):
    return bench.Cost(median, 0.9 * median, 1.2 * median, 9, 0.01, 0.02, 4_000_000, 8_000_000)


def row(ours, theirs):
    return bench.Row("f", "n=8", "jnp.f", "forward", cost(ours), cost(theirs), "it is shown")


def shown(tables, width=80):
    text = StringIO()
    console = Console(file=text, width=width)
    for table in tables:
        console.print(table)
    return text.getvalue()


def test_a_row_for_each_case_baseline_and_measure():
    rows = bench.bench_rule(rule(baselines={"a": jnp.sin, "b": lambda x: jnp.sin(x)}), seconds=0)
    assert [(r.baseline, r.measure) for r in rows] == [(b, m) for b in "ab" for m in bench.MEASURES]
    for r in rows:
        assert r.case == "b=3 n=5"
        for c in (r.ours, r.theirs):
            assert 0 < c.low <= c.median <= c.high
            assert c.rounds >= bench.FEWEST_QUICK
            assert min(c.lowering, c.compiling) > 0


def test_bytes_kept_are_those_of_the_record():
    relu = find("relu")[0]
    rows = bench.bench_rule(replace(relu, bench=(CASE,)), seconds=0)
    assert [r.ours.residual for r in rows] == [0, 15, 15, 15]
    assert rows[1].theirs.residual > 15


def test_the_largest_relative_error_in_the_tails_is_measured_where_the_record_declares_them():
    sigmoid = replace(find("sigmoid")[0], bench=(CASE,))
    rows = bench.bench_rule(sigmoid, seconds=0)
    for r in rows:
        assert r.error is not None
        assert r.error < 1e-6
        assert r.baseline_error is not None
    text = shown(bench.tables([replace(r, error=2e-7, baseline_error=1.0) for r in rows]))
    for word in ("accuracy", "autodiff's", "2e-07", "1e+00", "jax.nn.sigmoid", "b=3 n=5"):
        assert word in text
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
    written = json.loads(json.dumps(bench.to_dict(rows)))["rows"][0]
    assert (written["error"], written["baseline_error"]) == (rows[0].error, rows[0].baseline_error)


def test_no_error_is_shown_where_no_record_declares_tails():
    rows = bench.bench_rule(rule(), seconds=0)
    assert {(r.error, r.baseline_error) for r in rows} == {(None, None)}
    assert "accuracy" not in shown(bench.tables(rows))


def test_scratch_of_a_formed_jacobian_shows():
    def formed(x):
        return jax.jacobian(jnp.cumsum)(x) @ x

    case = Case(("n",), {"n": 512})
    (first, *_) = bench.bench_rule(rule(jnp.cumsum, {"J x": formed}, case), seconds=0)
    ours, theirs = (c.temporary for c in (first.ours, first.theirs))
    assert ours is not None
    assert theirs is not None
    assert ours < 4 * 512**2 <= theirs


def test_labels_and_masks_are_arguments_not_constants():
    (ours,) = find("softmax_cross_entropy_with_integer_labels")
    case = Case(("b n", Input("b", index_below("n"))), {"b": 3, "n": 5}, {"where": Input("b n", random_mask)})
    rows = bench.bench_rule(replace(ours, bench=(case,)), seconds=0)
    assert len(rows) == len(bench.MEASURES)


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
        bench.bench_rule(rule(baselines={"other": baseline}), seconds=0)


def test_negative_seconds_are_refused():
    with pytest.raises(ValueError, match="seconds must be at least 0, got -1"):
        bench.bench_rule(rule(), seconds=-1)


def test_calls_take_turns():
    order = []
    times = bench.interleaved([lambda: order.append("a"), lambda: order.append("b")], 0)
    assert "".join(order) == "ab" * (2 + bench.FEWEST_QUICK)
    assert times.shape == (2, bench.FEWEST_QUICK)


def test_the_reason_of_a_slower_rule_is_printed():
    assert list(bench.remarks([row(1.0, 0.95), row(1.0, 3.0)])) == []
    (line,) = bench.remarks([row(1.2, 1.0)])
    assert line == "f [n=8] forward: 1.20 x the time of jnp.f. Reason for the rule: it is shown"


def test_tables_hold_every_figure_at_80_columns():
    rows = [replace(row(2e-3, 0.13), measure=m, baseline=b) for b in ("jnp.f", "lax.f") for m in bench.MEASURES]
    growth = bench.Growth("f", "Algorithm 4", "n", (1000, 2000), (1e-3, 2e-3))
    text = shown(bench.tables(rows, [growth]))
    for word in (
        "n=8",
        "jnp.f",
        "lax.f",
        "2.00",
        "130",
        "15%",
        "65.0 x",
        "0.03",
        "8.0",
        "4.0",
        "1,000",
        "1.00",
    ):
        assert word in text
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text


def test_json_holds_rows_growth_and_where_they_were_measured():
    growth = bench.Growth("f", "Algorithm 3", "n", (10, 20, 40), (1.0, 4.0, 16.0))
    found = json.loads(json.dumps(bench.to_dict([row(1.0, 3.0)], [growth])))
    assert found["rows"][0]["ratio"] == 3.0
    assert found["rows"][0]["theirs"]["temporary"] == 4_000_000
    assert math.isclose(found["growth"][0]["exponent"], 2)
    assert found["environment"]["jax"] == jax.__version__


def test_growth_of_time_is_measured():
    def steps(count):
        return lambda x: jax.lax.fori_loop(0, count(x), lambda i, y: jnp.sin(y), jnp.ones(()))

    case = Case(("n",), {"n": 1})
    scaling = {
        "n": Scaling(steps(lambda x: x.size), case, ("n", (100, 200, 400))),
        "n^2": Scaling(steps(lambda x: x.size**2), case, ("n", (100, 200, 400))),
    }
    linear, quadratic = bench.bench_growth(rule(case=case, scaling=scaling), seconds=0)
    assert linear.exponent < quadratic.exponent


def test_convolution_of_a_million_numbers_is_timed_against_both_baselines():
    (conv1d,) = find("conv1d")
    rows = bench.bench_rule(replace(conv1d, bench=conv1d.bench[:1]), seconds=0)
    assert rows[0].case == "n=1000000 k=3"
    assert {r.baseline for r in rows} == {"lax.conv_general_dilated", "jnp.convolve"}
    assert {r.measure for r in rows} == set(bench.MEASURES)


def test_algorithm_4_grows_linearly_and_algorithm_3_quadratically():
    (conv1d,) = find("conv1d")
    exponents = {}
    for name, (fn, case, (growing, sizes)) in conv1d.scaling.items():
        flops = []
        for n in sizes:
            args, _ = case.avals({**case.dims, growing: n})
            cost = jax.jit(fn).lower(*args).compile().cost_analysis()
            assert cost is not None
            flops.append(cost["flops"])
        exponents[name] = math.log(flops[-1] / flops[0]) / math.log(sizes[-1] / sizes[0])
    assert {name: round(e, 2) for name, e in exponents.items()} == {"Algorithm 3": 2.0, "Algorithm 4": 1.0}
