"""Large calls: what is examined at fewer numbers, and arrays that are not differentiated in compiled programs."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vjplib
from vjplib.verification.call import SMALL, CallUnderTest
from vjplib.verification.tolerance import root_mean_square


def masked_exp(x, mask):
    return jnp.where(mask, jnp.exp(x), 0.0)


def square(x):
    return x * x


@pytest.fixture
def large(rng):
    x = rng.standard_normal((500, 601)).astype(np.float32)
    return x, rng.random(x.shape) < 0.5


def test_a_quick_look_examines_edges_at_fewer_numbers(large):
    rule = jax.custom_vjp(square)
    rule.defvjp(lambda x: (x * x, x), lambda x, g: (jnp.where(x == 0, g, 2 * g * x),))
    report = vjplib.verify(rule, large[:1], effort="quick")
    (failure,) = report.failures
    assert failure.claim == "edges"
    assert failure.case == "the axes of size 500 made 250, the axes of size 601 made 301"
    assert {f.case for f in report.findings if f.claim == "value"} == {""}


def test_numbers_at_the_call_are_examined_whole(large):
    rule = jax.custom_vjp(square)
    rule.defvjp(lambda x: (x * x, x), lambda x, g: ((2 * g * x).at[-1, -1].multiply(2),))
    failures = vjplib.verify(rule, large[:1], effort="quick", claims=("value",)).failures
    assert {f.index for f in failures} >= {(499, 600)}


def test_a_call_that_cannot_be_resized_stays(large):
    W = large[0]

    def product(x):
        return x @ W.T

    subject = CallUnderTest(product, (W,), sizes={"n": 601}, resize=lambda new: ((W[:, : new["n"]],), {}))
    assert not subject.small
    assert subject.reduced is subject


@pytest.mark.parametrize("by_keyword", [False, True])
def test_a_large_mask_is_no_constant_of_a_program(large, by_keyword):
    x, mask = large
    subject = CallUnderTest(masked_exp, (x,), {"mask": mask}) if by_keyword else CallUnderTest(masked_exp, large)
    program = subject.answers_at(*subject.point(np.float32))
    assert program.ys[0].shape == x.shape
    pullback: Any = subject.compiled(subject.pull(subject.call))
    lowered = pullback.trace(*subject.point(np.float32)).lower().as_text()
    assert len(lowered) < mask.size


def test_a_function_of_the_numbers_of_an_integer_array_keeps_them(rng):
    counts = rng.integers(1, 3, 1500).astype(np.int32)
    x = rng.standard_normal(1500).astype(np.float32)
    subject = CallUnderTest(jnp.repeat, (x,), {"repeats": counts})  # which refuses to be traced without the numbers
    assert subject.held == ()
    assert vjplib.verify(jnp.repeat, (x,), {"repeats": counts}, effort="quick", claims=("value",)).ok


def test_a_large_mask_at_standard_effort(rng):
    x = rng.standard_normal((40, 53)).astype(np.float32)
    report = vjplib.verify(
        masked_exp, (x, rng.random(x.shape) < 0.5), claims=("second_order", "transforms", "coverage")
    )
    assert report.ok


@pytest.mark.parametrize("size", [1e-200, 1.0, 1e200])
def test_a_root_mean_square_of_any_size(size):
    assert root_mean_square(size * np.array([[3.0, -4.0]])) == pytest.approx(size * np.sqrt(12.5))


def test_only_the_largest_calls_are_reduced():
    subject = CallUnderTest(square, (np.ones(SMALL, np.float32),), sizes={"n": SMALL})
    assert subject.reduced is subject


def test_a_transform_that_raises_leaves_the_others_of_a_large_mask_alone(rng):
    @jax.custom_vjp
    def on_host(x, mask):
        return jax.pure_callback(lambda x: np.cumsum(x), jax.ShapeDtypeStruct(x.shape, x.dtype), jnp.where(mask, x, 0))

    def bwd(mask, g):
        return jnp.where(mask, jnp.cumsum(g[::-1])[::-1], 0), None

    on_host.defvjp(lambda x, mask: (on_host(x, mask), mask), bwd)
    x = rng.standard_normal(1500).astype(np.float32)
    report = vjplib.verify(
        on_host,
        (x, rng.random(x.shape) < 0.5),
        reference=lambda x, mask: jnp.cumsum(jnp.where(mask, x, 0)),
        claims=("transforms",),
    )
    raising = {f.message.partition(":")[0] for f in report.failures}
    assert all("vmap" in name for name in raising), report
    assert any(f.message == "checkpoint" and f.level == "pass" for f in report.findings)
