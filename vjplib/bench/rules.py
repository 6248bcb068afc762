"""Rules timed beside JAX's derivative of what users would otherwise call, all in one interleaved run.

Four programs are timed of each function: the forward alone; forward and pullback with the output returned; both with
the output reduced at once; and both with the output followed by an activation and a norm, as in a network. The last two
are measured apart because a compiler may fuse a forward into what consumes it, for better or worse.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vjplib.bench.environment import environment
from vjplib.bench.timing import Compiled, Cost, compile_bound, costs, interleaved, require_equal
from vjplib.compat import x64
from vjplib.rule import Case, Rule
from vjplib.verification.call import CallUnderTest, Leaves
from vjplib.verification.claims.accuracy import tail_error
from vjplib.verification.claims.residuals import residual_bytes

SLOWER = 1.1
"""A rule is called slower if it takes more than this multiple of the baseline's time; then its reason is printed."""


@dataclass(frozen=True)
class Row:
    """One program of a rule beside the same program of a baseline.

    Args:
        rule: the rule's name.
        case: the call's sizes.
        baseline: the baseline's name.
        measure: a key of `MEASURES`.
        ours: the cost of the rule, and theirs that of the baseline under autodiff.
        reason: why the rule exists.
        error: the largest relative error of a component of the rule's gradient in its tails, and baseline_error that of
            the baseline under autodiff; None if not measured.

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
        """The baseline's median time divided by the rule's: above 1 the rule is faster."""
        return self.theirs.median / self.ours.median

    @property
    def slower(self) -> bool:
        """True if the rule takes more than `SLOWER` times as long as the baseline."""
        return self.ours.median > SLOWER * self.theirs.median


@dataclass(frozen=True)
class Growth:
    """How the time of a function grows with one dimension.

    Args:
        rule: the rule whose record names the function.
        name: the function's name in the record.
        dimension: the name of the dimension that grows.
        seconds: the shortest time at each of its sizes.
    """

    rule: str
    name: str
    dimension: str
    sizes: tuple[int, ...]
    seconds: tuple[float, ...]

    @property
    def exponent(self) -> float:
        """Slope of log time over log size, by least squares.

        Example:
            >>> round(Growth("f", "slow", "n", (1, 2, 4), (1e-3, 4e-3, 16e-3)).exponent, 6)
            2.0
        """
        return float(np.polyfit(np.log2(self.sizes), np.log2(self.seconds), 1)[0])


def bench_rule(rule: Rule, *, seconds: float = 1.0) -> list[Row]:
    """Time the benchmark cases of a record: a row per case, baseline and measure.

    Rule and baselines are called in turn, round after round, so that other load on the machine slows all alike.

    Args:
        rule: the record; its `bench` cases are called in float32.
        seconds: how long to time each measure of each case, as in `vjplib.bench.timing.interleaved`.

    Returns:
        Rows in the order of the record's cases, then of its baselines, then of `MEASURES`.

    Raises:
        ValueError: rule and baseline are not the same function, or seconds is negative.

    Example:
        (rule,) = vjplib.find("softmax")
        for row in bench_rule(rule):
            print(row.case, row.baseline, row.measure, row.ratio)
    """
    if seconds < 0:
        raise ValueError(f"seconds must be at least 0, got {seconds}")
    return [row for case in rule.bench for row in _bench_case(rule, case, seconds)]


def bench_growth(rule: Rule, *, seconds: float = 1.0) -> list[Growth]:
    """Time each function of a record's `scaling` at growing sizes, which are called in turn.

    The shortest time at each size counts, because other load on the machine can only add to a time.

    Args:
        rule: the record.
        seconds: how long to time each function, as in `bench_rule`.
    """
    growths = []
    for name, (fn, case, (dimension, sizes)) in rule.scaling.items():
        calls = (case.call(np.random.default_rng(0), np.float32, **{dimension: n}) for n in sizes)
        programs = [compile_bound(lambda a, kw, f=fn: f(*a, **kw), *jax.device_put(tuple(call))) for call in calls]
        times = interleaved([program.run for program in programs], seconds)
        growths.append(Growth(rule.name, name, dimension, sizes, tuple(float(t) for t in times.min(axis=1))))
    return growths


# ------------------------------------------------------------------------------------------------------- what is timed


def _forward(f: Callable[..., Leaves], leaves: Leaves, gs: Leaves) -> Any:
    return f(*leaves)


def _returned(f: Callable[..., Leaves], leaves: Leaves, gs: Leaves) -> Any:
    ys, back = jax.vjp(f, *leaves)
    return ys, back(gs)


def _reduced(f: Callable[..., Leaves], leaves: Leaves, gs: Leaves) -> Any:
    # A sum of products, not jnp.vdot: XLA fuses nothing into a dot.
    return jax.value_and_grad(lambda xs: sum(jnp.sum(y * g) for y, g in zip(f(*xs), gs, strict=True)))(leaves)


def _followed(f: Callable[..., Leaves], leaves: Leaves, gs: Leaves) -> Any:
    return _reduced(lambda *xs: tuple(_normed_silu(y) for y in f(*xs)), leaves, gs)


def _normed_silu(y: jax.Array) -> jax.Array:
    """Return silu of y with mean 0 and variance 1 along y's last axis longer than 1."""
    axis = next((i for i in reversed(range(y.ndim)) if y.shape[i] > 1), None)
    y = jax.nn.silu(y)
    centred = y - jnp.mean(y, axis, keepdims=True)
    return centred * jax.lax.rsqrt(jnp.mean(centred**2, axis, keepdims=True) + 1e-5)


MEASURES = {"forward": _forward, "returned": _returned, "reduced": _reduced, "followed": _followed}
"""The programs timed: y; (y, g^T J); (<y, g>, g^T J); and (<n, g>, its gradient) for n the norm of silu of y."""


def _program(subject: CallUnderTest, fn: Callable[..., Any], measure: str) -> Callable[..., Any]:
    """Return a program that takes every array of the call, integers and masks too, so that none is a constant."""

    def run(args: tuple[Any, ...], arrays: Mapping[str, Any], gs: Leaves) -> Any:
        flat = subject.at(args, {**subject.kwargs, **arrays}, subject.case).flat(fn)
        leaves = jax.tree.leaves(args)
        return MEASURES[measure](flat, tuple(leaves[i] for i in subject.differentiable), gs)

    return run


def _bench_case(rule: Rule, case: Case, seconds: float) -> Iterator[Row]:
    subject = subject_at(rule, case)
    functions = {rule.name: rule.fn, **rule.baselines}
    # Cases without named dimensions have the sizes of networks, where XLA's float64 convolution takes minutes.
    _require_agreement(subject, functions, np.float64 if case.dims else np.float32)
    residuals = [residual_bytes(subject.flat(fn), *subject.leaves()) for fn in functions.values()]
    timed = {}
    for measure in MEASURES:
        programs = compiled(subject, functions.values(), measure)
        kept = [0] * len(programs) if measure == "forward" else residuals
        timed[measure] = dict(zip(functions, costs(programs, kept, seconds), strict=True))
    errors = {name: rule.tails and tail_error(CallUnderTest(fn, ()), rule.tails) for name, fn in functions.items()}
    for baseline in rule.baselines:
        accuracy = errors[rule.name], errors[baseline]
        for measure, of in timed.items():
            yield Row(rule.name, subject.case, baseline, measure, of[rule.name], of[baseline], rule.reason, *accuracy)


def subject_at(rule: Rule, case: Case, dtype: Any = np.float32) -> CallUnderTest:
    """Return a rule at a case, with floating arguments of a dtype."""
    call = case.call(np.random.default_rng(0), dtype)
    return CallUnderTest(rule.fn, call.args, call.kwargs, case=case.name)


def compiled(subject: CallUnderTest, functions: Iterable[Callable[..., Any]], measure: str) -> list[Compiled]:
    """Return the program of `MEASURES` for each function, compiled and bound to the arrays of the call."""
    arrays = jax.device_put((subject.args, _arrays(subject), subject.cotangents(subject.leaves())))
    return [compile_bound(_program(subject, fn, measure), *arrays) for fn in functions]


def _arrays(subject: CallUnderTest) -> dict[str, np.ndarray]:
    return {name: value for name, value in subject.kwargs.items() if isinstance(value, np.ndarray)}


def _require_agreement(subject: CallUnderTest, functions: Mapping[str, Callable[..., Any]], dtype: Any) -> None:
    """Raise ValueError unless all functions give the first one's outputs and cotangents, in this dtype."""
    (ours, first), *baselines = functions.items()
    with x64():
        leaves = subject.leaves(dtype)
        call = subject.rebuild(leaves), _arrays(subject), subject.cotangents(leaves)
        shapes = [y.shape for y in jax.eval_shape(_program(subject, first, "forward"), *call)]
        expected = jax.jit(_program(subject, first, "returned"))(*call)
        outputs = [f"output {i}" if len(expected[0]) > 1 else "output" for i in range(len(expected[0]))]
        names = [f"at {subject.case} the {what}" for what in (*outputs, *(f"cotangent of {a}" for a in subject.names))]
        for baseline, fn in baselines:
            demand = f"{ours} and its baseline {baseline} must be one function to be timed side by side"
            theirs = [y.shape for y in jax.eval_shape(_program(subject, fn, "forward"), *call)]
            if theirs != shapes:
                raise ValueError(f"{demand}, but at {subject.case} outputs have shapes {shapes} against {theirs}")
            require_equal(demand, names, expected, jax.jit(_program(subject, fn, "returned"))(*call))


def to_dict(rows: Sequence[Row], growths: Sequence[Growth] = ()) -> dict[str, Any]:
    """Return rows, growths and the environment in plain types, as `vjplib bench --json` writes them."""
    return {
        "environment": environment(),
        "rows": [{**asdict(row), "ratio": row.ratio, "slower": row.slower} for row in rows],
        "growth": [{**asdict(growth), "exponent": growth.exponent} for growth in growths],
    }


def remarks(rows: Sequence[Row]) -> Iterator[str]:
    """Yield a line for each row whose rule is slower than its baseline, with the reason why the rule exists."""
    for row in (row for row in rows if row.slower):
        time = f"{row.rule} [{row.case}] {row.measure}: {1 / row.ratio:.2f} x the time of {row.baseline}"
        yield f"{time}. Reason for the rule: {row.reason or 'none is given'}"
