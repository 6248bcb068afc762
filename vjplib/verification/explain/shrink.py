"""Shrink: a wrong value again on a few small numbers, as Python source that can be pasted.

First every axis is made one, two or three long, then numbers are rounded and cotangents made zero but for one entry,
as long as the failure stays. A kink is no counterexample: where moving the numbers a little moves the oracle's answer
much, they are not taken.
"""

import inspect
import itertools
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from vjplib.compat import x64
from vjplib.verification.call import (
    SCALES,
    ByPosition,
    CallUnderTest,
    Leaves,
    Static,
    attempt,
    is_inexact,
    kind_of,
    parameters,
)
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


class _Point(NamedTuple):
    """Numbers at which the function fails: `wrong` is the number of the output, or of the cotangent after those."""

    subject: CallUnderTest
    leaves: Leaves
    gs: Leaves
    wrong: int


def _budget(count: int, end: float) -> Callable[[], bool]:
    """Return a function to be called before each try: True for as many as may begin, until the time is over."""
    tries = itertools.count(1)
    return lambda: next(tries) <= count and time.perf_counter() < end


def smallest(subject: CallUnderTest) -> str:
    """Return source that shows outputs or cotangents off the oracle's by more than rounding, empty where none is."""
    for scale in SCALES[:1] if subject.hurried else SCALES:
        with x64():
            if source := counterexample(subject, *subject.point(np.float64, scale=scale)):
                return source
    return ""


def counterexample(subject: CallUnderTest, leaves: Leaves, gs: Leaves, arguments: Sequence[str] = ()) -> str:
    """Return source that shows the failure at such numbers on a few, empty where none was found.

    `arguments` name what is to be shown wrong, such as "cotangent of x"; empty for whatever is.
    """
    if subject.axes:  # the call is one that nobody can write
        return ""
    wrong = [len(gs) + i for i, name in enumerate(subject.names) if f"cotangent of {name}" in arguments] or None
    with x64():
        point = _failing(subject, *leaves_to_float64(leaves, gs), among=wrong)
        if point is None:
            return ""
        end = time.perf_counter() + SECONDS
        point = _smaller(point, _budget(SHAPES[subject.hurried], end))
        return _source(_simpler(point, _budget(EVALUATIONS[subject.hurried], end)))


def _compared(subject: CallUnderTest, leaves: Leaves, gs: Leaves) -> list[tuple[float, np.ndarray, np.ndarray]]:
    """Return each output and cotangent with the oracle's, and the relative gap between both before them."""
    pairs = subject.answers_at(leaves, gs).pairs
    return [(relative_gap(r, o) if np.all(np.isfinite(o)) else 0.0, r, o) for r, o in pairs]


def _failing(subject: CallUnderTest, leaves: Leaves, gs: Leaves, among: Sequence[int] | None = None) -> _Point | None:
    """Return the first failure at these numbers that stays when they move a little, or None."""
    here = _compared(subject, leaves, gs)
    visible = [i for i, (gap, *_) in enumerate(here) if gap > VISIBLE and (among is None or i in among)]
    if not visible:
        return None
    rng = np.random.default_rng((subject.seed, 6))
    moved = tuple(a * (1 + NEAR * rng.uniform(-1, 1, a.shape)) + NEAR * rng.uniform(-1, 1, a.shape) for a in leaves)
    there = _compared(subject, moved, gs)
    for i in visible:
        (_, ours, truth), (gap, _, near) = here[i], there[i]
        lasts = gap > VISIBLE / 2 and size_of(near - truth) <= STEADY * max(size_of(truth), size_of(near))
        if lasts or not np.all(np.isfinite(ours)):  # no convention at a kink is infinite
            return _Point(subject, leaves, gs, i)
    return None


def _smaller(point: _Point, may_try: Callable[[], bool]) -> _Point:
    """Return the failure with all axes shortened while it stays, then with each axis alone."""
    best, sizes = point, dict(point.subject.sizes)
    for names in (list(sizes), *([name] for name in sizes)):
        for n in (1, 2, 3):
            short = sizes | {name: min(n, sizes[name]) for name in names}
            if short != sizes and may_try() and (found := _at_sizes(point, short)):
                best, sizes = found, short
                break
    return best


def _at_sizes(point: _Point, sizes: dict[str, int]) -> _Point | None:
    if (other := point.subject.resized(sizes)) is None:
        return None
    found = attempt(lambda: _failing(other, *other.point(np.float64), (point.wrong,)))
    return None if isinstance(found, Exception) else found  # at sizes that nobody called it with it may raise


def _simpler(point: _Point, may_try: Callable[[], bool]) -> _Point:
    """Return the failure with one-hot cotangents and arguments of few digits, most of them one or zero, if it stays."""
    count = len(point.gs)

    def put(i: int, a: np.ndarray) -> bool:
        nonlocal point
        arrays = [*point.gs, *point.leaves]
        arrays[i] = a.astype(arrays[i].dtype)
        found = may_try() and _failing(point.subject, tuple(arrays[count:]), tuple(arrays[:count]), (point.wrong,))
        point = found or point
        return bool(found)

    for i, a in enumerate((*point.gs, *point.leaves)):
        if i < count:
            simplest = [np.zeros_like(a)] if count > 1 else []
            simplest += [np.eye(1, a.size, j).reshape(a.shape) for j in range(min(a.size, 8))]
            if any(put(i, one) for one in simplest):
                continue
        any(put(i, short) for short in (np.sign(np.real(a)) + 0.0, *(np.round(a, digits) for digits in range(4))))
        for j in range(min(a.size, 24)):
            for simple in (1.0, 0.0, 2.0):
                now = np.array((*point.gs, *point.leaves)[i])
                if now.flat[j] == simple:
                    break
                now.flat[j] = simple
                if put(i, now):
                    break
    return point


def _source(point: _Point) -> str:
    """Return source to paste, empty where an argument has no short source."""
    subject, count = point.subject, len(point.gs)
    single, gs = (tuple(a.astype(kind_of(a.dtype, np.float32)) for a in part) for part in (point.leaves, point.gs))
    right = _compared(subject, *leaves_to_float64(single, gs))[point.wrong][2]
    whole = jax.eval_shape(lambda *ls: subject.whole(ls), *single)
    moving = [not isinstance(a, Static) and any(map(is_inexact, jax.tree.leaves(a))) for a in subject.args]
    names = _names(subject)
    arguments = list(zip(names, subject.rebuild(single), moving, strict=True))
    try:
        lines = [f"{name} = {_written(a)}" for name, a, moves in arguments if moves]
        passed = [name if moves else _written(a) for name, a, moves in arguments]
        if by_keyword := subject.fn.keywords if isinstance(subject.fn, ByPosition) else ():
            passed[-len(by_keyword) :] = [
                f"{k}={v}" for k, v in zip(by_keyword, passed[-len(by_keyword) :], strict=True)
            ]
        keywords = [f"{k}={_written(v)}" for k, v in subject.kwargs.items()]
        lines.append(f"g = {_written(_in_tree(whole, gs))}")
    except _NotWritableError:
        return ""
    name = getattr(subject.fn, "__name__", "")
    called = name if name.isidentifier() and name not in names else "fn"
    variables = ", ".join(name for name, _, moves in arguments if moves)
    plain = all(moving) and not keywords and not by_keyword
    function = called if plain else f"lambda {variables}: {called}({', '.join([*passed, *keywords])})"
    lines.append(f"y, pullback = jax.vjp({function}, {variables})")
    if point.wrong < count:
        wrong = f"output {point.wrong} of the forward pass"
        indices = [i for i, y in enumerate(jax.tree.leaves(whole)) if is_inexact(y)]
        lines.append(f"given = jax.tree.leaves(y)[{indices[point.wrong]}]")
    else:
        wrong = f"cotangent of {subject.names[point.wrong - count]}"
        path, _ = jax.tree.leaves_with_path(subject.args)[subject.differentiable[point.wrong - count]]
        lines.append(f"given = pullback(g)[{sum(moving[: path[0].idx])}]{jax.tree_util.keystr(path[1:])}")
    lines += [f"right = {_written(right)}", f'print("{wrong}:", given, "should be", right)']
    head = ["import jax", "import jax.numpy as jnp", *["import numpy as np"][: any("float0" in line for line in lines)]]
    return "\n".join([*head, *_imported(subject.fn, called), *lines]) + "\n"


def _imported(fn: Callable[..., Any], name: str) -> list[str]:
    """Return the line that imports a function under its name, none where there is no such import."""
    fn = fn.fn if isinstance(fn, ByPosition) else fn
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


def _in_tree(whole: Any, gs: Leaves) -> Any:
    """Return the cotangents in the tree of the outputs, float0 where outputs are integers."""
    rest = iter(gs)
    return jax.tree.map(lambda y: next(rest) if is_inexact(y) else np.zeros(y.shape, jax.dtypes.float0), whole)


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
