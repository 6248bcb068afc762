"""At other calls than the one given: each axis made one and one more, each static number and switch another."""

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
    """Yield the findings on values with one thing changed at a time; "quick" only notes what it does not change.

    Args:
        subject: the call as given.
        effort: "quick", "standard" or "deep".
    """
    yield from _at_other_values(subject, effort)
    if effort != "quick":
        yield from _at_other_sizes(subject, effort)


def _at_other_sizes(subject: CallUnderTest, effort: str) -> Iterator[Finding]:
    """Changes each size to one, and to the next, of other parity; in deep, to more."""
    integers = len(jax.tree.leaves(subject.args)) > len(subject.differentiable)
    for name, n in subject.sizes.items():
        sizes = {1, n + 1} if effort == "standard" else {1, 2, 3, n - 1, n + 1, n + 2, 2 * n}
        found = {}
        for size in sorted(sizes - {0, n}):
            if size < n and integers:  # they may be indices into the axis
                continue
            other = _at_size(subject, name, n, size)
            if other.runs:
                found[size] = shown(other, list(value.check(other, (1.0,), subject)))
        trap = _trap_of_sizes(subject, name, n, {size: not _fails(fs) for size, fs in found.items()})
        failures = [f for findings in found.values() for f in findings if f.level == "fail"]
        for findings in found.values():
            for f in findings:
                yield replace(f, trap=trap) if trap and f.level == "fail" else f
        if trap and not failures:
            message = f"right where {name} are of another parity"
            yield failed("wrong_value", message, trap=trap)


def _at_size(subject: CallUnderTest, name: str, n: int, size: int) -> CallUnderTest:
    return subject.at(resized(subject.args, {n: size}), subject.kwargs, f"{name} made {size}")


def _fails(findings: list[Finding]) -> bool:
    return any(f.level == "fail" for f in findings)


def _trap_of_sizes(subject: CallUnderTest, name: str, n: int, right: Mapping[int, bool]) -> str:
    """Returns the trap that the sizes which are wrong have in common, trying two more for the parity."""
    right = {**right, n: value.right(subject)}
    wrong = {size for size, good in right.items() if not good}
    if wrong == {1}:
        return "batch-of-one"
    if len({good for size, good in right.items() if size > 1}) == 1:
        return ""
    for size in {n + 2, n + 3} - set(right):
        other = _at_size(subject, name, n, size)
        if not other.runs:
            return ""
        right[size] = value.right(other)
    parity = [good == (right[n] == ((size - n) % 2 == 0)) for size, good in right.items() if size > 1]
    return "odd-or-even" if all(parity) else ""


def _at_other_values(subject: CallUnderTest, effort: str) -> Iterator[Finding]:
    """Changes each static number to the next two, each switch to its contrary; a string or a function stays."""
    names = parameters(subject.fn, len(subject.args))
    static = {names[i]: a.value for i, a in enumerate(subject.args) if isinstance(a, Static)}
    static |= {name: v for name, v in subject.kwargs.items() if isinstance(v, (bool, int, float, str))}
    for name, given in static.items():
        tried = False
        for other_value in _others(given) if effort != "quick" else ():
            args = tuple(
                Static(other_value) if isinstance(a, Static) and names[i] == name else a
                for i, a in enumerate(subject.args)
            )
            kwargs = {k: other_value if k == name else v for k, v in subject.kwargs.items()}
            other = subject.at(args, kwargs, f"{name} made {other_value!r}")
            if other.runs:
                tried = True
                findings = shown(other, list(value.check(other, (1.0,), subject)))
                trap = "one-static-value" if _fails(findings) and value.right(subject) else ""
                for f in findings:
                    yield replace(f, trap=trap) if trap and f.level == "fail" else f
        if not tried and isinstance(given, (bool, int, float, str)):
            yield noted(f"static argument {name} was tried at {given!r} only")


def _others(given: Any) -> list[Any]:
    if isinstance(given, bool):
        return [not given]
    return [given + 1, given - 1] if isinstance(given, int) else [2 * given] if isinstance(given, float) else []


def shown(subject: CallUnderTest, findings: list[Finding]) -> list[Finding]:
    """Returns the findings, the first failure with a counterexample of a few numbers."""
    findings = [replace(f, case=subject.case) for f in findings]
    first = next((i for i, f in enumerate(findings) if f.level == "fail"), None)
    if first is None:
        return findings
    source = shrink.smallest(subject)
    return [replace(f, counterexample=source) if i == first else f for i, f in enumerate(findings)]


def resized(args: tuple[Any, ...], sizes: Mapping[int, int]) -> tuple[Any, ...]:
    """Returns the arguments with axes of some sizes made others, their numbers repeated or cut.

    Example:
        >>> resized((np.arange(2.0),), {2: 3})[0].tolist()
        [0.0, 1.0, 0.0]
    """

    def one(a: Any) -> Any:
        shape = tuple(sizes.get(n, n) for n in np.shape(a))
        return a if shape == np.shape(a) else np.resize(a, shape)

    return jax.tree.map(one, args)


CLAIM = Claim(
    "variations",
    check,
    alias="V14",
    quick=partial(check, effort="quick"),
    deep=partial(check, effort="deep"),
    records=False,
    cost=(1, 20),
)
