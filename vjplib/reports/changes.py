"""What changed between two runs: claims lost and won, errors and residuals grown."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from vjplib.reports.runs import Run
from vjplib.verification.registry import present
from vjplib.verification.report import Finding, Report

GREW = 2.0
"""The factor by which an error must have grown to be reported."""
SMALL = 0.01
"""In units of the tolerance: growth below it is not reported."""

_WORDS = {
    "pass": "held",
    "fail": "failed",
    "doubt": "was in doubt",
    "note": "was only noted",
    "skipped": "was undecided",
    None: "was not examined",
}


@dataclass(frozen=True)
class Change:
    """One thing that is not as it was.

    Args:
        kind: "failure", "lost", "bytes" or "gone", which are regressions; "error", "fixed" or "new".
        name: the function.
        claim: the claim concerned; empty for the whole function.
        words: what changed.
    """

    kind: str
    name: str
    claim: str
    words: str

    @property
    def regression(self) -> bool:
        """True if a claim is worse than before; a grown error that still passes is no regression."""
        return self.kind in ("failure", "lost", "bytes", "gone")

    def __str__(self) -> str:
        """Return the change on one line."""
        claim = f" {self.claim}" if self.claim else ""
        return f"{self.name}:{claim} {self.words}"


def changes(old: Run, new: Run) -> tuple[Change, ...]:
    """Return the changes, regressions first.

    A regression is a claim that fails and did not, a claim that was shown and now is not, bytes kept for the backward
    that grew in the same case, and a function that is gone. A grown error is reported too, between runs of one effort,
    if it grew by more than `GREW` and exceeds `SMALL` of its tolerance.

    Args:
        old: the earlier run.
        new: the later run; where it examined some claims only, these alone are compared.

    Example:
        >>> old, new = (Run((Report("f", (Finding("value", level, "..."),)),)) for level in ("pass", "fail"))
        >>> [str(change) for change in changes(old, new)]
        ['f: value fails; it held']
    """
    before, after = _by_name(old), _by_name(new)
    found = [change for name in before for change in _of_one(name, before[name], after.get(name), new.claims)]
    if old.effort != new.effort:  # of which depends what errors are of
        found = [change for change in found if change.kind != "error"]
    found += [Change("new", name, "", "is new") for name in after if name not in before]
    return tuple(sorted(found, key=lambda change: not change.regression))


def _by_name(run: Run) -> dict[str, Report]:
    """Return the reports by name; later reports of an equal name are numbered."""
    named: dict[str, Report] = {}
    for r in run.reports:
        count = sum(other.name == r.name for other in named.values())
        named[f"{r.name} ({count + 1})" if count else r.name] = r
    return named


def _of_one(name: str, old: Report, new: Report | None, claims: Sequence[str] | None) -> Iterator[Change]:
    if new is None:
        yield Change("gone", name, "", "is gone")
        return
    for claim in present([old, new]) if claims is None else claims:
        was, now = old.level(claim), new.level(claim)
        if now == "fail" != was:
            yield Change("failure", name, claim, f"fails; it {_WORDS[was]}")
        elif was == "pass" != now:
            words = "undecided" if now == "skipped" else _WORDS[now]
            yield Change("lost", name, claim, f"is no longer shown: {words}")
        elif now == "pass" and was in ("fail", "skipped"):
            yield Change("fixed", name, claim, f"holds; it {_WORDS[was]}")
        elif was == "fail" and now != "fail":
            yield Change("new", name, claim, f"no longer fails, and is not shown: {_WORDS[now]}")
        yield from _measured(name, claim, old, new)


def _measured(name: str, claim: str, old: Report, new: Report) -> Iterator[Change]:
    before, after = _by_place(old, claim), _by_place(new, claim)
    for place, now in after.items():
        was = before.get(place)
        if was is None:
            continue
        where = "".join(f" of {part}" if i else f" [{part}]" for i, part in enumerate(place[:2]) if part)
        if now.ratio and was.ratio and now.level == was.level == "pass" and now.ratio > max(GREW * was.ratio, SMALL):
            words = f"error{where} grew from {was.ratio:.2g} to {now.ratio:.2g} x the tolerance"
            yield Change("error", name, claim, words)
        kept, keeps = was.data.get("bytes"), now.data.get("bytes")
        if isinstance(kept, int) and isinstance(keeps, int) and keeps > kept:
            yield Change("bytes", name, claim, f"bytes kept{where} grew from {kept:,} to {keeps:,}")


def _by_place(report: Report, claim: str) -> dict[tuple[Any, ...], Finding]:
    """Return a claim's findings by case and argument; equal ones are numbered."""
    placed: dict[tuple[Any, ...], Finding] = {}
    for f in report.findings:
        if f.claim == claim:
            number = sum(place[:2] == (f.case, f.argument) for place in placed)
            placed[f.case, f.argument, number] = f
    return placed
