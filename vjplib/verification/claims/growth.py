"""Growth: how time and memory grow with each dimension, and that no n x n stands where none is needed.

Each dimension is enlarged alone. The program of forward and backward is traced at two large sizes, one twice the other,
without computing: the base-2 logarithm of the ratio of its largest arrays, and of its multiplications and additions, is
the exponent. The same is done for autodiff of the reference, which the rule must not exceed where it grows faster than
in proportion.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from vjplib.compat import programs, unclose
from vjplib.verification.call import CallUnderTest
from vjplib.verification.claim import Claim
from vjplib.verification.report import Finding, describe_error, failed, noted, passed, skipped

FACTOR = 32
EXCESS = 0.5
COMPILED = 2048


class Cost(NamedTuple):
    """What a program takes.

    Args:
        largest: elements of its largest array.
        operations: multiplications and additions.
        decided: whether the length of every loop is known.
        equations: the program's own length.
    """

    largest: int
    operations: int
    decided: bool
    equations: int


def cost(jaxpr: Any) -> Cost:
    """Returns the cost of a jaxpr, loops counted by their trips and branches by the dearest.

    Example:
        >>> x = jax.ShapeDtypeStruct((4, 5), jnp.float32)
        >>> cost(jax.make_jaxpr(lambda x: x @ x.T)(x).jaxpr)
        Cost(largest=20, operations=180, decided=True, equations=2)
    """
    largest, operations, decided, equations = 0, 0, True, len(jaxpr.eqns)
    for eqn in jaxpr.eqns:
        inner = [cost(body) for _, body, _ in programs(eqn.params)]
        equations += sum(c.equations for c in inner)
        largest = max([largest, *(_elements(v) for v in eqn.outvars), *(c.largest for c in inner)])
        decided = decided and eqn.primitive.name != "while" and all(c.decided for c in inner)
        if not inner or eqn.primitive.name.startswith(("reduce", "cum", "scatter", "select_and", "argm")):
            operations += _operations(eqn)
        elif eqn.primitive.name == "cond":
            operations += max(c.operations for c in inner)
        else:
            operations += eqn.params.get("length", 1) * sum(c.operations for c in inner)
    return Cost(largest, operations, decided, equations)


def _elements(v: Any) -> int:
    return math.prod(getattr(v.aval, "shape", ()))


def _operations(eqn: Any) -> int:
    out = sum(_elements(v) for v in eqn.outvars)
    if eqn.primitive.name == "dot_general":
        (contracted, _), _ = eqn.params["dimension_numbers"]
        return 2 * out * math.prod(eqn.invars[0].aval.shape[i] for i in contracted)
    if eqn.primitive.name == "conv_general_dilated":
        numbers = eqn.params["dimension_numbers"]
        kernel = eqn.invars[1].aval.shape
        return 2 * out * math.prod(kernel[i] for i in numbers.rhs_spec[1:])
    return max([out, *(_elements(v) for v in eqn.invars)])


def too_large(subject: CallUnderTest) -> str | None:
    """Returns why the call cannot be computed in the memory that is free, or None; nothing is computed to know it."""
    if any(isinstance(program, str | None) for program in subject.traced):  # the claims report what the function raises
        return None
    largest = [cost(unclose(program)[0]).largest for program in subject.traced]
    needed, free = 8 * max(largest), _free_memory()  # bytes, in float64
    if needed <= free / 2:
        return None
    whose = "the function" if largest[0] >= largest[1] else "autodiff of the reference"
    return (
        f"{whose} forms an array of {max(largest):,} elements, {needed / 1e9:.0f} GB in float64, and "
        f"{free / 1e9:.0f} GB are free: nothing was computed"
    )


def _free_memory() -> float:
    """Returns the bytes of memory that are free, infinity where the system does not tell."""
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            return next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration, ValueError):
        return math.inf


def check(subject: CallUnderTest, compiled: bool = True) -> Iterator[Finding]:
    """Yields a finding for each dimension.

    Args:
        subject: what to examine; its `resize` says how sizes change.
        compiled: whether to compile at larger sizes too, and measure the temporary bytes; and to trace autodiff where
            the rule grows in proportion at most, so that both are drawn.
    """
    if subject.resize is None or not subject.sizes:
        yield noted("the call has no dimension to enlarge")
        return
    for dimension, size in subject.sizes.items():
        yield _dimension(subject, dimension, size, compiled)


def _dimension(subject: CallUnderTest, dimension: str, size: int, compiled: bool) -> Finding:
    sizes = (FACTOR * size, 2 * FACTOR * size)
    try:
        ours = [cost(_trace(subject, dimension, n, lambda s: s.call)) for n in sizes]
        memory, time = (_exponent(ours, part) for part in ("largest", "operations"))
        proportional = max(memory, time) <= 1 + EXCESS
        wanted = () if proportional and not compiled else sizes
        theirs = [cost(_trace(subject, dimension, n, lambda s: s.oracle)) for n in wanted]
    except Exception as refusal:  # functions have their own words for sizes that they do not take
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
    subject: CallUnderTest, dimension: str, sizes: Sequence[int], ours: list[Cost], theirs: list[Cost], size: int | None
) -> dict[str, Any]:
    """Returns what is drawn of growth: sizes, and the costs of the rule and of autodiff at each.

    Args:
        subject: what is examined.
        dimension: the dimension that grows.
        sizes: those traced.
        ours: the rule's costs.
        theirs: autodiff's, none if it was not traced.
        size: the dimension's size in the call, to trace at it too; None to trace no more.
    """
    if size is not None and size not in sizes:
        sizes = (size, *sizes)
        ours = [cost(_trace(subject, dimension, size, lambda s: s.call)), *ours]
        theirs = [cost(_trace(subject, dimension, size, lambda s: s.oracle)), *theirs]

    def parts(costs: list[Cost]) -> dict[str, list[int]]:
        return {part: [getattr(c, part) for c in costs] for part in ("largest", "operations")}

    drawn = {"dimension": dimension, "sizes": list(sizes), "rule": parts(ours)}
    return drawn | ({"autodiff": parts(theirs)} if theirs else {})


def _exponent(costs: list[Cost], part: str) -> float:
    small, large = (max(1, getattr(c, part)) for c in costs)
    return math.log2(large / small)


Chosen = Callable[[CallUnderTest], Callable[..., Any]]


def _program(subject: CallUnderTest, chosen: Chosen) -> Callable[..., Any]:
    """Returns forward and backward as a function of every array of the call, integers and masks included."""

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
    # Below a few kilobytes the program's own scratch space is all there is, and it does not grow. Of two doublings the
    # compiler may have changed its plan at one: the smaller counts.
    temporary = [max(4096, a.temp_size_in_bytes if a else 0) for a in analyses]
    return min(math.log2(large / small) for small, large in itertools.pairwise(temporary))


CLAIM = Claim("growth", check, alias="V8", quick=partial(check, compiled=False), traces_only=True, cost=(3, 8))
