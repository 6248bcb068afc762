"""Primitives of `jax.experimental.hijax`: their bodies, the parts that they offer, and a context that replaces calls.

Such a primitive is an object of a class that its author writes: a body in JAX (`expand`), and beside it what JAX calls
in place of transforming the body. The class to inherit from is `VJPHiPrimitive` up to JAX 0.11 and `HiPrim` from 0.12
on; some of its methods have other signatures there, so they are called through JAX's own transformations alone.
"""

import copy
import inspect
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax
from jax._src.interpreters import remat
from jax.core import ShapedArray
from jax.experimental import hijax

_Base: Any = getattr(hijax, "HiPrim", None) or getattr(hijax, "VJPHiPrimitive", None)
HI_PRIMITIVE = "call_hi_primitive"
_PARTS = {
    "vjp": ("vjp_fwd",),
    "accumulators": ("vjp_bwd",),
    "jvp": ("jvp",),
    "lin": ("lin",),
    "batch": ("batch", "batch_dim_rule"),
    "dce": ("dce",),
    "remat": ("remat",),
    "transpose": ("transpose",),
}
_METHODS = (*dict.fromkeys(m for methods in _PARTS.values() for m in methods), "vjp_bwd_retval", "linearized")
# What JAX says where a class does not override a method, and where a primitive of its own has no rule.
_REFUSED = re.compile(r"for (\w+) support, subclass|(Batching) rule for 'linear_call' not implemented")
_BODIES = "_vjplib_bodies"


class HiPrimitive(NamedTuple):
    """The parts of a hijax primitive, named as those of a `CustomVJP`.

    Args:
        primal: its body.
        passes: the methods that JAX calls in place of transforming the body, the backward last.
        static: empty: what is no array is a parameter of the object.
        name: the name of its class.
        source: the method that tells where its derivative is written.
        parameters: those of the object, by name.
    """

    primal: Callable[..., Any]
    passes: tuple[Callable[..., Any], ...]
    static: frozenset[int]
    name: str
    source: Callable[..., Any]
    parameters: tuple[tuple[str, Any], ...]


def hi_primitive_of(found: Any) -> Any:
    """Return the hijax primitive that an equation calls, or that a function is, of a user's own class; else None.

    JAX makes such primitives itself, of custom_vjp and of checkpoint: these are left out. What its `vmap` makes of a
    user's primitive is not.
    """
    prim = found.params["_prim"] if getattr(getattr(found, "primitive", None), "name", "") == HI_PRIMITIVE else found
    if not isinstance(prim, _Base):
        return None
    inner = prim
    while type(inner).__name__ == "VmapOf" and isinstance(getattr(inner, "prim", None), _Base):
        inner = inner.prim
    return None if _is_jaxs(type(inner)) else prim


def hi_primitive_parts_of(fn: Any) -> HiPrimitive | None:
    """Return the parts of a hijax primitive, None for anything else, and for those that JAX made.

    Example:
        >>> hi_primitive_parts_of(jax.numpy.sin) is None
        True
    """
    prim = hi_primitive_of(fn)
    if prim is None or _is_jaxs(type(prim)):
        return None
    passes = tuple(getattr(prim, name) for name in _METHODS if _overrides(prim, name))  # others are shared by all
    backward = prim.vjp_bwd if _overrides(prim, "vjp_bwd") else prim.vjp_bwd_retval
    source = prim.expand if _is_jaxs(backward) else backward
    return HiPrimitive(prim.expand, (*passes, backward), frozenset(), name_of(prim), source, tuple(prim.params.items()))


def _is_jaxs(definition: Any) -> bool:
    """Return whether a class or a method is defined in JAX itself, as backwards derived from a jvp are."""
    return definition.__module__.partition(".")[0] == "jax"


def name_of(prim: Any) -> str:
    """Return the name of a hijax primitive: that of its class, and of the class that is vmapped."""
    inner = getattr(prim, "prim", None) if type(prim).__name__ == "VmapOf" else None
    return f"{name_of(inner)} under vmap" if inner is not None else type(prim).__name__


def has_body(value: Any) -> bool:
    """Return whether a value is a hijax primitive whose body stands for it where rules are stripped.

    Those that JAX made of its own functions, such as a root finder, do not: they are as good as its other primitives.
    A checkpoint, and what it made of a user's rule by `vmap`, have rules inside.
    """
    if not isinstance(value, _Base) or hasattr(value, "traced"):
        return False
    if type(value).__name__ == "VmapOf" and (inner := getattr(value, "prim", None)) is not None:
        return has_body(inner) or hasattr(inner, "traced")
    return not _is_jaxs(type(value)) or type(value).__name__ == "RematTraced"


def body_of(prim: Any) -> Any:
    """Return the program of a hijax primitive's body, as a closed jaxpr.

    Raises:
        TypeError: it takes something else than arrays, as a Ref that gradients are added to.
    """
    bodies = vars(prim).setdefault(_BODIES, {})
    double = jax.dtypes.canonicalize_dtype("float64") == "float64"
    if double not in bodies:
        for aval in prim.in_avals_flat:
            if not isinstance(aval, ShapedArray):
                taken = type(aval).__name__.removeprefix("Abstract")
                raise TypeError(f"{name_of(prim)} takes a {taken}; only primitives of arrays can be examined")
        bodies[double] = jax.make_jaxpr(prim.expand)(*prim.in_avals)
    return bodies[double]


def offered(prim: Any) -> set[str]:
    """Return which parts the class of a primitive overrides: jvp, lin, batch, dce, remat, transpose, and others.

    "accumulators" is a backward that adds to accumulators.
    """
    return {part for part, methods in _PARTS.items() if any(_overrides(prim, method) for method in methods)}


def _overrides(prim: Any, method: str) -> bool:
    return getattr(type(prim), method, None) is not getattr(_Base, method, None)


def not_offered(error: Exception) -> str:
    """Return what a primitive does not support where JAX raises that it does not; empty for any other exception.

    Example:
        >>> not_offered(NotImplementedError("for vmap support, subclass X must implement `batch`"))
        'vmap'
    """
    found = _REFUSED.search(str(error)) if isinstance(error, NotImplementedError) else None
    return {"Batching": "vmap"}.get(word := found[1] or found[2], word) if found else ""


def as_function(prim: Any) -> Callable[..., Any]:
    """Return the function that applies a primitive to arrays of the shapes it was made for, and of any dtypes."""

    def call(*args: Any) -> Any:
        return _retyped(prim, args)(*args)

    call.__name__ = call.__qualname__ = type(prim).__name__
    vars(call)["__signature__"] = inspect.signature(prim.expand)
    return call


def _retyped(prim: Any, args: Sequence[Any]) -> Any:
    """Return a primitive for the dtypes of some arguments."""
    given = jax.tree.map(jax.typeof, tuple(args))
    avals = jax.tree.leaves(given)
    if [a.shape for a in avals] != [a.shape for a in prim.in_avals_flat]:
        shapes = [tuple(a.shape) for a in prim.in_avals_flat]
        raise TypeError(f"{name_of(prim)} was made for shapes {shapes}, got {[tuple(a.shape) for a in avals]}")
    if [a.dtype for a in avals] == [a.dtype for a in prim.in_avals_flat]:
        return prim
    other = copy.copy(prim)
    vars(other).pop(_BODIES, None)
    other.in_avals, other.in_avals_flat = given, avals
    other.out_aval = jax.tree.map(jax.typeof, jax.eval_shape(other.expand, *given))
    other.out_avals_flat = jax.tree.leaves(other.out_aval)
    return other


def with_backward_in(prim: Any, wrap: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Any:
    """Return a primitive whose backward is wrap(backward), if that returns cotangents; else the primitive itself."""
    if hi_primitive_of(prim) is None or _overrides(prim, "vjp_bwd"):
        return prim
    other = copy.copy(prim)
    other.vjp_bwd_retval = wrap(prim.vjp_bwd_retval)
    return other


def recomputed(f: Callable[..., Any], *args: Any) -> tuple[Any, Any]:
    """Return f(*args), and the same as JAX's newer checkpoint computes it once more, by the primitives' remat."""
    further = (
        {"custom_vjp_rules": True} if "custom_vjp_rules" in inspect.signature(remat.remat_transform).parameters else {}
    )
    transformed: Any = remat.remat_transform  # one of JAX's lines types it as if it did not return
    out, again = transformed(None, f, *args, **further)
    return out, again(*args)


@contextmanager
def replaced_hi_primitive_calls(call: Callable[..., Any]) -> Iterator[None]:
    """Context in which every call of a hijax primitive is call(original, primitive, *args) instead.

    The class is patched for all threads; such contexts may nest and must not overlap otherwise.
    """
    original = _Base.__call__
    _Base.__call__ = lambda self, *args, **kwargs: call(original, self, *args, **kwargs)
    try:
        yield
    finally:
        _Base.__call__ = original
