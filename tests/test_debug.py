"""debug_rule: a rule that breaks its contract raises where it is traced; one that keeps it is not changed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from wrong_rules import rule

import vjplib
from vjplib import ContractError, debug_rule, debug_rules

X = np.arange(6, dtype=np.float32).reshape(2, 3)


def scaled(x, p):
    return x * p["a"] + p["b"]


def scaled_fwd(x, p):
    return scaled(x, p), (x, p)


PARAMETERS = {"a": np.float32(2), "b": np.ones(3, np.float32)}


def pulled(res, g):
    x, p = res
    return g * p["a"], {"a": jnp.sum(g * x), "b": jnp.sum(g, axis=0)}


def with_bwd(change):
    return rule(scaled, scaled_fwd, lambda res, g: change(*pulled(res, g)))


FAULTS = {
    "another dtype": (with_bwd(lambda dx, dp: (dx.astype(jnp.float16), dp)), "float16 of shape (2, 3) for argument x"),
    "another shape": (with_bwd(lambda dx, dp: (dx[:1], dp)), "float32 of shape (1, 3) for argument x"),
    "one array for a pytree": (with_bwd(lambda dx, dp: (dx, dp["a"])), "JAX would copy it to each leaf"),
    "a leaf missing": (with_bwd(lambda dx, dp: (dx, {"a": dp["a"]})), "for argument p, which is"),
    "too few": (with_bwd(lambda dx, dp: (dx,)), "a tuple of 2, a cotangent for each argument that is differentiated"),
    "no tuple": (with_bwd(lambda dx, dp: dx), "and returns a "),
    "another value's dtype": (
        rule(scaled, lambda x, p: (scaled(x, p).astype(jnp.float16), (x, p)), pulled),
        "the forward pass returns float16 of shape (2, 3), the primal float32",
    ),
    "another tree of outputs": (
        rule(scaled, lambda x, p: ((scaled(x, p),), (x, p)), lambda res, g: pulled(res, *g)),
        "the forward pass returns PyTreeDef((*,)), the primal PyTreeDef(*)",
    ),
}


def loss(fn):
    return lambda x, p: sum(jnp.sum(y.astype(jnp.float32)) for y in jax.tree.leaves(fn(x, p)))


@pytest.mark.parametrize("name", FAULTS)
@pytest.mark.parametrize("transform", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_a_broken_contract_raises_where_it_is_met(name, transform):
    fn, message = FAULTS[name]
    with pytest.raises(ContractError) as caught:
        transform(jax.grad(loss(debug_rule(fn)), (0, 1)))(X, PARAMETERS)
    assert message in str(caught.value)


def test_weak_types_belong_to_the_contract():
    fn = rule(lambda x: x * 2, lambda x: (jnp.asarray(x * 2, jnp.float32), None), lambda res, g: (g * 2,))
    with pytest.raises(ContractError, match=r"returns float32 of shape \(\), the primal weak float32"):
        jax.grad(debug_rule(fn))(1.0)


def test_integers_take_no_floating_cotangent():
    fn = rule(lambda x, i: x * i, lambda x, i: (x * i, i), lambda i, g: (g * i, g))
    with pytest.raises(ContractError, match="for argument i, int32 of shape"):
        jax.grad(debug_rule(fn))(X[0, 0], jnp.int32(2))


RIGHT = {
    "all of it": (with_bwd(lambda dx, dp: (dx, dp)), (X, PARAMETERS)),
    "None for zeros": (with_bwd(lambda dx, dp: (dx, None)), (X, PARAMETERS)),
    "None for a leaf": (with_bwd(lambda dx, dp: (dx, dp | {"b": None})), (X, PARAMETERS)),
    "None for integers": (
        rule(lambda x, i: x * i, lambda x, i: (x * i, i), lambda i, g: (g * i, None)),
        (X, jnp.int32(2)),
    ),
    "float0 for integers": (
        rule(
            lambda x, i: x * i,
            lambda x, i: (x * i, i),
            lambda i, g: (g * i, np.zeros((), jax.dtypes.float0)),
        ),
        (X, jnp.int32(2)),
    ),
}


@pytest.mark.parametrize("name", RIGHT)
def test_a_kept_contract_changes_nothing(name):
    fn, args = RIGHT[name]

    def gradient(f):
        return jax.jit(jax.grad(lambda x, other: jnp.sum(jnp.sin(f(x, other)))))

    several = np.stack([args[0], 2 * args[0]])
    mapped = [jax.vmap(gradient(f), (0, None))(several, args[1]) for f in (fn, debug_rule(fn))]
    np.testing.assert_array_equal(*mapped)
    # The program is the same, so nothing is left of the check.
    texts = [gradient(f).lower(*args).as_text() for f in (fn, debug_rule(fn))]
    assert texts[0] == texts[1]
    np.testing.assert_array_equal(gradient(fn)(*args), gradient(debug_rule(fn))(*args))


def power(bwd):
    made = jax.custom_vjp(lambda n, x: x**n, nondiff_argnums=(0,))
    made.defvjp(lambda n, x: (x**n, x), bwd)
    return made


def test_static_arguments_stay_static():
    right = debug_rule(power(lambda n, x, g: (g * n * x ** (n - 1),)))
    assert float(jax.grad(right, 1)(3, 2.0)) == 12
    assert float(jax.grad(jax.grad(right, 1), 1)(3, 2.0)) == 12
    with pytest.raises(ContractError, match=r"a tuple of 1, .* returns 2"):
        jax.grad(debug_rule(power(lambda n, x, g: (None, g))), 1)(3, 2.0)


def cube(bwd):
    made = jax.custom_vjp(lambda x, unused: x**3)
    made.defvjp(lambda x, unused: (x.value**3, x.value), bwd, symbolic_zeros=True)
    return made


def test_symbolic_zeros_stay_symbolic():
    right = debug_rule(cube(lambda x, g: (g * 3 * x**2, None)))
    assert float(jax.grad(right)(2.0, 1.0)) == 12
    with pytest.raises(ContractError, match=r"float32 of shape \(2,\) for argument x"):
        jax.grad(debug_rule(cube(lambda x, g: (jnp.stack([g, g]), None))))(2.0, 1.0)


def test_the_rules_of_the_library_keep_it():
    x, labels = jnp.linspace(-1, 1, 12).reshape(3, 4), jnp.arange(3)

    def derivatives():
        return (
            jax.hessian(lambda x: jnp.sum(vjplib.softmax(vjplib.tanh(x)) ** 2))(x),
            jax.grad(lambda x: jnp.sum(vjplib.max_pool(x, (2,), (2,)) ** 2))(x[..., None]),
            jax.grad(lambda x: jnp.sum(vjplib.softmax_cross_entropy_with_integer_labels(x, labels)))(x),
        )

    expected = derivatives()
    with debug_rules():
        jax.tree.map(np.testing.assert_array_equal, derivatives(), expected)


def test_the_context_looks_at_every_rule_called_inside_and_at_none_after():
    fn, message = FAULTS["another dtype"]
    gradient = jax.grad(lambda x: loss(fn)(x, PARAMETERS))
    gradient(X)
    with debug_rules(), pytest.raises(ContractError) as caught:
        gradient(X)
    assert message in str(caught.value)
    gradient(X)


def test_an_inner_rule_is_looked_at_too():
    inner, _ = FAULTS["another dtype"]
    outer = rule(
        lambda x: inner(x, PARAMETERS), lambda x: jax.vjp(lambda x: inner(x, PARAMETERS), x), lambda back, g: back(g)
    )
    with debug_rules(), pytest.raises(ContractError, match="scaled: the backward returns float16"):
        jax.grad(lambda x: jnp.sum(outer(x)))(X)


@pytest.mark.parametrize("fn", [jnp.sin, 3, jax.custom_jvp(jnp.sin)])
def test_what_is_no_custom_vjp_is_refused(fn):
    with pytest.raises(ValueError, match=r"fn must have its passes: call <lambda>\.defvjp\(fwd, bwd\) first"):
        debug_rule(jax.custom_vjp(lambda x: x))
    with pytest.raises(TypeError, match=r"fn must be a jax\.custom_vjp, got "):
        debug_rule(fn)
