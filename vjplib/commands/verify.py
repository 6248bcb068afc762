"""vjplib verify: rules proved right."""

import argparse
from operator import attrgetter
from typing import Any

from rich.console import Console

from vjplib.commands.common import Command, add_targets, claims, progress, rules_of, seed, write_json
from vjplib.rule import Rule
from vjplib.verification import CLAIMS
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


def _verify(parsed: argparse.Namespace) -> int:
    from vjplib.bench import environment
    from vjplib.verification.report import remarks, table

    console = Console(highlight=False)
    effort = parsed.effort or "standard"
    found = rules_of(parsed)
    reports = [
        _report(rule, effort, parsed.claims, parsed.seed) for rule in progress(found, console, attrgetter("name"))
    ]
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


def _report(rule: Rule, effort: Any, claims: tuple[str, ...] | None, seed: int) -> Report:
    from vjplib.verification.report import Finding, said
    from vjplib.verification.run import verify_rule

    try:
        return verify_rule(rule, effort=effort, claims=claims, seed=seed)
    except Exception as error:  # a record that cannot be read fails, and the rules after it are examined all the same
        return Report(rule.name, (Finding("V1", "fail", f"the record cannot be used: {said(error)}"),))
