"""The results of mutation testing: shares, tables and lines of text."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from rich.table import Table

from vjplib.mutation.false_alarms import Alarms
from vjplib.mutation.other_checkers import TITLES, others
from vjplib.mutation.score import Score
from vjplib.reports.tables import grid
from vjplib.verification.registry import CLAIMS, order

ENOUGH = 0.99
"""The share of mutants that the verifier must kill, of those that are not equivalent to their rule."""


def shares(scores: Sequence[Score]) -> dict[str, float]:
    """Return by name of each check the share of the mutants that it kills, equivalent ones aside."""
    changed = [o for s in scores for o in s.outcomes if o.verdict != "equivalent"]
    killed = {"vjplib": [o.verdict == "killed" for o in changed], "check_grads": [o.check_grads for o in changed]}
    if any(o.chex is not None for o in changed):
        killed["chex"] = [bool(o.chex) for o in changed]
    return {by: sum(each) / max(1, len(changed)) for by, each in killed.items()}


def to_dict(scores: Sequence[Score], alarms: Alarms) -> dict[str, Any]:
    """Return scores and alarms for JSON."""
    of_alarms = {"runs": alarms.runs, "alarms": [alarm._asdict() for alarm in alarms.alarms]}
    return {"shares": shares(scores), "scores": [asdict(s) for s in scores]} | of_alarms


def tables(scores: Sequence[Score], alarms: Alarms) -> Iterator[Table]:
    """Yield the table of mutants, a row a rule, if there are any, and the table of the checks."""
    if scores:
        yield _of_mutants(scores)
    checks = grid("", [""], ("mutants killed", "false alarms", "runs"))
    killed = shares(scores)
    for by in ("vjplib", *others()):
        share = f"{killed[by]:.2%}" if scores and by in killed else "-"
        checks.add_row(TITLES[by], share, str(alarms.of(by)), str(alarms.runs))
    yield checks


def _of_mutants(scores: Sequence[Score]) -> Table:
    claims = sorted({o.claim for s in scores for o in s.outcomes if o.claim}, key=order)
    aliases = (CLAIMS[c].alias for c in claims)
    mutants = grid("", ["rule"], ("mutants", "equal", "killed", "left", *aliases, "grads", "chex", "s"))
    for s in scores:
        mutants.add_row(*_cells(s.name, [s], claims))
    mutants.add_section()
    mutants.add_row(*_cells("all", scores, claims))
    return mutants


def _cells(name: str, scores: Sequence[Score], claims: Sequence[str]) -> list[str]:
    outcomes = [o for s in scores for o in s.outcomes]
    verdicts, by = Counter(o.verdict for o in outcomes), Counter(o.claim for o in outcomes)
    chex = "-" if all(o.chex is None for o in outcomes) else str(sum(bool(o.chex) for o in outcomes))
    grads, seconds = sum(o.check_grads for o in outcomes), sum(s.seconds for s in scores)
    numbers = [len(outcomes), *(verdicts[v] for v in ("equivalent", "killed", "survived")), *(by[c] for c in claims)]
    return [name, *map(str, (*numbers, grads)), chex, f"{seconds:.0f}"]


def enough(scores: Sequence[Score], alarms: Alarms) -> bool:
    """Return whether the verifier kills the share `ENOUGH` of the mutants, if any, and raises no false alarm."""
    return (not scores or shares(scores)["vjplib"] >= ENOUGH) and alarms.of("vjplib") == 0


def without_mutants(scores: Sequence[Score], count: int) -> Iterator[str]:
    """Yield a line for each rule that allows fewer distinct mutants than requested."""
    for s in scores:
        made = len(s.outcomes) - s.count("equivalent")
        if made < count:
            yield f"{s.name}: its backward allows {made} mutants that differ from it and from one another, not {count}"


def survivors(scores: Sequence[Score]) -> Iterator[str]:
    """Yield a line for each mutant that survived."""
    survived = ((s.name, o) for s in scores for o in s.outcomes if o.verdict == "survived")
    yield from (f"{name} [{o.case}]: {o.mutation}" for name, o in survived)
