"""The timing kit: compile a program, call several in turn, and hold their results against each other beforehand."""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np

ROUNDS = (11, 500)
"""The fewest and the most calls that a median is taken of."""
QUICK = 0.5
"""Below this many seconds a measurement is quick: `FEWEST_QUICK` calls suffice."""
FEWEST_QUICK = 5
"""The fewest calls that the median of a quick measurement is taken of."""


@dataclass(frozen=True)
class Cost:
    """What one compiled program takes.

    Args:
        median: seconds per call, low the first quartile, and high the third.
        rounds: the number of calls timed.
        lowering: seconds to trace and lower.
        compiling: seconds to compile.
        temporary: bytes of scratch memory besides arguments and results; None where the platform does not report them.
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
        """Half the interquartile range, as a fraction of the median."""
        return (self.high - self.low) / 2 / self.median


class Compiled(NamedTuple):
    """A program bound to its arguments, and what `Cost` says about its making and memory."""

    run: Callable[[], Any]
    lowering: float = 0.0
    compiling: float = 0.0
    temporary: int | None = None


def compile_bound(f: Callable[..., Any], *args: Any) -> Compiled:
    """Return f compiled for its arguments and bound to them."""
    start = time.perf_counter()
    lowered = jax.jit(f).lower(*args)
    middle = time.perf_counter()
    compiled = lowered.compile()
    end = time.perf_counter()
    memory = compiled.memory_analysis()
    return Compiled(lambda: compiled(*args), middle - start, end - middle, memory and memory.temp_size_in_bytes)


def interleaved(runs: Sequence[Callable[[], Any]], seconds: float) -> np.ndarray:
    """Return the seconds of each call, of shape (runs, rounds); each round calls every program once.

    Args:
        runs: the programs, without arguments. Each is called twice before the first round.
        seconds: how long to measure; at least `ROUNDS[0]` rounds, or `FEWEST_QUICK` where seconds is below `QUICK`.
    """
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


def costs(programs: Sequence[Compiled], residuals: Sequence[int], seconds: float) -> list[Cost]:
    """Return the costs of programs, interleaved, which keep these bytes for the backward."""
    times = interleaved([program.run for program in programs], seconds)
    quartiles = np.quantile(times, (0.25, 0.5, 0.75), axis=1).T.tolist()
    return [
        Cost(median, low, high, times.shape[1], program.lowering, program.compiling, program.temporary, residual)
        for (low, median, high), program, residual in zip(quartiles, programs, residuals, strict=True)
    ]


def difference(a: np.ndarray, b: np.ndarray) -> str:
    """Describe how b differs from a, if by more than the root of machine epsilon times a's largest entry; else ""."""
    tolerance = float(np.sqrt(np.finfo(a.dtype if np.issubdtype(a.dtype, np.floating) else np.float64).eps))
    with np.errstate(invalid="ignore"):
        apart = np.where((a == b) | (np.isnan(a) & np.isnan(b)), 0.0, np.abs(a - b))
    apart = np.nan_to_num(apart, nan=np.inf)
    largest = float(np.max(np.abs(a), where=np.isfinite(a), initial=np.finfo(float).tiny))
    if (share := float(np.max(apart, initial=0.0)) / largest) <= tolerance:
        return ""
    index = tuple(int(i) for i in np.unravel_index(np.argmax(apart), apart.shape))
    return f"differs by {share:.1e} of its largest entry, most at {index}: {a[index]:.6g} against {b[index]:.6g}"


def require_equal(demand: str, names: Iterable[str], expected: Any, given: Any) -> None:
    """Raise ValueError with the demand and the first difference of two trees, whose leaves have these names."""
    for name, a, b in zip(names, jax.tree.leaves(expected), jax.tree.leaves(given), strict=True):
        if gap := difference(np.asarray(a), np.asarray(b)):
            raise ValueError(f"{demand}, but {name} {gap}")
