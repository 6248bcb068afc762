"""The one precision policy: compute in float32 or wider, answer in the caller's dtype."""

import operator
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from vjplib.compat import as_varying, automatic, weakly_typed


def as_array(name: str, x: ArrayLike) -> jax.Array:
    """Return x as an array: numbers, lists and tuples of numbers become one.

    Args:
        name: the argument's name, for the message.
        x: the argument.

    Raises:
        TypeError: x is not an array of numbers.

    Example:
        >>> as_array("x", "text")
        Traceback (most recent call last):
        TypeError: x must be an array of numbers, got str 'text'
    """
    if isinstance(x, jax.Array):
        return x
    try:
        return jnp.asarray(x)
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be an array of numbers, got {type(x).__name__} {x!r:.60}") from None


def as_inexact(name: str, x: ArrayLike) -> jax.Array:
    """Return x as an array of a floating or complex dtype: integers and booleans become JAX's default float.

    Args:
        name: the argument's name, for the message.
        x: the argument.

    Raises:
        TypeError: x is not an array of numbers.

    Example:
        >>> as_inexact("x", [1, 2]).dtype
        dtype('float32')
    """
    array = as_array(name, x)
    if jnp.issubdtype(array.dtype, jnp.inexact):
        return array
    return array.astype(jax.eval_shape(jnp.exp, array).dtype)  # under x64 it depends on the integers' size


def floating(name: str, x: ArrayLike) -> jax.Array:
    """Return x as an array of a real floating dtype.

    Args:
        name: the argument's name, for the message.
        x: the argument.

    Raises:
        TypeError: x is not an array of a real floating dtype.

    Example:
        >>> floating("x", 1)
        Traceback (most recent call last):
        TypeError: x must have a floating dtype, got int32 of shape ()
    """
    array = as_array(name, x)
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise TypeError(f"{name} must have a floating dtype, got {array.dtype} of shape {array.shape}")
    return array


def by_rule(rule: Callable[..., jax.Array], incumbent: Callable[..., jax.Array], **arguments: ArrayLike) -> jax.Array:
    """Return rule(*arguments) where the result is real and floating, incumbent(*arguments) where it is not.

    Integers and booleans are converted to the result's dtype before the rule, and Python scalars lose their weak type
    there: the rule sees floating arrays alone, and JAX itself differentiates the conversions. An integer result has no
    derivative and a complex one another derivative than the rule's: both are the incumbent's.

    Args:
        rule: a function of arrays, a custom_vjp or one that calls it.
        incumbent: the function that users would otherwise call; the result has its dtype and weak type.
        **arguments: the arrays by name, in the order in which both functions take them.

    Raises:
        TypeError: an argument is not an array of numbers.

    Example:
        >>> by_rule(lambda x, y: x * y, jnp.multiply, x=jnp.float32(2), y=True)
        Array(2., dtype=float32)
    """
    arrays = [as_array(name, x) for name, x in arguments.items()]
    is_floating = [jnp.issubdtype(a.dtype, jnp.floating) for a in arrays]
    if all(is_floating) and not any(a.weak_type for a in arrays):
        return rule(*arrays)
    dtype, weak = jnp.result_type(*arrays), False
    if not any(floats and not a.weak_type for a, floats in zip(arrays, is_floating, strict=True)):
        result = jax.eval_shape(incumbent, *arrays)
        dtype, weak = result.dtype, result.weak_type
    if not jnp.issubdtype(dtype, jnp.floating):
        return incumbent(*arrays)
    y = rule(
        *(a if floats and not a.weak_type else a.astype(dtype) for a, floats in zip(arrays, is_floating, strict=True))
    )
    return weakly_typed(y) if weak else y


def wide(x: jax.Array) -> jax.Array:
    """Returns x in the dtype that rules compute in: float32, or x's own where that is wider."""
    return x.astype(wide_dtype(x.dtype))


def wide_dtype(dtype: jnp.dtype) -> jnp.dtype:
    """Returns float32, or dtype where that is wider; 8-bit floats, which JAX does not promote by itself, included.

    Example:
        >>> wide_dtype(jnp.dtype("bfloat16")), wide_dtype(jnp.dtype("float64"))
        (dtype('float32'), dtype('float64'))
    """
    return dtype if jnp.finfo(dtype).bits >= 32 else jnp.dtype(jnp.float32)


def along_last(a: jax.Array, ndim: int) -> jax.Array:
    """Returns a with as many leading axes of size 1 as give it a rank: JAX may be told to add none by itself.

    Example:
        >>> along_last(jnp.ones(3), 2).shape
        (1, 3)
    """
    return jnp.expand_dims(a, range(ndim - a.ndim))


def axes_of(axis: int | Sequence[int] | None, ndim: int) -> tuple[int, ...]:
    """Returns the axes named by axis, as sorted non-negative numbers.

    Args:
        axis: one axis, several, or None for all; negative ones count from the end.
        ndim: the rank they index.

    Raises:
        TypeError: an axis is not an integer.
        ValueError: an axis is out of range or named twice.

    Example:
        >>> axes_of((-1, 0), 3)
        (0, 2)
    """
    given: Any = range(ndim) if axis is None else (axis,) if np.ndim(axis) == 0 else axis
    try:
        indices = [operator.index(a) for a in given]
    except TypeError:
        raise TypeError(f"axis must be an integer, a sequence of integers or None, got {axis!r}") from None
    if not all(-ndim <= index < ndim for index in indices):
        raise ValueError(f"axis must lie in [{-ndim}, {ndim}) for an array of rank {ndim}, got {axis!r}")
    axes = [index % ndim for index in indices]
    if len(set(axes)) < len(axes):
        raise ValueError(f"axis must not name an axis twice, got {axis!r} for an array of rank {ndim}")
    return tuple(sorted(axes))


def sum_to(g: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Returns g summed over the axes along which an array of this shape was broadcast.

    Broadcasting copies; the transpose of a copy is a sum. So the cotangent of a broadcast argument is the sum of the
    cotangents of its copies.

    Args:
        g: a cotangent of the broadcast shape.
        shape: the shape before broadcasting.

    Returns:
        An array of that shape and of g's dtype.

    Example:
        >>> sum_to(jnp.ones((2, 3)), (3,)).tolist()
        [2.0, 2.0, 2.0]
    """
    if g.shape == shape:
        return g
    extra = g.ndim - len(shape)
    stretched = tuple(range(extra)) + tuple(extra + i for i, n in enumerate(shape) if n == 1 != g.shape[extra + i])
    return jnp.sum(g, axis=stretched, dtype=g.dtype, keepdims=True).reshape(shape) if stretched else g.reshape(shape)


def broadcast_shapes(**arrays: jax.Array) -> tuple[int, ...]:
    """Returns the shape that the arrays broadcast to, or refuses them by name.

    Raises:
        ValueError: the shapes do not broadcast together.

    Example:
        >>> broadcast_shapes(x=jnp.ones((2, 3)), y=jnp.ones((4,)))
        Traceback (most recent call last):
        ValueError: x and y must broadcast together, got shapes (2, 3) and (4,)
    """
    try:
        return jnp.broadcast_shapes(*(a.shape for a in arrays.values()))
    except ValueError:
        shapes = " and ".join(str(a.shape) for a in arrays.values())
        raise ValueError(f"{' and '.join(arrays)} must broadcast together, got shapes {shapes}") from None


def cotangent_of(primal: jax.Array, f: Callable[..., jax.Array], *arrays: jax.Array) -> jax.Array:
    """Returns f(*arrays), the cotangent of an argument, made to be where that is: summed over all that share it.

    Under a mesh with explicit axes it gets the argument's sharding; in `jax.shard_map` it is summed over the axes along
    which it varies and the argument does not. Without devices to share the work it is f(*arrays).

    Args:
        primal: the argument, or whatever is sharded as it is.
        f: a function of the arrays.
        *arrays: what the cotangent is made of.

    Example:
        >>> cotangent_of(jnp.ones(3), lambda g, x: g * x, jnp.ones(3), jnp.arange(3.0)).tolist()
        [0.0, 1.0, 2.0]
    """
    return as_varying(automatic(f, jax.typeof(primal))(*arrays), primal)


def form(x: jax.Array) -> jax.Array:
    """Returns an array without elements that remembers x's shape, dtype and devices, for a residual."""
    return jax.lax.slice_in_dim(jnp.expand_dims(x, 0), 0, 0)


def as_form(g: jax.Array, kept: jax.Array) -> jax.Array:
    """Returns g as the cotangent of the argument whose `form` was kept: its shape and dtype, broadcasting summed.

    Example:
        >>> as_form(jnp.ones((2, 3)), form(jnp.ones((3,), jnp.bfloat16)))
        Array([2, 2, 2], dtype=bfloat16)
    """
    return as_varying(sum_to(g, kept.shape[1:]), kept).astype(kept.dtype)


def with_mask(where: ArrayLike | None, **arguments: ArrayLike) -> tuple[jax.Array, jax.Array | None]:
    """Return an array and a mask over it, broadcast together; the array itself and None where there is no mask.

    Args:
        where: booleans, or None.
        **arguments: one array, by the name that its argument has.

    Raises:
        TypeError: the array is not one of numbers, or where not boolean.
        ValueError: where and the array do not broadcast together.

    Example:
        >>> with_mask(jnp.array([True, False]), x=jnp.ones((3, 3)))
        Traceback (most recent call last):
        ValueError: where must broadcast with x, got where (2,) and shape (3, 3)
    """
    ((name, given),) = arguments.items()
    x = as_array(name, given)
    if where is None:
        return x, None
    mask = as_array("where", where)
    if mask.dtype != jnp.bool_:
        raise TypeError(f"where must be boolean, got {mask.dtype} of shape {mask.shape}")
    try:
        shape = jnp.broadcast_shapes(mask.shape, x.shape)
    except ValueError:
        raise ValueError(f"where must broadcast with {name}, got where {mask.shape} and shape {x.shape}") from None
    return jnp.broadcast_to(x, shape), jnp.broadcast_to(mask, shape)


def shifted_exponentials(
    x: jax.Array, axes: tuple[int, ...], kept: jax.Array | None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns exp(x - shift), its sum along axes and the shift, which is the maximum along axes.

    No exponential overflows, and the largest is 1, so that no sum of them is 0. The shift cancels in whatever is made
    of all three, and is not differentiated.

    Args:
        x: the array.
        axes: the axes to sum along; they stay, with size 1.
        kept: a mask of x's shape, or None. What is masked counts 0; a slice wholly masked has shift 0 and sum 1.

    Example:
        >>> e, total, shift = shifted_exponentials(jnp.array([1000.0, 1000.0]), (0,), None)
        >>> e.tolist(), total.item(), shift.item()
        ([1.0, 1.0], 2.0, 1000.0)
    """
    shift = jax.lax.stop_gradient(jnp.max(x, axes, keepdims=True, initial=-jnp.inf, where=kept))
    if kept is None:
        e = jnp.exp(x - shift)
        return e, jnp.sum(e, axes, keepdims=True), shift
    empty = ~jnp.any(kept, axes, keepdims=True)
    shift = jnp.where(empty, 0, shift)
    e = jnp.where(kept, jnp.exp(jnp.where(kept, x - shift, 0)), 0)
    return e, jnp.where(empty, 1, jnp.sum(e, axes, keepdims=True)), shift
