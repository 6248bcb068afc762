"""The work of a measure of power, shared out among processes."""

import multiprocessing
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax

from vjplib.mutation.false_alarms import Alarm, Alarms, run_correct
from vjplib.mutation.other_checkers import others
from vjplib.mutation.score import Score, score
from vjplib.rule import find, rules

TOGETHER = 10  # runs to a task


class Task(NamedTuple):
    """Work for a process: a record, by the target that names it and its number, and runs of it; None for mutants."""

    target: str | None
    number: int
    mutants: int
    seed: int
    runs: tuple[int, ...] | None = None


def done(task: Task) -> Score | tuple[str, int, list[Alarm]]:
    """Returns a task's score, or the rule's name, the number of its runs and the alarms raised at them."""
    rule = (rules() if task.target is None else find(task.target))[task.number]
    try:
        if task.runs is None:
            return score(rule, task.mutants, task.seed)
        return rule.name, len(task.runs), run_correct(rule, task.runs, task.seed)
    finally:
        jax.clear_caches()  # what comes next has other shapes


def tasks_of(targets: Sequence[tuple[str | None, int]], count: int, runs: int, seed: int) -> list[Task]:
    """Returns the mutants of each record as a task, then runs of the records in turn, some of one record to a task.

    Args:
        targets: what names each record, None for the library, and its number among those named.
        count: of mutants a record.
        runs: of correct rules, in all.
        seed: of all random numbers.
    """
    tasks = [Task(target, number, count, seed) for target, number in targets]
    for i, (target, number) in enumerate(targets):
        mine = range(i, runs, len(targets))
        tasks += [Task(target, number, 0, seed, tuple(mine[k : k + TOGETHER])) for k in range(0, len(mine), TOGETHER)]
    return tasks


def spread(tasks: Sequence[Task], processes: int) -> Iterator[Any]:
    """Yields what `done` returns for each task, as they end, from processes of their own; from this one for 0."""
    if processes == 0:
        yield from map(done, tasks)
        return
    context = multiprocessing.get_context("spawn")
    with context.Pool(min(processes, len(tasks)), _set_path, (sys.path,)) as pool:
        yield from pool.imap_unordered(done, tasks)


def gathered(results: Sequence[Any], order: Sequence[str]) -> tuple[list[Score], Alarms]:
    """Returns the scores, in the order of these names, and all that correct runs met with."""
    scores = sorted((r for r in results if isinstance(r, Score)), key=lambda s: order.index(s.name))
    ended = [r for r in results if not isinstance(r, Score)]
    runs = sum(count for _, count, _ in ended)
    asked = dict.fromkeys(("vjplib", *others()), runs)
    found = (alarm for _, _, alarms in ended for alarm in alarms)
    return scores, Alarms(runs, asked, tuple(sorted(found, key=lambda alarm: (alarm.by, alarm.run))))


def _set_path(path: list[str]) -> None:
    sys.path[:] = path
