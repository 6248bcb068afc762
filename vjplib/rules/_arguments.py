"""Convert arguments to arrays and tuples; raise TypeError or ValueError by the argument's name if one does not fit."""

import operator
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.export import is_symbolic_dim
from jax.typing import ArrayLike

from vjplib.compat import weakly_typed

PADDINGS = ("SAME", "SAME_LOWER", "VALID")

# -------------------------------------------------------------------------------------------------------------- arrays


def as_array(name: str, x: ArrayLike) -> jax.Array:
    """Return x as an array; numbers, lists and tuples of numbers are converted.

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

    Example:
        >>> as_inexact("x", [1, 2]).dtype
        dtype('float32')
    """
    array = as_array(name, x)
    if jnp.issubdtype(array.dtype, jnp.inexact):
        return array
    return array.astype(jax.eval_shape(jnp.exp, array).dtype)  # under x64 it depends on the integers' size


def as_floating(name: str, x: ArrayLike) -> jax.Array:
    """Return x as an array of a real floating dtype.

    Example:
        >>> as_floating("x", 1)
        Traceback (most recent call last):
        TypeError: x must have a floating dtype, got int32 of shape ()
    """
    array = as_array(name, x)
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise TypeError(f"{name} must have a floating dtype, got {array.dtype} of shape {array.shape}")
    return array


def by_rule(rule: Callable[..., jax.Array], incumbent: Callable[..., jax.Array], **arguments: ArrayLike) -> jax.Array:
    """Return rule(*arguments) if the result is real and floating, else incumbent(*arguments).

    The rule gets floating arrays only: integers, booleans and weakly typed scalars are first converted to the result's
    dtype, and JAX differentiates the conversions. Integer results have no derivative, and the derivative of complex
    ones is not the rule's, so the incumbent computes both.

    Args:
        rule: a function of arrays that is a custom_vjp or calls one.
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


def normalize_axes(axis: int | Sequence[int] | None, ndim: int) -> tuple[int, ...]:
    """Return the axes that the argument `axis` names (None for all), sorted and non-negative.

    Example:
        >>> normalize_axes((-1, 0), 3)
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


def broadcast_shapes(**arrays: jax.Array) -> tuple[int, ...]:
    """Return the shape that the arrays broadcast to.

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


def broadcast_mask(where: ArrayLike | None, **arguments: ArrayLike) -> tuple[jax.Array, jax.Array | None]:
    """Return an array and a mask, broadcast together; without a mask the array itself and None.

    Args:
        where: booleans, or None.
        **arguments: the array, by the name of its argument.

    Raises:
        TypeError: the array is not an array of numbers, or where is not boolean.
        ValueError: where and the array do not broadcast together.

    Example:
        >>> broadcast_mask(jnp.array([True, False]), x=jnp.ones((3, 3)))
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


# ----------------------------------------- convolution and pooling: checks that jax.lax makes unclearly, or not at all


def convolution_arguments(**given: Any) -> dict[str, Any]:
    """Return the arguments of one of `jax.lax`'s convolutions with sequences as tuples; lax checks the rest.

    Args:
        **given: all arguments by name: lhs (an array or a `jax.ShapeDtypeStruct`), rhs if the function has one, ...

    Raises:
        TypeError: an argument has a wrong type.
        ValueError: an argument does not fit the rank of lhs, or is not positive.

    Example:
        >>> convolution_arguments(lhs=np.ones((1, 1, 5)), window_strides=[1], padding="SAME", rhs_dilation=(0,))
        Traceback (most recent call last):
        ValueError: rhs_dilation must have length 1 and positive entries, got (0,)
    """
    lhs = given["lhs"]
    if lhs.ndim < 2:
        raise ValueError(f"lhs must have at least 2 dimensions, batch and channels, got shape {lhs.shape}")
    if given.get("rhs", lhs).ndim != lhs.ndim:
        return given  # lax raises for these ranks
    for name, value in given.items():
        if name in ("filter_shape", "window_strides", "strides") or (name.endswith("_dilation") and value is not None):
            given[name] = positive(name, value, lhs.ndim - 2)
        elif name.endswith("_group_count"):
            given[name] = _integer(name, value)
        elif name == "padding":
            given[name] = pads(value, lhs.ndim - 2)
    dimension_order(given.get("dimension_numbers"), lhs.ndim)
    element_type(given.get("preferred_element_type"))
    return given


def reduce_window_arguments(
    ndim: int, sizes: Any, strides: Any, padding: Any, base_dilation: Any, window_dilation: Any
) -> Any:
    """Return the arguments of `lax.reduce_window` after its reduction, as tuples; None becomes ones.

    Example:
        >>> reduce_window_arguments(1, [3], None, "same", None, None)
        ((3,), (1,), 'same', (1,), (1,))
    """
    ones = (1,) * ndim
    return (
        positive("window_dimensions", sizes, ndim),
        positive("window_strides", ones if strides is None else strides, ndim),
        pads(padding, ndim),
        positive("base_dilation", ones if base_dilation is None else base_dilation, ndim),
        positive("window_dilation", ones if window_dilation is None else window_dilation, ndim),
    )


def shaped(name: str, x: Any) -> Any:
    """Return x if it has a shape and a dtype, such as a `jax.ShapeDtypeStruct`, else x as an array."""
    return x if hasattr(x, "shape") and hasattr(x, "dtype") else as_array(name, x)


def integers(name: str, given: Any) -> tuple[Any, ...]:
    """Return a sequence of integers as a tuple; symbolic dimensions of `jax.export` count as integers.

    Example:
        >>> integers("window_strides", 2)
        Traceback (most recent call last):
        TypeError: window_strides must be a sequence of integers, got 2
    """
    try:
        return tuple(map(_index, given))
    except TypeError:
        raise TypeError(f"{name} must be a sequence of integers, got {given!r}") from None


def positive(name: str, given: Any, count: int) -> tuple[Any, ...]:
    """Return a sequence of `count` positive integers as a tuple; symbolic dimensions count as positive.

    Example:
        >>> positive("window_strides", (0,), 1)
        Traceback (most recent call last):
        ValueError: window_strides must have length 1 and positive entries, got (0,)
    """
    numbers = integers(name, given)
    if len(numbers) != count or any(n < 1 for n in numbers if not is_symbolic_dim(n)):
        raise ValueError(f"{name} must have length {count} and positive entries, got {given!r}")
    return numbers


def pads(given: Any, count: int) -> str | tuple[tuple[Any, Any], ...]:
    """Return the argument `padding`: one of lax's strings, in upper or lower case, or a tuple of pairs.

    Example:
        >>> pads("FULL", 2)
        Traceback (most recent call last):
        ValueError: padding must be SAME, SAME_LOWER, VALID or 2 x (low, high), integers, got 'FULL'
    """
    message = f"padding must be {', '.join(PADDINGS)} or {count} x (low, high), integers, got {given!r}"
    if isinstance(given, str):
        if given.upper() not in PADDINGS:
            raise ValueError(message)
        return given
    try:
        pairs = tuple((_index(low), _index(high)) for low, high in given)
    except TypeError:
        raise TypeError(message) from None
    except ValueError:  # not a pair
        raise ValueError(message) from None
    if len(pairs) != count:
        raise ValueError(message)
    return pairs


def dimension_order(given: Any, ndim: int) -> None:
    """Raise if a `lax.ConvDimensionNumbers` does not permute the axes of rank `ndim`; lax checks the other forms.

    Example:
        >>> dimension_order(lax.ConvDimensionNumbers((0, 1, 2), (0, 1, 2), (0, 1, 1)), 3)
        Traceback (most recent call last):
        ValueError: dimension_numbers.out_spec must have each axis of 0 to 2 once, got (0, 1, 1)
    """
    if not isinstance(given, lax.ConvDimensionNumbers):
        return
    for name, spec in zip(given._fields, given, strict=True):
        if sorted(integers(f"dimension_numbers.{name}", spec)) != list(range(ndim)):
            raise ValueError(f"dimension_numbers.{name} must have each axis of 0 to {ndim - 1} once, got {spec!r}")


def element_type(given: Any) -> None:
    """Raise if the argument `preferred_element_type` is neither None nor a dtype.

    Example:
        >>> element_type("float99")
        Traceback (most recent call last):
        TypeError: preferred_element_type must be a dtype or None, got 'float99'
    """
    try:
        np.dtype(given)
    except TypeError:
        raise TypeError(f"preferred_element_type must be a dtype or None, got {given!r}") from None


def _index(n: Any) -> Any:
    return n if is_symbolic_dim(n) else operator.index(n)


def _integer(name: str, given: Any) -> Any:
    try:
        return _index(given)
    except TypeError:
        raise TypeError(f"{name} must be an integer, got {given!r}") from None
