"""Dense convolutions: each algorithm serves what it is made for, and agrees with lax there."""

import itertools
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from convolution_calls import differences
from jax import lax

import vjplib
from vjplib.rules.convolution.algorithms import dense, phased, spatial
from vjplib.rules.convolution.call import make_call
from vjplib.rules.convolution.dispatch import forward_algorithm, weight_grad_algorithm
from vjplib.rules.convolution.problem import Problem

LAST = {1: ("NWC", "WIO", "NWC"), 2: ("NHWC", "HWIO", "NHWC"), 3: ("NDHWC", "DHWIO", "NDHWC")}
PRODUCT, PATCHES = "a matrix product", "a matrix product of patches"
PHASES, PLACE = "all phases as features", "a matrix product for all of y"
COLUMN, ROW, SLABS = "a column a tap", "a row a tap", "a convolution of fewer dimensions a tap"
PLANES, BANDS = "planes of columns", "a matrix product a row of the kernel"
EXCHANGED, MULTIPLES, XLA = "x and y in exchanged roles", "multiples of one channel", "XLA's convolution"
# What serves y, dx and dk, and the call: shapes of x and k, strides, padding, and what else there is.
CASES = {
    "one tap": ((PRODUCT, PRODUCT, PRODUCT), (2, 5, 4, 3), (1, 1, 3, 2), (1, 1), "VALID", {}),
    "one tap, strided": ((PRODUCT, PRODUCT, PRODUCT), (2, 5, 4, 3), (1, 1, 3, 2), (2, 3), "SAME", {}),
    "one tap, padded": ((PRODUCT, PRODUCT, PRODUCT), (2, 5, 4, 3), (1, 1, 3, 2), (2, 1), ((1, 2), (-1, 3)), {}),
    "one tap, channels first": (
        (PRODUCT, PRODUCT, PRODUCT),
        (2, 3, 5, 4),
        (2, 3, 1, 1),
        (1, 1),
        "SAME",
        {"dimension_numbers": ("NCHW", "OIHW", "NCHW")},
    ),
    "patches": ((PATCHES, PHASES, PATCHES), (2, 6, 9, 3), (2, 3, 3, 16), (2, 3), "VALID", {}),
    "patches, padded": ((PATCHES, PHASES, PATCHES), (2, 7, 8, 3), (2, 3, 3, 16), (2, 3), ((1, -2), (-1, 3)), {}),
    "patches, few features": ((XLA, PHASES, XLA), (2, 6, 9, 3), (2, 3, 3, 4), (2, 3), "VALID", {}),
    "patches of a sequence": ((PATCHES, PHASES, PATCHES), (2, 11, 3), (4, 3, 5), (4,), "SAME_LOWER", {}),
    "patches of a film": ((PATCHES, PHASES, PATCHES), (1, 4, 4, 6, 2), (2, 2, 3, 2, 4), (2, 2, 3), "VALID", {}),
    "one window": ((PATCHES, PLACE, PATCHES), (3, 4, 5, 2), (4, 5, 2, 6), (1, 1), "VALID", {}),
    "one window, cut and padded": (
        (PATCHES, PLACE, PATCHES),
        (3, 4, 5, 2),
        (3, 6, 2, 6),
        (1, 1),
        ((-1, 0), (2, -1)),
        {},
    ),
    "one place": ((PLACE, PATCHES, PATCHES), (3, 1, 1, 2), (4, 3, 2, 6), (1, 1), ((3, 5), (2, 1)), {}),
    "one place, strided": ((PLACE, XLA, XLA), (3, 1, 1, 2), (4, 3, 2, 6), (2, 1), ((3, 5), (2, 1)), {}),
    "one place, dilated": (
        (PLACE, XLA, XLA),
        (3, 1, 1, 2),
        (4, 3, 2, 6),
        (2, 1),
        ((5, 5), (4, 3)),
        {"rhs_dilation": (2, 2)},
    ),
    "stem": ((XLA, PHASES, XLA), (1, 13, 12, 3), (7, 7, 3, 8), (2, 2), "SAME", {}),
    "transposed": (
        (XLA, XLA, EXCHANGED),
        (2, 5, 4, 5),
        (4, 3, 5, 2),
        (1, 1),
        ((2, 2), (1, 2)),
        {"lhs_dilation": (2, 2), "rhs_dilation": (1, 2)},
    ),
    "transposed, apart": (
        (PHASES, PATCHES, PATCHES),
        (2, 5, 4, 16),
        (2, 2, 16, 2),
        (1, 1),
        ((1, 1), (1, 1)),
        {"lhs_dilation": (2, 2)},
    ),
    "transposed film": (
        (SLABS, SLABS, SLABS),
        (1, 4, 3, 3, 3),
        (3, 2, 3, 3, 2),
        (1, 1, 1),
        ((1, 2), (0, 1), (2, 1)),
        {"lhs_dilation": (2, 1, 2)},
    ),
    "film": ((SLABS, SLABS, SLABS), (1, 5, 4, 6, 3), (3, 3, 2, 3, 2), (1, 2, 1), "SAME", {"rhs_dilation": (2, 1, 2)}),
    "film, both dilated": (
        (SLABS, SLABS, XLA),
        (1, 5, 4, 3, 3),
        (3, 3, 2, 3, 2),
        (2, 3, 1),
        ((2, 3), (-1, 2), (1, 0)),
        {"lhs_dilation": (3, 2, 1)},
    ),
    "four dimensions": (
        (SLABS, SLABS, SLABS),
        (1, 3, 4, 3, 4, 2),
        (2, 3, 2, 2, 2, 3),
        (1, 2, 1, 1),
        "SAME",
        {"dimension_numbers": ("NABHWC", "ABHWIO", "NABHWC")},
    ),
    "one feature": ((COLUMN, MULTIPLES, XLA), (2, 6, 5, 9), (3, 3, 9, 1), (1, 1), "SAME", {}),
    "one channel": ((MULTIPLES, COLUMN, XLA), (2, 6, 5, 1), (3, 3, 1, 9), (1, 1), "SAME", {}),
    "one channel, many features": ((MULTIPLES, COLUMN, ROW), (2, 6, 5, 1), (3, 3, 1, 18), (1, 1), "SAME", {}),
    "few features": ((PLANES, XLA, XLA), (2, 6, 5, 9), (3, 3, 9, 3), (1, 1), "SAME", {}),
    "few features, more rows than places": ((PLANES, XLA, XLA), (7, 6, 5, 9), (3, 2, 9, 3), (1, 1), "VALID", {}),
    "x smaller than y": ((PLANES, XLA, XLA), (2, 4, 4, 16), (3, 3, 16, 12), (1, 1), ((2, 2), (2, 2)), {}),
    "features not by eight": ((XLA, PLANES, BANDS), (2, 6, 5, 3), (3, 2, 3, 18), (1, 1), ((1, -1), (0, 2)), {}),
    "features not by eight, dilated": (
        (XLA, PLANES, BANDS),
        (9, 6, 5, 3),
        (3, 2, 3, 18),
        (1, 1),
        "SAME",
        {"rhs_dilation": (2, 1)},
    ),
    "one channel, strided": ((MULTIPLES, XLA, XLA), (2, 6, 5, 1), (3, 3, 1, 9), (1, 2), "SAME", {}),
    "one channel of a film": ((MULTIPLES, COLUMN, ROW), (1, 3, 4, 5, 1), (2, 2, 2, 1, 4), (1, 1, 2), "SAME", {}),
    "window": ((XLA, XLA, XLA), (2, 6, 5, 3), (3, 3, 3, 4), (1, 2), "SAME", {}),
}


def arguments(strides, padding, options):
    return {"window_strides": strides, "padding": padding, "dimension_numbers": LAST.get(len(strides))} | options


def problem_of(lhs, rhs, kwargs):
    x, k = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in (lhs, rhs))
    return make_call(x, k, **kwargs).problem


@pytest.mark.parametrize("name", CASES)
def test_each_algorithm_serves_its_shapes_and_agrees_with_lax(name, rng):
    served, lhs, rhs, *rest = CASES[name]
    kwargs = arguments(*rest)
    problem = problem_of(lhs, rhs, kwargs)
    chosen = forward_algorithm(problem), forward_algorithm(problem.transposed), weight_grad_algorithm(problem)
    assert tuple(algorithm.name for algorithm in chosen) == served
    assert max(differences(rng, lhs, rhs, kwargs)) < 1e-13


def random_problem(rng):
    ndim = int(rng.integers(1, 4))
    size, kernel, s, d, r, low, high = (
        tuple(int(v) for v in rng.integers(least, most, ndim))
        for least, most in ((1, 6), (1, 5), (1, 4), (1, 4), (1, 3), (-1, 4), (-1, 4))
    )
    spans = zip(size, d, low, high, kernel, r, s, strict=True)
    out = tuple((e * (n - 1) + a + b - f * (j - 1)) // t + 1 for n, e, a, b, j, f, t in spans)
    return Problem(2, size, 2, kernel, 3, s, low, d, r, 1, out) if min(out) > 0 else random_problem(rng)


def test_overlaps_are_the_solutions_of_the_equation(rng):
    for _ in range(300):
        p = random_problem(rng)
        for j in range(p.kernel[0]):
            m = spatial.overlap(p, 0, j)
            found = [(m.y + u * m.y_step, m.x + u * m.x_step) for u in range(m.length)]
            places = itertools.product(range(p.out[0]), range(p.size[0]))
            s, r, d, low = p.strides[0], p.rhs_dilation[0], p.lhs_dilation[0], p.low[0]
            assert found == [(i, n) for i, n in places if s * i + r * j == d * n + low]


@partial(jax.jit, static_argnums=0)
def lax_y(p, x, k):
    padding = list(zip(p.low, p.high, strict=True))
    dimensions = LAST[p.ndim]
    return lax.conv_general_dilated(x, k, p.strides, padding, p.lhs_dilation, p.rhs_dilation, dimensions)


@partial(jax.jit, static_argnums=0)
def lax_dk(p, x, g):
    shape = jax.ShapeDtypeStruct((*p.kernel, p.channels, p.features), x.dtype)
    return jax.linear_transpose(lambda k: lax_y(p, x, k), shape)(g)[0]


def test_every_algorithm_is_right_for_every_problem_it_takes(rng):
    with jax.enable_x64(True):
        for _ in range(4):
            p = random_problem(rng)
            x, k, g = (
                jnp.asarray(rng.standard_normal(shape))
                for shape in ((2, *p.size, 2), (*p.kernel, 2, 3), (2, *p.out, 3))
            )
            unit = replace(p, strides=(1,) * p.ndim)

            for run, problem in (
                (dense.tap_products, p),
                (dense.columns, p),
                (dense.planes, p),
                (dense.slabs, p),
                (phased.phases, unit),
            ):
                y = jax.jit(run, static_argnums=0)(problem, x, k)
                np.testing.assert_allclose(y, lax_y(problem, x, k), atol=1e-13, err_msg=f"{run} {p}")
            for run, problem in (
                (dense.tap_products_weight_grad, p),
                (dense.slabs_weight_grad, p),
                (dense.exchanged_weight_grad, p),
            ):
                dk = jax.jit(run, static_argnums=0)(problem, x, g)
                np.testing.assert_allclose(dk, lax_dk(problem, x, g), atol=1e-13, err_msg=f"{run} {p}")


def test_bands_and_rows_serve_what_has_no_step(rng):
    with jax.enable_x64(True):
        for channels, run in ((3, dense.bands_weight_grad), (1, dense.rows_weight_grad)):
            for batch, pads in ((2, (1, 2)), (9, (-1, 0))):
                out = (7 + sum(pads) - 2 * 2, 5 + sum(pads) - 1)
                p = Problem(batch, (7, 5), channels, (3, 2), 4, (1, 1), pads[:1] * 2, (1, 1), (2, 1), 1, out)
                x, g = (jnp.asarray(rng.standard_normal((batch, *s))) for s in ((7, 5, channels), (*out, 4)))
                dk = jax.jit(run, static_argnums=0)(p, x, g)
                np.testing.assert_allclose(dk, lax_dk(p, x, g), atol=1e-13)


SHORT = (
    "one tap, strided",
    "patches, padded",
    "stem",
    "transposed film",
    "one channel, many features",
    "few features, more rows than places",
    "features not by eight",
)


def both(name):
    _, lhs, rhs, *rest = CASES[name]
    kwargs = arguments(*rest)
    return (
        lhs,
        rhs,
        *(
            lambda x, k, f=f, **more: f(x, k, **kwargs, **more)
            for f in (vjplib.conv_general_dilated, lax.conv_general_dilated)
        ),
    )


def pulled(f):
    """Return the compiled function of x, k and g that gives y, dx and dk."""

    @jax.jit
    def run(x, k, g):
        y, back = jax.vjp(f, x, k)
        return y, *back(g)

    return run


@pytest.mark.parametrize("name", SHORT)
def test_half_precision_accumulates_in_float32_and_rounds_once(name, rng):
    lhs, rhs, ours, lax_conv = both(name)
    x, k = (jnp.asarray(rng.standard_normal(shape), jnp.bfloat16) for shape in (lhs, rhs))
    g = jnp.asarray(rng.standard_normal(jax.eval_shape(ours, x, k).shape), jnp.bfloat16)
    results = pulled(ours)(x, k, g), pulled(lax_conv)(*(a.astype(jnp.float32) for a in (x, k, g)))
    for a, b in zip(*results, strict=True):
        assert a.dtype == jnp.bfloat16
        np.testing.assert_allclose(a.astype(jnp.float32), b, rtol=2**-8, atol=1e-5)
    assert jax.eval_shape(partial(ours, preferred_element_type=jnp.float32), x, k).dtype == jnp.float32


@pytest.mark.parametrize("name", SHORT)
@pytest.mark.parametrize("axes", [(0, None), (None, 0), (0, 0)])
def test_vmap_of_the_gradient_is_that_of_lax(name, axes, rng):
    lhs, rhs, ours, lax_conv = both(name)
    x, k = (
        jnp.asarray(rng.standard_normal((2, *shape) if axis == 0 else shape), jnp.float32)
        for axis, shape in zip(axes, (lhs, rhs), strict=True)
    )

    def gradient(f):
        return jax.jit(jax.vmap(jax.grad(lambda x, k: jnp.sum(jnp.sin(f(x, k))), (0, 1)), axes))(x, k)

    for a, b in zip(gradient(ours), gradient(lax_conv), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["one tap, strided", "patches of a sequence", "transposed", "transposed film"])
def test_hessian_is_that_of_lax(name, rng):
    lhs, rhs, ours, lax_conv = both(name)
    with jax.enable_x64(True):
        x, k = (jnp.asarray(rng.standard_normal(shape)) for shape in (lhs, rhs))
        direction = jnp.cos(jnp.arange(k.size, dtype=k.dtype)).reshape(k.shape)

        def hessian(f):
            along = lambda t: jnp.sum(jnp.sin(f(x, k + t[0] * direction) + f(x * t[1], k)))  # noqa: E731
            return jax.jit(jax.hessian(along))(jnp.ones(2))

        np.testing.assert_allclose(hessian(ours), hessian(lax_conv), rtol=1e-11)


def test_without_spatial_dimensions_lax_serves(rng):
    x, k = (jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in ((2, 3), (4, 3)))
    np.testing.assert_allclose(vjplib.conv_general_dilated(x, k, (), ()), x @ k.T, rtol=1e-6)
