"""Arguments of convolutions and poolings: what `jax.lax` refuses unclearly, or not at all, is refused here by name."""

import operator
from typing import Any

import numpy as np
from jax import lax
from jax.export import is_symbolic_dim

from vjplib.numerics import as_array

PADDINGS = ("SAME", "SAME_LOWER", "VALID")


def convolution_arguments(**given: Any) -> dict[str, Any]:
    """Return the arguments of a convolution of `jax.lax`, by name, with sequences as tuples; lax checks the rest.

    Args:
        **given: lhs, an array or a `jax.ShapeDtypeStruct`, rhs where the function has one, and all other arguments.

    Raises:
        TypeError: an argument is not of the type that it must have.
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
        return given  # lax refuses such ranks
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
    """Return the arguments of `lax.reduce_window` that follow its reduction, as tuples.

    Args:
        ndim: the rank of the operand.
        sizes: window_dimensions.
        strides: window_strides, None for ones.
        padding: a string, or a pair for each dimension.
        base_dilation: None for ones.
        window_dilation: None for ones.

    Raises:
        TypeError: an argument is not of the type that it must have.
        ValueError: an argument does not fit the rank of the operand, or is not positive.

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
    """Return x if it has a shape and a dtype, as a `jax.ShapeDtypeStruct` has, else x as an array.

    Args:
        name: the argument's name, for the message.
        x: the argument.

    Raises:
        TypeError: x is not an array of numbers.
    """
    return x if hasattr(x, "shape") and hasattr(x, "dtype") else as_array(name, x)


def integers(name: str, given: Any) -> tuple[Any, ...]:
    """Return a sequence of integers as a tuple.

    Args:
        name: the argument's name, for the message.
        given: the argument; symbolic dimensions of `jax.export` are integers.

    Raises:
        TypeError: given is not a sequence of integers.

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
    """Return a sequence of positive integers, one for each of `count` dimensions, as a tuple.

    Args:
        name: the argument's name, for the messages.
        given: the argument; symbolic dimensions of `jax.export` are taken to be positive.
        count: the number of dimensions.

    Raises:
        TypeError: given is not a sequence of integers.
        ValueError: given has another length, or an entry that is not positive.

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
    """Return the argument `padding`: a string that lax knows, in any case, or a tuple of pairs.

    Args:
        given: the argument.
        count: the number of dimensions.

    Raises:
        TypeError: given is neither a string nor a sequence of pairs of integers.
        ValueError: given is another string, or does not have two integers for each dimension.

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
    except ValueError:  # not two of them
        raise ValueError(message) from None
    if len(pairs) != count:
        raise ValueError(message)
    return pairs


def dimension_order(given: Any, ndim: int) -> None:
    """Refuse a `lax.ConvDimensionNumbers` that does not order the axes of arrays of rank `ndim`.

    Args:
        given: the argument `dimension_numbers`; lax checks the other forms that it takes.
        ndim: the rank of x and of the kernel.

    Raises:
        ValueError: a specification does not name each axis once.

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
    """Refuse a `preferred_element_type` that is neither None nor a dtype.

    Args:
        given: the argument.

    Raises:
        TypeError: given is not a dtype.

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
