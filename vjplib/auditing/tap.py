"""tap: an identity that tells the host which values pass through it, under every transformation of JAX.

It is a primitive of its own because `jax.debug.callback` has an effect, which linear solves and others refuse, and is
unrolled by vmap. This one has none: it stays as long as what passes through it is used, is differentiated and
transposed as the identity it is, and under vmap tells the batch at once.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.interpreters import ad, batching, mlir

from vjplib.compat import Primitive

Axes = tuple[tuple[int, tuple[int | None, ...]], ...]


class Listener(Protocol):
    """Is told of each time that values pass; hashable, as all parameters of primitives are."""

    def __call__(self, values: Sequence[np.ndarray], axes: Axes, differentiated: bool) -> None:
        """Takes the values.

        Args:
            values: what passed, keys of random numbers as their data.
            axes: for each vmap, the innermost first, its size and the axis of each value that it maps over.
            differentiated: whether a tangent passed along.
        """
        ...


_tap = Primitive("vjplib_tap")
_tap.multiple_results = True


def tap(values: Sequence[Any], listener: Listener) -> list[Any]:
    """Returns the values as they are; whenever the program runs, the listener is told of them.

    Args:
        values: arrays, traced or not.
        listener: called on the host; it must call no JAX function.

    Example:
        >>> seen = []
        >>> def listener(values, axes, differentiated):
        ...     seen.append((values[0].tolist(), axes, differentiated))
        >>> float(jax.jit(jax.grad(lambda x: jax.numpy.sin(tap([x], listener)[0])))(0.0)), seen
        (1.0, [(0.0, (), True)])
    """
    return _tap.bind(*values, listener=listener, axes=(), differentiated=False)


def _told(*values: Any, listener: Listener, axes: Axes, differentiated: bool) -> list[Any]:
    """Returns the values, with a call of the listener; traced into the program that is compiled."""
    told = [jax.random.key_data(v) if jnp.issubdtype(v.dtype, jax.dtypes.prng_key) else v for v in values]
    jax.debug.callback(_Call(listener, axes, differentiated), *told)
    return list(values)


class _Call(NamedTuple):
    listener: Listener
    axes: Axes
    differentiated: bool

    def __call__(self, *values: Any) -> None:
        self.listener([np.asarray(v) for v in values], self.axes, self.differentiated)


def _batched(
    values: Sequence[Any], dims: Sequence[Any], *, listener: Listener, axes: Axes, differentiated: bool
) -> Any:
    placed = tuple(dims)
    size = next(v.shape[d] for v, d in zip(values, placed, strict=True) if d is not None)
    passed = _tap.bind(*values, listener=listener, axes=(*axes, (size, placed)), differentiated=differentiated)
    return passed, dims


def _differentiated(primals: Sequence[Any], tangents: Sequence[Any], *, differentiated: bool, **params: Any) -> Any:
    perturbed = any(type(t) is not ad.Zero for t in tangents)
    return _tap.bind(*primals, differentiated=differentiated or perturbed, **params), list(tangents)


def _transposed(cotangents: Sequence[Any], *values: Any, **params: Any) -> list[Any]:
    del params
    return [g if ad.is_undefined_primal(v) else None for g, v in zip(cotangents, values, strict=True)]


_tap.def_impl(_told)
_tap.def_abstract_eval(lambda *avals, **_: list(avals))
batching.primitive_batchers[_tap] = _batched
ad.primitive_jvps[_tap] = _differentiated
ad.primitive_transposes[_tap] = _transposed
mlir.register_lowering(_tap, mlir.lower_fun(_told, multiple_results=True))
