"""PyTorch's convolution and max-pooling on CPU, timed on the calls that rules are timed with.

A baseline is traced. If it holds one convolution or max-pooling, torch's equivalent is checked to compute the same and
timed in rounds of its own, with as many threads as JAX has. Images are channels last in memory, as torch recommends for
CPUs. Only `vjplib bench --torch` imports torch.
"""

import importlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vjplib.bench.rules import Row
from vjplib.bench.timing import Cost, time_alone
from vjplib.compat import programs
from vjplib.rule import Case, Rule

Tensor = Any


def import_torch() -> Any:
    """Import torch, and set its number of threads to the number of cores of this process.

    Raises:
        ImportError: torch is not installed.
    """
    try:
        torch = importlib.import_module("torch")
    except ImportError as error:
        raise ImportError(
            "torch must be installed to be timed: its CPU build is at https://pytorch.org/get-started"
        ) from error
    torch.set_num_threads(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    return torch


@dataclass(frozen=True)
class TorchOp:
    """A function of torch that computes the same as one primitive of JAX.

    Args:
        run: takes the operands as tensors, in torch's order of axes.
        orders: torch's order of the axes of each operand, and last of the result.
    """

    run: Callable[..., Tensor]
    orders: tuple[tuple[int, ...], ...]


def with_torch(rule: Rule, rows: Sequence[Row], *, seconds: float) -> list[Row]:
    """Add torch as one more baseline to the rows of a rule, for each case that torch can compute.

    Args:
        rule: the record of the rows.
        rows: from `bench_rule`.
        seconds: how long to time each measure.

    Returns:
        The rows, those of torch after the others of the same case.

    Raises:
        ImportError: torch is not installed.
        ValueError: torch's call and the baseline do not compute the same.
    """
    torch, merged = import_torch(), []
    for case, (_, group) in zip(rule.bench, groupby(rows, key=lambda row: row.case), strict=False):
        merged += (of_case := list(group))
        for measure, cost in _costs(torch, rule, case, seconds).items():
            row = next(row for row in of_case if row.measure == measure)
            merged.append(Row(rule.name, row.case, "torch", measure, row.ours, cost, rule.reason))
    return merged


# ------------------------------------------------------------------------------------------------------- what is timed


def _forward(torch: Any, run: Callable[..., Tensor], leaves: Sequence[Tensor], g: Tensor) -> None:
    del g
    with torch.no_grad():
        run(*leaves)


def _returned(torch: Any, run: Callable[..., Tensor], leaves: Sequence[Tensor], g: Tensor) -> None:
    torch.autograd.grad(run(*leaves), leaves, g)


def _reduced(torch: Any, run: Callable[..., Tensor], leaves: Sequence[Tensor], g: Tensor) -> None:
    torch.autograd.grad((run(*leaves) * g).sum(), leaves)


def _followed(torch: Any, run: Callable[..., Tensor], leaves: Sequence[Tensor], g: Tensor) -> None:
    F = torch.nn.functional
    y = F.silu(run(*leaves)).movedim(1, -1)
    torch.autograd.grad((F.layer_norm(y, y.shape[-1:]) * g.movedim(1, -1)).sum(), leaves)


MEASURES = {"forward": _forward, "returned": _returned, "reduced": _reduced, "followed": _followed}
"""The programs of `vjplib.bench.rules.MEASURES` in torch; the norm is taken over channels."""


def _costs(torch: Any, rule: Rule, case: Case, seconds: float) -> dict[str, Cost]:
    """Return the cost of each measure in torch; nothing if torch has no equivalent."""
    call = case.call(np.random.default_rng(0), np.float32)
    baseline = next(iter(rule.baselines.values()))
    found = list(_primitives(jax.make_jaxpr(lambda *args: baseline(*args, **call.kwargs))(*call.args).jaxpr))
    if len(found) != 1:
        return {}
    (eqn,) = found
    op = TORCH_OPS[eqn.primitive.name](torch, eqn.params)
    if op is None:
        return {}
    rng = np.random.default_rng(0)
    operands = [rng.standard_normal(v.aval.shape, np.float32) for v in eqn.invars]
    leaves = [_tensor(torch, a, order).requires_grad_() for a, order in zip(operands, op.orders, strict=False)]
    y = op.run(*leaves).detach()
    expected = np.asarray(eqn.primitive.bind(*map(jnp.asarray, operands), **eqn.params)).transpose(op.orders[-1])
    if not np.allclose(y.numpy(), expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max()):
        raise ValueError(f"torch and {next(iter(rule.baselines))} must compute the same to be timed side by side")
    g = torch.randn_like(y)
    return {name: time_alone(partial(f, torch, op.run, leaves, g), seconds) for name, f in MEASURES.items()}


def _primitives(jaxpr: Any) -> Iterator[Any]:
    """Yield the equations of a program, inner programs included, whose primitive is in `TORCH_OPS`."""
    for eqn in jaxpr.eqns:
        if eqn.primitive.name in TORCH_OPS:
            yield eqn
        for _, inner, _ in programs(eqn.params):
            yield from _primitives(inner)


def _tensor(torch: Any, a: np.ndarray, order: tuple[int, ...]) -> Tensor:
    """Return an array as a tensor in torch's order of axes, channels last in memory if it is an image or a volume."""
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    return torch.from_numpy(a).permute(order).contiguous(memory_format=formats.get(a.ndim, torch.contiguous_format))


# ---------------------------------------------------------------------------------------------------- torch's functions


def _convolution(torch: Any, params: dict[str, Any]) -> TorchOp | None:
    """Return torch's equivalent of a `conv_general_dilated`, None if there is none."""
    F, dimensions = torch.nn.functional, params["dimension_numbers"]
    strides, dilated, padding = params["window_strides"], params["lhs_dilation"], params["padding"]
    groups, r, n = params["feature_group_count"], params["rhs_dilation"], len(params["window_strides"])
    if (
        params["batch_group_count"] != 1
        or (max(strides, default=1) > 1 and max(dilated, default=1) > 1)
        or not 1 <= n <= 3
    ):
        return None
    if max(dilated) == 1:
        convolve = getattr(F, f"conv{n}d")
        pads, amount = _paddings(padding)

        def run(x: Tensor, k: Tensor) -> Tensor:
            return convolve(F.pad(x, pads) if pads else x, k, None, strides, amount, r, groups)
    else:
        # lax pads the dilated x by r (k - 1) - p, and by o more at the end; torch takes p, o and the flipped kernel.
        transposed = getattr(F, f"conv_transpose{n}d")

        def run(x: Tensor, k: Tensor) -> Tensor:
            p = [e * (m - 1) - low for e, m, (low, _) in zip(r, k.shape[2:], padding, strict=True)]
            o = [high - low for low, high in padding]
            k = k.flip(tuple(range(2, k.ndim))).unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1)
            return transposed(x, k, None, dilated, p, o, groups, r)

    return TorchOp(run, (dimensions.lhs_spec, dimensions.rhs_spec, dimensions.out_spec))


def _max_pool(torch: Any, params: dict[str, Any]) -> TorchOp | None:
    """Return torch's equivalent of a `reduce_window_max`, None if there is none: torch pools all axes but two."""
    F, sizes, strides = torch.nn.functional, params["window_dimensions"], params["window_strides"]
    padding, dilation = params["padding"], params["window_dilation"]
    still = [i for i, w in enumerate(zip(sizes, strides, padding, strict=True)) if w == (1, 1, (0, 0))]
    pooled = [i for i in range(len(sizes)) if i not in still]
    if len(still) != 2 or not 1 <= len(pooled) <= 3 or max(params["base_dilation"]) > 1:
        return None
    size, stride, gap = ([of[i] for i in pooled] for of in (sizes, strides, dilation))
    pads, amount = _paddings([padding[i] for i in pooled])
    pool = getattr(F, f"max_pool{len(pooled)}d")

    def run(x: Tensor) -> Tensor:
        return pool(F.pad(x, pads, value=-torch.inf) if pads else x, size, stride, amount, gap)

    return TorchOp(run, ((*still, *pooled),) * 2)


def _paddings(padding: Sequence[tuple[int, int]]) -> tuple[list[int], list[int]]:
    """Return the padding for `F.pad`, last axis first, and the padding argument, which is the same on both sides."""
    if all(low == high >= 0 for low, high in padding):
        return [], [low for low, _ in padding]
    return [p for pair in reversed(padding) for p in pair], [0] * len(padding)


TORCH_OPS: dict[str, Callable[[Any, dict[str, Any]], TorchOp | None]] = {
    "conv_general_dilated": _convolution,
    "reduce_window_max": _max_pool,
}
"""Torch's equivalent of a primitive of JAX, made from the primitive's parameters."""
