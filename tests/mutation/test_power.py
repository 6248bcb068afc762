"""Power: mutants of each operator are killed, what changes nothing is told apart, V13 names what is not seen."""

import importlib
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from wrong_rules import normal, rule

import vjplib
from vjplib import mutation as power
from vjplib.__main__ import main
from vjplib.mutation.equivalence import equivalent
from vjplib.mutation.mutate import mutant, mutate, mutations
from vjplib.mutation.operators import NARROW, NESTED, Mutation
from vjplib.mutation.score import killer
from vjplib.mutation.target import Target
from vjplib.rule import Case, Edge, Input, Rule, find, random_mask
from vjplib.verification.call import CallUnderTest
from vjplib.verification.claims import linearity, second_order, value

X, SQUARE, ROW = normal(3, 5), normal(3, 3), normal(5)


def everything(x, w, v):
    """A function whose backward holds an equation for most operators."""
    y = jnp.where(x > v, jnp.exp(x), x - v) @ w
    return jnp.cumsum(y[:, ::-1], 1) / (1 + v[:3] ** 2)


def everything_fwd(x, w, v):
    return everything(x, w, v), (x, w, v)


def everything_bwd(res, g):
    x, w, v = res
    chosen = jnp.where(x > v, jnp.exp(x), x - v)
    scaled = g / (1 + v[:3] ** 2)
    dy = jax.lax.rev(jax.lax.cumsum(scaled, 1, reverse=True), (1,))
    dc = dy @ w.T
    dx = jnp.where(x > v, jnp.exp(x), 1.0) * dc
    z = jnp.cumsum((chosen @ w)[:, ::-1], 1)
    dv = -jnp.sum(jnp.where(x > v, 0, dc), 0)
    of_scale = -jnp.sum(g * z, 0) * 2 * v[:3] / (1 + v[:3] ** 2) ** 2
    return dx, jnp.einsum("bi,bo->io", chosen, dy), dv + jnp.pad(of_scale, (0, 2))


EVERYTHING = rule(everything, everything_fwd, everything_bwd)
SUBJECT = CallUnderTest(EVERYTHING, (X, normal(5, 3), ROW), hurried=True)


def by_operator():
    found = {}
    for mutation in mutations(SUBJECT):
        found.setdefault(mutation.operator, []).append(mutation)
    return found


MUTATIONS = by_operator()
FEW = 5  # some change nothing: a case of `where` that is not chosen, a place where no derivative is taken


SHOWN_ELSEWHERE = ("strictness", NARROW, NESTED)  # see below, and test_field_mutants.py


def kills(base, mutation):
    subject = mutate(base, mutation)
    checks = (
        (value.in_float64, second_order.check)
        if mutation.operator == "detached"
        else (value.in_float64, linearity.check)
    )
    return any(f.level == "fail" for check in checks for f in check(subject))


def test_the_operators_of_the_design_apply():
    assert {
        "operands swapped",
        "sign",
        "factor",
        "term dropped",
        "wrong axis",
        "sum lost",
        "mean for a sum",
        "transposed",
        "operand transposed",
        "off by one",
        "lower precision",
        "detached",
        "predicate negated",
        "strictness",
        "other direction",
        "exponent off by one",
        "constant off by one",
    } <= set(MUTATIONS)


@pytest.mark.parametrize("operator", [name for name in MUTATIONS if name not in SHOWN_ELSEWHERE])
def test_a_mutant_of_each_operator_is_killed(operator):
    assert any(kills(SUBJECT, mutation) for mutation in MUTATIONS[operator][-FEW:])


def test_the_rule_itself_is_right():
    assert vjplib.verify(
        EVERYTHING, SUBJECT.args, effort="quick", claims=("contract", "value", "linearity", "second_order")
    ).ok


def test_strictness_shows_where_numbers_are_equal():
    (relu,) = find("relu")
    comparing = rule(
        lambda x: jnp.maximum(x, 0),
        lambda x: (jnp.maximum(x, 0), x),
        lambda x, g: (jnp.where(x >= 0, g, 0),),
    )
    (mutation,) = [m for m in mutations(CallUnderTest(comparing, (ROW,))) if m.operator == "strictness"]
    wrong = mutant(comparing, mutation)
    assert not vjplib.verify(wrong, (ROW,), reference=relu.reference, claims=("edges",)).ok
    assert vjplib.verify(comparing, (ROW,), reference=relu.reference, claims=("edges",)).ok


def test_a_mutation_is_made_anew_at_other_shapes_and_dtypes_and_under_transforms():
    wrong = mutant(vjplib.softmax, Mutation("_softmax", "sub", 1, "sign", (0,)))
    for x in (X, normal(2, 7), ROW, X.astype(jnp.bfloat16)):
        y, g = jax.nn.softmax(x.astype(jnp.float32)), jnp.ones(x.shape) * jnp.arange(x.shape[-1])
        expected = -y * (g - jnp.sum(g * y, -1, keepdims=True))
        found = jax.vjp(wrong, x)[1](g.astype(x.dtype))[0]
        assert jnp.allclose(found.astype(jnp.float32), expected, rtol=0.05, atol=1e-5)
    one = jax.vmap(jax.jit(jax.grad(lambda x: jnp.sum(wrong(x) ** 2))))(X)
    assert jnp.allclose(one, jax.grad(lambda x: jnp.sum(wrong(x) ** 2))(X), rtol=1e-5, atol=1e-6)


def test_a_rule_behind_jit_is_mutated_though_it_was_traced_before():
    inner = jax.jit(vjplib.tanh)
    right = jax.grad(lambda x: jnp.sum(inner(x)))(ROW)
    wrong = mutant(inner, Mutation("_tanh", "custom_jvp_call", 0, "sign", (0,)))
    assert jnp.allclose(jax.grad(lambda x: jnp.sum(wrong(x)))(ROW), -right)
    assert jnp.allclose(jax.grad(lambda x: jnp.sum(inner(x)))(ROW), right)


def looped_bwd(x, g):
    def step(carry, a):
        return carry + a, carry * jnp.float32(2)

    _, ys = jax.lax.scan(step, jnp.zeros_like(g[0]), g)
    return (jax.lax.cond(x[0, 0] > 100, lambda: ys, lambda: ys * x),)


def test_equations_inside_loops_and_branches_are_mutated():
    fn = rule(lambda x: x * 1, lambda x: (x * 1, x), looped_bwd)
    subject = CallUnderTest(fn, (X,))
    found = mutations(subject)
    g = jnp.ones_like(X)
    plain = jax.vjp(fn, X)[1](g)[0]
    for primitive, number in (("add", 0), ("mul", 0), ("mul", 1)):
        (mutation,) = [m for m in found if m[1:4] == (primitive, number, "factor") and m.detail[1] > 1]
        changed = jax.vjp(mutant(fn, mutation), X)[1](g)[0]
        assert not jnp.allclose(changed, plain, rtol=1e-5, atol=0)
    assert "other branch" in {m.operator for m in found}
    assert {m.primitive for m in found} >= {"scan", "cond", "add"}


def double(x, m):
    return jnp.where(m, x, 0) * 2


def double_bwd(m, g):
    kept = jnp.where(m, g, 0)
    return jnp.where(m, 2 * kept, kept - kept), None


DOUBLE = rule(double, lambda x, m: (double(x, m), m), double_bwd)
RECORD = Rule(
    fn=DOUBLE,
    reference=double,
    baselines={"double": double},
    cases=(Case(("b n", Input("b n", random_mask)), {"b": 2, "n": 3}),),
    edges=(Edge("all masked", ([1.0, 2.0], np.zeros(2, bool))),),
)


def test_score_counts_what_is_killed_and_by_which_claim():
    score = power.score(RECORD, count=6)
    assert score.count("survived") == 0
    assert score.count("killed") == 6
    killed = [o for o in score.outcomes if o.verdict == "killed"]
    assert {o.claim for o in killed} <= {"contract", "value", "linearity", "second_order", "edges"}
    assert any("test_power.py:" in o.mutation for o in killed)
    assert power.score(RECORD, count=1).outcomes == power.score(RECORD, count=1).outcomes


def test_what_changes_nothing_is_equivalent():
    target = Target(RECORD, 0)
    found = [m for _, m in target.candidates if m.primitive == "sub"]
    (of_zero,) = [m for m in found if m.operator == "factor" and m.detail[1] > 1]  # of 0
    assert killer(target, 0, mutate(target.cases[0], of_zero), of_zero) == ""
    assert equivalent(target, of_zero)
    (sign,) = [m for _, m in target.candidates if (m.primitive, m.operator) == ("mul", "sign")]
    assert not equivalent(target, sign)


def test_survivors_are_listed_and_fail_the_command(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(importlib.import_module("vjplib.mutation.score"), "_examinations", lambda *args: iter(()))
    command = [
        "power",
        "quadratic",
        "--mutants",
        "2",
        "--runs",
        "2",
        "--jobs",
        "0",
        "--json",
        str(tmp_path / "power.json"),
    ]
    assert main(command) == 1
    shown = capsys.readouterr().out
    assert shown.count("survived: quadratic [") == 2
    assert "activations.py:" in shown
    assert max(map(len, shown.split("survived")[0].splitlines())) <= 80
    content = json.loads((tmp_path / "power.json").read_text(encoding="utf-8"))
    assert content["shares"]["vjplib"] == 0
    assert content["runs"] == 2


@pytest.mark.skipif(sys.platform != "linux", reason="signals are Linux's")
def test_a_rule_that_kills_its_process_is_named_and_fails_the_command(monkeypatch, capsys, tmp_path):
    (tmp_path / "deadly.py").write_text(
        """
import os
import jax, jax.numpy as jnp
from vjplib.rule import Case, Rule

@jax.custom_vjp
def dies(x):
    return jnp.sin(x)

dies.defvjp(lambda x: (jnp.sin(x), x), lambda x, g: (os.kill(os.getpid(), 9), g)[1:])
RULES = (Rule(dies, jnp.sin, {"sin": jnp.sin}, (Case(("n",), {"n": 5}),)),)
"""
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])
    assert main(["power", "deadly", "--runs", "1", "--mutants", "1", "--jobs", "1"]) == 1
    shown = capsys.readouterr().out
    assert shown.count("dies is not measured: the process that examined it died by SIGKILL") == 2
    sys.modules.pop("deadly")


def test_alarms_are_counted_by_run_and_fail_the_command():
    alarm = power.Alarm("vjplib", "f", 3, "n=2", "value FAIL")
    scores = [power.score(RECORD, 1)]
    alarms = power.joined([power.Alarms(2, (alarm, alarm)), power.Alarms(2, ())])
    assert (alarms.runs, alarms.of("vjplib"), alarms.of("check_grads")) == (4, 1, 0)
    assert not power.enough(scores, alarms)
    assert power.enough(scores, power.Alarms(4, ()))


def test_a_correct_rule_raises_no_alarm_and_a_wrong_one_does():
    assert [a for a in power.run_correct(RECORD, range(4), 0).alarms if a.by == "vjplib"] == []
    wrong = rule(double, lambda x, m: (double(x, m), m), lambda m, g: (g * 2, None))
    alarms = power.run_correct(Rule(wrong, double, RECORD.baselines, RECORD.cases), range(4), 0).alarms
    assert {a.run for a in alarms if a.by == "vjplib"} == {0, 1, 2, 3}


def test_infinite_cotangents_of_what_is_masked_do_not_matter():
    kept = np.array([True, False, True, False, True])
    chosen = rule(double, lambda x, m: (double(x, m), m), lambda m, g: (2 * jnp.where(m, g, 0), None))
    assert vjplib.verify(chosen, (ROW, kept), claims=("edges",)).ok
    product = rule(double, lambda x, m: (double(x, m), m), lambda m, g: (g * m * 2, None))
    (failure,) = vjplib.verify(product, (ROW, kept), claims=("edges",)).failures
    assert failure.message.startswith("infinite cotangents of masked outputs: not finite")
    assert failure.trap == "zero-times-infinity"


def test_a_function_that_is_saturated_at_the_call_raises_no_alarm():
    """All that is left of the derivative is the rounding of the output, which the rule keeps and autodiff does not."""
    (record,) = find("sigmoid")
    for dtype in (np.float32, jnp.bfloat16):
        args = (np.full((2, 1), 16.3, dtype),)
        report = vjplib.verify(
            vjplib.sigmoid, args, reference=record.reference, claims=("value", "second_order", "accuracy")
        )
        assert not report.failures, report


# ------------------------------------------------------------------------------------------------------------------ V13


def seen(fn, *args):
    (finding,) = vjplib.verify(fn, args, claims=("coverage",)).findings
    return finding.level, finding.message


def test_inputs_see_every_equation_of_the_backward():
    level, message = seen(EVERYTHING, *SUBJECT.args)
    assert level == "pass", message
    assert "every one of" in message


def test_a_mask_that_hides_a_term_is_named():
    fn = rule(double, lambda x, m: (double(x, m), m), lambda m, g: (jnp.where(m, jnp.sin(g), 2 * g), None))
    level, message = seen(fn, ROW, np.ones(5, bool))
    assert level == "note"
    assert "test_power.py" in message
    assert "no cotangent moves with `2 * g` at" in message
    half = np.array([True, False, True, False, True])
    assert seen(fn, ROW, half)[0] == "pass"


def test_a_term_that_cancels_is_named():
    fn = rule(jnp.sin, lambda x: (jnp.sin(x), x), lambda x, g: (g * jnp.cos(x + jnp.exp(x) * 0),))
    level, message = seen(fn, ROW)
    assert level == "note"
    assert "`jnp.exp(x)` at" in message


def test_without_a_backward_in_sight_nothing_is_shown():
    level, message = seen(jnp.sin, ROW)
    assert level == "skipped"
    assert "no floating equation" in message
    looped = seen(lambda x: jax.lax.map(vjplib.tanh, x), ROW)
    assert looped[0] == "skipped"
    infinite = rule(jnp.sin, lambda x: (jnp.sin(x), x), lambda x, g: (g * jnp.cos(x) / jnp.zeros_like(x),))
    assert seen(infinite, ROW)[0] == "skipped"


def test_a_rule_behind_jit_is_seen():
    inner = jax.jit(vjplib.tanh)
    inner(X)
    assert seen(lambda x: inner(x), X)[0] == "pass"


# ----------------------------------------------------------------------------------------------------------------- deep


@pytest.mark.deep
@pytest.mark.parametrize("name", ["softmax", "linear", "log_softmax", "max_pool"])
def test_nearly_all_mutants_are_killed(name):
    """But those of a correction that is 0 but for rounding, under a mask: tails are those of calls without one."""
    (record,) = find(name)
    survivors = list(power.survivors([power.score(record, count=12, seed=1)]))
    assert [s for s in survivors if not ("where=mask" in s and "(_finite)" in s)] == []
    assert len(survivors) <= 1


@pytest.mark.deep
def test_correct_rules_raise_no_alarm():
    for k, name in enumerate(("sigmoid", "log_softmax", "conv1d")):
        (record,) = find(name)
        runs = range(10 * k, 10 * k + 10)
        assert [a for a in power.run_correct(record, runs, 2).alarms if a.by == "vjplib"] == []
