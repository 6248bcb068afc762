"""Rules whose primal draws random numbers: samplers are undecided, and what draws and decides nothing is judged."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hijax_rules import Primitive, calls

from vjplib import examined, watching
from vjplib.auditing.sampling import deciding
from vjplib.verification.call import CallUnderTest

KEY = jax.random.key(3)
X = jnp.cos(jnp.arange(40.0)).reshape(5, 8)
ALPHA = jnp.linspace(1.5, 4.0, 7)


def audit(fn, *args):
    """The audit of a program with little effort: one call of each rule, and no search for the fault's place."""
    with watching() as watch:
        jax.block_until_ready(fn(*args))
    return examined(watch, effort="quick")


def gamma_proposal(keys, alpha):
    """A proposal after Marsaglia and Tsang, and whether it is accepted."""
    d = alpha - 1 / 3
    x, u = jax.random.normal(keys[0], alpha.shape, alpha.dtype), jax.random.uniform(keys[1], alpha.shape, alpha.dtype)
    v = (1 + x / jnp.sqrt(9 * d)) ** 3
    positive = jnp.maximum(v, 1e-3)
    return d * v, (v > 0) & (jnp.log(u) < x**2 / 2 + d - d * positive + d * jnp.log(positive))


def looped(key, alpha):
    """Gamma variates, each by as many proposals as it takes."""

    def step(state):
        key, value, done = state
        key, *keys = jax.random.split(key, 3)
        proposal, accepted = gamma_proposal(keys, alpha)
        return key, jnp.where(done, value, proposal), done | accepted

    state = key, jnp.zeros_like(alpha), jnp.zeros(alpha.shape, bool)
    return jax.lax.while_loop(lambda state: ~jnp.all(state[2]), step, state)[1]


def picked(key, alpha):
    """The first of two proposals that is accepted, by its number."""
    keys = [jax.random.split(k) for k in jax.random.split(key, 2)]
    values, accepted = map(jnp.stack, zip(*(gamma_proposal(k, alpha) for k in keys), strict=True))
    return jnp.take_along_axis(values, jnp.argmax(accepted, 0)[None], 0)[0]


def weighted(key, alpha):
    """The first of two proposals that is accepted, as a sum times zeros and a one."""
    keys = [jax.random.split(k) for k in jax.random.split(key, 2)]
    values, accepted = map(jnp.stack, zip(*(gamma_proposal(k, alpha) for k in keys), strict=True))
    first = accepted & (jnp.cumsum(accepted, 0) == 1)
    return jnp.sum(first.astype(alpha.dtype) * values, 0)


def truncated(key, mean):
    """Normal variates above 1, drawn until they are."""

    def step(state):
        key, value = state
        key, draw = jax.random.split(key)
        fresh = mean + jax.random.normal(draw, mean.shape, mean.dtype)
        return key, jnp.where(value > 1, value, fresh)

    return jax.lax.while_loop(lambda state: jnp.any(state[1] <= 1), step, (key, jnp.zeros_like(mean)))[1]


def accepted(key, a):
    """One of two proposals."""
    keys = jax.random.split(key, 3)
    first, second, u = (jax.random.uniform(k, a.shape, a.dtype) for k in keys)
    return jnp.where(u < jax.nn.sigmoid(a), a * first, second)


def mixture(key, logits, means):
    """A draw from each of five mixtures of eight normal distributions."""
    which, noise = jax.random.split(key)
    chosen = jax.random.categorical(which, logits)
    return means[jnp.arange(5), chosen] + jax.random.normal(noise, (5,), means.dtype)


def implicit(primal, slope, jvp=False):
    """A sampler whose derivative by its parameter is that of the distribution, as the sample tells it."""
    if jvp:
        rule = jax.custom_jvp(primal)
        rule.defjvp(lambda primals, ts: (y := primal(*primals), slope(primals[1], y) * ts[1]))
    else:
        rule = jax.custom_vjp(primal)
        rule.defvjp(lambda key, a: (y := primal(key, a), (a, y)), lambda res, g: (None, slope(*res) * g))
    return rule


def of_truncated(mean, y):
    """The slope of the quantile at fixed u of a normal distribution above 1."""
    tail = jax.scipy.stats.norm.sf
    density = jax.scipy.stats.norm.pdf
    return 1 - tail(y - mean) / tail(1 - mean) * density(1 - mean) / density(y - mean)


SAMPLERS = {
    "loop": (implicit(looped, jax.lax.random_gamma_grad), ALPHA, "alpha"),
    "custom_jvp": (implicit(accepted, lambda a, y: jnp.tanh(a + y), jvp=True), X[0], "a"),
    "truncated": (implicit(truncated, of_truncated), X[0], "mean"),
}


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_sampler_by_implicit_reparameterization_is_undecided(name):
    rule, parameter, argument = SAMPLERS[name]
    report = audit(jax.jit(jax.grad(lambda a: jnp.sum(jnp.sin(rule(KEY, a))))), parameter)
    (row,) = report.rules
    assert row.verdict == "undecided", str(report)
    assert report.ok
    assert f"draws random numbers, and {argument} decides" in row.reason
    assert "? " in str(report)


def drop(key, x):
    keep = jax.random.bernoulli(key, 0.8, x.shape)
    return jnp.where(keep, x / 0.8, 0)


def drop_at(key, x, rate):
    return jnp.where(jax.random.uniform(key, x.shape) < rate, 0, x / (1 - rate).astype(x.dtype))


def ruled(primal, bwd, jvp=None):
    if jvp is not None:
        rule = jax.custom_jvp(primal)
        rule.defjvp(jvp)
        return rule
    rule = jax.custom_vjp(primal)
    rule.defvjp(lambda *args: (primal(*args), args), bwd)
    return rule


def dropout(factor):
    return ruled(drop, lambda res, g: (None, factor * drop(res[0], g)))


def dropout_by_jvp(factor):
    return ruled(drop, None, lambda primals, ts: (drop(*primals), factor * drop(primals[0], ts[1])))


def dropout_at_a_rate(factor):
    rule = ruled(drop_at, lambda res, g: (None, factor * drop_at(res[0], g, res[2]), None))
    return lambda key, x: rule(key, x, jnp.float32(0.2))


def with_another_mask(factor):
    key_of = (lambda key: key) if factor == 1 else lambda key: jax.random.split(key)[0]
    return ruled(drop, lambda res, g: (None, drop(key_of(res[0]), g)))


def rectified(primal):
    """A rectifier of a noisy number, its slope times a factor."""

    def made(factor):
        return ruled(primal, lambda res, g: (None, factor * jax.vjp(lambda x: primal(res[0], x), res[1])[1](g)[0]))

    return made


def noisy(key, x):
    return x + jax.random.normal(key, x.shape, x.dtype)


def by_where(key, x):
    y = noisy(key, x)
    return jnp.where(y > 0, y, 0.1 * y)


def by_mask(key, x):
    y = noisy(key, x)
    return (y > 0) * y


def after_dropout(key, x):
    y = drop(key, x)
    return jnp.where(y > 0, y, 0.1 * y)


DRAWING = {
    "dropout": (dropout, "pass"),
    "dropout, custom_jvp": (dropout_by_jvp, "pass"),
    "dropout at a rate": (dropout_at_a_rate, "note"),
    "another mask": (with_another_mask, "pass"),
    "leaky by where": (rectified(by_where), "pass"),
    "softplus": (rectified(lambda key, x: jax.nn.softplus(noisy(key, x))), "pass"),
    "concrete": (rectified(lambda key, x: jax.nn.log_softmax(x + jax.random.gumbel(key, x.shape, x.dtype))), "pass"),
}


@pytest.mark.parametrize(
    ("name", "dtype"),
    [*((name, "float32") for name in DRAWING), ("dropout", "bfloat16"), ("leaky by where", "bfloat16")],
)
def test_what_draws_and_decides_nothing_is_judged(name, dtype):
    make, verdict = DRAWING[name]
    for factor, expected in ((1, verdict), (0.8, "fail")):
        rule = make(factor)
        report = audit(jax.jit(jax.grad(lambda x, rule=rule: jnp.sum(jnp.sin(rule(KEY, x))))), X.astype(dtype))
        assert [r.verdict for r in report.rules if "test_sampling" in r.source] == [expected], str(report)


def test_the_other_arguments_of_a_sampler_are_judged():
    def bwd(factor):
        def pulled(res, g):
            key, logits, means = res
            of_means = jax.vjp(lambda m: mixture(key, logits, m), means)[1](g)[0]
            return None, g[:, None] * jnp.tanh(logits), factor * of_means

        return pulled

    verdicts = {}
    for factor in (1, 2):
        rule = ruled(mixture, bwd(factor))
        step = jax.grad(lambda p, rule=rule: jnp.sum(jnp.sin(rule(KEY, *p))))
        (row,) = audit(step, (X, 2 * X)).rules
        verdicts[factor] = row.verdict
        assert ("logits decides" in row.reason) is (factor == 1)
    assert verdicts == {1: "undecided", 2: "fail"}


class Accepted(Primitive):
    """`accepted` as a hijax primitive, with a slope of its own."""

    @staticmethod
    def body(params, *args):
        return accepted(*args)

    def vjp_fwd(self, nzs_in, /, *args):
        return self(*args), args

    def vjp_bwd_retval(self, res, g):
        return np.zeros(2, jax.dtypes.float0), g * jnp.tanh(res[1])


def test_a_sampler_that_is_a_hijax_primitive_is_undecided():
    sample = calls(Accepted)
    (row,) = audit(jax.grad(lambda a: jnp.sum(jnp.sin(sample(jax.random.PRNGKey(1), a)))), X[0]).rules
    assert (row.kind, row.verdict) == ("hijax", "undecided"), row.reason
    assert "decides which of them are used" in row.reason


def repeatedly(fn):
    return lambda key, x: jax.lax.scan(lambda c, k: (fn(k, c), None), x, jax.random.split(key))[0]


@pytest.mark.parametrize(
    ("fn", "args", "names"),
    [
        (looped, (KEY, ALPHA), ["alpha"]),
        (picked, (KEY, ALPHA), ["alpha"]),
        (weighted, (KEY, ALPHA), ["alpha"]),
        (truncated, (KEY, X[0]), ["mean"]),
        (mixture, (KEY, X, X), ["logits"]),
        (drop_at, (KEY, X, jnp.float32(0.5)), ["rate"]),
        (lambda key, x: jax.lax.cond(jax.random.uniform(key) < x[0], jnp.sin, jnp.cos, x), (KEY, X[0]), ["x"]),
        (lambda key, x: jnp.floor(x + jax.random.uniform(key, x.shape)), (KEY, X), ["x"]),
        (repeatedly(lambda key, x: drop_at(key, x, x[0])), (KEY, X[0]), ["x"]),
        (repeatedly(lambda key, x: drop(key, jnp.sin(x))), (KEY, X[0]), []),
        (lambda key, x: jnp.where(x > 0, x, jax.random.normal(key, x.shape)), (KEY, X), []),
        (lambda key, x: jax.random.permutation(key, x), (KEY, X), []),
        (lambda key, x: x * (jax.random.uniform(key, x.shape) < 0.5), (KEY, X), []),
        (lambda key, x: jnp.sort(noisy(key, x)), (KEY, X), []),
        (lambda key, x: jax.random.gamma(key, x), (KEY, ALPHA), []),
        (by_mask, (KEY, X), []),
        (after_dropout, (KEY, X), []),
        (drop, (jax.random.PRNGKey(1), X), []),
    ],
)
def test_which_arguments_decide(fn, args, names):
    assert deciding(CallUnderTest(fn, args)) == names
