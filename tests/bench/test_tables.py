"""Tables show every number of what was timed, in 80 columns."""

from dataclasses import replace
from io import StringIO

from rich.console import Console

from vjplib.bench import Cost, Growth, Measurement, Row, rules, tables
from vjplib.bench.sweep import Trial
from vjplib.bench.training_steps import StepCosts, TrainingStep


def cost(median):
    return Cost(median, 0.9 * median, 1.2 * median, 9, 0.41, 1.25, 423_900_000, 549_200_000)


def shown(tables):
    """Return tables as a terminal of 80 columns shows them, in which no line is cut off."""
    text = StringIO()
    for table in tables:
        Console(file=text, width=80).print(table)
    assert max(map(len, text.getvalue().splitlines()), default=0) <= 80
    assert "…" not in text.getvalue()
    return text.getvalue()


def rows(**fields):
    row = Row("f", "n=8", "jnp.f", "forward", cost(2e-3), cost(0.13), "it is shown", **fields)
    return [replace(row, measure=m, baseline=b) for b in ("jnp.f", "lax.f") for m in rules.MEASURES]


def test_rules():
    growth = Growth("f", "Algorithm 4", "n", (1000, 2000), (1e-3, 2e-3))
    text = shown(tables.of_rules(rows(), [growth]))
    for word in ("n=8", "jnp.f", "lax.f", "2.00", "130", "15%", "65.0 x", "1.66", "549.2", "423.9", "1,000", "1.00"):
        assert word in text
    assert "accuracy" not in text  # no record declares tails


def test_accuracy_in_the_tails():
    text = shown(tables.of_rules(rows(error=2e-7, baseline_error=1.0)))
    for word in ("accuracy", "autodiff's", "2e-07", "1e+00", "jnp.f", "n=8"):
        assert word in text


def test_a_slower_rule_is_red():
    slow = replace(rows()[0], ours=cost(2e-3), theirs=cost(1e-3))
    (table,) = tables.of_rules([slow, replace(slow, measure="returned", ours=cost(1e-3))])
    text = StringIO()
    Console(file=text, width=80, force_terminal=True, color_system="standard").print(table)
    assert "31m0.500 x" in text.getvalue()
    assert "31m1.00 x" not in text.getvalue()


def test_training_steps():
    plain = StepCosts(cost(0.25), cost(1.2345), cost(0.3), cost(0.0991), peak=816_000_000)
    kept = StepCosts(cost(0.18), cost(0.9), cost(0.2), cost(0.09), peak=1_220_000_000)
    step = TrainingStep("MobileNetV2-like", (16, 56, 56, 32), plain, kept)
    text = shown(tables.of_steps([step, replace(step, costs=StepCosts(plain.ours, plain.theirs), kept=None)]))
    words = ("MobileNetV2-like", "16x56x56x32", "1234 ±15%", "4.94 x", "0.396 x", "1.66", "549.2", "423.9")
    for word in (*words, "180", "5.00 x", "0.500 x", "816", "1220", "not glibc"):
        assert word in text
    assert text.count("torch") == text.count("vjplib conv") == 1


def test_random_convolutions():
    arguments = {"padding": "SAME", "dimension_numbers": ("NWC", "WIO", "NWC"), "window_strides": (2,)}
    served, errors = ("shifted copies", "a", "b"), (2e-7, 1e-7, 0.0)
    trial = Trial((2, 9, 4), (3, 4, 8), arguments, served, 0.5, 2e-3, 1e-3, (0.25, 0.75), errors, errors)
    text = shown(tables.of_sweep([trial]))
    for word in ("1 random", "shifted copies", "0.500", "2.00", "1.00", "0.25", "0.75", "NWC2x9x4"):
        assert word in text
    assert "WRONG" not in text
    text = shown(tables.of_sweep([trial, replace(trial, errors=(2e-7, float("inf"), 3.0))]))
    for word in ("WRONG", "inf", "2.0e-07", "3.0e+00", "2 random"):
        assert word in text


def test_reasons():
    holds = Measurement("f", "keeps x alone", "kept bytes", "n=8", "jnp.f", 0.34, 8_400_000, 25_200_000)
    times = replace(holds, quantity="time", at_most=0.5, ours=3e-3, theirs=4e-3)
    error = replace(holds, quantity="error", ours=2e-7, theirs=float("inf"))
    other = replace(holds, quantity="time", ours=None, theirs=None, note="not measured: claimed for tpu, this is cpu")
    text = shown(tables.of_reasons([holds, times, error, other, Measurement("h", "is shown", note="not measured")]))
    for word in (
        "keeps x alone",
        "n=8",
        "jnp.f",
        "0.34",
        "0.33",
        "8.40 MB",
        "25.20 MB",
        "3.00 ms",
        "2e-07",
        "NaN, inf",
    ):
        assert word in text
    for word in ("tpu", "is shown", "not measured", "≤ 0.5 "):
        assert word in text
    assert (text.count("holds"), text.count("GONE")) == (2, 1)


def test_nothing_timed_is_no_table():
    assert list(tables.of_rules([])) == list(tables.of_reasons([])) == list(tables.of_steps([])) == []
