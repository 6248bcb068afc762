"""vjplib power: mutation-tests the verifier, and counts its false alarms, beside other gradient checks."""

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
from rich.console import Console

from vjplib import mutation
from vjplib.bench.environment import environment
from vjplib.commands import pool
from vjplib.commands.common import (
    Command,
    RuleTarget,
    add_formats,
    add_jobs,
    add_targets,
    count,
    places_of,
    progress,
    seed,
    show,
    write_json,
)
from vjplib.rule import Rule

RUNS = 20  # of each rule
TOGETHER = 10  # runs to a job


def add(command: Command) -> None:
    """Add the command."""
    power = command(
        "power",
        _power,
        "mutation-test the verifier; exit 0 if it catches at least 99 %% of injected bugs and raises no false alarm",
    )
    add_targets(power)
    add_formats(power, json="JSON")
    power.add_argument(
        "--mutants", type=count, default=mutation.MUTANTS, metavar="N", help="mutants of each rule (default 20)"
    )
    power.add_argument(
        "--runs", type=seed, metavar="N", help="runs of the unchanged rules, for false alarms (default 20 a rule)"
    )
    power.add_argument("--seed", type=seed, default=0, metavar="N", help="seed of all random numbers (default 0)")
    add_jobs(power)


def _power(parsed: argparse.Namespace) -> int:
    console = Console(highlight=False)
    places = places_of(parsed.targets, parsed.error)
    names = [place.name for place in places]
    scoring = partial(mutation.score, count=parsed.mutants, seed=parsed.seed)
    jobs: list[pool.Job] = [partial(_measure, place, scoring) for place in places]
    total = RUNS * len(places) if parsed.runs is None else parsed.runs
    for i, place in enumerate(places):
        mine = range(i, total, len(places))
        for k in range(0, len(mine), TOGETHER):
            names.append(place.name)
            runs = mine[k : k + TOGETHER]
            jobs.append(partial(_measure, place, partial(mutation.run_correct, runs=runs, seed=parsed.seed)))
    running = pool.run(jobs, parsed.jobs)
    ended = dict(progress(running, console, lambda pair: names[pair[0]], len(jobs)))
    results = [(names[number], ended[number]) for number in range(len(jobs))]
    scores = [result for _, result in results if isinstance(result, mutation.Score)]
    alarms = mutation.joined(result for _, result in results if isinstance(result, mutation.Alarms))
    lost = [f"{name} is not measured: {end.message}" for name, end in results if isinstance(end, pool.Lost)]
    if parsed.json:
        content = {"environment": environment(), "seed": parsed.seed, "mutants": parsed.mutants, "refused": lost}
        write_json(parsed.json, content | mutation.to_dict(scores, alarms))
    for table in mutation.tables(scores, alarms):
        console.print(table)
    if "chex" not in mutation.others():
        console.print("chex is not installed, so that its check did not run")
    show(console, (f"survived: {line}" for line in mutation.survivors(scores)), "bold red")
    show(console, mutation.without_mutants(scores, parsed.mutants))
    false = (f"{a.rule}, run {a.run} ({a.call}): {a.message}" for a in alarms.alarms if a.by == "vjplib")
    show(console, (f"alarm, false if the rule is right: {alarm}" for alarm in false), "bold red")
    show(console, lost, "bold red")
    return 0 if mutation.enough(scores, alarms) and not lost else 1


def _measure(place: RuleTarget, measure: Callable[[Rule], Any]) -> Any:
    try:
        return measure(place.rule())
    finally:
        jax.clear_caches()  # the next job has other shapes
