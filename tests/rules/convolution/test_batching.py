"""Under jax.vmap over x alone a convolution is one call whose kernel cotangent is added over all rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import vjplib
from vjplib.compat import programs
from vjplib.rules.convolution.batching import merge_vmapped_batch
from vjplib.rules.convolution.call import make_call

LAYOUTS = (None, ("NWC", "WIO", "NWC"), ("CWN", "IWO", "WCN"))


@jax.custom_vjp
def row(x, k):
    return row_fwd(x, k)[0]


def row_fwd(x, k):
    return lax.conv_general_dilated(x, k, (1,), "SAME", dimension_numbers=("CWN", "IWO", "WCN")), (x, k)


def row_bwd(res, g):
    return jax.vjp(lambda x, k: row_fwd(x, k)[0], *res)[1](g)


row.defvjp(row_fwd, row_bwd)


@merge_vmapped_batch
def merged(x, k, call):
    del call
    return row(x, k)


def ours(x, k):
    return merged(x, k, make_call(x, k, window_strides=(1,), padding="SAME", dimension_numbers=("CWN", "IWO", "WCN")))


def theirs(lhs, rhs):
    return row_fwd(lhs, rhs)[0]


@pytest.fixture
def arrays(rng):
    x, k = rng.standard_normal((5, 3, 8, 2)), rng.standard_normal((3, 3, 4))
    return jnp.asarray(x, jnp.float32), jnp.asarray(k, jnp.float32)


def total(f):
    return lambda x, k: jnp.sum(jnp.sin(f(x, k)))


MAPS = {
    "x": lambda f: jax.grad(total(jax.vmap(f, (0, None))), argnums=(0, 1)),
    "x in the middle": lambda f: jax.grad(
        lambda x, k: total(jax.vmap(f, (2, None), out_axes=1))(jnp.moveaxis(x, 0, 2), k), argnums=(0, 1)
    ),
    "x twice": lambda f: jax.grad(
        lambda x, k: total(jax.vmap(jax.vmap(f, (0, None)), (0, None)))(jnp.stack([x, x + 1]), k), argnums=(0, 1)
    ),
    "x, jitted": lambda f: jax.grad(total(jax.jit(jax.vmap(f, (0, None)))), argnums=(0, 1)),
    "x in a jitted function": lambda f: jax.grad(total(jax.vmap(jax.jit(f), (0, None))), argnums=(0, 1)),
    "k": lambda f: jax.grad(lambda x, k: total(jax.vmap(f, (None, 0)))(x[0], jnp.stack([k, 2 * k])), argnums=(0, 1)),
    "both": lambda f: jax.grad(lambda x, k: total(jax.vmap(f))(x, jnp.stack([k] * 5)), argnums=(0, 1)),
    "x, then k": lambda f: jax.grad(
        lambda x, k: total(jax.vmap(jax.vmap(f, (0, None)), (None, 0)))(x, jnp.stack([k, 2 * k])), argnums=(0, 1)
    ),
    "a gradient for each row": lambda f: jax.vmap(jax.grad(total(f), argnums=(0, 1)), (0, None)),
    "a gradient of k inside": lambda f: jax.vmap(lambda x, k: jax.grad(lambda k: total(f)(x, k))(k), (0, None)),
    "a gradient of x inside": lambda f: lambda x, k: jax.vmap(lambda x: jax.grad(lambda x: total(f)(x, k))(x))(x),
    "second order": lambda f: jax.hessian(lambda x, k: total(jax.vmap(f, (0, None)))(x, k), argnums=1),
}


@pytest.mark.parametrize("name", MAPS)
def test_every_map_gives_laxs_gradients(name, arrays):
    expected, given = (jax.jit(MAPS[name](f))(*arrays) for f in (theirs, ours))
    for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(given), strict=True):
        assert a.shape == b.shape
        np.testing.assert_allclose(b, a, rtol=2e-5, atol=2e-5 * np.abs(a).max())


def shapes(program):
    """The shapes of all values in a program and in those inside it."""
    for eqn in program.eqns:
        yield from (v.aval.shape for v in eqn.outvars)
        for _, inner, _ in programs(eqn.params):
            yield from shapes(inner)


def test_no_row_has_a_kernel_cotangent_of_its_own(arrays):
    x, k = arrays
    each = sorted((len(x), *k.shape))
    held = {f: any(sorted(s) == each for s in shapes(jax.make_jaxpr(MAPS["x"](f))(x, k).jaxpr)) for f in (row, ours)}
    assert held == {row: True, ours: False}


def mapped_rows(layout, batch, groups, rng):
    """Return the layout and the call that five mapped rows become; they must equal lax's rows."""
    seen = []

    @merge_vmapped_batch
    def convolve(x, k, call):
        seen.append((x.shape, call))
        return call(x, k)

    names = layout or ("NCW", "OIW", "NCW")
    sizes = {"N": batch, "C": 3, "W": 8, "I": 3, "O": 4}
    x = jnp.asarray(rng.standard_normal((5, *(sizes[n] for n in names[0]))), jnp.float32)
    k = jnp.asarray(rng.standard_normal([sizes[n] if n != "W" else 3 for n in names[1]]), jnp.float32)
    static = {"window_strides": (1,), "padding": "SAME", "dimension_numbers": layout, "batch_group_count": groups}
    call = make_call(x[0], k, **static)
    y = jax.vmap(lambda x: convolve(x, k, call))(x)
    expected = jnp.stack([lax.conv_general_dilated(row, k, **static) for row in x])
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
    return names, *seen[-1]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_batch_is_found_in_every_layout(layout, rng):
    names, shape, call = mapped_rows(layout, batch=2, groups=1, rng=rng)
    assert shape == call.lhs == tuple({"N": 10, "C": 3, "W": 8}[n] for n in names[0])
    assert call.out == tuple({"N": 10, "C": 4, "W": 8}[n] for n in names[2])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_groups_of_the_batch_become_groups_of_channels(layout, rng):
    names, shape, call = mapped_rows(layout, batch=6, groups=2, rng=rng)
    assert shape == tuple({"N": 15, "C": 6, "W": 8}[n] for n in names[0])
    assert (call.feature_group_count, call.batch_group_count) == (2, 1)


@pytest.mark.parametrize(
    ("batch", "features", "depth", "counts"),
    [
        (5, 4, 3, (2, 1)),
        (6, 3, 3, (2, 1)),
        (6, 4, 5, (2, 1)),
        (6, 4, 3, (0, 1)),
        (6, 4, 3, (-2, 1)),
        (6, 4, 3, (2, 3)),
    ],
)
def test_groups_that_do_not_fit_are_refused_under_a_map_as_without(batch, features, depth, counts):
    def convolve(x):
        groups = {"batch_group_count": counts[0], "feature_group_count": counts[1]}
        return vjplib.conv_general_dilated(x, jnp.ones((features, depth, 3)), (1,), "SAME", **groups)

    x = jnp.ones((4, batch, 3, 8))
    with pytest.raises(ValueError, match="group_count") as alone:
        convolve(x[0])
    with pytest.raises(ValueError, match="group_count") as mapped:
        jax.vmap(convolve)(x)
    assert str(mapped.value) == str(alone.value)
