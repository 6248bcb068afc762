"""vjplib power: how many faults the verifier sees, and how many that are not there, beside other checks."""

import argparse
from typing import Any

from rich.console import Console

from vjplib.commands.common import Command, add_jobs, add_targets, count, places_of, progress, seed, write_json

RUNS = 20  # of each rule


def add(command: Command) -> None:
    """Adds the command."""
    power = command("power", _power, "count faults made on purpose that verification sees; exit 0 if nearly all")
    add_targets(power)
    power.add_argument(
        "--mutants", type=count, default=20, metavar="N", help="faults to make in each rule (default 20)"
    )
    power.add_argument(
        "--runs", type=seed, metavar="N", help="runs of the rules as they are, for false alarms (default 20 a rule)"
    )
    power.add_argument("--seed", type=seed, default=0, metavar="N", help="seed of all random numbers (default 0)")
    add_jobs(power)


def _power(parsed: argparse.Namespace) -> int:
    from vjplib import mutation as power

    console = Console(highlight=False)
    places = places_of(parsed)
    names = [rule.name for rule, _, _ in places]
    runs = RUNS * len(places) if parsed.runs is None else parsed.runs
    tasks = power.tasks_of([(target, i) for _, target, i in places], parsed.mutants, runs, parsed.seed)
    results = power.spread(tasks, parsed.jobs)
    scores, alarms = power.gathered(list(progress(results, console, _name, len(tasks))), names)
    if parsed.json:
        from vjplib.bench.environment import environment

        content = {"environment": environment(), "seed": parsed.seed, "mutants": parsed.mutants}
        write_json(parsed.json, content | power.to_dict(scores, alarms))
    for table in power.tables(scores, alarms):
        console.print(table)
    if "chex" not in power.others():
        console.print("chex is not installed, so that its check was not asked")
    for line in power.survivors(scores):
        console.print(f"survived: {line}", markup=False, soft_wrap=True, style="bold red")
    for line in power.without_mutants(scores, parsed.mutants):
        console.print(line, markup=False, soft_wrap=True)
    for alarm in (alarm for alarm in alarms.alarms if alarm.by == "vjplib"):
        text = f"alarm, false if the rule is right: {alarm.rule}, run {alarm.run} ({alarm.call}): {alarm.message}"
        console.print(text, markup=False, soft_wrap=True, style="bold red")
    return 0 if power.enough(scores, alarms) else 1


def _name(result: Any) -> str:
    return result.name if hasattr(result, "name") else result[0]
