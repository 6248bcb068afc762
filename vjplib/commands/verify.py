"""vjplib verify: rules proved right."""

import argparse
import math
import os
from operator import attrgetter
from typing import Any

from rich.console import Console

from vjplib.commands import workers
from vjplib.commands.common import Command, add_targets, claims, places_of, progress, seconds, seed, write_json
from vjplib.verification import CLAIMS
from vjplib.verification.guard import TIME_LIMIT
from vjplib.verification.report import Report


def add(command: Command) -> None:
    """Adds the command."""
    verify = command("verify", _verify, "prove rules right; exit 0 only if every claim of every rule holds")
    add_targets(verify)
    effort = verify.add_mutually_exclusive_group()
    for name, does in (
        ("quick", "leave out half precision, runs without jit, and compiling at larger sizes"),
        ("deep", "examine every claim at every case, and each case at 20 random sizes"),
    ):
        effort.add_argument(f"--{name}", dest="effort", action="store_const", const=name, help=does)
    verify.add_argument("--claims", type=claims, metavar="V1,V2", help=f"examine these alone, of {', '.join(CLAIMS)}")
    verify.add_argument("--seed", type=seed, default=0, metavar="N", help="seed of all random numbers (default 0)")
    verify.add_argument(
        "--time-limit",
        type=seconds,
        default=TIME_LIMIT,
        metavar="S",
        help="seconds that a claim may take (default 120)",
    )
    verify.add_argument(
        "--jobs",
        type=seed,
        default=min(2, os.cpu_count() or 1),
        metavar="N",
        help="rules examined at a time, in processes of their own (default 2); 0 for this process, as for a debugger",
    )


def _verify(parsed: argparse.Namespace) -> int:
    from vjplib.bench import environment
    from vjplib.verification.report import remarks, table

    console = Console(highlight=False)
    effort = parsed.effort or "standard"
    reports = _reports(parsed, effort, console)
    if parsed.json:
        content = {"environment": environment(), "effort": effort, "seed": parsed.seed}
        write_json(parsed.json, content | {"ok": all(r.ok for r in reports), "reports": [r.to_dict() for r in reports]})
    console.print(table(reports))
    for level in ("fail", "skipped", "note"):
        for line in remarks(reports, (level,)):
            console.print(line, markup=False, soft_wrap=True, style="bold red" if level == "fail" else "dim")
    for report in reports:
        if not report.ok and not report.failures:
            console.print(f"{report.name}: no claim was decided, so nothing is proved", markup=False, style="bold red")
    console.print(f"{sum(r.ok for r in reports)} of {len(reports)} rules verified")
    return 0 if all(r.ok for r in reports) else 1


def _reports(parsed: argparse.Namespace, effort: str, console: Console) -> list[Report]:
    tasks = [workers.Task(rule.name, target, i) for rule, target, i in places_of(parsed)]
    options: dict[str, Any] = {
        "effort": effort,
        "claims": parsed.claims,
        "seed": parsed.seed,
        "time_limit": parsed.time_limit,
    }
    if parsed.jobs:
        running = workers.reports(tasks, options, parsed.jobs)
        ended = dict(progress(running, console, lambda pair: pair[1].name, len(tasks)))
        return [ended[i] for i in range(len(tasks))]
    options["time_limit"] = math.inf
    return [workers.examined(task, options) for task in progress(tasks, console, attrgetter("name"))]
