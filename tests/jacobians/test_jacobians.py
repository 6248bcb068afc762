"""Jacobians equal autodiff of plain functions, multiply as their matrices do, and compose in one order only."""

import dataclasses
import operator
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vjplib import conv1d
from vjplib.jacobians import (
    BandedToeplitz,
    Chain,
    Dense,
    Diagonal,
    DiagonalMinusLowRank,
    backward_order,
    forward_order,
    multiplications,
)
from vjplib.rule import rules


def normal(seed, *shape, dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), dtype)


def correlate(x, h):
    """y_i = sum_p x_{i + p - (k - 1) // 2} h_p, written as the sum it is."""
    before, k = (len(h) - 1) // 2, len(h)
    padded = jnp.pad(x, (before, k - 1 - before))
    return jnp.stack([padded[i : i + k] @ h for i in range(len(x))])


def softmax_jacobian(x):
    y = jax.nn.softmax(x)
    return DiagonalMinusLowRank(y, y[:, None], y[:, None])


def log_softmax_jacobian(x):
    one = jnp.ones_like(x)
    return DiagonalMinusLowRank(one, one[:, None], jax.nn.softmax(x)[:, None])


def convolution(h):
    return lambda x: correlate(x, h), lambda x: BandedToeplitz(h, len(x))


N = 5
W, B = normal(1, 3, N), normal(2, 3)
LAYERS = {
    "linear": (lambda x: W @ x + B, lambda x: Dense(W)),
    "tanh": (jnp.tanh, lambda x: Diagonal(1 - jnp.tanh(x) ** 2)),
    "softmax": (jax.nn.softmax, softmax_jacobian),
    "log_softmax": (jax.nn.log_softmax, log_softmax_jacobian),
} | {f"conv k={k}": convolution(normal(k, k)) for k in range(1, 7)}
STRUCTURES = {
    "dense": Dense(normal(3, N, N)),
    "diagonal": Diagonal(normal(4, N)),
    "toeplitz": BandedToeplitz(normal(5, 3), N),
    "even toeplitz": BandedToeplitz(normal(6, 4), N),
    "low rank": DiagonalMinusLowRank(normal(7, N), normal(8, N, 2), normal(9, N, 2)),
}
KINDS = pytest.mark.parametrize("kind", STRUCTURES)


@pytest.mark.parametrize("layer", LAYERS)
def test_dense_form_is_the_jacobian_of_the_layer(layer):
    f, jacobian = LAYERS[layer]
    x = normal(0, N)
    chex.assert_trees_all_close(jacobian(x).dense(), jax.jit(jax.jacrev(f))(x), rtol=1e-5, atol=1e-6)
    assert jacobian(x).shape == (f(x).size, x.size)


@pytest.mark.parametrize("rule", [r for r in rules() if r.jacobian], ids=lambda rule: rule.name)
def test_records_state_the_jacobian_of_their_reference(rule):
    case = rule.cases[0]
    batch = [d for d in case.arrays[0].shape.split()[:-1] if d not in case.fixed]
    without = (i and i._replace(shape=" ".join(d for d in i.shape.split() if d not in batch)) for i in case.arrays)
    one_vector = dataclasses.replace(case, inputs=tuple(without))
    args, kwargs = one_vector.call(np.random.default_rng(0))
    size = rule.reference(*args, **kwargs).size
    for i, jacobian in enumerate(rule.jacobian(*map(jnp.asarray, args), **kwargs)):
        if jacobian is not None:
            expected = jax.jit(jax.jacrev(partial(rule.reference, **kwargs), argnums=i))(*args)
            expected = expected.reshape(size, args[i].size)
            chex.assert_trees_all_close(jacobian.dense(), expected, rtol=1e-5, atol=1e-6)


def test_the_lecture_s_band_matrix():
    h1, h2, h3 = 1.0, 2.0, 3.0
    printed = [[h2, h3, 0, 0, 0], [h1, h2, h3, 0, 0], [0, h1, h2, h3, 0], [0, 0, h1, h2, h3], [0, 0, 0, h1, h2]]
    chex.assert_trees_all_equal(BandedToeplitz(jnp.array([h1, h2, h3]), 5).dense(), jnp.array(printed))


@pytest.mark.parametrize("k", range(1, 7))
@pytest.mark.parametrize("n", [1, 2, 7])
def test_a_band_wider_than_the_matrix_is_cut_off(n, k):
    @jax.jit
    def run(J, x):
        matrix = J.dense()
        return matrix, jax.jacrev(lambda x: correlate(x, J.kernel))(x), (J.vjp(x), J.jvp(x)), (x @ matrix, matrix @ x)

    matrix, expected, products, by_matrix = run(BandedToeplitz(normal(k, k), n), normal(0, n))
    chex.assert_trees_all_close(matrix, expected)
    chex.assert_trees_all_close(products, by_matrix, rtol=1e-5, atol=1e-6)


@KINDS
@pytest.mark.parametrize("transform", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_products_are_those_of_the_matrix(kind, transform):
    J, v = STRUCTURES[kind], normal(0, N)
    products = transform(lambda J, v: (J.vjp(v), J.jvp(v)))(J, v)
    chex.assert_trees_all_close(products, (v @ J.dense(), J.dense() @ v), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("right", STRUCTURES)
@pytest.mark.parametrize("left", STRUCTURES)
def test_composition_is_the_matrix_product(left, right):
    product = jax.jit(operator.matmul)(STRUCTURES[left], STRUCTURES[right])
    expected = STRUCTURES[left].dense() @ STRUCTURES[right].dense()
    chex.assert_trees_all_close(product.dense(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("left", "right", "kept"),
    [
        ("diagonal", "diagonal", Diagonal),
        ("diagonal", "low rank", DiagonalMinusLowRank),
        ("low rank", "diagonal", DiagonalMinusLowRank),
        ("low rank", "low rank", DiagonalMinusLowRank),
        ("diagonal", "toeplitz", Dense),
        ("low rank", "toeplitz", Dense),
        ("toeplitz", "toeplitz", Dense),
        ("dense", "low rank", Dense),
    ],
)
def test_composition_keeps_structure_where_there_is_one(left, right, kept):
    assert type(STRUCTURES[left] @ STRUCTURES[right]) is kept


@KINDS
def test_rectangles_compose_with_every_structure(kind):
    J, wide, tall = STRUCTURES[kind], Dense(normal(1, 2, N)), Dense(normal(2, N, 3))
    chex.assert_trees_all_close((wide @ J).dense(), wide.matrix @ J.dense(), rtol=1e-5, atol=1e-5)
    chex.assert_trees_all_close((J @ tall).dense(), J.dense() @ tall.matrix, rtol=1e-5, atol=1e-5)


@KINDS
def test_the_wrong_order_is_refused_naming_both_shapes(kind):
    f, g = Dense(jnp.ones((1, N))), STRUCTURES[kind]
    assert (f @ g).shape == (1, N)
    with pytest.raises(ValueError, match=r"as many columns on the left as rows.*\(5, 5\) @ \(1, 5\)"):
        _ = g @ f


def test_only_jacobians_compose():
    with pytest.raises(TypeError, match="unsupported operand"):
        _ = STRUCTURES["diagonal"] @ jnp.ones((N, N))


@KINDS
def test_vectors_of_the_wrong_size_or_dtype_are_refused_by_name(kind):
    J = STRUCTURES[kind]
    with pytest.raises(ValueError, match=r"g must have shape \(5,\).* of shape \(5, 5\), got \(4,\)"):
        J.vjp(jnp.ones(4))
    with pytest.raises(ValueError, match=r"t must have shape \(5,\).* of shape \(5, 5\), got \(1, 5\)"):
        J.jvp(jnp.ones((1, 5)))
    with pytest.raises(TypeError, match="g must have a floating dtype, got int32"):
        J.vjp(jnp.ones(5, jnp.int32))


@pytest.mark.parametrize(
    ("jacobian", "message"),
    [
        (Diagonal(jnp.ones((2, 3))), r"diagonal must be of rank 1, got shape \(2, 3\)"),
        (BandedToeplitz(jnp.ones((2, 3)), 3), r"kernel must be of rank 1, got shape \(2, 3\)"),
        (BandedToeplitz(jnp.ones(0), 3), r"kernel must hold at least one entry, got shape \(0,\)"),
        (DiagonalMinusLowRank(jnp.ones(3), jnp.ones((3, 2)), jnp.ones((3, 1))), r"got \(3, 2\) and \(3, 1\)"),
        (
            DiagonalMinusLowRank(jnp.ones(3), jnp.ones((2, 1)), jnp.ones((2, 1))),
            r"with 3 rows.*got \(2, 1\) and \(2, 1\)",
        ),
    ],
)
def test_arrays_that_make_no_jacobian_are_refused_at_use(jacobian, message):
    for use in (lambda: jacobian.shape, jacobian.dense, lambda: jacobian.vjp(jnp.ones(3))):
        with pytest.raises(ValueError, match=message):
            use()
    with pytest.raises(ValueError, match=r"matrix must be of rank 2, got shape \(3,\)"):
        Dense(jnp.ones(3)).vjp(jnp.ones(3))


@KINDS
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32, jnp.float64])
def test_the_float_dtype_is_kept(kind, dtype):
    def products(J, v):
        return J.vjp(v), J.jvp(v), J.dense(), (J @ J).dense(), (Dense(v[None]) @ J).dense()

    with jax.enable_x64(True):
        J = jax.tree.map(lambda leaf: leaf.astype(dtype), STRUCTURES[kind])
        results = jax.eval_shape(products, J, normal(0, N, dtype=dtype))
    assert {r.dtype for r in results} == {jnp.dtype(dtype)}


@KINDS
def test_pytree_round_trip(kind):
    J = STRUCTURES[kind]
    leaves, structure = jax.tree.flatten(J)
    again = jax.tree.unflatten(structure, leaves)
    assert type(again) is type(J)
    chex.assert_trees_all_equal(again, J)
    assert J.nbytes == sum(leaf.nbytes for leaf in leaves)


def test_a_batch_of_jacobians_is_one_under_vmap():
    xs, gs = normal(0, 4, N), normal(1, 4, N)
    jacobians = jax.vmap(softmax_jacobian)(xs)
    products = jax.vmap(lambda J, g: J.vjp(g))(jacobians, gs)
    expected = jax.vmap(lambda x, g: jax.vjp(jax.nn.softmax, x)[1](g)[0])(xs, gs)
    chex.assert_trees_all_close(products, expected, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match=r"for a batch of Jacobians use jax\.vmap"):
        jacobians.vjp(gs[0])


@KINDS
def test_products_differentiate(kind):
    J, v = STRUCTURES[kind], normal(0, N)
    by_products = jax.grad(lambda J: jnp.sum(J.vjp(v) ** 2 + J.jvp(v)))(J)
    by_matrix = jax.grad(lambda J: jnp.sum((v @ J.dense()) ** 2 + J.dense() @ v))(J)
    chex.assert_trees_all_close(by_products, by_matrix, rtol=1e-4, atol=1e-5)


def test_structured_products_form_no_matrix():
    n = 4096
    row = jnp.ones(n)
    for J in (BandedToeplitz(jnp.ones(3), n), softmax_jacobian(row), Diagonal(row)):
        program = str(jax.make_jaxpr(lambda J, v: (J.vjp(v), J.jvp(v)))(J, row))
        assert f"[{n},{n}]" not in program
    assert f"[{n},{n}]" in str(jax.make_jaxpr(lambda J: J.dense())(Diagonal(row)))


def test_multiplications_are_those_stated():
    v, two_r = normal(0, N), 4
    for kind, work in {"dense": N * N, "diagonal": N, "toeplitz": 3 * N, "low rank": N * (1 + two_r)}.items():
        J = STRUCTURES[kind]
        assert multiplications(J.vjp, v) == multiplications(J.jvp, v) == work


def test_a_matrix_beside_a_structure_costs_one_product_a_row_or_column():
    J, wide, tall = STRUCTURES["toeplitz"], Dense(normal(1, 2, N)), Dense(normal(2, N, 2))
    assert multiplications(operator.matmul, wide, J) == multiplications(operator.matmul, J, tall) == 2 * 3 * N


def test_multiplications_follow_loops_and_refuse_unknown_ones():
    v = jnp.ones(N)
    assert multiplications(lambda x: jax.lax.scan(lambda c, _: (c * x, None), x, length=7)[0], v) == 7 * N
    assert multiplications(lambda i: i * i, jnp.ones(N, jnp.int32)) == 0
    with pytest.raises(ValueError, match="got a while"):
        multiplications(lambda x: jax.lax.while_loop(lambda c: c[0] < 3, lambda c: c * x, x), v)


def test_of_branches_the_dearest_counts():
    v = jnp.ones(N)
    assert multiplications(lambda x: jax.lax.cond(x[0] > 0, lambda x: x, lambda x: x * x * x, x), v) == 2 * N


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("k", [3, 200])  # by shifted copies, and by XLA's convolution
def test_a_convolution_takes_k_multiplications_an_output(k, stride):
    assert multiplications(lambda x, h: conv1d(x, h, stride=stride), jnp.ones(400), jnp.ones(k)) == k * 400 // stride


def test_a_convolution_of_channels_sums_over_them():
    assert multiplications(conv1d, jnp.ones((2, 8, 5)), jnp.ones((3, 5, 7))) == 2 * 8 * 7 * 3 * 5


# ----------------------------------------------------------------------------------------------------------- the chain


def network(n):
    """The lecture's f, g, h: a row, softmax and a convolution."""
    return Dense(normal(1, 1, n)), softmax_jacobian(normal(2, n)), BandedToeplitz(normal(3, 3), n)


def test_both_orders_give_one_derivative():
    h, x, target = normal(3, 3), normal(2, N), normal(1, N)
    y = jax.nn.softmax(correlate(x, h))
    factors = Dense((y - target)[None]), softmax_jacobian(correlate(x, h)), BandedToeplitz(h, N)
    expected = jax.grad(lambda x: jnp.sum((jax.nn.softmax(correlate(x, h)) - target) ** 2) / 2)(x)
    for order in (backward_order, forward_order):
        for transform in (lambda f: f, jax.jit):
            chex.assert_trees_all_close(transform(order)(factors).jacobian.dense()[0], expected, rtol=1e-5, atol=1e-6)


def test_the_orders_pass_through_a_row_and_through_a_matrix():
    n = 6
    assert [s.product for s in backward_order(network(n)).steps] == [(1, n), (1, n)]
    assert [s.product for s in forward_order(network(n)).steps] == [(n, n), (1, n)]


def test_costs_follow_from_the_sizes():
    n, k, item = 6, 3, 4
    factors = network(n)
    stored = (n + 3 * n + k) * item
    backward, forward = backward_order(factors), forward_order(factors)
    assert [s.multiplications for s in backward.steps] == [3 * n, k * n]
    assert backward.multiplications == (3 + k) * n
    assert backward.peak_bytes == stored + n * item
    assert [s.multiplications for s in forward.steps] == [3 * n * n, n * n]
    assert forward.peak_bytes == stored + n * n * item


def test_costs_need_no_numbers():
    abstract = jax.eval_shape(forward_order, network(6))
    assert isinstance(abstract, Chain)
    assert abstract.steps == forward_order(network(6)).steps


def test_one_factor_is_its_own_product_and_none_is_refused():
    J = STRUCTURES["diagonal"]
    assert backward_order([J]) == Chain(J, ())
    assert forward_order([J]).peak_bytes == J.nbytes
    for order in (backward_order, forward_order):
        with pytest.raises(ValueError, match="jacobians must hold at least one"):
            order([])


def test_a_chain_in_the_wrong_order_is_refused():
    f, g, h = network(N)
    for order in (backward_order, forward_order):
        with pytest.raises(ValueError, match=r"\(5, 5\) @ \(1, 5\)"):
            order([h, g, f])
