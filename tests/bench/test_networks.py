"""Networks of flax: one function on JAX's convolutions and on vjplib's, and timed side by side."""

import ctypes
import json
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vjplib.__main__ import main
from vjplib.bench import networks
from vjplib.bench.training_steps import has_rules
from vjplib.compat import fast_compile_options, x64

SMALL = {
    "MobileNetV2-like": (2, 6, 5, 4),
    "ConvNeXt-like": (2, 8, 7, 4),
    "ResNeXt-like": (2, 6, 5, 64),
    "Mamba-like": (2, 9, 4),
    "LeNet-like": (2, 16, 12, 1),
    "Transformer-like": (2, 5),
}


def small(name):
    return networks.MODELS[name]._replace(shape=SMALL[name])


def drawn(state, rng):
    """Return a state with random numbers in place of those that `init` draws, which takes long to compile."""
    return jax.tree.map(lambda a: jnp.asarray(0.5 * rng.standard_normal(a.shape), a.dtype), state)


@pytest.mark.parametrize("name", networks.MODELS)
def test_one_function_in_float64(name, rng):
    """Compiled in haste: `bench --models` shows the same of the full networks as they are timed."""
    model, given = small(name), {}
    with x64():
        x, labels = model.batch(rng, np.float64)
        start = partial(networks.start, model.network(networks.JAX), dtype=np.float64)
        state = drawn(jax.eval_shape(start, x, labels), rng)
        for ops in (networks.JAX, networks.CONVOLUTIONS, networks.VJPLIB):
            loss = partial(networks.loss, network=model.network(ops), statistics=state.statistics, x=x, labels=labels)
            given[ops] = jax.jit(jax.value_and_grad(loss, has_aux=True), compiler_options=fast_compile_options())(
                state.params
            )
    expected, *others = map(jax.tree.leaves, given.values())
    for other in others:
        for a, b in zip(expected, other, strict=True):
            assert a.dtype == b.dtype == np.float64
            np.testing.assert_allclose(b, a, rtol=0, atol=1e-12 * max(1.0, np.abs(a).max()))


@pytest.mark.parametrize("name", networks.MODELS)
def test_the_switch_decides_who_serves(name):
    x, labels = small(name).batch(np.random.default_rng(0), np.float32)
    for ops in (networks.JAX, networks.CONVOLUTIONS, networks.VJPLIB):
        served = has_rules(small(name).network(ops), x, labels)
        assert served == (ops is networks.VJPLIB or (ops is networks.CONVOLUTIONS and name != "Transformer-like"))


def identity(ops, x):
    return x


def scaled(ops, x):
    """Another function on vjplib's operations."""
    return x if ops == networks.JAX else 1.001 * x


FEATURES = {"linear": identity, "wrong": scaled}


# ----------------------------------------------------------------------------------------------------- the command line


@pytest.fixture
def linear(monkeypatch):
    models = {name: networks.Model(partial(networks.Network, f), (4, 3)) for name, f in FEATURES.items()}
    monkeypatch.setattr(networks, "MODELS", models)


def test_the_command_prints_times_and_names_what_it_refuses(linear, tmp_path, capsys):
    assert main(["bench", "--models", "--quick", "--json", str(tmp_path / "models.json")]) == 1
    printed = capsys.readouterr().out
    for word in (
        "linear",
        "4x3",
        "peak MB",
        "wrong is not timed: ValueError: wrong: jax and vjplib must compute the same",
    ):
        assert word in printed
    written = json.loads((tmp_path / "models.json").read_text())
    (step,) = written["models"]
    assert step["ratio"] == step["costs"]["theirs"]["median"] / step["costs"]["ours"]["median"]
    assert step["costs"]["convolutions"] is None
    if sys.platform == "linux":
        with open("/proc/self/status", encoding="ascii") as lines:
            held = next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
        assert 0 < step["costs"]["peak"] != held  # its own, not that of the process that started it
    assert (step["kept"] is None) == (not hasattr(ctypes.CDLL(None), "gnu_get_libc_version"))
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
def test_bad_arguments_are_refused_in_one_line(words, message, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(SystemExit) as left:
        main(["bench", *words])
    assert left.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_step_of_training_lowers_the_loss():
    network = networks.Network(identity, networks.JAX)
    x, labels = jnp.asarray([[1.0, 2.0, 3.0], [0.5, -1.0, 0.0]]), jnp.array([3, 7])
    step, state, losses = jax.jit(partial(networks.training_step, network)), networks.start(network, x, labels), []
    for _ in range(3):
        state, value = step(state, x, labels)
        losses.append(float(value))
    assert losses == sorted(losses, reverse=True)


def test_without_flax_the_extra_is_named(monkeypatch, capsys):
    monkeypatch.setattr("vjplib.commands.bench.find_spec", lambda name: None)
    with pytest.raises(SystemExit):
        main(["bench", "--models"])
    assert "pip install 'vjplib[models]'" in capsys.readouterr().err


def test_torch_is_imported_by_no_module():
    assert not [name for name, module in sys.modules.items() if name.startswith("vjplib") and hasattr(module, "torch")]
