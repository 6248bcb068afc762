"""Every record against every claim, each an id of its own; and what every rule promises beside its derivative."""

from functools import cache
from typing import Any

import chex
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from claims_at_a_call import examine

from vjplib.precision import compute_dtype
from vjplib.rule import find, rules
from vjplib.verification import CLAIMS, verify_rule
from vjplib.verification.api import at_case

CHECKED = [claim.name for claim in CLAIMS.values() if claim.records and claim.name != "modes"]  # of hijax primitives
RULES = {rule.name: rule for rule in rules()}
CASES = {f"{name}-{i}": (rule, case) for name, rule in RULES.items() for i, case in enumerate(rule.cases)}


@cache
def proof_sheet(name):
    return verify_rule(RULES[name])


@pytest.mark.parametrize("claim", CHECKED)
@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.xdist_group(name)) for name in RULES])
def test_claim_holds(name, claim):
    report = proof_sheet(name)
    assert report.level(claim) == "pass", [str(f) for f in report.findings if f.claim == claim]
    assert not [f for f in report.failures if f.claim == claim]


def random_calls(count):
    rng = np.random.default_rng(2026)
    turns = [(number, *list(CASES.values())[number % len(CASES)]) for number in range(count)]
    return [
        pytest.param(rule, case, case.sizes(rng), int(rng.integers(2**31)), id=f"{rule.name}-{number}")
        for number, rule, case in turns
    ]


def assert_no_false_alarm(rule, case, sizes, seed, claims):
    findings = examine(at_case(rule, case, seed, **sizes), claims=claims)
    assert not [str(f) for f in findings if f.level == "fail"]


@pytest.mark.parametrize(("rule", "case", "sizes", "seed"), random_calls(20))
def test_no_false_alarm_at_random_sizes(rule, case, sizes, seed):
    assert_no_false_alarm(rule, case, sizes, seed, ("value", "linearity", "residuals"))


@pytest.mark.parametrize(
    ("name", "sizes", "seed", "claim"),
    [
        ("layer_norm-3", {"n": 2}, 1412060229, "value"),
        ("rms_norm-0", {"b": 2, "n": 1}, 5604635, "value"),
        ("weight_norm-1", {"m": 3, "n": 1, "c": 9}, 772176077, "value"),
        ("weight_norm-1", {"m": 3, "n": 1, "c": 9}, 772176077, "linearity"),
        ("normalize-2", {"n": 1}, 1, "taylor"),
    ],
)
def test_no_false_alarm_where_all_terms_cancel_along_a_short_axis(name, sizes, seed, claim):
    assert_no_false_alarm(*CASES[name], sizes, seed, (claim,))


@pytest.mark.deep
@pytest.mark.parametrize(("rule", "case", "sizes", "seed"), random_calls(200))
def test_no_false_alarm_over_200_random_sizes(rule, case, sizes, seed):
    assert_no_false_alarm(rule, case, sizes, seed, ("contract", "value", "linearity", "residuals"))


@pytest.mark.parametrize("name", RULES)
def test_lowers_for_every_platform(name):
    """Forward and backward go through jax.export for CPU, CUDA and TPU; only the CPU's program keeps calls apart."""
    rule = RULES[name]
    subject = at_case(rule, rule.cases[0])
    leaves = subject.leaves()
    gs = subject.cotangents(leaves)
    exported = jax.export.export(jax.jit(subject.pull(subject.call)), platforms=["cpu", "cuda", "tpu"])(leaves, gs)
    assert exported.platforms == ("cpu", "cuda", "tpu")
    for platform in ("cuda", "tpu"):
        alone = jax.export.export(jax.jit(subject.pull(subject.call)), platforms=[platform])(leaves, gs)
        assert "inlineable" not in alone.mlir_module()


@pytest.mark.parametrize("name", RULES)
def test_traces_once_for_the_same_shapes(name):
    chex.clear_trace_counter()
    rule = RULES[name]
    subject = at_case(rule, rule.cases[0])
    leaves = subject.leaves()
    counted = jax.jit(chex.assert_max_traces(subject.pull(subject.call), n=1))
    for seed in (1, 2):
        counted(leaves, subject.cotangents(leaves, seed))


variants: Any = chex.variants  # untyped in chex


@cache
def of_reference(name):
    call = RULES[name].cases[0].call(np.random.default_rng(0))
    return call, jax.jit(lambda *args: RULES[name].reference(*args, **call.kwargs))(*call.args)


class Variants(chex.TestCase):
    """Each rule's value under chex's variants: with jit, without, and with device arrays."""

    @variants(with_jit=True, without_jit=True, with_device=True, without_device=True)
    def test_value_equals_the_reference(self):
        for name, rule in RULES.items():
            call, expected = of_reference(name)
            ours = self.variant(lambda *args, rule=rule, call=call: rule.fn(*args, **call.kwargs))(*call.args)
            chex.assert_trees_all_close(ours, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float8_e4m3fn", "float8_e5m2"])
@pytest.mark.parametrize("name", RULES)
def test_answers_in_the_dtype_of_the_call(name, dtype):
    rule = RULES[name]
    subject = at_case(rule, rule.cases[0])
    leaves = subject.leaves(jnp.dtype(dtype))
    ys, dxs = jax.eval_shape(subject.pull(subject.call), leaves, subject.cotangents(leaves))
    # A loss summed over tokens or frames has the dtype of tokamax's or optax's: 8 bits would not count them.
    of_sums = dict.fromkeys(("linear_softmax_cross_entropy", "ctc_loss"), compute_dtype(jnp.dtype(dtype)))
    assert {y.dtype for y in ys} == {of_sums.get(name, jnp.dtype(dtype))}
    assert {dx.dtype for dx in dxs} == {jnp.dtype(dtype)}


@pytest.mark.parametrize("name", CASES)
def test_reference_answers_in_the_dtype_of_the_rule(name):
    subject = at_case(*CASES[name])
    for wide in (False, True):
        with jax.enable_x64(wide):
            for dtype in ("bfloat16", "float32"):
                leaves = subject.leaves(jnp.dtype(dtype))
                ours, theirs = (jax.eval_shape(f, *leaves) for f in (subject.call, subject.oracle))
                assert [y.dtype for y in ours] == [y.dtype for y in theirs]


def test_records_are_complete():
    for rule in RULES.values():
        assert rule.reason, rule.name
        assert rule.source, rule.name
        assert rule.bench, rule.name
        assert rule.edges, rule.name
        assert rule.residual_bytes, rule.name
        assert bool(rule.jacobian) is not rule.whole_array, rule.name


def test_references_hold_no_custom_rule():
    for rule in RULES.values():
        for case in rule.cases:
            call = case.call(np.random.default_rng(0))
            jaxpr = str(jax.make_jaxpr(lambda *args, r=rule, c=call: r.reference(*args, **c.kwargs))(*call.args))
            assert "custom_" not in jaxpr, rule.name


def test_every_rule_is_public_under_its_own_name():
    import vjplib

    for rule in RULES.values():
        assert getattr(vjplib, rule.name) is rule.fn
        assert find(rule.name) == (rule,)
