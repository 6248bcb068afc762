"""Networks as pairs of pure functions: layers made of the rules, and combinators that compose them.

A `Layer` is two pure functions and holds no state. `init` draws parameters from a key and returns the shape of the
output; `apply` maps parameters and input to the output, and works under `jax.jit`, `jax.vmap` and `jax.grad`:

    network = serial(conv1d(32, kernel_size=5), relu, mean_pool(), linear(10))
    shape, params = network.init(jax.random.key(0), (40, 1))
    logits = network.apply(params, x)

Linear maps, convolutions, norms, attention and activations are rules of vjplib; reshaping, swapping, averaging and
adding are plain JAX. What needs more than parameters and an array of numbers is no layer: `vjplib.dropout` takes a key,
`vjplib.batch_norm` running statistics, an embedding integers.

A layer works on the last axes. All axes before them are batch axes, and the shape given to `init` may include them.
"""

import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from vjplib.rules import activations, gated_activations, norms, smooth_activations
from vjplib.rules import linear as linear_rules
from vjplib.rules import softmax as softmax_rules
from vjplib.rules.attention import dot_product_attention
from vjplib.rules.convolution.conv1d import conv1d as conv1d_rule

Shape = tuple[int, ...]
Params = Any
Initializer = Callable[..., jax.nn.initializers.Initializer]


class Layer(NamedTuple):
    """A function with parameters, as two pure functions.

    Attributes:
        init: `init(key, input_shape) -> (output_shape, params)`. Raises ValueError if the layer refuses inputs of that
            shape. params is any pytree of arrays, `()` if there are none.
        apply: `apply(params, x) -> y`, from the shape `(*batch, *input_shape)` to `(*batch, *output_shape)`.

    Example:
        >>> double = Layer(lambda key, shape: (shape, ()), lambda params, x: 2 * x)
        >>> shape, params = double.init(jax.random.key(0), (3,))
        >>> shape, double.apply(params, jnp.ones(3)).tolist()
        ((3,), [2.0, 2.0, 2.0])
    """

    init: Callable[[PRNGKeyArray, Shape], tuple[Shape, Params]]
    apply: Callable[[Params, Float[Array, "..."]], Float[Array, "..."]]


# ----------------------------------------------------------------------------------------------- layers with parameters


def linear(features: int, *, initializer: Initializer = jax.nn.initializers.he_normal) -> Layer:
    """y = W x + b along the last axis, with params `{"W": (features, n), "b": (features,)}`.

    Args:
        features: the size of y's last axis.
        initializer: draws W, called as `initializer(in_axis=1, out_axis=0)`. The default, He's, keeps the variance
            through a ReLU; `jax.nn.initializers.glorot_normal` keeps it without one. b starts at zero.

    Returns:
        A layer from (..., n) to (..., features).

    Raises:
        TypeError: features is not an integer.
        ValueError: features is not positive, or, from `init`, the input has no axis.

    Example:
        >>> shape, params = linear(3).init(jax.random.key(0), (5,))
        >>> shape, params["W"].shape, params["b"].shape
        ((3,), (3, 5), (3,))

    Source:
        Example 2.5 of the lecture. He et al., Delving deep into rectifiers, 2015; Glorot and Bengio, Understanding the
        difficulty of training deep feedforward neural networks, 2010.
    """
    (features,) = _positive("linear", features=features)

    def init(key: PRNGKeyArray, input_shape: Shape) -> tuple[Shape, Params]:
        *batch, n = _at_least(1, "linear", "(..., n)", input_shape)
        W = initializer(in_axis=1, out_axis=0)(key, (features, n))
        return (*batch, features), {"W": W, "b": jnp.zeros(features)}

    return Layer(init, lambda params, x: linear_rules.linear(x, params["W"], params["b"]))


def conv1d(
    channels: int, kernel_size: int, *, stride: int = 1, initializer: Initializer = jax.nn.initializers.he_normal
) -> Layer:
    """y_i = sum_k x_{i+k} h_k + b along the last axis but one, with params `{"h": (k, c, channels), "b": (channels,)}`.

    Args:
        channels: the size of y's last axis.
        kernel_size: the number k of positions in the kernel h; zeros pad the ends.
        stride: keeps every stride-th position.
        initializer: draws h, called as `initializer(in_axis=1, out_axis=2)`. b starts at zero.

    Returns:
        A layer from (..., n, c) to (..., ceil(n / stride), channels).

    Raises:
        TypeError: channels, kernel_size or stride is not an integer.
        ValueError: one of them is not positive, or, from `init`, the input has fewer than two axes or n < kernel_size.

    Example:
        >>> shape, params = conv1d(8, kernel_size=3, stride=2).init(jax.random.key(0), (5, 1))
        >>> shape, params["h"].shape
        ((3, 8), (3, 1, 8))

    Source:
        Example 4.2 of the lecture, with channels and strides.
    """
    channels, kernel_size, stride = _positive("conv1d", channels=channels, kernel_size=kernel_size, stride=stride)

    def init(key: PRNGKeyArray, input_shape: Shape) -> tuple[Shape, Params]:
        *batch, n, c = _at_least(2, "conv1d", "(..., n, c)", input_shape)
        if n < kernel_size:
            raise ValueError(f"conv1d: kernel_size must be at most n, got {kernel_size} for input_shape {input_shape}")
        h = initializer(in_axis=1, out_axis=2)(key, (kernel_size, c, channels))
        return (*batch, -(-n // stride), channels), {"h": h, "b": jnp.zeros(channels)}

    return Layer(init, lambda params, x: conv1d_rule(x, params["h"], params["b"], stride=stride))


def swiglu(features: int, *, initializer: Initializer = jax.nn.initializers.glorot_normal) -> Layer:
    """y = silu(G x) * (W x) along the last axis, elementwise, with params `{"G": (features, n), "W": (features, n)}`.

    Args:
        features: the size of y's last axis.
        initializer: draws G and W, called as in `linear`.

    Returns:
        A layer from (..., n) to (..., features).

    Raises:
        TypeError: features is not an integer.
        ValueError: features is not positive, or, from `init`, the input has no axis.

    Example:
        >>> swiglu(8).init(jax.random.key(0), (3,))[0]
        (8,)

    Source:
        Shazeer, GLU variants improve transformer, 2020.
    """
    (features,) = _positive("swiglu", features=features)

    def init(key: PRNGKeyArray, input_shape: Shape) -> tuple[Shape, Params]:
        *batch, n = _at_least(1, "swiglu", "(..., n)", input_shape)
        draw = initializer(in_axis=1, out_axis=0)
        keys = jax.random.split(key)
        return (*batch, features), {name: draw(k, (features, n)) for name, k in zip("GW", keys, strict=True)}

    def apply(params: Params, x: Float[Array, "... n"]) -> Float[Array, "... features"]:
        gate, y = (linear_rules.linear(x, params[name]) for name in "GW")
        return gated_activations.swiglu(gate, y)

    return Layer(init, apply)


def self_attention(
    heads: int, *, is_causal: bool = False, initializer: Initializer = jax.nn.initializers.glorot_normal
) -> Layer:
    """Each of n positions attends to all, or to those before it: softmax(Q K^T / sqrt(h)) V in each head, mapped by W.

    The queries, keys and values Q, K and V of a head are linear in x, of h = c / heads features each. The params are
    `{"QKV": (3 c, c), "W": (c, c)}`.

    Args:
        heads: how many heads share the c channels.
        is_causal: whether position i attends to positions 0 to i only.
        initializer: draws the matrices, called as in `linear`.

    Returns:
        A layer from (..., n, c) to (..., n, c).

    Raises:
        TypeError: heads is not an integer.
        ValueError: heads is not positive, or, from `init`, the input has fewer than two axes or c is no multiple of
            heads.

    Example:
        >>> shape, params = self_attention(2, is_causal=True).init(jax.random.key(0), (5, 4))
        >>> shape, params["QKV"].shape
        ((5, 4), (12, 4))

    Source:
        Vaswani et al., Attention is all you need, 2017.
    """
    (heads,) = _positive("self_attention", heads=heads)

    def init(key: PRNGKeyArray, input_shape: Shape) -> tuple[Shape, Params]:
        *_, c = _at_least(2, "self_attention", "(..., n, c)", input_shape)[-2:]
        if c % heads:
            raise ValueError(f"self_attention: c must be a multiple of heads, got {c} and {heads}")
        draw = initializer(in_axis=1, out_axis=0)
        first, last = jax.random.split(key)
        return tuple(input_shape), {"QKV": draw(first, (3 * c, c)), "W": draw(last, (c, c))}

    def apply(params: Params, x: Float[Array, "... n c"]) -> Float[Array, "... n c"]:
        every = linear_rules.linear(x, params["QKV"])
        q, k, v = (a.reshape(-1, x.shape[-2], heads, x.shape[-1] // heads) for a in jnp.split(every, 3, -1))
        y = dot_product_attention(q, k, v, is_causal=is_causal)
        return linear_rules.linear(y.reshape(x.shape), params["W"])

    return Layer(init, apply)


def layer_norm(*, epsilon: float = 1e-6) -> Layer:
    """y = scale * (x - m) / sqrt(v + epsilon) + bias, m and v mean and variance along the last axis.

    Args:
        epsilon: a number that is added to the variance.

    Returns:
        A layer from (..., n) to (..., n), with params `{"scale": (n,), "bias": (n,)}`, which start at 1 and 0.

    Raises:
        ValueError: from `init`, the input has no axis; from `apply`, epsilon is negative.

    Example:
        >>> shape, params = layer_norm().init(jax.random.key(0), (3,))
        >>> shape, params["scale"].tolist()
        ((3,), [1.0, 1.0, 1.0])

    Source:
        Ba, Kiros and Hinton, Layer normalization, 2016.
    """
    starts = {"scale": jnp.ones, "bias": jnp.zeros}
    return _norm("layer_norm", starts, lambda p, x: norms.layer_norm(x, p["scale"], p["bias"], epsilon=epsilon))


def rms_norm(*, epsilon: float = 1e-6) -> Layer:
    """y = scale * x / sqrt(mean(x^2) + epsilon) along the last axis.

    Args:
        epsilon: a number that is added to the mean square.

    Returns:
        A layer from (..., n) to (..., n), with params `{"scale": (n,)}`, which starts at 1.

    Raises:
        ValueError: from `init`, the input has no axis; from `apply`, epsilon is negative.

    Example:
        >>> rms_norm().init(jax.random.key(0), (5, 3))[0]
        (5, 3)

    Source:
        Zhang and Sennrich, Root mean square layer normalization, 2019.
    """
    return _norm("rms_norm", {"scale": jnp.ones}, lambda p, x: norms.rms_norm(x, p["scale"], epsilon=epsilon))


def _norm(name: str, starts: dict[str, Callable[..., Any]], apply: Callable[[Params, Any], Any]) -> Layer:
    """Return the layer of a norm along the last axis, whose parameters have its size and start as functions say."""

    def init(_: PRNGKeyArray, input_shape: Shape) -> tuple[Shape, Params]:
        shape = _at_least(1, name, "(..., n)", input_shape)
        return shape, {parameter: start(shape[-1]) for parameter, start in starts.items()}

    return Layer(init, apply)


# -------------------------------------------------------------------------------------------- layers without parameters


def activation(fn: Callable[..., Any]) -> Layer:
    """y = fn(x), for a pure fn that keeps the shape.

    Args:
        fn: a function from an array to an array of the same shape, such as a rule of `vjplib`.

    Returns:
        A layer from any shape to the same shape.

    Example:
        >>> from functools import partial
        >>> relu_of_jax = activation(partial(activations.relu, derivative_at_zero=0))
        >>> float(jax.grad(lambda x: relu_of_jax.apply((), x))(0.0))
        0.0
    """
    return Layer(lambda _, input_shape: (tuple(input_shape), ()), lambda _, x: fn(x))


relu = activation(activations.relu)
tanh = activation(activations.tanh)
sigmoid = activation(activations.sigmoid)
gelu = activation(smooth_activations.gelu)
silu = activation(smooth_activations.silu)
softmax = Layer(
    lambda _, input_shape: (_at_least(1, "softmax", "(..., n)", input_shape), ()),
    lambda _, x: softmax_rules.softmax(x),
)


def flatten(axes: int = 2) -> Layer:
    """y has the last axes of x in one, in row-major order.

    Args:
        axes: the number of axes that become one.

    Returns:
        A layer from (..., n_1, ..., n_axes) to (..., n_1 * ... * n_axes).

    Raises:
        TypeError: axes is not an integer.
        ValueError: axes is not positive, or, from `init`, the input has fewer.

    Example:
        >>> flatten().init(jax.random.key(0), (10, 32))[0]
        (320,)
    """
    (axes,) = _positive("flatten", axes=axes)
    return _without_parameters("flatten", axes, lambda x: jax.lax.collapse(x, -axes))


def swap_axes(axis1: int, axis2: int) -> Layer:
    """y is x with two axes exchanged; after it, a `conv1d` runs along the other axis of an image.

    Args:
        axis1: a negative axis, counted from the end, so that batch axes do not shift it.
        axis2: the other negative axis.

    Returns:
        A layer from (..., a, ..., b, ...) to (..., b, ..., a, ...).

    Raises:
        TypeError: an axis is not an integer.
        ValueError: an axis is not negative, or, from `init`, the input does not have it.

    Example:
        >>> swap_axes(-3, -2).init(jax.random.key(0), (4, 8, 1))[0]
        (8, 4, 1)
    """
    axis1, axis2 = integer("swap_axes: axis1", axis1), integer("swap_axes: axis2", axis2)
    if axis1 >= 0 or axis2 >= 0:
        raise ValueError(f"swap_axes: axis1 and axis2 must be negative, got {axis1} and {axis2}")
    return _without_parameters("swap_axes", max(-axis1, -axis2), lambda x: jnp.swapaxes(x, axis1, axis2))


def mean_pool(axes: int = 1) -> Layer:
    """y is the mean of x over all positions, one number per channel.

    Args:
        axes: the number of axes of positions before the last axis: 1 for a sequence, 2 for an image.

    Returns:
        A layer from (..., n_1, ..., n_axes, c) to (..., c).

    Raises:
        TypeError: axes is not an integer.
        ValueError: axes is not positive, or, from `init`, the input has too few axes or no position to average.

    Example:
        >>> mean_pool().init(jax.random.key(0), (40, 32))[0]
        (32,)
    """
    (axes,) = _positive("mean_pool", axes=axes)
    mean = _without_parameters("mean_pool", axes + 1, lambda x: jnp.mean(x, axis=tuple(range(-1 - axes, -1))))

    def init(key: PRNGKeyArray, input_shape: Shape) -> tuple[Shape, Params]:
        if 0 in input_shape[-1 - axes : -1]:
            raise ValueError(f"mean_pool: there must be a position to average over, got input_shape {input_shape}")
        return mean.init(key, input_shape)

    return Layer(init, mean.apply)


def _without_parameters(name: str, axes: int, fn: Callable[[Array], Array]) -> Layer:
    """Return the layer of a function without parameters, of arrays of so many axes or more."""

    def init(_: PRNGKeyArray, input_shape: Shape) -> tuple[Shape, Params]:
        shape = _at_least(axes, name, f"{axes} axes or more", input_shape)
        return jax.eval_shape(fn, jax.ShapeDtypeStruct(shape, jnp.float32)).shape, ()

    return Layer(init, lambda _, x: fn(x))


# ---------------------------------------------------------------------------------------------------------- combinators


def serial(*layers: Layer) -> Layer:
    """y = layer_n(... layer_2(layer_1(x))), the composition of layers, the first applied first.

    Args:
        *layers: the layers; without any, the identity.

    Returns:
        A layer whose params are the tuple of the layers' params.

    Raises:
        ValueError: from `init`, a layer refuses the output shape of the previous one; a note names the layer. From
            `apply`, params does not have one entry per layer.

    Example:
        >>> shape, params = serial(linear(4), tanh, linear(2)).init(jax.random.key(0), (3,))
        >>> shape, len(params)
        ((2,), 3)

    Source:
        Example 3.1 of the lecture, Eq. 25.
    """

    def init(key: PRNGKeyArray, input_shape: Shape) -> tuple[Shape, Params]:
        shape, params = tuple(input_shape), []
        for i, (layer, k) in enumerate(zip(layers, jax.random.split(key, len(layers)), strict=True)):
            try:
                shape, p = layer.init(k, shape)
            except ValueError as e:
                e.add_note(f"in layer {i} of serial, whose input has shape {shape}")
                raise
            params.append(p)
        return shape, tuple(params)

    def apply(params: Params, x: Float[Array, "..."]) -> Float[Array, "..."]:
        if len(params) != len(layers):
            raise ValueError(f"serial: params must have one entry a layer, got {len(params)} for {len(layers)} layers")
        for layer, p in zip(layers, params, strict=True):
            x = layer.apply(p, x)
        return x

    return Layer(init, apply)


def residual(*layers: Layer) -> Layer:
    """y = x + serial(*layers)(x).

    Args:
        *layers: layers whose composition keeps the shape.

    Returns:
        A layer from any shape that the layers take to the same shape; its params are those of `serial(*layers)`.

    Raises:
        ValueError: from `init`, the composition changes the shape.

    Example:
        >>> residual(linear(3), relu).init(jax.random.key(0), (3,))[0]
        (3,)

    Source:
        He et al., Deep residual learning for image recognition, 2015.
    """
    branch = serial(*layers)

    def init(key: PRNGKeyArray, input_shape: Shape) -> tuple[Shape, Params]:
        shape, params = branch.init(key, input_shape)
        if shape != tuple(input_shape):
            raise ValueError(f"residual: the layers must keep the shape, got {shape} from input_shape {input_shape}")
        return shape, params

    return Layer(init, lambda params, x: x + branch.apply(params, x))


# --------------------------------------------------------------------------------------------------------------- checks


def integer(name: str, number: Any) -> int:
    """Return number as an int, or raise TypeError by name."""
    try:
        return operator.index(number)
    except TypeError:
        raise TypeError(f"{name} must be an integer, got {number!r}") from None


def _positive(layer: str, **sizes: Any) -> list[int]:
    given = {name: integer(f"{layer}: {name}", size) for name, size in sizes.items()}
    for name, size in given.items():
        if size < 1:
            raise ValueError(f"{layer}: {name} must be positive, got {size}")
    return list(given.values())


def _at_least(axes: int, layer: str, wanted: str, input_shape: Shape) -> Shape:
    if len(input_shape) < axes:
        raise ValueError(f"{layer}: input_shape must be {wanted}, got {tuple(input_shape)}")
    return tuple(input_shape)
