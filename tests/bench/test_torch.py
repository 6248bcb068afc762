"""PyTorch computes the same networks and calls as JAX; each test needs torch, which no extra installs."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_networks import small

from vjplib import Case, Rule
from vjplib.bench import bench_rule, networks, rules, torch_ops
from vjplib.bench.training_steps import require_agreement, step_costs


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


@pytest.mark.parametrize("name", networks.MODELS)
def test_torch_computes_the_same_networks(name, torch):
    require_agreement(name, small(name), torch=True)
    step = step_costs(small(name), seconds=0, torch=True)
    assert step is not None
    assert step.torch is not None
    assert step.torch.median > 0


def conv(x, k, **kwargs):
    return jax.lax.conv_general_dilated(x, k, **kwargs)


NHWC, NWC = {"dimension_numbers": ("NHWC", "HWIO", "NHWC")}, {"dimension_numbers": ("NWC", "WIO", "NWC")}
PEERS = {
    "dense": ("2 7 6 3", "3 2 3 4", conv, {"window_strides": (1, 1), "padding": "SAME", **NHWC}),
    "depthwise, strides": (
        "2 7 6 4",
        "3 3 1 8",
        conv,
        {"window_strides": (2, 2), "padding": ((1, 1), (1, 1)), "feature_group_count": 4, **NHWC},
    ),
    "causal, dilated": (
        "2 9 4",
        "3 1 4",
        conv,
        {"window_strides": (1,), "padding": ((4, 0),), "rhs_dilation": (2,), "feature_group_count": 4, **NWC},
    ),
    "transposed, groups": (
        "2 5 4 4",
        "4 4 2 6",
        conv,
        {
            "window_strides": (1, 1),
            "padding": ((2, 3), (1, 2)),
            "lhs_dilation": (2, 2),
            "feature_group_count": 2,
            **NHWC,
        },
    ),
    "volume": ("2 3 4 3 5", "4 3 2 2 2", conv, {"window_strides": (1, 1, 1), "padding": "VALID"}),
    "max-pool": ("2 7 6 3", None, nn.max_pool, {"window_shape": (2, 2), "strides": (2, 2)}),
    "max-pool, padded": ("2 8 3", None, nn.max_pool, {"window_shape": (3,), "strides": (2,), "padding": "SAME"}),
}


@pytest.mark.parametrize("name", PEERS)
def test_torch_computes_the_same_calls(name, torch):
    x, k, fn, kwargs = PEERS[name]
    case = Case((x,) if k is None else (x, k), {}, kwargs)
    rule = Rule(fn, fn, {"fn": fn}, (case,), bench=(case,), reason="as fast")
    rows = torch_ops.with_torch(rule, bench_rule(rule, seconds=0), seconds=0)
    assert [(row.baseline, row.measure) for row in rows] == [
        (name, measure) for name in ("fn", "torch") for measure in rules.MEASURES
    ]


def test_torch_is_left_out_where_it_has_no_such_call(torch):
    case = Case(("n",), {"n": 3})
    rule = Rule(jnp.sin, jnp.sin, {"sin": jnp.sin}, (case,), bench=(case,))
    rows = bench_rule(rule, seconds=0)
    assert torch_ops.with_torch(rule, rows, seconds=0) == rows
    assert np.all([row.baseline == "sin" for row in rows])
