"""Six small flax networks whose layers and functions are arguments: JAX's, or vjplib's.

`vjplib bench --models` times their training steps. Only modules that import this one need flax, the extra "models".
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jaxtyping import Array, Float, Int, Shaped

from vjplib.rules.activations import relu
from vjplib.rules.attention import dot_product_attention, reference_dot_product_attention
from vjplib.rules.convolution.general import conv_general_dilated
from vjplib.rules.gated_activations import swiglu
from vjplib.rules.losses import softmax_cross_entropy_with_integer_labels
from vjplib.rules.norms import batch_norm, layer_norm, rms_norm
from vjplib.rules.pooling.pooling import max_pool
from vjplib.rules.smooth_activations import gelu, silu

CLASSES = 10
LEARNING_RATE = 0.01
OPTIMIZER = optax.sgd(LEARNING_RATE)
VOCABULARY, WIDTH = 2048, 256
"""The tokens of the transformer, and the features of each."""


class BatchNorm(nn.Module):
    """`flax.linen.BatchNorm` in training and an activation, by one of vjplib's rules; parameters have flax's names."""

    activation: Literal["relu", "relu6"] | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "batch *space c"]) -> Float[Array, "batch *space c"]:
        """Normalize x, apply the activation, and move the running statistics."""
        shape = x.shape[-1:]
        scale, bias = self.param("scale", nn.initializers.ones, shape), self.param("bias", nn.initializers.zeros, shape)
        mean = self.variable("batch_stats", "mean", jnp.zeros, shape)
        variance = self.variable("batch_stats", "var", jnp.ones, shape)
        y, *moved = batch_norm(x, mean.value, variance.value, scale, bias, activation=self.activation)
        if not self.is_initializing():
            mean.value, variance.value = moved
        return y


class LayerNorm(nn.Module):
    """`flax.linen.LayerNorm` by vjplib's rule."""

    @nn.compact
    def __call__(self, x: Float[Array, "*batch c"]) -> Float[Array, "*batch c"]:
        """Normalize x along its last axis."""
        shape = x.shape[-1:]
        scale, bias = self.param("scale", nn.initializers.ones, shape), self.param("bias", nn.initializers.zeros, shape)
        return layer_norm(x, scale, bias)


class RMSNorm(nn.Module):
    """`flax.linen.RMSNorm` by vjplib's rule."""

    @nn.compact
    def __call__(self, x: Float[Array, "*batch c"]) -> Float[Array, "*batch c"]:
        """Divide x by its root mean square along its last axis."""
        return rms_norm(x, self.param("scale", nn.initializers.ones, x.shape[-1:]))


def _causal_attention(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """Compute causal attention by JAX; in float64, where JAX's softmax stays in float32, by the plain expression."""
    incumbent = jax.nn.dot_product_attention if q.dtype != np.float64 else reference_dot_product_attention
    return incumbent(q, k, v, is_causal=True)


def _batch_norm(activation: str | None = None) -> Callable[[jax.Array], jax.Array]:
    norm = nn.BatchNorm(use_running_average=False)
    return lambda x: getattr(nn, activation)(norm(x)) if activation else norm(x)


def _silu_gated(gate: jax.Array, x: jax.Array) -> jax.Array:
    return nn.silu(gate) * x


class Ops(NamedTuple):
    """The layers and functions of a network, with flax's signatures; attention is causal.

    `batch_norm` takes the name of the activation that follows it; `cross_entropy` takes logits and labels.
    """

    conv: Callable[..., Any]
    max_pool: Callable[..., Any]
    batch_norm: Callable[..., Any] = _batch_norm
    layer_norm: Callable[..., Any] = nn.LayerNorm
    rms_norm: Callable[..., Any] = nn.RMSNorm
    dense: Callable[..., Any] = nn.Dense
    embed: Callable[..., Any] = nn.Embed
    split: Callable[..., Any] = partial(jnp.split, axis=-1)
    relu: Callable[..., Any] = nn.relu
    gelu: Callable[..., Any] = nn.gelu
    silu: Callable[..., Any] = nn.silu
    swiglu: Callable[..., Any] = _silu_gated
    attention: Callable[..., Any] = _causal_attention
    cross_entropy: Callable[..., Any] = optax.softmax_cross_entropy_with_integer_labels


JAX = Ops(partial(nn.Conv, conv_general_dilated=lax.conv_general_dilated), nn.max_pool)
CONVOLUTIONS = Ops(partial(nn.Conv, conv_general_dilated=conv_general_dilated), max_pool)
"""vjplib's convolutions and max-pooling; the other functions are JAX's."""
VJPLIB = CONVOLUTIONS._replace(
    batch_norm=BatchNorm,
    layer_norm=LayerNorm,
    rms_norm=RMSNorm,
    relu=relu,
    gelu=gelu,
    silu=silu,
    swiglu=swiglu,
    attention=partial(dot_product_attention, is_causal=True),
    cross_entropy=softmax_cross_entropy_with_integer_labels,
)
"""vjplib's functions wherever it has them."""


def _mobilenet(ops: Ops, x: Any) -> Any:
    """Three inverted residuals: 1x1 to three times the channels, depthwise 3x3, 1x1 back."""
    conv, norm = partial(ops.conv, use_bias=False), ops.batch_norm
    c = x.shape[-1]
    for _ in range(3):
        y = norm("relu6")(conv(3 * c, (1, 1))(x))
        y = norm("relu6")(conv(3 * c, (3, 3), feature_group_count=3 * c)(y))
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
    y = norm("relu")(conv(c, (1, 1))(x))
    y = norm("relu")(conv(c, (3, 3), feature_group_count=32)(y))
    y = norm()(conv(c, (1, 1))(y))
    return ops.relu(x + y).mean((1, 2))


def _mamba(ops: Ops, x: Any) -> Any:
    """One block around a short convolution of twice the channels: causal, depthwise, four taps, silu, and a gate."""
    c = x.shape[-1]
    y, gate = ops.split(ops.dense(4 * c)(x), 2)
    y = ops.silu(ops.conv(2 * c, (4,), padding="CAUSAL", feature_group_count=2 * c)(y))
    x = x + ops.dense(c)(ops.swiglu(gate, y))
    return x.mean(1)


def _lenet(ops: Ops, x: Any) -> Any:
    """LeNet-5 with relu and max-pooling: two 5x5 convolutions of 6 and 16 features, and a perceptron."""
    for features, padding in ((6, "SAME"), (16, "VALID")):
        x = ops.max_pool(ops.relu(ops.conv(features, (5, 5), padding=padding)(x)), (2, 2), (2, 2))
    x = x.reshape(len(x), -1)
    for features in (120, 84):
        x = ops.relu(ops.dense(features)(x))
    return x


def _transformer(ops: Ops, tokens: Any) -> Any:
    """Two blocks: causal attention of four heads and a perceptron with swiglu, each behind an RMS norm."""
    (b, t), c, heads = tokens.shape, WIDTH, 4
    x = ops.embed(VOCABULARY, c)(tokens) + ops.embed(t, c)(np.arange(t))
    for _ in range(2):
        q, k, v = (a.reshape(b, t, heads, c // heads) for a in ops.split(ops.dense(3 * c)(ops.rms_norm()(x)), 3))
        x = x + ops.dense(c)(ops.attention(q, k, v).reshape(b, t, c))
        x = x + ops.dense(c)(ops.swiglu(*ops.split(ops.dense(6 * c)(ops.rms_norm()(x)), 2)))
    return ops.rms_norm()(x)


def mean_loss(features: Callable[[Ops, Any], Any], ops: Ops, classes: int, x: Any, labels: Any) -> Any:
    """Map the features of x linearly to logits, and compute their mean cross-entropy with the labels."""
    y = features(ops, x)  # first: flax numbers layers in the order of their making
    return ops.cross_entropy(ops.dense(classes)(y), labels).mean()


class Network(nn.Module):
    """`mean_loss` as a network of flax; x is of images, sequences or tokens, channels last."""

    features: Callable[[Ops, Any], Any]
    ops: Ops
    classes: int = CLASSES

    @nn.compact
    def __call__(self, x: Shaped[Array, "batch ..."], labels: Int[Array, "batch ..."]) -> Float[Array, ""]:
        """Compute the mean loss."""
        return mean_loss(self.features, self.ops, self.classes, x, labels)


class Model(NamedTuple):
    """A network, made from `Ops`, and the batch that it is timed on.

    Args:
        network: takes `Ops`; returns a `Network`.
        shape: the shape of x, the batch first.
        vocabulary: the number of tokens, if x is of tokens, which are labelled each with the next; None if x is of real
            numbers, with a label for each of the batch.
    """

    network: Callable[[Ops], Network]
    shape: tuple[int, ...]
    vocabulary: int | None = None

    def batch(self, rng: np.random.Generator, dtype: Any) -> tuple[jax.Array, jax.Array]:
        """Draw x, in this dtype unless it is of tokens, and labels."""
        if self.vocabulary is None:
            x = rng.standard_normal(self.shape).astype(dtype)
            return jax.device_put((x, rng.integers(0, CLASSES, self.shape[0], dtype=np.int32)))
        b, t = self.shape
        tokens = rng.integers(0, self.vocabulary, (b, t + 1), dtype=np.int32)
        return jax.device_put((tokens[:, :-1], tokens[:, 1:]))


MODELS = {
    "MobileNetV2-like": Model(partial(Network, _mobilenet), (16, 56, 56, 32)),
    "ConvNeXt-like": Model(partial(Network, _convnext), (8, 28, 28, 96)),
    "ResNeXt-like": Model(partial(Network, _resnext), (8, 28, 28, 128)),
    "Mamba-like": Model(partial(Network, _mamba), (8, 1024, 128)),
    "LeNet-like": Model(partial(Network, _lenet), (128, 28, 28, 1)),
    "Transformer-like": Model(partial(Network, _transformer, classes=VOCABULARY), (4, 512), VOCABULARY),
}
"""The networks timed."""


class NetworkState(NamedTuple):
    """The state of training: the network's parameters, the statistics of batch norm, and the state of `OPTIMIZER`."""

    params: Any
    statistics: Any
    optimizer: optax.OptState


def start(
    network: Network, x: Shaped[Array, "batch ..."], labels: Int[Array, "batch ..."], dtype: Any = np.float32
) -> NetworkState:
    """Initialize a network's state with key 0 in a floating dtype."""
    drawn = jax.tree.map(lambda a: a.astype(dtype), jax.jit(network.init)(jax.random.key(0), x, labels))
    params = drawn.pop("params")
    return NetworkState(params, drawn, OPTIMIZER.init(params))


def loss(
    params: Any, network: Network, statistics: Any, x: Shaped[Array, "batch ..."], labels: Int[Array, "batch ..."]
) -> tuple[Float[Array, ""], Any]:
    """Compute the mean cross-entropy of a network in training, and its statistics after this batch."""
    value, updated = network.apply({"params": params, **statistics}, x, labels, mutable=list(statistics))
    return jnp.asarray(value), updated


def training_step(
    network: Network, state: NetworkState, x: Shaped[Array, "batch ..."], labels: Int[Array, "batch ..."]
) -> tuple[NetworkState, Float[Array, ""]]:
    """Take one step of gradient descent; return the new state, and the loss before the step."""
    evaluate = jax.value_and_grad(loss, has_aux=True)
    (value, statistics), gradients = evaluate(state.params, network, state.statistics, x, labels)
    updates, optimizer = OPTIMIZER.update(gradients, state.optimizer)
    return NetworkState(optax.apply_updates(state.params, updates), statistics, optimizer), value
