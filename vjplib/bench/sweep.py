"""Random convolutions checked in float32 and timed against lax's, to find a wrong result or a wrong algorithm."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from vjplib.bench import timing
from vjplib.bench.environment import environment
from vjplib.rules.convolution.general import conv_general_dilated, explain_convolution
from vjplib.verification.report import as_json

SLOW = 0.8
"""A convolution is slow if its speedup over lax is below this in each of `REPEATS` runs."""
WRONG = 1e-4
"""A larger error, relative to the largest entry, is not round-off: sums of a million numbers stay ten times below."""
REPEATS = 3
"""The number of times that a convolution is timed before it is called slow."""
LARGEST = 2**22
"""The largest size of x, and of y."""
MOST_WORK = 2**29
"""The largest number of multiplications of y."""


@dataclass(frozen=True)
class Trial:
    """One random convolution, checked and timed forward and backward with the output returned.

    Args:
        lhs: the shape of x.
        rhs: the shape of the kernel.
        arguments: keyword arguments of `conv_general_dilated`.
        served: the names of the algorithms of y, dx and dk on CPU.
        ratio: theirs / ours, in the last of up to `REPEATS` runs, which end once one is not slow.
        ours: our median time in seconds, and theirs lax's.
        compiling: seconds to lower and compile ours, and lax's.
        errors: `errors` of our y, dx and dk, and lax_errors those of lax's.
    """

    lhs: tuple[int, ...]
    rhs: tuple[int, ...]
    arguments: dict[str, Any]
    served: tuple[str, ...]
    ratio: float
    ours: float
    theirs: float
    compiling: tuple[float, ...]
    errors: tuple[float, ...]
    lax_errors: tuple[float, ...]

    @property
    def wrong(self) -> bool:
        """True if our y, dx or dk is wrong."""
        return max(self.errors) > WRONG

    @property
    def lax_wrong(self) -> bool:
        """True if lax's y, dx or dk is wrong."""
        return max(self.lax_errors) > WRONG

    @property
    def slow(self) -> bool:
        """True if lax was faster in each run, by more than the noise of timing."""
        return self.ratio < SLOW

    def __str__(self) -> str:
        """Return the call in one line, without the arguments that have their default."""
        given = {k: v for k, v in self.arguments.items() if k == "padding" or v not in (1, (1,) * (len(self.lhs) - 2))}
        layout = given.pop("dimension_numbers")
        forms = zip(layout, (self.lhs, self.rhs), strict=False)
        x, k = (axes + "x".join(map(str, shape)) for axes, shape in forms)
        return " ".join((x, k, *(f"{name}={value}" for name, value in given.items())))


Drawn = tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]
"""Shapes of x and of the kernel, and keyword arguments of `conv_general_dilated`."""


def draw(rng: np.random.Generator) -> Drawn:
    """Draw the shapes and arguments of a convolution of a practical size: 1 to 3 dimensions, any kind.

    A third of the convolutions have the pads of `unusual_pads`.

    Example:
        >>> lhs, rhs, arguments = draw(np.random.default_rng(0))
        >>> len(lhs) == len(rhs) == len(arguments["window_strides"]) + 2
        True
    """

    def fits(y: jax.ShapeDtypeStruct, rhs: tuple[int, ...], arguments: dict[str, Any]) -> bool:
        work = y.size * math.prod(rhs) // max(1, rhs[arguments["dimension_numbers"][1].index("O")])
        return 0 < y.size <= LARGEST and work <= MOST_WORK

    return accepted(lambda: _drawn(rng), fits)


def accepted(draw: Callable[[], Drawn], fits: Callable[..., bool] = lambda y, rhs, arguments: True) -> Drawn:
    """Draw convolutions until lax accepts one that fits.

    Args:
        draw: returns the shapes of x and of the kernel, and keyword arguments of `conv_general_dilated`.
        fits: takes the shape of y, that of the kernel and the arguments.

    Example:
        >>> windows = iter([(5, 1, 1), (2, 1, 1)])
        >>> arguments = {"window_strides": (1,), "padding": "VALID", "dimension_numbers": ("NHC", "HIO", "NHC")}
        >>> accepted(lambda: ((1, 3, 1), next(windows), arguments), lambda y, *_: y.size > 0)[1]
        (2, 1, 1)
    """
    while True:
        lhs, rhs, arguments = draw()
        try:
            y = jax.eval_shape(lambda x, k, a=arguments: lax.conv_general_dilated(x, k, **a), *map(_form, (lhs, rhs)))
        except ValueError:  # the window exceeds the padded input
            continue
        if fits(y, rhs, arguments):
            return lhs, rhs, arguments


def _form(shape: tuple[int, ...]) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def _drawn(rng: np.random.Generator) -> Drawn:
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
    if pick(True, False, False):  # XLA:CPU's fault needs such pads on every axis
        same = unusual_pads(rng, window)
        padding = (same,) * ndim if pick(True, False) else tuple(unusual_pads(rng, window) for _ in range(ndim))
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
    return tuple(sizes.get(e, size) for e in layout[0]), tuple(sizes.get(e, kernel) for e in layout[1]), arguments


def unusual_pads(rng: np.random.Generator, window: int) -> tuple[int, int]:
    """Draw the pads of an axis: one-sided, cropping, or at least as long as the window, which is the dilated kernel.

    Example:
        >>> unusual_pads(np.random.default_rng(0), 3)
        (8, 8)
    """
    beyond, cut, few = int(rng.integers(window, 2 * window + 4)), -int(rng.integers(1, 4)), int(rng.integers(1, 3))
    one_sided, cropping = [(beyond, 0), (0, beyond), (beyond, beyond)], [(cut, 0), (0, cut), (cut, few), (few, cut)]
    pads = [*one_sided, *cropping, (cut, beyond), (beyond, cut)]
    return pads[int(rng.integers(len(pads)))]


def exact(x: Any, k: Any, g: Any, arguments: dict[str, Any]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Compute y, dx and dk of a convolution in float64 with NumPy alone: one matrix product for each tap.

    g is the cotangent of y; arguments are those of `conv_general_dilated`, with one group of the batch.

    Example:
        >>> x, k = np.ones((1, 1, 3)), np.ones((1, 1, 2))
        >>> arguments = {"window_strides": (1,), "padding": ((1, 0),), "dimension_numbers": ("NCH", "OIH", "NCH")}
        >>> y, dx, dk = exact(x, k, x, arguments)
        >>> y.tolist(), dx.tolist(), dk.tolist()
        ([[[1.0, 2.0, 2.0]]], [[[2.0, 2.0, 1.0]]], [[[2.0, 3.0]]])
    """
    orders = lax.conv_dimension_numbers(x.shape, k.shape, arguments["dimension_numbers"])
    given = zip((x, k, g), orders, strict=True)
    x, k, g = (np.asarray(np.transpose(a, order), np.float64, order="C") for a, order in given)
    shapes = (batch, _, *size), (_, depth, *kernel), (_, _, *out) = x.shape, k.shape, g.shape
    groups, ones = arguments.get("feature_group_count", 1), (1,) * len(size)
    x = x.reshape(batch, groups, depth, *size)
    k = k.reshape(groups, -1, depth, *kernel)
    g = g.reshape(batch, groups, -1, *out)
    strides, dilation = arguments["window_strides"], arguments.get("rhs_dilation", ones)
    pads, dilated = arguments["padding"], arguments.get("lhs_dilation", ones)
    if isinstance(pads, str):
        window = [(n - 1) * r + 1 for n, r in zip(kernel, dilation, strict=True)]
        pads = lax.padtype_to_pads(size, window, strides, pads)
    dx, dk, y = (np.zeros(a.shape) for a in (x, k, g))
    for tap in np.ndindex(*kernel):
        axes = zip(tap, size, out, pads, strides, dilated, dilation, strict=True)
        at_x, at_y = zip(*(_read_by_tap(*axis) for axis in axes), strict=True)
        ks = np.ascontiguousarray(k[..., *tap])
        xs, gs = (a.reshape(*a.shape[:3], -1) for a in (x[..., *at_x], g[..., *at_y]))
        y[..., *at_y] += _product(ks, xs).reshape(y[..., *at_y].shape)
        dx[..., *at_x] += _product(np.swapaxes(ks, 1, 2), gs).reshape(dx[..., *at_x].shape)
        dk[..., *tap] = (gs @ np.swapaxes(xs, 2, 3)).sum(0)
    found = zip((dx, dk, y), shapes, orders, strict=True)
    dx, dk, y = (np.transpose(a.reshape(shape), np.argsort(order)) for a, shape, order in found)
    return y, dx, dk


def _read_by_tap(j: int, n: int, m: int, pad: tuple[int, int], stride: int, dilated: int, r: int) -> list[slice]:
    """Return where tap j reads x, of n numbers along an axis, and for which of the m numbers of y."""
    at = np.arange(m) * stride + j * r - pad[0]
    reads = np.flatnonzero((at % dilated == 0) & (at >= 0) & (at < n * dilated))
    return [slice(a[0], a[-1] + 1, *np.diff(a)[:1]) if a.size else slice(0) for a in (at[reads] // dilated, reads)]


def _product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return a @ b for each group; where one number is summed over, an elementwise product is many times faster."""
    return a * b if b.shape[-2] == 1 else a @ b


def errors(products: Sequence[Any], right: Sequence[np.ndarray]) -> tuple[float, ...]:
    """Return the largest error of each array, relative to the largest entry of the right one; inf for NaN.

    Example:
        >>> errors([np.array([1.0, 2.0]), np.array([np.nan])], [np.array([1.0, 4.0]), np.array([1.0])])
        (0.5, inf)
    """
    gaps = (np.max(np.abs(np.asarray(a, np.float64) - b)) for a, b in zip(products, right, strict=True))
    shares = (gap / max(np.max(np.abs(b)), np.finfo(np.float32).tiny) for gap, b in zip(gaps, right, strict=True))
    return tuple(float(np.nan_to_num(share, nan=np.inf, posinf=np.inf)) for share in shares)


def sweep(count: int, *, seed: int = 0, seconds: float = 0.2) -> Iterator[Trial]:
    """Check count random convolutions against float64, and time them against lax's.

    The float32 y, dx and dk of the timed programs are compared in full with those of `exact`. lax's time counts even
    where its result is wrong.

    Args:
        count: the number of convolutions.
        seed: seed of the random shapes and numbers.
        seconds: how long to time each, as in `vjplib.bench.timing.interleaved`.

    Raises:
        ValueError: count is less than 1.

    Example:
        for trial in sweep(10):
            print(trial, trial.ratio, trial.wrong)
    """
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")
    rng = np.random.default_rng(seed)
    for _ in range(count):
        lhs, rhs, arguments = draw(rng)
        served = tuple(algorithm.name for algorithm in explain_convolution(_form(lhs), _form(rhs), **arguments))
        x, k = (jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in (lhs, rhs))
        y = jax.eval_shape(lambda x, k, a=arguments: lax.conv_general_dilated(x, k, **a), x, k)
        g = jnp.cos(jnp.arange(y.size, dtype=jnp.float32)).reshape(y.shape)
        convolutions = conv_general_dilated, lax.conv_general_dilated
        programs = [timing.compile_bound(_products(f, arguments), x, k, g) for f in convolutions]
        runs, compiling = [p.run for p in programs], tuple(p.lowering + p.compiling for p in programs)
        ours, theirs, repeats = 1.0, 0.0, 0
        while theirs < SLOW * ours and repeats < REPEATS:
            ours, theirs = (float(t) for t in np.median(timing.interleaved(runs, seconds), axis=1))
            repeats += 1
        right = exact(x, k, g, arguments)
        found = (errors(run(), right) for run in runs)
        yield Trial(lhs, rhs, arguments, served, theirs / ours, ours, theirs, compiling, *found)


def _products(f: Callable[..., Any], arguments: dict[str, Any]) -> Callable[..., Any]:
    # All arrays are arguments: XLA folds constants with another convolution than the one that it would run.
    def run(x: jax.Array, k: jax.Array, g: jax.Array) -> Any:
        y, back = jax.vjp(lambda x, k: f(x, k, **arguments), x, k)
        return y, *back(g)

    return run


def to_dict(trials: Sequence[Trial]) -> dict[str, Any]:
    """Return trials and the environment in plain types, as `vjplib bench --sweep N --json` writes them."""
    rows = [{**asdict(t), "slow": t.slow, "wrong": t.wrong, "lax_wrong": t.lax_wrong} for t in trials]
    return {"environment": environment(), "trials": as_json(rows)}


def remarks(trials: Sequence[Trial]) -> Iterator[str]:
    """Yield a line with the number of wrong results of lax, and a line with our largest error."""
    yield f"lax is wrong in {sum(trial.lax_wrong for trial in trials)} of {len(trials)}"
    largest = max(max(trial.errors) for trial in trials)
    yield f"our largest error of y, dx and dk is {largest:.1e} of the largest entry"
