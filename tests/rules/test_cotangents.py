"""Every backward ends in like_primal, so that each cotangent has its primal's shape, dtype and devices."""

import ast
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import vjplib as vl
from vjplib.rules._cotangents import aval_token, like_primal

ROOT = Path(vl.__file__).parent / "rules"


def backwards():
    for path in sorted(ROOT.rglob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef) and node.name.split("_")[0] == "bwd":
                yield pytest.param(node, id=f"{path.stem}.{node.name}")


def ends_in_like_primal(cotangent):
    if isinstance(cotangent, ast.IfExp):
        return ends_in_like_primal(cotangent.body) and ends_in_like_primal(cotangent.orelse)
    if isinstance(cotangent, ast.Constant):
        return cotangent.value is None
    return isinstance(cotangent, ast.Call) and ast.unparse(cotangent.func) == "like_primal"


@pytest.mark.parametrize("bwd", list(backwards()))
def test_a_backward_returns_like_primal_of_each_cotangent(bwd):
    (returned,) = (node.value for node in bwd.body if isinstance(node, ast.Return))
    assert isinstance(returned, ast.Tuple)
    for cotangent in returned.elts:
        assert ends_in_like_primal(cotangent), ast.unparse(returned)


def test_a_token_stands_for_the_array_and_holds_none():
    x = jnp.ones((3, 1), jnp.bfloat16)
    token = aval_token(x)
    assert not jax.tree.leaves(token)
    for primal in (x, token):
        dx = like_primal(jnp.ones((2, 3, 4)), primal)
        assert dx.shape == x.shape
        assert dx.dtype == x.dtype
        assert (dx == 8).all()


@pytest.mark.parametrize("f", [vl.softmax, vl.log_softmax])
def test_replicated_logits_under_a_sharded_mask(f, rng):
    """Under `jax.shard_map` each device has a part of the logits' cotangent."""
    x, where = rng.standard_normal(5), rng.random((4, 5)) < 0.7

    def loss(x, where):
        return jnp.sum(jnp.sin(jnp.where(where, f(x, where=where), 0)))

    mesh = jax.make_mesh((4,), ("d",), axis_types=(AxisType.Auto,))
    part = jax.shard_map(
        lambda x, where: jax.lax.psum(loss(x, where), "d"), mesh=mesh, in_specs=(P(), P("d")), out_specs=P()
    )
    np.testing.assert_allclose(jax.grad(part)(x, where), jax.grad(loss)(x, where), rtol=1e-5)
