"""What two shorter ways to define a rule save, and what they cost: the figures of docs/add_a_rule.md."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from short_definitions import by_generator, by_keywords

import vjplib
from vjplib.verification.claims.residuals import residual_bytes

RNG = np.random.default_rng(0)


def normal(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


keywords = by_keywords(
    lambda x, W, b: x @ W.T + b,
    x=lambda W, g: g @ W,
    W=lambda x, g: g.T @ x,
    b=lambda g: g,
)


@by_generator
def generator(x, W, b):
    g = yield x @ W.T + b
    return g @ W, g.T @ x, g


@jax.custom_vjp
def plain(x, W, b):
    return x @ W.T + b


plain.defvjp(
    lambda x, W, b: (x @ W.T + b, (x, W)),
    lambda res, g: (g @ res[1], g.T @ res[0], jnp.sum(g, axis=0)),
)


@pytest.mark.parametrize("rule", [keywords, generator, plain], ids=["keywords", "generator", "plain"])
def test_all_three_are_right(rule):
    args = (normal(5, 7), normal(3, 7), normal(3))
    vjplib.assert_verified(rule, args, effort="quick")


def test_the_generator_keeps_every_argument():
    args = (normal(5, 7), normal(3, 7), normal(3))
    assert [residual_bytes(rule, *args) for rule in (keywords, generator, plain)] == [224, 236, 224]


def test_the_generator_runs_the_forward_again():
    @by_generator
    def softmax(x):
        y = jax.nn.softmax(x)
        g = yield y
        return (y * (g - jnp.sum(g * y, -1, keepdims=True)),)

    x = normal(5, 7)
    both = str(jax.make_jaxpr(lambda x, g: jax.vjp(softmax, x)[1](g))(x, x))
    assert both.count(" exp ") == 2
    both = str(jax.make_jaxpr(lambda x, g: jax.vjp(vjplib.softmax, x)[1](g))(x, x))
    assert both.count(" exp ") == 1


def test_a_sum_made_for_the_author_is_made_for_his_mistake_too():
    """s scales rows: its cotangent is summed along them. Forgotten, the sum runs over the other axis, of equal size."""
    x, s = normal(5, 5), normal(5)

    def primal(x, s):
        return x * s[:, None]

    forgotten = by_keywords(primal, x=lambda s, g: g * s[:, None], s=lambda x, g: g * x)
    wrong = jax.grad(lambda s: jnp.sum(forgotten(x, s)))(s)
    np.testing.assert_allclose(wrong, x.sum(0), rtol=1e-5)
    np.testing.assert_allclose(jax.grad(lambda s: jnp.sum(primal(x, s)))(s), x.sum(1), rtol=1e-5)

    raw = jax.custom_vjp(primal)
    raw.defvjp(lambda x, s: (primal(x, s), (x, s)), lambda res, g: (g * res[1][:, None], g * res[0]))
    with pytest.raises(ValueError, match=r"float32\[5,5\]"):  # JAX's own word, which says where
        jax.grad(lambda s: jnp.sum(raw(x, s)))(s)
