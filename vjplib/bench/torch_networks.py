"""The networks of `networks` in PyTorch, on the same parameters, and their training steps.

Images and kernels are channels last in memory, as torch recommends for CPUs.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np

from vjplib.bench.networks import LEARNING_RATE, NetworkState
from vjplib.bench.torch_ops import import_torch, tensor

Tensor = Any
Tensors = Any


def _conv(F: Any, p: Tensors, x: Tensor, groups: int = 1, padding: str = "same") -> Tensor:
    return F.conv2d(x, p["kernel"], p.get("bias"), padding=padding, groups=groups)


def _norm(F: Any, p: Tensors, s: Tensors, x: Tensor) -> Tensor:
    return F.batch_norm(x, s["mean"], s["var"], p["scale"], p["bias"], training=True, momentum=0.01, eps=1e-5)


def _dense(F: Any, p: Tensors, x: Tensor) -> Tensor:
    return F.linear(x, p["kernel"], p["bias"])


def _mobilenet(F: Any, p: Tensors, s: Tensors, x: Tensor) -> Tensor:
    for i in range(0, 9, 3):
        y = F.relu6(_norm(F, p[f"BatchNorm_{i}"], s[f"BatchNorm_{i}"], _conv(F, p[f"Conv_{i}"], x)))
        y = _conv(F, p[f"Conv_{i + 1}"], y, groups=y.shape[1])
        y = F.relu6(_norm(F, p[f"BatchNorm_{i + 1}"], s[f"BatchNorm_{i + 1}"], y))
        x = x + _norm(F, p[f"BatchNorm_{i + 2}"], s[f"BatchNorm_{i + 2}"], _conv(F, p[f"Conv_{i + 2}"], y))
    return _dense(F, p["Dense_0"], x.mean((2, 3)))


def _convnext(F: Any, p: Tensors, s: Tensors, x: Tensor) -> Tensor:
    del s
    for i in range(2):
        y = _conv(F, p[f"Conv_{i}"], x, groups=x.shape[1]).permute(0, 2, 3, 1)
        y = F.layer_norm(y, y.shape[-1:], p[f"LayerNorm_{i}"]["scale"], p[f"LayerNorm_{i}"]["bias"], eps=1e-6)
        y = F.gelu(_dense(F, p[f"Dense_{2 * i}"], y), approximate="tanh")
        x = x + _dense(F, p[f"Dense_{2 * i + 1}"], y).permute(0, 3, 1, 2)
    return _dense(F, p["Dense_4"], x.mean((2, 3)))


def _resnext(F: Any, p: Tensors, s: Tensors, x: Tensor) -> Tensor:
    y = F.relu(_norm(F, p["BatchNorm_0"], s["BatchNorm_0"], _conv(F, p["Conv_0"], x)))
    y = F.relu(_norm(F, p["BatchNorm_1"], s["BatchNorm_1"], _conv(F, p["Conv_1"], y, groups=32)))
    y = _norm(F, p["BatchNorm_2"], s["BatchNorm_2"], _conv(F, p["Conv_2"], y))
    return _dense(F, p["Dense_0"], F.relu(x + y).mean((2, 3)))


def _mamba(F: Any, p: Tensors, s: Tensors, x: Tensor) -> Tensor:
    del s
    kernel, bias = p["Conv_0"]["kernel"], p["Conv_0"]["bias"]
    y, gate = _dense(F, p["Dense_0"], x).chunk(2, dim=-1)
    y = F.conv1d(F.pad(y.transpose(1, 2), (kernel.shape[-1] - 1, 0)), kernel, bias, groups=len(kernel))
    x = x + _dense(F, p["Dense_1"], F.silu(y).transpose(1, 2) * F.silu(gate))
    return _dense(F, p["Dense_2"], x.mean(1))


def _lenet(F: Any, p: Tensors, s: Tensors, x: Tensor) -> Tensor:
    del s
    for i, padding in enumerate(("same", "valid")):
        x = F.max_pool2d(F.relu(_conv(F, p[f"Conv_{i}"], x, padding=padding)), 2)
    x = x.permute(0, 2, 3, 1).reshape(len(x), -1)
    for i in range(2):
        x = F.relu(_dense(F, p[f"Dense_{i}"], x))
    return _dense(F, p["Dense_2"], x)


NETWORKS = {
    "MobileNetV2-like": _mobilenet,
    "ConvNeXt-like": _convnext,
    "ResNeXt-like": _resnext,
    "Mamba-like": _mamba,
    "LeNet-like": _lenet,
}
"""The networks of `vjplib.bench.networks.MODELS` in torch: f(functional, params, statistics, x)."""


def loss_and_gradients(name: str, state: NetworkState, x: jax.Array, labels: jax.Array) -> dict[str, Any]:
    """Compute the loss and gradients of a network of `NETWORKS`, as NumPy arrays in the layout of flax's parameters."""
    params, value = _loss(name, state, x, labels)
    computed = value()
    computed.backward()
    return {"loss": computed.detach().numpy(), "gradients": jax.tree.map(lambda w: _to_flax(w.grad), params)}


def training_step(name: str, state: NetworkState, x: jax.Array, labels: jax.Array) -> Callable[[], None]:
    """Return a function without arguments that takes one step of gradient descent of a network of `NETWORKS`."""
    params, value = _loss(name, state, x, labels)
    optimizer = import_torch().optim.SGD(jax.tree.leaves(params), lr=LEARNING_RATE)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        value().backward()
        optimizer.step()

    return step


def _loss(name: str, state: NetworkState, x: jax.Array, labels: jax.Array) -> tuple[Tensors, Callable[[], Tensor]]:
    """Return the parameters as leaves that take gradients, and the loss as a function without arguments."""
    torch = import_torch()
    F = torch.nn.functional
    params = jax.tree.map(lambda a: _from_flax(torch, a).requires_grad_(), state.params)
    statistics = jax.tree.map(partial(_from_flax, torch), state.statistics.get("batch_stats", {}))
    inputs = torch.from_numpy(np.array(x))
    inputs = inputs.permute(0, 3, 1, 2) if inputs.ndim == 4 else inputs  # a view, channels last
    targets = torch.from_numpy(np.array(labels)).long()
    return params, lambda: F.cross_entropy(NETWORKS[name](F, params, statistics, inputs), targets)


def _out_in_space(ndim: int) -> tuple[int, ...]:
    """Return torch's order of the axes (*space, in, out) of a kernel, and that of a vector."""
    return (*reversed(range(max(ndim - 2, 0), ndim)), *range(ndim - 2))


def _from_flax(torch: Any, a: jax.Array) -> Tensor:
    return tensor(torch, np.array(a), _out_in_space(a.ndim))


def _to_flax(w: Tensor) -> np.ndarray:
    return w.numpy().transpose(np.argsort(_out_in_space(w.ndim)))
