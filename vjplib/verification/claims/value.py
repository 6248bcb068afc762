"""Value: the primal, the forward pass and every cotangent equal the float64 oracle, at three scales of input."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial

import jax
import numpy as np

from vjplib.compat import x64
from vjplib.verification.call import SCALES, CallUnderTest, Leaves
from vjplib.verification.claim import Claim
from vjplib.verification.explain import diagnose
from vjplib.verification.explain.jacobian_picture import jacobians
from vjplib.verification.explain.locate import explain
from vjplib.verification.oracle import evaluate_oracle, roundings, typical_magnitude
from vjplib.verification.report import Finding, Level, finding, noted, skipped
from vjplib.verification.tolerance import HALF_THE_DIGITS, SLACK, Error, error, reach_of, relative_gap, size_of, unit_of


def check(
    subject: CallUnderTest, scales: tuple[float, ...] = SCALES, original: CallUnderTest | None = None
) -> Iterator[Finding]:
    """Yields a finding for each output and each differentiated argument: its worst over the scales, in float32.

    Args:
        subject: what to examine.
        scales: factors of the floating arguments.
        original: the call that this one was made of, whose answers are of the usual size too: at an axis of one
            element all that is there may cancel.
    """
    given = subject.leaves(np.float32)
    unsaturated = typical_magnitude(subject, given, subject.cotangents(given))
    if original is not None:
        as_made = original.leaves(np.float32)
        larger = typical_magnitude(original, as_made, original.cotangents(as_made))
        unsaturated = tuple(b if size_of(b) > size_of(a) else a for a, b in zip(unsaturated, larger, strict=True))
    errors: dict[str, list[tuple[Error, str]]] = {}
    for scale in scales:
        leaves = subject.leaves(np.float32, scale)
        for name, e in compare(subject, leaves, subject.cotangents(leaves), unsaturated):
            errors.setdefault(name, []).append((e, f"inputs times {scale:g}"))
    exact, traps = _in_float64(subject, original)
    for name, found in errors.items():
        yield from _judged(subject, name, found, traps)
    pictures = jacobians(subject) if len(scales) > 1 else {}
    for f in exact:
        picture = pictures.get(f.argument.removeprefix("cotangent of "))
        yield replace(f, data={"jacobian": picture}) if picture else f


def _judged(
    subject: CallUnderTest, name: str, found: list[tuple[Error, str]], traps: Mapping[str, str]
) -> Iterator[Finding]:
    """Yields a failure, or what was shown at the scales that could be decided, and a note of those that could not."""

    def judged(level: Level, message: str, e: Error) -> Finding:
        trap = traps.get(name, "") if level == "fail" else ""
        return finding(level, "wrong_value", message, name, e.ratio, e.index, trap=trap)

    worst, where = max(found, key=lambda pair: pair[0].excused)
    if worst.excused > 1:
        yield judged("fail", f"differs from the float64 oracle, {where}", worst)
        return
    decided = [pair for pair in found if pair[0].ratio <= 1 and pair[0].known > 0]
    if decided:
        worst, where = max(decided, key=lambda pair: pair[0].ratio)
        yield judged("pass", f"equals the float64 oracle, {where}", worst)
    for e, where in found:
        level: Level = "note" if decided or (e.ratio > 1 and not e.unstable) else "skipped"
        if e.known == 0:
            yield judged(level, f"undecided, {where}: the oracle is NaN there", e)
        elif e.ratio > 1:
            yield judged(level, f"undecided, {where}: {e.excuse}", e)
        elif e.known < 1:
            yield judged("note", f"the oracle is NaN at {1 - e.known:.0%} of it, {where}: undecided there", e)


def in_float64(subject: CallUnderTest) -> Iterator[Finding]:
    """Yields what comparing in float64, to half the digits, shows: coarser arithmetic inside the rule does."""
    yield from _in_float64(subject)[0]


def _in_float64(subject: CallUnderTest, original: CallUnderTest | None = None) -> tuple[list[Finding], dict[str, str]]:
    """Returns the findings of `in_float64`, and the trap behind each output and cotangent, by its name in findings."""
    with x64():
        leaves = subject.leaves(np.float64)
        gs = subject.cotangents(leaves)
        found = jax.tree.map(np.asarray, subject.answers(leaves, gs))
        pairs = list(zip((*found.ys, *found.dxs), (*found.true_ys, *found.true_dxs), strict=True))
        gaps = [relative_gap(r, o) for r, o in pairs]
        if max(gaps, default=0.0) > HALF_THE_DIGITS:
            sizes = roundings(subject, leaves, gs)
            if original is not None:
                as_made = original.leaves(np.float64)
                sizes = list(map(max, sizes, roundings(original, as_made, original.cotangents(as_made))))
            gaps = [relative_gap(r, o, size) for (r, o), size in zip(pairs, sizes, strict=True)]
        worst = max(gaps, default=0.0)
        digits = subject.digits(worst)
        traps = diagnose.values(subject, leaves, gs, found) if worst > digits else {}
    names = [*(f"output {i}" for i in range(len(found.ys))), *(f"cotangent of {name}" for name in subject.names)]
    findings = []
    noise = _noise(subject, leaves, gs) if worst > digits else [0.0] * len(pairs)
    for name, gap, (r, o), floor in zip(names, gaps, pairs, noise, strict=True):
        if np.isnan(o).all() and o.size:
            message = "undecided in float64: the oracle is NaN"
            findings.append(skipped(message, name))
            continue
        if gap > digits and r.shape == o.shape and size_of(r - o) <= floor and np.isfinite(r - o).all():
            message = "undecided in float64: all terms cancel, and what is left of the oracle is their rounding"
            findings.append(noted(message, name))
            continue
        level, trap = ("fail", traps.get(name, "")) if gap > digits else ("pass", "")
        message = f"in float64, {gap:.1e} from the oracle, relative to its size"
        ratio = gap / digits
        findings.append(finding(level, "wrong_value", message, name, ratio, trap=trap))
    return findings, traps


def _noise(subject: CallUnderTest, leaves: Leaves, gs: Leaves) -> list[float]:
    """Returns how far rounding the inputs in float64 may move each output and cotangent of the oracle."""
    oracle = evaluate_oracle(subject, leaves, gs, subject.eps / 2)
    return [SLACK * max(size_of(d[i]) for d in oracle.draws) for i in range(len(oracle.values))]


def right(subject: CallUnderTest) -> bool:
    """Returns whether the primal and every cotangent equal the oracle's, in float64 to half the digits."""
    with x64():
        leaves = subject.leaves(np.float64)
        found = jax.tree.map(np.asarray, subject.answers(leaves, subject.cotangents(leaves)))
    pairs = zip((*found.primal, *found.ys, *found.dxs), (*found.true_ys, *found.true_ys, *found.true_dxs), strict=True)
    return all(gap <= subject.digits(gap) for gap in (relative_gap(r, o) for r, o in pairs))


def compare(
    subject: CallUnderTest, leaves: Leaves, gs: Leaves, typical: Leaves | None = None, tied: bool = False
) -> Iterator[tuple[str, Error]]:
    """Yields the error of each output, differentiated and not, and of each cotangent, against the oracle.

    Args:
        subject: what to examine.
        leaves: the differentiated leaves, in the working dtype.
        gs: the output cotangents.
        typical: the oracle's outputs and cotangents at inputs of the usual size; None for those at these leaves.
        tied: whether equal numbers are to be rounded alike.
    """
    found = jax.tree.map(np.asarray, subject.answers(leaves, gs))
    autodiff = (*found.true_ys, *found.true_dxs)
    count = len(found.ys)
    outputs = [f"output {i}" if count > 1 else "output" for i in range(count)]
    differentiated = [f"{name} of the forward pass" for name in outputs]
    cotangents = [f"cotangent of {name}" for name in subject.names]
    rows = [
        *zip(range(count), outputs, found.primal, strict=True),
        *zip(range(len(autodiff)), differentiated + cotangents, (*found.ys, *found.dxs), strict=True),
    ]
    reach = reach_of(leaves)

    def errors(unit: float) -> list[tuple[str, Error]]:
        oracle = evaluate_oracle(subject, leaves, gs, unit, tied)
        return [
            (
                name,
                error(
                    r,
                    oracle.values[i],
                    autodiff[i],
                    [d[i] for d in oracle.draws],
                    unit,
                    None if typical is None else typical[i],
                    reach,
                ),
            )
            for i, name, r in rows
        ]

    unit = unit_of(leaves)
    judged = errors(unit)
    if any(e.excused > 1 for _, e in judged) and subject.eps / 2 > unit:  # the oracle is no better known than that
        judged = errors(subject.eps / 2)
    yield from judged


_at_one_scale = partial(check, scales=(1.0,))

CLAIM = Claim(
    "value",
    check,
    alias="V2",
    quick=_at_one_scale,
    further={"quick": in_float64, "standard": _at_one_scale},
    random=_at_one_scale,
    explain=explain,
    cost=(5, 25),
)
