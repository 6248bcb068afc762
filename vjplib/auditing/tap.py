"""tap: an identity that passes the values that run through it to the host, under every transformation of JAX.

It is a primitive of its own because `jax.debug.callback` has an effect, which linear solves and others refuse, and is
unrolled by vmap. This one has none: it stays as long as its outputs are used, is differentiated and transposed as an
identity, and under vmap passes the whole batch at once.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.interpreters import ad, batching, mlir

from vjplib.compat import Primitive

Axes = tuple[tuple[int, tuple[int | None, ...]], ...]


class Listener(Protocol):
    """Called whenever values pass; hashable, as all parameters of primitives must be."""

    def __call__(self, values: Sequence[np.ndarray], axes: Axes, perturbed: tuple[bool, ...]) -> None:
        """Take the values.

        Args:
            values: the arrays, random keys as their data.
            axes: for each vmap, the innermost first, its size and the axis of each value that it maps over.
            perturbed: for each value, whether a tangent passed along with it; empty if none did.
        """
        ...

    def differentiates(self) -> None:
        """Called while JAX traces a derivative."""
        ...


_tap = Primitive("vjplib_tap")
_tap.multiple_results = True


def tap(values: Sequence[Any], listener: Listener) -> list[Any]:
    """Return arrays, traced or not, unchanged; whenever the program runs, the listener gets their values on the host.

    The listener must call no JAX function.

    Example:
        >>> seen = []
        >>> class Listener:
        ...     def __call__(self, values, axes, perturbed):
        ...         seen.append((values[0].tolist(), axes, perturbed))
        ...
        ...     def differentiates(self):
        ...         pass
        >>> float(jax.jit(jax.grad(lambda x: jax.numpy.sin(tap([x], Listener())[0])))(0.0)), seen
        (1.0, [(0.0, (), (True,))])
    """
    return _tap.bind(*values, listener=listener, axes=(), perturbed=())


def _tapped(*values: Any, listener: Listener, axes: Axes, perturbed: tuple[bool, ...]) -> list[Any]:
    """Return the values and call the listener; traced into the compiled program."""
    data = [jax.random.key_data(v) if jnp.issubdtype(v.dtype, jax.dtypes.prng_key) else v for v in values]
    jax.debug.callback(_Call(listener, axes, perturbed), *data)
    return list(values)


class _Call(NamedTuple):
    listener: Listener
    axes: Axes
    perturbed: tuple[bool, ...]

    def __call__(self, *values: Any) -> None:
        self.listener([np.asarray(v) for v in values], self.axes, self.perturbed)


def _batched(
    values: Sequence[Any], dims: Sequence[Any], *, listener: Listener, axes: Axes, perturbed: tuple[bool, ...]
) -> Any:
    placed = tuple(dims)
    size = next(v.shape[d] for v, d in zip(values, placed, strict=True) if d is not None)
    passed = _tap.bind(*values, listener=listener, axes=(*axes, (size, placed)), perturbed=perturbed)
    return passed, dims


def _differentiated(
    primals: Sequence[Any], tangents: Sequence[Any], *, listener: Listener, perturbed: Any, **params: Any
) -> Any:
    before = perturbed or (False,) * len(primals)
    listener.differentiates()
    now = tuple(b or type(t) is not ad.Zero for b, t in zip(before, tangents, strict=True))
    return _tap.bind(*primals, listener=listener, perturbed=now if any(now) else (), **params), list(tangents)


def _transposed(cotangents: Sequence[Any], *values: Any, **params: Any) -> list[Any]:
    del params
    return [g if ad.is_undefined_primal(v) else None for g, v in zip(cotangents, values, strict=True)]


_requested = Primitive("vjplib_requested")


def requested(values: Sequence[Any], listener: Callable[[int], None]) -> list[Any]:
    """Return arrays, traced or not, unchanged; while JAX traces the pullback of one, the listener gets its index.

    Example:
        >>> seen = set()
        >>> def loss(x):
        ...     y, unused = requested([2 * x, 3 * x], seen.add)
        ...     return y
        >>> float(jax.grad(loss)(1.0)), seen
        (2.0, {0})
    """
    return [_requested.bind(v, listener=listener, place=i) for i, v in enumerate(values)]


def _pulled_back(g: Any, value: Any, *, listener: Callable[[int], None], place: int) -> list[Any]:
    if type(g) is not ad.Zero:
        listener(place)
    return [g]


_requested.def_impl(lambda value, **_: value)
_requested.def_abstract_eval(lambda aval, **_: aval)
ad.deflinear2(_requested, _pulled_back)
batching.primitive_batchers[_requested] = lambda values, dims, **params: (_requested.bind(*values, **params), dims[0])
mlir.register_lowering(_requested, mlir.lower_fun(lambda value, **_: value, multiple_results=False))

_tap.def_impl(_tapped)
_tap.def_abstract_eval(lambda *avals, **_: list(avals))
batching.primitive_batchers[_tap] = _batched
ad.primitive_jvps[_tap] = _differentiated
ad.primitive_transposes[_tap] = _transposed
mlir.register_lowering(_tap, mlir.lower_fun(_tapped, multiple_results=True))
