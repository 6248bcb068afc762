"""The data axis: which axes of a call are data, to be split over devices, and which arrays are weights, held by each.

An axis is data if the function of a part of it is that part of the function of the whole, or if the parts add up to the
whole: then each device may compute a part. It is found by computing. A record's dimensions are tried by name, the
leading axes of any other call by size. A function without such an axis is mapped over a new one by `jax.vmap`.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vjplib.compat import fast_compile_options
from vjplib.verification.call import CallUnderTest, Leaves, attempt, combine, inexact, unwrap
from vjplib.verification.tolerance import relative_gap

Axes = tuple[int | None, ...]
Kind = int | str  # of an output: the axis of the data in it, or SUM or MEAN of its parts
SUM, MEAN = "sum", "mean"
_LEAST = 17  # a prime above the sizes of small examples: an array whose size it divides has the data in it
_MOST_CHOICES = 16


class SplitCall(NamedTuple):
    """A call whose data can be split over devices.

    Args:
        of: takes a function of the subject's arguments; returns it as one of the arrays, to its floating outputs.
        arrays: every array of the call, those of keyword arguments too.
        axes: along which axis each is data; None for weights.
        outputs: what each output is made of.
        differentiated: which of the arrays are differentiated.
        block: the size of the data on one device; a prime that divides no other size, if the function takes any size.
        described: the data, in words.
        mapped: whether its axis is one made by `jax.vmap`.
    """

    of: Callable[[Callable[..., Any]], Callable[..., Leaves]]
    arrays: tuple[Any, ...]
    axes: Axes
    outputs: tuple[Kind, ...]
    differentiated: tuple[int, ...]
    block: int
    described: str
    mapped: bool = False


def find_data_axis(subject: CallUnderTest, parts: int, dtype: Any) -> SplitCall | None:
    """Return the call with data that divides by a number of devices, in a dtype; None if there is no data axis."""
    leaves, tree = jax.tree.flatten((subject.args, dict(subject.kwargs)))
    which = [i for i, leaf in enumerate(leaves) if hasattr(leaf, "dtype")]
    arrays = [np.asarray(leaves[i]) for i in which]
    differentiated = tuple(which.index(i) for i in subject.differentiable)
    for i in differentiated:
        arrays[i] = arrays[i].astype(jnp.result_type(dtype, jnp.complex64) if np.iscomplexobj(arrays[i]) else dtype)

    def of(f: Callable[..., Any]) -> Callable[..., Leaves]:
        def run(*arrays: Any) -> Leaves:
            args, kwargs = jax.tree.unflatten(tree, combine(leaves, which, arrays))
            return inexact(f(*unwrap(args), **kwargs))

        return run

    def split(of: Any, arrays: tuple[Any, ...], axes: Axes, block: int, *described: Any) -> SplitCall | None:
        outputs = _outputs(of(subject.fn), arrays, axes, parts)
        return SplitCall(of, arrays, axes, outputs, differentiated, block, *described) if outputs else None

    rng = np.random.default_rng((subject.seed, 6))
    best: SplitCall | None = None
    for axes in itertools.islice(_choices(subject, [a.shape for a in arrays], which, tree), _MOST_CHOICES):
        if all(axes[i] is None for i in differentiated):
            continue
        (n,) = {a.shape[k] for a, k in zip(arrays, axes, strict=True) if k is not None}
        rest = [m for a, k in zip(arrays, axes, strict=True) for j, m in enumerate(a.shape) if j != k]
        named = zip(subject.names, differentiated, strict=True)
        where = ", ".join(f"axis {axes[i]} of {name}" for name, i in named if axes[i] is not None)
        for block in dict.fromkeys((_prime(rest), n)):
            resized = tuple(_resized(a, k, parts * block, rng) for a, k in zip(arrays, axes, strict=True))
            if found := split(of, resized, axes, block, where):
                if all(kind in (0, SUM, MEAN) for kind in found.outputs):  # layers return the batch first
                    return found
                best = best or found
                break
    if best is not None:
        return best
    # The call mapped by vmap over a new leading axis of the first differentiated argument.
    axes = tuple(0 if i == differentiated[0] else None for i in range(len(arrays)))
    block = _prime([m for a in arrays for m in a.shape])
    new = tuple(_resized(a[None], 0, parts * block, rng) if k == 0 else a for a, k in zip(arrays, axes, strict=True))

    def mapped(f: Callable[..., Any]) -> Callable[..., Leaves]:
        return jax.vmap(of(f), in_axes=axes)

    return split(mapped, new, axes, block, f"a leading axis of {subject.names[0]}, mapped over by jax.vmap", True)


def _choices(
    subject: CallUnderTest, shapes: Sequence[tuple[int, ...]], which: Sequence[int], tree: Any
) -> Iterator[Axes]:
    """Yield candidate axes: dimensions by name, leading axes first; then leading axes of one size, most first."""
    paths = [path for path, _ in jax.tree.leaves_with_path(tree.unflatten(range(tree.num_leaves)))]
    named = []
    for name, n in subject.sizes.items():
        args, kwargs = subject.resize({name: n + 1}) if subject.resize else ((), {})
        given = iter(jax.tree.leaves(args))
        new = [next(given) if paths[i][0].idx == 0 else kwargs.get(paths[i][1].key) for i in which]
        changed = [
            [] if a is None else [k for k, (m, old) in enumerate(zip(a.shape, shape, strict=True)) if m != old]
            for a, shape in zip(new, shapes, strict=True)
        ]
        if all(len(ks) <= 1 for ks in changed) and any(changed):
            named.append(tuple(ks[0] if ks else None for ks in changed))
    first = which.index(subject.differentiable[0])
    yield from sorted(
        dict.fromkeys(named), key=lambda axes: (max(k for k in axes if k is not None), axes[first] is None)
    )
    for n in dict.fromkeys(shape[0] for shape in shapes if shape and shape[0]):
        alike = [i for i, shape in enumerate(shapes) if shape and shape[0] == n]
        for count in range(len(alike), 0, -1):
            for chosen in itertools.combinations(alike, count):
                yield tuple(0 if i in chosen else None for i in range(len(shapes)))


def _outputs(run: Callable[..., Leaves], arrays: tuple[Any, ...], axes: Axes, parts: int) -> tuple[Kind, ...] | None:
    """Return the kind of each output; None if one is not made of parts, or the function refuses these sizes."""
    data = [i for i, k in enumerate(axes) if k is not None]
    stacked = [np.stack(np.split(a, parts, k)) for a, k in zip(arrays, axes, strict=True) if k is not None]

    def both(arrays: tuple[Any, ...], stacked: Sequence[Any]) -> Any:
        return run(*arrays), jax.lax.map(lambda part: run(*combine(arrays, data, part)), stacked)

    compiled = jax.jit(both, compiler_options=fast_compile_options())
    found = attempt(lambda: jax.tree.map(np.asarray, compiled(arrays, stacked)))
    if isinstance(found, Exception):
        return None
    kinds = [_kind(y, piece) for y, piece in zip(*found, strict=True)]
    known = tuple(kind for kind in kinds if kind is not None)
    return known if known and len(known) == len(kinds) else None


def _kind(y: np.ndarray, pieces: np.ndarray) -> Kind | None:
    near = float(np.sqrt(jnp.finfo(y.dtype).eps))
    if y.size and not np.isfinite(y).any():
        return None
    for k in range(y.ndim):
        joined = np.concatenate(list(pieces), axis=k)
        if joined.shape == y.shape and relative_gap(joined, y) <= near:
            return k
    if pieces.shape[1:] == y.shape:
        for kind, total in ((MEAN, pieces.mean(0)), (SUM, pieces.sum(0))):
            if relative_gap(total.astype(y.dtype), y) <= near:
                return kind
    return None


def _resized(a: np.ndarray, axis: int | None, size: int, rng: np.random.Generator) -> np.ndarray:
    """Return an array with an axis made longer or shorter, its entries repeated, floating ones scaled at random."""
    if axis is None:
        return a
    longer = np.take(a, np.arange(size) % a.shape[axis], axis)
    if not jnp.issubdtype(a.dtype, jnp.inexact):
        return longer
    return (longer * rng.uniform(0.5, 1.0, longer.shape)).astype(a.dtype)


def _prime(sizes: Sequence[int]) -> int:
    """Return a prime that divides none of the sizes."""
    candidates = (n for n in itertools.count(_LEAST) if all(n % d for d in range(2, int(n**0.5) + 1)))
    return next(p for p in candidates if all(m % p for m in sizes if m))
