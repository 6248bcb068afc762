"""Complex arguments and outputs: right rules pass every claim; a lost conjugate, a lost part, a mixed dtype do not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from wrong_rules import normal, rule

import vjplib
from vjplib.verification.call import CallUnderTest
from vjplib.verification.tolerance import error


def complex_normal(*shape):
    return (normal(*shape) + 1j * normal(*shape)).astype(np.complex64)


def times(bwd):
    return rule(lambda x, w: x * w, lambda x, w: (x * w, (x, w)), bwd)


def magnitude(bwd):
    return rule(jnp.abs, lambda z: (jnp.abs(z), z), lambda z, g: (bwd(z, g),))


def unit(z):
    return jnp.where(z == 0, 0, z / jnp.where(z == 0, 1, jnp.abs(z)))


def fourier(bwd):
    return rule(lambda x: jnp.fft.fft(x), lambda x: (jnp.fft.fft(x), None), lambda _, g: (bwd(g),))


Z, W, X = complex_normal(5), complex_normal(5), normal(5)

RIGHT = {
    "multiply": (times(lambda res, g: (g * res[1], g * res[0])), (Z, W)),
    "a real by a complex": (times(lambda res, g: (jnp.real(g * res[1]), g * res[0])), (X, W)),
    "abs": (magnitude(lambda z, g: g * jnp.conj(unit(z))), (Z,)),
    "fft": (fourier(jnp.fft.fft), (complex_normal(3, 7),)),
    "conj": (rule(jnp.conj, lambda z: (jnp.conj(z), None), lambda _, g: (jnp.conj(g),)), (Z,)),
    "no custom rule": (lambda z, x: z * z * x + jnp.real(z), (Z, X)),
}

WRONG = {
    "the conjugate in multiply": (
        times(lambda res, g: (g * jnp.conj(res[1]), g * jnp.conj(res[0]))),
        (Z, W),
        "value",
        "conjugate-missing",
    ),
    "abs without one": (magnitude(lambda z, g: g * unit(z)), (Z,), "value", "conjugate-missing"),
    "the real part alone": (
        times(lambda res, g: (jnp.real(g * res[1]).astype(g.dtype), g * res[0])),
        (Z, W),
        "value",
        "real-and-complex",
    ),
    "a complex cotangent for a real argument": (
        times(lambda res, g: (g * res[1], g * res[0])),
        (X, W),
        "contract",
        "real-and-complex",
    ),
    "a thousandth": (times(lambda res, g: (1.001 * g * res[1], g * res[0])), (Z, W), "value", ""),
    "inverse for transpose": (fourier(jnp.fft.ifft), (complex_normal(3, 7),), "value", ""),
}
CLAIMS = (
    "contract",
    "value",
    "linearity",
    "transforms",
    "second_order",
    "residuals",
    "growth",
    "edges",
    "accuracy",
)


@pytest.mark.parametrize("name", RIGHT)
def test_right_rule_passes(name):
    report = vjplib.verify(*RIGHT[name], claims=CLAIMS, effort="quick")
    assert report.ok, report
    assert not any(finding.trap for finding in report.findings), report


@pytest.mark.parametrize("name", WRONG)
def test_fault_is_caught(name):
    fn, args, claim, trap = WRONG[name]
    report = vjplib.verify(fn, args, claims=(claim,), effort="quick")
    assert report.level(claim) == "fail", report
    assert {finding.trap for finding in report.failures} == {trap}, report


def test_no_place_is_looked_for():
    finding = vjplib.verify(*WRONG["a thousandth"][:2], claims=("value",), effort="quick").failures[0]
    assert str(finding.explanation) == "numbers are complex, for which no place is looked for"
    assert "1j" in finding.counterexample


def test_leaves_and_cotangents_keep_their_kind():
    subject = CallUnderTest(lambda z, x: (z * x, jnp.abs(z)), (Z, X))
    leaves = subject.leaves(np.float64)
    assert [a.dtype.name for a in leaves] == ["complex128", "float64"]
    with jax.enable_x64(True):
        gs = subject.cotangents(leaves)
    assert [g.dtype.name for g in gs] == ["complex128", "float64"]
    assert np.all(gs[0].imag != 0)


def test_an_error_in_one_part_is_seen_beside_a_large_other():
    o = np.array([1e-3 + 1j, 2.0])
    unit, draws = 6e-8, [np.zeros_like(o)]
    near = error((o * (1 + 1e-8)).astype(np.complex64), o, o.astype(np.complex64), draws, unit)
    far = error((o + 1e-4).astype(np.complex64), o, o.astype(np.complex64), draws, unit)
    assert near.ratio < 1 < far.ratio
    assert len(far.index) == 1
