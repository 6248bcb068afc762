"""Training steps of the networks of `networks` in PyTorch, on the same parameters.

Images and kernels are channels last in memory, as torch recommends for CPUs.
"""

from collections import defaultdict
from collections.abc import Callable
from functools import partial
from itertools import count
from typing import Any

import jax
import numpy as np

from vjplib.bench.networks import LEARNING_RATE, Network, NetworkState, Ops, mean_loss
from vjplib.bench.torch_ops import import_torch, tensor

Tensor = Any
Tensors = Any


def _ops(torch: Any, params: Tensors, statistics: Tensors) -> Ops:
    """Return the layers and functions of a network in torch, channels last; layers take flax's parameters in turn."""
    F, numbers = torch.nn.functional, defaultdict(count)

    def parameters(layer: str) -> Tensors:
        name = f"{layer}_{next(numbers[layer])}"
        return {**params[name], **statistics.get(name, {})}

    def conv(_: int, window: tuple[int, ...], *, padding: str = "SAME", feature_group_count: int = 1, **__: Any) -> Any:
        p, convolve = parameters("Conv"), getattr(F, f"conv{len(window)}d")
        before, padding = (window[0] - 1, "valid") if padding == "CAUSAL" else (0, padding.lower())

        def layer(x: Tensor) -> Tensor:
            x = F.pad(x.movedim(-1, 1), (before, 0)) if before else x.movedim(-1, 1)
            return convolve(x, p["kernel"], p.get("bias"), padding=padding, groups=feature_group_count).movedim(1, -1)

        return layer

    def max_pool(x: Tensor, window: tuple[int, ...], strides: tuple[int, ...]) -> Tensor:
        return F.max_pool2d(x.movedim(-1, 1), window, strides).movedim(1, -1)

    def batch_norm(activation: str | None = None) -> Any:
        p, follow = parameters("BatchNorm"), getattr(F, activation) if activation else lambda y: y
        options = {"training": True, "momentum": 0.01, "eps": 1e-5}
        given = p["mean"], p["var"], p["scale"], p["bias"]
        return lambda x: follow(F.batch_norm(x.movedim(-1, 1), *given, **options).movedim(1, -1))

    def layer_norm() -> Any:
        p = parameters("LayerNorm")
        return lambda x: F.layer_norm(x, x.shape[-1:], p["scale"], p["bias"], eps=1e-6)

    def rms_norm() -> Any:
        p = parameters("RMSNorm")
        return lambda x: F.rms_norm(x, x.shape[-1:], p["scale"], eps=1e-6)

    def dense(_: int) -> Any:
        p = parameters("Dense")
        return lambda x: F.linear(x, p["kernel"], p["bias"])

    def embed(*_: int) -> Any:
        p = parameters("Embed")
        return lambda indices: F.embedding(torch.as_tensor(indices), p["embedding"])

    def attention(*heads: Tensor) -> Tensor:
        y = F.scaled_dot_product_attention(*(a.transpose(1, 2) for a in heads), is_causal=True)
        return y.transpose(1, 2)

    def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits.flatten(0, -2), labels.flatten())  # its mean, whose mean is itself

    return Ops(
        conv,
        max_pool,
        batch_norm,
        layer_norm,
        rms_norm,
        dense,
        embed,
        split=partial(torch.chunk, dim=-1),
        relu=F.relu,
        gelu=partial(F.gelu, approximate="tanh"),
        silu=F.silu,
        swiglu=lambda gate, x: F.silu(gate) * x,
        attention=attention,
        cross_entropy=cross_entropy,
    )


def training_step(
    network: Network, state: NetworkState, x: jax.Array, labels: jax.Array
) -> tuple[Callable[[], Tensor], Callable[[], Any]]:
    """Return two functions without arguments, for a network that a state of flax starts.

    The first takes one step of gradient descent and returns the loss before it; the second returns the gradients of the
    last step, as NumPy arrays in the layout of flax's parameters.
    """
    torch = import_torch()
    params = jax.tree.map_with_path(
        lambda path, a: tensor(torch, np.array(a), _axes(path, a)).requires_grad_(), state.params
    )
    statistics = jax.tree.map(lambda a: torch.from_numpy(np.array(a)), state.statistics.get("batch_stats", {}))
    inputs, targets = torch.from_numpy(np.array(x)), torch.from_numpy(np.array(labels)).long()
    optimizer = torch.optim.SGD(jax.tree.leaves(params), lr=LEARNING_RATE)

    def step() -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        loss = mean_loss(network.features, _ops(torch, params, statistics), network.classes, inputs, targets)
        loss.backward()
        optimizer.step()
        return loss

    def gradients() -> Any:
        return jax.tree.map_with_path(lambda path, w: w.grad.numpy().transpose(np.argsort(_axes(path, w))), params)

    return step, gradients


def _axes(path: tuple[Any, ...], a: Any) -> tuple[int, ...]:
    """Return torch's order of the axes of a parameter; kernels of flax, (*space, in, out), are (out, in, *space)."""
    if path[-1].key != "kernel":
        return tuple(range(a.ndim))
    return (*reversed(range(a.ndim - 2, a.ndim)), *range(a.ndim - 2))
