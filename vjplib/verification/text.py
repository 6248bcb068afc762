"""Reports as plain text: a table of one row a function and one column a claim, and what failed below it."""

import re
from collections.abc import Iterator, Mapping, Sequence
from textwrap import fill

from vjplib.verification.causes import causes, paragraph
from vjplib.verification.registry import CLAIMS, present
from vjplib.verification.report import SIGNS, Level, Report

_SHORT: Mapping[Level, str] = {"pass": "ok", "fail": "NO", "doubt": "d", "note": "n", "skipped": "?"}
_SHORT_LEGEND = "ok shown, NO refuted, ? undecided, d in doubt, n only noted, - not examined"


def table(reports: Sequence[Report], width: int = 80) -> str:
    """Return a table of one row a function and one column a claim, the claims named below it.

    It takes `width` columns of text; where whole words do not fit, signs stand for them.
    """
    claims = present(reports)
    headings = {c: (CLAIMS[c].alias if c in CLAIMS else "") or c for c in claims}
    legend = ", ".join(" ".join(dict.fromkeys((headings[c], c))) for c in claims)
    seconds = [f"{r.seconds:.1f}" for r in reports]
    room, words = width, SIGNS
    for words in (SIGNS, _SHORT):
        cells = [[words[level] if (level := r.level(c)) else "-" for c in claims] for r in reports]
        columns = [*zip(headings.values(), *cells, strict=True), ("s", *seconds)]
        widths = [max(map(len, column)) for column in columns]
        room = width - 3 - sum(widths) - len(widths) + 1
        if room >= max((len(r.name) for r in reports), default=0):
            break
    legend = fill(legend, width) + (f"\n{fill(_SHORT_LEGEND, width)}" if words is _SHORT else "")
    names = [_folded(r.name, room) for r in reports]
    first = max((len(line) for lines in names for line in lines), default=0)
    line = " " + "─" * (first + sum(widths) + len(widths))
    body = []
    for i, lines in enumerate([[""], *names]):
        signs = [column[i].ljust(n) for column, n in zip(columns, widths, strict=True)]
        signs[-1] = signs[-1].strip().rjust(widths[-1])
        body += [" ".join([f" {lines[0].ljust(first)}", *signs]), *(f" {line}" for line in lines[1:])]
    return "\n".join([line, body[0], line, *body[1:], line, legend])


def _folded(name: str, width: int) -> list[str]:
    """Return a name as lines of a width, broken behind underscores where it can be.

    Example:
        >>> _folded("softmax_cross_entropy", 16)
        ['softmax_cross_', 'entropy']
    """
    width, lines = max(8, width), [""]
    for part in re.findall(r"[^_]*_|[^_]+", name):
        if len(lines[-1]) + len(part) > width and lines[-1]:
            lines.append("")
        while len(part) > width:
            lines[-1], part = part[:width], part[width:]
            lines.append("")
        lines[-1] += part
    return lines


def remarks(reports: Sequence[Report], level: Level) -> Iterator[str]:
    """Yield a line, named by its function, for each finding of a level; for failures a paragraph for each cause."""
    for r in reports:
        if level == "fail":
            name = "fn" if r.name == "<lambda>" else r.name  # as the reproduction calls it
            yield from (f"{name}: {paragraph(cause)}" for cause in causes(r))
        else:
            yield from (f"{r.name}: {f}" for f in r.findings if f.level == level)


def render(reports: Sequence[Report], width: int = 80) -> str:
    """Return the table of the reports, their failures and doubts and what could not be decided as plain text."""
    levels: tuple[Level, ...] = ("fail", "doubt", "skipped")
    return "\n".join([table(reports, width), *(line for level in levels for line in remarks(reports, level))]) + "\n"
