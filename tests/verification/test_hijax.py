"""Hijax primitives and linear_call: their bodies are the oracle, and each part is examined by what JAX uses it for."""

import hijax_rules
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hijax_rules import NEW, RIGHT, RIGHT_ONES, WRONG, Base, Primitive, Product, ScaledSoftmax, calls, scaled_softmax
from jax.custom_derivatives import linear_call
from jax.experimental import hijax

import vjplib
from vjplib.compat import hi_primitive_of, strip_custom_rules

RNG = np.random.default_rng(3)
X, W = (RNG.standard_normal((3, 5)).astype(np.float32) for _ in range(2))
SQUARE = (X[:, :3], W[:, :3])
# The claim that catches each slip, and where: an argument, or a part of the primitive.
CAUGHT = {
    "vjp": ("value", "cotangent of x"),
    "vjp of w": ("value", "cotangent of w"),
    "vjp of the second output": ("value", "cotangent of x"),
    "forward": ("value", "output 0 of the forward pass"),
    "jvp": ("modes", "ScaledSoftmax.jvp"),
    "jvp's primal": ("modes", "ScaledSoftmax.jvp"),
    "lin": ("modes", "ScaledSoftmax.lin"),
    "batch axis": ("modes", "ScaledSoftmax.vjp of vmap, x at the last axis"),
    "batched vjp": ("modes", "ScaledSoftmax.vjp of vmap"),
    "batched jvp": ("modes", "ScaledSoftmax.jvp of vmap"),
    "remat": ("modes", "ScaledSoftmax.remat"),
    "dce": ("modes", "ScaledSoftmax.dce, output 1 kept"),
    "vjp after dce": ("modes", "ScaledSoftmax.dce, output 1 kept"),
    "accumulated twice": ("value", "cotangent of w"),
    "linear_call: not transposed": ("value", "cotangent of x"),
    "linear_call: twice as much": ("value", "cotangent of x"),
}


def failures(report):
    return {(f.claim, f.argument) for f in report.failures}


def levels(report, claim):
    return {f.argument: f.level for f in report.findings if f.claim == claim}


@pytest.mark.parametrize("name", RIGHT_ONES)
def test_a_right_primitive_passes(name):
    report = vjplib.verify(RIGHT_ONES[name], SQUARE, effort="quick")
    assert report.ok, report
    assert report.level("modes") == "pass"


def test_every_part_of_a_right_primitive_is_examined():
    found = levels(vjplib.verify(RIGHT, (X, W), claims=("modes",)), "modes")
    assert set(found.values()) == {"pass"}, found
    assert {name.partition(".")[2].partition(",")[0] for name in found} == {
        "vjp",
        "jvp",
        "jvp of x alone",
        "jvp of w alone",
        "jvp against vjp",
        "lin against vjp",
        "lin",
        "lin of x alone",
        "lin of w alone",
        "vjp of vmap",
        "vjp of vmap over x alone",
        "vjp of vmap over w alone",
        "jvp of vmap",
        "jvp of vmap over x alone",
        "jvp of vmap over w alone",
        "lin of vmap",
        "vjp of two vmaps",
        "dce",
        "remat",
    }


def test_every_slip_is_caught_somewhere():
    assert set(CAUGHT) == set(WRONG)


@pytest.mark.parametrize("name", WRONG)
def test_a_slip_in_a_part_is_caught(name):
    claim, argument = CAUGHT[name]
    report = vjplib.verify(WRONG[name].fn, SQUARE, effort="quick", claims=(claim,))
    assert (claim, argument) in failures(report), report


def test_the_place_in_a_backward_is_told():
    report = vjplib.verify(scaled_softmax("vjp of w"), (X, W), claims=("value",), effort="quick")
    explanation = next(f.explanation for f in report.failures if f.argument == "cotangent of w")
    assert explanation is not None
    assert (explanation.kind, explanation.factor) == ("factor", 0.5)
    assert {place.function.rpartition(".")[2] for place in explanation.places} == {"vjp_bwd_retval"}


def test_a_slip_in_one_part_accuses_no_other():
    report = vjplib.verify(scaled_softmax("lin"), (X, W), claims=("contract", "value", "modes"))
    assert failures(report) == {("modes", "ScaledSoftmax.lin")}, report
    assert "ScaledSoftmax.lin is wrong" in str(report)


def test_what_a_class_leaves_out_is_noted():
    report = vjplib.verify(RIGHT_ONES["accumulators"], (X, W), effort="quick")
    assert report.ok, report
    assert levels(report, "modes")["Product"] == "note"
    assert any("not offered" in f.message for f in report.notes if f.claim == "transforms")


def test_other_rules_have_no_such_finding():
    report = vjplib.verify(vjplib.tanh, (X,), effort="quick", claims=("value", "modes"))
    assert report.level("modes") is None
    assert "V15" not in str(report)


class IntoRefs(Product):
    """x times w; where gradients are added to Refs, it writes over what is there."""

    def vjp_bwd(self, res, outgrad, /, *arg_accums):
        (x, w), g = res, hijax.instantiate_zeros(outgrad)
        for accum, dx in zip(arg_accums, (g * w, g * x), strict=True):
            ref = getattr(accum, "ref", None)
            if ref is None:
                accum.accum(dx)
            elif self.params["slip"]:
                ref[...] = dx
            else:
                ref[...] += dx


@pytest.mark.parametrize("slip", ["", "written over"])
def test_gradients_kept_in_refs_are_examined(slip):
    report = vjplib.verify(calls(lambda x, w: IntoRefs(x, w, slip)), (X, W), claims=("value", "modes"))
    assert failures(report) == ({("modes", "IntoRefs.vjp into Refs")} if slip else set()), report


class Matrix(Primitive):
    """x @ w.T, with a transpose where x alone is not known."""

    def __init__(self, x, w, slip=1):
        super().__init__(x, w, slip=slip)

    @staticmethod
    def body(params, *args):
        return args[0] @ args[1].T

    def vjp_fwd(self, nzs_in, /, *args):
        return self(*args), args

    def vjp_bwd_retval(self, res, outgrad, /):
        (x, w), g = res, hijax.instantiate_zeros(outgrad)
        return g @ w, g.T @ x

    def transpose(self, ct, x, w):
        x.accum(self.params["slip"] * hijax.instantiate_zeros(ct) @ w)


@pytest.mark.parametrize("slip", [1, 2])
def test_the_transpose_of_a_linear_primitive_is_examined(slip):
    report = vjplib.verify(calls(lambda x, w: Matrix(x, w, slip)), (X, W), claims=("modes",))
    assert ("modes", "Matrix.transpose in x") in failures(report) or slip == 1, report
    assert levels(report, "modes")["Matrix.transpose in x"] == ("pass" if slip == 1 else "fail")


class Sign(Primitive):
    """The sign of x, straight through: its derivative is another function's by design."""

    @staticmethod
    def body(params, *args):
        return jnp.sign(args[0])

    def vjp_fwd(self, nzs_in, /, *args):
        return self(*args), None

    def vjp_bwd_retval(self, res, outgrad, /):
        return (hijax.instantiate_zeros(outgrad),)

    def jvp(self, primals, tangents):
        return self(*primals), self.params["factor"] * hijax.instantiate_zeros(tangents[0])


@pytest.mark.parametrize("factor", [1, 3])
def test_a_reference_stands_in_place_of_the_body(factor):
    def sign(x):
        return Sign(jax.typeof(jnp.asarray(x)), factor=factor)(x)

    def reference(x):
        return x + jax.lax.stop_gradient(jnp.sign(x) - x)

    report = vjplib.verify(sign, (X,), reference=reference, claims=("value", "modes"), effort="quick")
    assert failures(report) == ({("modes", "Sign.jvp")} if factor == 3 else set()), report


class WithRef(Base):
    """A primitive that takes a Ref."""

    def __init__(self, ref, x):
        self.in_avals, self.out_aval, self.params = (ref, x), x, {}
        super().__init__()

    def expand(self, ref, x):
        ref[...] = x
        return 2 * x

    def vjp_fwd(self, nzs_in, /, ref, x):
        return self(ref, x), None

    def vjp_bwd_retval(self, res, outgrad, /):
        return None, 2 * outgrad


def test_a_primitive_of_refs_is_refused_by_name():
    def f(x):
        ref = jax.new_ref(jnp.zeros_like(x))
        return WithRef(jax.typeof(ref), jax.typeof(x))(ref, x)

    report = vjplib.verify(f, (X,), claims=("value", "modes"), effort="quick")
    assert not any(finding.level == "pass" for finding in report.findings), report
    assert "WithRef takes a Ref" in str(report)


def test_a_primitive_inside_of_a_larger_program_is_named():
    def f(x, w):
        y, lse = jax.jit(scaled_softmax("lin"))(jnp.tanh(x), w)
        return jnp.sum(y) + lse

    report = vjplib.verify(f, (X, W), claims=("value", "modes"), effort="quick")
    assert ("modes", "ScaledSoftmax.lin") in failures(report)
    assert report.level("value") == "pass"


def test_a_primitive_in_a_loop_is_examined_by_the_whole_call():
    def f(slip):
        return lambda x, w: jax.lax.scan(lambda c, row: (c + scaled_softmax(slip)(row, w)[0], None), w, x)[0]

    args = (RNG.standard_normal((2, 5)).astype(np.float32), W[0])
    assert vjplib.verify(f(""), args, claims=("modes",)).ok
    report = vjplib.verify(f("lin"), args, claims=("modes",))
    assert ("modes", "ScaledSoftmax.lin") in failures(report), report
    report = vjplib.verify(f("vjp"), args, claims=("value",), effort="quick")
    assert report.failures


def test_a_primitive_made_for_float32_is_verified_as_a_function():
    for slip in ("", "vjp of w"):
        primitive = ScaledSoftmax(jax.typeof(jnp.asarray(X)), jax.typeof(jnp.asarray(W)), slip=slip)
        report = vjplib.verify(primitive, (X, W), claims=("contract", "value", "modes"), effort="quick")
        assert report.name == "ScaledSoftmax"
        assert report.ok is (not slip), report


def test_bodies_stand_for_primitives_when_rules_are_stripped():
    eqns = jax.make_jaxpr(strip_custom_rules(lambda x, w: jax.vmap(RIGHT)(x, w)))(X, W).eqns
    assert all(hi_primitive_of(eqn) is None for eqn in eqns)
    stripped = strip_custom_rules(scaled_softmax("vjp"))
    ours, theirs = (jax.grad(lambda x, f=f: jnp.sum(f(x, W)[0] ** 2))(X) for f in (RIGHT, stripped))
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.skipif(NEW, reason="JAX 0.12 has no batch_dim_rule")
@pytest.mark.parametrize("slip", ["", "vjp"])
def test_the_batching_that_jax_derives_is_examined(slip):
    class Derived(ScaledSoftmax):
        batch = Base.batch

        def batch_dim_rule(self, axis_data, dims, /):
            return 0, 0

    report = vjplib.verify(calls(lambda x, w: Derived(x, w, slip)), (X, W), claims=("value", "modes"), effort="quick")
    assert report.ok is (not slip), report
    assert any("of vmap" in argument for argument in levels(report, "modes"))


@pytest.mark.skipif(not hasattr(hijax, "vjp_from_jvp"), reason="JAX 0.10 derives no part from another")
@pytest.mark.parametrize("slip", ["", "jvp"])
def test_modes_that_jax_derives_are_examined(slip):
    class Derived(ScaledSoftmax):
        pass

    backwards, forwards = (getattr(hijax, name) for name in ("vjp_from_jvp", "linearize_from_jvp"))
    names = ("vjp_fwd", "vjp_bwd_retval", "lin", "linearized")
    for name, method in zip(names, (*backwards, *forwards), strict=True):
        setattr(Derived, name, method)
    report = vjplib.verify(calls(lambda x, w: Derived(x, w, slip)), (X, W), claims=("value", "modes"), effort="quick")
    assert report.ok is (not slip), report
    if slip:
        assert ("value", "cotangent of x") in failures(report)


# ------------------------------------------------------------------------------------------------------------- audit


def program(slip):
    @jax.jit
    def step(x, w):
        def loss(x, w):
            y, lse = jax.vmap(scaled_softmax(slip), in_axes=(0, None))(x, w)
            z = jax.lax.scan(lambda c, row: (c + scaled_softmax(slip)(row, w)[0], None), w, x)[0]
            return jnp.sum(y) + jnp.sum(lse) + jnp.sum(jnp.sin(z))

        return jax.grad(loss, (0, 1))(x, w)

    return step


def test_the_audit_finds_primitives_in_a_program():
    report = vjplib.audit(program(""), X, W[0])
    (row,) = report.rules
    assert (row.name, row.kind, row.verdict, row.calls) == ("ScaledSoftmax", "hijax", "pass", 2 * len(X)), report
    assert row.source.startswith("tests/helpers/hijax_rules.py:")
    assert row.differentiated == row.calls


@pytest.mark.parametrize(("slip", "claim"), [("vjp of w", "value"), ("lin", "modes")])
def test_the_audit_fails_a_wrong_primitive(slip, claim):
    with vjplib.watching() as watch:
        program(slip)(X, W[0])
    (row,) = vjplib.examined(watch, effort="quick").rules
    assert row.verdict == "fail", row
    assert {f.claim for f in row.findings if f.level == "fail"} >= {claim}


def test_the_audit_tells_parameters_apart():
    with vjplib.watching() as watch:
        for f in (RIGHT, scaled_softmax("vjp")):
            f(X, W)
    report = vjplib.examined(watch, effort="quick")
    assert sorted(row.verdict for row in report.rules) == ["fail", "pass"], report


@pytest.mark.parametrize("factor", [1, 2])
def test_the_audit_finds_linear_calls(factor):
    def scale(w, x):
        return w * x

    @jax.jit
    def step(x, w):
        f = lambda x: jnp.sum(jnp.sin(linear_call(scale, lambda w, g: factor * w * g, w, x)))  # noqa: E731
        return jax.grad(f)(x)

    (row,) = vjplib.audit(step, X, W).rules
    assert (row.kind, row.verdict) == ("linear_call", "pass" if factor == 1 else "fail"), row
    assert row.name.endswith("scale")
    assert row.source.startswith("tests/verification/test_hijax.py:")


def test_linear_call_with_an_unknown_residual_is_not_accused():
    def f(x, w):
        w = jax.lax.stop_gradient(w)
        return jnp.sin(linear_call(lambda w, x: w * x, lambda w, g: w * g, w, x))

    report = vjplib.verify(f, (X, W), claims=("value", "linearity", "transforms", "second_order", "modes"))
    assert report.ok, report


def test_the_table_of_wrong_primitives_is_of_this_module():
    assert hijax_rules.WRONG is WRONG
