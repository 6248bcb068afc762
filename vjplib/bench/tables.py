"""Tables of what was timed: of rules, of their reasons, of training steps, and of random convolutions."""

import math
from collections.abc import Iterator, Sequence
from itertools import groupby
from operator import attrgetter
from typing import TYPE_CHECKING

import numpy as np
from rich.markup import escape
from rich.table import Table

from vjplib.bench.reasons import Measurement
from vjplib.bench.rules import MEASURES, Growth, Row
from vjplib.bench.sweep import REPEATS, SLOW, WRONG, Trial
from vjplib.bench.timing import Cost
from vjplib.reports.tables import grid

if TYPE_CHECKING:  # its networks need flax
    from vjplib.bench.training_steps import TrainingStep

LOWEST = 10
"""The number of slowest random convolutions shown."""


def of_rules(rows: Sequence[Row], growths: Sequence[Growth] = ()) -> Iterator[Table]:
    """Yield the tables of calls, of accuracy and of growth; a table without rows is left out."""
    if rows:
        yield _calls(rows)
    if any(row.error is not None for row in rows):
        title = "accuracy: the largest relative error of a component of the gradient in the tails"
        table = grid(title, ["", "error", "autodiff's", "of"])
        for (rule, baseline), (row, *_) in groupby(rows, attrgetter("rule", "baseline")):
            if row.error is not None and row.baseline_error is not None:
                table.add_row(f"[bold]{rule}[/]", f"{row.error:.0e}", f"{row.baseline_error:.0e}", baseline)
        yield table
    if growths:
        columns = ["", "function", "sizes", "shortest ms", "exponent"]
        table = grid("growth of time: seconds ~ size ^ exponent", columns)
        for g in growths:
            sizes = f"{g.dimension} = {g.sizes[0]:,} to {g.sizes[-1]:,}"
            times = f"{short(1e3 * g.seconds[0])} to {short(1e3 * g.seconds[-1])}"
            table.add_row(f"[bold]{g.rule}[/]", g.name, sizes, times, f"{g.exponent:.2f}")
        yield table


def of_reasons(found: Sequence[Measurement]) -> Iterator[Table]:
    """Yield the table of gains, a block per rule, unless there are none."""
    if not found:
        return
    title = "reasons: the rule's quantity as a multiple of that of autodiff of the baseline"
    table = grid(title, ["", ""], ["claimed", "measured", "ours", "theirs"])
    for (rule, reason), of_rule in groupby(found, attrgetter("rule", "reason")):
        gains = list(of_rule)
        unmeasured = [m.note for m in gains if not m.quantity]
        table.add_row(f"[bold]{rule}[/]: {escape(reason) or 'no reason is given'}", *unmeasured)
        for m in gains:
            if m.quantity:
                figures = ("", "", "") if m.note else (f"{m.ratio:.2g}", *_figures(m))
                verdict = _red("GONE") if m.gone else m.verdict
                gain = f"  {m.quantity} of {escape(m.baseline)}, {escape(m.call)}"
                table.add_row(gain, verdict, f"≤ {m.at_most:.2g}", *figures)
        table.add_section()
    yield table


def _figures(m: Measurement) -> Iterator[str]:
    """Yield the rule's and the baseline's bytes in MB, time in ms, or error."""
    for figure in (m.ours, m.theirs):
        assert figure is not None  # something is measured
        if m.quantity == "error":
            yield f"{figure:.0e}" if math.isfinite(figure) else "NaN, inf"
        elif m.quantity == "time":
            yield f"{short(1e3 * figure)} ms"
        else:
            yield f"{figure:.0f} B" if figure < 1e4 else f"{figure / 1e6:.2f} MB"


def of_steps(steps: Sequence["TrainingStep"]) -> Iterator[Table]:
    """Yield the table of training steps, unless there are none."""
    if not steps:
        return
    title = "ms per training step, also with memory kept; x: speedup of vjplib"
    numbers = "step\nms", "", "memory\nkept", "", "make\ns", "resid.\nMB", "temp.\nMB"
    table = grid(title, [""], numbers)
    for step in steps:
        table.add_row(f"[bold]{step.model}[/]\n{'x'.join(map(str, step.shape))}")
        for name, field in _VERSIONS.items():
            cost, kept = getattr(step.costs, field), getattr(step.kept, field, None)
            if cost:
                times = f"{short(1e3 * cost.median)} ±{cost.spread:.0%}", _speedup(cost, step.costs.ours)
                again = (short(1e3 * kept.median), _speedup(kept, step.kept.ours)) if step.kept and kept else ("-", "")
                made = f"{cost.lowering + cost.compiling:.2f}", *_memory(cost)
                table.add_row(f"  {name}", *times, *again, *(made if field != "torch" else ("-",) * 3))
        of_kept = _megabytes(step.kept.peak) if step.kept else "not glibc"
        table.add_row("  peak MB", _megabytes(step.costs.peak), "", of_kept)
        table.add_section()
    yield table


_VERSIONS = {"vjplib": "ours", "vjplib conv": "convolutions", "jax": "theirs", "torch": "torch"}
"""The field of `StepCosts` of each row."""


def _megabytes(peak: int | None) -> str:
    return "-" if peak is None else f"{peak / 1e6:.0f}"


def _speedup(cost: Cost, ours: Cost) -> str:
    return "" if cost is ours else f"{short(cost.median / ours.median)} x"


def of_sweep(trials: Sequence[Trial]) -> Iterator[Table]:
    """Yield a table of our wrong results, if there are any, one of the speedups, and one of the slowest trials."""
    if wrong := [trial for trial in trials if trial.wrong]:
        title = f"WRONG: our float32 y, dx or dk is off by more than {WRONG:g} of the largest entry"
        table = grid(title, ["call", "y is computed by"], ["y", "dx", "dk"])
        for trial in wrong:
            errors = (_red(f"{error:.1e}", error > WRONG) for error in trial.errors)
            table.add_row(_red(escape(str(trial))), trial.served[0], *errors)
        yield table
    title = f"{len(trials)} random convolutions, forward and backward: speedup over lax"
    table = grid(title, ["y is computed by"], ["number", "lowest", "median", "highest"])
    for name in ("all", *sorted({trial.served[0] for trial in trials})):
        ratios = [trial.ratio for trial in trials if name in ("all", trial.served[0])]
        table.add_row(name, str(len(ratios)), *(f"{short(float(q))} x" for q in np.quantile(ratios, (0, 0.5, 1))))
    yield table
    title = f"the slowest; a speedup below {SLOW} in each of {REPEATS} runs is a wrong choice of algorithm"
    table = grid(title, ["call"], ["x", "ms", "lax ms", "compile\ns", "lax\ns"])
    for trial in sorted(trials, key=lambda trial: trial.ratio)[:LOWEST]:
        times = (short(1e3 * t) for t in (trial.ours, trial.theirs))
        compiling = (f"{t:.2f}" for t in trial.compiling)
        table.add_row(escape(str(trial)), _red(short(trial.ratio), trial.slow), *times, *compiling)
    yield table


def _calls(rows: Sequence[Row]) -> Table:
    """Return a table with a block per call: a line for the rule, then one for each baseline."""
    numbers = *(f"{measure}\nms" for measure in MEASURES), "±", "compile\ns", "kept\nMB", "scratch\nMB"
    table = grid("ms per call; x: speedup of the rule; ±: half the interquartile range", [""], numbers)
    for (rule, case), of_case in groupby(rows, attrgetter("rule", "case")):
        for i, (baseline, of_baseline) in enumerate(groupby(of_case, attrgetter("baseline"))):
            pairs = list(of_baseline)
            if i == 0:
                ours = [row.ours for row in pairs]
                table.add_row(f"[bold]{rule}[/]\n{case}", *(short(1e3 * cost.median) for cost in ours), *_held(ours))
            times = (f"{short(1e3 * row.theirs.median)}\n{_red(f'{short(row.ratio)} x', row.slower)}" for row in pairs)
            table.add_row(baseline, *times, *_held([row.theirs for row in pairs]))
        table.add_section()
    return table


def _held(costs: Sequence[Cost]) -> list[str]:
    """Return the largest spread, and the seconds to make and the MB of the program that returns its output."""
    returned = costs[list(MEASURES).index("returned")]
    made = f"{returned.lowering + returned.compiling:.2f}"
    return [f"{max(cost.spread for cost in costs):.0%}", made, *_memory(returned)]


def _memory(cost: Cost) -> tuple[str, str]:
    """Return the MB kept for the backward, and the MB of scratch."""
    return f"{cost.residual / 1e6:.1f}", "-" if cost.temporary is None else f"{cost.temporary / 1e6:.1f}"


def _red(text: str, bad: bool = True) -> str:
    return f"[bold red]{text}[/]" if bad else text


def short(value: float) -> str:
    """Return a positive number with three digits, without an exponent."""
    return f"{value:.{max(0, 2 - math.floor(math.log10(value)))}f}"
