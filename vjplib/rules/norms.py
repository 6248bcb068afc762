"""Normalisation layers: by mean and deviation of layers, groups and batches, by root mean square, and of weights."""

import math
from collections.abc import Callable, Sequence
from functools import partial, wraps
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Shaped

from vjplib.compat import apart_on_cpu, auto_sharded, custom_vjp
from vjplib.jacobians import Diagonal, DiagonalMinusLowRank
from vjplib.precision import upcast
from vjplib.rule import Case, Edge, Gain, Input, Rule
from vjplib.rules._arguments import as_array, as_floating, as_inexact, as_number, by_rule, normalize_axes
from vjplib.rules._cotangents import AvalToken, aval_token, like_primal, prepend_axes
from vjplib.rules.activations import fwd_relu, reference_relu
from vjplib.rules.piecewise_activations import fwd_relu6, reference_relu6

NOT_NEGATIVE = "at least 0", lambda n: n >= 0


ACTIVATIONS = {"relu": partial(fwd_relu, derivative_at_zero=1), "relu6": fwd_relu6}
"""What may follow batch norm: the forwards of rules, whose derivative is 1 where their mask is true, and else 0."""

# ---------------------------------------------------------------------------------------------------------- layer_norm


def layer_norm(
    x: Shaped[ArrayLike, "..."],
    scale: Shaped[ArrayLike, "..."] | None = None,
    bias: Shaped[ArrayLike, "..."] | None = None,
    axis: int | Sequence[int] | None = -1,
    epsilon: float = 1e-6,
) -> Shaped[Array, "..."]:
    """scale (x - m) / sqrt(v + epsilon) + bias, with m the mean and v the variance of x along axis.

    Args:
        x: any shape and dtype; complex numbers are computed by the plain expression.
        scale: any shape that broadcasts to x's, or None for 1.
        bias: any shape that broadcasts to x's, or None for 0.
        axis: the axis or axes that have mean 0 and variance 1 before scale and bias; None for all.
        epsilon: a number that is added to the variance.

    Returns:
        An array of x's shape, in the dtype that the arguments promote to (JAX's default float for integers); half
        precision accumulates in float32. A slice of equal numbers gives bias, with a cotangent in proportion to
        1 / sqrt(epsilon). The variance is the mean square of x - m, so that it keeps its digits where m is large. NaN
        and infinities make their slice NaN; an empty slice is empty.

    Raises:
        TypeError: an argument is not an array of numbers, or epsilon is not a number.
        ValueError: an axis is out of range or named twice, scale or bias does not broadcast to x, or epsilon is
            negative.

    Example:
        >>> layer_norm(jnp.array([1.0, 3.0]), epsilon=0).tolist()
        [-1.0, 1.0]

    Source:
        Ba, Kiros and Hinton, Layer normalization, 2016. Names and default values are those of `flax.linen.LayerNorm`,
        and axis is `jax.nn.standardize`'s.
    """
    x = as_inexact("x", x)
    axes, epsilon = normalize_axes(axis, x.ndim), as_number("epsilon", epsilon, *NOT_NEGATIVE)
    parameters = _broadcasting_to(x, scale=scale, bias=bias)
    return _by_rule(
        lambda x, scale=None, bias=None: _standardize(x, scale, bias, axes, epsilon),
        partial(reference_layer_norm, axis=axes, epsilon=epsilon),
        x=x,
        **parameters,
    )


@partial(custom_vjp, nondiff_argnames=("axes", "epsilon", "statistics", "activation"))
def _standardize(x, scale, bias, axes, epsilon, statistics=False, activation=None):
    return fwd_standardize(x, scale, bias, axes, epsilon, statistics, activation)[0]


def fwd_standardize(x, scale, bias, axes, epsilon, statistics, activation) -> tuple[Any, Any]:
    """Return the normalised array, with `statistics` also its mean and variance, and the residuals."""
    mean = jnp.mean(upcast(x), axes, keepdims=True)
    centred = upcast(x) - mean
    variance = jnp.mean(jnp.square(centred), axes, keepdims=True)
    inverse = jax.lax.rsqrt(variance + epsilon)
    # Not the same difference to the compiler, which would write it out for both of its uses.
    h = (upcast(x) - jax.lax.optimization_barrier(mean)) * inverse
    y = _affine(h, _wide(scale), _wide(bias))
    y = (ACTIVATIONS[activation](y)[0] if activation else y).astype(_promoted(x, scale, bias))
    res = x, scale, bias if bias is None or activation else aval_token(bias), mean, inverse
    return (y, mean, variance) if statistics else y, res


# With n numbers in a slice, m = sum_k x_k / n, v = sum_k (x_k - m)^2 / n, r = sqrt(v + eps) and h = (x - m) / r:
#   dm/dx_j = 1 / n,   dv/dx_j = 2 (x_j - m) / n,   dr/dx_j = dv/dx_j / (2 r) = h_j / n
#   dh_i/dx_j = (delta_ij - 1 / n) / r - (x_i - m) / r^2 * h_j / n = (delta_ij - 1 / n - h_i h_j / n) / r
# J is the identity less its projections on 1 and on h: to move all numbers, or to stretch them, changes no h. With
# y = s h + b and u = g s, a cotangent loses those two components, each a mean along the slice:
#   g^T J_x = (u - mean(u) - mean(u h) h) / r,   g^T J_s = g h,   g^T J_b = g
# Cotangents g_m of the mean and g_v of the variance add their terms to the two numbers of the slice:
#   g^T J_x = u / r + (g_m / n - mean(u) / r) + (2 g_v r / n - mean(u h) / r) h
# An activation a of y multiplies g by a'(y) first, 0 or 1. h is computed again from x, m and 1 / r, and so is y for a'.
# Without an activation only the form of b is kept. Along axes where s and b are constant, such as a
# batch, sum(u) = s sum(g): the sums of g and of g h are taken once, for all three cotangents.
def bwd_standardize(axes, epsilon, statistics, activation, res, cotangents):
    x, scale, bias, mean, inverse = res
    g, *of_statistics = map(upcast, cotangents if statistics else (cotangents,))
    n = math.prod(x.shape[i] for i in axes)
    h = (upcast(x) - jax.lax.optimization_barrier(mean)) * inverse
    if activation:
        _, (mask, _) = ACTIVATIONS[activation](_affine(h, _wide(scale), _wide(bias)))
        g = jax.lax.select(mask, g, jnp.zeros_like(g))
    shared, others = _constant_along(axes, x, scale, bias.aval if isinstance(bias, AvalToken) else bias)
    sum_g, sum_gc = (jnp.sum(a, shared, keepdims=True) for a in (g, g * (upcast(x) - mean)))
    sum_gh = sum_gc * inverse
    along_one, along_h = (_weighted_sum(a, scale, others) / n * -inverse for a in (sum_g, sum_gh))
    if statistics:
        g_mean, g_variance = of_statistics
        along_one, along_h = along_one + g_mean / n, along_h + 2 * g_variance / (n * inverse)
    dx = _affine(g, _wide(scale), None) * inverse + along_one + along_h * h
    return (
        like_primal(dx, x),
        None if scale is None else like_primal(sum_gh, scale),
        None if bias is None else like_primal(sum_g, bias),
    )


@wraps(bwd_standardize)
def _bwd_standardize(axes, epsilon, statistics, activation, res, cotangents):
    bwd = partial(bwd_standardize, axes, epsilon, statistics, activation)
    return (apart_on_cpu(bwd) if statistics else bwd)(res, cotangents)


_standardize.defvjp(fwd_standardize, _bwd_standardize)


def reference_layer_norm(x, scale=None, bias=None, axis: Any = -1, epsilon=1e-6):
    centred = x - jnp.mean(x, axis, keepdims=True)
    return _affine(centred / jnp.sqrt(jnp.var(x, axis, keepdims=True) + epsilon), scale, bias)


def jacobian_layer_norm(x, scale, bias):
    inverse = jax.lax.rsqrt(jnp.var(x) + 1e-6)
    h = (x - jnp.mean(x)) * inverse
    left, right = jnp.stack([jnp.ones_like(h), h], -1), jnp.stack([jnp.ones_like(h), h], -1) / x.size
    in_x = DiagonalMinusLowRank(scale * inverse, (scale * inverse)[:, None] * left, right)
    return in_x, Diagonal(h), Diagonal(jnp.ones_like(h))


# ---------------------------------------------------------------------------------------------------------- group_norm


def group_norm(
    x: Shaped[ArrayLike, "b ... c"],
    scale: Shaped[ArrayLike, " c"] | None = None,
    bias: Shaped[ArrayLike, " c"] | None = None,
    num_groups: int = 32,
    epsilon: float = 1e-6,
) -> Shaped[Array, "b ... c"]:
    """scale (x - m) / sqrt(v + epsilon) + bias, with m and v of each example's groups of consecutive channels.

    Args:
        x: (batch, ..., channels), any dtype.
        scale: (channels,), or None for 1.
        bias: (channels,), or None for 0.
        num_groups: a divisor of the number of channels. One group is a layer norm over all but the batch; as many as
            channels are an instance norm.
        epsilon: a number that is added to the variance.

    Returns:
        An array of x's shape, as `layer_norm` of the axes between batch and channels and of the channels of a group.

    Raises:
        TypeError: an argument is not an array of numbers, num_groups is not an integer, or epsilon is not a number.
        ValueError: x has fewer than 2 axes, num_groups does not divide the channels, scale or bias is not of shape
            (channels,), or epsilon is negative.

    Example:
        >>> group_norm(jnp.array([[1.0, 3.0, 10.0, 30.0]]), num_groups=2, epsilon=0).tolist()
        [[-1.0, 1.0, -1.0, 1.0]]

    Source:
        Wu and He, Group normalization, 2018. Names and default values are those of `flax.linen.GroupNorm`.
    """
    x = as_inexact("x", x)
    if x.ndim < 2:
        raise ValueError(f"x must have at least 2 axes, batch and channels, got shape {x.shape}")
    channels = x.shape[-1]
    if not hasattr(num_groups, "__index__"):
        raise TypeError(f"num_groups must be an integer, got {num_groups!r}")
    if num_groups < 1 or channels % num_groups:
        raise ValueError(f"num_groups must divide the channels of x, got {num_groups} and x {x.shape}")
    groups = (num_groups, channels // num_groups)
    grouped = {
        name: None if a is None else _of_shape(name, a, (channels,)).reshape(groups)
        for name, a in (("scale", scale), ("bias", bias))
    }
    y = layer_norm(x.reshape(*x.shape[:-1], *groups), **grouped, axis=(*range(1, x.ndim - 1), x.ndim), epsilon=epsilon)
    return y.reshape(x.shape)


def reference_group_norm(x, scale=None, bias=None, num_groups=32, epsilon=1e-6):
    grouped = x.reshape(*x.shape[:-1], num_groups, x.shape[-1] // num_groups)
    axes = (*range(1, x.ndim - 1), x.ndim)
    return _affine(reference_layer_norm(grouped, axis=axes, epsilon=epsilon).reshape(x.shape), scale, bias)


# ---------------------------------------------------------------------------------------------------------- batch_norm


def batch_norm(
    x: Float[ArrayLike, "..."],
    running_mean: Float[ArrayLike, "..."],
    running_var: Float[ArrayLike, "..."],
    scale: Float[ArrayLike, "..."] | None = None,
    bias: Float[ArrayLike, "..."] | None = None,
    axis: int | Sequence[int] = -1,
    momentum: float = 0.99,
    epsilon: float = 1e-5,
    activation: Literal["relu", "relu6"] | None = None,
) -> tuple[Float[Array, "..."], Float[Array, "..."], Float[Array, "..."]]:
    """scale (x - m) / sqrt(v + epsilon) + bias with m and v of each feature over the batch, and new running statistics.

    Args:
        x: any shape, floating.
        running_mean: of x's shape along axis, floating.
        running_var: of the same shape, floating.
        scale: of that shape, or None for 1.
        bias: of that shape, or None for 0.
        axis: the axis or axes of features, which are not averaged over.
        momentum: the share of the old running statistics in the new ones.
        epsilon: a number that is added to the variance.
        activation: "relu" or "relu6", of y; its mask is computed again in the backward, not kept. None for none.

    Returns:
        y, of x's shape in the dtype that x, scale and bias promote to, and
        momentum * running + (1 - momentum) * statistics for mean and variance, in the dtypes of the running ones. All
        three are differentiated. The variance is the biased one, as in flax. A batch of one gives bias. An empty batch
        has statistics NaN.

    Raises:
        TypeError: an argument is not floating, or momentum or epsilon is not a number.
        ValueError: an axis is out of range or named twice, a parameter or statistic is not of x's shape along axis,
            epsilon is negative, or the activation is another.

    Example:
        >>> y, mean, var = batch_norm(jnp.array([[1.0], [3.0]]), jnp.zeros(1), jnp.ones(1), momentum=0.5, epsilon=0)
        >>> y.tolist(), mean.tolist(), var.tolist()
        ([[-1.0], [1.0]], [1.0], [1.0])

    Source:
        Ioffe and Szegedy, Batch normalization, 2015. Default values are those of `flax.linen.BatchNorm` in training.
    """
    x = as_floating("x", x)
    features = normalize_axes(axis, x.ndim)
    others = _other_axes(features, x.ndim)
    shape = tuple(x.shape[i] for i in features)

    def checked(name: str, a: ArrayLike) -> jax.Array:
        return _of_shape(name, as_floating(name, a), shape)

    running_mean, running_var = checked("running_mean", running_mean), checked("running_var", running_var)
    of_features = {"scale": scale, "bias": bias}
    parameters = (None if a is None else jnp.expand_dims(checked(name, a), others) for name, a in of_features.items())
    momentum = as_number("momentum", momentum, "finite", math.isfinite)
    epsilon = as_number("epsilon", epsilon, *NOT_NEGATIVE)
    if activation is not None and activation not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)} or None, got {activation!r}")
    y, mean, variance = _standardize(x, *parameters, others, epsilon, True, activation)

    def moved(running: jax.Array, now: jax.Array) -> jax.Array:
        return (momentum * upcast(running) + (1 - momentum) * now.reshape(shape)).astype(running.dtype)

    return y, moved(running_mean, mean), moved(running_var, variance)


def reference_batch_norm(
    x, running_mean, running_var, scale=None, bias=None, axis=-1, momentum=0.99, epsilon=1e-5, activation=None
):
    others = _other_axes(axis, x.ndim)
    mean, variance = jnp.mean(x, others), jnp.var(x, others)
    y = (x - jnp.expand_dims(mean, others)) / jnp.sqrt(jnp.expand_dims(variance, others) + epsilon)
    y = _affine(y, *(None if a is None else jnp.expand_dims(a, others) for a in (scale, bias)))
    after = {None: lambda y: y, "relu": reference_relu, "relu6": reference_relu6}[activation]
    new = (momentum * a + (1 - momentum) * b for a, b in ((running_mean, mean), (running_var, variance)))
    return after(y), *new


# ------------------------------------------------------------------------------------------------------------ rms_norm


def rms_norm(
    x: Shaped[ArrayLike, "..."],
    scale: Shaped[ArrayLike, "..."] | None = None,
    axis: int | Sequence[int] | None = -1,
    epsilon: float = 1e-6,
) -> Shaped[Array, "..."]:
    """scale x / r with r = sqrt(mean(x^2) + epsilon) along axis; without scale its Jacobian is (I - h h^T / n) / r.

    Args:
        x: any shape and dtype; complex numbers are computed by the plain expression.
        scale: any shape that broadcasts to x's, or None for 1.
        axis: the axis or axes whose mean square is 1 before scale; None for all.
        epsilon: a number that is added to the mean square.

    Returns:
        An array of x's shape, in the dtype that the arguments promote to (JAX's default float for integers); half
        precision accumulates in float32. A slice of zeros gives zeros, with cotangents in proportion to
        1 / sqrt(epsilon). NaN makes its slice NaN; an infinity gives NaN, and 0 in the rest of its slice. An empty
        slice is empty.

    Raises:
        TypeError: an argument is not an array of numbers, or epsilon is not a number.
        ValueError: an axis is out of range or named twice, scale does not broadcast to x, or epsilon is negative.

    Example:
        >>> rms_norm(jnp.array([3.0, -3.0, 3.0]), epsilon=0).tolist()
        [1.0, -1.0, 1.0]

    Source:
        Zhang and Sennrich, Root mean square layer normalization, 2019. Names and default values are those of
        `flax.linen.RMSNorm`, and axis is `jax.nn.standardize`'s.
    """
    x = as_inexact("x", x)
    axes, epsilon = normalize_axes(axis, x.ndim), as_number("epsilon", epsilon, *NOT_NEGATIVE)
    return _by_rule(
        lambda x, scale=None: _rms_norm(x, scale, axes, epsilon, True),
        partial(reference_rms_norm, axis=axes, epsilon=epsilon),
        x=x,
        **_broadcasting_to(x, scale=scale),
    )


@partial(custom_vjp, nondiff_argnames=("axes", "epsilon", "of_mean"))
def _rms_norm(x, scale, axes, epsilon, of_mean):
    return fwd_rms_norm(x, scale, axes, epsilon, of_mean)[0]


def fwd_rms_norm(x, scale, axes, epsilon, of_mean):
    average = jnp.mean if of_mean else jnp.sum
    inverse = jax.lax.rsqrt(average(jnp.square(upcast(x)), axes, keepdims=True) + epsilon)
    y = _affine(upcast(x) * inverse, _wide(scale), None).astype(_promoted(x, scale))
    return y, (x, scale, inverse)


# r^2 = sum_k x_k^2 / n + eps, so dr/dx_j = x_j / (n r) = h_j / n with h = x / r. By the quotient rule
#   dh_i/dx_j = (delta_ij - h_i h_j / n) / r
# J is the identity less its projection on h. With y = s h and u = g s:
#   g^T J_x = (u - mean(u h) h) / r,   g^T J_s = g h
# h is computed again from x and 1 / r. As above, the sum of g h along axes where s is constant serves both cotangents.
# Weight norm is the same with n = 1: its means are sums.
def bwd_rms_norm(axes, epsilon, of_mean, res, g):
    x, scale, inverse = res
    n = math.prod(x.shape[i] for i in axes) if of_mean else 1
    g, h = upcast(g), upcast(x) * inverse
    shared, others = _constant_along(axes, x, scale)
    sum_gh = jnp.sum(g * h, shared, keepdims=True)
    u, mean_uh = _affine(g, _wide(scale), None), _weighted_sum(sum_gh, scale, others) / n
    dx = (u - mean_uh * h) * inverse
    return like_primal(dx, x), None if scale is None else like_primal(sum_gh, scale)


_rms_norm.defvjp(fwd_rms_norm, bwd_rms_norm)


def reference_rms_norm(x, scale=None, axis: Any = -1, epsilon=1e-6):
    square = jnp.real(x * jnp.conj(x))
    return _affine(x / jnp.sqrt(jnp.mean(square, axis, keepdims=True) + epsilon), scale, None)


def jacobian_rms_norm(x, scale):
    inverse = jax.lax.rsqrt(jnp.mean(x**2) + 1e-6)
    h = x * inverse
    in_x = DiagonalMinusLowRank(scale * inverse, (scale * inverse * h)[:, None], h[:, None] / x.size)
    return in_x, Diagonal(h)


# --------------------------------------------------------------------------------------------------------- weight_norm


def weight_norm(
    kernel: Shaped[ArrayLike, "..."],
    scale: Shaped[ArrayLike, "..."] | None = None,
    feature_axes: int | Sequence[int] = -1,
    epsilon: float = 1e-12,
) -> Shaped[Array, "..."]:
    """scale w / sqrt(sum(w^2) + epsilon), for the weights w of each feature: `rms_norm` with a sum for the mean.

    Args:
        kernel: any shape and dtype: the weights.
        scale: of kernel's shape along feature_axes: the length of each feature's weights; None for 1.
        feature_axes: the axis or axes of features.
        epsilon: a number that is added to the squared length.

    Returns:
        An array of kernel's shape, in the dtype that the arguments promote to. Weights that are all 0 stay so, with
        cotangents in proportion to 1 / sqrt(epsilon).

    Raises:
        TypeError: an argument is not an array of numbers, or epsilon is not a number.
        ValueError: an axis is out of range or named twice, scale is not of kernel's shape along feature_axes, or
            epsilon is negative.

    Example:
        >>> jnp.round(weight_norm(jnp.array([[3.0], [4.0]]), jnp.array([10.0])), 4).tolist()
        [[6.0], [8.0]]

    Source:
        Salimans and Kingma, Weight normalization, 2016. Names and default values are those of
        `flax.linen.WeightNorm`.
    """
    kernel = as_inexact("kernel", kernel)
    features = normalize_axes(feature_axes, kernel.ndim)
    others = _other_axes(features, kernel.ndim)
    if scale is not None:
        scale = _of_shape("scale", scale, tuple(kernel.shape[i] for i in features))
    epsilon = as_number("epsilon", epsilon, *NOT_NEGATIVE)

    def rule(kernel: jax.Array, scale: jax.Array | None = None) -> jax.Array:
        lengths = None if scale is None else jnp.expand_dims(scale, others)
        return _rms_norm(kernel, lengths, others, epsilon, False)

    incumbent = partial(reference_weight_norm, feature_axes=features, epsilon=epsilon)
    return _by_rule(rule, incumbent, kernel=kernel, scale=scale)


def reference_weight_norm(kernel, scale=None, feature_axes: Any = -1, epsilon=1e-12):
    others = _other_axes(feature_axes, kernel.ndim)
    square = jnp.sum(jnp.real(kernel * jnp.conj(kernel)), others, keepdims=True)
    y = kernel / jnp.sqrt(square + epsilon)
    return y if scale is None else y * jnp.expand_dims(scale, others)


# ----------------------------------------------------------------------------------------------------------- arguments


def _affine(h: jax.Array, scale: jax.Array | None, bias: jax.Array | None) -> jax.Array:
    y = h if scale is None else h * prepend_axes(scale, h.ndim)
    return y if bias is None else y + prepend_axes(bias, h.ndim)


def _constant_along(axes: tuple[int, ...], x: jax.Array, *parameters: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the axes along which all parameters, which broadcast to x, are constant, and the other axes."""
    shapes = [(1,) * (x.ndim - a.ndim) + a.shape for a in parameters if a is not None]
    constant = tuple(i for i in axes if all(shape[i] == 1 for shape in shapes))
    return constant, tuple(i for i in axes if i not in constant)


def _weighted_sum(a: jax.Array, weights: jax.Array | None, axes: tuple[int, ...]) -> jax.Array:
    """Return sum(weights a) along axes, kept with size 1.

    Where weights vary along these axes alone and they are the last, it is a product of a matrix and a vector: XLA:CPU
    would store weights a before it adds them up, which takes twice as long.
    """
    if weights is None:
        return jnp.sum(a, axes, keepdims=True)
    weights, first = prepend_axes(upcast(weights), a.ndim), a.ndim - len(axes)
    if not axes or weights.shape != (1,) * first + a.shape[first:] or axes != tuple(range(first, a.ndim)):
        return jnp.sum(weights * a, axes, keepdims=True)
    product = partial(jnp.tensordot, axes=len(axes), precision=jax.lax.Precision.HIGHEST)
    form = jax.eval_shape(lambda a: jnp.sum(a, axes), a)
    return jnp.expand_dims(auto_sharded(product, form)(a, weights.reshape(a.shape[first:])), axes)


def _wide(a: jax.Array | None) -> jax.Array | None:
    return None if a is None else upcast(a)


def _promoted(*arrays: jax.Array | None) -> Any:
    return jnp.result_type(*(a for a in arrays if a is not None))


def _by_rule(rule: Callable[..., jax.Array], incumbent: Callable[..., jax.Array], **arrays: Any) -> jax.Array:
    """Return `by_rule` of the arrays that are not None, which both functions take by name."""
    given = {name: a for name, a in arrays.items() if a is not None}

    def named(f: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
        return lambda *arrays: f(**dict(zip(given, arrays, strict=True)))

    return by_rule(named(rule), named(incumbent), **given)


def _broadcasting_to(x: jax.Array, **parameters: Any) -> dict[str, Any]:
    """Return the parameters as arrays, None as None, if each broadcasts to x's shape."""
    arrays = {name: None if a is None else as_array(name, a) for name, a in parameters.items()}
    for name, a in arrays.items():
        if a is None:
            continue
        try:
            fits = jnp.broadcast_shapes(a.shape, x.shape) == x.shape
        except ValueError:
            fits = False
        if not fits:
            raise ValueError(f"{name} must broadcast to the shape of x, got {name} {a.shape} and x {x.shape}")
    return arrays


def _other_axes(axis: int | Sequence[int], ndim: int) -> tuple[int, ...]:
    return tuple(sorted({*range(ndim)} - {*normalize_axes(axis, ndim)}))


def _of_shape(name: str, a: Any, shape: tuple[int, ...]) -> jax.Array:
    array = as_array(name, a)
    if array.shape != shape:
        raise ValueError(f"{name} must have shape {shape}, a number for each feature, got {array.shape}")
    return array


# ------------------------------------------------------------------------------------------------------------- records


def flax_layer_norm(x, scale=None, bias=None, axis=-1, epsilon=1e-6):
    """What `flax.linen.LayerNorm` computes: its variance is the mean square less the square of the mean."""
    mean, square = jnp.mean(x, axis, keepdims=True), jnp.mean(jnp.square(x), axis, keepdims=True)
    factor = jax.lax.rsqrt(jnp.maximum(0.0, square - jnp.square(mean)) + epsilon)
    y = (x - mean) * (factor if scale is None else factor * prepend_axes(scale, x.ndim))
    return y if bias is None else y + prepend_axes(bias, x.ndim)


def flax_group_norm(x, scale=None, bias=None, num_groups=32, epsilon=1e-6):
    """What `flax.linen.GroupNorm` computes."""
    grouped = x.reshape(*x.shape[:-1], num_groups, x.shape[-1] // num_groups)
    axes, size = (*range(1, x.ndim - 1), x.ndim), grouped.shape[-1]
    mean, square = (jnp.repeat(jnp.mean(a, axes, keepdims=True)[..., 0], size, -1) for a in (grouped, grouped**2))
    factor = jax.lax.rsqrt(jnp.maximum(0.0, square - jnp.square(mean)) + epsilon)
    y = (x - mean) * (factor if scale is None else factor * prepend_axes(scale, x.ndim))
    return y if bias is None else y + prepend_axes(bias, x.ndim)


def flax_batch_norm(
    x, running_mean, running_var, scale=None, bias=None, axis=-1, momentum=0.99, epsilon=1e-5, activation=None
):
    """What `flax.linen.BatchNorm` computes in training, for features last, and jax.nn's activation after it."""
    axes = tuple(range(x.ndim - 1))
    mean, square = jnp.mean(x, axes), jnp.mean(jnp.square(x), axes)
    var = jnp.maximum(0.0, square - jnp.square(mean))
    factor = jax.lax.rsqrt(var + epsilon)
    y = (x - prepend_axes(mean, x.ndim)) * prepend_axes(factor if scale is None else factor * scale, x.ndim)
    new = (momentum * a + (1 - momentum) * b for a, b in ((running_mean, mean), (running_var, var)))
    y = y if bias is None else y + prepend_axes(bias, x.ndim)
    return getattr(jax.nn, activation)(y) if activation else y, *new


def flax_rms_norm(x, scale=None, axis=-1, epsilon=1e-6):
    """What `flax.linen.RMSNorm` computes."""
    factor = jax.lax.rsqrt(jnp.mean(jnp.square(x), axis, keepdims=True) + epsilon)
    return x * (factor if scale is None else factor * prepend_axes(scale, x.ndim))


def flax_weight_norm(kernel, scale=None, feature_axes=-1, epsilon=1e-12):
    """What `flax.linen.WeightNorm` computes, for features last."""
    y = kernel * jax.lax.rsqrt(jnp.sum(jnp.square(kernel), tuple(range(kernel.ndim - 1)), keepdims=True) + epsilon)
    return y if scale is None else y * prepend_axes(scale, kernel.ndim)


def _positive(rng, shape, dims):
    return np.exp(rng.standard_normal(shape))


_ZEROS = Edge("a row of zeros beside another", ([[0.0, 0.0], [3.0, -4.0]],))
_ONE = Edge("rows of one element", ([[2.0], [-3.0]],))
_EMPTY = Edge("empty batch", (np.zeros((0, 3)),))

RULES = (
    Rule(
        fn=layer_norm,
        reference=reference_layer_norm,
        baselines={"flax.linen.LayerNorm": flax_layer_norm},
        cases=(
            Case(("b n", "n", "n"), {"b": 2, "n": 7}),
            Case(("b n c", "b 1 c"), {"b": 2, "n": 3, "c": 5}, {"axis": (0, 2), "epsilon": 1e-5}),
            Case(("b n",), {"b": 3, "n": 5}, {"axis": None}),
            Case(("n", None, ""), {"n": 11}),
        ),
        edges=(
            Edge("equal numbers", ([[2.0, 2.0, 2.0], [1.0, 2.0, 3.0]],)),
            Edge("a mean of 10,000 deviations", ([10001.0, 9999.0, 10000.0],)),
            _ZEROS,
            _ONE,
            _EMPTY,
            Edge("empty rows", (np.zeros((2, 0)),)),
        ),
        bench=(Case(("b n", "n", "n"), {"b": 4096, "n": 512}),),
        residual_bytes=lambda b, n: 4 * (b * n + n + 2 * b),
        jacobian=jacobian_layer_norm,
        reason="keeps x and two numbers a row; the variance keeps its digits where the mean is large",
        gains=(Gain("kept bytes", 0.34), Gain("time", 0.95), Gain("error", 1e-5, "a mean of 10,000 deviations")),
        source="Ba, Kiros and Hinton, 2016",
    ),
    Rule(
        fn=group_norm,
        reference=reference_group_norm,
        baselines={"flax.linen.GroupNorm": flax_group_norm},
        cases=(
            Case(("b h w 6", "6", "6"), {"b": 2, "h": 3, "w": 5}, {"num_groups": 2}),
            Case(("b 15",), {"b": 2}, {"num_groups": 5, "epsilon": 1e-5}),
            Case(("b n 3", "3"), {"b": 2, "n": 5}, {"num_groups": 1}),
        ),
        edges=(
            Edge("groups of one element", ([[2.0, -3.0]],), {"num_groups": 2}),
            Edge("a group of zeros", ([[0.0, 0.0, 3.0, -4.0]],), {"num_groups": 2}),
            _EMPTY._replace(kwargs={"num_groups": 3}),
        ),
        bench=(Case(("b h w 64", "64", "64"), {"b": 8, "h": 56, "w": 56}, {"num_groups": 32}),),
        residual_bytes=lambda b, h, w: 4 * (b * h * w * 6 + 6 + 2 * b * 2),
        reason="keeps x and two numbers a group",
        gains=(Gain("kept bytes", 0.5),),
        source="Wu and He, 2018",
        whole_array=True,
    ),
    Rule(
        fn=batch_norm,
        reference=reference_batch_norm,
        baselines={"flax.linen.BatchNorm": flax_batch_norm},
        cases=(
            Case(("b n c", "c", Input("c", _positive), "c", "c"), {"b": 3, "n": 5, "c": 7}),
            Case(("b c n", "c", Input("c", _positive)), {"b": 3, "n": 5, "c": 2}, {"axis": 1, "momentum": 0.9}),
            Case(("b c d", "c d", Input("c d", _positive), "c d"), {"b": 3, "c": 2, "d": 5}, {"axis": (-2, -1)}),
            Case(("b c", "c", Input("c", _positive), "c", "c"), {"b": 5, "c": 3}, {"activation": "relu6"}),
            Case(("b c", "c", Input("c", _positive)), {"b": 5, "c": 3}, {"activation": "relu"}),
        ),
        edges=(
            Edge("equal numbers", ([[2.0, 1.0], [2.0, 3.0]], [0.0, 0.0], [1.0, 1.0])),
            Edge("a batch of one", ([[2.0, -3.0]], [0.0, 0.0], [1.0, 1.0])),
        ),
        bench=(Case(("b h w c", "c", Input("c", _positive), "c", "c"), {"b": 8, "h": 56, "w": 56, "c": 64}),),
        residual_bytes=lambda b, n, c: 4 * (b * n * c + 3 * c),
        reason="keeps x and three numbers a feature; the variance keeps its digits where the mean is large",
        gains=(
            Gain("kept bytes", 0.5),
            Gain("error", 1e-5, Edge("a mean of 10,000 deviations", ([[10001.0], [9999.0]], [0.0], [1.0]))),
        ),
        source="Ioffe and Szegedy, 2015",
        whole_array=True,
    ),
    Rule(
        fn=rms_norm,
        reference=reference_rms_norm,
        baselines={"flax.linen.RMSNorm": flax_rms_norm},
        cases=(
            Case(("b n", "n"), {"b": 2, "n": 7}),
            Case(("b n c", "b 1 c"), {"b": 2, "n": 3, "c": 5}, {"axis": (0, 2), "epsilon": 1e-5}),
            Case(("b n",), {"b": 3, "n": 5}, {"axis": None}),
            Case(("n",), {"n": 11}),
        ),
        edges=(
            Edge("as small as epsilon", ([1e-3, -1e-3, 2e-3],)),
            _ZEROS,
            _ONE,
            _EMPTY,
            Edge("empty rows", (np.zeros((2, 0)),)),
        ),
        bench=(Case(("b n", "n"), {"b": 4096, "n": 512}),),
        residual_bytes=lambda b, n: 4 * (b * n + n + b),
        jacobian=jacobian_rms_norm,
        reason="keeps x and a number a row",
        gains=(Gain("kept bytes", 0.34),),
        source="Zhang and Sennrich, 2019",
    ),
    Rule(
        fn=weight_norm,
        reference=reference_weight_norm,
        baselines={"flax.linen.WeightNorm": flax_weight_norm},
        cases=(
            Case(("n m", "m"), {"n": 5, "m": 3}),
            Case(("m n c",), {"m": 2, "n": 3, "c": 5}, {"feature_axes": (0, 2)}),
            Case(("n m", "n"), {"n": 5, "m": 3}, {"feature_axes": 0, "epsilon": 1e-6}),
        ),
        edges=(Edge("weights of zero", ([[0.0, 3.0], [0.0, 4.0]], [1.0, 2.0])),),
        bench=(Case(("n m", "m"), {"n": 1024, "m": 1024}),),
        residual_bytes=lambda n, m: 4 * (n * m + 2 * m),
        reason="keeps the weights and two numbers a feature",
        gains=(Gain("kept bytes", 0.34), Gain("scratch bytes", 0.34)),
        source="Salimans and Kingma, 2016",
        whole_array=True,
    ),
)
