"""Functions that compute in float32 or coarser whatever they are given: right rules of them pass, wrong ones do not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from wrong_rules import rule

import vjplib
from vjplib.verification.call import CallUnderTest


def normal(*shape):
    return np.random.default_rng(shape).standard_normal(shape).astype(np.float32)


def softmax_in(dtype, factor=1.0):
    """Returns the softmax that computes in a dtype, whatever it is given, and returns what it was given."""

    def softmax(x):
        return jax.nn.softmax(x.astype(dtype), axis=-1).astype(x.dtype)

    def bwd(y, g):
        y, wide = y.astype(dtype), g.astype(dtype)
        return ((factor * y * (wide - jnp.sum(wide * y, -1, keepdims=True))).astype(g.dtype),)

    return rule(softmax, lambda x: (softmax(x), softmax(x)), bwd)


def loss_in(dtype, factor=1.0):
    """Returns a loss that is of one dtype, whatever it is given."""

    def loss(x):
        return jnp.sum(x.astype(dtype) ** 2)

    return rule(loss, lambda x: (loss(x), x), lambda x, g: ((2 * factor * g * x.astype(dtype)).astype(x.dtype),))


def product_in_float32(factor=1.0):
    def matmul(x, w):
        return jnp.matmul(x, w, preferred_element_type=jnp.float32).astype(x.dtype)

    def bwd(res, g):
        x, w = res
        dx, dw = (jnp.matmul(*pair, preferred_element_type=jnp.float32) for pair in ((g, w.T), (x.T, g)))
        return dx.astype(x.dtype), (factor * dw).astype(w.dtype)

    return rule(matmul, lambda x, w: (matmul(x, w), (x, w)), bwd)


MADE = {
    "softmax in float32": (lambda factor=1.0: softmax_in(jnp.float32, factor), (normal(3, 5),)),
    "softmax in float32, of bfloat16": (
        lambda factor=1.0: softmax_in(jnp.float32, factor),
        (jnp.asarray(normal(3, 5), jnp.bfloat16),),
    ),
    "a loss in float32": (lambda factor=1.0: loss_in(jnp.float32, factor), (normal(3, 5),)),
    "a product of matrices in float32": (product_in_float32, (normal(3, 7), normal(7, 5))),
}


@pytest.mark.parametrize("name", MADE)
def test_right_ones_pass_and_a_thousandth_too_much_does_not(name):
    make, args = MADE[name]
    right = vjplib.verify(make(), args, effort="quick")
    assert right.ok, right
    wrong = vjplib.verify(make(1.001), args, effort="quick", claims=("value",))
    assert not wrong.ok
    assert not any("raises" in f.message for f in wrong.failures), wrong


def test_every_claim_holds_of_a_right_one():
    report = vjplib.verify(softmax_in(jnp.float32), (normal(3, 5),))
    assert report.ok, report


@pytest.mark.parametrize("make", [softmax_in, loss_in])
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_inside_is_compared_to_half_its_digits(make, dtype):
    report = vjplib.verify(make(dtype), (normal(3, 5),), effort="quick")
    assert report.ok, report
    assert not vjplib.verify(make(dtype, 1.5), (normal(3, 5),), effort="quick", claims=("value",)).ok


def test_what_no_rule_differentiates_passes():
    report = vjplib.verify(lambda x: jax.nn.softmax(x.astype(jnp.float32)), (normal(3, 5),), effort="quick")
    assert report.ok, report


def test_a_cast_that_the_oracle_has_not_is_still_a_fault():
    primal = lambda x: jnp.exp(x)  # noqa: E731
    coarse = rule(primal, lambda x: (primal(x), x), lambda x, g: (g * jnp.exp(x).astype(jnp.float32).astype(x.dtype),))
    report = vjplib.verify(coarse, (normal(5),), effort="quick", claims=("value",))
    assert [f.trap for f in report.failures] == ["low-precision-inside"], report


def test_the_digits_of_an_oracle_are_those_of_its_coarsest_cast():
    def eps(f):
        return CallUnderTest(f, (normal(3),)).eps

    weights = jnp.asarray(normal(3))
    assert eps(jnp.sin) == np.finfo(np.float64).eps
    assert eps(lambda x: x * weights) == np.finfo(np.float64).eps
    assert eps(lambda x: x.astype(jnp.float32)) == np.finfo(np.float32).eps
    assert eps(jax.jit(lambda x: jax.lax.scan(lambda c, a: (c + a.astype(jnp.bfloat16), None), 0, x)[0])) == 2**-7
    assert eps(lambda x: x + jax.random.normal(jax.random.key(0), x.shape, jnp.float32)) == np.finfo(np.float64).eps


def test_a_backward_that_exponentiates_the_logarithm_of_a_sum_is_no_fault():
    """Of logits of 60 the logarithm is rounded by 60 units: relative to one, its exponential errs by as much."""

    def total(x):
        return jax.scipy.special.logsumexp(x, axis=-1)

    kept = rule(
        total,
        lambda x: (total(x), (x, total(x))),
        lambda res, g: (g[:, None] * jnp.exp(res[0] - res[1][:, None]),),
    )
    for seed in range(4):
        report = vjplib.verify(kept, (normal(3, 7),), claims=("value",), seed=seed)
        assert report.ok, report


def attention(q, k, v):
    return jax.nn.softmax(q @ k.T) @ v


def attention_fwd(q, k, v):
    logits = q @ k.T
    total = jax.scipy.special.logsumexp(logits, axis=-1, keepdims=True)
    return jnp.exp(logits - total) @ v, (q, k, v, total)


def attention_bwd(res, g):
    q, k, v, total = res
    p, dp = jnp.exp(q @ k.T - total), g @ v.T
    ds = p * (dp - jnp.sum(dp * p, -1, keepdims=True))
    return ds @ k, ds.T @ q, p.T @ g


def test_what_cancels_at_an_axis_of_one_element_is_measured_by_the_call_it_was_made_of():
    args = (normal(5, 3), normal(7, 3), normal(7, 2))
    report = vjplib.verify(rule(attention, attention_fwd, attention_bwd), args, claims=("value",))
    assert report.ok, report
