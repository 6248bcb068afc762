"""V6: rules that are right on one device, and wrong, refused or wasteful on several, are told from right ones."""

import importlib
import textwrap
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import PartitionSpec as P
from wrong_rules import normal, rule

import vjplib
from vjplib.compat import is_vmapped as is_mapped
from vjplib.rule import Case, Rule
from vjplib.rules import like_primal
from vjplib.verification.api import at_case, verify_rule
from vjplib.verification.call import CallUnderTest
from vjplib.verification.claims.sharding import claim
from vjplib.verification.claims.sharding.data_axis import MEAN, SUM, find_data_axis
from vjplib.verification.explain.traps import TRAPS

X, W, B = normal(2, 5), normal(3, 5), normal(3)
MODES = ("jit, Auto axes", "jit, Explicit axes", "shard_map, check_vma=True", "shard_map, check_vma=False")


def affine(x, W, b):
    return x @ W.T + b


def affine_rule(weights, inputs=lambda dx: dx, forward=affine):
    """A linear layer whose gradients of x, and of W and b, are passed through functions of them and their arguments."""

    def bwd(res, g):
        x, W, b = res
        dW = jnp.einsum("...m,...n->mn", g, x, out_sharding=jax.typeof(W).sharding if explicit() else None)
        return inputs(g @ W), weights(dW, W), weights(jnp.sum(g, axis=0), b)

    return rule(forward, lambda x, W, b: (forward(x, W, b), (x, W, b)), bwd)


def explicit():
    return any(kind == jax.sharding.AxisType.Explicit for kind in jax.sharding.get_abstract_mesh().axis_types)


def mapped():
    """The axes of shard_map at work, whether it keeps account of what varies or not."""
    return jax.sharding.get_abstract_mesh().manual_axes


def summed(a, like):
    return like_primal(a, like)


def summed_always(a, like):
    del like
    return lax.psum(a, mapped()) if mapped() else a


def averaged(a, like):
    varying = jax.typeof(a).manual_axis_type.varying - jax.typeof(like).manual_axis_type.varying
    return lax.pmean(a, tuple(varying)) if varying else a


def by_device_count(a, like):
    a = like_primal(a, like)
    return a * (lax.axis_size(*mapped()) if mapped() else 1)


def found(fn, args=(X, W, B), **options):
    return vjplib.verify(fn, args, claims=("sharding",), **options).findings


def modes(findings, level):
    return {mode for mode in MODES for f in findings if f.level == level and f.message.startswith(mode)}


def levels(findings):
    return {f.level for f in findings}


def softmax_by_rows(backward=lambda y, g: y * (g - jnp.sum(g * y, axis=-1, keepdims=True))):
    y = lambda x: jax.nn.softmax(x)  # noqa: E731
    return rule(y, lambda x: (y(x), y(x)), lambda y, g: (backward(y, g),))


def right_softmax(y, g):
    return y * (g - jnp.sum(g * y, axis=-1, keepdims=True))


RIGHT = {
    "sums as the mode requires": (affine_rule(summed), (X, W, B)),
    "plain JAX": (affine, (X, W, B)),
    "linear": (vjplib.linear, (X, W, B)),
    "softmax": (softmax_by_rows(), (X,)),
    "conv1d, mapped": (vjplib.conv1d, (normal(11), normal(3))),
    "groups of the batch, mapped": (
        jax.vmap(lambda x, k: vjplib.conv_general_dilated(x, k, (1,), "VALID", batch_group_count=2), (0, None)),
        (normal(11, 4, 3, 7), normal(6, 3, 2)),
    ),
    "a loss that is a mean": (lambda x, W: jnp.mean((x @ W.T) ** 2), (X, W)),
    "square matrices": (lambda x, W: jnp.tanh(x @ W.T), (normal(5, 5), normal(5, 5))),
}


@pytest.mark.parametrize("name", RIGHT)
def test_right_rules_pass_every_way(name):
    fn, args = RIGHT[name]
    findings = found(fn, args)
    assert levels(findings) == {"pass"}, findings
    assert modes(findings, "pass") == set(MODES)
    assert "no array with the data in it is sent between devices" in {f.message for f in findings}


WRONG = {
    "a sum too many": (affine_rule(summed_always), (X, W, B), {MODES[3]}, "cotangent of "),
    "a mean for a sum": (affine_rule(averaged), (X, W, B), {MODES[2]}, "cotangent of "),
    "a result that depends on the devices": (affine_rule(by_device_count), (X, W, B), set(MODES[2:]), "cotangent of "),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_numbers_fail(name):
    fn, args, where, argument = WRONG[name]
    findings = found(fn, args)
    failures = [f for f in findings if f.level == "fail"]
    assert modes(findings, "fail") == where, findings
    assert {f.argument[: len(argument)] for f in failures} == {argument}
    assert all("on 4 devices" in f.message for f in failures)
    assert vjplib.verify(fn, args, claims=("value",)).ok  # on one device it is right


def whole(g):
    """Everything on every device, where the compiler partitions."""
    auto = jax.sharding.AxisType.Auto in jax.sharding.get_abstract_mesh().axis_types
    return lax.with_sharding_constraint(g, P()) if auto and not mapped() else g


def by_rank(y, g):
    """The softmax's backward with the rows of the batch sorted, and put back."""
    if explicit() or mapped():
        return right_softmax(y, g)
    order = jnp.argsort(g[:, 0])
    inner = jnp.sum((g * y)[order], axis=-1, keepdims=True)
    return y * (g - inner[jnp.argsort(order)])


WASTEFUL = {
    "a constraint to be whole": (softmax_by_rows(lambda y, g: right_softmax(y, whole(g))), "all-gather"),
    "rows sorted by the batch": (softmax_by_rows(by_rank), "all-"),
}


@pytest.mark.parametrize("name", WASTEFUL)
def test_sent_activations_fail_where_none_are_claimed(name):
    fn, operation = WASTEFUL[name]
    for communication, level in ((False, "fail"), (True, "note")):
        findings = found(fn, (X,), communication=communication)
        (note,) = [f for f in findings if f.code == "communication"]
        assert note.level == level
        assert levels(findings) == {"pass", level}
        assert "sends data between devices" in note.message, findings
        assert "autodiff sends none" in note.message
        assert any(operation in op for op, _ in note.data["sent"])


def test_a_record_claims_that_nothing_is_sent():
    fn, _ = WASTEFUL["a constraint to be whole"]
    cases = (Case(("b n",), {"b": 2, "n": 5}),)
    record = Rule(fn=fn, reference=lambda x: jax.nn.softmax(x), baselines={}, cases=cases)
    assert [f.code for f in verify_rule(record, claims=("sharding",)).failures] == ["communication"]
    allowed = replace(record, communication=True)
    assert verify_rule(allowed, claims=("sharding",)).ok


def test_types_that_explicit_axes_refuse_in_other_words_are_not_shown():
    def bwd(x, g):
        if explicit():
            raise TypeError("cotangent type does not match function output")
        return (g * jnp.cos(x),)

    fn = rule(jnp.sin, lambda x: (jnp.sin(x), x), bwd)
    findings = found(fn, (X,))
    assert modes(findings, "skipped") == {MODES[1]}, findings
    assert levels(findings) == {"pass", "skipped"}
    assert any("Remedy: give each array that the backward makes" in f.message for f in findings)
    assert modes(found(fn, (X,), communication=False), "fail") == {MODES[1]}


def test_a_sum_taken_twice_is_named_as_the_trap_it_is():
    report = vjplib.verify(affine_rule(summed_always), (X, W, B), claims=("sharding",))
    named = {f.trap for f in report.failures}
    assert "double-psum" in named, report
    assert named <= {"double-psum", ""}
    assert TRAPS["double-psum"].words in str(report)
    assert {f.trap for f in found(vjplib.linear)} == {""}


def test_what_autodiff_sends_too_is_a_note():
    def f(x):
        return lax.with_sharding_constraint(jnp.sin(x), P()) if not mapped() and not explicit() else jnp.sin(x)

    def traced(x):
        mesh = jax.sharding.get_abstract_mesh()
        return jnp.sin(x) if mesh.empty else f(x)

    findings = found(rule(traced, lambda x: (traced(x), x), lambda x, g: (whole(g) * jnp.cos(x),)), (X,))
    assert levels(findings) == {"pass", "note"}, findings
    assert any("so does autodiff of the function itself" in f.message for f in findings)


def test_refused_for_a_missing_sum_is_not_shown_and_says_what_to_do():
    textbook = rule(
        affine, lambda x, W, b: (affine(x, W, b), (x, W)), lambda res, g: (g @ res[1], g.T @ res[0], jnp.sum(g, axis=0))
    )
    findings = found(textbook)
    assert modes(findings, "skipped") == set(MODES[1:3])
    assert modes(findings, "pass") == {MODES[0], MODES[3]}
    text = " ".join(f.message for f in findings if f.level == "skipped")
    assert "sum it over the axes along which it varies" in text
    assert "out_sharding=jax.typeof(argument).sharding" in text


def test_what_raises_for_another_reason_fails():
    def only_alone(dx):
        if mapped():
            raise NotImplementedError("not under shard_map")
        return dx

    findings = found(affine_rule(summed, only_alone))
    assert modes(findings, "fail") == set(MODES[2:])
    assert any("raises NotImplementedError: not under shard_map; autodiff does not" in f.message for f in findings)


def test_refused_with_autodiff_is_a_note():
    def merged(x):  # a sharded axis with another, which explicit axes refuse
        return jnp.reshape(jnp.sin(jnp.reshape(x.T, -1)), x.T.shape).T

    findings = found(rule(merged, lambda x: (merged(x), x), lambda x, g: (g * jnp.cos(x),)), (X,))
    assert not [f for f in findings if f.level == "fail"], findings
    assert any(f.level == "note" and "so does autodiff of the function itself" in f.message for f in findings)


def test_callbacks_are_not_run_where_devices_wait_for_one_another():
    def on_host(x):
        return jax.pure_callback(np.sin, jax.ShapeDtypeStruct(x.shape, x.dtype), x, vmap_method="expand_dims")

    fn = rule(on_host, lambda x: (on_host(x), x), lambda x, g: (g * jnp.cos(x),))
    (finding,) = found(fn, (X,))
    assert finding.level == "skipped"
    assert "calls back to Python" in finding.message


def test_a_loop_needs_no_autodiff_to_be_examined():
    def halved(x):
        return lax.while_loop(lambda s: s[0] < 3, lambda s: (s[0] + 1, s[1] / 2), (0, x))[1]

    assert levels(found(rule(halved, lambda x: (halved(x), None), lambda _, g: (g / 8,)), (X,))) == {"pass"}


def data_of(fn, *args, **kwargs):
    return find_data_axis(CallUnderTest(fn, args, kwargs), 4, np.float32)


def test_what_is_data_is_found_by_computing():
    mask = np.array([[True, False, True, True, True], [False, True, True, True, True]])
    ints = np.array([1, 0], np.int32)
    cases = [
        (data_of(affine, X, W, B), (0, None, None), (0,)),
        (data_of(lambda x, W: x @ W, normal(5, 5), normal(5, 5)), (0, None), (0,)),
        (data_of(lambda x, y: x * y, X, normal(2, 5)), (0, 0), (0,)),
        (data_of(lambda x, where: jnp.where(where, x, 0), X, where=mask), (0, 0), (0,)),
        (data_of(lambda x, i: x[jnp.arange(len(i)), i], X, ints), (0, 0), (0,)),
        (data_of(lambda x: (jnp.sum(x**2), jnp.mean(x)), X), (0,), (SUM, MEAN)),
    ]
    for data, axes, outputs in cases:
        assert data is not None
        assert (data.axes, data.outputs, data.mapped) == (axes, outputs, False)
        assert all(a.shape[k] == 4 * data.block for a, k in zip(data.arrays, axes, strict=True) if k is not None)
    data = data_of(lambda x: jnp.cumsum(x) / x.size, normal(7))
    assert data is not None
    assert data.mapped


def test_a_records_dimensions_are_tried_by_name():
    from vjplib.rule import find

    (record,) = find("softmax_cross_entropy_with_integer_labels")
    case = record.cases[1]  # "n b", the labels along the second axis of the logits
    data = find_data_axis(at_case(record, case), 4, np.float32)
    assert data is not None
    assert (data.axes, data.outputs) == ((1, 0), (0,))


def test_no_axis_at_all_is_said_so():
    def unit(x):
        if x.shape != X.shape or is_mapped(x):
            raise ValueError("two rows of five")
        return x / jnp.linalg.norm(x)

    (finding,) = found(unit, (X,))
    assert finding.level == "skipped"
    assert "no data axis found" in finding.message


MODULE = """
import jax
import jax.numpy as jnp


@jax.custom_vjp
def scaled(x):
    return jnp.sin(x)


scaled.defvjp(lambda x: (jnp.sin(x), x), lambda x, g: (g * jnp.cos(x) {factor},))
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)

    def write(name, factor=""):
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(MODULE.format(factor=factor)), encoding="utf-8")
        return importlib.import_module(name).scaled

    return write


def test_a_process_of_one_device_asks_another(module):
    findings = list(claim.elsewhere(CallUnderTest(module("scaled_rightly"), (X,))))
    assert levels(findings) == {"pass"}, findings
    assert modes(findings, "pass") == set(MODES)


def test_a_rule_that_counts_the_devices_of_its_process(module):
    fn = module("scaled_by_devices", factor="* 4 / jax.device_count()")
    findings = list(claim.elsewhere(CallUnderTest(fn, (X,))))  # here are four, so here it is right
    assert levels(findings) == {"pass"}
    fn = module("scaled_by_devices_there", factor="* (1 if jax.config.jax_num_cpu_devices == 4 else 2)")
    findings = list(claim.elsewhere(CallUnderTest(fn, (X,))))
    assert [f.message.split(":")[0] for f in findings if f.level == "fail"] == [
        "one device of a process that has several"
    ]


def test_a_rule_made_on_the_spot_is_sent_by_what_it_is_made_of():
    pytest.importorskip("cloudpickle")
    findings = list(claim.elsewhere(CallUnderTest(softmax_by_rows(), (X,))))
    assert levels(findings) == {"pass"}, findings


def test_a_process_that_ends_is_a_finding(module):
    fn = module("scaled_to_death", factor="* __import__('os')._exit(3) if jax.config.jax_num_cpu_devices != 4 else g")
    (finding,) = claim.elsewhere(CallUnderTest(fn, (X,)))
    assert finding.level == "fail"
    assert "ended with code 3" in finding.message


def test_a_function_that_cannot_be_sent_is_said_so(monkeypatch):
    monkeypatch.setattr(claim, "find_spec", lambda name: None)
    (finding,) = claim.elsewhere(CallUnderTest(softmax_by_rows(), (X,)))
    assert finding.level == "skipped"
    assert "install cloudpickle, or put it where it can be imported" in finding.message
