"""The lecture, row by row: each number it states is what the library computes, and each printed error is set right.

Rows L1 to L20 follow the lecture from Eq. 1 to its conclusion; docs/lecture.md walks through the same rows.
"""
# ruff: noqa: N802  the rows have the names L1 to L20

import inspect
from functools import partial
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import vjplib as vl
from vjplib.compat import cost_of, programs, recorded_custom_vjps, unclose
from vjplib.jacobians import BandedToeplitz, Dense, Diagonal, DiagonalMinusLowRank, backward_order, forward_order
from vjplib.lecture import figures
from vjplib.rule import find, rules
from vjplib.rules.convolution.conv1d import naive_vjp, sparse_vjp
from vjplib.training import net


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def pull(f, *args, g):
    """Returns the cotangents of f's arguments."""
    return jax.vjp(f, *args)[1](g)


def largest_array(jaxpr):
    """Returns the number of elements of the largest array that a program makes."""
    inner = (largest_array(body) for eqn in jaxpr.eqns for _, body, _ in programs(eqn.params))
    return max([0, *inner, *(v.aval.size for eqn in jaxpr.eqns for v in eqn.outvars)])


def stated_jacobians(name, *args):
    """Returns the Jacobians that a rule's record states."""
    (rule,) = find(name)
    assert rule.jacobian is not None
    return rule.jacobian(*args)


# -------------------------------------------------------------------------------------------- 1 Introduction: descent


def test_L1_one_step_of_optax_sgd_is_equation_1():
    # l(W) = sum (W x - y)^2 on integers, lr a power of two: nothing rounds.
    W, x, y = jnp.array([[1.0, -2.0], [0.5, 4.0]]), jnp.array([2.0, 1.0]), jnp.array([1.0, -1.0])
    gradient = jax.grad(lambda W: jnp.sum(vl.squared_error(vl.linear(x, W), y)))(W)
    lr, sgd = 0.5, optax.sgd(0.5)
    updates, _ = sgd.update(gradient, sgd.init(W))
    chex.assert_trees_all_equal(optax.apply_updates(W, updates), W - lr * gradient)
    chex.assert_trees_all_equal(gradient, 2 * jnp.outer(W @ x - y, x))


def test_L2_descent_with_lr_one_half_goes_down_to_the_minimum():
    path = figures.descent(figures.one_weight_loss, start=-1.5, learning_rate=0.5, steps=40)
    losses, slopes = jax.vmap(jax.value_and_grad(figures.one_weight_loss))(path)
    assert (np.diff(losses[:12]) < 0).all()
    chex.assert_trees_all_close(path[1:], path[:-1] - 0.5 * slopes[:-1], rtol=1e-6)
    np.testing.assert_allclose(path[-1], np.arctanh(0.6), rtol=1e-6)  # where the loss, (tanh(w) - 0.6)^2, is 0


# ------------------------------------------------------------------------------------------- 2 Derivatives of functions


@pytest.mark.parametrize(("central", "order"), [(False, 1), (True, 2)])
def test_L3_the_error_of_a_difference_quotient_falls_with_the_step_and_then_rises(central, order):
    errors = figures.finite_difference_errors(vl.tanh, 1.0, np.logspace(-14.5, -1, 136), np.float64, central)
    best = errors.argmin()
    assert round(np.log10(errors[-11] / errors[-21]), 1) == order  # at steps 1e-2 and 1e-3: truncation
    assert errors[:10].mean() > 1e3 * errors[best]  # about 1e-14: round-off, eps over the step
    assert 0 < best < len(errors) - 11


@pytest.mark.parametrize("zero", [0.0, -0.0])
@pytest.mark.parametrize("convention", [0, 1])
def test_L4_the_derivative_of_relu_at_zero_is_the_one_chosen(zero, convention):
    assert jax.grad(partial(vl.relu, derivative_at_zero=convention))(zero) == convention
    assert jax.grad(vl.relu)(zero) == 1
    assert jax.grad(jax.nn.relu)(zero) == 0


def test_L4_derivatives_of_the_activations():
    x = jnp.array([-2.0, -0.5, 0.5, 2.0])
    slopes = (jax.vmap(jax.grad(f))(x) for f in (vl.relu, vl.tanh, vl.sigmoid))
    s = 1 / (1 + jnp.exp(-x))
    chex.assert_trees_all_close(
        tuple(slopes), (jnp.array([0, 0, 1, 1.0]), 1 - jnp.tanh(x) ** 2, s * (1 - s)), rtol=1e-5
    )


def test_L5_partial_derivatives_of_4x_plus_7y_squared_at_2_3():
    assert vl.quadratic(2.0, 3.0) == 71
    assert jax.grad(vl.quadratic, argnums=(0, 1))(2.0, 3.0) == (4, 42)


def test_L6_partial_derivatives_of_xy_at_2_3():
    assert jax.grad(vl.multiply, argnums=(0, 1))(2.0, 3.0) == (3, 2)
    x, y, a = normal(0, 4), normal(1, 4), 2.0
    chex.assert_trees_all_close(vl.multiply(a * x + y, y), a * vl.multiply(x, y) + vl.multiply(y, y), rtol=1e-5)


@pytest.mark.parametrize(
    ("x", "partials"),
    [
        ([3.0, 7.0, 4.0], [28.0, 12.0, 21.0]),
        ([3.0, 0.0, 4.0], [0.0, 12.0, 0.0]),
        ([3.0, 0.0, 0.0], [0.0, 0.0, 0.0]),
    ],
    ids=["Eq. 12", "one zero", "two zeros"],
)
def test_L7_partial_derivatives_of_a_product(x, partials):
    assert jax.grad(vl.prod)(jnp.array(x)).tolist() == partials


def test_L7_all_partial_derivatives_take_linear_time_and_memory():
    small, large = (cost_of(jax.make_jaxpr(jax.grad(vl.prod))(jnp.ones(n)).jaxpr) for n in (1024, 2048))
    assert large.operations < 2.1 * small.operations
    assert large.largest < 2.1 * small.largest


def test_L8_a_jacobian_has_a_row_an_output_and_a_column_an_input():
    W, b, x = normal(0, 3, 5), normal(1, 3), normal(2, 5)
    in_x, in_W, in_b = stated_jacobians("linear", x, W, b)
    assert (in_x.shape, in_W, in_b.shape) == ((3, 5), None, (3, 3))
    for argument, jacobian in ((0, in_x), (2, in_b)):
        chex.assert_trees_all_close(jacobian.dense(), jax.jacrev(vl.linear, argument)(x, W, b))
    assert all(rule.jacobian for rule in rules() if not rule.whole_array)


def test_L9_the_jacobian_of_a_linear_map_is_its_matrix_and_that_of_a_convolution_toeplitz():
    W, b, h, x = normal(0, 3, 5), normal(1, 3), normal(2, 3), normal(3, 5)
    chex.assert_trees_all_equal(jax.jacrev(vl.linear)(x, W, b), W)
    toeplitz = BandedToeplitz(h, n=5).dense()
    chex.assert_trees_all_close(toeplitz @ x, vl.conv1d(x, h), rtol=1e-5)
    chex.assert_trees_all_equal(toeplitz[1:, 1:], toeplitz[:-1, :-1])


def test_L10_the_jacobian_of_softmax_and_its_product():
    x, g = normal(0, 5), normal(1, 5)
    y: Any = vl.softmax(x)
    J = jnp.diag(y) - jnp.outer(y, y)
    chex.assert_trees_all_close(jax.jacrev(vl.softmax)(x), J, rtol=1e-5, atol=1e-7)
    (dx,) = pull(vl.softmax, x, g=g)
    chex.assert_trees_all_close((dx, dx), (y * (g - g @ y), g @ J), rtol=1e-5, atol=1e-7)


def test_L10_the_jacobian_of_softmax_as_diagonal_minus_rank_one_is_equation_17():
    y: Any = vl.softmax(normal(0, 4))
    entries = [[float(y[i] * ((i == j) - y[j])) for j in range(4)] for i in range(4)]
    J = DiagonalMinusLowRank(y, y[:, None], y[:, None])
    chex.assert_trees_all_close(J.dense(), jnp.array(entries), rtol=1e-5, atol=1e-7)


def test_L10_the_backward_of_softmax_never_holds_the_matrix():
    x = jnp.ones(100)
    backward = jax.make_jaxpr(lambda x, g: pull(vl.softmax, x, g=g))(x, x)
    assert largest_array(unclose(backward)[0]) == 100


# ---------------------------------------------------------------------------------------------- 3 Function composition


def test_L11_the_chain_rule_holds_in_one_order_only():
    W, x = normal(0, 3, 5), normal(1, 5)
    f, g = Diagonal(1 - jnp.tanh(W @ x) ** 2), Dense(W)
    chex.assert_trees_all_close((f @ g).dense(), jax.jacrev(lambda x: vl.tanh(vl.linear(x, W)))(x), rtol=1e-5)
    with pytest.raises(ValueError, match=r"got \(3, 5\) @ \(3, 3\)"):
        _ = g @ f


def test_L11_each_derivative_is_taken_at_the_input_of_its_own_function():
    # h(x) = f(f(x)), Eq. 23: h'(x) = f'(f(x)) f'(x), and not f'(x)^2.
    x = 0.5
    slope = jax.grad(vl.tanh)
    np.testing.assert_allclose(jax.grad(lambda x: vl.tanh(vl.tanh(x)))(x), slope(vl.tanh(x)) * slope(x), rtol=1e-6)
    assert abs(slope(vl.tanh(x)) - slope(x)) > 0.01


def test_L12_a_network_is_a_composition_and_its_derivative_a_product():
    h, g, f = (net.activation(fn) for fn in (vl.relu, vl.sigmoid, vl.tanh))
    network = net.serial(h, g, f)
    _, params = network.init(jax.random.key(0), ())
    x = 0.5
    s = vl.sigmoid(x)
    np.testing.assert_allclose(
        jax.grad(network.apply, argnums=1)(params, x), (1 - np.tanh(s) ** 2) * (s * (1 - s)) * 1, rtol=1e-6
    )


def test_L13_the_three_cotangents_of_a_linear_map():
    x, W, b, g = normal(0, 5), normal(1, 3, 5), normal(2, 3), normal(3, 3)
    chex.assert_trees_all_close(pull(vl.linear, x, W, b, g=g), (g @ W, jnp.outer(g, x), g), rtol=1e-5)


def test_L14_the_four_gradients_of_the_weighted_network():
    x, w_h, w_g, w_f = normal(0, 3), normal(1, 4, 3), normal(2, 5, 4), normal(3, 1, 5)
    layers = [lambda a, w: vl.tanh(vl.linear(a, w)), lambda a, w: vl.sigmoid(vl.linear(a, w)), vl.linear]
    h, g, f = layers

    def network(x, w_h, w_g, w_f):
        return f(g(h(x, w_h), w_g), w_f)[0]

    a = h(x, w_h)
    b = g(a, w_g)
    db, dw_f = pull(f, b, w_f, g=jnp.ones(1))
    da, dw_g = pull(g, a, w_g, g=db)
    dx, dw_h = pull(h, x, w_h, g=da)
    by_jax = jax.grad(network, argnums=(0, 1, 2, 3))(x, w_h, w_g, w_f)
    chex.assert_trees_all_close((dx, dw_h, dw_g, dw_f), by_jax, rtol=1e-5)
    # And once more as in Eq. 30, by Jacobian matrices.
    f_a, g_a, h_a = jax.jacrev(f)(b, w_f), jax.jacrev(g)(a, w_g), jax.jacrev(h)(x, w_h)
    chex.assert_trees_all_close((f_a @ g_a @ h_a)[0], dx, rtol=1e-5)


# ---------------------------------------------------------------------------------------------------- 4 Backpropagation


def factors(n):
    """Returns f', g' and h' of a network like the lecture's: a loss, an activation, a convolution."""
    return Dense(jnp.ones((1, n))), Diagonal(jnp.ones(n)), BandedToeplitz(jnp.ones(3), n=n)


def test_L15_both_orders_agree_and_count_their_multiplications():
    n = 10
    backward, forward = backward_order(factors(n)), forward_order(factors(n))
    chex.assert_trees_all_equal(backward.jacobian.dense(), forward.jacobian.dense())
    # Backwards n for f' g' and 3 n for the three taps; forwards n^2 for each of the two products with a matrix.
    assert backward.multiplications == n + 3 * n
    assert forward.multiplications == n**2 + n**2
    assert [step.product for step in backward.steps] == [(1, n), (1, n)]
    assert [step.product for step in forward.steps] == [(n, n), (1, n)]


def test_L15_at_a_million_pixels_the_forward_order_needs_a_matrix_of_4_terabytes():
    n = 10**6
    backward, forward = (
        jax.eval_shape(lambda order=order: order(factors(n))) for order in (backward_order, forward_order)
    )
    assert [step.nbytes for step in backward.steps] == [4 * 10**6, 4 * 10**6]
    assert [step.nbytes for step in forward.steps] == [4 * 10**12, 4 * 10**6]


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule.name)
def test_L16_every_rule_is_a_pair_of_forward_and_backward(rule):
    call = rule.cases[0].call(np.random.default_rng(0))
    with recorded_custom_vjps() as calls:
        y = rule.fn(*call.args, **call.kwargs)
    (vjp, args, kwargs), *_ = calls
    assert vjp.fwd
    assert vjp.bwd
    given = inspect.signature(vjp.primal).bind(*args, **kwargs)
    given.apply_defaults()
    *static, _, _ = inspect.signature(vjp.bwd).parameters  # then come the residuals and g
    output, residuals = vjp.fwd(*given.args)
    ones = jax.tree.map(jnp.ones_like, output)
    cotangents = vjp.bwd(*(given.arguments[name] for name in static), residuals, ones)
    first = [jax.tree.leaves(a)[0] for a in (output, y)]  # a rule may compute more than the function returns
    chex.assert_trees_all_equal(first[0].ravel(), first[1].ravel())
    assert len(cotangents) == len(given.args) - len(static)


H = jnp.array([5.0, 7.0, 11.0])


def test_L17_the_convolution_of_example_4_2_on_numbers():
    # y_i = x_{i-1} h_1 + x_i h_2 + x_{i+1} h_3, zero outside.
    expected = jnp.array([1 * 7 + 2 * 11, 1 * 5 + 2 * 7 + 3 * 11, 2 * 5 + 3 * 7 + 4 * 11, 3 * 5 + 4 * 7], float)
    chex.assert_trees_all_equal(vl.conv1d(jnp.array([1.0, 2.0, 3.0, 4.0]), H), expected)


def test_L17_its_jacobian_is_the_band_matrix_of_equation_35():
    band = [[7.0, 11.0, 0.0, 0.0], [5.0, 7.0, 11.0, 0.0], [0.0, 5.0, 7.0, 11.0], [0.0, 0.0, 5.0, 7.0]]
    assert jax.jacrev(vl.conv1d)(jnp.ones(4), H).tolist() == band
    assert BandedToeplitz(H, n=4).dense().tolist() == band


def exponents(f, n=2**14):
    """Returns the base-2 logarithms of the growth of f's operations, and of its largest array, as n doubles."""
    vectors = (jax.ShapeDtypeStruct((size,), jnp.float32) for size in (n, 2 * n))
    small, large = (cost_of(jax.make_jaxpr(f)(H, g).jaxpr) for g in vectors)
    return np.log2(large.operations / small.operations), np.log2(large.largest / small.largest)


def test_L18_algorithm_3_forms_the_matrix_and_takes_quadratic_time_and_memory():
    g = jnp.array([1.0, 2.0, 4.0, 8.0])
    chex.assert_trees_all_equal(naive_vjp(H, g), g @ BandedToeplitz(H, n=4).dense())
    np.testing.assert_allclose(exponents(naive_vjp), 2, rtol=1e-3)


def test_L19_algorithm_4_gives_the_same_in_linear_time_and_memory():
    g = jnp.array([1.0, 2.0, 4.0, 8.0])
    chex.assert_trees_all_equal(sparse_vjp(H, g), naive_vjp(H, g))
    np.testing.assert_allclose(exponents(sparse_vjp), 1, rtol=1e-3)


def test_L19_the_rule_has_the_cotangents_of_input_and_kernel():
    x, g = jnp.array([1.0, 2.0, 3.0, 4.0]), jnp.array([1.0, 2.0, 4.0, 8.0])
    dx, dh = pull(vl.conv1d, x, H, g=g)
    assert dx.tolist() == sparse_vjp(H, g).tolist()
    assert dh.tolist() == [2 * 1 + 4 * 2 + 8 * 3, 1 * 1 + 2 * 2 + 4 * 3 + 8 * 4, 1 * 2 + 2 * 3 + 4 * 4]


# -------------------------------------------------------------------------------------------------------- 5 Conclusion


def test_L20_a_layer_of_one_s_own_is_verified_and_its_mistake_found():
    @jax.custom_vjp
    def square(x):
        return x * x

    x = np.array([0.5, -1.0, 3.0], np.float32)
    square.defvjp(lambda x: (x * x, x), lambda x, g: (2 * x * g,))
    vl.assert_verified(square, (x,), effort="quick")
    square.defvjp(lambda x: (x * x, x), lambda x, g: (x * g,))
    with pytest.raises(vl.NotVerifiedError, match="`x \\* g` is 2 times too small"):
        vl.assert_verified(square, (x,), effort="quick")


# --------------------------------------------------------------------------------------------------------------- errata


def test_errata_definition_2_4_there_are_m_outputs_whatever_n():
    x, W = normal(0, 5), normal(1, 3, 5)
    assert vl.linear(x, W).shape == (3,)
    assert jax.jacrev(vl.linear)(x, W).shape == (3, 5)


def test_errata_equation_12_has_three_partial_derivatives():
    assert jax.grad(vl.prod)(jnp.array([3.0, 7.0, 4.0]))[2] == 3 * 7


def test_errata_equation_28_the_derivative_in_b_is_the_identity_and_that_in_W_no_vector():
    x, W, b = normal(0, 5), normal(1, 3, 5), normal(2, 3)
    in_W, in_b = jax.jacrev(vl.linear, argnums=(1, 2))(x, W, b)
    chex.assert_trees_all_equal(in_b, jnp.eye(3))
    chex.assert_trees_all_equal(in_W, jnp.eye(3)[:, :, None] * x)


def test_errata_section_4_1_an_entry_of_a_jacobian_takes_4_bytes_in_float32():
    (J,) = stated_jacobians("sigmoid", jnp.ones(10))
    assert J.nbytes == 4 * 10
    assert J.dense().nbytes == 4 * 10**2


def test_errata_algorithm_4_reads_the_cotangent_at_j_minus_k():
    n, g = 4, [1.0, 2.0, 4.0, 8.0]
    h = [None, *H.tolist()]  # counted from 1, as printed
    v = [0.0] * (n + 1)
    for k in (-1, 0, 1):
        for j in range(1, n + 1):
            if 1 <= j - k <= n:
                v[j] += g[j - k - 1] * h[k + 2]
    assert v[1:] == sparse_vjp(H, jnp.array(g)).tolist()


def test_errata_example_2_1_any_number_between_0_and_1_is_a_subgradient_of_relu_at_0():
    x = jnp.linspace(-2, 2, 9)
    for slope in (0.0, 0.5, 1.0):
        assert (jax.nn.relu(x) >= slope * x).all()


def test_errata_figure_5_a_goes_backwards_from_the_loss_and_b_forwards_from_the_input():
    a, b = (axes.get_title() for axes in figures.computational_graphs(n=10).axes)
    assert "(a)" in a
    assert "from the loss backwards, Eq. 33a" in a
    assert "(b)" in b
    assert "from the input forwards, Eq. 33b" in b
