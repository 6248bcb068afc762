"""Right rules of every shape that users write raise no alarm: pytrees, several outputs, static arguments, refusals."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vjplib

RNG = np.random.default_rng(1)


def normal(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def rule(primal, fwd, bwd, **options):
    made = jax.custom_vjp(primal, **options)
    made.defvjp(fwd, bwd)
    return made


def layer_norm(params, x):
    """A pytree argument, and a second output."""
    mean = jnp.mean(x, -1, keepdims=True)
    deviation = jnp.sqrt(jnp.var(x, -1, keepdims=True) + 1e-5)
    return (x - mean) / deviation * params["scale"] + params["bias"], mean[..., 0]


def layer_norm_fwd(params, x):
    deviation = jnp.sqrt(jnp.var(x, -1, keepdims=True) + 1e-5)
    return layer_norm(params, x), (params["scale"], (x - jnp.mean(x, -1, keepdims=True)) / deviation, deviation)


def layer_norm_bwd(res, gs):
    scale, unit, deviation = res
    g, g_mean = gs
    scaled = g * scale
    dx = (scaled - scaled.mean(-1, keepdims=True) - unit * (scaled * unit).mean(-1, keepdims=True)) / deviation
    batch = tuple(range(g.ndim - 1))
    return {"scale": (g * unit).sum(batch), "bias": g.sum(batch)}, dx + g_mean[..., None] / g.shape[-1]


def top_three(x):
    """An output of integers."""
    return jax.lax.top_k(x, 3)


def top_three_bwd(res, gs):
    indices, like = res
    rows = jnp.arange(indices.shape[0])[:, None]
    return (jnp.zeros_like(like).at[rows, indices].add(gs[0]),)


def attention(q, k, v):
    return jax.nn.softmax(q @ k.T) @ v


def sine_on_the_host(x, g):
    shape = jax.ShapeDtypeStruct(g.shape, g.dtype)
    return (jax.pure_callback(lambda x, g: (g * np.cos(x)).astype(g.dtype), shape, x, g, vmap_method="expand_dims"),)


def einsum_by_string(spec, a, b):
    return jnp.einsum(spec, a, b)


RIGHT = {
    "a pytree and two outputs": (
        rule(layer_norm, layer_norm_fwd, layer_norm_bwd),
        ({"scale": normal(7), "bias": normal(7)}, normal(3, 7)),
        {},
    ),
    "integer outputs": (
        rule(top_three, lambda x: (top_three(x), (top_three(x)[1], x)), top_three_bwd),
        (normal(2, 11),),
        {},
    ),
    "a backward made by JAX": (
        rule(attention, lambda *args: jax.vjp(attention, *args), lambda back, g: back(g)),
        (normal(5, 3), normal(7, 3), normal(7, 2)),
        {},
    ),
    "a static exponent": (
        rule(lambda x, n: x**n, lambda x, n: (x**n, x), lambda n, x, g: (g * n * x ** (n - 1),), nondiff_argnums=(1,)),
        (normal(5), 3),
        {},
    ),
    "a static string": (
        rule(
            einsum_by_string,
            lambda spec, a, b: (jnp.einsum(spec, a, b), (a, b)),
            lambda spec, res, g: jax.vjp(partial(jnp.einsum, spec), *res)[1](g),
            nondiff_argnums=(0,),
        ),
        ("ij,jk->ik", normal(2, 3), normal(3, 5)),
        {},
    ),
    "second order refused": (
        rule(jnp.sin, lambda x: (jnp.sin(x), x), sine_on_the_host),
        (normal(5),),
        {"order_two": False},
    ),
    "integer and boolean arguments": (
        rule(
            lambda x, i, m: jnp.where(m, x[i], 0),
            lambda x, i, m: (jnp.where(m, x[i], 0), (x, i, m)),
            lambda res, g: (jnp.zeros_like(res[0]).at[res[1]].add(jnp.where(res[2], g, 0)), None, None),
        ),
        (normal(7), np.array([1, 1, 6]), np.array([True, False, True])),
        {},
    ),
    "no custom rule at all": (lambda x, y: jnp.tanh(x @ y), (normal(3, 5), normal(5, 2)), {}),
    "a norm, whose squares underflow": (jnp.linalg.norm, (normal(11),), {}),
    "a linear solve": (lambda a, b: jnp.linalg.solve(a @ a.T + jnp.eye(3), b), (normal(3, 3), normal(3)), {}),
    "a scan": (lambda x: jax.lax.scan(lambda c, a: (jnp.tanh(c + a), c), jnp.zeros_like(x[0]), x)[1], (normal(7),), {}),
}


@pytest.mark.parametrize("name", RIGHT)
def test_right_rule_raises_no_alarm(name):
    fn, args, options = RIGHT[name]
    report = vjplib.verify(fn, args, **options)
    assert report.ok, "\n".join(map(str, report.failures))


def test_refusal_that_is_declared_but_does_not_happen_fails():
    report = vjplib.verify(vjplib.tanh, (normal(3),), order_two=False, claims=("second_order",))
    assert [f.claim for f in report.failures] == ["second_order", "second_order"]


def test_claimed_residual_bytes_are_held_to():
    x = (normal(5),)
    assert vjplib.verify(vjplib.tanh, x, residual_bytes=20, claims=("residuals",)).ok
    report = vjplib.verify(vjplib.tanh, x, residual_bytes=5, claims=("residuals",))
    assert "keeps 20 bytes" in report.failures[0].message


def test_closed_over_array_is_noted():
    weights = jnp.asarray(normal(5))
    report = vjplib.verify(lambda x: x * weights, (normal(5),), claims=("contract",))
    assert report.ok
    assert any("closes over an array" in f.message for f in report.findings if f.level == "note")


def test_reports_serialise(tmp_path):
    import json

    report = vjplib.verify(vjplib.tanh, (normal(3),), claims=("contract", "value"))
    assert json.loads(report.to_json())["ok"] is True
    assert report.to_markdown().count("\n") == len(report.findings) + 1


def newton(a):
    """sqrt by a loop of unknown length, which JAX cannot differentiate backwards."""

    def goes_on(state):
        steps, y = state
        return (steps < 60) & (jnp.max(jnp.abs(y * y - a) / a) > 1e-14)

    return jax.lax.while_loop(goes_on, lambda state: (state[0] + 1, (state[1] + a / state[1]) / 2), (0, a + 1))[1]


def test_primal_that_jax_cannot_differentiate_is_undecided_without_a_reference():
    root = rule(newton, lambda a: (newton(a), newton(a)), lambda y, g: (g / (2 * y),))
    a = (np.abs(normal(5)) + 1,)
    report = vjplib.verify(root, a)
    assert not report.failures, report
    assert {report.level(claim) for claim in ("contract", "linearity", "transforms")} == {"pass"}
    assert {report.level(claim) for claim in ("value", "second_order", "edges", "accuracy")} == {"skipped"}
    assert "give a reference" in str(next(f for f in report.findings if f.level == "skipped"))
    assert vjplib.verify(root, a, reference=jnp.sqrt, claims=("value", "accuracy")).ok


def test_what_the_oracle_cannot_decide_is_not_passed():
    nowhere = rule(
        lambda x: jnp.sqrt(-jnp.abs(x) - 1), lambda x: (jnp.sqrt(-jnp.abs(x) - 1), None), lambda _, g: (123 * g,)
    )
    report = vjplib.verify(nowhere, (normal(5),), claims=("value",))
    assert not report.ok
    assert report.level("value") == "skipped"
    half = rule(jnp.sqrt, lambda x: (jnp.sqrt(x), x), lambda x, g: (jnp.where(x > 0, g / (2 * jnp.sqrt(x)), 7 * g),))
    report = vjplib.verify(half, (np.array([-1.0, 2.0, 3.0], np.float32),), claims=("value",))
    assert any("the oracle is NaN at 33% of it" in f.message for f in report.findings)


def test_numpys_float64_is_taken_as_jax_takes_it():
    assert vjplib.verify(vjplib.tanh, (np.linspace(-1, 1, 7),), effort="quick").ok


def test_numbers_that_overflow_when_scaled_leak_no_warning():
    assert vjplib.verify(vjplib.tanh, (np.array([1e37, 1.0], np.float32),), effort="quick").ok


def test_output_without_a_derivative_is_refused():
    for fn in (jnp.argmax, lambda x: None):
        with pytest.raises(ValueError, match="fn must return at least one floating array"):
            vjplib.verify(fn, (normal(3),))


def test_undecided_is_not_shown_as_passed():
    findings = (vjplib.Finding("value", "skipped", "undecided"), vjplib.Finding("value", "pass", "equal"))
    assert vjplib.Report("f", findings).level("value") == "skipped"


def unit(x):
    return x / jnp.sqrt(jnp.sum(x**2, -1, keepdims=True))


def unit_fwd(x):
    n = jnp.sqrt(jnp.sum(x**2, -1, keepdims=True))
    return x / n, (x / n, n)


def unit_bwd(res, g):
    y, n = res
    return ((g - y * jnp.sum(g * y, -1, keepdims=True)) / n,)


def five_columns(x):
    assert x.shape[-1] == 5
    assert x.dtype in (jnp.float32, jnp.float64)
    return jnp.sin(x)


def dropout(x, key):
    return jnp.where(jax.random.bernoulli(key, 0.5, x.shape), x, 0)


def log_det(a):
    return jnp.linalg.slogdet(a)[1]


OF_FEW_CALLS = {
    "a cotangent that cancels to nothing at one element": (rule(unit, unit_fwd, unit_bwd), (normal(2, 7),)),
    "a function that asserts what it takes": (five_columns, (normal(2, 5),)),
    "a backward that no half precision has": (
        rule(log_det, lambda a: (log_det(a), a), lambda a, g: (g * jnp.linalg.inv(a).T,)),
        (normal(2, 2) + 2 * np.eye(2, dtype=np.float32),),
    ),
    "an infinite input": (
        rule(lambda x: x * x, lambda x: (x * x, x), lambda x, g: (2 * x * g,)),
        (np.array([np.inf, 1.0], np.float32),),
    ),
    "a key of random numbers": (dropout, (normal(2, 5), jax.random.key(0))),
}


@pytest.mark.parametrize("name", OF_FEW_CALLS)
def test_what_a_function_does_not_take_is_no_failure(name):
    report = vjplib.verify(*OF_FEW_CALLS[name])
    assert report.ok, "\n".join(map(str, report.failures))


def test_a_switch_that_adds_an_output_is_no_failure():
    def tanh_and_sum(x, stats=False):
        return (vjplib.tanh(x), x.sum()) if stats else vjplib.tanh(x)

    for stats in (False, True):
        report = vjplib.verify(tanh_and_sum, (normal(3),), {"stats": stats}, claims=("variations",))
        assert report.ok, report
