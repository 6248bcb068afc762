"""Growth: how time and memory grow with each dimension, and whether an n x n array stands where none is needed.

Each dimension is enlarged alone. The program of forward and backward is traced at two large sizes, one twice the other,
without computing: the base-2 logarithm of the ratio of its largest arrays, and of its multiplications and additions, is
the exponent. Where the rule grows faster than in proportion, it must not exceed the exponents of autodiff of the
reference.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from vjplib.compat import ProgramCost, cost_of, unclose
from vjplib.verification.call import CallUnderTest
from vjplib.verification.claim import Claim
from vjplib.verification.report import Finding, describe_error, failed, noted, passed, skipped

FACTOR = 32
EXCESS = 0.5
COMPILED = 2048


def too_large(subject: CallUnderTest) -> str | None:
    """Return why the call does not fit into free memory, or None; the call is traced and not computed."""
    if any(isinstance(program, str | None) for program in subject.traced):  # the claims report what the function raises
        return None
    largest = [cost_of(unclose(program)[0]).largest for program in subject.traced]
    needed, free = 8 * max(largest), _free_memory()  # bytes, in float64
    if needed <= free / 2:
        return None
    whose = "the function" if largest[0] >= largest[1] else "autodiff of the reference"
    return (
        f"{whose} forms an array of {max(largest):,} elements, {needed / 1e9:.0f} GB in float64, and "
        f"{free / 1e9:.0f} GB are free: nothing was computed"
    )


def _free_memory() -> float:
    """Return the bytes of free memory, infinity where the system has no /proc/meminfo."""
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            return next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration, ValueError):
        return math.inf


def check(subject: CallUnderTest, compiled: bool = True) -> Iterator[Finding]:
    """Yield a finding for each dimension.

    Args:
        subject: the call under test; its `resize` makes it at other sizes.
        compiled: whether to compile at larger sizes too and measure the temporary bytes, and to trace autodiff even
            where the rule grows in proportion at most, so that a plot shows both.
    """
    if subject.resize is None or not subject.sizes:
        yield noted("the call has no dimension to enlarge")
        return
    for dimension, size in subject.sizes.items():
        yield _dimension(subject, dimension, size, compiled)


def _dimension(subject: CallUnderTest, dimension: str, size: int, compiled: bool) -> Finding:
    sizes = (FACTOR * size, 2 * FACTOR * size)
    try:
        ours = [cost_of(_trace(subject, dimension, n, lambda s: s.call)) for n in sizes]
        memory, time = (_exponent(ours, part) for part in ("largest", "operations"))
        proportional = max(memory, time) <= 1 + EXCESS
        wanted = () if proportional and not compiled else sizes
        theirs = [cost_of(_trace(subject, dimension, n, lambda s: s.oracle)) for n in wanted]
    except Exception as refusal:  # functions raise what they like for sizes that they refuse
        message = f"{dimension} cannot be enlarged alone: {describe_error(refusal)}"
        return skipped(message)
    if not all(c.decided for c in ours):
        message = f"in {dimension}: a while loop of unknown length, growth undecided"
        return skipped(message)
    allowed = [max(1.0, _exponent(theirs, part) if theirs else 0.0) + EXCESS for part in ("largest", "operations")]
    message = f"in {dimension}: largest array grows with exponent {memory:.2f}, operations {time:.2f}"
    exceeds = memory > allowed[0] or time > allowed[1]
    by_time = exceeds and memory <= allowed[0]
    if compiled and not exceeds and ours[0].equations == ours[1].equations:
        temporary = _compiled_exponent(subject, dimension)
        message += f", temporary bytes {temporary:.2f}"
        exceeds = temporary > allowed[0]
    if exceeds:
        message += f"; autodiff of the reference: {allowed[0] - EXCESS:.2f} and {allowed[1] - EXCESS:.2f}"
    data = _drawn(subject, dimension, sizes, ours, theirs, size if compiled else None)
    if not exceeds:
        return passed(message, data=data)
    trap = "quadratic-time" if by_time else "n-by-n"
    return failed("growth", message, trap=trap, data=data)


def _drawn(
    subject: CallUnderTest,
    dimension: str,
    sizes: Sequence[int],
    ours: list[ProgramCost],
    theirs: list[ProgramCost],
    size: int | None,
) -> dict[str, Any]:
    """Return the data of a growth plot: sizes, and the costs of the rule and of autodiff at each.

    Args:
        subject: the call under test.
        dimension: the dimension that grows.
        sizes: the sizes traced.
        ours: the rule's costs.
        theirs: autodiff's costs, empty if it was not traced.
        size: the dimension's size in the call, to be traced too; None for no further size.
    """
    if size is not None and size not in sizes:
        sizes = (size, *sizes)
        ours = [cost_of(_trace(subject, dimension, size, lambda s: s.call)), *ours]
        theirs = [cost_of(_trace(subject, dimension, size, lambda s: s.oracle)), *theirs]

    def parts(costs: list[ProgramCost]) -> dict[str, list[int]]:
        return {part: [getattr(c, part) for c in costs] for part in ("largest", "operations")}

    drawn = {"dimension": dimension, "sizes": list(sizes), "rule": parts(ours)}
    return drawn | ({"autodiff": parts(theirs)} if theirs else {})


def _exponent(costs: list[ProgramCost], part: str) -> float:
    small, large = (max(1, getattr(c, part)) for c in costs)
    return math.log2(large / small)


Chosen = Callable[[CallUnderTest], Callable[..., Any]]


def _program(subject: CallUnderTest, chosen: Chosen) -> Callable[..., Any]:
    """Return forward and backward as a function of every array of the call, integers and masks included."""

    def run(args: tuple[Any, ...], arrays: Mapping[str, Any]) -> Any:
        inner = replace(subject, args=args, kwargs={**subject.kwargs, **arrays})
        leaves = [jax.tree.leaves(args)[i] for i in subject.differentiable]
        ys, back = jax.vjp(chosen(inner), *leaves)
        return ys, back(tuple(jnp.cos(y) for y in ys))  # any function of the outputs serves as their cotangent

    return run


def _trace(subject: CallUnderTest, dimension: str, n: int, chosen: Chosen) -> Any:
    assert subject.resize is not None
    return unclose(jax.make_jaxpr(_program(subject, chosen))(*subject.resize({dimension: n})))[0]


def _compiled_exponent(subject: CallUnderTest, dimension: str) -> float:
    assert subject.resize is not None
    program = jax.jit(_program(subject, lambda s: s.call))
    sizes = (COMPILED, 2 * COMPILED, 4 * COMPILED)
    analyses = [program.lower(*subject.resize({dimension: n})).compile().memory_analysis() for n in sizes]
    # Below a few kilobytes there is only the program's own scratch space, which does not grow. The compiler may change
    # its plan at one of the two doublings: the smaller exponent counts.
    temporary = [max(4096, a.temp_size_in_bytes if a else 0) for a in analyses]
    return min(math.log2(large / small) for small, large in itertools.pairwise(temporary))


CLAIM = Claim("growth", check, alias="V8", quick=partial(check, compiled=False), traces_only=True, cost=(3, 8))
