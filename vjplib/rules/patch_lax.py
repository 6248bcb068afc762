"""use_in_lax: inside it, code that calls the convolutions and the max-pooling of jax.lax is served by vjplib."""

import functools
import inspect
import threading
import types
import weakref
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator
from contextvars import ContextVar
from typing import Any, TypeVar

import jax
import numpy as np
from jax import lax
from jax.core import Tracer

from vjplib.rules.convolution_general import conv, conv_general_dilated, conv_with_general_padding
from vjplib.rules.convolution_patches import conv_general_dilated_patches
from vjplib.rules.convolution_transpose import conv_transpose
from vjplib.rules.pooling.pooling import reduce_window_max

F = TypeVar("F", bound=Callable[..., Any])


class _Entry:
    """One entering of a context, until it is left."""

    def __init__(self) -> None:
        self.thread = threading.get_ident()


# JAX keys its caches by this value, which belongs to a thread: a program traced outside is never run inside.
_thread_is_inside = jax.make_user_context(default_value=False)
# Tasks of asyncio share a thread, and with it JAX's value. What tells them apart is that each has its own contextvars.
_entered_here: ContextVar[tuple[_Entry, ...]] = ContextVar("_entered_here", default=())
_lock = threading.RLock()  # the garbage collector, too, leaves contexts: those of abandoned generators
_entries: set[_Entry] = set()
"""All that have not been left, by whatever thread or task they were entered."""
_originals: dict[str, Callable[..., Any]] = {}
_switches: weakref.WeakSet[Callable[..., Any]] = weakref.WeakSet()


class use_in_lax:  # noqa: N801 - read as a verb, as contextlib's contexts are
    """A context, or a decorator, in which `jax.lax` convolves and max-pools by vjplib's rules.

    Served are `conv_general_dilated`, `conv`, `conv_transpose`, `conv_with_general_padding`,
    `conv_general_dilated_patches`, and `reduce_window` where it takes a maximum from minus infinity, for code that
    looks them up in `jax.lax` inside: the layers of flax, Equinox and Haiku, and your own.

    What counts is where a function is traced. The context is part of the key of JAX's caches, so that a jitted function
    is traced again inside, and neither side runs the other's program. What was lowered, compiled or exported before
    stays as it is, and so does a pullback that `jax.vjp` has returned.

    Contexts nest. One object can be entered many times, within itself and by several threads, and contexts can be left
    in any order: code is served until it has left as many as it entered, by an exception too.

    A decorated function is inside while its body runs. The body of a generator function, a coroutine function or an
    async generator function is inside whenever it runs and outside while it is suspended; tasks that it creates are
    outside unless decorated themselves. A callable of another kind that returns a generator or coroutine, as those of
    `contextlib.contextmanager` do, is refused when called.

    Other threads get JAX's functions. Other tasks of asyncio get them too while a task awaits inside a `with` block;
    tasks created in the block are served until it is left. But JAX keys its caches by thread: a jitted function called
    in the block and, while the block awaits, by another task has one program for both, the first caller's. Decorate the
    coroutine function instead, and each has its own.

    When the last context is left, `jax.lax` is as it was before the first was entered, another's patch included. A
    patch made inside stays, and what it replaced acts as JAX's function outside.

    Not served is a function that was bound before, as by `from jax.lax import conv_general_dilated`, or as the default
    of an argument, as in `flax.nnx.Conv`: give that layer `conv_general_dilated=vjplib.conv_general_dilated`. Inside,
    convolutions with a rule of vjplib's have no forward mode (`jax.jvp`), as no custom_vjp has.

    Raises:
        TypeError: a decorated callable returns a generator or coroutine without being a function of that kind.
        RuntimeError: the context is left more often than it was entered.

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

    def __init__(self) -> None:
        self._entered: list[_Entry] = []

    def __enter__(self) -> None:
        entry = _Entry()
        with _lock:
            if not _entries:
                _patch()
            _entries.add(entry)
            self._entered.append(entry)
        _entered_here.set((*_here(), entry))
        _set_cache_key()

    def __exit__(self, *exception: object) -> None:
        with _lock:
            if not self._entered:
                raise RuntimeError("use_in_lax must be entered before it is left, got an exit too many")
            # An abandoned generator is closed wherever it is collected: there nothing was entered.
            *_, entry = [entry for entry in self._entered if entry in _here()] or self._entered
            self._entered.remove(entry)
            _entries.remove(entry)
            if not _entries:
                _unpatch()
        _entered_here.set(_here())
        _set_cache_key()

    def __call__(self, function: F) -> F:
        """Returns the function, inside while its body runs."""
        call: Callable[..., Any] = function

        async def async_generator(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, Any]:
            body = call(*args, **kwargs)
            step, given = body.asend, None
            while True:
                try:
                    result = await _in_steps(step(given))
                except StopAsyncIteration:
                    return
                try:
                    step, given = body.asend, (yield result)
                except BaseException as thrown:  # GeneratorExit too: the body may clean up
                    step, given = body.athrow, thrown

        async def coroutine(*args: Any, **kwargs: Any) -> Any:
            return await _in_steps(call(*args, **kwargs))

        def generator(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
            return (yield from _steps(call(*args, **kwargs)))

        def plain(*args: Any, **kwargs: Any) -> Any:
            with use_in_lax():
                result = call(*args, **kwargs)
            return _require_ended(call, result)

        if inspect.isasyncgenfunction(function):
            decorated: Any = async_generator
        elif inspect.iscoroutinefunction(function):
            decorated = coroutine
        else:
            decorated = generator if inspect.isgeneratorfunction(function) else plain
        functools.update_wrapper(decorated, function)
        return decorated


def _require_ended(call: Callable[..., Any], result: Any) -> Any:
    """Return what a call returned, unless that is a body which has yet to run, and would do so outside."""
    body = getattr(result, "gen", result)  # contextlib makes context managers of generators
    if not (inspect.isgenerator(body) or inspect.iscoroutine(body) or inspect.isasyncgen(body)):
        return result
    if not inspect.isasyncgen(body):
        body.close()
    name = getattr(call, "__qualname__", repr(call))
    raise TypeError(
        f"use_in_lax must decorate a generator or coroutine function itself, got {name}, which returned "
        f"a {type(result).__name__} of {body.__qualname__}"
    )


def _steps(body: Generator[Any, Any, Any] | Coroutine[Any, Any, Any]) -> Generator[Any, Any, Any]:
    """Yields and returns what a generator or coroutine does, inside during each of its steps."""
    step: Callable[[Any], Any] = body.send
    given: Any = None
    while True:
        try:
            with use_in_lax():
                result = step(given)
        except StopIteration as stop:
            return stop.value
        try:
            step, given = body.send, (yield result)
        except BaseException as thrown:  # GeneratorExit too: the body may clean up
            step, given = body.throw, thrown


_in_steps = types.coroutine(_steps)


def _here() -> tuple[_Entry, ...]:
    """Returns this task's or thread's entries that have not been left; contextvars can be copied to other threads."""
    thread = threading.get_ident()
    return tuple(entry for entry in _entered_here.get() if entry in _entries and entry.thread == thread)


def _set_cache_key() -> None:
    """Sets the value by which JAX keys this thread's caches."""
    thread = threading.get_ident()
    with _lock:
        inside = any(entry.thread == thread for entry in _entries)
    _thread_is_inside(inside).__enter__()  # for good: contexts may be left in any order


def _patch() -> None:
    for name, serve in _SERVED.items():
        found = getattr(lax, name)
        # Another's patch, made inside and undone outside, puts back the switch that it found.
        _originals[name] = inspect.unwrap(found, stop=lambda f: f not in _switches)
        setattr(lax, name, _switch(_originals[name], serve))


def _unpatch() -> None:
    for name, original in _originals.items():
        if getattr(lax, name) in _switches:  # else another has patched it
            setattr(lax, name, original)


def _switch(original: Callable[..., Any], serve: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a function that is vjplib's inside and the original elsewhere."""

    @functools.wraps(original)
    def switched(*args: Any, **kwargs: Any) -> Any:
        if not (_thread_is_inside.value and _here()):
            return original(*args, **kwargs)
        with _thread_is_inside(False):  # vjplib is not served by itself
            return serve(*args, **kwargs)

    _switches.add(switched)
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
