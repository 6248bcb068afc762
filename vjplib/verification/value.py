"""V2, value: the primal, the forward pass and every cotangent equal the float64 oracle, at three scales of input."""

from collections.abc import Iterator, Mapping
from dataclasses import replace

import jax
import numpy as np

from vjplib.compat import x64
from vjplib.verification import diagnose
from vjplib.verification.measure import (
    HALF_THE_DIGITS,
    SLACK,
    Error,
    consult,
    error,
    relative_gap,
    roundings,
    size_of,
    unit_of,
    usual,
)
from vjplib.verification.picture import jacobians
from vjplib.verification.report import Finding, Level
from vjplib.verification.subject import Leaves, Subject

SCALES = (1.0, 1e-3, 30.0)


def check(subject: Subject, scales: tuple[float, ...] = SCALES) -> Iterator[Finding]:
    """Yields a finding for each output and each differentiated argument: its worst over the scales, in float32.

    Args:
        subject: what to examine.
        scales: factors of the floating arguments.
    """
    given = subject.leaves(np.float32)
    unsaturated = usual(subject, given, subject.cotangents(given))
    errors: dict[str, list[tuple[Error, str]]] = {}
    for scale in scales:
        leaves = subject.leaves(np.float32, scale)
        for name, e in compare(subject, leaves, subject.cotangents(leaves), unsaturated):
            errors.setdefault(name, []).append((e, f"inputs times {scale:g}"))
    exact, traps = _in_float64(subject)
    for name, found in errors.items():
        yield from _judged(subject, name, found, traps)
    pictures = jacobians(subject) if len(scales) > 1 else {}
    for f in exact:
        picture = pictures.get(f.argument.removeprefix("cotangent of "))
        yield replace(f, data={"jacobian": picture}) if picture else f


def _judged(subject: Subject, name: str, found: list[tuple[Error, str]], traps: Mapping[str, str]) -> Iterator[Finding]:
    """Yields a failure, or what was shown at the scales that could be decided, and a note of those that could not."""

    def finding(level: Level, message: str, e: Error) -> Finding:
        trap = traps.get(name, "") if level == "fail" else ""
        return Finding("V2", level, message, name, e.ratio, e.index, subject.case, trap)

    worst, where = max(found, key=lambda pair: pair[0].excused)
    if worst.excused > 1:
        yield finding("fail", f"differs from the float64 oracle, {where}", worst)
        return
    decided = [pair for pair in found if pair[0].ratio <= 1 and pair[0].known > 0]
    if decided:
        worst, where = max(decided, key=lambda pair: pair[0].ratio)
        yield finding("pass", f"equals the float64 oracle, {where}", worst)
    for e, where in found:
        level: Level = "note" if decided else "skipped"
        if e.known == 0:
            yield finding(level, f"undecided, {where}: the oracle is NaN there", e)
        elif e.ratio > 1:
            reason = "no worse than autodiff of the reference, which is unstable there"
            yield finding(level, f"undecided, {where}: {reason}", e)
        elif e.known < 1:
            yield finding("note", f"the oracle is NaN at {1 - e.known:.0%} of it, {where}: undecided there", e)


def in_float64(subject: Subject) -> Iterator[Finding]:
    """Yields what comparing in float64, to half the digits, shows: coarser arithmetic inside the rule does."""
    yield from _in_float64(subject)[0]


def _in_float64(subject: Subject) -> tuple[list[Finding], dict[str, str]]:
    """Returns the findings of `in_float64`, and the trap behind each output and cotangent, by its name in findings."""
    with x64():
        leaves = subject.leaves(np.float64)
        gs = subject.cotangents(leaves)
        found = jax.tree.map(np.asarray, subject.answers(leaves, gs))
        pairs = list(zip((*found.ys, *found.dxs), (*found.true_ys, *found.true_dxs), strict=True))
        gaps = [relative_gap(r, o) for r, o in pairs]
        if max(gaps, default=0.0) > HALF_THE_DIGITS:
            sizes = roundings(subject, leaves, gs)
            gaps = [relative_gap(r, o, size) for (r, o), size in zip(pairs, sizes, strict=True)]
        traps = diagnose.values(subject, leaves, gs, found) if max(gaps, default=0.0) > HALF_THE_DIGITS else {}
    names = [*(f"output {i}" for i in range(len(found.ys))), *(f"cotangent of {name}" for name in subject.names)]
    findings = []
    noise = _noise(subject, leaves, gs) if max(gaps, default=0.0) > HALF_THE_DIGITS else [0.0] * len(pairs)
    for name, gap, (r, o), floor in zip(names, gaps, pairs, noise, strict=True):
        if np.isnan(o).all() and o.size:
            message = "undecided in float64: the oracle is NaN"
            findings.append(Finding("V2", "skipped", message, name, case=subject.case))
            continue
        if gap > HALF_THE_DIGITS and r.shape == o.shape and size_of(r - o) <= floor and np.isfinite(r - o).all():
            message = "undecided in float64: all terms cancel, and what is left of the oracle is their rounding"
            findings.append(Finding("V2", "note", message, name, case=subject.case))
            continue
        level, trap = ("fail", traps.get(name, "")) if gap > HALF_THE_DIGITS else ("pass", "")
        message = f"in float64, {gap:.1e} from the oracle, relative to its size"
        ratio = gap / HALF_THE_DIGITS
        findings.append(Finding("V2", level, message, name, ratio, case=subject.case, trap=trap))
    return findings, traps


def _noise(subject: Subject, leaves: Leaves, gs: Leaves) -> list[float]:
    """Returns how far rounding the inputs in float64 may move each output and cotangent of the oracle."""
    oracle = consult(subject, leaves, gs, float(np.finfo(np.float64).eps) / 2)
    return [SLACK * max(size_of(d[i]) for d in oracle.draws) for i in range(len(oracle.values))]


def right(subject: Subject) -> bool:
    """Returns whether the primal and every cotangent equal the oracle's, in float64 to half the digits."""
    with x64():
        leaves = subject.leaves(np.float64)
        found = jax.tree.map(np.asarray, subject.answers(leaves, subject.cotangents(leaves)))
    pairs = zip((*found.primal, *found.ys, *found.dxs), (*found.true_ys, *found.true_ys, *found.true_dxs), strict=True)
    return all(relative_gap(r, o) <= HALF_THE_DIGITS for r, o in pairs)


def compare(
    subject: Subject, leaves: Leaves, gs: Leaves, usual: Leaves | None = None, tied: bool = False
) -> Iterator[tuple[str, Error]]:
    """Yields the error of each output, differentiated and not, and of each cotangent, against the oracle.

    Args:
        subject: what to examine.
        leaves: the differentiated leaves, in the working dtype.
        gs: the output cotangents.
        usual: the oracle's outputs and cotangents at inputs of the usual size; None for those at these leaves.
        tied: whether equal numbers are to be rounded alike.
    """
    unit = unit_of(leaves)
    oracle = consult(subject, leaves, gs, unit, tied)
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
    for i, name, r in rows:
        draws = [d[i] for d in oracle.draws]
        yield (
            name,
            error(r, oracle.values[i], autodiff[i], draws, unit, None if usual is None else usual[i]),
        )
