"""The results of mutation testing: shares, tables and lines of text."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from rich import box
from rich.table import Table

from vjplib.mutation.false_alarms import Alarms
from vjplib.mutation.other_checkers import TITLES
from vjplib.mutation.score import Score
from vjplib.verification.registry import CLAIMS, order

ENOUGH = 0.99
"""The share of mutants that the verifier must kill, of those that are not equivalent to their rule."""


def shares(scores: Sequence[Score]) -> dict[str, float]:
    """Return by name of each check the share of the mutants that it kills, equivalent ones aside."""
    changed = [o for s in scores for o in s.outcomes if o.verdict != "equivalent"]
    found = {
        "vjplib": sum(o.verdict == "killed" for o in changed),
        "check_grads": sum(o.check_grads for o in changed),
    }
    if any(o.chex is not None for o in changed):
        found["chex"] = sum(bool(o.chex) for o in changed)
    return {by: number / max(1, len(changed)) for by, number in found.items()}


def to_dict(scores: Sequence[Score], alarms: Alarms) -> dict[str, Any]:
    """Return scores and alarms for JSON."""
    of_alarms = {"runs": alarms.runs, "alarms": [alarm._asdict() for alarm in alarms.alarms]}
    return {"shares": shares(scores), "scores": [asdict(s) for s in scores]} | of_alarms


def tables(scores: Sequence[Score], alarms: Alarms) -> Iterator[Table]:
    """Yield the table of mutants, a row a rule, and the table of the checks."""
    claims = sorted({o.claim for s in scores for o in s.outcomes if o.claim}, key=order)
    grid = Table(box=box.HORIZONTALS, padding=(0, 1, 0, 0), pad_edge=False)
    grid.add_column("rule", overflow="fold")
    for heading in ("mutants", "equal", "killed", "left", *(CLAIMS[c].alias for c in claims), "grads", "chex", "s"):
        grid.add_column(heading, justify="right", no_wrap=True)
    for s in scores:
        grid.add_row(*_cells(s.name, [s], claims))
    grid.add_section()
    grid.add_row(*_cells("all", scores, claims))
    yield grid
    checks = Table(box=box.HORIZONTALS, padding=(0, 1, 0, 0), pad_edge=False)
    for heading in ("", "mutants killed", "false alarms", "runs"):
        checks.add_column(heading, justify="left" if not heading else "right", no_wrap=True)
    for by, share in shares(scores).items():
        checks.add_row(TITLES[by], f"{share:.2%}", str(alarms.of(by)), str(alarms.runs))
    yield checks


def _cells(name: str, scores: Sequence[Score], claims: Sequence[str]) -> list[str]:
    outcomes = [o for s in scores for o in s.outcomes]
    verdicts, by = Counter(o.verdict for o in outcomes), Counter(o.claim for o in outcomes)
    chex = "-" if all(o.chex is None for o in outcomes) else str(sum(bool(o.chex) for o in outcomes))
    numbers = [len(outcomes), verdicts["equivalent"], verdicts["killed"], verdicts["survived"]]
    grads = sum(o.check_grads for o in outcomes)
    return [
        name,
        *map(str, numbers),
        *(str(by[c]) for c in claims),
        str(grads),
        chex,
        f"{sum(s.seconds for s in scores):.0f}",
    ]


def enough(scores: Sequence[Score], alarms: Alarms) -> bool:
    """Return whether the verifier kills the share `ENOUGH` of the mutants and raises no false alarm."""
    return shares(scores)["vjplib"] >= ENOUGH and alarms.of("vjplib") == 0


def without_mutants(scores: Sequence[Score], count: int) -> Iterator[str]:
    """Yield a line for each rule that allows fewer distinct mutants than requested."""
    for s in scores:
        made = len(s.outcomes) - s.count("equivalent")
        if made < count:
            yield f"{s.name}: its backward allows {made} mutants that differ from it and from one another, not {count}"


def survivors(scores: Sequence[Score]) -> Iterator[str]:
    """Yield a line for each mutant that survived."""
    for s in scores:
        for o in s.outcomes:
            if o.verdict == "survived":
                yield f"{s.name} [{o.case}]: {o.mutation}"
