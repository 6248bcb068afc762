"""Edges: where the oracle is finite the rule is, and equal to it, at zeros, ties, huge, tiny and named inputs."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import jax
import numpy as np

from vjplib.compat import x64
from vjplib.rule import Edge
from vjplib.verification import domain
from vjplib.verification.call import CallUnderTest, Leaves, as_taken_by_jax, attempt, kind_of
from vjplib.verification.claim import Claim, reduced
from vjplib.verification.claims.value import compare, right
from vjplib.verification.explain import shrink
from vjplib.verification.oracle import leaves_to_float64, typical_magnitude
from vjplib.verification.report import Finding, Level, finding, noted, passed
from vjplib.verification.tolerance import size_of

KINK = 1e-5
STEP = 1e-6
MOST_DIRECTIONS = 16
SCALED = {
    "inputs times -1": -1.0,
    "inputs times 100": 1e2,
    "inputs times 10,000": 1e4,
    "inputs times 1e-30": 1e-30,
    (SUBNORMAL := "subnormal inputs"): 1e-40,
}
TINY = ("inputs times 1e-30", SUBNORMAL)
MASKS = {"masks that are all False": False, "masks that are all True": True, "masks negated": None}
MOVED = 0.7  # other inputs, which change every output that is not constant
LARGE = 10.0  # no number of a usual example is larger


def check(subject: CallUnderTest) -> Iterator[Finding]:
    """Yield a finding for each generic edge, at the shapes of the call; a doubt for those outside its domain."""
    leaves, gs = subject.point(np.float32)
    typical = typical_magnitude(subject, leaves, gs)
    doubts: list[domain.Doubt] = []
    for name, made, *others in _generic(subject, leaves):
        for at, lost, instead in domain.calls(subject, made, *others):
            found = _edge(subject, name, at, gs, typical, instead=instead, outside=bool(lost), doubts=doubts)
            if not lost:
                yield from (found := list(found))
                if any(f.level == "fail" for f in found):
                    break
            elif not isinstance(outside := attempt(lambda found=found: list(found)), Exception):
                yield from (f for f in outside if f.level != "fail")
                if wrong := tuple(f.argument for f in outside if f.level == "fail"):
                    doubts.append(domain.Doubt(name, wrong, lost))
    if doubts and attempt(lambda: right(subject)) is True:
        yield from domain.as_findings(doubts)
    sparse = tuple(np.where(np.arange(g.size).reshape(g.shape) % 2, g, np.float32(0)) for g in gs)
    yield from _edge(subject, "a cotangent with exact zeros", leaves, sparse, typical)
    if not any(getattr(a, "dtype", None) == np.bool_ for a in jax.tree.leaves((subject.args, dict(subject.kwargs)))):
        return
    if (infinite := _infinite_where_masked(subject, leaves, gs)) is not None:
        yield from _edge(subject, "infinite cotangents of masked outputs", leaves, infinite, typical)
    for name, mask in MASKS.items():
        masked = _masked(subject, name, mask)
        if masked.runs:
            yield from _edge(masked, name, leaves, gs, typical, base=subject)


def _generic(subject: CallUnderTest, leaves: Leaves) -> Iterator[tuple[Any, ...]]:
    """Yield the generic edges: name, leaves, and what stands in for those that lose a property of the given ones."""
    yield "zeros", tuple(map(np.zeros_like, leaves)), domain.zeroed(subject, leaves)
    yield "ties", tuple(map(np.ones_like, leaves)), domain.tied(subject, leaves)
    for name, scale in SCALED.items():
        scaled = subject.leaves(np.float32, scale)
        yield name, scaled, domain.turned(subject, scaled)


def _infinite_where_masked(subject: CallUnderTest, leaves: Leaves, gs: Leaves) -> Leaves | None:
    """Return the cotangents, infinite where outputs are constant; None where none is or the oracle uses them."""
    with x64():
        exact, cotangents = leaves_to_float64(leaves, gs)
        here, _ = subject.truths(exact, cotangents)
        there, _ = subject.truths(tuple(MOVED * a + MOVED for a in exact), cotangents)
        constant = [np.asarray(a) == np.asarray(b) for a, b in zip(here, there, strict=True)]
        if not any(c.any() for c in constant):
            return None
        infinite = tuple(np.where(c, np.inf, g).astype(g.dtype) for c, g in zip(constant, gs, strict=True))
        _, dxs = subject.truths(exact, *leaves_to_float64(infinite))
    return infinite if all(np.isfinite(np.asarray(dx)).all() for dx in dxs) else None


def _masked(subject: CallUnderTest, name: str, mask: bool | None) -> CallUnderTest:
    """Return the call with each boolean array filled with a value, or negated for None."""

    def filled(a: Any) -> Any:
        if getattr(a, "dtype", None) != np.bool_:
            return a
        return ~np.asarray(a) if mask is None else np.full(np.shape(a), mask)

    args, kwargs = jax.tree.map(filled, (subject.args, dict(subject.kwargs)))
    return subject.at(args, kwargs, " ".join(filter(None, (subject.case, name))))


def check_named(subject: CallUnderTest, edges: Sequence[Edge]) -> Iterator[Finding]:
    """Yield a finding for each named edge of a record; those of the same shapes share compiled programs."""
    alike: dict[str, CallUnderTest] = {}
    for edge in edges:
        args = tuple(None if a is None else _single(np.asarray(a)) for a in edge.args)
        at = subject.at(args, edge.kwargs, edge.name)
        leaves = at.leaves()
        if len(leaves) == len(args):
            at = alike.setdefault(repr(([a if a is None else a.shape for a in args], edge.kwargs)), at)
        for f in _edge(at, edge.name, leaves, at.cotangents(leaves), base=subject):
            yield replace(f, case=edge.name)


def _single(a: np.ndarray) -> np.ndarray:
    return a.astype(kind_of(a.dtype, np.float32)) if np.issubdtype(a.dtype, np.inexact) else as_taken_by_jax(a)


def _edge(
    subject: CallUnderTest,
    name: str,
    leaves: Leaves,
    gs: Leaves,
    typical: Leaves | None = None,
    base: CallUnderTest | None = None,
    instead: Sequence[str] = (),
    outside: bool = False,
    doubts: list[domain.Doubt] | None = None,
) -> Iterator[Finding]:
    """Yield the findings at an edge.

    `instead` names leaves that are as given, or near it, for they have a domain; `outside` is true where some left it;
    `doubts` takes what is only doubted.
    """
    generic = base is None
    shown = f"{name} within the domain of {domain.joined(instead)}" if instead else name
    errors = compare(subject, leaves, gs, typical, tied=name == "ties" or not generic, extreme=name in TINY)
    outputs = errors[: len(gs)]
    nowhere = generic and outputs and all(e.known == 0 for _, e in outputs)  # the function is not defined there
    if errors and (nowhere or all(e.known == 0 for _, e in errors)):
        yield noted(f"{shown}: undecided, the oracle is {max((e.unknown for _, e in errors), key=len)} there")
        return
    if infinite := max((e.infinite for _, e in errors), default=0.0):
        yield noted(
            f"{shown}: the oracle is infinite at {infinite:.0%} of an array, and the rule finite: undecided there"
        )
    if generic and name == SUBNORMAL:  # the platform may take them for zeros: only that results are finite is claimed
        errors = [(argument, e) for argument, e in errors if not np.isfinite(e.excused)]
    wrong = [(argument, e) for argument, e in errors if e.excused > 1]
    if wrong and doubts is not None and name not in TINY and domain.leaves_range(subject, errors, len(gs)):
        if not outside:
            doubts.append(domain.Doubt(name, (), {}))
        return
    if not wrong:
        yield passed(shown, ratio=max((e.excused for _, e in errors), default=0.0))
        return
    excuses = _excuses(subject, leaves, gs) if all(np.isfinite(e.excused) for _, e in wrong) else {}
    for argument, e in wrong:
        level, reason = excuses.get(argument, ("fail", "differs from the oracle"))
        if not np.isfinite(e.excused):
            reason = "not finite where the oracle is"
        if generic and name in TINY and e.lost and level == "fail":  # underflow in float32 is no fault of the rule
            level, reason = "note", "undecided, for autodiff of the reference is not finite there"
        fails = level == "fail" and not outside  # what differs outside the domain is one doubt in all
        trap = _trap(base or subject, leaves, bool(np.isfinite(e.excused))) if fails else ""
        source = shrink.counterexample(subject, leaves, gs) if trap in ("overflow", "zero-times-infinity") else ""
        yield finding(
            level, "wrong_value", f"{shown}: {reason}", argument, e.excused, e.index, trap=trap, counterexample=source
        )


def _trap(subject: CallUnderTest, leaves: Leaves, finite: bool) -> str:
    """Return the trap of a rule that is right at the call as given, and not at these leaves."""
    if not right(subject):
        return ""
    if not finite:
        return "overflow" if max(map(size_of, leaves)) > LARGE else "zero-times-infinity"
    tied = any(np.unique(a).size < a.size for a in leaves)
    return "ties" if tied or any(np.any(a == 0) for a in leaves) else ""


def _excuses(subject: CallUnderTest, leaves: Leaves, gs: Leaves) -> dict[str, tuple[Level, str]]:
    """Return why a cotangent may differ from autodiff's, and the level of that, by the cotangent's name.

    Autodiff evaluates a formula at a single point, such as |x| at 0 inside a smooth function; there the limit from both
    sides counts. Where the limits differ there is a kink, and between them lie the subgradients: another one than
    autodiff's is a choice, unless the author gave a reference that states it.

    The limits are taken along each coordinate (a sample of them, of a large argument) and along all together, where a
    tie that was counted twice shows. Cotangents are made positive, so that kinks in different outputs do not cancel.
    """
    gs = tuple(np.abs(g).astype(g.dtype) for g in gs)
    (ours,) = leaves_to_float64(subject.answers(leaves, gs).dxs)
    excuses: dict[str, tuple[Level, str]] = {}
    for i, name in enumerate(subject.names):
        rows = list(_limits(subject, leaves, gs, i))
        near = KINK * max((abs(side) for _, *sides in rows for side in sides), default=0.0)
        if any(not min(sides) - near <= _slope(ours[i], t) <= max(sides) + near for t, *sides in rows):
            continue
        if all(abs(below - above) <= near for _, below, above in rows):
            excuse = "pass", "equals the oracle's limit, where autodiff of the reference does not"
        elif subject.reference is None:
            excuse = "note", "another subgradient than autodiff's at a kink; a reference would state the convention"
        else:
            continue
        excuses[f"cotangent of {name}"] = excuse
    return excuses


def _slope(dx: np.ndarray, t: np.ndarray) -> float:
    """Return the change along t that a cotangent stands for: JAX's are transposes, without a conjugate."""
    return float(np.real(np.sum(dx * t)))


def _limits(subject: CallUnderTest, leaves: Leaves, gs: Leaves, i: int) -> Iterator[tuple[np.ndarray, float, float]]:
    """Yield directions of one argument, and the oracle's slope along each, just below and just above these leaves."""
    exact, cotangents = leaves_to_float64(leaves, gs)
    x = exact[i]
    rng = np.random.default_rng((subject.seed, 5))
    coordinates = rng.permutation(x.size)[:MOST_DIRECTIONS]
    directions = [np.ones_like(x), *(np.eye(1, x.size, j).reshape(x.shape) for j in coordinates)]
    if np.iscomplexobj(x):
        directions = [unit * t for t in directions for unit in (1, 1j)]
    for t in directions:
        slopes = []
        for sign in (-1, 1):
            moved = (*exact[:i], x + sign * STEP * np.maximum(1.0, np.abs(x)) * t, *exact[i + 1 :])
            with x64():
                dx = np.asarray(subject.answers(moved, cotangents).true_dxs[i])
            slopes.append(_slope(dx, t))
        yield t, slopes[0], slopes[1]


CLAIM = Claim("edges", check, alias="V10", quick=reduced(check), named=check_named, cost=(1, 14))
