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
    """Return x as an array; numbers, lists and tuples of numbers are converted."""
    if isinstance(x, jax.Array):
        return x
    try:
        return jnp.asarray(x)
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be an array of numbers, got {type(x).__name__} {x!r:.60}") from None


def as_inexact(name: str, x: ArrayLike) -> jax.Array:
    """Return x as an array of a floating or complex dtype: integers and booleans become JAX's default float."""
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


def as_number(name: str, given: Any, wanted: str, holds: Callable[[float], bool]) -> float:
    """Return an option as a float: it must be a number, known when traced, for which `holds` is true, as `wanted` says.

    Example:
        >>> as_number("rate", 2, "in [0, 1]", lambda n: 0 <= n <= 1)
        Traceback (most recent call last):
        ValueError: rate must be in [0, 1], got 2
    """
    try:
        number = float("text" if isinstance(given, (bool, str)) else given)
    except (TypeError, ValueError):  # JAX's error for a traced array is a TypeError
        raise TypeError(f"{name} must be a number, known when traced, got {given!r:.60}") from None
    if not holds(number):
        raise ValueError(f"{name} must be {wanted}, got {given!r}")
    return number


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
    fits = [jnp.issubdtype(a.dtype, jnp.floating) and not a.weak_type for a in arrays]
    if all(fits):
        return rule(*arrays)
    dtype, weak = jnp.result_type(*arrays), False
    if not any(fits):
        result = jax.eval_shape(incumbent, *arrays)
        dtype, weak = result.dtype, result.weak_type
    if not jnp.issubdtype(dtype, jnp.floating):
        return incumbent(*arrays)
    y = rule(*(a if fit else a.astype(dtype) for a, fit in zip(arrays, fits, strict=True)))
    return weakly_typed(y) if weak else y


def normalize_axes(axis: int | Sequence[int] | None, ndim: int) -> tuple[int, ...]:
    """Return the axes that the argument `axis` names (None for all), sorted and non-negative."""
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
    """Return the shape that the arrays broadcast to."""
    try:
        return jnp.broadcast_shapes(*(a.shape for a in arrays.values()))
    except ValueError:
        shapes = " and ".join(str(a.shape) for a in arrays.values())
        raise ValueError(f"{' and '.join(arrays)} must broadcast together, got shapes {shapes}") from None


def broadcast_mask(where: ArrayLike | None, **arguments: ArrayLike) -> tuple[jax.Array, jax.Array | None]:
    """Return an array, given by name, and a mask, broadcast together; without a mask the array itself and None."""
    ((name, given),) = arguments.items()
    x = as_array(name, given)
    if where is None:
        return x, None
    mask = as_array("where", where)
    if mask.dtype != jnp.bool_:
        raise TypeError(f"where must be boolean, got {mask.dtype} of shape {mask.shape}")
    shape = broadcast_shapes(where=mask, **{name: x})
    return jnp.broadcast_to(x, shape), jnp.broadcast_to(mask, shape)


# ----------------------------------------- convolution and pooling: checks that jax.lax makes unclearly, or not at all


def convolution_arguments(**given: Any) -> dict[str, Any]:
    """Return all arguments of one of `jax.lax`'s convolutions, with sequences as tuples; lax checks the rest.

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
            try:
                given[name] = _index(value)
            except TypeError:
                raise TypeError(f"{name} must be an integer, got {value!r}") from None
        elif name == "padding":
            given[name] = pads(value, lhs.ndim - 2)
        elif isinstance(value, lax.ConvDimensionNumbers):  # lax checks the other forms
            for field, spec in zip(value._fields, value, strict=True):
                if sorted(integers(f"{name}.{field}", spec)) != list(range(lhs.ndim)):
                    raise ValueError(f"{name}.{field} must have each axis of 0 to {lhs.ndim - 1} once, got {spec!r}")
        elif name == "preferred_element_type":
            try:
                np.dtype(value)
            except TypeError:
                raise TypeError(f"{name} must be a dtype or None, got {value!r}") from None
    return given


def shaped(name: str, x: Any) -> Any:
    """Return x if it has a shape and a dtype, such as a `jax.ShapeDtypeStruct`, else x as an array."""
    return x if hasattr(x, "shape") and hasattr(x, "dtype") else as_array(name, x)


def integers(name: str, given: Any) -> tuple[Any, ...]:
    """Return a sequence of integers as a tuple; symbolic dimensions of `jax.export` count as integers."""
    try:
        return tuple(map(_index, given))
    except TypeError:
        raise TypeError(f"{name} must be a sequence of integers, got {given!r}") from None


def positive(name: str, given: Any, count: int) -> tuple[Any, ...]:
    """Return a sequence of `count` positive integers as a tuple; symbolic dimensions count as positive."""
    numbers = integers(name, given)
    if len(numbers) != count or any(n < 1 for n in numbers if not is_symbolic_dim(n)):
        raise ValueError(f"{name} must have length {count} and positive entries, got {given!r}")
    return numbers


def pads(given: Any, count: int) -> str | tuple[tuple[Any, Any], ...]:
    """Return the argument `padding`: one of lax's strings, in upper or lower case, or a tuple of pairs."""
    message = f"padding must be {', '.join(PADDINGS)} or {count} x (low, high), integers, got {given!r}"
    if isinstance(given, str) and given.upper() in PADDINGS:
        return given
    try:
        pairs = () if isinstance(given, str) else tuple((_index(low), _index(high)) for low, high in given)
    except (TypeError, ValueError) as error:  # not a sequence of pairs, or not of integers
        raise type(error)(message) from None
    if isinstance(given, str) or len(pairs) != count:
        raise ValueError(message)
    return pairs


def _index(n: Any) -> Any:
    return n if is_symbolic_dim(n) else operator.index(n)
