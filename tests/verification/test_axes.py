"""Rules that name an axis are examined on all its devices; without the axis nothing is held against them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from wrong_rules import normal, rule

import vjplib
from vjplib.rule import Case, Edge, Rule
from vjplib.verification.api import verify_rule
from vjplib.verification.axes import over_axes

X = normal(3, 5)
QUICK = ("contract", "value", "linearity", "transforms", "second_order")


def centred(backward=lambda g: g - lax.pmean(g, "i"), forward=lambda x: x - lax.pmean(x, "i")):
    return rule(forward, lambda x: (forward(x), None), lambda _, g: (backward(g),))


def verified(fn, args=(X,), claims=QUICK, axes=None, **options):
    return vjplib.verify(fn, args, claims=claims, axes={"i": 4} if axes is None else axes, effort="quick", **options)


def test_every_claim_but_sharding_is_shown_on_all_devices():
    report = vjplib.verify(centred(), (X,), axes={"i": 4})
    assert report.ok, report
    assert {f.claim for f in report.skipped} == {"sharding"}
    assert "the named axes (i) stand for devices" in report.skipped[0].message


WRONG = {
    "the mean forgotten": lambda g: g,
    "a sum for a mean": lambda g: g - lax.psum(g, "i"),
    "a mean too many": lambda g: lax.pmean(g - lax.pmean(g, "i") + g, "i"),
    "of the next device": lambda g: lax.ppermute(g, "i", [(k, (k + 1) % 4) for k in range(4)]) - lax.pmean(g, "i"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_backward_is_caught(name):
    report = verified(centred(WRONG[name]), claims=("value",))
    assert {f.argument for f in report.failures if f.claim == "value"} == {"cotangent of x"}, report
    assert all(not f.counterexample for f in report.failures)  # nobody could paste it


def test_a_cotangents_dtype_is_seen_inside():
    report = verified(centred(lambda g: (g - lax.pmean(g, "i")).astype(jnp.float16)), claims=("contract",))
    assert report.level("contract") == "fail"


def ranked(x, shift, names):
    """An integer argument, a static one and an integer output, over two axes."""
    y = x - lax.pmean(x, names) + shift
    return y, jnp.argmax(y)


def test_integers_static_arguments_and_several_axes():
    fn = jax.custom_vjp(ranked, nondiff_argnums=(2,))
    fn.defvjp(lambda x, shift, names: (ranked(x, shift, names), None), lambda names, _, g: (away(g[0], names), None))

    def away(g, names):
        return g - lax.pmean(g, names)

    args = (X, np.int32(2), ("i", "j"))
    report = verified(fn, args, axes={"i": 2, "j": 3})
    assert report.ok, report


def test_a_reference_is_mapped_too():
    twice = rule(lambda x: x, lambda x: (x, None), lambda _, g: (2 * lax.psum(g, "i"),))
    assert verified(twice, claims=("value",), reference=lambda x: 2 * lax.psum(x, "i") - 7 * x).level("value") == "fail"
    summed = lambda x: lax.psum(jnp.tanh(x), "i")  # noqa: E731
    fn = rule(summed, lambda x: (summed(x), jnp.tanh(x)), lambda y, g: (lax.psum(g, "i") * (1 - y**2),))
    assert verified(fn, reference=lambda x: lax.psum(jnp.tanh(x), "i")).ok


def test_without_the_axis_it_is_said_once_and_nothing_held_against_the_rule():
    report = vjplib.verify(centred(), (X,))
    (finding,) = report.findings
    assert (finding.claim, finding.level) == ("contract", "skipped")
    assert finding.message == "the call needs a named axis i: give axes={'i': 4}; nothing is examined"
    assert not report.ok
    both = verified(rule(lambda x: lax.psum(x, ("i", "j")), lambda x: (x, None), lambda _, g: (g,)))
    assert "give axes={'i': 4, 'j': 4}" in both.findings[0].message


def test_an_axis_that_the_backward_alone_names_is_a_failure():
    fn = rule(jnp.sin, lambda x: (jnp.sin(x), x), lambda x, g: (lax.psum(g * jnp.cos(x), "i"),))
    assert vjplib.verify(fn, (X,), claims=("contract", "value")).failures
    assert verified(fn, claims=("value",)).failures


def test_a_record_gives_its_axes():
    record = Rule(
        fn=centred(),
        reference=lambda x: x - lax.pmean(x, "i"),
        baselines={},
        cases=(Case(("b n",), {"b": 3, "n": 5}),),
        edges=(Edge("infinite", ([[1.0, np.inf]],)),),
        axes={"i": 4},
    )
    report = verify_rule(record, claims=("contract", "value", "edges", "residuals"))
    assert report.ok, report


def test_arguments_are_those_of_one_device():
    seen = []
    over = over_axes(lambda x, y: seen.append((x.shape, y.shape)) or x, {"i": 2, "j": 3})
    assert over(jnp.ones((2, 3, 5)), jnp.ones((2, 3))).shape == (2, 3, 5)
    assert set(seen) == {((5,), ())}


@pytest.mark.parametrize(("axes", "error"), [("i", TypeError), ({"i": 0}, ValueError), ({"i": True}, ValueError)])
def test_axes_of_another_kind_are_refused(axes, error):
    with pytest.raises(error, match="axes must"):
        verified(centred(), axes=axes)
