"""Shrink: a wrong value again on a few small numbers, as Python source that can be pasted.

First every axis is made one, two or three long, then numbers are rounded and cotangents made zero but for one entry,
as long as the failure stays. A kink is no counterexample: where moving the numbers a little moves the oracle's answer
much, they are not taken.
"""

import inspect
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vjplib.compat import x64
from vjplib.verification.call import SCALES, CallUnderTest, Leaves, Static, kind_of, parameters
from vjplib.verification.oracle import leaves_to_float64
from vjplib.verification.tolerance import relative_gap, size_of

# In a hurry, and not: counts, not times, so that the same seed gives the same counterexample on a busy machine too.
SHAPES = {True: 5, False: 20}  # each is compiled
EVALUATIONS = {True: 150, False: 600}
SECONDS = 30.0  # after which a function that takes long is let be
VISIBLE = 1e-4  # an error, relative, that float32's rounding does not hide
NEAR = 1e-3
STEADY = 0.1
DIGITS = 6


@dataclass
class _Point:
    """Numbers at which the function fails.

    Args:
        subject: the call, for its sizes.
        leaves: the differentiated leaves, in float64.
        gs: the output cotangents.
        wrong: which output, or which cotangent, counted after the outputs.
    """

    subject: CallUnderTest
    leaves: Leaves
    gs: Leaves
    wrong: int


class _Budget:
    """Shapes and evaluations that are left."""

    def __init__(self, hurried: bool) -> None:
        self.end = time.perf_counter() + SECONDS
        self.shapes, self.evaluations = SHAPES[hurried], EVALUATIONS[hurried]

    def shape(self) -> bool:
        """Count a shape; return True if it may still be tried."""
        self.shapes -= 1
        return self.shapes >= 0 and time.perf_counter() < self.end

    def evaluation(self) -> bool:
        """Count an evaluation; return True if it may still begin."""
        self.evaluations -= 1
        return self.evaluations >= 0 and time.perf_counter() < self.end


def smallest(subject: CallUnderTest) -> str:
    """Return source that shows outputs or cotangents off the oracle's by more than rounding, empty where none is."""
    for scale in SCALES[:1] if subject.hurried else SCALES:
        with x64():
            leaves = subject.leaves(np.float64, scale)
            point = _failing(subject, leaves, subject.cotangents(leaves))
            if point is None:
                continue
            return _source(_shrunk(point))
    return ""


def counterexample(subject: CallUnderTest, leaves: Leaves, gs: Leaves, arguments: Sequence[str] = ()) -> str:
    """Return source that shows the failure at such numbers on a few, empty where none was found.

    Args:
        subject: what was examined.
        leaves: the differentiated leaves.
        gs: the output cotangents.
        arguments: what is to be shown wrong, such as "cotangent of x"; empty for whatever is.
    """
    wrong = [len(gs) + i for i, name in enumerate(subject.names) if f"cotangent of {name}" in arguments] or None
    with x64():
        point = _failing(subject, *leaves_to_float64(leaves, gs), among=wrong)
        return _source(_shrunk(point)) if point else ""


def _shrunk(point: _Point) -> _Point:
    budget = _Budget(point.subject.hurried)
    return _simpler(_smaller(point, budget), budget)


def _gaps(subject: CallUnderTest, leaves: Leaves, gs: Leaves) -> tuple[list[float], list[np.ndarray], list[np.ndarray]]:
    """Return the relative gap of each output and cotangent to the oracle's, and both."""
    found = jax.tree.map(np.asarray, subject.answers(leaves, gs))
    ours, theirs = [*found.ys, *found.dxs], [*found.true_ys, *found.true_dxs]
    return (
        [relative_gap(r, o) if np.all(np.isfinite(o)) else 0.0 for r, o in zip(ours, theirs, strict=True)],
        ours,
        theirs,
    )


def _failing(subject: CallUnderTest, leaves: Leaves, gs: Leaves, among: Sequence[int] | None = None) -> _Point | None:
    """Return the first failure at these numbers that stays when they move a little, or None."""
    gaps, ours, theirs = _gaps(subject, leaves, gs)
    visible = [i for i, gap in enumerate(gaps) if gap > VISIBLE and (among is None or i in among)]
    if not visible:
        return None
    rng = np.random.default_rng((subject.seed, 6))
    moved = tuple(a * (1 + NEAR * rng.uniform(-1, 1, a.shape)) + NEAR * rng.uniform(-1, 1, a.shape) for a in leaves)
    gaps_there, _, there = _gaps(subject, moved, gs)
    for i in visible:
        change = size_of(there[i] - theirs[i])
        lasts = gaps_there[i] > VISIBLE / 2 and change <= STEADY * max(size_of(theirs[i]), size_of(there[i]))
        if lasts or not np.all(np.isfinite(ours[i])):  # no convention at a kink is infinite
            return _Point(subject, leaves, gs, i)
    return None


def _smaller(point: _Point, budget: _Budget) -> _Point:
    """Return the failure with all axes shortened while it stays, then with each axis alone."""
    subject = point.subject
    if not subject.sizes or subject.resize is None:
        return point
    best, sizes = point, dict(subject.sizes)
    for n in (1, 2, 3):
        short = {name: min(n, size) for name, size in sizes.items()}
        if short == sizes or not budget.shape():
            continue
        if found := _at_sizes(point, short):
            best, sizes = found, short
            break
    for name, size in sizes.items():
        for n in range(1, min(size, 3)):
            if not budget.shape():
                return best
            if found := _at_sizes(point, {**sizes, name: n}):
                best, sizes = found, {**sizes, name: n}
                break
    return best


def _at_sizes(point: _Point, sizes: dict[str, int]) -> _Point | None:
    other = resized(point.subject, sizes)
    try:
        if other is None:
            return None
        leaves = other.leaves(np.float64)
        return _failing(other, leaves, other.cotangents(leaves), (point.wrong,))
    except Exception:  # a function may fail, in whatever way, at sizes that nobody called it with
        return None


def resized(subject: CallUnderTest, sizes: Mapping[str, int]) -> CallUnderTest | None:
    """Return the call with other sizes, its numbers repeated or cut off; None where function or oracle refuses them."""
    if subject.resize is None or not sizes:
        return None
    try:
        avals = subject.resize(sizes)
        args = jax.tree.map(_fill, subject.args, avals[0])
        kwargs = {**subject.kwargs, **{k: _fill(subject.kwargs[k], aval) for k, aval in avals[1].items()}}
        other = replace(subject, args=args, kwargs=kwargs, hurried=True)
        return other if other.runs else None
    except Exception:  # a function may refuse, in whatever way, sizes that nobody called it with
        return None


def _fill(value: Any, aval: Any) -> np.ndarray:
    """Return an array's numbers in another shape; integers that index an axis stay inside it."""
    new = np.resize(np.asarray(value), aval.shape)
    if np.issubdtype(new.dtype, np.integer):
        return new % max(1, min(aval.shape, default=1)) if new.size else new
    return new


def _simpler(point: _Point, budget: _Budget) -> _Point:
    """Return the failure with one-hot cotangents and arguments of few digits, where it stays."""

    def tried(leaves: Leaves, gs: Leaves) -> bool:
        nonlocal point
        if not budget.evaluation():
            return False
        found = _failing(point.subject, leaves, gs, (point.wrong,))
        point = found or point
        return found is not None

    def put(part: str, i: int, a: np.ndarray) -> bool:
        held = {"leaves": point.leaves, "gs": point.gs}
        held[part] = (*held[part][:i], a.astype(held[part][i].dtype), *held[part][i + 1 :])
        return tried(held["leaves"], held["gs"])

    for i, g in enumerate(point.gs):
        if len(point.gs) > 1 and put("gs", i, np.zeros_like(g)):
            continue
        if any(put("gs", i, one) for one in _one_hot(g)):
            continue
        _round(lambda a, i=i: put("gs", i, a), lambda i=i: point.gs[i])
    for i in range(len(point.leaves)):
        _round(lambda a, i=i: put("leaves", i, a), lambda i=i: point.leaves[i])
    return point


def _one_hot(g: np.ndarray) -> Iterator[np.ndarray]:
    for j in range(min(g.size, 8)):
        yield np.eye(1, g.size, j).reshape(g.shape)


def _round(put: Callable[[np.ndarray], bool], held: Callable[[], np.ndarray]) -> None:
    """Rounds an array to as few digits as may be, then each of its numbers to one or zero."""
    given = held()
    steps = (np.sign(np.real(given)) + 0.0, np.round(given), *(np.round(given, digits) for digits in (1, 2, 3)))
    any(put(a) for a in steps)
    for j in range(min(given.size, 24)):
        for simple in (1.0, 0.0, 2.0):
            now = held().copy()
            if now.flat[j] == simple:
                break
            now.flat[j] = simple
            if put(now):
                break


def _inexact(a: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(a), jnp.inexact)


def _name(point: _Point) -> str:
    count = len(point.gs)
    if point.wrong < count:
        return f"output {point.wrong} of the forward pass"
    return f"cotangent of {point.subject.names[point.wrong - count]}"


def _source(point: _Point) -> str:
    """Return source to paste, empty where an argument has no short source."""
    subject = point.subject
    single = tuple(a.astype(kind_of(a.dtype, np.float32)) for a in point.leaves)
    gs = tuple(g.astype(kind_of(g.dtype, np.float32)) for g in point.gs)
    _, _, theirs = _gaps(subject, *leaves_to_float64(single, gs))
    args = subject.rebuild(single)
    moving = [not isinstance(a, Static) and any(map(_inexact, jax.tree.leaves(a))) for a in subject.args]
    names = _names(subject)
    try:
        lines = [f"{name} = {_written(a)}" for name, a, m in zip(names, args, moving, strict=True) if m]
        fixed = [name if m else _written(a) for name, a, m in zip(names, args, moving, strict=True)]
        keywords = [f"{k}={_written(v)}" for k, v in subject.kwargs.items()]
        lines.append(f"g = {_written(_outputs(subject, single, gs))}")
    except _NotWritableError:
        return ""
    name = getattr(subject.fn, "__name__", "")
    called = name if name.isidentifier() and name not in names else "fn"
    variables = ", ".join(n for n, m in zip(names, moving, strict=True) if m)
    whole = all(moving) and not keywords
    function = called if whole else f"lambda {variables}: {called}({', '.join([*fixed, *keywords])})"
    lines.append(f"y, pullback = jax.vjp({function}, {variables})")
    count = len(point.gs)
    if point.wrong < count:
        indices = [i for i, y in enumerate(jax.tree.leaves(_whole(subject, single))) if _inexact(y)]
        lines.append(f"given = jax.tree.leaves(y)[{indices[point.wrong]}]")
    else:
        path = jax.tree_util.tree_flatten_with_path(subject.args)[0][subject.differentiable[point.wrong - count]][0]
        place = sum(moving[: path[0].idx])
        lines.append(f"given = pullback(g)[{place}]{jax.tree_util.keystr(path[1:])}")
    lines.append(f"right = {_written(theirs[point.wrong])}")
    lines.append(f'print("{_name(point)}:", given, "should be", right)')
    head = ["import jax", "import jax.numpy as jnp", *["import numpy as np"][: any("float0" in line for line in lines)]]
    return "\n".join([*head, *_imported(subject.fn, called), *lines]) + "\n"


def _imported(fn: Callable[..., Any], name: str) -> list[str]:
    """Return the line that imports a function under its name, none where there is no such import."""
    module = getattr(inspect.unwrap(fn), "__module__", "")
    known = module != "__main__" and getattr(sys.modules.get(module), name, None) is fn
    return [f"from {module} import {name}"] if known else []


class _NotWritableError(Exception):
    """A value that has no short source."""


def _names(subject: CallUnderTest) -> list[str]:
    """Return a variable name for each positional argument."""
    taken = {"g", "y", "pullback", "given", "right", "jax", "jnp", "np"}
    named = parameters(subject.fn, len(subject.args))
    return [n if n.isidentifier() and n not in taken else f"x{i}" for i, n in enumerate(named)]


def _whole(subject: CallUnderTest, leaves: Leaves) -> Any:
    return jax.eval_shape(lambda *ls: subject.fn(*subject.rebuild(ls), **subject.kwargs), *leaves)


def _outputs(subject: CallUnderTest, leaves: Leaves, gs: Leaves) -> Any:
    """Return the cotangents in the tree of the outputs, float0 where outputs are integers."""
    rest = iter(gs)
    ys, tree = jax.tree.flatten(_whole(subject, leaves))
    filled = [next(rest) if _inexact(y) else np.zeros(y.shape, jax.dtypes.float0) for y in ys]
    return tree.unflatten(filled)


def _written(value: Any) -> str:
    """Return the source of a pytree of arrays, or raise `_NotWritableError`."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k!r}: {_written(v)}" for k, v in value.items()) + "}"
    if type(value) is list:
        return "[" + ", ".join(map(_written, value)) + "]"
    if type(value) is tuple:
        return "(" + ", ".join(map(_written, value)) + ("," if len(value) == 1 else "") + ")"
    if value is None or isinstance(value, (bool, int, float, str)):
        return repr(value)
    if not isinstance(value, (np.ndarray, np.generic, jax.Array)):
        raise _NotWritableError
    a = np.asarray(value)
    if a.dtype == jax.dtypes.float0:
        return f"np.zeros({a.shape}, jax.dtypes.float0)"
    if a.size == 0:
        return f"jnp.zeros({a.shape}, jnp.{a.dtype})"
    as_it_comes = ("float32", "float64", "complex64", "complex128", "int32", "bool")
    return f"jnp.array({_digits(a.tolist())}{'' if a.dtype.name in as_it_comes else f', jnp.{a.dtype}'})"


def _digits(value: Any) -> str:
    """Return the source of nested lists of numbers, rounded to six digits unless whole."""
    if isinstance(value, list):
        return "[" + ", ".join(map(_digits, value)) + "]"
    if isinstance(value, complex):
        return f"{_digits(value.real)} + {_digits(value.imag)} * 1j"
    if isinstance(value, float):
        return repr(float(f"{value:.{DIGITS}g}")) if np.isfinite(value) else f"jnp.{value}".replace("jnp.-", "-jnp.")
    return repr(value)
