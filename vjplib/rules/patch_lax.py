"""use_in_lax: a context that replaces the convolutions and the max-pooling of jax.lax by vjplib's."""

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

from vjplib.rules.convolution.general import conv, conv_general_dilated, conv_with_general_padding
from vjplib.rules.convolution.patches import conv_general_dilated_patches
from vjplib.rules.convolution.transpose import conv_transpose
from vjplib.rules.pooling.pooling import reduce_window_max

F = TypeVar("F", bound=Callable[..., Any])


# This value, one a thread, is part of the key of JAX's caches: a program traced outside never runs inside.
_thread_is_inside = jax.make_user_context(default_value=False)
# Tasks of asyncio share a thread and therefore JAX's value, but each task has its own contextvars.
_entered_here: ContextVar[tuple[object, ...]] = ContextVar("_entered_here", default=())
_lock = threading.RLock()  # reentrant: the garbage collector exits the contexts of abandoned generators
_entries: dict[object, int] = {}  # the thread of each entry, of any thread and task, that has not exited
_originals: dict[str, Callable[..., Any]] = {}
_switches: weakref.WeakSet[Callable[..., Any]] = weakref.WeakSet()


class use_in_lax:  # noqa: N801 - read as a verb, as contextlib's contexts are
    """A context manager and decorator in which `jax.lax` uses vjplib's rules for convolution and max-pooling.

    It replaces `conv_general_dilated`, `conv`, `conv_transpose`, `conv_with_general_padding`,
    `conv_general_dilated_patches`, and `reduce_window` for a maximum from minus infinity, for all code that looks them
    up in `jax.lax` while inside: layers of flax, Equinox and Haiku, and your own.

    The place where a function is traced decides. The context is part of the key of JAX's caches, so a jitted function
    is traced again inside, and neither side runs the other's program. Programs that were lowered, compiled or exported
    before do not change, nor do pullbacks that `jax.vjp` has returned.

    Contexts nest. One object can be entered many times, recursively and by several threads, and contexts can exit in
    any order: the rules are used until there are as many exits as entries. An exception exits too.

    A decorated function is inside while its body runs. The body of a generator function, a coroutine function or an
    async generator function is inside while it runs and outside while it is suspended; tasks that it creates are
    outside unless they are decorated. Any other callable that returns a generator or coroutine, such as the functions
    of `contextlib.contextmanager`, is refused when called.

    Other threads get JAX's functions. While a task awaits inside a `with` block, other asyncio tasks get JAX's
    functions too; tasks created in the block get vjplib's until the block exits. But JAX keys its caches by thread: a
    jitted function that is called in the block and, while the block awaits, by another task has one program for both,
    traced by the first caller. Decorate the coroutine function instead, and each has its own.

    After the last exit `jax.lax` is what it was before the first entry, including patches by others. A patch made
    inside stays; the function it replaced acts as JAX's function outside.

    Functions that were bound before the entry are not replaced, such as by `from jax.lax import conv_general_dilated`
    or as a default argument in `flax.nnx.Conv`: give that layer `conv_general_dilated=vjplib.conv_general_dilated`.
    Inside, convolutions with one of vjplib's rules have no forward mode (`jax.jvp`), like any custom_vjp.

    Raises:
        TypeError: a decorated callable returns a generator or coroutine, but is not a function of that kind.
        RuntimeError: the context exits more often than it was entered.

    Example:
        >>> import jax.numpy as jnp
        >>> def depthwise(x, k):
        ...     return lax.conv_general_dilated(x, k, (1,), "SAME", feature_group_count=4)
        >>> def uses_rules():
        ...     return "custom_vjp" in str(jax.make_jaxpr(depthwise)(jnp.ones((1, 4, 8)), jnp.ones((4, 1, 3))))
        >>> with use_in_lax():
        ...     uses_rules()
        True
        >>> uses_rules()
        False
    """

    def __init__(self) -> None:
        self._entered: list[object] = []

    def __enter__(self) -> None:
        entry = object()
        with _lock:
            if not _entries:
                _patch()
            _entries[entry] = threading.get_ident()
            self._entered.append(entry)
        _entered_here.set((*_here(), entry))
        _set_cache_key()

    def __exit__(self, *exception: object) -> None:
        with _lock:
            if not self._entered:
                raise RuntimeError("use_in_lax must be entered before it is left, got one exit too many")
            # An abandoned generator can be closed in any thread or task, which has then entered nothing.
            *_, entry = [entry for entry in self._entered if entry in _here()] or self._entered
            self._entered.remove(entry)
            del _entries[entry]
            if not _entries:
                _unpatch()
        _entered_here.set(_here())
        _set_cache_key()

    def __call__(self, function: F) -> F:
        """Return the function, decorated to be inside while its body runs."""
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
            _require_ended(call, result)
            return result

        if inspect.isasyncgenfunction(function):
            decorated: Any = async_generator
        elif inspect.iscoroutinefunction(function):
            decorated = coroutine
        else:
            decorated = generator if inspect.isgeneratorfunction(function) else plain
        functools.update_wrapper(decorated, function)
        return decorated


def _require_ended(call: Callable[..., Any], result: Any) -> None:
    """Raise if the result of a call is a generator or coroutine, whose body would run outside."""
    body = getattr(result, "gen", result)  # contextlib wraps a generator in a context manager
    if inspect.isgenerator(body) or inspect.iscoroutine(body):
        body.close()
    elif not inspect.isasyncgen(body):
        return
    got = (
        f"{getattr(call, '__qualname__', repr(call))}, which returned a {type(result).__name__} of {body.__qualname__}"
    )
    raise TypeError(f"use_in_lax must decorate a generator or coroutine function itself, got {got}")


def _steps(body: Generator[Any, Any, Any] | Coroutine[Any, Any, Any]) -> Generator[Any, Any, Any]:
    """Run a generator or coroutine, inside during each of its steps."""
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


def _here() -> tuple[object, ...]:
    """Return the entries of this task and thread that have not exited; contextvars can be copied to other threads."""
    thread = threading.get_ident()
    return tuple(entry for entry in _entered_here.get() if _entries.get(entry) == thread)


def _set_cache_key() -> None:
    """Set the value by which JAX keys this thread's caches."""
    with _lock:
        inside = threading.get_ident() in _entries.values()
    _thread_is_inside(inside).__enter__()  # never exited: contexts may exit in any order


def _patch() -> None:
    for name, ours in _REPLACEMENTS.items():
        found = getattr(lax, name)
        # A patch by others, made inside and undone outside, restores the switch that it replaced.
        _originals[name] = inspect.unwrap(found, stop=lambda f: f not in _switches)
        setattr(lax, name, _switch(_originals[name], ours))


def _unpatch() -> None:
    for name, original in _originals.items():
        if getattr(lax, name) in _switches:  # else others have patched it
            setattr(lax, name, original)


def _switch(original: Callable[..., Any], ours: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that calls vjplib's inside and the original elsewhere."""

    @functools.wraps(original)
    def switched(*args: Any, **kwargs: Any) -> Any:
        if not (_thread_is_inside.value and _here()):
            return original(*args, **kwargs)
        with _thread_is_inside(False):  # vjplib's own calls of lax are not replaced
            return ours(*args, **kwargs)

    _switches.add(switched)
    return switched


def _reduce_window(operand: Any, init_value: Any, computation: Any, *args: Any, **kwargs: Any) -> Any:
    """Reduce windows by vjplib for a maximum from minus infinity, by JAX otherwise."""
    if computation is lax.max and not isinstance(init_value, Tracer) and np.array_equal(init_value, -np.inf):
        return reduce_window_max(operand, *args, **kwargs)
    return _originals["reduce_window"](operand, init_value, computation, *args, **kwargs)


_OURS = (conv, conv_general_dilated, conv_general_dilated_patches, conv_transpose, conv_with_general_padding)
_REPLACEMENTS = {**{rule.__name__: rule for rule in _OURS}, "reduce_window": _reduce_window}
