"""PyTorch's convolution and max-pooling on CPU, timed on the calls that rules are timed with.

A baseline is traced. If it holds one convolution or max-pooling, torch's equivalent is checked to compute the same and
timed in rounds of its own, with as many threads as JAX has. Images are channels last in memory, as torch recommends for
CPUs. Only `vjplib bench --torch` imports torch.
"""

import importlib
import os
from collections.abc import Callable, Sequence
from functools import partial
from itertools import groupby
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vjplib.bench.rules import Row
from vjplib.bench.timing import Compiled, Cost, costs
from vjplib.compat import equations
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


TorchOp = tuple[Callable[..., Tensor], tuple[tuple[int, ...], ...]]
"""A function of torch's tensors, and torch's order of the axes of each of its operands, and last of its result."""


def with_torch(rule: Rule, rows: Sequence[Row], *, seconds: float) -> list[Row]:
    """Add torch as one more baseline to the rows of a rule, for each case that torch can compute.

    The rows of torch follow the others of the same case.

    Args:
        rule: the record.
        rows: its rows without torch.
        seconds: how long each measure is timed.

    Raises:
        ImportError: torch is not installed.
        ValueError: torch's call and the baseline do not compute the same.
    """
    torch, merged = import_torch(), []
    for case, (_, group) in zip(rule.bench, groupby(rows, key=lambda row: row.case), strict=False):
        merged += (of_case := list(group))
        costs = _costs(torch, rule, case, seconds)
        first = of_case[: len(costs)]  # the rows of the first baseline, one for each measure
        merged += [Row(r.rule, r.case, "torch", r.measure, r.ours, costs[r.measure], r.reason) for r in first]
    return merged


def _programs(
    torch: Any, run: Callable[..., Tensor], leaves: Sequence[Tensor], g: Tensor
) -> dict[str, Callable[[], Any]]:
    """Return the programs of `vjplib.bench.rules.MEASURES` in torch; the norm is taken over channels."""
    F, gradients = torch.nn.functional, torch.autograd.grad

    def followed() -> Any:
        y = F.silu(run(*leaves)).movedim(1, -1)
        return gradients((F.layer_norm(y, y.shape[-1:]) * g.movedim(1, -1)).sum(), leaves)

    return {
        "forward": torch.no_grad()(lambda: run(*leaves)),
        "returned": lambda: gradients(run(*leaves), leaves, g),
        "reduced": lambda: gradients((run(*leaves) * g).sum(), leaves),
        "followed": followed,
    }


def _costs(torch: Any, rule: Rule, case: Case, seconds: float) -> dict[str, Cost]:
    """Return the cost of each measure in torch; nothing if torch has no equivalent."""
    call, rng = case.call(np.random.default_rng(0), np.float32), np.random.default_rng(0)
    name, baseline = next(iter(rule.baselines.items()))
    program = jax.make_jaxpr(partial(baseline, **call.kwargs))(*call.args)
    found = [eqn for eqn in equations(program) if eqn.primitive.name in TORCH_OPS]
    op = TORCH_OPS[found[0].primitive.name](torch, found[0].params) if len(found) == 1 else None
    if op is None:
        return {}
    (eqn,), (run, orders) = found, op
    operands = [rng.standard_normal(v.aval.shape, np.float32) for v in eqn.invars]
    leaves = [tensor(torch, a, order).requires_grad_() for a, order in zip(operands, orders, strict=False)]
    y = run(*leaves).detach()
    expected = np.asarray(eqn.primitive.bind(*map(jnp.asarray, operands), **eqn.params)).transpose(orders[-1])
    if not np.allclose(y.numpy(), expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max()):
        raise ValueError(f"torch and {name} must compute the same to be timed side by side")
    programs = _programs(torch, run, leaves, torch.randn_like(y))
    return {measure: costs([Compiled(program)], [0], seconds)[0] for measure, program in programs.items()}


def tensor(torch: Any, a: np.ndarray, order: tuple[int, ...]) -> Tensor:
    """Return an array as a tensor in torch's order of axes, channels last in memory if it is an image or a volume."""
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    return torch.from_numpy(a).permute(order).contiguous(memory_format=formats.get(a.ndim, torch.contiguous_format))


def _convolution(torch: Any, params: dict[str, Any]) -> TorchOp | None:
    """Return torch's equivalent of a `conv_general_dilated`, None if there is none."""
    F, dimensions = torch.nn.functional, params["dimension_numbers"]
    strides, dilated, padding = params["window_strides"], params["lhs_dilation"], params["padding"]
    groups, r, n = params["feature_group_count"], params["rhs_dilation"], len(params["window_strides"])
    if params["batch_group_count"] > 1 or not 1 <= n <= 3 or (max(strides) > 1 and max(dilated) > 1):
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

    return run, dimensions


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

    return run, ((*still, *pooled),) * 2


def _paddings(padding: Sequence[tuple[int, int]]) -> tuple[list[int], list[int]]:
    """Return the padding for `F.pad`, last axis first, and the padding argument, which is the same on both sides."""
    if all(low == high >= 0 for low, high in padding):
        return [], [low for low, _ in padding]
    return [p for pair in reversed(padding) for p in pair], [0] * len(padding)


TORCH_OPS = {"conv_general_dilated": _convolution, "reduce_window_max": _max_pool}
"""Torch's equivalent of a primitive of JAX, made from the primitive's parameters."""
