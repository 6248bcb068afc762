"""The report of an audit: a row for each rule and shapes, what it came to, and where it stands."""

import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from io import StringIO
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from vjplib.auditing.judge import Judgement
from vjplib.reports.tables import grid
from vjplib.verification.causes import causes, paragraph
from vjplib.verification.report import Report, as_json, in_markdown

_SIGNS = {"pass": "ok", "fail": "FAIL", "note": "note", "undecided": "?"}
_STYLES = {"pass": "green", "fail": "bold red", "note": "yellow", "undecided": "dim"}
_ORDER = ("fail", "undecided", "note", "pass")
SHOWN = 6  # arguments of a rule
_LEGEND = (
    "error: of the cotangents against float64, and as a multiple of autodiff's of the primal. kept: bytes between "
    "forward and backward of one call, the rule's and autodiff's. share: of all that the program's gradients keep; "
    "what others keep too is counted, so shares may add up to more than 100 %; remat: made again and not kept."
)


@dataclass(frozen=True, kw_only=True)
class AuditedRule(Judgement):
    """One rule at the shapes and static arguments that it was called with, and the judgement on it.

    Args:
        name: the rule's name.
        kind: "custom_vjp", "custom_jvp", "hijax" or "linear_call".
        source: file and line where it is defined.
        callers: the lines that call it.
        shapes: its arguments.
        calls: how often it was called while the program ran; 0 if it was only traced.
        differentiated: how many of these calls were differentiated.
        share: of the bytes that all gradients of the program keep; None where none were taken, or it is recomputed.
        recomputed: whether it was called inside `jax.checkpoint`.
    """

    name: str
    kind: str
    source: str
    callers: tuple[str, ...]
    shapes: str
    calls: int
    differentiated: int
    share: float | None
    recomputed: bool

    @property
    def ok(self) -> bool:
        """True unless the rule fails."""
        return self.verdict != "fail"


@dataclass(frozen=True)
class AuditReport:
    """What an audit found.

    Args:
        name: of the program.
        rules: a row for each rule and shapes, the gravest first.
        raised: what the program raised, in a line; empty if it ended well.
        kept: the bytes that all gradients of the program keep for their backward passes.
        seconds: how long examining took.
        unmet: the rules that the caller said to differ by design, and that were not met.
    """

    name: str
    rules: tuple[AuditedRule, ...]
    raised: str = ""
    kept: int = 0
    seconds: float = 0.0
    unmet: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """True if no rule fails and the program did not raise."""
        return not self.raised and all(rule.ok for rule in self.rules)

    @property
    def failures(self) -> tuple[AuditedRule, ...]:
        """The rules that fail."""
        return tuple(rule for rule in self.rules if not rule.ok)

    def __str__(self) -> str:
        """Return the report as text of 80 columns."""
        text = StringIO()
        self.print(Console(file=text, width=80, no_color=True, highlight=False))
        return "\n".join(line.rstrip() for line in text.getvalue().splitlines())

    def print(self, console: Console, verbose: bool = False) -> None:
        """Print the table, what it means, and for each rule that does not pass where it stands and why.

        Args:
            console: where to print.
            verbose: whether to print these for rules that pass as well, and the notes of all.
        """
        for line in self._warnings():
            console.print(Text(line, "bold red"))
        if not self.rules:
            console.print(Text(f"{self.name}: {self.summary}"))
            return
        rows = _merged(self.rules, verbose)
        console.print(_table(rows))
        console.print(Text(_LEGEND, "dim"))
        for number, rule in enumerate(rows, 1):
            for line in _lines(number, rule, verbose) if verbose or rule.verdict != "pass" else ():
                console.print(Text(line), soft_wrap=False)
        console.print(Text(self.summary, "bold"))

    def _warnings(self) -> Iterator[str]:
        if self.raised:
            yield f"{self.name} raised {self.raised}; what was met until then:"
        for name in self.unmet:
            yield f"{name}, which is said to differ by design, was not met"

    @property
    def summary(self) -> str:
        """The number of rows of each verdict, in a line."""
        if not self.rules:
            return "no custom_vjp, custom_jvp, hijax primitive or linear_call was met"
        count = Counter(rule.verdict for rule in self.rules)
        said = ", ".join(f"{count[v]} {v}" for v in ("pass", "fail", "note", "undecided") if count[v])
        names = len({(rule.name, rule.source) for rule in self.rules})
        return f"{_counted(names, 'rule')} met with {_counted(len(self.rules), 'shape')}: {said}"

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON types: a number that is not finite becomes a string."""
        rules = [{**asdict(rule), "ok": rule.ok} for rule in self.rules]
        return as_json({**asdict(self), "ok": self.ok, "rules": rules})

    def to_json(self) -> str:
        """Return `to_dict` as JSON."""
        return json.dumps(self.to_dict(), indent=2)

    def to_markdown(self) -> str:
        """Return the report as Markdown: a summary, and a table with one row per rule and shapes."""
        rows = [in_markdown(f"{self.name}: {self.summary}"), ""]
        rows += [f"**{in_markdown(line)}**\n" for line in self._warnings()]
        rows += [
            "| rule | defined at | calls | arguments | verdict | error | x autodiff's | kept | share | remark |",
            "|---|---|---|---|---|---|---|---|---|---|",
        ]
        for rule in self.rules:
            cells = (f"{rule.name} ({rule.kind})", rule.source, f"{rule.calls}", rule.shapes, rule.verdict)
            error, relative, share = _figures(rule)
            kept = "-" if rule.kept is None else f"{rule.kept:,} / {rule.autodiff_kept:,}"
            cells += (error, relative, kept, share, rule.reason)
            rows.append("| " + " | ".join(map(in_markdown, cells)) + " |")
        return "\n".join(rows)


def order(rules: list[AuditedRule]) -> tuple[AuditedRule, ...]:
    """Return rows, the gravest verdicts first, then those that keep the most bytes."""
    return tuple(sorted(rules, key=lambda r: (_ORDER.index(r.verdict), -(r.share or 0.0), r.name, r.shapes)))


def _merged(rules: tuple[AuditedRule, ...], verbose: bool) -> tuple[AuditedRule, ...]:
    """Return the rows to show: rows of one rule with the same verdict and, if it is printed, reason become one."""
    alike: dict[Any, list[AuditedRule]] = {}
    for rule in rules:
        reason = rule.reason if verbose or rule.verdict != "pass" else ""
        alike.setdefault((rule.name, rule.source, rule.verdict, reason, rule.recomputed), []).append(rule)
    return tuple(_as_one(several) for several in alike.values())


def _as_one(several: list[AuditedRule]) -> AuditedRule:
    most = max(several, key=lambda r: r.kept or 0)
    worst = max(several, key=lambda r: r.error or 0.0)
    shares = [r.share for r in several if r.share is not None]
    return replace(
        most,
        callers=tuple(dict.fromkeys(c for r in several for c in r.callers)),
        shapes=(_shortened(most.shapes) or "no arrays")
        + (f" and {len(several) - 1} other shapes" if len(several) > 1 else ""),
        calls=sum(r.calls for r in several),
        error=worst.error,
        relative=max((r.relative for r in several if r.relative is not None), default=None),
        share=sum(shares) if shares else None,
    )


def _shortened(shapes: str) -> str:
    parts = re.findall(r"\S+?\[[^\]]*\]|\S+", shapes)
    return " ".join(parts[:SHOWN]) + (f" and {len(parts) - SHOWN} more" if len(parts) > SHOWN else "")


def _table(rules: tuple[AuditedRule, ...]) -> Table:
    table = grid("", ("", "rule", ""), ("calls", "error", "x", "kept", "autodiff", "share"))
    for number, rule in enumerate(rules, 1):
        ours, theirs = ("-" if n is None else _bytes(n) for n in (rule.kept, rule.autodiff_kept))
        sign = Text(_SIGNS[rule.verdict], _STYLES[rule.verdict])
        error, relative, share = _figures(rule)
        cells = (str(rule.calls), error, relative, ours, theirs, share)
        table.add_row(str(number), Text(rule.name.rsplit(".", 1)[-1]), sign, *cells)
    return table


def _lines(number: int, rule: AuditedRule, verbose: bool) -> Iterator[str]:
    yield f"{number} {rule.name}, {rule.kind} at {rule.source}"
    shown = ", ".join(rule.callers[:3]) + (f" and {len(rule.callers) - 3} more" if len(rule.callers) > 3 else "")
    yield f"  of {rule.shapes}" + (f"; called at {shown}" if shown else "")
    found = causes(Report(rule.name, rule.findings)) if rule.verdict == "fail" else ()
    for cause in found:
        yield f"  {_SIGNS[rule.verdict]}: {paragraph(cause)}"
    if rule.reason and not found:
        yield f"  {_SIGNS[rule.verdict]}: {rule.reason}"
    for f in rule.findings if verbose else ():
        if f.level == "note":
            yield f"  {f}"


def _figures(rule: AuditedRule) -> list[str]:
    """Return the error, the same as a multiple of autodiff's, and the share of the bytes kept, as text."""
    figures = ((rule.error, ".0e"), (rule.relative, ".2g"), (rule.share, ".0%"))
    error, relative, share = ("-" if number is None else format(number, spec) for number, spec in figures)
    return [error, relative, "remat" if rule.recomputed else share]


def _counted(n: int, thing: str) -> str:
    return f"{n} {thing}{'' if n == 1 else 's'}"


def _bytes(n: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if n < 1000:
            return f"{n:.3g} {unit}" if unit != "B" else f"{int(n)} B"
        n /= 1000
    return f"{n:.3g} TB"
