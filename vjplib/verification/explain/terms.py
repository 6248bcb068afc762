"""Terms: where no number explains a wrong cotangent, a missing factor or term, made of the backward's own values.

Known slips are tried, in this order. An operand lacks one of the values as a factor: sum(g) for sum(g * y). A term is
missing: the mean or the projection that a normalization subtracts. The cotangent is another product altogether: a sum
over broadcast axes was forgotten. A term is a product of up to two values times the sum, over some axes, of another.
What is found must make the cotangent right at all draws, to half the digits, with one simple coefficient.
"""

import itertools
import math
import sys
from collections.abc import Collection, Sequence
from functools import partial
from types import CodeType, FrameType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from vjplib.compat import bind_eqn
from vjplib.verification.avals import broadcasts
from vjplib.verification.call import CallUnderTest
from vjplib.verification.explain.diagnose import rules_called
from vjplib.verification.explain.program import Draw, Search, backward_equations, place_of
from vjplib.verification.report import Explanation, Kind, Place

VALUES = 10  # of the backward, that products are made of
TRIES = 2000  # evaluations of the program with a factor more
ENTRIES = 4096  # of a cotangent that terms are compared at before they count
ELEMENTS = 1 << 22  # of all sums together
RANK = 4  # most axes of what is summed
HITS = 20  # terms that explain the first draw and are tried at the others
NICE = (1.0, 2.0, 3.0, 4.0, 0.5, 0.25)


class Value(NamedTuple):
    """A value of the backward: how its author writes it, and what it is at each draw."""

    name: str
    at: tuple[np.ndarray, ...]


def missing(search: Search, i: int) -> Explanation | None:
    """Return what is missing where the cotangent of leaf i is wrong, or None."""
    values, end = _values(search, i)
    return _product(search, i, values) or _term(search, i, values, end)


def _values(search: Search, i: int) -> tuple[list[Value], Place | None]:
    """Return values that the backward computes with, those with short names first, and where it ends."""
    subject = search.subject
    named, end = [], None
    codes = {code for rule, _, _ in rules_called(subject) if (code := _code(rule.bwd))}
    for draw in search.draws:
        variables, end = _variables(subject, draw, codes)
        for name, leaf in zip(subject.names, draw.leaves, strict=True):
            variables.setdefault(name, leaf)
        if len(draw.gs) == 1:
            variables.setdefault("g", draw.gs[0])
        variables |= {k: v for k, v in _expressions(search, draw).items() if k not in variables}
        named.append(variables)
    values: list[Value] = []
    for name in named[0]:
        if not all(name in other and other[name].shape == named[0][name].shape for other in named):
            continue
        value = Value(name, tuple(other[name] for other in named))
        a = value.at[0]
        wanted = a.size and np.any(a) and all(np.isfinite(v).all() for v in value.at)
        wrong = search.draws[0].given[i]
        if wanted and not any(_same(a, v.at[0]) for v in values) and not (_same(a, wrong) and not name.isidentifier()):
            values.append(value)
    return values[:VALUES], end


def _same(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and bool(np.allclose(a, b, rtol=1e-12, atol=0))


def _variables(
    subject: CallUnderTest, draw: Draw, codes: Collection[CodeType]
) -> tuple[dict[str, np.ndarray], Place | None]:
    """Return the local variables of the backward passes by name, as they are when these return, and where they do."""
    found: dict[str, np.ndarray] = {}
    clashing: set[str] = set()
    end: Place | None = None

    def watch(frame: FrameType, event: str, _: Any) -> None:
        nonlocal end
        if event != "return" or frame.f_code not in codes:
            return
        end = Place("", frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_qualname)
        for name, local in frame.f_locals.items():
            for path, v in jax.tree_util.tree_flatten_with_path(local)[0]:
                if isinstance(v, Tracer) or not _floating(v):
                    continue
                key, a = name + jax.tree_util.keystr(path), np.asarray(v)
                if key in found and not (found[key].shape == a.shape and np.array_equal(found[key], a)):
                    clashing.add(key)
                found[key] = a

    before = sys.getprofile()
    sys.setprofile(watch)
    try:
        jax.vjp(subject.call, *draw.leaves)[1](draw.gs)  # not jitted, so that the backward is given numbers
    finally:
        sys.setprofile(before)
    whole = {k: v for k, v in found.items() if k not in clashing}
    return dict(sorted(whole.items(), key=lambda item: not item[0].isidentifier())), end


def _code(f: Any) -> CodeType | None:
    while isinstance(f, partial):
        f = f.func
    return getattr(getattr(f, "__wrapped__", f), "__code__", None)


def _floating(v: Any) -> bool:
    return isinstance(v, (np.ndarray, jax.Array, float)) and jnp.issubdtype(jnp.result_type(v), jnp.floating)


def _expressions(search: Search, draw: Draw) -> dict[str, np.ndarray]:
    """Return what the equations of the backward give, by the source of their expressions."""
    found: dict[str, np.ndarray] = {}
    in_backward = backward_equations()

    def note(eqn: Any, outputs: Sequence[Any]) -> Sequence[Any]:
        if in_backward(eqn) and len(outputs) == 1 and _floating(outputs[0]) and (source := place_of(eqn).source):
            found[source] = np.asarray(outputs[0])  # the last of a line of code is all of it
        return outputs

    search.program.evaluate(draw.inputs, note)
    return found


def _product(search: Search, i: int, values: Sequence[Value]) -> Explanation | None:
    """Return the operand of the backward that lacks one of its values as a factor, or None."""
    mask = search.mask([i])
    error = np.linalg.norm(search.error(0, mask))
    tried = 0
    for (number, k, eqn, a), value, inverse in itertools.product(_operands(search), values, (False, True)):
        v = value.at[0]
        if not broadcasts(v.shape, a.shape) or (inverse and not np.all(v)):
            continue
        tried += 1
        if tried > TRIES:
            return None
        found = partial(_multiplied, search, number, k, value, inverse)
        with np.errstate(all="ignore"):
            left = np.linalg.norm(search.error(0, mask, found(0)))
        if left <= search.tolerance * error and search.holds(found, mask):
            operand = next((v.name for v in values if _same(v.at[0], a)), "")
            term = f"1 / {_in_product(value.name)}" if inverse else value.name
            named = (f"cotangent of {search.subject.names[i]}",)
            return Explanation("product", named, (place_of(eqn),), term=term, operand=operand)
    return None


def _operands(search: Search) -> list[tuple[int, int, Any, np.ndarray]]:
    """Return the equations of the backward by number, with each floating operand by number, and its value."""
    found: list[tuple[int, int, Any, np.ndarray]] = []
    numbers, in_backward = itertools.count(), backward_equations()

    def bind(eqn: Any, values: Sequence[Any], **params: Any) -> Sequence[Any]:
        number = next(numbers)
        if in_backward(eqn):
            operands = ((k, np.asarray(v)) for k, v in enumerate(values) if _floating(v) and np.size(v) > 1)
            found.extend((number, k, eqn, v) for k, v in operands)
        return bind_eqn(eqn, values, **params)

    search.program.evaluate(search.draws[0].inputs, bind=bind)
    return found


def _multiplied(search: Search, number: int, operand: int, value: Value, inverse: bool, draw: int) -> list[Any]:
    """Return the cotangents at a draw where one operand of one equation is multiplied by a value."""
    v = 1 / value.at[draw] if inverse else value.at[draw]
    numbers = itertools.count()

    def bind(eqn: Any, values: Sequence[Any], **params: Any) -> Sequence[Any]:
        if next(numbers) == number:
            values = [x * v if k == operand else x for k, x in enumerate(values)]
        return bind_eqn(eqn, values, **params)

    return search.program.evaluate(search.draws[draw].inputs, bind=bind)


class Sum(NamedTuple):
    """A sum of a product of values over some axes; over none the product itself, and 1 for no values."""

    values: tuple[Value, ...]
    axes: tuple[int, ...] = ()
    keep: bool = False

    def at(self, draw: int) -> np.ndarray:
        """Return its value at a draw."""
        product = math.prod((v.at[draw] for v in self.values), start=np.ones(()))
        return np.sum(product, self.axes, keepdims=self.keep) if self.axes else product

    @property
    def length(self) -> int:
        """How many numbers are added."""
        shape = Sum(self.values).at(0).shape
        return math.prod(shape[axis] for axis in self.axes)

    def written(self, mean: bool) -> str:
        """Return its source, with a mean in place of the sum if so asked."""
        product = " * ".join(_in_product(v.name) for v in self.values)
        if not self.axes:
            return product
        rank = Sum(self.values).at(0).ndim
        axes = tuple(a - rank if a == rank - 1 else a for a in self.axes)
        axis = f", axis={axes[0] if len(axes) == 1 else axes}" if len(axes) < rank or self.keep else ""
        return f"jnp.{'mean' if mean else 'sum'}({product}{axis}{', keepdims=True' if self.keep else ''})"


def _in_product(name: str) -> str:
    """Return source that can be a factor of a product.

    Example:
        >>> _in_product("g * y"), _in_product("x + 1"), _in_product("jnp.sum(x + 1)")
        ('g * y', '(x + 1)', 'jnp.sum(x + 1)')
    """
    depth, outside = 0, ""
    for letter in name:
        depth += (letter in "([") - (letter in ")]")
        outside += letter if depth == 0 else ""
    return f"({name})" if any(sign in outside for sign in (" + ", " - ", " / ", " @ ", " if ", "lambda")) else name


def _term(search: Search, i: int, values: Sequence[Value], end: Place | None) -> Explanation | None:
    """Return the term that a cotangent lacks, or the product that it should be, or None."""
    truth, given = ([np.asarray(draw[k][i]) for draw in search.draws] for k in (3, 2))
    shape = truth[0].shape
    if end is None:
        outside = [p for p, backward in zip(search.program.places, search.program.backward, strict=True) if backward]
        end = outside[-1] if outside else None
    if end is None or not truth[0].size:
        return None
    pairs = itertools.combinations_with_replacement(values, 2)
    products = [Sum(()), *(Sum((v,)) for v in values), *(Sum((v, w)) for v, w in pairs if _compatible(v, w))]
    left = [p for p in products if broadcasts(p.at(0).shape, shape)]
    right = [Sum(())]
    elements = 0
    for p in products[1:]:
        at = p.at(0)
        if at.ndim > RANK:
            continue
        long = [axis for axis, n in enumerate(at.shape) if n > 1]
        for count in range(1, len(long) + 1):
            for axes in itertools.combinations(long, count):
                fitting = [
                    s for s in (Sum(p.values, axes), Sum(p.values, axes, True)) if broadcasts(s.at(0).shape, shape)
                ]
                elements += at.size
                if elements > ELEMENTS:
                    return None
                right += fitting[:1]
        if len(p.values) == 1 and broadcasts(at.shape, shape):
            right.append(p)
    rng = np.random.default_rng((search.subject.seed, 8))
    size = truth[0].size
    some = np.sort(rng.choice(size, min(size, ENTRIES), replace=False))
    lefts, rights = (np.stack([np.broadcast_to(s.at(0), shape).ravel()[some] for s in part]) for part in (left, right))
    scale = float(np.max(np.abs(truth[0]))) or 1.0
    targets: tuple[tuple[Kind, Sequence[np.ndarray]], ...] = (
        ("addition", [t - r for t, r in zip(truth, given, strict=True)]),
        ("replacement", truth),
    )
    for kind, target in targets:
        wanted = target[0].ravel()[some] / scale
        along = (lefts * wanted) @ rights.T
        with np.errstate(all="ignore"):
            cosine = np.nan_to_num(along**2 / ((lefts**2 @ (rights**2).T) * float(wanted @ wanted)))
        hits = [(a, b) for a, b in np.argwhere(cosine > 1 - 1e-9)]
        hits.sort(key=lambda hit: _cost(left[hit[0]], right[hit[1]]))
        for a, b in hits[:HITS]:
            if term := _confirmed(search, left[a], right[b], target):
                named = (f"cotangent of {search.subject.names[i]}",)
                return Explanation(kind, named, (end,), term=term)
    return None


def _compatible(v: Value, w: Value) -> bool:
    """Return whether two values can be multiplied."""
    return all(1 in (n, m) or n == m for n, m in zip(v.at[0].shape[::-1], w.at[0].shape[::-1], strict=False))


def _cost(left: Sum, right: Sum) -> tuple[int, int]:
    """Return the sort key of a term: few values first, then short source."""
    values = (*left.values, *right.values)
    return len(values), sum(len(v.name) for v in values)


def _confirmed(search: Search, left: Sum, right: Sum, target: Sequence[np.ndarray]) -> str:
    """Return the source of a term if at every draw it is the target, with one and the same factor; else ""."""
    factor = 0.0
    for number, wanted in enumerate(target):
        term = np.broadcast_to(left.at(number) * right.at(number), wanted.shape)
        length = float(np.sum(term * term))
        factor = factor if number else float(np.sum(term * wanted)) / length
        if not np.linalg.norm(wanted - factor * term) <= search.tolerance * np.linalg.norm(wanted):
            return ""
    for n, mean in itertools.product(NICE, (True, False) if right.axes else (False,)):
        if math.isclose(abs(factor) * (right.length if mean else 1), n, rel_tol=1e-6):
            parts = [f"{n:g}"] if n != 1 else []
            parts += [source for source in (left.written(mean), right.written(mean)) if source]
            whole = (*left.values, *right.values)
            if len(whole) == len(parts) == 1 and factor > 0 and not right.axes:
                return whole[0].name
            return ("-" if factor < 0 else "") + " * ".join(parts or ["1"])
    return ""
