"""vjplib verify: prove rules right."""

import argparse
import math
from dataclasses import replace
from itertools import groupby
from operator import attrgetter
from typing import Any

from rich.console import Console
from rich.text import Text

from vjplib.commands import workers
from vjplib.commands.common import (
    Command,
    add_effort,
    add_jobs,
    add_targets,
    claims,
    json_path,
    must_differ,
    places_of,
    progress,
    seconds,
    seed,
)
from vjplib.reports import Run, changes, read, write_html, write_json, write_junit, write_markdown
from vjplib.verification import CLAIMS
from vjplib.verification.isolation import TIME_LIMIT
from vjplib.verification.registry import selected
from vjplib.verification.report import Report


def add(command: Command) -> None:
    """Adds the command."""
    verify = command("verify", _verify, "prove rules right; exit 0 only if every claim of every rule holds")
    add_targets(verify)
    for name, does in (("markdown", "as Markdown"), ("junit", "as JUnit XML"), ("html", "as a page for a browser")):
        verify.add_argument(f"--{name}", type=json_path, metavar="FILE", help=f"write the results to this file {does}")
    verify.add_argument(
        "--against",
        type=earlier,
        metavar="OLD.json",
        help="tell what changed since the run that --json wrote to this file; exit 1 on a regression",
    )
    add_effort(
        verify,
        quick="examine the first case, without what takes long, and little of the others",
        deep="examine every claim at every case, and each case at 20 random sizes",
    )
    names = ", ".join(CLAIMS)
    verify.add_argument(
        "--claims", type=claims, metavar="NAME,...", help=f"claims to examine, of {names} (default: all)"
    )
    verify.add_argument("--seed", type=seed, default=0, metavar="N", help="seed of all random numbers (default 0)")
    verify.add_argument(
        "--time-limit",
        type=seconds,
        default=TIME_LIMIT,
        metavar="S",
        help="seconds that a claim may take (default 120)",
    )
    verify.add_argument("-v", "--verbose", action="store_true", help="print notes too: limitations and conventions")
    add_jobs(verify, "a rule in each, or some claims of one if there are fewer rules")


def earlier(path: str) -> Run:
    """Returns the run that a file holds."""
    try:
        return read(path)
    except (OSError, ValueError) as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _verify(parsed: argparse.Namespace) -> int:
    from vjplib.bench.environment import environment
    from vjplib.verification.text import remarks, table

    must_differ(parsed, "json", "markdown", "junit", "html")
    console = Console(highlight=False)
    effort = parsed.effort or "standard"
    reports = _reports(parsed, effort, console)
    run = Run(reports, environment(), effort, parsed.seed, parsed.claims)
    names = {report.name for report in reports}
    if parsed.against and parsed.targets and all(":" in target or target in names for target in parsed.targets):
        # single rules were asked for, so the others are not gone
        parsed.against = replace(parsed.against, reports=[r for r in parsed.against.reports if r.name in names])
    changed = changes(parsed.against, run) if parsed.against else ()
    _write(parsed, run)
    text = Text(table(reports, console.width))
    text.highlight_words(["FAIL", "NO"], "bold red")
    console.print(text, soft_wrap=True)
    for cause in remarks(reports, "fail"):
        heading, *lines = cause.splitlines()
        console.print(heading, markup=False, soft_wrap=True, style="bold red")
        console.print("\n".join(lines), markup=False, soft_wrap=True)
    for level in ("skipped", "note") if parsed.verbose else ("skipped",):
        for line in remarks(reports, level):
            console.print(line, markup=False, soft_wrap=True, style="dim")
    for report in reports:
        if not report.ok and not report.failures:
            console.print(f"{report.name}: no claim was decided, so nothing is proved", markup=False, style="bold red")
    for change in changed:
        words = f"regression: {change}" if change.regression else f"changed: {change}"
        console.print(words, markup=False, soft_wrap=True, style="bold red" if change.regression else "")
    if parsed.against:
        regressions = sum(change.regression for change in changed)
        console.print(f"{regressions} regressions and {len(changed) - regressions} other changes")
    console.print(f"{sum(r.ok for r in reports)} of {len(reports)} rules verified")
    return 0 if run.ok and not any(change.regression for change in changed) else 1


def _write(parsed: argparse.Namespace, run: Run) -> None:
    if parsed.json:
        write_json(parsed.json, run)
    if parsed.markdown:
        write_markdown(parsed.markdown, run, parsed.against)
    if parsed.junit:
        write_junit(parsed.junit, run)
    if parsed.html:
        write_html(parsed.html, run, parsed.against)


def _reports(parsed: argparse.Namespace, effort: str, console: Console) -> list[Report]:
    tasks = [workers.Task(rule.name, target, i) for rule, target, i in places_of(parsed)]
    options: dict[str, Any] = {
        "effort": effort,
        "claims": parsed.claims,
        "seed": parsed.seed,
        "time_limit": parsed.time_limit,
    }
    if parsed.jobs:
        chosen = [claim.name for claim, _ in selected(effort, parsed.claims)]
        parts = [part for task in tasks for part in workers.shared_out(task, effort, chosen, parsed.jobs // len(tasks))]
        running = workers.reports(parts, options, parsed.jobs)
        ended = dict(progress(running, console, lambda pair: pair[1].name, len(parts)))
        # The parts of one task lie side by side, and differ in their claims alone.
        grouped = groupby(range(len(parts)), key=lambda i: parts[i]._replace(claims=None))
        return [workers.joined([ended[i] for i in group]) for _, group in grouped]
    options["time_limit"] = math.inf
    return [workers.examined(task, options) for task in progress(tasks, console, attrgetter("name"))]
