"""Mutants of the kinds that rules in use taught: each is right where it hides, and killed where it shows."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from wrong_rule import keeping, normal
from wrong_rules import rule

from vjplib import mutation as power
from vjplib.mutation.equivalence import equivalent
from vjplib.mutation.mutate import mutant, mutate, mutations, shown
from vjplib.mutation.operators import KEYWORD, NARROW, NESTED, STATIC
from vjplib.mutation.score import killer
from vjplib.mutation.target import LONG, Target
from vjplib.rule import Case, Input, Rule, index_below
from vjplib.verification.call import CallUnderTest


def record(fn, reference, *cases, **options):
    return Rule(fn, reference, {"reference": reference}, cases, **options)


def only(found, operator, primitive=None):
    (mutation,) = [m for m in found if m.operator == operator and primitive in (None, m.primitive)]
    return mutation


def judged(target, i, mutation):
    """Returns the claim that kills a mutant, empty for none, and whether it is equivalent to the rule."""
    return killer(target, i, mutate(target.calls[i], mutation), mutation), equivalent(target, mutation)


# ------------------------------------------------------------------------------------------------------- accumulators
def added(how):
    def bwd(res, g):
        wide = g.astype(jnp.promote_types(g.dtype, jnp.float32))
        return how(wide).astype(g.dtype), g

    return bwd


def scanned(g):
    return jax.lax.scan(lambda total, row: (total + row, None), jnp.zeros_like(g[0]), g)[0]


ADDED = {
    "reduce_sum": lambda g: jnp.sum(g, 0),
    "dot_general": lambda g: jnp.ones(g.shape[:1], g.dtype) @ g,
    "cumsum": lambda g: jax.lax.cumsum(g, 0)[-1],
    "scan": scanned,
}


@pytest.mark.parametrize("primitive", ADDED)
def test_a_narrow_accumulator_stops_growing_in_half_precision_alone(primitive):
    fn = keeping(lambda w, x: w + x, added(ADDED[primitive]))
    at = CallUnderTest(fn, (normal(3), normal(5, 3)))
    wrong = mutant(fn, only(mutations(at), NARROW, primitive))

    def total(f, dtype):
        w, x = jnp.zeros(3, dtype), jnp.zeros((LONG, 3), dtype)
        return jax.vjp(f, w, x)[1](jnp.ones((LONG, 3), dtype))[0].astype(jnp.float32)

    assert jnp.allclose(total(wrong, jnp.float32), LONG)
    assert jnp.allclose(total(fn, jnp.bfloat16), LONG, rtol=0.01)
    assert jnp.allclose(total(wrong, jnp.bfloat16), 256)


def test_a_narrow_accumulator_of_a_reversed_sum_adds_the_same():
    fn = keeping(lambda x: jax.lax.cumsum(x, 1), lambda res, g: (jax.lax.cumsum(g, 1, reverse=True),))
    wrong = mutant(fn, only(mutations(CallUnderTest(fn, (normal(3, 5),))), NARROW))
    x, g = normal(3, 5), normal(3, 5)
    assert jnp.allclose(jax.vjp(wrong, x)[1](g)[0], jax.vjp(fn, x)[1](g)[0], rtol=1e-5)


def test_a_narrow_accumulator_is_killed_at_a_long_axis():
    fn = keeping(lambda w, x: w + x, added(ADDED["reduce_sum"]))
    target = Target(record(fn, lambda w, x: w + x, Case(("n", "b n"), {"b": 2, "n": 3})), 0)
    assert judged(target, 0, only(mutations(target.cases[0]), NARROW)) == ("accuracy", False)


# --------------------------------------------------------------------------------------------------- static arguments
def padded(x, pad):
    return jnp.pad(x, ((pad[0], pad[0]), (pad[1], pad[1])))


def padded_bwd(pad, res, g):
    return (jax.lax.slice(g, pad, (pad[0] + res[0].shape[0], pad[1] + res[0].shape[1])),)


PADDED = keeping(padded, padded_bwd, 1)
SIZES = {"a": 3, "b": 5}


def test_a_static_tuple_is_replaced_where_that_does_not_show_and_killed_where_it_does():
    cases = [Case(("a b",), SIZES, {"pad": pad}) for pad in ((1, 1), (1, 2))]
    target = Target(record(PADDED, padded, *cases), 0)
    ((i, first),) = [pair for pair in target.candidates if pair[1].primitive == STATIC]
    assert (i, first.operator) == (0, "first for all")
    x, wrong = normal(3, 5), mutant(PADDED, first)
    for pad, right in (((1, 1), True), ((1, 2), False)):
        dx, given = (jax.grad(lambda x, f=f, pad=pad: jnp.sum(f(x, pad) ** 3))(x) for f in (wrong, PADDED))
        assert jnp.allclose(dx, given) == right
    assert judged(target, i, first) == ("value", False)


def test_a_fault_of_other_static_values_is_killed_where_the_record_states_them_and_else_survives():
    case = Case(("a b",), SIZES, {"pad": (1, 1)})
    for vary, claim in (({"pad": ((1, 2),)}, "variations"), ({}, "")):
        target = Target(record(PADDED, padded, case, vary=vary), 0)
        (first,) = [m for _, m in target.candidates if m.primitive == STATIC]
        assert judged(target, 0, first) == (claim, False)


@dataclass(frozen=True)
class Scaled:
    factor: float = 1.0


def test_a_field_of_a_configuration_is_held():
    def scaled(x, config):
        return jnp.sin(x) * config.factor

    fn = keeping(scaled, lambda config, res, g: (g * jnp.cos(res[0]) * config.factor,), 1)
    cases = [Case(("a",), {"a": 5}, {"config": Scaled(factor)}) for factor in (2.0, 3.0)]
    target = Target(record(fn, scaled, *cases), 0)
    held = [(i, m) for i, m in target.candidates if m.operator == "held"]
    assert [(i, m.detail) for i, m in sorted(held)] == [(0, (0, 2.0)), (1, (0, 3.0))]
    assert all(not shown(target.cases[i], [m]) and shown(target.cases[1 - i], [m]) for i, m in held)
    assert judged(target, *held[0]) == ("value", False)


# -------------------------------------------------------------------------------------------------- arrays by keyword
def weighted(x, scale):
    return jnp.tanh(x) * scale


WEIGHTED = keeping(
    weighted, lambda res, g: (g * (1 - jnp.tanh(res[0]) ** 2) * res[1], jnp.sum(g * jnp.tanh(res[0]), 0))
)


def test_the_cotangent_of_an_array_by_keyword_is_lost_and_that_is_killed():
    target = Target(record(WEIGHTED, weighted, Case(("b n", "n"), {"b": 3, "n": 5})), 0)
    found = [(i, m) for i, m in target.candidates if m.primitive == KEYWORD]
    assert [m.operator for _, m in sorted(found)] == ["factor by keyword", "zero by keyword"]
    lost = only([m for _, m in found], "zero by keyword")
    wrong = mutant(WEIGHTED, lost)
    x, scale = normal(3, 5), normal(5)
    by_keyword = jax.grad(lambda s: jnp.sum(wrong(x, scale=s)))(scale)
    assert not np.any(by_keyword)
    assert np.all(jax.grad(lambda s: jnp.sum(wrong(x, s)))(scale) == jnp.sum(jnp.tanh(x), 0))
    assert all(judged(target, i, m) == ("value", False) for i, m in found)


def test_integers_by_keyword_may_stand_before_the_array():
    def looked_up(x, rows, table):
        return jnp.tanh(x) * table[rows]

    def bwd(res, g):
        (_, rows, table), t = res, jnp.tanh(res[0])
        return g * (1 - t**2) * table[rows], None, jnp.zeros_like(table).at[rows].add(g * t)

    case = Case(("b n", Input("b", index_below("v")), "v n"), {"b": 3, "n": 5, "v": 4})
    target = Target(record(keeping(looked_up, bwd), looked_up, case), 0)
    found = [(i, m) for i, m in target.candidates if m.primitive == KEYWORD]
    assert {m.where for _, m in found} == {"table"}
    assert all(judged(target, i, m) == ("value", False) for i, m in found)


def test_a_function_of_one_array_has_no_mutant_by_keyword():
    assert not Target(record(jnp.sin, jnp.sin, Case(("n",), {"n": 3})), 0).by_keyword


# ------------------------------------------------------------------------------------------------------ nested batches
def test_a_batching_rule_that_is_wrong_in_two_batches_is_killed():
    fn = rule(lambda x: jnp.sin(x), lambda x: (jnp.sin(x), x), lambda x, g: (g * jnp.cos(x),))
    target = Target(record(fn, jnp.sin, Case(("n",), {"n": 5})), 0)
    nested = only(mutations(target.cases[0]), NESTED)
    x, slopes = normal(2, 3, 5), [jax.grad(lambda x, f=f: jnp.sum(f(x))) for f in (mutant(fn, nested), fn)]
    for batches, right in ((0, True), (1, True), (2, False)):
        at, (wrong, given) = x[(0,) * (2 - batches)], slopes
        for _ in range(batches):
            wrong, given = jax.vmap(wrong), jax.vmap(given)
        assert jnp.allclose(wrong(at), given(at)) == right
    assert jnp.allclose(*(jax.hessian(lambda x, f=f: jnp.sum(f(x)))(x[0, 0]) for f in (mutant(fn, nested), fn)))
    assert judged(target, 0, nested) == ("transforms", False)


def test_every_new_kind_is_scored():
    cases = [Case(("b n", "n"), {"b": 3, "n": 5}, {"axes": axes}) for axes in ((0, 0), (0, 1))]

    def scaled(x, w, axes):
        return x * w * (1 + axes[1])

    def bwd(axes, res, g):
        g = g * (1 + axes[1])
        return g * res[1], jnp.sum(g * res[0], 0)

    score = power.score(record(keeping(scaled, bwd, 2), scaled, *cases), count=40)
    verdicts = {o.operator: o.verdict for o in score.outcomes}
    assert {NARROW, NESTED, "first for all", "zero by keyword"} <= {o for o, v in verdicts.items() if v == "killed"}
    assert list(power.survivors([score])) == []
