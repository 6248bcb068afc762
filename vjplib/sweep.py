"""sweep: random convolutions timed against lax's, to find a shape at which the choice of formulation is wrong."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from rich.table import Table

import vjplib.bench as bench
from vjplib.rules.convolution_general import conv_general_dilated, explain_convolution

SLOW = 0.8
"""A ratio below this, again and again, is a wrong choice."""
REPEATS = 3
"""How many times in all a slow shape is timed before it is called slow."""
LARGEST = 2**22
"""The most elements of x, and of y."""
MOST_WORK = 2**29
"""The most multiplications of one product."""


@dataclass(frozen=True)
class Trial:
    """One random convolution, timed forward and backward with the output returned.

    Args:
        lhs: shape of x.
        rhs: shape of the kernel.
        arguments: keyword arguments of `conv_general_dilated`.
        served: the names of the formulations of y, dx and dk on CPU.
        ratio: lax's median time over ours, the best of `REPEATS` where the first is below `SLOW`.
        ours: seconds.
        theirs: seconds.
        compiling: seconds that ours and lax's took to lower and compile.
    """

    lhs: tuple[int, ...]
    rhs: tuple[int, ...]
    arguments: dict[str, Any]
    served: tuple[str, ...]
    ratio: float
    ours: float
    theirs: float
    compiling: tuple[float, float]

    @property
    def slow(self) -> bool:
        """Whether lax was faster again and again, by more than noise makes it."""
        return self.ratio < SLOW

    def __str__(self) -> str:
        """Returns the call in a line, what has its default left out."""
        given = {k: v for k, v in self.arguments.items() if k == "padding" or v not in (1, (1,) * (len(self.lhs) - 2))}
        layout, *rest = given.pop("dimension_numbers"), *(f"{k}={v}" for k, v in given.items())
        shapes = (
            f"{spec}{'x'.join(map(str, shape))}" for spec, shape in zip(layout, (self.lhs, self.rhs), strict=False)
        )
        return " ".join((*shapes, *rest))


def draw(rng: np.random.Generator) -> tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]:
    """Returns shapes and arguments of a random convolution of a size met in practice: 1 to 3 dimensions, any kind.

    Example:
        >>> lhs, rhs, arguments = draw(np.random.default_rng(0))
        >>> len(lhs) == len(rhs) == len(arguments["window_strides"]) + 2
        True
    """
    while True:
        lhs, rhs, arguments = _drawn(rng)
        try:
            y = jax.eval_shape(lambda x, k, a=arguments: lax.conv_general_dilated(x, k, **a), *map(_form, (lhs, rhs)))
        except ValueError:  # a window larger than what it slides over
            continue
        work = y.size * math.prod(rhs) // max(1, rhs[_features(arguments)])
        if 0 < y.size <= LARGEST and work <= MOST_WORK:
            return lhs, rhs, arguments


def _features(arguments: dict[str, Any]) -> int:
    return arguments["dimension_numbers"][1].index("O")


def _form(shape: tuple[int, ...]) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def _drawn(rng: np.random.Generator) -> tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]:
    def pick(*values: Any) -> Any:
        return values[int(rng.integers(len(values)))]

    ndim = pick(1, 1, 2, 2, 2, 3)
    space = "DHW"[3 - ndim :]
    kind = pick("dense", "dense", "depthwise", "depthwise", "grouped", "transposed", "pointwise", "tiled", "single")
    kernel = pick(*{1: (2, 3, 4, 5, 7, 9, 15, 31), 2: (2, 3, 3, 3, 5, 7), 3: (2, 3)}[ndim])
    stride, dilation, groups, dilated = pick(1, 1, 2), pick(1, 1, 1, 2, 4), 1, 1
    channels, features = pick(1, 2, 3, 4, 8, 16, 32, 48, 64, 128, 256), pick(1, 3, 4, 8, 16, 32, 48, 64, 128, 256)
    match kind:
        case "depthwise":
            groups, features = channels, channels * pick(1, 1, 1, 2)
        case "grouped":
            groups = pick(2, 4, 8, 16, 32)
            channels, features = groups * pick(2, 4, 8, 16), groups * pick(2, 4, 8, 16)
        case "transposed":
            dilated, stride, dilation = pick(2, 2, 3, 4), 1, 1
            groups = pick(1, 1, 1, channels)
            features = channels if groups > 1 else features
        case "pointwise":
            kernel, dilation = 1, 1
        case "tiled":
            stride, dilation = kernel, 1
        case "single":
            channels = features = 1
    batch = pick(1, 2, 8, 16, 32)
    side = round((2 ** rng.uniform(12, math.log2(LARGEST)) / (batch * channels)) ** (1 / ndim))
    size = max(1, min(side, 4096 if ndim == 1 else 224))
    window = (kernel - 1) * dilation + 1
    padding = ((pick(0, window - 1, window // 2),) * 2,) * ndim if dilated > 1 else pick("SAME", "SAME", "VALID")
    first, last = f"NC{space}", f"N{space}C"
    layout = pick((last, f"{space}IO", last), (last, f"{space}IO", last), (first, f"OI{space}", first))
    sizes = {"N": batch, "C": channels, "I": channels // groups, "O": features}
    arguments = {
        "window_strides": (stride,) * ndim,
        "padding": padding,
        "lhs_dilation": (dilated,) * ndim,
        "rhs_dilation": (dilation,) * ndim,
        "dimension_numbers": layout,
        "feature_group_count": groups,
    }
    return (
        tuple(sizes.get(e, size) for e in layout[0]),
        tuple(sizes.get(e, kernel) for e in layout[1]),
        arguments,
    )


def sweep(count: int, *, seed: int = 0, seconds: float = 0.2) -> Iterator[Trial]:
    """Yields count random convolutions, each timed against lax's.

    Args:
        count: how many.
        seed: of the random shapes and numbers.
        seconds: how long each is timed.

    Raises:
        ValueError: count is less than 1.

    Example:
        >>> (trial,) = sweep(1, seconds=0)
        >>> trial.ratio > 0
        True
    """
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")
    rng = np.random.default_rng(seed)
    for _ in range(count):
        lhs, rhs, arguments = draw(rng)
        served = explain_convolution(_form(lhs), _form(rhs), **arguments)
        names = tuple(formulation.name for formulation in served)
        x, k = (jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in (lhs, rhs))
        programs = [_program(f, x, k, arguments) for f in (conv_general_dilated, lax.conv_general_dilated)]
        runs, compiling = zip(*programs, strict=True)
        ours, theirs, repeats = 1.0, 0.0, 0
        while theirs < SLOW * ours and repeats < REPEATS:
            ours, theirs = (float(t) for t in np.median(bench.interleaved(runs, seconds), axis=1))
            repeats += 1
        yield Trial(lhs, rhs, arguments, names, theirs / ours, ours, theirs, compiling)


def _program(
    f: Callable[..., Any], x: jax.Array, k: jax.Array, arguments: dict[str, Any]
) -> tuple[Callable[[], Any], float]:
    """Returns y and both cotangents as a compiled program, and the seconds it took to make."""
    y = jax.eval_shape(lambda x, k: f(x, k, **arguments), x, k)
    g = jnp.cos(jnp.arange(y.size, dtype=jnp.float32)).reshape(y.shape)

    def run(x: jax.Array, k: jax.Array, g: jax.Array) -> Any:
        y, back = jax.vjp(lambda x, k: f(x, k, **arguments), x, k)
        return y, back(g)

    call, lowering, compiling, _ = bench.compile_bound(run, x, k, g)
    return call, lowering + compiling


def to_dict(trials: Sequence[Trial]) -> dict[str, Any]:
    """Returns trials in plain types, with the environment: what `vjplib bench --sweep N --json` writes."""
    return {"environment": bench.environment(), "trials": [{**asdict(trial), "slow": trial.slow} for trial in trials]}


def tables(trials: Sequence[Trial], *, lowest: int = 10) -> Iterator[Table]:
    """Yields how many times faster than lax's the trials are: quantiles, for each forward served, and the lowest."""
    table = bench.new_table(f"{len(trials)} random convolutions, forward and backward: how many times lax's speed")
    for heading in ("y is computed by", "number", "lowest", "median", "highest"):
        table.add_column(heading, justify="left" if heading.startswith("y") else "right")
    for name in ("all", *sorted({trial.served[0] for trial in trials})):
        ratios = [trial.ratio for trial in trials if name in ("all", trial.served[0])]
        quantiles = (f"{bench.short(float(q))} x" for q in np.quantile(ratios, (0, 0.5, 1)))
        table.add_row(name, str(len(ratios)), *quantiles)
    yield table
    table = bench.new_table(f"the lowest; below {SLOW} x in each of {REPEATS} runs, the choice is wrong")
    for heading in ("call", "x", "ms", "lax ms", "compile s", "lax s"):
        table.add_column(heading, justify="left" if heading == "call" else "right", overflow="fold")
    for trial in sorted(trials, key=lambda trial: trial.ratio)[:lowest]:
        ratio = f"[bold red]{bench.short(trial.ratio)}[/]" if trial.slow else bench.short(trial.ratio)
        times = (bench.short(1e3 * t) for t in (trial.ours, trial.theirs))
        table.add_row(str(trial), ratio, *times, *(f"{t:.2f}" for t in trial.compiling))
    yield table
