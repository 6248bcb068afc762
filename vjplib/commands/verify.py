"""vjplib verify: verifies rules, every claim of each."""

import argparse
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from vjplib.commands import pool
from vjplib.commands.arguments import FunctionTarget, function_named
from vjplib.commands.common import (
    Command,
    RuleTarget,
    add_effort,
    add_formats,
    add_jobs,
    add_targets,
    claims,
    import_from_here,
    must_differ,
    places_of,
    progress,
    seconds,
    seed,
    show,
)
from vjplib.reports import Run, changes, read, write_html, write_json, write_junit, write_markdown
from vjplib.verification import CLAIMS
from vjplib.verification.api import verify, verify_part
from vjplib.verification.isolation import TIME_LIMIT
from vjplib.verification.registry import order, selected
from vjplib.verification.report import Finding, Report, failed

# What --help says of each format, and what writes a run as it, beside an earlier one.
FORMATS: dict[str, tuple[str, Callable[[Path, Run, Run | None], None]]] = {
    "json": ("JSON", lambda path, run, against: write_json(path, run)),
    "markdown": ("Markdown", write_markdown),
    "junit": ("JUnit XML", lambda path, run, against: write_junit(path, run)),
    "html": ("an HTML page", write_html),
}
MOST_PARTS = 4  # that one rule's claims are shared out to: each compiles what the others do too
GRACE = 60.0  # seconds that a worker may be silent beside twice a claim's


def add(command: Command) -> None:
    """Add the command."""
    parser = command("verify", _verify, "verify rules; exit 0 only if every claim of every rule holds")
    add_targets(parser)
    parser.add_argument(
        "--args",
        metavar="TEXT",
        help="arguments of functions without a record, as in 'normal(4, 16), integers(4, below=16), axis=-1' (default: "
        "the module's ARGS, or drawn by annotations of jaxtyping)",
    )
    add_formats(parser, **{name: title for name, (title, _) in FORMATS.items()})
    parser.add_argument(
        "--against",
        type=earlier,
        metavar="OLD.json",
        help="compare with an earlier run, written by --json; exit 1 on a regression",
    )
    add_effort(
        parser,
        quick="skip slow checks; examine the first case, and little of the others",
        deep="examine every claim at every case, and each case at 20 random sizes",
    )
    names = ", ".join(CLAIMS)
    parser.add_argument(
        "--claims", type=claims, metavar="NAME,...", help=f"claims to examine, of {names} (default: all)"
    )
    parser.add_argument("--seed", type=seed, default=0, metavar="N", help="seed of all random numbers (default 0)")
    parser.add_argument(
        "--time-limit",
        type=seconds,
        default=TIME_LIMIT,
        metavar="S",
        help="time limit of one claim in seconds (default 120)",
    )
    parser.add_argument("-v", "--verbose", action="store_true", help="print notes too: limitations and conventions")
    add_jobs(parser)


def earlier(path: str) -> Run:
    """Return the run that a file holds."""
    try:
        return read(path)
    except (OSError, ValueError) as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _verify(parsed: argparse.Namespace) -> int:
    from vjplib.bench.environment import environment
    from vjplib.verification.text import remarks, table

    must_differ(parsed, *FORMATS)
    console = Console(highlight=False)
    effort = parsed.effort or "standard"
    reports = _reports(parsed, effort, console)
    run = Run(reports, environment(), effort, parsed.seed, parsed.claims)
    names = {report.name for report in reports}
    if parsed.against and parsed.targets and all(":" in target or target in names for target in parsed.targets):
        # single rules were asked for, so the others are not gone
        parsed.against = replace(parsed.against, reports=[r for r in parsed.against.reports if r.name in names])
    changed = changes(parsed.against, run) if parsed.against else ()
    for name, (_, write) in FORMATS.items():
        if path := getattr(parsed, name):
            write(path, run, parsed.against)
    text = Text(table(reports, console.width))
    text.highlight_words(["FAIL", "NO"], "bold red")
    console.print(text, soft_wrap=True)
    for cause in remarks(reports, "fail"):
        heading, *lines = cause.splitlines()
        show(console, [heading], "bold red")
        show(console, lines)
    show(console, remarks(reports, "doubt"), "yellow")
    for level in ("skipped", "note") if parsed.verbose else ("skipped",):
        show(console, remarks(reports, level), "dim")
    undecided = [report.name for report in reports if not report.ok and not report.failures]
    show(console, (f"{name}: no claim was decided, so nothing is proved" for name in undecided), "bold red")
    regressions = [change for change in changed if change.regression]
    others = [change for change in changed if not change.regression]
    show(console, (f"regression: {change}" for change in regressions), "bold red")
    show(console, (f"changed: {change}" for change in others))
    if parsed.against:
        console.print(f"{len(regressions)} regressions and {len(others)} other changes")
    console.print(f"{sum(r.ok for r in reports)} of {len(reports)} rules verified")
    return 0 if run.ok and not regressions else 1


def _reports(parsed: argparse.Namespace, effort: str, console: Console) -> list[Report]:
    import_from_here()
    functions = [FunctionTarget(t, parsed.args) for t in dict.fromkeys(parsed.targets) if function_named(t)]
    recorded = [target for target in parsed.targets if all(target != f.target for f in functions)]
    if parsed.args is not None and not functions:
        parsed.error("--args is for functions without a record, named as package.module:name")
    places = places_of(recorded, parsed.error) if recorded or not functions else []
    for function in functions:
        try:
            function.call(parsed.seed)
        except ValueError as error:
            parsed.error(str(error))
    chosen = [claim.name for claim, _ in selected(effort, parsed.claims)]
    parts = shared_out(effort, chosen, parsed.jobs // (len(places) + len(functions)))
    limit = parsed.time_limit if parsed.jobs else math.inf
    options = {"effort": effort, "seed": parsed.seed, "time_limit": limit}
    jobs = [
        partial(_examine, place, part or parsed.claims, parsed.claims, options) for place in places for part in parts
    ]
    jobs += [partial(_examine_function, function, {**options, "claims": parsed.claims}) for function in functions]
    names = [place.name for place in places for _ in parts] + [function.name for function in functions]
    running = pool.run(jobs, parsed.jobs, 2 * limit + GRACE, _has_timed_out)
    ended = dict(progress(running, console, lambda pair: names[pair[0]], len(jobs)))
    reports = [_report(name, ended[number]) for number, name in enumerate(names)]
    shared = len(places) * len(parts)
    return [joined(reports[k : k + len(parts)]) for k in range(0, shared, len(parts))] + reports[shared:]


def _examine(place: RuleTarget, claims: Sequence[str] | None, whole: Sequence[str] | None, options: Any) -> Report:
    return verify_part(place.rule(), claims, whole, **options)


def _examine_function(function: FunctionTarget, options: Any) -> Report:
    fn, (args, kwargs) = function.call(options["seed"])
    return replace(verify(fn, args, kwargs, **options), name=function.name)


def _has_timed_out(result: Any) -> bool:
    return isinstance(result, Report) and any(f.code == "timeout" for f in result.failures)


def _report(name: str, result: Report | pool.Lost) -> Report:
    """Return the report on a rule, or on the end of the process that examined it."""
    if isinstance(result, Report):
        return result
    code, message = result.code, result.message
    if code == "raises":
        code, message = "unusable_record", f"the record cannot be used: {message}"
    return Report(name, (failed(code, message, claim="contract"),), result.seconds)


def shared_out(effort: str, claims: Sequence[str], parts: int) -> list[tuple[str, ...] | None]:
    """Return the claims to be examined of a rule, in as many parts that take about as long; None alone for one part.

    Example:
        >>> shared_out("quick", tuple(CLAIMS)[:5], 2)
        [('contract', 'transforms'), ('value', 'linearity', 'second_order')]
    """
    takes = {claim.name: claim.cost[effort != "quick"] for claim in CLAIMS.values()}
    groups: list[list[str]] = [[] for _ in range(max(1, min(parts, MOST_PARTS, len(claims))))]
    for claim in sorted(claims, key=lambda c: -takes[c]):
        min(groups, key=lambda group: sum(takes[c] for c in group)).append(claim)
    return [tuple(sorted(group, key=order)) for group in groups] if len(groups) > 1 else [None]


def joined(reports: Sequence[Report]) -> Report:
    """Return the reports on parts of one rule's claims as one; what several of them hold stands once.

    Example:
        >>> died = Finding("contract", "fail", "the process died")
        >>> joined([Report("f", (died, Finding("value", "pass", "right"))), Report("f", (died,))]).findings
        (Finding(claim='contract', ...), Finding(claim='value', ...))
    """
    if len(reports) == 1:
        return reports[0]
    findings: list[Finding] = []
    for report in reports:
        before = set(map(_key, findings))
        findings += [f for f in report.findings if _key(f) not in before]
    ordered = sorted(findings, key=lambda f: order(f.claim))
    return Report(reports[0].name, tuple(ordered), max(report.seconds for report in reports))


def _key(finding: Finding) -> Any:
    """Return the deduplication key of a finding: what a rule prints counts once, whatever its first line."""
    return finding.code if finding.code == "prints" else finding
