"""Avals: shapes and dtypes that a rule's passes return, beside those of its primal's outputs and of its arguments."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp


@dataclass(frozen=True)
class Aval:
    """Shape, dtype and weak type of an array."""

    shape: tuple[int, ...]
    dtype: Any
    weak: bool = False

    def __str__(self) -> str:
        """Return it as messages show it."""
        return f"{'weak ' if self.weak else ''}{self.dtype} of shape {self.shape}"


class Mismatch(NamedTuple):
    """What a pass returns in place of what its rule owes.

    Args:
        kind: "tree" where pytrees differ, "integer" where an integer argument gets numbers for a cotangent, "weak"
            where the weak type alone differs; otherwise "shape" or "dtype".
        given: what the pass returns: an `Aval`, or the structure of a pytree.
        wanted: the same of the primal's output, or of the argument.
        path: where in the pytree, as `jax.tree_util.keystr` writes it.
    """

    kind: Literal["tree", "integer", "shape", "dtype", "weak"]
    given: Any
    wanted: Any
    path: str = ""


def aval_of(a: Any) -> Aval:
    """Return the aval of an array, a tracer, a `jax.ShapeDtypeStruct`, a symbolic zero or a Python number.

    Example:
        >>> str(aval_of(2.0))
        'weak float32 of shape ()'
    """
    if not hasattr(a, "shape"):
        a = jax.typeof(a)
    return Aval(tuple(a.shape), a.dtype, bool(getattr(a, "weak_type", False)))


def avals_of(tree: Any) -> tuple[Any, tuple[Aval | None, ...]]:
    """Return the structure of a pytree, its Nones being leaves, and the aval of each leaf; both can be hashed."""
    leaves, structure = jax.tree.flatten(tree, is_leaf=lambda a: a is None)
    return structure, tuple(None if a is None else aval_of(a) for a in leaves)


def output_mismatches(primal: Any, forward: Any) -> Iterator[Mismatch]:
    """Yield where the outputs of a forward pass are not the primal's.

    Example:
        >>> x = jax.ShapeDtypeStruct((3,), jnp.float32)
        >>> [mismatch.kind for mismatch in output_mismatches(x, (jax.ShapeDtypeStruct((3,), jnp.float16),))]
        ['tree', 'dtype']
    """
    structures = jax.tree.structure(forward), jax.tree.structure(primal)
    if structures[0] != structures[1]:
        yield Mismatch("tree", *structures)
    for (path, f), p in zip(jax.tree.leaves_with_path(forward), jax.tree.leaves(primal), strict=False):
        given, wanted = aval_of(f), aval_of(p)
        if given != wanted:
            weak = replace(given, weak=wanted.weak) == wanted
            kind = "shape" if given.shape != wanted.shape else "weak" if weak else "dtype"
            yield Mismatch(kind, given, wanted, jax.tree_util.keystr(path))


def cotangent_mismatches(argument: tuple[Any, tuple[Aval | None, ...]], cotangent: Any) -> Iterator[Mismatch]:
    """Yield where a cotangent does not fit an argument, given by its `avals_of`; None, for zeros, fits any subtree.

    Example:
        >>> list(cotangent_mismatches(avals_of(jnp.ones(3, jnp.float16)), jnp.ones(3)))
        [Mismatch(kind='dtype', given=Aval(shape=(3,), dtype=dtype('float32'), weak=False), ...)]
    """
    (tree, avals), (given, dxs) = argument, avals_of(cotangent)
    if given != tree:
        if None not in dxs:
            yield Mismatch("tree", given, tree)
        return
    for x, dx in zip(avals, dxs, strict=True):
        if x is None or dx is None:
            continue
        if not jnp.issubdtype(x.dtype, jnp.inexact):
            if dx.dtype != jax.dtypes.float0:
                yield Mismatch("integer", dx, x)
        elif (dx.shape, dx.dtype) != (x.shape, x.dtype):
            yield Mismatch("shape" if dx.shape != x.shape else "dtype", dx, x)
        elif dx.weak:
            yield Mismatch("weak", dx, x)


def broadcasts(shape: tuple[int, ...], to: tuple[int, ...]) -> bool:
    """Return True if a shape broadcasts to another."""
    return len(shape) <= len(to) and all(n in (1, m) for n, m in zip(shape[::-1], to[::-1], strict=False))
