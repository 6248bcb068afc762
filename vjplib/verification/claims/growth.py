"""Growth: how time and memory grow with each dimension, and whether an n x n array stands where none is needed.

Each dimension is enlarged alone. The program of forward and backward is traced at two large sizes, one twice the other,
without computing: the base-2 logarithm of the ratio of its largest arrays, and of its multiplications and additions, is
the exponent. Where the rule grows faster than in proportion, it must not exceed the exponents of autodiff of the
reference.
"""

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
PARTS = ("largest", "operations")  # of a cost


def check(subject: CallUnderTest, compiled: bool = True) -> Iterator[Finding]:
    """Yield a finding for each dimension.

    If `compiled`, the call is also compiled at larger sizes and its temporary bytes measured, and autodiff traced even
    where the rule grows in proportion at most, so that a plot shows both.
    """
    if subject.resize is None or not subject.sizes:
        yield noted("the call has no dimension to enlarge")
        return
    for dimension, size in subject.sizes.items():
        yield _dimension(subject, dimension, size, compiled)


def _dimension(subject: CallUnderTest, dimension: str, size: int, compiled: bool) -> Finding:
    sizes = (FACTOR * size, 2 * FACTOR * size)
    drawn = (size, *sizes) if compiled else sizes
    try:
        ours = _costs(subject, dimension, drawn, lambda s: s.call)
        memory, time = (_exponent(ours, part) for part in PARTS)
        proportional = max(memory, time) <= 1 + EXCESS
        theirs = [] if proportional and not compiled else _costs(subject, dimension, drawn, lambda s: s.oracle)
    except Exception as refusal:  # functions raise what they like for sizes that they refuse
        return skipped(f"{dimension} cannot be enlarged alone: {describe_error(refusal)}")
    if not all(c.decided for c in ours):
        return skipped(f"in {dimension}: a while loop of unknown length, growth undecided")
    allowed = [max(1.0, _exponent(theirs, part) if theirs else 0.0) + EXCESS for part in PARTS]
    message = f"in {dimension}: largest array grows with exponent {memory:.2f}, operations {time:.2f}"
    exceeds = memory > allowed[0] or time > allowed[1]
    by_time = exceeds and memory <= allowed[0]
    if compiled and not exceeds and ours[-2].equations == ours[-1].equations:
        temporary = _compiled_exponent(subject, dimension, allowed[0])
        message += f", temporary bytes {temporary:.2f}"
        exceeds = temporary > allowed[0]
    costs = {"rule": ours, "autodiff": theirs} if theirs else {"rule": ours}
    data = {"dimension": dimension, "sizes": list(drawn)} | {
        whose: {part: [getattr(c, part) for c in found] for part in PARTS} for whose, found in costs.items()
    }
    if not exceeds:
        return passed(message, data=data)
    message += f"; autodiff of the reference: {allowed[0] - EXCESS:.2f} and {allowed[1] - EXCESS:.2f}"
    return failed("growth", message, trap="quadratic-time" if by_time else "n-by-n", data=data)


def _exponent(costs: Sequence[ProgramCost], part: str) -> float:
    """Return the exponent of growth between the last two of the costs, the sizes being one twice the other."""
    small, large = (max(1, getattr(c, part)) for c in costs[-2:])
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


def _costs(subject: CallUnderTest, dimension: str, sizes: Sequence[int], chosen: Chosen) -> list[ProgramCost]:
    assert subject.resize is not None
    calls = [subject.resize({dimension: n}) for n in sizes]
    return [cost_of(unclose(jax.make_jaxpr(_program(subject, chosen))(*call))[0]) for call in calls]


def _compiled_exponent(subject: CallUnderTest, dimension: str, allowed: float) -> float:
    """Return the exponent of temporary bytes over a doubling of the size, or over the next one if that is not allowed.

    The compiler may change its plan at one of them.
    """
    resize, program = subject.resize, jax.jit(_program(subject, lambda s: s.call))
    assert resize is not None

    def temporary(n: int) -> int:
        analysis = program.lower(*resize({dimension: n})).compile().memory_analysis()
        # Below a few kilobytes there is only the program's own scratch space, which does not grow.
        return max(4096, analysis.temp_size_in_bytes if analysis else 0)

    small, large = temporary(COMPILED), temporary(2 * COMPILED)
    found = math.log2(large / small)
    return found if found <= allowed else min(found, math.log2(temporary(4 * COMPILED) / large))


CLAIM = Claim("growth", check, alias="V8", quick=partial(check, compiled=False), traces_only=True, cost=(3, 8))
