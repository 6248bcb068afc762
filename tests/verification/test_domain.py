"""The domain by example: derived calls keep what the arguments have, and what differs without it is a doubt."""

import json
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from wrong_rules import FAULTS

import vjplib
from vjplib.reports import Run
from vjplib.verification import domain
from vjplib.verification.text import render

RNG = np.random.default_rng(3)
NORMAL = RNG.standard_normal((6, 6))
COVARIANCE = NORMAL @ NORMAL.T + np.eye(6)
SIMPLEX = RNG.dirichlet(np.ones(7), 5)
ARRAYS = {
    "positive": RNG.uniform(0.5, 3.0, 7),
    "in (0, 1)": RNG.uniform(0.2, 0.9, (5, 3)),
    "in [-1, 1]": RNG.uniform(-1, 1, 20),
    "strictly increasing": np.sort(RNG.standard_normal(7)),
    "decreasing": np.sort(RNG.integers(-3, 4, 11).astype(float))[::-1],
    "strictly increasing along axis 0": np.cumsum(RNG.uniform(0.1, 1, (5, 3)), 0) - 2,
    "positive definite": COVARIANCE,
    "symmetric": NORMAL + NORMAL.T,
    "orthonormal": np.linalg.qr(NORMAL)[0],
    "lower triangular": np.tril(NORMAL),
    "of rows that sum to 1": SIMPLEX,
    "of rows of norm 1": NORMAL / np.linalg.norm(NORMAL, axis=-1, keepdims=True),
    "of log-probabilities": np.log(SIMPLEX),
    "a permutation": np.array([3, 0, 6, 2, 5, 1, 4]),
    "all different": np.array([9, 0, 3, 5]),
}


@pytest.mark.parametrize("name", ARRAYS)
@pytest.mark.parametrize("change", [-2, 1, 70])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_another_size_keeps_the_property(name, change, dtype):
    a = ARRAYS[name].astype(dtype) if ARRAYS[name].dtype.kind == "f" else ARRAYS[name]
    kept = domain.properties(a)
    assert name in [p.name for p in kept]
    new = tuple(n + change for n in a.shape)
    made = domain.resized(a, new, kept, np.random.default_rng(0), change < 0, 10 + max(0, change))
    assert made.shape == new
    assert made.dtype == a.dtype
    assert all(p.holds(made) for p in kept)


@pytest.mark.parametrize(
    "a",
    [
        RNG.standard_normal((4, 16)),
        np.abs(RNG.standard_normal(4)),
        np.float32(0.7),
        np.zeros(5),
        np.ones(5),
        np.array([0, 1, 1, 2, 0]),
        np.array([True, False]),
    ],
)
def test_an_array_of_nothing_in_particular_states_nothing(a):
    assert domain.properties(a) == ()


def test_a_key_stays_a_key():
    key = jax.random.key(0)
    assert domain.properties(key) == ()
    assert domain.resized(key, (), (), np.random.default_rng(0), True, 1) is key


def rule(primal, bwd, *static):
    made = jax.custom_vjp(primal, nondiff_argnums=static)
    made.defvjp(lambda *args: (primal(*args), args[0]), bwd)
    return made


halves = rule(lambda x: x / 2 + jnp.abs(x) / 2, lambda x, g: (g,))  # right for positive numbers
POSITIVE = (np.array([0.5, 2.0, 1.0, 3.0, 0.25, 4.0, 1.5], np.float32),)


def test_a_difference_outside_the_domain_is_a_doubt_with_its_remedy():
    report = vjplib.verify(halves, POSITIVE, claims=("value", "edges"))
    assert report.ok
    (doubt,) = report.doubts
    assert doubt.argument == "cotangent of x"
    assert "inputs times -1" in doubt.message
    assert "x is positive" in doubt.message
    assert "domain={'x': 'real'} makes it a failure" in doubt.message
    assert str(doubt) in render([report])
    run = Run((report,))
    assert Run.from_dict(json.loads(json.dumps(run.to_dict()))) == run


def test_a_stated_domain_decides():
    assert vjplib.verify(halves, POSITIVE, claims=("edges",), domain={"x": "real"}).failures
    assert not vjplib.verify(halves, POSITIVE, claims=("edges",), domain={"x": "positive"}).failures
    report = vjplib.verify(
        halves, POSITIVE, claims=("edges", "variations"), domain=lambda rng, sizes: (rng.uniform(0, 9, sizes[7]),)
    )
    assert report.ok, report
    assert report.doubts


def test_what_the_function_itself_cannot_compute_is_a_doubt_unless_a_reference_can():
    fault = FAULTS["overflow at large logits"]
    assert vjplib.verify(fault.fn, fault.args, claims=("edges",), reference=jax.nn.softmax).failures
    report = vjplib.verify(fault.fn, fault.args, claims=("edges",))
    assert report.ok, report
    (doubt,) = report.doubts
    assert "at inputs times 100 and inputs times 10,000 the function itself, without its rule, is not" in str(doubt)
    assert "a reference= that is finite makes it a failure" in str(doubt)


def test_where_the_function_has_no_value_nothing_is_held_against_the_rule():
    """The matrix of ones is singular, and so is that of zeros."""
    solve = rule(lambda A: jnp.linalg.solve(A, jnp.ones(3, A.dtype)), lambda A, g: (jnp.full((3, 3), jnp.nan),))
    report = vjplib.verify(solve, (RNG.standard_normal((3, 3)).astype(np.float32),), claims=("edges",))
    named = {f.argument for f in report.failures if f.message.startswith(("zeros", "ties"))}
    assert not named, report


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"domain": {"y": "real"}}, ValueError, "domain must name arguments, of x"),
        ({"domain": {"x": "sunny"}}, ValueError, "domain of x must be among real"),
        ({"domain": {"x": "negative"}}, ValueError, "domain says that x is negative, and the given array is not"),
        ({"domain": 3}, TypeError, "domain must map"),
        ({"domain": lambda rng, sizes: 3}, ValueError, "domain must return a tuple of 1 arguments"),
        ({"domain": lambda rng, sizes: (rng.normal(size=3),)}, ValueError, "domain must draw arrays of the shapes"),
        ({"vary": {"n": (1,)}}, ValueError, "vary must name static arguments"),
        ({"vary": 3}, TypeError, "vary must map"),
    ],
)
def test_what_is_stated_wrongly_is_refused(options, error, words):
    with pytest.raises(error, match=words):
        vjplib.verify(halves, POSITIVE, claims=("contract",), **options)


@dataclass(frozen=True)
class Options:
    scale: float = 1.0
    mirrored: bool = False


def configured(x, options):
    return options.scale * (x[::-1] if options.mirrored else x)


IGNORES = rule(configured, lambda options, x, g: (g * options.scale,), 1)


def summed(x, mode: Literal["sum", "mean"] = "sum"):
    return getattr(jnp, mode)(x**2)


def test_static_arguments_are_varied_as_doubts_unless_stated():
    report = vjplib.verify(IGNORES, (RNG.standard_normal(5).astype(np.float32), Options()), claims=("variations",))
    assert report.ok, report
    (doubt,) = report.doubts
    assert "right at your call; differs where options is Options(scale=1.0, mirrored=True)" in doubt.message
    assert "vary={'options': " in doubt.message
    x = (RNG.standard_normal(5).astype(np.float32), Options())
    assert vjplib.verify(IGNORES, x, claims=("variations",), vary={"options": (Options(2.0, True),)}).failures
    assert not vjplib.verify(IGNORES, x, claims=("variations",), vary={"options": ()}).doubts


def test_a_literal_says_what_it_may_be():
    def fn(x, mode: Literal["sum", "mean"] = "sum"):
        return made(x, mode)

    made = rule(summed, lambda mode, x, g: (2 * g * x,), 1)
    report = vjplib.verify(fn, (RNG.standard_normal(5).astype(np.float32),), {"mode": "sum"}, claims=("variations",))
    assert [("mode is 'mean'" in f.message) for f in report.doubts] == [True]


def test_a_static_size_changes_with_its_axis():
    """The cotangent is made of a static number, which is that of the axis."""
    made = rule(lambda x, n: jnp.sum(x), lambda n, x, g: (g * jnp.ones((n,), x.dtype),), 1)
    report = vjplib.verify(made, (RNG.standard_normal(5).astype(np.float32), 5), claims=("variations",))
    assert report.ok, report
    assert not report.doubts


def test_a_record_states_domain_and_static_values_too():
    made = rule(lambda x, n=2: x**n, lambda n, x, g: (g * 2 * x ** (n - 1),), 1)
    case = vjplib.Case(("n",), {"n": 3}, {"n": 2})
    options = {"fn": made, "reference": lambda x, n: x**n, "baselines": {}, "cases": (case,)}
    claims = ("value",)
    assert vjplib.verify_rule(vjplib.Rule(**options), claims=claims).ok
    assert vjplib.verify_rule(vjplib.Rule(**options, vary={"n": (2, 3)}), claims=claims).failures
    stated = vjplib.Rule(**options, domain={"x": "real"})
    assert vjplib.verify_rule(stated, claims=claims).ok
