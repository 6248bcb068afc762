"""What verification found: findings, and the report that holds them, as text, JSON and Markdown."""

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from io import StringIO
from typing import Any, Literal

from rich import box
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from vjplib.verification.traps import told

Level = Literal["pass", "fail", "note", "skipped"]

CLAIMS = {
    "V1": "contract",
    "V2": "value",
    "V3": "linearity",
    "V4": "transforms",
    "V5": "order two",
    "V6": "sharding",
    "V7": "residuals",
    "V8": "growth",
    "V9": "without autodiff",
    "V10": "edges",
    "V11": "accuracy",
    "V12": "locate",
    "V13": "power",
}
SIGNS = {"pass": "ok", "fail": "FAIL", "note": "note", "skipped": "skip"}
_SHORT = {"pass": "ok", "fail": "NO", "note": "n", "skipped": "?"}
_SHORT_LEGEND = "ok shown, NO refuted, ? undecided, n only noted, - not examined"
_STYLES = {"pass": "green", "fail": "bold red", "note": "yellow", "skipped": "dim"}
_GRAVITY: tuple[Level, ...] = ("fail", "skipped", "pass", "note")


@dataclass(frozen=True)
class Finding:
    """One thing verified of one function.

    Args:
        claim: "V1" to "V13", a key of `CLAIMS`.
        level: "pass"; "fail"; "note", a limitation or a credit; or "skipped", undecided for the reason in the message.
        message: what was found, in words.
        argument: the argument or output concerned, as in "cotangent of x"; empty for the whole.
        ratio: the error in units of the tolerance, where one was measured; above 1 it fails.
        index: where the error is worst, an index into that array.
        case: which call was examined.
        trap: the known trap that the author fell into, a key of `vjplib.verification.traps.TRAPS`; empty for none.
        counterexample: Python source that shows the failure on a few numbers; empty where none was made.
        data: what was measured, by name, as JSON has it: what plots are drawn from.
    """

    claim: str
    level: Level
    message: str
    argument: str = ""
    ratio: float | None = None
    index: tuple[int, ...] | None = None
    case: str = ""
    trap: str = ""
    counterexample: str = ""
    data: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __str__(self) -> str:
        """Returns the finding on one line."""
        parts = [f"{self.claim} {CLAIMS[self.claim]}", SIGNS[self.level]]
        if self.case:
            parts.append(f"[{self.case}]")
        if self.argument:
            parts.append(f"{self.argument}:")
        parts.append(self.message)
        if self.ratio is not None:
            parts.append(f"(error {self.ratio:.3g} x the tolerance")
            parts[-1] += f", worst at {self.index})" if self.index is not None else ")"
        if self.trap:
            parts.append(f"({told(self.trap)})")
        return " ".join(parts)


def said(error: Exception) -> str:
    """Returns an exception's type and the first line of its message.

    Example:
        >>> said(ValueError("x must be positive, got -1"))
        'ValueError: x must be positive, got -1'
    """
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"


@dataclass(frozen=True)
class Report:
    """The proof sheet of one function.

    Args:
        name: the function's name.
        findings: all findings, in the order of the claims.
        seconds: how long it took.

    Example:
        >>> report = Report("f", (Finding("V1", "pass", "as promised"), Finding("V2", "fail", "wrong sign", "x")))
        >>> report.ok, [finding.argument for finding in report.failures]
        (False, ['x'])
    """

    name: str
    findings: tuple[Finding, ...]
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether something was proved and nothing failed."""
        return not self.failures and any(f.level == "pass" for f in self.findings)

    @property
    def failures(self) -> tuple[Finding, ...]:
        """The findings that fail."""
        return tuple(f for f in self.findings if f.level == "fail")

    def level(self, claim: str) -> Level | None:
        """Returns what a claim comes to: its gravest level, a note counting less than a pass; None if not examined."""
        levels = {f.level for f in self.findings if f.claim == claim}
        return next((level for level in _GRAVITY if level in levels), None)

    def __str__(self) -> str:
        """Returns the report as a table, failures in full below it."""
        return render([self])

    def to_dict(self) -> dict[str, Any]:
        """Returns name, ok, seconds and findings as JSON has them: a ratio that is not finite becomes a string."""
        findings = [asdict(f) for f in self.findings]
        return as_json({"name": self.name, "ok": self.ok, "seconds": self.seconds, "findings": findings})

    def to_json(self) -> str:
        """Returns `to_dict` as JSON."""
        return json.dumps(self.to_dict(), indent=2)

    def to_markdown(self) -> str:
        """Returns the report as a Markdown table of claims, one row a finding."""
        rows = ["| claim | result | case | argument | finding |", "|---|---|---|---|---|"]
        for f in self.findings:
            cells = (f"{f.claim} {CLAIMS[f.claim]}", SIGNS[f.level], f.case, f.argument, f.message)
            rows.append("| " + " | ".join(map(in_markdown, cells)) + " |")
        return "\n".join(rows)


def as_json(value: Any) -> Any:
    """Returns a tree of dicts and lists with each number that JSON has not, as an infinity, made text."""
    if isinstance(value, dict):
        return {k: as_json(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_json(v) for v in value]
    return repr(value) if isinstance(value, float) and not math.isfinite(value) else value


def in_markdown(text: str) -> str:
    r"""Returns text of one line that stays text in Markdown, tables included.

    Example:
        >>> print(in_markdown("<script> of a|b * c"))
        &lt;script> of a\|b \* c
    """
    joined = " ".join(text.replace("&", "&amp;").replace("<", "&lt;").split())
    return "".join(f"\\{letter}" if letter in "\\|*`[]" else letter for letter in joined)


def table(reports: Sequence[Report], width: int = 80) -> Group:
    """Returns a table of one row a function and one column a claim, the claims named below it.

    Args:
        reports: the proof sheets.
        width: columns of text that it may take; where whole words do not fit, signs stand for them.
    """
    claims = [c for c in CLAIMS if any(r.level(c) for r in reports)]
    rows = [[r.level(c) for c in claims] for r in reports]
    legend, signs = ", ".join(f"{c} {CLAIMS[c]}" for c in claims), SIGNS
    seconds = [f"{r.seconds:.1f}" for r in reports]
    taken = max(map(len, seconds), default=1)
    named = max((len(r.name) for r in reports), default=0)

    def free(signs: Mapping[str, str]) -> int:
        cells = [[len(signs[level]) for level in column if level] for column in zip(*rows, strict=True)]
        return width - taken - 3 - sum(1 + max(len(c), *lengths) for c, lengths in zip(claims, cells, strict=True))

    if free(signs) < named:
        legend, signs = f"{legend}\n{_SHORT_LEGEND}", _SHORT
    grid = Table(box=box.HORIZONTALS, padding=0, pad_edge=False)
    for heading in ("", *claims, "s"):
        grid.add_column(heading, justify="right" if heading == "s" else "left", no_wrap=True)
    for r, levels, s in zip(reports, rows, seconds, strict=True):
        cells = [Text(signs[level], _STYLES[level]) if level else Text("-") for level in levels]
        grid.add_row(Text(_folded(r.name, free(signs))), *cells, s)
    return Group(grid, Text(legend))


def _folded(name: str, width: int) -> str:
    """Returns a name on lines of a width, broken behind underscores where it can be.

    Example:
        >>> print(_folded("softmax_cross_entropy", 16))
        softmax_cross_
        entropy
    """
    width, lines = max(8, width), [""]
    for part in re.findall(r"[^_]*_|[^_]+", name):
        if len(lines[-1]) + len(part) > width and lines[-1]:
            lines.append("")
        while len(part) > width:
            lines[-1], part = part[:width], part[width:]
            lines.append("")
        lines[-1] += part
    return "\n".join(lines)


def remarks(reports: Sequence[Report], levels: Sequence[Level] = ("fail",)) -> Iterator[str]:
    """Yields a line, named by its function, for each finding of the given levels; with failures, where the fault is.

    A counterexample follows its finding, each once.
    """
    for r in reports:
        shown = set()
        for f in r.findings:
            if "fail" in levels if f.claim == "V12" else f.level in levels:
                yield f"{r.name}: {f}"
                if f.counterexample and f.counterexample not in shown:
                    shown.add(f.counterexample)
                    yield f"\n{f.counterexample.strip()}\n"


def render(reports: Sequence[Report], width: int = 80) -> str:
    """Returns the table of the reports and their failures as plain text."""
    text = StringIO()
    console = Console(file=text, width=width, no_color=True)
    console.print(table(reports, width))
    for line in remarks(reports):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    return text.getvalue()
