"""Variations: values at other calls than the given one.

Each axis is made 1 and n + 1, short ones once 131 and more, and each static argument is changed. Other sizes keep the
properties of the arrays, so what differs there fails. Other values of a static argument fail where the caller states
them; a flag may be a precondition, so what differs at values that nobody stated is a doubt.
"""

import enum
import inspect
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from functools import partial
from typing import Any, Literal, get_args, get_origin

import jax
import jax.numpy as jnp
import numpy as np

from vjplib.compat import equations, is_key
from vjplib.verification.call import SMALL, CallUnderTest, attempt
from vjplib.verification.claim import Claim
from vjplib.verification.claims import value
from vjplib.verification.domain import joined
from vjplib.verification.explain import shrink
from vjplib.verification.explain.diagnose import raised
from vjplib.verification.report import Finding, describe_error, failed, finding, noted

LARGE = (131, 137, 139, 149, 151)  # primes, more than two blocks of 64 and than int8 holds
MOST_EQUATIONS = 2000  # of a program that is compiled at large sizes
MOST_OF_A_LOOP = 64  # a larger number is not doubled: it may be a loop's length


def check(subject: CallUnderTest, effort: str = "standard") -> Iterator[Finding]:
    """Yield the findings on values with one thing changed at a time; "quick" only notes the arguments left alone."""
    yield from _at_other_values(subject, effort)
    if effort != "quick":
        yield from _at_other_sizes(subject, effort)
        yield from _at_large_sizes(subject)
        if subject.domain is not None and subject.domain.draw is not None:
            args = subject.domain.redrawn(subject.args, (subject.seed, 11), {})
            yield from _values(subject.at(args, subject.kwargs, "another draw of domain"), subject)


def _at_other_sizes(subject: CallUnderTest, effort: str) -> Iterator[Finding]:
    """Change each size to one, and to the next, of other parity; in deep, to more."""
    integers = len(jax.tree.leaves(subject.args)) > len(subject.differentiable)
    for name, n in subject.sizes.items():
        found = {}
        for size in sorted(({1, n + 1} if effort == "standard" else {1, 2, 3, n - 1, n + 1, n + 2, 2 * n}) - {0, n}):
            if size < n and integers:  # they may be indices into the axis
                continue
            if (findings := _at_sizes(subject, {name: size}, f"{name} made {size}")) is not None:
                found[size] = findings
        trap = _trap_of_sizes(subject, name, n, {size: not _fails(findings) for size, findings in found.items()})
        for size, findings in found.items():
            findings = _with_trap(findings, trap)
            smaller = size < n and _fails(findings) and _right(subject)
            yield from _in_doubt(subject, name, findings) if smaller else findings
        if trap and not any(map(_fails, found.values())):
            yield failed("wrong_value", f"right where {name} are of another parity", trap=trap)


def _in_doubt(subject: CallUnderTest, name: str, findings: list[Finding]) -> list[Finding]:
    """Return the failures at a smaller size as doubts where the function may not be meant to take it.

    A window longer than what it slides over raises, and no wrong number results. An axis that cannot grow alone belongs
    to another one: made one element, it is accepted because it broadcasts.
    """
    n = subject.sizes[name]
    grows = any(subject.resized({name: m}, refusing=True) is not None for m in (n + 2, 2 * n + 1))

    def doubted(f: Finding) -> Finding:
        raises = f.code == "raises"
        if f.level != "fail" or (grows and not raises):
            return f
        what = f.message if raises else "differs"
        why = (
            "" if raises else ", which may be accepted only because one element broadcasts, for it refuses larger ones"
        )
        message = f"right at your call; {what} where {f.case}{why}; the function may refuse that size by an exception"
        return finding("doubt", "", message, f.argument, case=f.case)

    return list(dict.fromkeys(map(doubted, findings)))


def _at_large_sizes(subject: CallUnderTest) -> Iterator[Finding]:
    """Make every short axis large at once, or each alone where the function refuses that; in float64 only."""
    short = [name for name, n in subject.sizes.items() if 1 < n < LARGE[0]]
    together = dict(zip(short, LARGE, strict=False))
    for sizes in (together, *({name: LARGE[0]} for name in short if len(short) > 1)):
        findings = _at_sizes(subject, sizes, _made(sizes), large=True)
        if findings is not None:
            yield from findings
            if sizes is together:
                return


def _made(sizes: Mapping[str, int]) -> str:
    return ", ".join(f"{name} made {n}" for name, n in sizes.items())


def _at_sizes(subject: CallUnderTest, sizes: Mapping[str, int], case: str, large: bool = False) -> list[Finding] | None:
    """Return the findings at other sizes; None where the function refuses them.

    A static number that equals the size of an axis may state it, and then has to change with it.
    """
    new = {subject.sizes[name]: n for name, n in sizes.items()}
    stating = {k: new[v] for k, v in subject.static.items() if type(v) is int and v in new and v > 1}
    failing = None
    for static in (stating, {}) if stating else ({},):
        named = "".join(f", {k} made {v}" for k, v in static.items())
        other = _smaller_than(subject, sizes) if large else subject
        other = other and other.resized(sizes, case + named, static, refusing=True)
        if other is None or (large and _is_long(other)):
            continue
        findings = _large(other, subject) if large else _values(other, subject)
        if not _fails(findings):
            return findings
        failing = failing or findings
    return failing


def _smaller_than(subject: CallUnderTest, sizes: Mapping[str, int]) -> CallUnderTest | None:
    """Return the call if its arrays would still be small at other sizes."""
    avals = attempt(lambda: subject.resize and subject.resize(sizes)[0])
    if isinstance(avals, Exception) or sum(np.prod(a.shape, dtype=float) for a in jax.tree.leaves(avals)) > SMALL:
        return None
    return subject


def _is_long(other: CallUnderTest) -> bool:
    """Return True if a program is so long that compiling takes long: a loop over the axis is unrolled."""
    programs = [p for p in other.traced if not isinstance(p, str | None)]
    return any(sum(1 for _ in itertools.islice(equations(p), MOST_EQUATIONS + 1)) > MOST_EQUATIONS for p in programs)


def _fails(findings: list[Finding]) -> bool:
    return any(f.level == "fail" for f in findings)


def _with_trap(findings: list[Finding], trap: str) -> list[Finding]:
    return [replace(f, trap=trap) if trap and f.level == "fail" else f for f in findings]


def _right(subject: CallUnderTest) -> bool:
    return attempt(lambda: value.right(subject)) is True


def _trap_of_sizes(subject: CallUnderTest, name: str, n: int, right: Mapping[int, bool]) -> str:
    """Return the trap that the wrong sizes have in common, trying two more for the parity."""
    if all(right.values()) and (not right or _right(subject)):
        return ""
    right = {**right, n: _right(subject)}
    if {size for size, good in right.items() if not good} == {1}:
        return "batch-of-one"
    if len({good for size, good in right.items() if size > 1}) == 1:
        return ""
    for size in {n + 2, n + 3} - set(right):
        if (other := subject.resized({name: size}, f"{name} made {size}")) is None:
            return ""
        right[size] = _right(other)
    parity = [good == (right[n] == ((size - n) % 2 == 0)) for size, good in right.items() if size > 1]
    return "odd-or-even" if all(parity) else ""


# ---------------------------------------------------------------------------------------------------- static arguments
def at_stated_values(subject: CallUnderTest) -> Iterator[Finding]:
    """Yield the findings at the values that static arguments are stated to take."""
    yield from _at_other_values(subject, "standard", guess=False)


def _at_other_values(subject: CallUnderTest, effort: str, guess: bool = True) -> Iterator[Finding]:
    """Try the values that static arguments are stated to take, and guess others."""
    sizes = set(subject.sizes.values())
    for name, given in subject.static.items():
        stated = name in subject.vary
        if not stated and not guess:
            continue
        guessed = other_values(given, _annotation(subject.fn, name))
        tried, differing = False, list[tuple[Any, list[Finding]]]()
        for new in (subject.vary[name] if stated else guessed) if effort != "quick" else ():
            if type(new) is type(given) and new == given:
                tried = True
                continue
            other = _with_value(subject, name, given, new)
            if other is None or attempt(lambda other=other: other.accepted) is not True:
                continue
            tried, findings = True, _values(other, subject, explained=stated)
            if stated:
                yield from _with_trap(findings, "one-static-value" if _fails(findings) and _right(subject) else "")
            elif not _fails(findings):
                yield from findings
            elif not (type(given) is int and given in sizes and any(f.code == "raises" for f in findings)):
                differing.append((new, [f for f in findings if f.level == "fail"]))
        if differing and _right(subject):
            yield _doubt(name, differing)
        if not tried and not stated and _worth_a_note(given):
            yield noted(f"static argument {name} was tried at {given!r} only")


def _doubt(name: str, differing: Sequence[tuple[Any, list[Finding]]]) -> Finding:
    """Return the doubt about other values of a static argument, with its remedy."""
    found = [f for _, findings in differing for f in findings]
    what = "raises" if all(f.code == "raises" for f in found) else "differs"
    where = " or ".join(repr(new) for new, _ in differing)
    example = f" ({found[0].message})" if what == "raises" else ""
    arguments = joined(list(dict.fromkeys(f.argument for f in found if f.argument)))
    values = ", ".join(repr(new) for new, _ in differing) + ("," if len(differing) == 1 else "")
    message = f"right at your call; {what} where {name} is {where}{example}"
    remedy = f"vary={{{name!r}: ({values})}} makes it a failure, vary={{{name!r}: ()}} leaves {name} as it is"
    case = f"{name} made {differing[0][0]!r}"
    return finding("doubt", "", f"{message}; {remedy}", arguments, case=case)


def _worth_a_note(given: Any) -> bool:
    """Return True for values that a note is due for where no other was tried; a function cannot be guessed."""
    return isinstance(given, (bool, int, float, str, tuple, enum.Enum)) or is_dataclass(given)


def _with_value(subject: CallUnderTest, name: str, given: Any, new: Any) -> CallUnderTest | None:
    """Return the call with another value of a static argument; None where integers of an array could not follow it.

    A number above all integers of an array may bound them: they are kept below a smaller one.
    """
    other = subject.with_static({name: new}, f"{name} made {new!r}")
    if type(new) is not int or type(given) is not int or new >= given:
        return other
    domain, leaves = subject.domain, list(jax.tree.leaves(subject.args))
    for i, a in enumerate(leaves):
        if is_key(a) or not jnp.issubdtype(jnp.result_type(a), jnp.integer):
            continue
        most = int(np.max(np.asarray(a), initial=-1))
        if new <= most < given:
            if new < 1 or (domain is not None and any("increasing" not in p.name for p in domain.of(i))):
                return None
            leaves[i] = np.minimum(np.asarray(a), new - 1)
    args = jax.tree.unflatten(jax.tree.structure(other.args), leaves)
    return other.at(args, other.kwargs, other.case)


def _annotation(fn: Any, name: str) -> Any:
    signature = attempt(lambda: inspect.signature(inspect.unwrap(fn), eval_str=True))
    return (
        None
        if isinstance(signature, Exception) or name not in signature.parameters
        else (signature.parameters[name].annotation)
    )


def other_values(given: Any, annotation: Any = None) -> list[Any]:
    """Return other values than a given one that an argument of its kind may take, those of a Literal if it is one.

    Example:
        >>> other_values(3), other_values(True), other_values((2, 5)), other_values("sum", Literal["sum", "mean"])
        ([4, 2, 7], [False], [(3, 5), (2, 6), (5, 2)], ['mean'])
    """
    if get_origin(annotation) is Literal:
        return [other for other in get_args(annotation) if other != given]
    if isinstance(given, enum.Enum):
        return [other for other in type(given) if other is not given]
    if isinstance(given, bool):
        return [not given]
    if isinstance(given, int):
        found = [given + 1, given - 1, *([2 * given + 1] if abs(given) <= MOST_OF_A_LOOP else [])]
        return [n for n in dict.fromkeys(found) if n != given]
    if isinstance(given, float):
        return [2 * given if given else 1.0]
    if isinstance(given, tuple):
        make = type(given)._make if hasattr(given, "_make") else tuple  # type: ignore[attr-defined]
        found = [make((*given[:i], new, *given[i + 1 :])) for i, a in enumerate(given) for new in other_values(a)[:1]]
        found += [make(given[::-1])] if type(given) is tuple else []
        return [new for i, new in enumerate(found) if new != given and new not in found[:i]]
    if is_dataclass(given) and not isinstance(given, type):
        changed = [(f.name, new) for f in fields(given) if f.init for new in other_values(getattr(given, f.name))[:1]]
        made = [attempt(lambda name=name, new=new: replace(given, **{name: new})) for name, new in changed]
        return [other for other in made if not isinstance(other, Exception)]
    return []


# ------------------------------------------------------------------------------------------------------------- values
def _values(other: CallUnderTest, original: CallUnderTest, explained: bool = True) -> list[Finding]:
    """Return the findings on values at another call, the first failure with a counterexample of a few numbers."""

    def compared() -> list[Finding]:
        counts = [len(at.outputs(at.leaves(np.float32))) for at in (other, original)]
        alike = original if counts[0] == counts[1] else None  # a switch may change the number of outputs
        # Optimised programs are compared at the call itself; here shapes count, and compiling is what takes long.
        return list(value.check(replace(other, hurried=True), (1.0,), alike))

    findings = _ran(attempt(compared), other, original)
    first = next((i for i, f in enumerate(findings) if f.level == "fail"), None)
    if first is not None and explained and findings[first].code != "raises":
        findings[first] = replace(findings[first], counterexample=shrink.smallest(other))
    return findings


def _large(other: CallUnderTest, original: CallUnderTest) -> list[Finding]:
    """Return the findings on values in float64 alone."""
    return _ran(attempt(lambda: list(value.in_float64(other))), other, original)


def _ran(found: list[Finding] | Exception, other: CallUnderTest, original: CallUnderTest) -> list[Finding]:
    """Return findings with their call; or that it raises, nothing where the function or the oracle does so too.

    What the oracle cannot decide at a call that the user did not make is only noted.
    """
    if isinstance(found, Exception):
        tries = [
            attempt(lambda: jax.block_until_ready(other.compiled(other.call)(*other.leaves(np.float32)))),
            attempt(lambda: other.truths(*other.point(np.float32))),
        ]
        if any(isinstance(result, Exception) for result in tries):
            return []
        if isinstance(attempt(lambda: original.answers_at(*original.point(np.float64))), Exception):
            raise found  # as at the call itself
        found = [failed("raises", f"raises {describe_error(found)}", trap=raised(other, found))]
    decided = [replace(f, level="note") if f.level == "skipped" else f for f in found]
    return [replace(f, case=other.case) for f in decided]


CLAIM = Claim(
    "variations",
    check,
    alias="V14",
    quick=partial(check, effort="quick"),
    deep=partial(check, effort="deep"),
    records=False,
    cost=(1, 24),
)
