"""bench: each rule timed beside autodiff of what users would otherwise call, both in one interleaved run.

Four programs are timed of each function: the forward alone, the forward and its pullback with the output returned, both
with the output reduced at once, and both with the output followed by an activation and a norm, as in a network. The
last two are not the second in disguise: a compiler may fuse a forward into what consumes it, for better or worse.
"""

import itertools
import math
import os
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich import box
from rich.table import Table

from vjplib import __version__
from vjplib.compat import x64
from vjplib.rule import Case, Rule, Scaling
from vjplib.verification.accuracy import tail_error
from vjplib.verification.residuals import residual_bytes
from vjplib.verification.subject import Leaves, Subject

SLOWER = 1.1
"""From this multiple of a baseline's time on, a rule is called slower, and owes its reason."""
QUICK = 0.5
"""Seconds below which a program's time is asked for in a hurry."""
FEWEST_QUICK = 5
"""The fewest calls that a median is taken of then."""
ROUNDS = (11, 500)
"""The fewest and the most calls that a median is taken of."""

Program = Callable[[tuple[Any, ...], Mapping[str, Any], Leaves], Any]


@dataclass(frozen=True)
class Cost:
    """What one compiled program takes.

    Args:
        median: seconds a call.
        low: the first quartile, seconds.
        high: the third quartile, seconds.
        rounds: how many calls were timed.
        lowering: seconds to trace and lower.
        compiling: seconds to compile.
        temporary: bytes of scratch memory beside arguments and results; None where the platform does not tell.
        residual: bytes kept between forward and backward; 0 for a forward alone.
    """

    median: float
    low: float
    high: float
    rounds: int
    lowering: float
    compiling: float
    temporary: int | None
    residual: int

    @property
    def spread(self) -> float:
        """Half the quartile range, as a share of the median."""
        return (self.high - self.low) / 2 / self.median


@dataclass(frozen=True)
class Row:
    """One program of a rule beside the same program of a baseline.

    Args:
        rule: the rule's name.
        case: the call's sizes.
        baseline: the baseline's name.
        measure: a key of `MEASURES`.
        ours: what the rule takes.
        theirs: what the baseline takes, under autodiff.
        reason: why the rule exists.
        error: the largest relative error of a component of the rule's gradient in its tails; None if not measured.
        baseline_error: that of the baseline under autodiff.

    Example:
        >>> fast, slow = (Cost(s, s, s, 9, 0.1, 0.1, 0, 0) for s in (1e-3, 3e-3))
        >>> row = Row("f", "n=8", "jnp.f", "forward", ours=fast, theirs=slow, reason="shown")
        >>> row.ratio, row.slower
        (3.0, False)
    """

    rule: str
    case: str
    baseline: str
    measure: str
    ours: Cost
    theirs: Cost
    reason: str
    error: float | None = None
    baseline_error: float | None = None

    @property
    def ratio(self) -> float:
        """The baseline's median time over the rule's: above 1 the rule is faster."""
        return self.theirs.median / self.ours.median

    @property
    def slower(self) -> bool:
        """Whether the rule takes more than `SLOWER` times as long as the baseline."""
        return self.ours.median > SLOWER * self.theirs.median


@dataclass(frozen=True)
class Growth:
    """How the time of a function grows with one dimension.

    Args:
        rule: the rule that names the function.
        name: the function's name in the record.
        dimension: the dimension that grows.
        sizes: its sizes.
        seconds: the shortest time at each size.
    """

    rule: str
    name: str
    dimension: str
    sizes: tuple[int, ...]
    seconds: tuple[float, ...]

    @property
    def exponent(self) -> float:
        """The slope of log time over log size, by least squares.

        Example:
            >>> round(Growth("f", "slow", "n", (1, 2, 4), (1e-3, 4e-3, 16e-3)).exponent, 6)
            2.0
        """
        return float(np.polyfit(np.log2(self.sizes), np.log2(self.seconds), 1)[0])


def bench_rule(rule: Rule, *, seconds: float = 1.0) -> list[Row]:
    """Returns a row for each benchmark case of a record, each of its baselines and each of `MEASURES`.

    Rule and baselines are called in turn, round after round, so that whatever else the machine does slows all alike.

    Args:
        rule: the record; its `bench` cases are called in float32.
        seconds: how long each measure of each case is timed; at least `ROUNDS[0]` rounds take place, or `FEWEST_QUICK`
            where this is below `QUICK`.

    Raises:
        ValueError: rule and baseline are not the same function, shown in float64; or seconds is negative.

    Example:
        >>> from vjplib.rule import Case
        >>> rule = Rule(jnp.sin, jnp.sin, {"sin": jnp.sin}, (Case(("n",), {"n": 3}),), bench=(Case(("n",), {"n": 8}),))
        >>> [(row.case, row.baseline, row.measure) for row in bench_rule(rule, seconds=0)]
        [('n=8', 'sin', 'forward'), ('n=8', 'sin', 'returned'), ('n=8', 'sin', 'reduced'), ('n=8', 'sin', 'followed')]
    """
    if seconds < 0:
        raise ValueError(f"seconds must be at least 0, got {seconds}")
    return [row for case in rule.bench for row in _bench_case(rule, case, seconds)]


def bench_growth(rule: Rule, *, seconds: float = 1.0) -> list[Growth]:
    """Returns the growth of each function that a record's `scaling` names, its sizes called in turn.

    The shortest time at each size counts: what else the machine does only ever adds to it.

    Args:
        rule: the record.
        seconds: how long each function is timed; at least `ROUNDS[0]` rounds take place, or `FEWEST_QUICK` where this
            is below `QUICK`.

    Example:
        >>> from vjplib.rule import Scaling
        >>> case = Case(("n",), {"n": 1})
        >>> rule = Rule(jnp.sin, jnp.sin, {}, (case,), scaling={"sine": Scaling(jnp.sin, case, ("n", (8, 16)))})
        >>> [(growth.name, growth.sizes) for growth in bench_growth(rule, seconds=0)]
        [('sine', (8, 16))]
    """
    return [_growth(rule, name, scaling, seconds) for name, scaling in rule.scaling.items()]


# ------------------------------------------------------------------------------------------------------- what is timed


def _forward(f: Callable[..., Leaves], leaves: Leaves, gs: Leaves) -> Any:
    del gs
    return f(*leaves)


def _returned(f: Callable[..., Leaves], leaves: Leaves, gs: Leaves) -> Any:
    ys, back = jax.vjp(f, *leaves)
    return ys, back(gs)


def _reduced(f: Callable[..., Leaves], leaves: Leaves, gs: Leaves) -> Any:
    # A sum of products, not jnp.vdot: a dot is an operation of its own, into which nothing is fused.
    return jax.value_and_grad(lambda xs: sum(jnp.sum(y * g) for y, g in zip(f(*xs), gs, strict=True)))(leaves)


def _followed(f: Callable[..., Leaves], leaves: Leaves, gs: Leaves) -> Any:
    def loss(xs: Leaves) -> Any:
        return sum(jnp.sum(_normed(jax.nn.silu(y)) * g) for y, g in zip(f(*xs), gs, strict=True))

    return jax.value_and_grad(loss)(leaves)


def _normed(y: jax.Array) -> jax.Array:
    """Returns y with mean 0 and variance 1 along its last axis of more than one place."""
    axis = next((i for i in reversed(range(y.ndim)) if y.shape[i] > 1), None)
    centred = y - jnp.mean(y, axis, keepdims=True)
    return centred * jax.lax.rsqrt(jnp.mean(centred**2, axis, keepdims=True) + 1e-5)


MEASURES = {"forward": _forward, "returned": _returned, "reduced": _reduced, "followed": _followed}
"""The programs timed: y; (y, g^T J); (<y, g>, g^T J); and (<n, g>, its gradient) for n the norm of silu of y."""


def _program(subject: Subject, fn: Callable[..., Any], measure: str) -> Program:
    """Returns a program that takes every array of the call, integers and masks too, so that none is a constant."""

    def run(args: tuple[Any, ...], arrays: Mapping[str, Any], gs: Leaves) -> Any:
        flat = subject.at(args, {**subject.kwargs, **arrays}, subject.case).flat(fn)
        leaves = jax.tree.leaves(args)
        return MEASURES[measure](flat, tuple(leaves[i] for i in subject.differentiable), gs)

    return run


def _bench_case(rule: Rule, case: Case, seconds: float) -> Iterator[Row]:
    call = case.call(np.random.default_rng(0), np.float32)
    sizes = case.label or " ".join(f"{name}={n}" for name, n in case.dims.items())
    subject = Subject(rule.fn, call.args, call.kwargs, case=sizes or "scalars")
    functions = {rule.name: rule.fn, **rule.baselines}
    # XLA's float64 convolution takes minutes at sizes that are written out, those of networks; the others may vary.
    _require_agreement(subject, functions, np.float64 if case.dims else np.float32)
    costs = {measure: _costs(subject, functions, measure, seconds) for measure in MEASURES}
    errors = {name: rule.tails and tail_error(Subject(fn, ()), rule.tails) for name, fn in functions.items()}
    for baseline in rule.baselines:
        for measure, cost in costs.items():
            ours, theirs = cost[rule.name], cost[baseline]
            accuracy = errors[rule.name], errors[baseline]
            yield Row(rule.name, subject.case, baseline, measure, ours, theirs, rule.reason, *accuracy)


def _growth(rule: Rule, name: str, scaling: Scaling, seconds: float) -> Growth:
    fn, case, (dimension, sizes) = scaling
    drawn = (case.call(np.random.default_rng(0), np.float32, **{dimension: n}) for n in sizes)
    compiled = [compile_bound(lambda args, kwargs: fn(*args, **kwargs), *jax.device_put(tuple(call))) for call in drawn]
    times = interleaved([run for run, *_ in compiled], seconds)
    return Growth(rule.name, name, dimension, sizes, tuple(float(t) for t in times.min(axis=1)))


def _costs(
    subject: Subject, functions: Mapping[str, Callable[..., Any]], measure: str, seconds: float
) -> dict[str, Cost]:
    leaves = subject.leaves()
    arrays = jax.device_put((subject.args, _arrays(subject), subject.cotangents(leaves)))
    programs = [compile_bound(_program(subject, fn, measure), *arrays) for fn in functions.values()]
    times = interleaved([run for run, *_ in programs], seconds)
    costs = {}
    for (name, fn), (_, lowering, compiling, temporary), t in zip(functions.items(), programs, times, strict=True):
        kept = 0 if measure == "forward" else _residuals(subject, fn, leaves)
        costs[name] = cost(t, lowering, compiling, temporary, kept)
    return costs


def _arrays(subject: Subject) -> dict[str, np.ndarray]:
    return {name: value for name, value in subject.kwargs.items() if isinstance(value, np.ndarray)}


def _residuals(subject: Subject, fn: Callable[..., Any], leaves: Leaves) -> int:
    return residual_bytes(subject.flat(fn), *leaves)


def cost(times: np.ndarray, lowering: float, compiling: float, temporary: int | None, residual: int) -> Cost:
    """Returns a program's cost from the seconds of each call, (rounds,)."""
    low, median, high = (float(q) for q in np.quantile(times, (0.25, 0.5, 0.75)))
    return Cost(median, low, high, len(times), lowering, compiling, temporary, residual)


def compile_bound(f: Callable[..., Any], *args: Any) -> tuple[Callable[[], Any], float, float, int | None]:
    """Returns f compiled and bound to its arguments, the seconds to lower and to compile, and its scratch bytes."""
    start = time.perf_counter()
    lowered = jax.jit(f).lower(*args)
    middle = time.perf_counter()
    compiled = lowered.compile()
    end = time.perf_counter()
    memory = compiled.memory_analysis()
    return lambda: compiled(*args), middle - start, end - middle, memory and memory.temp_size_in_bytes


def interleaved(runs: Sequence[Callable[[], Any]], seconds: float) -> np.ndarray:
    """Returns the seconds of each call, (runs, rounds): one round calls each in turn."""
    for run in (*runs, *runs):
        jax.block_until_ready(run())
    rounds, end = [], time.perf_counter() + seconds
    fewest = ROUNDS[0] if seconds >= QUICK else FEWEST_QUICK
    while len(rounds) < fewest or (time.perf_counter() < end and len(rounds) < ROUNDS[1]):
        rounds.append([_timed(run) for run in runs])
    return np.array(rounds).T


def _timed(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    jax.block_until_ready(run())
    return time.perf_counter() - start


def _require_agreement(subject: Subject, functions: Mapping[str, Callable[..., Any]], dtype: Any) -> None:
    """Raises unless all functions give the first one's outputs and cotangents, in this dtype."""
    (ours, first), *baselines = functions.items()
    with x64():
        leaves = subject.leaves(dtype)
        call = subject.rebuild(leaves), _arrays(subject), subject.cotangents(leaves)
        shapes = [y.shape for y in jax.eval_shape(_program(subject, first, "forward"), *call)]
        expected = jax.jit(_program(subject, first, "returned"))(*call)
        outputs = [f"output {i}" if len(expected[0]) > 1 else "output" for i in range(len(expected[0]))]
        names = [*outputs, *(f"cotangent of {name}" for name in subject.names)]
        for baseline, fn in baselines:
            demand = f"{ours} and its baseline {baseline} must be one function to be timed side by side"
            theirs = [y.shape for y in jax.eval_shape(_program(subject, fn, "forward"), *call)]
            if theirs != shapes:
                raise ValueError(f"{demand}, but at {subject.case} outputs have shapes {shapes} against {theirs}")
            given = jax.jit(_program(subject, fn, "returned"))(*call)
            for name, a, b in zip(names, jax.tree.leaves(expected), jax.tree.leaves(given), strict=True):
                if gap := difference(np.asarray(a), np.asarray(b)):
                    raise ValueError(f"{demand}, but at {subject.case} the {name} {gap}")


def difference(a: np.ndarray, b: np.ndarray) -> str:
    """Returns in words how b differs from a by more than the root of a unit of its largest entry, else nothing."""
    tolerance = float(np.sqrt(np.finfo(a.dtype if np.issubdtype(a.dtype, np.floating) else np.float64).eps))
    with np.errstate(invalid="ignore"):
        apart = np.where((a == b) | (np.isnan(a) & np.isnan(b)), 0.0, np.abs(a - b))
    apart = np.nan_to_num(apart, nan=np.inf)
    largest = float(np.max(np.abs(a), where=np.isfinite(a), initial=np.finfo(float).tiny))
    if (share := float(np.max(apart, initial=0.0)) / largest) <= tolerance:
        return ""
    index = tuple(int(i) for i in np.unravel_index(np.argmax(apart), apart.shape))
    return f"differs by {share:.1e} of its largest entry, most at {index}: {a[index]:.6g} against {b[index]:.6g}"


# ------------------------------------------------------------------------------------------------------ how it is shown


def environment() -> dict[str, Any]:
    """Returns what a figure depends on beside the code: versions, machine, device, processors, and the date.

    Example:
        >>> sorted(environment())
        ['cpus', 'date', 'device', 'jax', 'jaxlib', 'machine', 'python', 'vjplib']
    """
    device = jax.devices()[0]
    return {
        "vjplib": __version__,
        "jax": jax.__version__,
        "jaxlib": version("jaxlib"),
        "python": platform.python_version(),
        "machine": platform.platform(),
        "device": f"{device.platform}: {device.device_kind}",
        "cpus": os.cpu_count(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def to_dict(rows: Sequence[Row], growths: Sequence[Growth] = ()) -> dict[str, Any]:
    """Returns rows and growths in plain types, with the environment: what `vjplib bench --json` writes."""
    return {
        "environment": environment(),
        "rows": [{**asdict(row), "ratio": row.ratio, "slower": row.slower} for row in rows],
        "growth": [{**asdict(growth), "exponent": growth.exponent} for growth in growths],
    }


def tables(rows: Sequence[Row], growths: Sequence[Growth] = ()) -> Iterator[Table]:
    """Yields the table of calls, that of accuracy and that of growth, each only if it has a row."""
    if rows:
        yield _call_table(rows)
    if any(row.error is not None for row in rows):
        yield _accuracy_table(rows)
    if growths:
        yield _growth_table(growths)


def remarks(rows: Sequence[Row]) -> Iterator[str]:
    """Yields a line for each row whose rule is slower than its baseline, with the reason why the rule exists."""
    for row in rows:
        if row.slower:
            yield (
                f"{row.rule} [{row.case}] {row.measure}: {1 / row.ratio:.2f} x the time of {row.baseline}. "
                f"Reason for the rule: {row.reason or 'none is given'}"
            )


def _call_table(rows: Sequence[Row]) -> Table:
    """Returns a table of one line a function: those of one call stand together, the rule first."""
    table = new_table("ms a call; x: how many times faster the rule is; ±: half the quartile range")
    table.add_column("", overflow="fold")
    for heading in (*(f"{measure}\nms" for measure in MEASURES), "±", "compile\ns", "kept\nMB", "scratch\nMB"):
        table.add_column(heading, justify="right", no_wrap=True)
    for (rule, case), group in _grouped(rows, lambda row: (row.rule, row.case)):
        by_baseline = [list(pairs) for _, pairs in _grouped(group, lambda row: row.baseline)]
        table.add_row(f"[bold]{rule}[/]\n{case}", *_cells([row.ours for row in by_baseline[0]]))
        for pairs in by_baseline:
            ratios = (f"{short(row.ratio)} x" for row in pairs)
            marked = (
                f"[bold red]{ratio}[/]" if row.slower else ratio for ratio, row in zip(ratios, pairs, strict=True)
            )
            times, rest = (cells := _cells([row.theirs for row in pairs]))[: len(MEASURES)], cells[len(MEASURES) :]
            both = (f"{cell}\n{ratio}" for cell, ratio in zip(times, marked, strict=True))
            table.add_row(pairs[0].baseline, *both, *rest)
        table.add_section()
    return table


def _grouped(rows: Iterable[Row], key: Callable[[Row], Any]) -> Iterator[tuple[Any, list[Row]]]:
    for value, group in itertools.groupby(rows, key):
        yield value, list(group)


def _cells(costs: Sequence[Cost]) -> list[str]:
    """Returns the time of each measure, and what the output-returning program takes to make and to hold."""
    returned = costs[list(MEASURES).index("returned")]
    _, *held = making_cells(returned)
    spread = max(c.spread for c in costs)
    return [
        *(short(1e3 * c.median) for c in costs),
        f"{spread:.0%}",
        f"{returned.lowering + returned.compiling:.2f}",
        *held,
    ]


def time_cell(c: Cost) -> str:
    """Returns the median in ms, and half the quartile range as a share of it."""
    return f"{short(1e3 * c.median)} ±{c.spread:.0%}"


def making_cells(c: Cost) -> list[str]:
    """Returns the seconds to lower and to compile, and the MB kept and of scratch."""
    scratch = "-" if c.temporary is None else f"{c.temporary / 1e6:.1f}"
    return [f"{c.lowering:.2f}+{c.compiling:.2f}", f"{c.residual / 1e6:.1f}", scratch]


def short(value: float) -> str:
    """Returns a positive number to three digits, without an exponent."""
    return f"{value:.{max(0, 2 - math.floor(math.log10(value)))}f}"


def _accuracy_table(rows: Sequence[Row]) -> Table:
    """Returns a table of one line for each rule whose record declares tails, and baseline."""
    table = new_table("accuracy: the largest relative error of a component of the gradient in the tails")
    for heading in ("", "accuracy", "autodiff's", "of"):
        table.add_column(heading, overflow="fold")
    for (rule, baseline), (row, *_) in _grouped(rows, lambda row: (row.rule, row.baseline)):
        if row.error is not None and row.baseline_error is not None:
            table.add_row(f"[bold]{rule}[/]", f"{row.error:.0e}", f"{row.baseline_error:.0e}", baseline)
    return table


def _growth_table(growths: Sequence[Growth]) -> Table:
    table = new_table("growth of time: seconds ~ size ^ exponent")
    for heading in ("", "function", "sizes", "shortest ms", "exponent"):
        table.add_column(heading)
    for g in growths:
        sizes = f"{g.dimension} = {g.sizes[0]:,} to {g.sizes[-1]:,}"
        times = f"{short(1e3 * g.seconds[0])} to {short(1e3 * g.seconds[-1])}"
        table.add_row(f"[bold]{g.rule}[/]", g.name, sizes, times, f"{g.exponent:.2f}")
    return table


def new_table(title: str) -> Table:
    """Returns an empty table in the style of all of them."""
    return Table(title=title, title_justify="left", box=box.HORIZONTALS, padding=(0, 1, 0, 0), pad_edge=False)
