"""Value: the primal, the forward pass and every cotangent equal the float64 oracle, at three scales of input."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial, reduce

import numpy as np

from vjplib.compat import x64
from vjplib.verification import domain
from vjplib.verification.call import SCALES, CallUnderTest, Leaves, attempt
from vjplib.verification.claim import Claim
from vjplib.verification.explain import diagnose
from vjplib.verification.explain.jacobian_picture import jacobians
from vjplib.verification.explain.locate import explain
from vjplib.verification.garbage import same_in_float32
from vjplib.verification.oracle import evaluate_oracle, larger, of_widened, roundings, typical_magnitude
from vjplib.verification.report import Finding, Level, failed, finding, noted, skipped
from vjplib.verification.tolerance import (
    HALF_THE_DIGITS,
    MANIFEST,
    SLACK,
    Error,
    error,
    relative_gap,
    size_of,
    to_float64,
    unit_of,
)

LARGEST_LOGARITHM = float(np.log(np.finfo(np.float32).max))


def check(
    subject: CallUnderTest, scales: tuple[float, ...] = SCALES, original: CallUnderTest | None = None
) -> Iterator[Finding]:
    """Yield a finding for each output and each differentiated argument: its worst over the scales, in float32.

    The results of the original call, which this one was derived from, are of typical magnitude too: along an axis of
    one element everything may cancel.
    """
    calls = filter(None, (subject, original))
    typical = reduce(larger, [typical_magnitude(at, *at.point(np.float32)) for at in calls])
    errors: dict[str, list[tuple[Error, str]]] = {}
    doubts: list[domain.Doubt] = []
    nobody: dict[str, Error] = {}
    for scale in scales:
        leaves, gs = subject.point(np.float32, scale=scale)
        for at, lost, instead in domain.calls(subject, leaves) if scale != 1 else ((leaves, {}, ()),):
            within = f" within the domain of {domain.joined(instead)}" if instead else ""
            found = compare(subject, at, gs, typical, extreme=scale != 1)
            if any(e.ratio > 1 for _, e in found) and subject.widened is not None:
                typical = of_widened(subject, typical, np.float32)
                found = compare(subject, at, gs, typical, extreme=scale != 1)
            if scale == 1 and original is None:
                nobody = _nobody_right(subject, found)
            if scale > 1 and domain.leaves_range(subject, found, len(gs)):
                doubts.append(domain.Doubt(f"inputs times {scale:g}", (), {}))
            elif not lost:
                for name, e in found:
                    if scale < 1 and _underflown(e):
                        yield noted(f"undecided, inputs times {scale:g}: autodiff of the reference is not finite", name)
                    else:
                        errors.setdefault(name, []).append((e, f"inputs times {scale:g}{within}"))
            elif wrong := tuple(name for name, e in found if e.excused > 1):
                doubts.append(domain.Doubt(f"inputs times {scale:g}", wrong, lost))
    if doubts and attempt(lambda: right(subject)) is True:
        yield from domain.as_findings(doubts)
    exact, traps = _in_float64(subject, original)
    for name, pairs in errors.items():
        if name in nobody:
            e = nobody[name]
            message = (
                f"{e.size:.0e} of its size from the float64 oracle, and autodiff of the reference {e.of_autodiff:.0e}"
            )
            yield failed("both_wrong", message, name, e.ratio, index=e.index)
        else:
            yield from _judged(name, pairs, traps.get(name, ""))
    pictures = jacobians(subject) if len(scales) > 1 else {}
    for f in exact:
        picture = pictures.get(f.argument.removeprefix("cotangent of "))
        yield replace(f, data={"jacobian": picture}) if picture else f


def _nobody_right(subject: CallUnderTest, found: list[tuple[str, Error]]) -> dict[str, Error]:
    """Return the outputs and cotangents that are far off in float32, in the rule as in autodiff, by name.

    Random numbers are others in float64, and so may be what a solver or a dtype's own constants make; there, and where
    numbers leave float32's range, nothing is decided.
    """
    wrong = {
        name: e
        for name, e in found
        if e.unstable and not e.lost and e.ratio > 1 and e.excused <= 1 and min(e.size, e.of_autodiff) > MANIFEST
    }
    return wrong if wrong and same_in_float32(subject) else {}


def _underflown(e: Error) -> bool:
    """Return True if small inputs leave float32's range inside the function: its plain derivative is not finite."""
    return e.lost and e.excused > 1


def _judged(name: str, found: list[tuple[Error, str]], trap: str) -> Iterator[Finding]:
    """Yield a failure; or the worst of the scales that could be decided, and a note for each that could not."""

    def judged(level: Level, message: str, e: Error) -> Finding:
        return finding(level, "wrong_value", message, name, e.ratio, e.index, trap=trap if level == "fail" else "")

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
            yield judged(level, f"undecided, {where}: the oracle is {e.unknown} there", e)
        elif e.ratio > 1:
            yield judged(level, f"undecided, {where}: {e.excuse}", e)
        elif e.known < 1:
            yield judged("note", f"the oracle is {e.unknown} at {1 - e.known:.0%} of it, {where}: undecided there", e)


def in_float64(subject: CallUnderTest) -> Iterator[Finding]:
    """Yield a finding for each output and cotangent in float64, to half the digits: coarser arithmetic shows.

    What refuses float64 is compared in float32, to half of its digits, and that is noted.
    """
    yield from _in_float64(subject)[0]


def _in_float64(subject: CallUnderTest, original: CallUnderTest | None = None) -> tuple[list[Finding], dict[str, str]]:
    """Return the findings of `in_float64`, and the trap behind each output and cotangent, by its name in findings."""
    traps: dict[str, str] = {}
    with x64():
        leaves, gs = subject.point(np.float64)
        found = subject.answers_at(leaves, gs)
        gaps = [relative_gap(r, o) for r, o in found.pairs]
        if max(gaps, default=0.0) > HALF_THE_DIGITS:
            sizes = roundings(subject, leaves, gs)
            if original is not None:
                sizes = map(max, sizes, roundings(original, *original.point(np.float64)))
            gaps = [relative_gap(r, o, size) for (r, o), size in zip(found.pairs, sizes, strict=True)]
        noise = [0.0] * len(gaps)
        if subject.ratio(max(gaps, default=0.0)) > 1:
            traps = diagnose.values(subject, leaves, gs, found)
            _, draws = evaluate_oracle(subject, leaves, gs, subject.eps / 2)
            noise = [SLACK * max(size_of(d[i]) for d in draws) for i in range(len(gaps))]
    names = [*(f"output {i}" for i in range(len(gs))), *(f"cotangent of {name}" for name in subject.names)]
    findings, dtype = [], subject.compared_in
    if subject.dtypes is None and subject.refusal is not None and original is None:
        findings.append(noted(f"compared in {dtype}, to half of its digits; in float64: {subject.refusal}"))
    for name, gap, (r, o), floor in zip(names, gaps, found.pairs, noise, strict=True):
        ratio = subject.ratio(gap)
        if np.isnan(o).all() and o.size:
            findings.append(skipped(f"undecided in {dtype}: the oracle is NaN", name))
        elif ratio > 1 and r.shape == o.shape and size_of(r - o) <= floor and np.isfinite(r - o).all():
            message = f"undecided in {dtype}: all terms cancel, and what is left of the oracle is their rounding"
            findings.append(noted(message, name))
        else:
            level, trap = ("fail", traps.get(name, "")) if ratio > 1 else ("pass", "")
            message = f"in {dtype}, {gap:.1e} from the oracle, relative to its size"
            findings.append(finding(level, "wrong_value", message, name, ratio, trap=trap))
    return findings, traps


def right(subject: CallUnderTest) -> bool:
    """Return True if the primal and every cotangent equal the oracle's to half the digits, in float64 if it can be."""
    with x64():
        found = subject.answers_at(*subject.point(np.float64))
    pairs = [*zip(found.primal, found.true_ys, strict=True), *found.pairs]
    return all(subject.ratio(relative_gap(r, o)) <= 1 for r, o in pairs)


def compare(
    subject: CallUnderTest,
    leaves: Leaves,
    gs: Leaves,
    typical: Leaves | None = None,
    tied: bool = False,
    extreme: bool = False,
) -> list[tuple[str, Error]]:
    """Return the error of each output, differentiated and not, and of each cotangent, against the oracle.

    `typical` holds the results of `typical_magnitude`, None for those at these leaves; `tied` is `evaluate_oracle`'s.
    At `extreme` leaves an output counts as a residual that is exponentiated: a logarithm of tiny numbers is large.
    """
    found = subject.answers_at(leaves, gs)
    autodiff = (*found.true_ys, *found.true_dxs)
    outputs = [f"output {i}" if len(gs) > 1 else "output" for i in range(len(gs))]
    differentiated = [f"{name} of the forward pass" for name in outputs]
    names = [*outputs, *differentiated, *(f"cotangent of {name}" for name in subject.names)]
    rows = [*enumerate(found.primal), *enumerate((*found.ys, *found.dxs))]
    sizes = [size_of(to_float64(a)) for a in (*leaves, *(found.true_ys if extreme else ()))]
    reach = max([1.0, *sizes[: len(leaves)], *(size for size in sizes[len(leaves) :] if size <= LARGEST_LOGARITHM)])

    def errors(unit: float) -> list[tuple[str, Error]]:
        truth, moved = evaluate_oracle(subject, leaves, gs, unit, tied)
        draws = list(zip(*moved, strict=True))
        return [
            (name, error(r, truth[i], autodiff[i], draws[i], unit, typical[i] if typical else None, reach))
            for name, (i, r) in zip(names, rows, strict=True)
        ]

    unit = unit_of(leaves)
    if subject.coarse_oracle:  # whose own rounding shows where its inputs move by a whole step
        unit = max(unit, unit_of(subject.leaves(np.float64)) * 2)
    judged = errors(unit)
    if any(e.excused > 1 for _, e in judged) and subject.eps / 2 > unit:  # the oracle is no better known than that
        judged = errors(subject.eps / 2)
    return judged


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
