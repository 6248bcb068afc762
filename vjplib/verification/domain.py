"""The domain of a call, by example: which properties its arrays have, and derived arrays that have them too.

A call proves a rule at its arguments. What is derived from them, scaled, filled or resized, is fair to ask only where
the function is defined. So each property that a given array has exactly is taken for a condition, unless the caller
states otherwise: resized arrays keep it, and what differs at inputs without it is a doubt, no failure.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vjplib.compat import is_key
from vjplib.verification.report import Finding, finding
from vjplib.verification.tolerance import Error

if TYPE_CHECKING:
    from vjplib.verification.call import CallUnderTest, Leaves

Draw = Callable[[np.random.Generator, Mapping[int, int]], Sequence[Any]]
Stated = Mapping[str, str | Sequence[str]] | Draw
CHANCE = 0.01  # that as many normal numbers have one sign, none smaller, or none larger, than the given ones
MANY = 16  # fewer normal numbers may all lie in [-1, 1] by chance
LONG = 4  # fewer numbers may be sorted by chance
STRUCTURED = 100_000  # elements, above which no matrix is decomposed
DRAWS = 3
_LEAST_FACTOR = 0.8  # of repeated numbers, which are made different so that there are no ties


class Property(NamedTuple):
    """A property of an array.

    Args:
        name: as in "x is positive".
        holds: True for arrays that have it.
        restored: takes an array in float64 that has it but for rounding; returns one that has it.
        tangent: takes an array in float64 and a direction; returns the part of the direction along which it stays.
        axis: along which the array is sorted.
    """

    name: str
    holds: Callable[[np.ndarray], bool]
    restored: Callable[[np.ndarray], np.ndarray] | None = None
    tangent: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None
    axis: int | None = None


def _exact(a: np.ndarray) -> np.ndarray:
    return np.asarray(a).astype(np.float64)


def _near(a: np.ndarray, b: np.ndarray, like: np.ndarray) -> bool:
    """Return True if arrays are equal but for rounding in the dtype of another."""
    digits = float(jnp.finfo(like.dtype).eps) if jnp.issubdtype(like.dtype, jnp.floating) else 0.0
    return bool(np.all(np.abs(a - b) <= 8 * digits * max(1, like.shape[-1]) ** 0.5 * np.max(np.abs(b), initial=0.0)))


# Bounds
_BOUNDS: dict[str, Callable[[np.ndarray], Any]] = {
    "positive": lambda a: a > 0,
    "negative": lambda a: a < 0,
    "non-negative": lambda a: a >= 0,
    "non-positive": lambda a: a <= 0,
    "in (0, 1)": lambda a: (a > 0) & (a < 1),
    "in [0, 1]": lambda a: (a >= 0) & (a <= 1),
    "in [-1, 1]": lambda a: np.abs(a) <= 1,
}


def _within(a: np.ndarray, name: str) -> bool:
    return bool(np.all(_BOUNDS[name](_exact(a))))


def _bounds(a: np.ndarray) -> Iterator[str]:
    """Yield the strictest bounds that say something of an array."""
    size = np.abs(_exact(a))
    least, most = (math.erf(float(x) / math.sqrt(2)) / 2 for x in (np.min(size), np.max(size)))  # of normal numbers
    for strict, other in (("positive", "non-negative"), ("negative", "non-positive"), ("in (0, 1)", "in [0, 1]")):
        chance = 2 * (most if strict == "in (0, 1)" else min(0.5 - least, most)) ** a.size
        if _within(a, strict) and chance <= CHANCE:
            yield strict
        elif np.any(a == 0) and np.any(a) and _within(a, other):  # a normal number is never 0
            yield other
    both = np.any(a > 0) and np.any(a < 0)
    if a.size >= MANY and both and _within(a, "in [-1, 1]") and np.max(np.abs(_exact(a))) >= 0.5:
        yield "in [-1, 1]"


# Order
def _is_sorted(a: np.ndarray, axis: int, sign: int, strict: bool) -> bool:
    steps = sign * np.diff(_exact(a), axis=axis)
    return bool(np.all(steps > 0 if strict else steps >= 0))


def _order(a: np.ndarray, least: int = LONG) -> Iterator[Property]:
    for axis in (0, -1)[: a.ndim]:
        for sign, word in ((1, "increasing"), (-1, "decreasing")):
            for strict in (True, False):
                holds = partial(_is_sorted, axis=axis, sign=sign, strict=strict)
                if a.shape[axis] >= least and holds(a) and np.unique(a).size > 2:
                    where = f" along axis {axis % a.ndim}" if a.ndim > 1 else ""
                    yield Property(f"{'strictly ' if strict else ''}{word}{where}", holds, axis=axis)
                    return


def _all_different(a: np.ndarray) -> bool:
    return np.unique(a).size == a.size


def _permuted(a: np.ndarray) -> bool:
    return bool(np.array_equal(np.sort(a), np.arange(a.size)))


# Matrices, the last two axes; and rows, the last axis
def _turned(a: np.ndarray) -> np.ndarray:
    return np.swapaxes(a, -1, -2)


def _square(a: np.ndarray) -> bool:
    return a.ndim >= 2 and a.shape[-1] == a.shape[-2] >= 2


def _symmetric(a: np.ndarray) -> bool:
    return _square(a) and _near(_exact(a), _turned(_exact(a)), a)


def _mirrored(a: np.ndarray) -> np.ndarray:
    return (a + _turned(a)) / 2


def _definite(a: np.ndarray) -> bool:
    if not _symmetric(a):
        return False
    try:
        np.linalg.cholesky(_exact(a))
    except np.linalg.LinAlgError:
        return False
    return True


def _orthonormal(a: np.ndarray) -> bool:
    if a.ndim < 2 or not a.shape[-2] >= a.shape[-1] >= 2:
        return False
    q = _exact(a)
    return _near(_turned(q) @ q, np.broadcast_to(np.eye(a.shape[-1]), (*a.shape[:-2], *a.shape[-1:] * 2)), a)


def _polar(a: np.ndarray) -> np.ndarray:
    u, _, v = np.linalg.svd(a, full_matrices=False)
    return u @ v


def _along_orthonormal(q: np.ndarray, t: np.ndarray) -> np.ndarray:
    return t - q @ _mirrored(_turned(q) @ t)


def _lower(a: np.ndarray) -> bool:
    return _square(a) and a.shape[-1] > 2 and not np.any(np.triu(a, 1)) and bool(np.any(np.tril(a, -1)))


def _upper(a: np.ndarray) -> bool:
    return _lower(_turned(a)) if a.ndim >= 2 else False


def _sums(a: np.ndarray) -> bool:
    return a.ndim >= 1 and a.shape[-1] > 2 and _near(_exact(a).sum(-1), np.ones(a.shape[:-1]), a)


def _norms(a: np.ndarray) -> bool:
    return a.ndim >= 1 and a.shape[-1] > 2 and _near(np.square(_exact(a)).sum(-1), np.ones(a.shape[:-1]), a)


def _logs(a: np.ndarray) -> bool:
    if a.ndim < 1 or a.shape[-1] < 3 or np.any(a > 0):
        return False
    return _near(np.exp(_exact(a)).sum(-1), np.ones(a.shape[:-1]), a)


def _unit_sum(a: np.ndarray) -> np.ndarray:
    return a / a.sum(-1, keepdims=True)


def _unit(a: np.ndarray) -> np.ndarray:
    return a / np.sqrt(np.square(a).sum(-1, keepdims=True))


def _normalized(a: np.ndarray) -> np.ndarray:
    return a - np.log(np.exp(a).sum(-1, keepdims=True))


def _without(n: np.ndarray, t: np.ndarray) -> np.ndarray:
    """Return a direction without its part along rows n."""
    return t - n * (n * t).sum(-1, keepdims=True) / np.square(n).sum(-1, keepdims=True)


_STRUCTURES = (
    Property("positive definite", _definite, _mirrored, lambda x, t: _mirrored(t)),
    Property("symmetric", _symmetric, _mirrored, lambda x, t: _mirrored(t)),
    Property("orthonormal", _orthonormal, _polar, _along_orthonormal),
    Property("lower triangular", _lower, None, lambda x, t: np.tril(t)),
    Property("upper triangular", _upper, None, lambda x, t: np.triu(t)),
    Property("of rows that sum to 1", _sums, _unit_sum, lambda x, t: _without(np.ones_like(x), t)),
    Property("of rows of norm 1", _norms, _unit, lambda x, t: _without(x, t)),
    Property("of log-probabilities", _logs, _normalized, lambda x, t: _without(np.exp(x), t)),
)
_INTEGERS = (Property("a permutation", _permuted), Property("all different", _all_different))
NAMES = (
    "real",
    "sorted",
    *(name for name in _BOUNDS),
    *(p.name.removeprefix("of ").removeprefix("a ") for p in (*_STRUCTURES, *_INTEGERS)),
)
"""What an argument may be stated to be; "real" for no property at all."""


def properties(a: Any) -> tuple[Property, ...]:
    """Return the properties that an array has exactly, none that it might have by chance.

    Example:
        >>> [p.name for p in properties(np.array([0.1, 0.2, 0.4, 0.7]))]
        ['positive', 'in (0, 1)', 'strictly increasing']
        >>> [p.name for p in properties(np.array([2, 0, 1]))], properties(np.array([0.5, -1.0, 2.0]))
        (['a permutation'], ())
    """
    if is_key(a):
        return ()
    a = np.asarray(a)
    if not a.size or (a.size > 1 and np.all(a == a.flat[0])):  # an array filled with a number states nothing
        return ()
    if jnp.issubdtype(a.dtype, jnp.integer):
        order = _order(a) if a.ndim == 1 else ()
        return (*[p for p in _INTEGERS if a.ndim == 1 and a.size > 2 and p.holds(a)][:1], *order)
    if not jnp.issubdtype(a.dtype, jnp.floating) or not np.all(np.isfinite(_exact(a))):
        return ()
    bounds = [Property(name, partial(_within, name=name)) for name in _bounds(a)]
    structures = [p for p in _STRUCTURES if a.size <= STRUCTURED and p.holds(a)]
    if structures and structures[0].name == "positive definite":
        del structures[1]  # symmetric
    return (*bounds, *_order(a), *structures)


def _named(name: str, a: np.ndarray) -> Property | None:
    """Return a property by its name if an array has it."""
    if name == "sorted":
        return next(_order(a, 1), None)
    if name in _BOUNDS:
        return Property(name, partial(_within, name=name)) if _within(a, name) else None
    found = next(p for p in (*_STRUCTURES, *_INTEGERS) if p.name.removeprefix("of ").removeprefix("a ") == name)
    return found if found.holds(a) else None


@dataclass(frozen=True)
class Domain:
    """The properties of each array of a call, by the number of the leaf.

    Args:
        properties: of each leaf of the positional arguments.
        draw: takes a generator and the size that each size of the call becomes; returns positional arguments.
        stated: the leaves whose properties the caller states, so that nothing else is taken from their numbers.
    """

    properties: tuple[tuple[Property, ...], ...]
    draw: Draw | None = None
    stated: frozenset[int] = frozenset()

    def __reduce__(self) -> Any:
        """Return what a process with other devices needs: nothing, for it derives no calls."""
        return Domain, ((),)

    def of(self, i: int) -> tuple[Property, ...]:
        """Return the properties of a leaf."""
        return self.properties[i] if i < len(self.properties) else ()

    def within(self, i: int, a: np.ndarray) -> np.ndarray:
        """Return where numbers keep the bounds of a leaf."""
        return np.logical_and.reduce(
            [np.full(a.shape, True), *(_BOUNDS[p.name](a) for p in self.of(i) if p.name in _BOUNDS)]
        )

    def lost(self, i: int, a: np.ndarray) -> str:
        """Return the properties of a leaf that an array in its place does not have, in words.

        Subnormal numbers count as the zeros that the platform may take them for.
        """
        if jnp.issubdtype(a.dtype, jnp.floating):
            a = np.where(np.abs(a) < jnp.finfo(a.dtype).smallest_normal, np.zeros_like(a), a)
        return ", ".join(p.name for p in self.of(i) if not p.holds(a))

    def restored(self, i: int, a: np.ndarray) -> np.ndarray:
        """Return an array in float64 whose properties hold to its digits, not only to those it was rounded to."""
        for p in self.of(i):
            a = p.restored(a) if p.restored else a
        return a

    def tangent(self, places: Sequence[int], leaves: "Leaves", directions: "Leaves") -> "Leaves | None":
        """Return the part of directions along which the properties stay; None if that is all of them."""
        if not any(p.tangent for i in places for p in self.of(i)):
            return None
        along = []
        for i, x, t in zip(places, leaves, directions, strict=True):
            for p in self.of(i):
                t = p.tangent(np.asarray(x), np.asarray(t)) if p.tangent else t
            along.append(t)
        return tuple(along)

    def redrawn(self, args: tuple[Any, ...], seed: Any, sizes: Mapping[int, int]) -> tuple[Any, ...]:
        """Return arguments drawn by the caller's function, in the dtypes of the given ones; others as given."""
        assert self.draw is not None
        return drawn(self.draw, args, np.random.default_rng(seed), sizes)


class Sizes(dict[int, int]):
    """What each size becomes; sizes that stay need not be named."""

    def __missing__(self, n: int) -> int:
        return n


def drawn(
    draw: Draw, args: tuple[Any, ...], rng: np.random.Generator, sizes: Mapping[int, int] | None = None
) -> tuple[Any, ...]:
    """Return arguments as a caller's function draws them.

    Raises:
        ValueError: it returns another number of arguments, or other trees.
    """
    new = draw(rng, Sizes(sizes or {}))
    if not isinstance(new, (tuple, list)) or len(new) != len(args):
        raise ValueError(f"domain must return a tuple of {len(args)} arguments, returned {new!r:.60}")

    def cast(given: Any, other: Any) -> Any:
        return other if is_key(given) else np.asarray(other, jnp.result_type(given))

    try:
        return tuple(a if not jax.tree.leaves(a) else jax.tree.map(cast, a, b) for a, b in zip(args, new, strict=True))
    except (TypeError, ValueError) as error:
        raise ValueError(f"domain must return arguments of the trees given: {error}") from error


def domain_of(args: tuple[Any, ...], stated: Stated | None, names: Sequence[str], seed: int) -> Domain:
    """Return the domain that arguments state by example, as far as the caller states no other.

    Args:
        args: positional arguments, pytrees of arrays.
        stated: names of properties by the names of arguments or of leaves; or a function that draws arguments.
        names: the names of the positional arguments.
        seed: of the draws.

    Raises:
        TypeError: stated is neither.
        ValueError: an argument or a property is not known, or an argument does not have a property.
    """
    leaves = jax.tree.leaves(args)
    found = [properties(a) for a in leaves]
    if stated is None:
        return Domain(tuple(found))
    if callable(stated):
        for k in range(DRAWS):
            new = jax.tree.leaves(drawn(stated, args, np.random.default_rng((seed, 9, k))))
            shapes = [[np.shape(a) for a in part] for part in (leaves, new)]
            if shapes[0] != shapes[1]:
                raise ValueError(f"domain must draw arrays of the shapes given, {shapes[0]}, drew {shapes[1]}")
            found = [tuple(p for p in ps if p.holds(np.asarray(a))) for ps, a in zip(found, new, strict=True)]
        return Domain(tuple(found), stated, frozenset(range(len(leaves))))
    if not isinstance(stated, Mapping):
        raise TypeError(f"domain must map arguments to properties, or be a function that draws, got {stated!r:.60}")
    paths = [path for path, _ in jax.tree.leaves_with_path(args)]
    arguments: list[str] = [names[int(path[0].idx)] for path in paths]
    of = [(name, name + jax.tree_util.keystr(path[1:])) for name, path in zip(arguments, paths, strict=True)]
    if unknown := [key for key in stated if not any(key in known for known in of)]:
        raise ValueError(f"domain must name arguments, of {', '.join(dict.fromkeys(n for n, _ in of))}, got {unknown}")
    of_caller = set[int]()
    for i, known in enumerate(of):
        for key in known:
            if key in stated:
                of_caller.add(i)
                given = stated[key]
                wanted: list[str] = [given] if isinstance(given, str) else list(given)
                found[i] = tuple(_stated(key, name, np.asarray(leaves[i])) for name in wanted if name != "real")
    return Domain(tuple(found), stated=frozenset(of_caller))


def _stated(key: str, name: str, a: np.ndarray) -> Property:
    if name not in NAMES:
        raise ValueError(f"domain of {key} must be among {', '.join(NAMES)}, got {name!r}")
    found = _named(name, a)
    if found is None:
        raise ValueError(f"domain says that {key} is {name}, and the given array is not")
    return found


# ---------------------------------------------------------------------------------------------------------- resizing
def resized(
    value: Any, shape: tuple[int, ...], kept: Sequence[Property], rng: np.random.Generator, smaller: bool, below: int
) -> Any:
    """Return an array of another shape with the same properties.

    Args:
        value: the array; a key of random numbers stays as it is.
        shape: that of the result.
        kept: the properties.
        rng: for the differences between repeated numbers.
        smaller: whether an axis of the call shrinks: integers may index it.
        below: what different integers are taken below.

    Raises:
        ValueError: no array of this shape with these properties was found.
    """
    if is_key(value):
        if np.shape(value) != shape:
            raise ValueError("a key of random numbers keeps its shape")
        return value
    a = np.asarray(value)
    if a.shape == shape and not (smaller and jnp.issubdtype(a.dtype, jnp.integer)):
        return value
    if jnp.issubdtype(a.dtype, jnp.integer):
        new = _integers(a, shape, kept, smaller, below)
    elif jnp.issubdtype(a.dtype, jnp.floating) and a.size:
        new = _numbers(_exact(a), shape, kept, rng)
    else:
        new = np.resize(a, shape)
    new = np.asarray(new).astype(a.dtype)
    if new.size and not all(p.holds(new) for p in kept):
        raise ValueError(f"no array of shape {shape} was found that is {', '.join(p.name for p in kept)}")
    return new


def _integers(a: np.ndarray, shape: tuple[int, ...], kept: Sequence[Property], smaller: bool, below: int) -> Any:
    names = {p.name for p in kept}
    if "a permutation" in names:
        return np.concatenate((a[a < shape[0]], np.arange(a.size, max(shape[0], a.size))))
    if "all different" in names:
        if shape[0] <= a.size:
            first = a[: shape[0]]
            new = np.argsort(np.argsort(first)) if smaller else first
        else:
            unused = np.setdiff1d(np.arange(below), a)[: shape[0] - a.size]
            new = np.concatenate((a, unused))
            if new.size < shape[0]:
                raise ValueError("there are not as many different integers")
    else:
        new = np.resize(a, shape)
        new = new % max(1, min(shape, default=1)) if smaller and new.size else new  # they may index an axis
    for p in kept:
        if p.axis is not None:
            new = np.sort(new) if "increasing" in p.name else np.sort(new)[::-1]
    return new


def _numbers(a: np.ndarray, shape: tuple[int, ...], kept: Sequence[Property], rng: np.random.Generator) -> np.ndarray:
    names = {p.name for p in kept}
    n, m = (s[-1] if s else 1 for s in (a.shape, shape))
    signed = not names & {"positive", "negative", "non-negative", "non-positive", "in (0, 1)", "in [0, 1]"}
    if names & {"of rows that sum to 1", "of rows of norm 1", "of log-probabilities"}:
        rows = np.resize(a, (*shape[:-1], n))[..., np.arange(m) % n]
        rows = _varied(rows, shape[:-1] != a.shape[:-1] or m > n, rng)
        return next(p.restored for p in kept if p.restored)(rows)
    if "orthonormal" in names:
        return np.linalg.qr(np.resize(a, shape) + rng.standard_normal(shape) / 4)[0]
    if names & {"positive definite", "symmetric", "lower triangular", "upper triangular"}:
        return _blocks(np.resize(a, (*shape[:-2], n, n)), m, None)
    axis = next((p.axis for p in kept if p.axis is not None), None)
    if axis is not None:
        moved = np.moveaxis(a, axis, -1)
        turned = list(shape)
        length = turned.pop(axis)
        rows = np.resize(moved, (*turned, moved.shape[-1]))
        if moved.shape[-1] != length:
            at = np.linspace(0, moved.shape[-1] - 1, length)
            rows = np.apply_along_axis(lambda row: np.interp(at, np.arange(row.size), row), -1, rows)
        return np.moveaxis(rows, -1, axis)
    if _square(a) and len(shape) >= 2 and shape[-1] == shape[-2] > n and signed:
        return _blocks(np.resize(a, (*shape[:-2], n, n)), m, rng)  # an invertible matrix stays one
    new = np.resize(a, shape)
    return _varied(new, new.size > a.size and _all_different(a), rng, a.size)


def _varied(a: np.ndarray, vary: bool, rng: np.random.Generator, last: int = 0) -> np.ndarray:
    """Return repeated numbers each a little smaller, the last ones as given: there are no ties then."""
    if not vary:
        return a
    new = np.array(a)
    count = new.size - last
    new.flat[:count] *= rng.uniform(_LEAST_FACTOR, 1.0, count)
    return new


def _blocks(a: np.ndarray, m: int, rng: np.random.Generator | None) -> np.ndarray:
    """Return square matrices of another size: the leading block, or the matrix again and again along the diagonal.

    The blocks differ in size, so that no eigenvalue is there twice. With a generator, the rest is small, not zero.
    """
    n = a.shape[-1]
    if m <= n:
        return a[..., :m, :m]
    new = np.zeros((*a.shape[:-2], m, m))
    if rng is not None:
        new += rng.standard_normal(new.shape) * (np.sqrt(np.mean(np.square(a))) / (20 * m))
    for k, start in enumerate(range(0, m, n)):
        size = min(n, m - start)
        factor = 1 + 0.11 * k if rng is None else 1 - 0.5 * k * n / m
        new[..., start : start + size, start : start + size] = factor * a[..., :size, :size]
    return new


# ------------------------------------------------------------------------------------------- scaled and filled inputs
def calls(
    subject: "CallUnderTest", leaves: "Leaves", *others: "Leaves"
) -> Iterator[tuple["Leaves", Mapping[str, str], tuple[str, ...]]]:
    """Yield calls derived from the given one, the one inside its domain first.

    Args:
        subject: the given call.
        leaves: the derived leaves, scaled or filled.
        others: other leaves, the first of which that has the properties of the given stands in for one that has not;
            the given one stands in where none has.

    Each comes with the properties that its leaves lost, by their names, and with the names of the leaves that something
    else stands in for.
    """
    domain = subject.domain
    if domain is None or not any(map(domain.of, subject.differentiable)):
        yield leaves, {}, ()
        return
    given = tuple(a.astype(b.dtype) for a, b in zip(subject.leaves(), leaves, strict=True))
    inside, lost = list(leaves), {}
    for j, (i, name) in enumerate(zip(subject.differentiable, subject.names, strict=True)):
        if words := domain.lost(i, leaves[j]):
            lost[name] = words
            inside[j] = next((o[j] for o in others if not domain.lost(i, o[j])), given[j])
    if lost and not all(a is b or np.array_equal(a, b) for a, b in zip(inside, given, strict=True)):
        yield tuple(inside), {}, tuple(lost)
    yield leaves, lost, ()


def zeroed(subject: "CallUnderTest", leaves: "Leaves") -> "Leaves":
    """Return leaves moved so that the middle number of each is zero: sorted ones stay sorted."""
    with np.errstate(invalid="ignore"):  # infinity from infinity
        return tuple((a - _middle(a)).astype(a.dtype) for a in leaves)


def tied(subject: "CallUnderTest", leaves: "Leaves") -> "Leaves":
    """Return leaves filled with the middle number of each: bounds are kept."""
    return tuple(np.full_like(a, _middle(a)) for a in leaves)


def turned(subject: "CallUnderTest", leaves: "Leaves") -> "Leaves":
    """Return leaves with each sorted axis reversed."""
    if subject.domain is None:
        return leaves
    new = []
    for i, a in zip(subject.differentiable, leaves, strict=True):
        for p in subject.domain.of(i):
            a = np.flip(a, p.axis) if p.axis is not None else a
        new.append(a)
    return tuple(new)


def _middle(a: np.ndarray) -> Any:
    return np.sort(a.ravel())[a.size // 2] if a.size else 0


def leaves_range(subject: "CallUnderTest", errors: Sequence[tuple[str, Error]], outputs: int) -> bool:
    """Return True if the function itself, without its rule, is not finite in the working dtype where it is in float64.

    Where the author gave a reference, that is the function; the draws of a record state its domain.
    """
    own = subject.domain is not None and subject.reference is None
    return own and any(e.lost or e.overflows for _, e in errors[:outputs])


class Doubt(NamedTuple):
    """A difference at a call outside the domain: where, in which arrays, and what the inputs lost.

    Nothing is lost where the function itself leaves the range of its numbers.
    """

    where: str
    arguments: tuple[str, ...]
    lost: Mapping[str, str]


def as_findings(doubts: Sequence[Doubt]) -> Iterator[Finding]:
    """Yield a doubt for each set of properties lost, with its remedy."""
    groups: dict[str, list[Doubt]] = {}
    for d in doubts:
        groups.setdefault(repr(sorted(d.lost.items())), []).append(d)
    for same in groups.values():
        lost = same[0].lost
        where = joined(list(dict.fromkeys(d.where for d in same)))
        if not lost:
            message = f"right at your call; at {where} the function itself, without its rule, is not finite in float32"
            yield finding("doubt", "", f"{message}, and is in float64; a reference= that is finite makes it a failure")
            continue
        has = joined([f"{name} is {words}" for name, words in lost.items()])
        remedy = ", ".join(f"{name!r}: 'real'" for name in lost)
        arguments = list(dict.fromkeys(a for d in same for a in d.arguments if a))
        message = f"right at your call; differs at {where}, where it no longer holds that {has}"
        yield finding("doubt", "", f"{message}; domain={{{remedy}}} makes it a failure", joined(arguments))


def joined(words: Sequence[str]) -> str:
    """Return words as a list in a sentence.

    Example:
        >>> joined(["a"]), joined(["a", "b", "c"])
        ('a', 'a, b and c')
    """
    return f"{', '.join(words[:-1])} and {words[-1]}" if len(words) > 1 else "".join(words)
