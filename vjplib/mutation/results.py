"""What a measure of power comes to: shares, tables and lines of text."""

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
"""The least share of mutants that change the function which are to be killed."""


def shares(scores: Sequence[Score]) -> dict[str, float]:
    """Returns the share of the mutants that change the function which each check kills, by its name."""
    changed = [o for s in scores for o in s.outcomes if o.verdict != "equivalent"]
    found = {
        "vjplib": sum(o.verdict == "killed" for o in changed),
        "check_grads": sum(o.check_grads for o in changed),
    }
    if any(o.chex is not None for o in changed):
        found["chex"] = sum(bool(o.chex) for o in changed)
    return {by: number / max(1, len(changed)) for by, number in found.items()}


def to_dict(scores: Sequence[Score], alarms: Alarms | None) -> dict[str, Any]:
    """Returns scores and alarms as JSON has them."""
    content: dict[str, Any] = {"shares": shares(scores), "scores": [asdict(s) for s in scores]}
    if alarms is not None:
        content["runs"], content["asked"] = alarms.runs, dict(alarms.asked)
        content["alarms"] = [alarm._asdict() for alarm in alarms.alarms]
    return content


def tables(scores: Sequence[Score], alarms: Alarms | None) -> Iterator[Table]:
    """Yields the table of mutants, a row a rule, and that of the checks."""
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
        false = ("-", "-") if alarms is None else (str(alarms.of(by)), str(alarms.asked.get(by, 0)))
        checks.add_row(TITLES[by], f"{share:.2%}", *false)
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
    """Returns whether the verifier kills 99 % of the mutants that change the function, and raises no false alarm."""
    return shares(scores)["vjplib"] >= ENOUGH and alarms.of("vjplib") == 0


def without_mutants(scores: Sequence[Score], count: int) -> Iterator[str]:
    """Yields a line for each rule of which fewer mutants that change it could be made than asked for."""
    for s in scores:
        made = len(s.outcomes) - s.count("equivalent")
        if made < count:
            yield f"{s.name}: its backward allows {made} mutants that differ from it and from one another, not {count}"


def survivors(scores: Sequence[Score]) -> Iterator[str]:
    """Yields a line for each mutant that survived."""
    for s in scores:
        for o in s.outcomes:
            if o.verdict == "survived":
                yield f"{s.name} [{o.case}]: {o.mutation}"
