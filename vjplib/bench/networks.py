"""Five small flax networks whose convolution and max-pooling are arguments: JAX's or vjplib's.

`vjplib bench --models` times their training steps. Only modules that import this one need flax, the extra "models".
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Float, Int

from vjplib.rules.convolution.general import conv_general_dilated
from vjplib.rules.pooling.pooling import max_pool

CLASSES = 10
LEARNING_RATE = 0.01
OPTIMIZER = optax.sgd(LEARNING_RATE)


class Ops(NamedTuple):
    """The layers and functions of a network, with flax's signatures."""

    conv: Callable[..., Any]
    max_pool: Callable[..., Any]
    batch_norm: Callable[..., Any] = partial(nn.BatchNorm, use_running_average=False)
    layer_norm: Callable[..., Any] = nn.LayerNorm
    dense: Callable[..., Any] = nn.Dense
    split: Callable[..., Any] = partial(jnp.split, axis=-1)
    relu: Callable[..., Any] = nn.relu
    relu6: Callable[..., Any] = nn.relu6
    gelu: Callable[..., Any] = nn.gelu
    silu: Callable[..., Any] = nn.silu


JAX = Ops(partial(nn.Conv, conv_general_dilated=lax.conv_general_dilated), nn.max_pool)
VJPLIB = Ops(partial(nn.Conv, conv_general_dilated=conv_general_dilated), max_pool)


def _mobilenet(ops: Ops, x: Any) -> Any:
    """Three inverted residuals: 1x1 to three times the channels, depthwise 3x3, 1x1 back."""
    conv, norm = partial(ops.conv, use_bias=False), ops.batch_norm
    c = x.shape[-1]
    for _ in range(3):
        y = ops.relu6(norm()(conv(3 * c, (1, 1))(x)))
        y = ops.relu6(norm()(conv(3 * c, (3, 3), feature_group_count=3 * c)(y)))
        x = x + norm()(conv(c, (1, 1))(y))
    return x.mean((1, 2))


def _convnext(ops: Ops, x: Any) -> Any:
    """Two blocks: depthwise 7x7, layer norm, a perceptron with gelu, added to their input."""
    c = x.shape[-1]
    for _ in range(2):
        y = ops.conv(c, (7, 7), feature_group_count=c)(x)
        y = ops.gelu(ops.dense(4 * c)(ops.layer_norm()(y)))
        x = x + ops.dense(c)(y)
    return x.mean((1, 2))


def _resnext(ops: Ops, x: Any) -> Any:
    """One block: 1x1, 3x3 in 32 groups, 1x1, each with batch norm, added to their input."""
    conv, norm = partial(ops.conv, use_bias=False), ops.batch_norm
    c = x.shape[-1]
    y = ops.relu(norm()(conv(c, (1, 1))(x)))
    y = ops.relu(norm()(conv(c, (3, 3), feature_group_count=32)(y)))
    y = norm()(conv(c, (1, 1))(y))
    return ops.relu(x + y).mean((1, 2))


def _mamba(ops: Ops, x: Any) -> Any:
    """One block around a short convolution of twice the channels: causal, depthwise, four taps, silu, and a gate."""
    c = x.shape[-1]
    y, gate = ops.split(ops.dense(4 * c)(x), 2)
    y = ops.silu(ops.conv(2 * c, (4,), padding="CAUSAL", feature_group_count=2 * c)(y))
    x = x + ops.dense(c)(y * ops.silu(gate))
    return x.mean(1)


def _lenet(ops: Ops, x: Any) -> Any:
    """LeNet-5 with relu and max-pooling: two 5x5 convolutions of 6 and 16 features, and a perceptron."""
    for features, padding in ((6, "SAME"), (16, "VALID")):
        x = ops.max_pool(ops.relu(ops.conv(features, (5, 5), padding=padding)(x)), (2, 2), (2, 2))
    x = x.reshape(len(x), -1)
    for features in (120, 84):
        x = ops.relu(ops.dense(features)(x))
    return x


def logits(features: Callable[[Ops, Any], Any], ops: Ops, x: Any) -> Any:
    """Map features of images or sequences, channels last, linearly to the logits."""
    y = features(ops, x)  # first: flax numbers layers in the order of their making
    return ops.dense(CLASSES)(y)


class Network(nn.Module):
    """`logits` as a network of flax."""

    features: Callable[[Ops, Any], Any]
    ops: Ops

    @nn.compact
    def __call__(self, x: Float[Array, "batch *space c"]) -> Float[Array, "batch classes"]:
        """Compute the logits."""
        return logits(self.features, self.ops, x)


class Model(NamedTuple):
    """A network, made from `Ops`, and the shape of the batch that it is timed on, the batch first."""

    network: Callable[[Ops], nn.Module]
    shape: tuple[int, ...]


MODELS = {
    "MobileNetV2-like": Model(partial(Network, _mobilenet), (16, 56, 56, 32)),
    "ConvNeXt-like": Model(partial(Network, _convnext), (8, 28, 28, 96)),
    "ResNeXt-like": Model(partial(Network, _resnext), (8, 28, 28, 128)),
    "Mamba-like": Model(partial(Network, _mamba), (8, 1024, 128)),
    "LeNet-like": Model(partial(Network, _lenet), (128, 28, 28, 1)),
}
"""The networks timed."""


class NetworkState(NamedTuple):
    """The state of training: the network's parameters, the statistics of batch norm, and the state of `OPTIMIZER`."""

    params: Any
    statistics: Any
    optimizer: optax.OptState


def start(network: nn.Module, x: Float[Array, "batch ..."]) -> NetworkState:
    """Initialize a network's state with key 0 and x's dtype."""
    drawn = jax.tree.map(lambda a: a.astype(x.dtype), jax.jit(network.init)(jax.random.key(0), x))
    params = drawn.pop("params")
    return NetworkState(params, drawn, OPTIMIZER.init(params))


def loss(
    params: Any, network: nn.Module, statistics: Any, x: Float[Array, "batch ..."], labels: Int[Array, " batch"]
) -> tuple[Float[Array, ""], Any]:
    """Compute the mean cross-entropy of a network in training, and its statistics after this batch."""
    logits, updated = network.apply({"params": params, **statistics}, x, mutable=list(statistics))
    return optax.softmax_cross_entropy_with_integer_labels(jnp.asarray(logits), labels).mean(), updated


def training_step(
    network: nn.Module, state: NetworkState, x: Float[Array, "batch ..."], labels: Int[Array, " batch"]
) -> tuple[NetworkState, Float[Array, ""]]:
    """Take one step of gradient descent; return the new state, and the loss before the step."""
    evaluate = jax.value_and_grad(loss, has_aux=True)
    (value, statistics), gradients = evaluate(state.params, network, state.statistics, x, labels)
    updates, optimizer = OPTIMIZER.update(gradients, state.optimizer)
    return NetworkState(optax.apply_updates(state.params, updates), statistics, optimizer), value
