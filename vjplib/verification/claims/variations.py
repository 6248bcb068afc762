"""Variations: values at other calls than the given one: each axis made 1 and n + 1, each static argument changed."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import numpy as np

from vjplib.verification.call import CallUnderTest, Static, parameters
from vjplib.verification.claim import Claim
from vjplib.verification.claims import value
from vjplib.verification.explain import shrink
from vjplib.verification.report import Finding, failed, noted


def check(subject: CallUnderTest, effort: str = "standard") -> Iterator[Finding]:
    """Yield the findings on values with one thing changed at a time; "quick" only notes the arguments left alone."""
    yield from _at_other_values(subject, effort)
    if effort != "quick":
        yield from _at_other_sizes(subject, effort)


def _at_other_sizes(subject: CallUnderTest, effort: str) -> Iterator[Finding]:
    """Change each size to one, and to the next, of other parity; in deep, to more."""
    integers = len(jax.tree.leaves(subject.args)) > len(subject.differentiable)
    for name, n in subject.sizes.items():
        found = {}
        for size in sorted(({1, n + 1} if effort == "standard" else {1, 2, 3, n - 1, n + 1, n + 2, 2 * n}) - {0, n}):
            if size < n and integers:  # they may be indices into the axis
                continue
            if (other := subject.resized({name: size}, f"{name} made {size}")) is not None:
                found[size] = _values(other, subject)
        trap = _trap_of_sizes(subject, name, n, {size: not _fails(findings) for size, findings in found.items()})
        for findings in found.values():
            yield from _with_trap(findings, trap)
        if trap and not any(map(_fails, found.values())):
            yield failed("wrong_value", f"right where {name} are of another parity", trap=trap)


def _fails(findings: list[Finding]) -> bool:
    return any(f.level == "fail" for f in findings)


def _with_trap(findings: list[Finding], trap: str) -> list[Finding]:
    return [replace(f, trap=trap) if trap and f.level == "fail" else f for f in findings]


def _trap_of_sizes(subject: CallUnderTest, name: str, n: int, right: Mapping[int, bool]) -> str:
    """Return the trap that the wrong sizes have in common, trying two more for the parity."""
    right = {**right, n: value.right(subject)}
    if {size for size, good in right.items() if not good} == {1}:
        return "batch-of-one"
    if len({good for size, good in right.items() if size > 1}) == 1:
        return ""
    for size in {n + 2, n + 3} - set(right):
        if (other := subject.resized({name: size}, f"{name} made {size}")) is None:
            return ""
        right[size] = value.right(other)
    parity = [good == (right[n] == ((size - n) % 2 == 0)) for size, good in right.items() if size > 1]
    return "odd-or-even" if all(parity) else ""


def _at_other_values(subject: CallUnderTest, effort: str) -> Iterator[Finding]:
    """Change each static number to the next two, negate each switch; a string or a function stays."""
    names = parameters(subject.fn, len(subject.args))
    static = {names[i]: a.value for i, a in enumerate(subject.args) if isinstance(a, Static)}
    static |= {name: v for name, v in subject.kwargs.items() if isinstance(v, (bool, int, float, str))}
    for name, given in static.items():
        tried = False
        for new in _others(given) if effort != "quick" else ():
            args = tuple(
                Static(new) if isinstance(a, Static) and names[i] == name else a for i, a in enumerate(subject.args)
            )
            kwargs = {k: new if k == name else v for k, v in subject.kwargs.items()}
            other = subject.at(args, kwargs, f"{name} made {new!r}")
            if other.runs:
                tried, findings = True, _values(other, subject)
                trap = "one-static-value" if _fails(findings) and value.right(subject) else ""
                yield from _with_trap(findings, trap)
        if not tried and isinstance(given, (bool, int, float, str)):
            yield noted(f"static argument {name} was tried at {given!r} only")


def _others(given: Any) -> list[Any]:
    if isinstance(given, bool):
        return [not given]
    return [given + 1, given - 1] if isinstance(given, int) else [2 * given] if isinstance(given, float) else []


def _values(other: CallUnderTest, original: CallUnderTest) -> list[Finding]:
    """Return the findings on values at another call, the first failure with a counterexample of a few numbers."""
    counts = [len(at.outputs(at.leaves(np.float32))) for at in (other, original)]
    alike = original if counts[0] == counts[1] else None  # a switch may change the number of outputs
    findings = [replace(f, case=other.case) for f in value.check(other, (1.0,), alike)]
    first = next((i for i, f in enumerate(findings) if f.level == "fail"), None)
    if first is not None:
        findings[first] = replace(findings[first], counterexample=shrink.smallest(other))
    return findings


CLAIM = Claim(
    "variations",
    check,
    alias="V14",
    quick=partial(check, effort="quick"),
    deep=partial(check, effort="deep"),
    records=False,
    cost=(1, 20),
)
