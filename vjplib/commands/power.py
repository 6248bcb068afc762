"""vjplib power: mutation-tests the verifier, and counts its false alarms, beside other gradient checks."""

import argparse
import importlib
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

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
    import_from_here,
    places_of,
    progress,
    seed,
    show,
    write_json,
)

RUNS = 20  # of each rule
TOGETHER = 10  # runs to a job


def add(command: Command) -> None:
    """Add the command."""
    power = command(
        "power",
        _power,
        "mutation-test the verifier; exit 0 if it catches at least 99 %% of injected bugs and raises no false alarm",
    )
    add_targets(power, "; a module or FILE.py that ends in EXAMPLES, for runs alone")
    add_formats(power, json="JSON")
    power.add_argument(
        "--mutants",
        type=seed,
        default=mutation.MUTANTS,
        metavar="N",
        help="mutants of each rule that has a record (default 20; 0 for none)",
    )
    power.add_argument(
        "--runs", type=seed, metavar="N", help="runs of the unchanged rules, for false alarms (default 20 a rule)"
    )
    power.add_argument("--seed", type=seed, default=0, metavar="N", help="seed of all random numbers (default 0)")
    add_jobs(power)


def _power(parsed: argparse.Namespace) -> int:
    console = Console(highlight=False)
    places = _places(parsed.targets, parsed.error)
    recorded = [place for place in places if isinstance(place, RuleTarget) and parsed.mutants]
    names = [place.name for place in recorded]
    scoring = partial(mutation.score, count=parsed.mutants, seed=parsed.seed)
    jobs: list[pool.Job] = [partial(_measure, place, scoring) for place in recorded]
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


class ExampleTarget(NamedTuple):
    """Where an example is found: a worker process looks it up there.

    Args:
        name: the example's.
        module: the name of the module that ends in `EXAMPLES`.
        number: which of them it is.
    """

    name: str
    module: str
    number: int

    def rule(self) -> mutation.Example:
        """Return the example."""
        return mutation.examples_in(importlib.import_module(self.module))[self.number]


def _places(targets: Sequence[str], refuse: Callable[[str], Any]) -> list[RuleTarget | ExampleTarget]:
    """Return where the records and examples that the targets name are found; the library's records for no target."""
    import_from_here()
    examples: list[RuleTarget | ExampleTarget] = []
    others = []
    for target in targets:
        path, found = Path(target), ()
        if is_file := path.suffix == ".py" and path.is_file():
            sys.path.insert(0, str(path.resolve().parent))  # for what it imports, as `python FILE` has it
            target = path.stem
        if is_file or ("." in target and ":" not in target):
            try:
                found = mutation.examples_in(importlib.import_module(target))
            except ModuleNotFoundError:  # `places_of` says so
                pass
            except (Exception, SystemExit) as error:  # whatever the user's module raises while it is imported
                refuse(f"{target} cannot be imported: {type(error).__name__}: {error}")
        examples += [ExampleTarget(example.name, target, i) for i, example in enumerate(found)]
        if not found:
            others.append(target)
    return [*(places_of(others, refuse) if others or not targets else ()), *examples]


def _measure(place: RuleTarget | ExampleTarget, measure: Callable[[Any], Any]) -> Any:
    try:
        return measure(place.rule())
    finally:
        jax.clear_caches()  # the next job has other shapes
