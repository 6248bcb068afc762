"""The parts of a custom_vjp or custom_jvp, and contexts that replace its calls."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial, wraps
from threading import RLock
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import jax
import numpy as np
from jax._src import api, source_info_util
from jax.ad_checkpoint import checkpoint_name
from jax.experimental.xla_metadata import set_xla_metadata

from vjplib.compat.avals import is_key
from vjplib.compat.hijax import replaced_hi_primitive_calls, with_backward_in

T = TypeVar("T")

if TYPE_CHECKING:

    def custom_vjp(
        fun: Callable[..., T], nondiff_argnums: Sequence[int] = (), nondiff_argnames: Sequence[str] = ()
    ) -> jax.custom_vjp[T]:
        """`jax.custom_vjp`, typed so that the result of a rule is known where `partial` gives it options."""
        ...
else:
    custom_vjp = jax.custom_vjp


class CustomVJP(NamedTuple):
    """The parts of a custom_vjp, under either of JAX's implementations (`jax_custom_vjp3`).

    Args:
        primal: the function that it differentiates.
        fwd: its forward pass.
        bwd: its backward pass.
        static: which positional arguments are not differentiated, by nondiff_argnums or nondiff_argnames.
        symbolic_zeros: whether the passes take symbolic zeros.
        name: the primal's name.
        optimize_remat: whether the forward is to be optimized for rematerialization.
    """

    primal: Callable[..., Any]
    fwd: Callable[..., Any]
    bwd: Callable[..., Any]
    static: frozenset[int]
    symbolic_zeros: bool
    name: str
    optimize_remat: bool = False

    @property
    def passes(self) -> tuple[Callable[..., Any] | None, ...]:
        """The forward and the backward; None for one that is not defined."""
        return self.fwd, self.bwd


def custom_vjp_of(fn: Any) -> CustomVJP | None:
    """Return the parts of a custom_vjp, None for any other function.

    Example:
        >>> custom_vjp_of(jax.numpy.sin) is None
        True
    """
    if not isinstance(fn, _implementations()):
        return None
    primal = getattr(fn, "fun", None) or fn.f
    static = fn.nondiff_argnums if hasattr(fn, "nondiff_argnums") else fn.static_argnums
    symbolic = fn.symbolic_zeros if hasattr(fn, "symbolic_zeros") else fn.symz
    remat = bool(getattr(fn, "optimize_remat", False) or getattr(fn, "opt_remat", False))
    name = getattr(primal, "__name__", type(primal).__name__)  # a partial has none
    return CustomVJP(primal, fn.fwd, fn.bwd, frozenset(static), bool(symbolic), name, remat)


def require_passes(rule: CustomVJP) -> None:
    """Raise a ValueError for a custom_vjp without forward and backward pass.

    Example:
        >>> require_passes(custom_vjp_of(jax.custom_vjp(jax.numpy.sin)))
        Traceback (most recent call last):
        ValueError: fn must have its passes: call sin.defvjp(fwd, bwd) first
    """
    if None in rule.passes:
        raise ValueError(f"fn must have its passes: call {rule.name}.defvjp(fwd, bwd) first")


def _implementations() -> tuple[type, ...]:
    """Return the classes of custom_vjp objects: with jax_custom_vjp3 `jax.custom_vjp(f)` returns another class."""
    return tuple({jax.custom_vjp, type(jax.custom_vjp(lambda x: x))})


_replacements: list[Callable[..., Any]] = []
_originals: dict[type, Callable[..., Any]] = {}
_patching = RLock()


@contextmanager
def replaced_custom_vjp_calls(call: Callable[..., Any]) -> Iterator[None]:
    """Context in which every call of a custom_vjp is call(original, fn, *args, **kwargs) instead.

    The class is patched for all threads. Contexts may nest, and overlap in any order; the last one is called first.
    """
    with _patching:
        if not _replacements:
            for kind in _implementations():
                _originals[kind] = original = kind.__call__
                kind.__call__ = _dispatching(original)
        _replacements.append(call)
    try:
        yield
    finally:
        with _patching:
            _replacements.remove(call)
            if not _replacements:
                for kind, original in _originals.items():
                    kind.__call__ = original
                _originals.clear()


def _dispatching(original: Callable[..., Any]) -> Callable[..., Any]:
    def dispatch(calls: tuple[Callable[..., Any], ...], fn: Any, *args: Any, **kwargs: Any) -> Any:
        if not calls:
            return original(fn, *args, **kwargs)
        return calls[-1](partial(dispatch, calls[:-1]), fn, *args, **kwargs)

    return lambda self, *args, **kwargs: dispatch(tuple(_replacements), self, *args, **kwargs)


class CustomJVP(NamedTuple):
    """The parts of a custom_jvp, named as those of a `CustomVJP`."""

    primal: Callable[..., Any]
    jvp: Callable[..., Any] | None
    static: frozenset[int]

    @property
    def passes(self) -> tuple[Callable[..., Any] | None, ...]:
        """The rule; None if it is not defined."""
        return (self.jvp,)


def custom_jvp_of(fn: Any) -> CustomJVP | None:
    """Return the parts of a custom_jvp, None for any other function.

    Example:
        >>> custom_jvp_of(jax.numpy.sin) is None
        True
    """
    return CustomJVP(fn.fun, fn.jvp, frozenset(fn.nondiff_argnums)) if isinstance(fn, jax.custom_jvp) else None


@contextmanager
def replaced_custom_jvp_calls(call: Callable[..., Any]) -> Iterator[None]:
    """Context in which every call of a custom_jvp is call(original, fn, *args, **kwargs) instead.

    The class is patched for all threads; such contexts may nest and must not overlap otherwise.
    """
    original = jax.custom_jvp.__call__
    jax.custom_jvp.__call__ = lambda self, *args, **kwargs: call(original, self, *args, **kwargs)
    try:
        yield
    finally:
        jax.custom_jvp.__call__ = original


@contextmanager
def replaced_vjp(call: Callable[..., Any]) -> Iterator[None]:
    """Context in which every call of `jax.vjp`, also by `jax.grad`, is call(original, *args, **kwargs) instead.

    JAX's module is patched for all threads; such contexts may nest and must not overlap otherwise. A module that has
    imported `vjp` by name before keeps the original.
    """
    original = api.vjp

    api.vjp = jax.vjp = wraps(original)(partial(call, original))
    try:
        yield
    finally:
        api.vjp = jax.vjp = original


def with_backward(rule: CustomVJP, bwd: Callable[..., Any]) -> Any:
    """Return a custom_vjp of the same parts with another backward."""
    same = jax.custom_vjp(rule.primal, nondiff_argnums=tuple(sorted(rule.static)))
    same.defvjp(rule.fwd, bwd, symbolic_zeros=rule.symbolic_zeros, optimize_remat=rule.optimize_remat)
    return same


@contextmanager
def force_retrace(token: str) -> Iterator[None]:
    """Context in which functions that `jax.jit` has traced before are traced again, once for each token."""
    with set_xla_metadata(vjplib=token):
        yield


@contextmanager
def recorded_custom_vjps() -> Iterator[list[tuple[CustomVJP, tuple[Any, ...], dict[str, Any]]]]:
    """Context that records every call of a custom_vjp: its parts, arguments and keyword arguments.

    Calls of other threads are recorded too.
    """
    calls = []

    def recorded(original: Callable[..., Any], fn: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append((custom_vjp_of(fn), args, kwargs))
        return original(fn, *args, **kwargs)

    with replaced_custom_vjp_calls(recorded):
        yield calls


_ENTER, _LEAVE = "vjplib: a backward begins", "vjplib: a backward ends"
_tokens = itertools.count()


@contextmanager
def backwards_where_written() -> Iterator[None]:
    """Context in which the equations of the backward of a custom_vjp or a hijax primitive have its source lines.

    JAX gives them those of the call. Equations that `mark_of` recognizes mark where a backward begins and ends.
    """

    def call(original: Callable[..., Any], fn: Any, *args: Any, **kwargs: Any) -> Any:
        rule = custom_vjp_of(fn)
        assert rule is not None

        return original(with_backward(rule, marked(rule.bwd)), *args, **kwargs)

    def call_primitive(original: Callable[..., Any], prim: Any, *args: Any) -> Any:
        return original(with_backward_in(prim, marked), *args)

    def marked(backward: Callable[..., Any]) -> Callable[..., Any]:
        def bwd(*given: Any) -> Any:
            with as_written():
                dxs = backward(*given[:-2], *_marked(given[-2:], _ENTER))
                return _marked(dxs, _LEAVE)

        return bwd

    token = f"where written {next(_tokens)}"
    with replaced_custom_vjp_calls(call), replaced_hi_primitive_calls(call_primitive), force_retrace(token):
        yield


@contextmanager
def as_written() -> Iterator[None]:
    """Context in which equations have the source lines of the functions called in it, without those of its callers."""
    context = source_info_util._source_info_context
    outer, context.context = context.context, source_info_util.new_source_info()
    try:
        yield
    finally:
        context.context = outer


def _marked(tree: Any, text: str) -> Any:
    """Return a pytree whose arrays have passed through an equation with that name."""
    return jax.tree.map(lambda leaf: checkpoint_name(leaf, text) if is_plain_array(leaf) else leaf, tree)


def is_plain_array(leaf: Any) -> bool:
    """Return whether a leaf is an array of numbers: no symbolic zero, no float0, no random key, no text."""
    if not isinstance(leaf, (jax.Array, np.ndarray, np.generic)) or leaf.dtype == jax.dtypes.float0:
        return False
    return not is_key(leaf)


def mark_of(eqn: Any) -> bool | None:
    """Return True for an equation that marks the begin of a backward, False for one that marks its end, else None.

    Programs traced in `backwards_where_written` hold one for each array; they are identities.
    """
    return {_ENTER: True, _LEAVE: False}.get(eqn.params["name"]) if eqn.primitive.name == "name" else None
