"""use_in_lax: inside it, code that calls the convolutions and the max-pooling of jax.lax is served by vjplib."""

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np
from jax import lax
from jax.core import Tracer

from vjplib.rules.convolution_general import conv, conv_general_dilated, conv_with_general_padding
from vjplib.rules.convolution_patches import conv_general_dilated_patches
from vjplib.rules.convolution_transpose import conv_transpose
from vjplib.rules.pooling import reduce_window_max

# JAX keys its caches by this value, so that what was traced outside is not taken for what is traced inside. It is this
# thread's alone.
_inside = jax.make_user_context(default_value=False)
_lock = threading.Lock()
_originals: dict[str, Callable[..., Any]] = {}
_entered = 0


@contextmanager
def use_in_lax() -> Iterator[None]:
    """A context, or a decorator, in which `jax.lax` convolves and max-pools by vjplib's rules.

    Served are `conv_general_dilated`, `conv`, `conv_transpose`, `conv_with_general_padding`,
    `conv_general_dilated_patches`, and `reduce_window` where it takes a maximum from minus infinity, for whoever looks
    them up in `jax.lax` while this thread is inside: the layers of flax, Equinox and Haiku, and your own. Other threads
    get JAX's functions. Contexts nest; on leaving the last one, by an exception too, `jax.lax` is as it was.

    What counts is where a function is traced. The context is part of the key of JAX's caches, so that a jitted function
    is traced again inside, and neither runs what was traced for the other. What was lowered, compiled or exported
    before stays as it is, and so does a pullback that `jax.vjp` has returned.

    Not served is a function that was bound before, as by `from jax.lax import conv_general_dilated`, or as the default
    of an argument, as in `flax.nnx.Conv`: give that layer `conv_general_dilated=vjplib.conv_general_dilated`. Inside,
    convolutions with a rule of vjplib's have no forward mode (`jax.jvp`), as no custom_vjp has.

    Example:
        >>> import jax.numpy as jnp
        >>> def depthwise(x, k):
        ...     return lax.conv_general_dilated(x, k, (1,), "SAME", feature_group_count=4)
        >>> def served():
        ...     return "custom_vjp" in str(jax.make_jaxpr(depthwise)(jnp.ones((1, 4, 8)), jnp.ones((4, 1, 3))))
        >>> with use_in_lax():
        ...     served()
        True
        >>> served()
        False
    """
    with _patched(), _inside(True):
        yield


@contextmanager
def _patched() -> Iterator[None]:
    """Puts the switches into jax.lax with the first thread that enters, takes them out with the last that leaves."""
    global _entered
    with _lock:
        if not _entered:
            _originals.update({name: getattr(lax, name) for name in _SERVED})
            for name, original in _originals.items():
                setattr(lax, name, _switch(original, _SERVED[name]))
        _entered += 1
    try:
        yield
    finally:
        with _lock:
            _entered -= 1
            if not _entered:
                for name, original in _originals.items():
                    setattr(lax, name, original)


def _switch(original: Callable[..., Any], serve: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a function that is vjplib's for a thread inside and the original for all others."""

    @functools.wraps(original)
    def switched(*args: Any, **kwargs: Any) -> Any:
        if not _inside.value:
            return original(*args, **kwargs)
        with _inside(False):  # vjplib is not served by itself
            return serve(*args, **kwargs)

    return switched


def _reduce_window(operand: Any, init_value: Any, computation: Any, *args: Any, **kwargs: Any) -> Any:
    """Returns the maximum of each window by vjplib, any other reduction by JAX."""
    if computation is lax.max and _is_minus_infinity(init_value):
        return reduce_window_max(operand, *args, **kwargs)
    return _originals["reduce_window"](operand, init_value, computation, *args, **kwargs)


def _is_minus_infinity(value: Any) -> bool:
    return not isinstance(value, Tracer) and np.ndim(value) == 0 and bool(value == -np.inf)


_SERVED: dict[str, Callable[..., Any]] = {
    "conv": conv,
    "conv_general_dilated": conv_general_dilated,
    "conv_general_dilated_patches": conv_general_dilated_patches,
    "conv_transpose": conv_transpose,
    "conv_with_general_padding": conv_with_general_padding,
    "reduce_window": _reduce_window,
}
"""What takes the place of each function of jax.lax."""
