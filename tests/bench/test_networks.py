"""Networks of flax: one function on JAX's convolutions and on vjplib's, and timed side by side."""

import json
import sys
from dataclasses import replace
from functools import partial
from io import StringIO

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from vjplib import Case, Rule
from vjplib.__main__ import main
from vjplib.bench import networks as models
from vjplib.bench import rules as bench
from vjplib.bench import torch_ops as peers
from vjplib.bench import training_steps as bench_models
from vjplib.compat import holds_custom_vjp, x64

SMALL = {
    "MobileNetV2-like": (2, 6, 5, 4),
    "ConvNeXt-like": (2, 8, 7, 4),
    "ResNeXt-like": (2, 6, 5, 64),
    "Mamba-like": (2, 9, 4),
    "LeNet-like": (2, 16, 12, 1),
}


def small(name):
    return models.MODELS[name]._replace(shape=SMALL[name])


def cost(median):
    return bench.Cost(median, 0.9 * median, 1.2 * median, 11, 0.41, 1.25, 423_900_000, 549_200_000)


@pytest.mark.parametrize("name", models.MODELS)
def test_one_function_in_float64(name, rng):
    """Compiled in haste: `bench --models` shows the same of the full networks as they are timed."""
    model, given = small(name), {}
    with x64():
        x, labels = jnp.asarray(rng.standard_normal(model.shape)), jnp.arange(model.shape[0])
        state = models.start(model.network(models.JAX), x)
        for ops in (models.JAX, models.VJPLIB):
            loss = partial(models.loss, network=model.network(ops), statistics=state.statistics, x=x, labels=labels)
            step = jax.jit(
                jax.value_and_grad(loss, has_aux=True), compiler_options={"xla_backend_optimization_level": 0}
            )
            given[ops] = step(state.params)
    for a, b in zip(*map(jax.tree.leaves, given.values()), strict=True):
        np.testing.assert_allclose(b, a, rtol=0, atol=1e-12 * max(1.0, np.abs(a).max()))


@pytest.mark.parametrize("name", models.MODELS)
def test_the_switch_decides_who_serves(name):
    x, labels = jnp.zeros(SMALL[name]), jnp.zeros(SMALL[name][0], int)
    for ops in (models.JAX, models.VJPLIB):
        network = small(name).network(ops)
        state = jax.eval_shape(partial(models.start, network), x)
        forward = jax.make_jaxpr(
            lambda params, statistics, network=network: models.loss(params, network, statistics, x, labels)
        )
        assert holds_custom_vjp(forward(state.params, state.statistics)) == (ops is models.VJPLIB)


class Scaled(nn.Module):
    """A network that is another function on vjplib's operations."""

    ops: models.Ops

    @nn.compact
    def __call__(self, x):
        return nn.Dense(models.CLASSES)(x if self.ops == models.JAX else 1.001 * x)


def test_what_is_not_one_function_is_not_timed():
    with pytest.raises(ValueError, match=r"scaled: jax and vjplib must compute one step .* but .* differs by"):
        bench_models.bench_model("scaled", models.Model(Scaled, (4, 3)), seconds=0)


# ----------------------------------------------------------------------------------------------------- the command line


@pytest.fixture
def linear(monkeypatch):
    model = models.Model(lambda ops: nn.Dense(models.CLASSES), (4, 3))
    monkeypatch.setattr(models, "MODELS", {"linear": model, "wrong": models.Model(Scaled, (4, 3))})


def test_the_command_prints_times_and_names_what_it_refuses(linear, tmp_path, capsys):
    assert main(["bench", "--models", "--quick", "--json", str(tmp_path / "models.json")]) == 1
    printed = capsys.readouterr().out
    for word in ("linear", "4x3", "jax.lax", "wrong is not timed: ValueError: "):
        assert word in printed
    written = json.loads((tmp_path / "models.json").read_text())
    (step,) = written["models"]
    assert step["ratio"] == step["theirs"]["median"] / step["ours"]["median"]
    assert written["environment"]["jax"] == jax.__version__
    assert len(written["refused"]) == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--models", "conv1d"], "--models times networks and takes no rule, got conv1d"),
        (["conv1d", "--torch"], "torch must be installed to be timed"),
        (["--models", "--torch"], "torch must be installed to be timed"),
    ],
)
def test_what_makes_no_sense_is_said_in_one_line(words, message, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(SystemExit) as left:
        main(["bench", *words])
    assert left.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_without_flax_the_extra_is_named(monkeypatch, capsys):
    monkeypatch.setattr("vjplib.commands.bench.find_spec", lambda name: None)
    with pytest.raises(SystemExit):
        main(["bench", "--models"])
    assert "pip install 'vjplib[models]'" in capsys.readouterr().err


def test_torch_is_imported_by_no_module():
    assert not [name for name, module in sys.modules.items() if name.startswith("vjplib") and hasattr(module, "torch")]


def test_the_table_fits_80_columns():
    step = bench_models.Step("MobileNetV2-like", (16, 56, 56, 32), cost(1.2345), cost(0.25), cost(0.0991))
    text = StringIO()
    for table in bench_models.tables([step, replace(step, model="ConvNeXt-like", torch=None)]):
        Console(file=text, width=80).print(table)
    for word in ("MobileNetV2-like", "16x56x56x32", "1234 ±15%", "4.94 x", "0.396 x", "0.41+1.25", "549.2", "423.9"):
        assert word in text.getvalue()
    assert max(map(len, text.getvalue().splitlines())) <= 80
    assert "…" not in text.getvalue()
    assert list(bench_models.tables([])) == []


# ----------------------------------------------------------------------------------------- torch, where it is installed


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


@pytest.mark.parametrize("name", models.MODELS)
def test_torch_computes_the_same_networks(name, torch):
    step = bench_models.bench_model(name, small(name), seconds=0, torch=True)
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
    rows = peers.with_torch(rule, bench.bench_rule(rule, seconds=0), seconds=0)
    assert [(row.baseline, row.measure) for row in rows] == [
        (name, measure) for name in ("fn", "torch") for measure in bench.MEASURES
    ]


def test_torch_is_left_out_where_it_has_no_such_call(torch):
    case = Case(("n",), {"n": 3})
    rule = Rule(jnp.sin, jnp.sin, {"sin": jnp.sin}, (case,), bench=(case,))
    rows = bench.bench_rule(rule, seconds=0)
    assert peers.with_torch(rule, rows, seconds=0) == rows
    assert np.all([row.baseline == "sin" for row in rows])
