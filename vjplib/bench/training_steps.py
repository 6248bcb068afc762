"""Training steps timed: flax networks on JAX's convolutions and pooling beside the same networks on vjplib's.

One step of gradient descent is timed: value, gradients and update. A convolution alone says little about a network,
where norms, activations and fresh memory take time too. The networks on JAX and on vjplib run interleaved. PyTorch is
timed after them in rounds of its own, because the threads that it leaves spinning slow the others.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import jax
import numpy as np

from vjplib.bench import torch_networks
from vjplib.bench.environment import environment
from vjplib.bench.networks import CLASSES, JAX, VJPLIB, Model, Ops, loss, start, training_step
from vjplib.bench.timing import Compiled, Cost, compile_bound, costs, require_equal
from vjplib.compat import x64
from vjplib.verification.claims.residuals import residual_bytes


@dataclass(frozen=True)
class TrainingStep:
    """One training step of a network.

    Args:
        model: the network's name, and shape that of the batch.
        theirs: the cost with the convolution and pooling of JAX and flax, under autodiff, and ours with vjplib's.
        torch: the cost in PyTorch; None if it was not timed.

    Example:
        >>> fast, slow = (Cost(s, s, s, 9, 0.1, 0.1, 0, 0) for s in (0.05, 0.2))
        >>> TrainingStep("net", (8, 28, 28, 1), theirs=slow, ours=fast).ratio
        4.0
    """

    model: str
    shape: tuple[int, ...]
    theirs: Cost
    ours: Cost
    torch: Cost | None = None

    @property
    def ratio(self) -> float:
        """JAX's median time divided by vjplib's: above 1 vjplib is faster."""
        return self.theirs.median / self.ours.median


def bench_model(name: str, model: Model, *, seconds: float = 1.0, torch: bool = False) -> TrainingStep:
    """Time a training step of a network in float32, after a check in float64 that all versions compute the same.

    Args:
        name: the network's name.
        model: the network, for torch a `Network`, and the shape of its batch.
        seconds: how long to time the step, as in `vjplib.bench.timing.interleaved`.
        torch: if True, PyTorch is timed too.

    Raises:
        ImportError: torch is True and PyTorch is not installed.
        ValueError: in float64, loss or gradients differ between JAX's functions and vjplib's, or PyTorch's.

    Example:
        step = bench_model("LeNet-like", vjplib.bench.networks.MODELS["LeNet-like"])
        print(step.ratio)
    """
    _require_agreement(name, model, torch)
    batch = _batch(model, np.float32)
    programs, kept = zip(*(_compiled(model.network(ops), *batch) for ops in (JAX, VJPLIB)), strict=True)
    theirs, ours = costs(programs, kept, seconds)
    of_torch = None
    if torch:
        step, _ = _in_torch(model, *batch)
        (of_torch,) = costs([Compiled(step)], [0], seconds)
    return TrainingStep(name, model.shape, theirs, ours, of_torch)


def _batch(model: Model, dtype: Any) -> tuple[jax.Array, jax.Array]:
    rng = np.random.default_rng(0)
    x, labels = rng.standard_normal(model.shape).astype(dtype), rng.integers(0, CLASSES, model.shape[0], dtype=np.int32)
    return jax.device_put((x, labels))


def _compiled(network: Any, x: jax.Array, labels: jax.Array) -> tuple[Compiled, int]:
    """Return the compiled step, and the bytes that it keeps for its backward."""
    state = start(network, x)
    kept = residual_bytes(lambda params: loss(params, network, state.statistics, x, labels)[0], state.params)
    return compile_bound(partial(training_step, network), state, x, labels), kept


def _in_torch(model: Model, x: jax.Array, labels: jax.Array) -> Any:
    network: Any = model.network(JAX)
    return torch_networks.training_step(network.features, start(network, x), x, labels)


def _require_agreement(name: str, model: Model, torch: bool) -> None:
    """Raise ValueError unless all versions to be timed have the same loss and gradients in float64."""
    with x64():
        x, labels = _batch(model, np.float64)
        state = start(model.network(JAX), x)

        def evaluated(ops: Ops) -> Any:
            f = jax.value_and_grad(partial(loss, network=model.network(ops)), has_aux=True)
            (value, _), gradients = jax.jit(f)(state.params, statistics=state.statistics, x=x, labels=labels)
            return {"loss": value, "gradients": gradients}

        expected, others = evaluated(JAX), {"vjplib": evaluated(VJPLIB)}
        if torch:
            step, gradients = _in_torch(model, x, labels)
            others["torch"] = {"loss": step().item(), "gradients": gradients()}
    names = [jax.tree_util.keystr(path, simple=True, separator=" ") for path, _ in jax.tree.leaves_with_path(expected)]
    for other, given in others.items():
        demand = f"{name}: jax and {other} must compute the same to be timed side by side"
        require_equal(demand, names, expected, given)


def to_dict(steps: Sequence[TrainingStep]) -> dict[str, Any]:
    """Return steps and the environment in plain types, as `vjplib bench --models --json` writes them."""
    return {"environment": environment(), "models": [{**asdict(step), "ratio": step.ratio} for step in steps]}
