"""Whole training steps timed: flax networks on JAX's convolutions and pooling beside the same on vjplib's.

A convolution alone says little of a network, whose time also goes to norms, activations and fresh memory. Here one step
of gradient descent is timed, value, gradients and update, and the networks run interleaved. PyTorch's CPU build, asked
for and installed, is timed after them with as many threads; its rounds are its own, for the threads that it leaves
spinning would slow the others.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import jax
import numpy as np
from rich.table import Table

from vjplib.bench.networks import CLASSES, JAX, VJPLIB, Model, Ops, loss, start, training_step
from vjplib.bench.rules import (
    Cost,
    compile_bound,
    cost,
    difference,
    environment,
    interleaved,
    making_cells,
    new_table,
    short,
    time_cell,
)
from vjplib.compat import x64
from vjplib.verification.residuals import residual_bytes


@dataclass(frozen=True)
class Step:
    """What one training step of a network takes.

    Args:
        model: the network's name.
        shape: of the batch.
        theirs: with the convolution and the pooling of JAX and flax, under autodiff.
        ours: with vjplib's.
        torch: PyTorch's time; None where it was not asked for.

    Example:
        >>> fast, slow = (Cost(s, s, s, 9, 0.1, 0.1, 0, 0) for s in (0.05, 0.2))
        >>> Step("net", (8, 28, 28, 1), theirs=slow, ours=fast).ratio
        4.0
    """

    model: str
    shape: tuple[int, ...]
    theirs: Cost
    ours: Cost
    torch: Cost | None = None

    @property
    def ratio(self) -> float:
        """JAX's median time over vjplib's: above 1 vjplib is faster."""
        return self.theirs.median / self.ours.median


def bench_model(name: str, model: Model, *, seconds: float = 1.0, torch: bool = False) -> Step:
    """Returns what a training step of a network takes, in float32, having shown that both are one function in float64.

    Args:
        name: what the network is called; for torch, a key of `vjplib.bench.torch_networks.NETWORKS`.
        model: the network and the shape of its batch.
        seconds: how long the step is timed, in rounds as `vjplib.bench.rules.interleaved` has them.
        torch: whether PyTorch is timed too.

    Raises:
        ImportError: torch is asked for and not installed.
        ValueError: in float64, loss or gradients differ between JAX's functions and vjplib's, or PyTorch's.

    Example:
        >>> import flax.linen as nn
        >>> step = bench_model("linear", Model(lambda ops: nn.Dense(CLASSES), (4, 3)), seconds=0)
        >>> step.shape, step.ours.rounds
        ((4, 3), 5)
    """
    require_agreement(name, model, torch=torch)
    programs = [_program(model, ops) for ops in (JAX, VJPLIB)]
    times = interleaved([run for run, *_ in programs], seconds)
    theirs, ours = (cost(t, *made) for t, (_, *made) in zip(times, programs, strict=True))
    return Step(name, model.shape, theirs, ours, _torch_cost(name, model, seconds) if torch else None)


def _program(model: Model, ops: Ops) -> tuple[Any, ...]:
    """Returns the compiled step bound to its arguments, what it took to make, and the bytes it keeps."""
    network, (x, labels) = model.network(ops), _batch(model, np.float32)
    state = start(network, x)
    kept = residual_bytes(lambda params: loss(params, network, state.statistics, x, labels)[0], state.params)
    return *compile_bound(partial(training_step, network), state, x, labels), kept


def _batch(model: Model, dtype: Any) -> tuple[jax.Array, jax.Array]:
    rng = np.random.default_rng(0)
    x, labels = rng.standard_normal(model.shape).astype(dtype), rng.integers(0, CLASSES, model.shape[0], dtype=np.int32)
    return jax.device_put((x, labels))


def require_agreement(name: str, model: Model, *, torch: bool) -> None:
    """Raises ValueError unless loss and gradients are the same, in float64, on all functions that are to be timed."""
    with x64():
        x, labels = _batch(model, np.float64)
        state = start(model.network(JAX), x)

        def evaluated(ops: Ops) -> Any:
            f = jax.value_and_grad(partial(loss, network=model.network(ops)), has_aux=True)
            (value, _), gradients = jax.jit(f)(state.params, statistics=state.statistics, x=x, labels=labels)
            return {"loss": value, "gradients": gradients}

        expected = evaluated(JAX)
        _require_equal(name, "vjplib", expected, evaluated(VJPLIB))
        if torch:
            from vjplib.bench.torch_networks import loss_and_gradients

            _require_equal(name, "torch", expected, loss_and_gradients(name, state, x, labels))


def _require_equal(name: str, other: str, expected: Any, given: Any) -> None:
    for (path, a), b in zip(jax.tree.leaves_with_path(expected), jax.tree.leaves(given), strict=True):
        if gap := difference(np.asarray(a), np.asarray(b)):
            where = jax.tree_util.keystr(path, simple=True, separator=" ")
            raise ValueError(
                f"{name}: jax and {other} must compute one step to be timed side by side, but {where} {gap}"
            )


def _torch_cost(name: str, model: Model, seconds: float) -> Cost:
    from vjplib.bench.torch_networks import training_step as torch_step

    x, labels = _batch(model, np.float32)
    (times,) = interleaved([torch_step(name, start(model.network(JAX), x), x, labels)], seconds)
    return cost(times, 0.0, 0.0, None, 0)


# ------------------------------------------------------------------------------------------------------ how it is shown


def to_dict(steps: Sequence[Step]) -> dict[str, Any]:
    """Returns steps in plain types, with the environment: what `vjplib bench --models --json` writes."""
    return {"environment": environment(), "models": [{**asdict(step), "ratio": step.ratio} for step in steps]}


def tables(steps: Sequence[Step]) -> Iterator[Table]:
    """Yields the table of steps, if there is one."""
    if not steps:
        return
    table = new_table("ms a training step ± half the quartile range; how many times faster vjplib is")
    table.add_column("", overflow="fold")
    for heading in ("step\nms", "", "lower +\ncompile s", "kept\nMB", "scratch\nMB"):
        table.add_column(heading, justify="right", no_wrap=True)
    for step in steps:
        table.add_row(f"[bold]{step.model}[/]\n{'x'.join(map(str, step.shape))}")
        table.add_row("  vjplib", time_cell(step.ours), "", *making_cells(step.ours))
        table.add_row("  jax.lax", time_cell(step.theirs), f"{short(step.ratio)} x", *making_cells(step.theirs))
        if step.torch:
            ratio = step.torch.median / step.ours.median
            table.add_row("  torch", time_cell(step.torch), f"{short(ratio)} x", "-", "-", "-")
        table.add_section()
    yield table
