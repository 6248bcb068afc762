"""Training steps timed: flax networks on JAX's functions beside the same networks on vjplib's, and PyTorch's.

One step of gradient descent is timed: value, gradients and update. A rule alone says little about a network, where
matrix products and fresh memory take time too. The versions of a network on JAX and on vjplib run interleaved. PyTorch
is timed after them in rounds of its own, because the threads that it leaves spinning slow the others.

Each network is timed twice, each time in a process of its own: as users run it, and after `vjplib.keep_memory`, which
must be called before JAX's backend starts.
"""

import multiprocessing
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import jax
import numpy as np

from vjplib.bench import torch_networks
from vjplib.bench.environment import environment
from vjplib.bench.networks import CONVOLUTIONS, JAX, VJPLIB, Model, Ops, loss, start, training_step
from vjplib.bench.timing import Compiled, Cost, compile_bound, costs, require_equal
from vjplib.compat import holds_custom_vjp, x64
from vjplib.memory import keep_memory
from vjplib.verification.claims.residuals import residual_bytes


@dataclass(frozen=True)
class StepCosts:
    """What one training step costs in one process.

    Args:
        ours: the cost with vjplib's functions, and theirs with JAX's and optax's, under autodiff.
        convolutions: the cost with vjplib's convolutions and max-pooling, the rest JAX's; None for networks without.
        torch: the cost in PyTorch; None if it was not timed.
        peak: the most bytes of memory that the process has held, with all these programs; None where the system does
            not tell.

    Example:
        >>> fast, slow = (Cost(s, s, s, 9, 0.1, 0.1, 0, 0) for s in (0.05, 0.2))
        >>> StepCosts(ours=fast, theirs=slow).ratio
        4.0
    """

    ours: Cost
    theirs: Cost
    convolutions: Cost | None = None
    torch: Cost | None = None
    peak: int | None = None

    @property
    def ratio(self) -> float:
        """JAX's median time divided by vjplib's: above 1 vjplib is faster."""
        return self.theirs.median / self.ours.median


@dataclass(frozen=True)
class TrainingStep:
    """One training step of a network.

    Args:
        model: the network's name, and shape that of the batch.
        costs: what it costs in a process as users start it.
        kept: what it costs in a process that keeps its memory; None where `vjplib.keep_memory` changes nothing.
    """

    model: str
    shape: tuple[int, ...]
    costs: StepCosts
    kept: StepCosts | None = None


def bench_model(name: str, model: Model, *, seconds: float = 1.0, torch: bool = False) -> TrainingStep:
    """Time a training step of a network in float32, after a check in float64 that all versions compute the same.

    Args:
        name: the network's name.
        model: the network and its batch. It is sent to the processes that time it: functions that it names must be
            found by their modules.
        seconds: how long to time the step, as in `vjplib.bench.timing.interleaved`.
        torch: if True, PyTorch is timed too.

    Raises:
        ImportError: torch is True and PyTorch is not installed.
        ValueError: in float64, loss or gradients differ between JAX's functions and vjplib's, or PyTorch's.

    Example:
        step = bench_model("LeNet-like", vjplib.bench.networks.MODELS["LeNet-like"])
        print(step.costs.ratio)
    """
    require_agreement(name, model, torch)
    plain, kept = (_elsewhere(partial(step_costs, model, seconds, torch, keep)) for keep in (False, True))
    return TrainingStep(name, model.shape, plain, kept)


def _elsewhere(job: Callable[[], Any]) -> Any:
    """Run a job in a process of its own; a forked one would have its parent's backend."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        return process.submit(job).result()


def step_costs(model: Model, seconds: float, torch: bool, keep: bool = False) -> StepCosts | None:
    """Time the versions of a network in this process; with `keep` after `keep_memory`, None if that changes nothing."""
    if keep and not keep_memory():
        return None
    batch, versions = model.batch(np.random.default_rng(0), np.float32), [VJPLIB, JAX]
    if has_rules(model.network(CONVOLUTIONS), *batch):
        versions.append(CONVOLUTIONS)
    programs, kept = zip(*(_compiled(model.network(ops), *batch) for ops in versions), strict=True)
    ours, theirs, *convolutions = costs(programs, kept, seconds)
    of_torch = None
    if torch:
        step, _ = _in_torch(model, *batch, np.float32)
        (of_torch,) = costs([Compiled(step)], [0], seconds)
    return StepCosts(ours, theirs, convolutions[0] if convolutions else None, of_torch, _peak())


def has_rules(network: Any, x: jax.Array, labels: jax.Array) -> bool:
    """Return whether a rule computes any part of a network's loss."""
    state = jax.eval_shape(partial(start, network), x, labels)
    return holds_custom_vjp(
        jax.make_jaxpr(lambda params, statistics: loss(params, network, statistics, x, labels))(
            state.params, state.statistics
        )
    )


def _compiled(network: Any, x: jax.Array, labels: jax.Array) -> tuple[Compiled, int]:
    """Return the compiled step, and the bytes that it keeps for its backward."""
    state = start(network, x, labels)
    kept = residual_bytes(lambda params: loss(params, network, state.statistics, x, labels)[0], state.params)
    return compile_bound(partial(training_step, network), state, x, labels), kept


def _in_torch(model: Model, x: jax.Array, labels: jax.Array, dtype: Any) -> Any:
    network = model.network(JAX)
    return torch_networks.training_step(network, start(network, x, labels, dtype), x, labels)


def _peak() -> int | None:
    """Return the most bytes that this process has held in memory; on Linux `getrusage` counts its parent's too."""
    if sys.platform == "linux":
        with open("/proc/self/status", encoding="ascii") as lines:
            return next((1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM")), None)
    if sys.platform != "darwin":
        return None
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def require_agreement(name: str, model: Model, torch: bool = False) -> None:
    """Raise ValueError unless all versions to be timed have the same loss and gradients in float64."""
    with x64():
        x, labels = model.batch(np.random.default_rng(0), np.float64)
        state = start(model.network(JAX), x, labels, np.float64)

        def evaluated(ops: Ops) -> Any:
            f = jax.value_and_grad(partial(loss, network=model.network(ops)), has_aux=True)
            (value, _), gradients = jax.jit(f)(state.params, statistics=state.statistics, x=x, labels=labels)
            return {"loss": value, "gradients": gradients}

        expected = evaluated(JAX)
        others = {"vjplib": evaluated(VJPLIB), "vjplib's convolutions": evaluated(CONVOLUTIONS)}
        if torch:
            step, gradients = _in_torch(model, x, labels, np.float64)
            others["torch"] = {"loss": step().item(), "gradients": gradients()}
    names = [jax.tree_util.keystr(path, simple=True, separator=" ") for path, _ in jax.tree.leaves_with_path(expected)]
    for other, given in others.items():
        demand = f"{name}: jax and {other} must compute the same to be timed side by side"
        require_equal(demand, names, expected, given)


def to_dict(steps: Sequence[TrainingStep]) -> dict[str, Any]:
    """Return steps and the environment in plain types, as `vjplib bench --models --json` writes them."""
    models = [{**asdict(step), "ratio": step.costs.ratio} for step in steps]
    return {"environment": environment(), "models": models}
