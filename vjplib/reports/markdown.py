"""Markdown of a run: a table of functions and claims, what failed, what could not be decided, and what changed."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from vjplib.reports.changes import Change, changes
from vjplib.reports.runs import Run
from vjplib.verification.causes import Cause, causes, details, heading
from vjplib.verification.registry import present
from vjplib.verification.report import SIGNS, in_markdown

_SECTIONS = (("fail", "Failures"), ("doubt", "Doubts"), ("skipped", "Undecided"), ("note", "Notes"))


def write_markdown(path: str | Path, run: Run, against: Run | None = None) -> None:
    """Write the run as Markdown, with what changed since the run that it is compared with, if there is one."""
    changed = None if against is None else changes(against, run)
    Path(path).write_text("\n".join(_lines(run, changed)) + "\n", encoding="utf-8", errors="backslashreplace")


def _lines(run: Run, changed: Sequence[Change] | None) -> Iterator[str]:
    yield "# Verification"
    yield ""
    verified = sum(r.ok for r in run.reports)
    yield f"{verified} of {len(run.reports)} rules verified; effort {run.effort}, seed {run.seed}."
    yield ""
    yield from (f"- {in_markdown(key)}: {in_markdown(str(value))}" for key, value in run.environment.items())
    yield ""
    claims = present(run.reports)
    yield "| rule | " + "".join(f"{c} | " for c in claims) + "seconds |"
    yield "| --- | " + "--- | " * len(claims) + "---: |"
    for r in run.reports:
        cells = [SIGNS[level] if (level := r.level(c)) else "-" for c in claims]
        cells = [f"**{cell}**" if cell == SIGNS["fail"] else cell for cell in cells]
        yield f"| {in_markdown(r.name)} | " + "".join(f"{cell} | " for cell in cells) + f"{r.seconds:.1f} |"
    if changed is not None:
        yield from ("", "## Changes", "")
        yield from (f"- {'**regression** ' if c.regression else ''}{in_markdown(str(c))}" for c in changed)
        if not changed:
            yield "None."
    for level, title in _SECTIONS:
        found = [(r.name, f) for r in run.reports for f in r.findings if f.level == level]
        if found:
            yield from ("", f"## {title}", "")
        if level == "fail":
            for r in run.reports:
                for cause in causes(r):
                    yield from _cause(r.name, cause)
        else:
            yield from (f"- {in_markdown(name)}: {in_markdown(str(f))}" for name, f in found)


def _cause(name: str, cause: Cause) -> Iterator[str]:
    yield f"- {in_markdown(name)}: {in_markdown(heading(cause))}"
    yield from (f"  - {in_markdown(line)}" for line in details(cause))
    if source := cause.counterexample:
        fence = "```"
        while fence in source:
            fence += "`"
        yield from ("", f"  {fence}python")
        yield from (f"  {line}".rstrip() for line in source.splitlines())
        yield from (f"  {fence}", "")
