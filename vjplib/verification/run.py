"""verify: all claims of one function, or of one record, gathered into a report."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vjplib.compat import custom_vjp_of, require_passes
from vjplib.rule import Case, Edge, Rule
from vjplib.verification import (
    accuracy,
    contract,
    edges,
    growth,
    linearity,
    locate,
    order_two,
    other_calls,
    power,
    residuals,
    sharding,
    taylor,
    transforms,
    value,
)
from vjplib.verification.diagnose import raised
from vjplib.verification.guard import TIME_LIMIT, as_finding, in_time, watched
from vjplib.verification.report import CLAIMS, Finding, Report
from vjplib.verification.subject import Static, Subject, as_taken_by_jax

Effort = Literal["quick", "standard", "deep"]
Check = Callable[[Subject], Iterator[Finding]]

CHECKS: dict[str, dict[str, Check]] = {
    "quick": {
        "V1": contract.check,
        "V2": lambda s: value.check(s, scales=(1.0,)),
        "V3": linearity.check,
        "V4": lambda s: transforms.check(s, eager=False),
        "V5": lambda s: order_two.check(s, forwards=False),
        "V7": residuals.check,
        "V8": lambda s: growth.check(s, compiled=False),
        "V9": lambda s: taylor.check(s, always=False),
        "V10": edges.check,
        "V11": lambda s: accuracy.check(s, dtypes=_halves(s)),
        "V12": locate.check,
    },
    "standard": {
        "V1": contract.check,
        "V2": value.check,
        "V3": linearity.check,
        "V4": transforms.check,
        "V5": order_two.check,
        "V6": sharding.check,
        "V7": residuals.check,
        "V8": growth.check,
        "V9": taylor.check,
        "V10": edges.check,
        "V11": accuracy.check,
        "V12": locate.check,
        "V13": power.check,
    },
}
CHECKS["deep"] = CHECKS["standard"]
_OTHER_CASES: dict[str, dict[str, Check]] = {
    "quick": {"V1": lambda s: contract.check(s, dtypes=()), "V2": value.in_float64},
    "standard": {claim: CHECKS["quick"][claim] for claim in ("V1", "V2", "V3", "V4")} | {"V5": order_two.check},
}
_WITHOUT_ORACLE = ("V1", "V3", "V4", "V6", "V9", "V13")
_BY_SHAPES_ALONE = ("V1", "V7", "V8")
QUICK_CASES = 2  # whose values are compared in "quick"
_RANDOM_SIZES = {"quick": 0, "standard": 0, "deep": 20}


class NotVerifiedError(AssertionError):
    """Raised by `assert_verified`; its `report` holds every finding."""

    def __init__(self, report: Report) -> None:
        super().__init__(f"{report.name} is not verified\n{report}")
        self.report = report

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.report,), self.__dict__


def verify(
    fn: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any] | None = None,
    *,
    reference: Callable[..., Any] | None = None,
    effort: Effort = "standard",
    claims: Sequence[str] | None = None,
    order_two: bool = True,
    residual_bytes: int | None = None,
    seed: int = 0,
    time_limit: float = TIME_LIMIT,
) -> Report:
    """Returns the proof sheet of fn at a call: each claim on its derivative, shown or refuted.

    The arguments give shapes and magnitudes; dtypes are varied, numbers scaled, and axes enlarged from there. Distinct
    prime sizes, and a batch of at least two, make swapped axes show.

    Args:
        fn: any function of arrays, most of all a `jax.custom_vjp` or a function that calls some.
        args: positional arguments, pytrees of arrays. Floating leaves are differentiated, integers and booleans not.
            What is no array (an axis, a function, anything in a place named by nondiff_argnums) is passed on as it is.
        kwargs: keyword arguments, not differentiated.
        reference: the same function, written so that JAX may differentiate it. None for what fn itself computes, the
            custom rules inside it stripped.
        effort: "quick" leaves out half precision that the call does not have itself, but for its contract (V1), several
            devices (V6), power (V13),
            forward over reverse but for its tracing, checkpoint with all saved, runs without jit, compiling at larger
            sizes, autodiff's growth where the rule's is in proportion, and other sizes of the axes: "standard" makes
            each one and one more, "deep" some others too.
        claims: which to examine, as in `("V1", "V2")`; None for all that the effort includes.
        order_two: whether second derivatives are offered; False verifies that they are refused.
        residual_bytes: the bytes that the call in float32 is claimed to keep for its backward.
        seed: of all random numbers; the same seed gives the same report.
        time_limit: seconds that a claim may take before it fails for not ending. Claims run in threads to that end;
            `math.inf` runs them in the caller's own, as a debugger wants it.

    Returns:
        A `Report`: `.ok`, `.findings` and `.failures`; prints as a table.

    Raises:
        TypeError: fn is not callable, args is not a tuple or list, or claims is a single string.
        ValueError: args holds nothing to differentiate, fn returns nothing that has a derivative or is a custom_vjp
            without `defvjp`, effort or claims are not known, or time_limit is not positive.

    Example:
        >>> import vjplib
        >>> wrong = jax.custom_vjp(jnp.tanh)
        >>> wrong.defvjp(lambda x: (jnp.tanh(x), jnp.tanh(x)), lambda y, g: (g * (1 - y),))
        >>> x = np.linspace(-1, 1, 7, dtype=np.float32)
        >>> vjplib.verify(vjplib.tanh, (x,), effort="quick").ok, vjplib.verify(wrong, (x,), effort="quick").ok
        (True, False)
    """
    start = time.perf_counter()
    options = {
        "reference": reference,
        "order_two": order_two,
        "residuals": residual_bytes,
        "seed": seed,
        "hurried": effort == "quick",
    }
    selected, run = _selected(effort, claims, seed), _Run(time_limit)
    with watched((fn,), run.outside):
        subject = _at_call(fn, args, {} if kwargs is None else kwargs, run, **options)
        jobs = [_Job(claim, check, subject) for claim, check in selected]
        if claims is None or "V2" in claims:
            jobs.append(_Job("V2", lambda s: other_calls.check(s, effort), subject))
        findings = run.all(jobs)
    return _report(_name(fn), findings, run, start, claims)


def _report(name: str, findings: Sequence[Finding], run: "_Run", start: float, claims: Sequence[str] | None) -> Report:
    outside = [f for f in run.outside if claims is None or f.claim in claims]
    ordered = sorted([*findings, *outside], key=lambda f: list(CLAIMS).index(f.claim))
    return Report(name, tuple(ordered), time.perf_counter() - start)


def _at_call(
    fn: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], run: "_Run", **options: Any
) -> Subject:
    """Returns the subject that a user's call makes, or refuses it."""
    if not callable(fn):
        raise TypeError(f"fn must be callable, got {fn!r}")
    if not isinstance(kwargs, Mapping):
        raise TypeError(f"kwargs must be a mapping of keyword arguments, got {kwargs!r}")
    if not isinstance(args, (tuple, list)):
        raise TypeError(f"args must be a tuple of positional arguments, got {type(args).__name__}")
    parts = custom_vjp_of(fn)
    if parts:
        require_passes(parts)
    static = parts.static if parts else ()
    arrays = tuple(Static(a) if i in static or _is_static(a) else jax.tree.map(_array, a) for i, a in enumerate(args))
    sizes = _axis_sizes(arrays)
    subject = Subject(fn, arrays, kwargs, sizes=sizes, resize=lambda new: (_by_size(arrays, new), {}), **options)
    if not subject.differentiable:
        raise ValueError(f"args must hold at least one floating array to differentiate, got {_described(arrays)}")
    if not any(np.size(leaf) for leaf in subject.leaves()):
        raise ValueError(f"args must hold at least one number to differentiate, got {_described(arrays)}")
    outputs = in_time(lambda: subject.outputs(subject.leaves()), run.seconds)
    if outputs is None:
        run.hung = True
        run.outside.append(as_finding("V1", None, run.seconds, ""))
    if outputs == ():  # what fn raises is for the claims to report
        raise ValueError("fn must return at least one floating array, to have a derivative; it returned none")
    return subject


def assert_verified(fn: Callable[..., Any], args: Sequence[Any], *rest: Any, **options: Any) -> None:
    """Raises unless every claim that `verify` examines holds; takes the same arguments.

    Raises:
        NotVerifiedError: an AssertionError whose message is the report's table and its failures.

    Example:
        >>> import vjplib
        >>> vjplib.assert_verified(vjplib.sigmoid, (np.float32([0.5, -1.0, 2.0]),), effort="quick")
    """
    report = verify(fn, args, *rest, **options)
    if not report.ok:
        raise NotVerifiedError(report)


def verify_rule(
    rule: Rule,
    *,
    effort: Effort = "standard",
    claims: Sequence[str] | None = None,
    seed: int = 0,
    time_limit: float = TIME_LIMIT,
) -> Report:
    """Returns the proof sheet of a record: every claim at its first case, the main ones at all, and its named edges.

    Args:
        rule: the record.
        effort: "quick" examines the first case, the contract at all, the value at one more in float64, and no named
            edge; "standard" the main claims at every case; "deep" every claim at every case, and each case at 20 random
            sizes.
        claims: which to examine; None for all that the effort includes.
        seed: of all random numbers.
        time_limit: seconds that a claim may take at one case, as `verify` has it.

    Raises:
        ValueError: effort or claims are not known, or time_limit is not positive.

    Example:
        >>> from vjplib.rule import find
        >>> verify_rule(find("sigmoid")[0], effort="quick", claims=("V1", "V7")).ok
        True
    """
    return verify_part(rule, claims, claims, effort=effort, seed=seed, time_limit=time_limit)


def verify_part(
    rule: Rule,
    claims: Sequence[str] | None,
    whole: Sequence[str] | None,
    *,
    effort: Effort = "standard",
    seed: int = 0,
    time_limit: float = TIME_LIMIT,
) -> Report:
    """Returns what `verify_rule` does for some of the claims, and what of the whole is seen from outside meanwhile.

    Args:
        rule: the record.
        claims: which to examine; None for all that the effort includes.
        whole: which the report is of, once all parts are done: what the rule does to the run is told if these hold it.
        effort: as `verify_rule` has it.
        seed: of all random numbers.
        time_limit: seconds that a claim may take at one case.
    """
    start = time.perf_counter()
    selected, run = dict(_selected(effort, claims, seed)), _Run(time_limit)
    others = selected if effort == "deep" else _OTHER_CASES[effort]
    with watched((rule.fn,), run.outside):
        jobs = []
        for i, case in enumerate(rule.cases):
            subject = replace(at_case(rule, case, seed), hurried=effort == "quick")
            checks = selected if i == 0 else {claim: others[claim] for claim in selected if claim in others}
            if effort == "quick" and i >= QUICK_CASES:
                checks.pop("V2", None)
            jobs += [_Job(claim, check, subject) for claim, check in checks.items()]
            for number in range(_RANDOM_SIZES[effort]):
                jobs += _at_random_sizes(rule, case, (seed, i, number), claims)
        if effort != "quick" and (claims is None or "V10" in claims):
            named = at_case(rule, rule.cases[0], seed)
            jobs += [_Job("V10", lambda s, part=part: edges.check_named(s, part), named) for part in _alike(rule.edges)]
        findings = run.all(jobs)
    return _report(rule.name, findings, run, start, whole)


def _alike(named: Sequence[Edge]) -> list[list[Edge]]:
    """Returns the edges in groups: those that may share compiled programs stand together."""
    groups: dict[str, list[Edge]] = {}
    for edge in named:
        groups.setdefault(repr(([np.shape(a) for a in edge.args], edge.kwargs)), []).append(edge)
    return list(groups.values())


def _at_random_sizes(rule: Rule, case: Case, seed: tuple[int, ...], claims: Sequence[str] | None) -> Iterator["_Job"]:
    rng = np.random.default_rng(seed)
    sizes = case.sizes(rng)
    if sizes == dict(case.dims):
        return
    subject = at_case(rule, case, int(rng.integers(2**31)), **sizes)
    for claim, check in (("V2", lambda s: value.check(s, scales=(1.0,))), ("V7", residuals.check)):
        if claims is None or claim in claims:
            yield _Job(claim, check, subject)


def examine(
    subject: Subject,
    effort: Effort = "standard",
    claims: Sequence[str] | None = None,
    time_limit: float = TIME_LIMIT,
) -> list[Finding]:
    """Returns the findings of each claim on one subject, in the order of the claims; arguments as `verify` has them."""
    return _Run(time_limit).all([_Job(claim, check, subject) for claim, check in _selected(effort, claims)])


class _Job(NamedTuple):
    """A claim to examine, by a check, of a subject."""

    claim: str
    check: Check
    subject: Subject


class _Run:
    """The jobs of one report, one after the other, each in time.

    Args:
        seconds: how long a job may take.

    Once one did not end, no other is begun: it would not end either.
    """

    def __init__(self, seconds: float) -> None:
        if isinstance(seconds, bool) or not isinstance(seconds, (int, float)):
            raise TypeError(f"time_limit must be a number of seconds, got {seconds!r}")
        if not seconds > 0:
            raise ValueError(f"time_limit must be a positive number of seconds, got {seconds!r}")
        self.seconds, self.hung = seconds, False
        self.outside: list[Finding] = []
        self.too_large: dict[int, str | None] = {}  # by subject

    def all(self, jobs: Sequence[_Job]) -> list[Finding]:
        """Returns the findings of all jobs, in their order."""
        return [finding for job in jobs for finding in self.one(job)]

    def one(self, job: _Job) -> list[Finding]:
        """Returns the findings of a job; what it raises is a failure of the function, never of the run."""
        claim, check, subject = job
        if self.hung:
            message = "not examined, for what was examined before did not end"
            return [Finding(claim, "skipped", message, case=subject.case)]
        findings: list[Finding] = []  # those before it raises count

        def work() -> list[Finding]:
            if reason := self._undecidable(claim, subject):
                findings.append(Finding(claim, "skipped", reason, case=subject.case))
            else:
                findings.extend(check(subject))
            return findings

        outcome = in_time(work, self.seconds)
        if isinstance(outcome, list):
            return outcome
        self.hung = self.hung or outcome is None
        trap = raised(subject, outcome) if isinstance(outcome, Exception) else ""
        return [*findings, replace(as_finding(claim, outcome, self.seconds, subject.case), trap=trap)]

    def _undecidable(self, claim: str, subject: Subject) -> str | None:
        """Returns why a claim cannot be examined, or None."""
        if claim not in _WITHOUT_ORACLE and subject.undifferentiable is not None:
            return f"JAX cannot differentiate the oracle ({subject.undifferentiable}); give a reference"
        if claim in _BY_SHAPES_ALONE:
            return None
        if id(subject) not in self.too_large:
            self.too_large[id(subject)] = growth.too_large(subject)
        return self.too_large[id(subject)]


def at_case(rule: Rule, case: Case, seed: int = 0, **sizes: int) -> Subject:
    """Returns the subject that a record and one of its cases make; the first case carries the residual claim.

    Args:
        rule: the record.
        case: one of its cases.
        seed: of the arguments drawn.
        **sizes: in place of the case's own.
    """
    main = case is rule.cases[0]
    dims = {**case.dims, **sizes}
    call = case.call(np.random.default_rng(seed), np.float32, **dims)
    described = [f"{k}={v}" for k, v in dims.items()]
    described += [f"{k}=mask" if isinstance(v, np.ndarray) else f"{k}={v}" for k, v in call.kwargs.items()]
    return Subject(
        rule.fn,
        call.args,
        call.kwargs,
        reference=rule.reference,
        seed=seed,
        order_two=rule.order_two,
        residuals=rule.residual_bytes(**dims) if main and rule.residual_bytes else None,
        compared=next(iter(rule.baselines.values()), None) if main else None,
        sizes={k: v for k, v in dims.items() if k not in case.fixed} if case.growth else {},
        resize=lambda changed: case.avals({**dims, **changed}),
        case=" ".join(described) or "scalars",
        tails=rule.tails if main else None,
    )


def must_be_known(effort: str, claims: Sequence[str] | None) -> None:
    """Refuses an effort and claims that do not exist.

    Raises:
        TypeError: claims is a single string.
        ValueError: the effort, or one of the claims, is not known.

    Example:
        >>> must_be_known("quick", "V2")
        Traceback (most recent call last):
        TypeError: claims must be a sequence of names, such as ('V2',), got 'V2'
    """
    if effort not in CHECKS:
        raise ValueError(f"effort must be one of {', '.join(CHECKS)}, got {effort!r}")
    if isinstance(claims, str):
        raise TypeError(f"claims must be a sequence of names, such as ('V2',), got {claims!r}")
    if unknown := sorted(set(claims or ()) - set(CLAIMS)):
        raise ValueError(f"claims must be among {', '.join(CLAIMS)}, got {', '.join(unknown)}")


def _selected(effort: str, claims: Sequence[str] | None, seed: int = 0) -> list[tuple[str, Check]]:
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or seed < 0:
        raise ValueError(f"seed must be an integer of at least 0, got {seed!r}")
    must_be_known(effort, claims)
    checks = CHECKS[effort] if claims is None else {**CHECKS["standard"], **CHECKS[effort]}
    return [(claim, check) for claim, check in checks.items() if claims is None or claim in claims]


def _halves(subject: Subject) -> list[str]:
    """Returns the dtypes of half precision among the call's own."""
    return sorted({a.dtype.name for a in subject.leaves()} & {"float16", "bfloat16"})


def _is_static(argument: Any) -> bool:
    """Returns whether nothing in an argument is an array or a Python float."""
    leaves = jax.tree.leaves(argument)
    return bool(leaves) and not any(isinstance(a, (float, complex)) or hasattr(a, "dtype") for a in leaves)


def _array(leaf: Any) -> Any:
    if not hasattr(leaf, "dtype") and not isinstance(leaf, (bool, int, float, complex)):
        raise TypeError(f"args must be pytrees of arrays and numbers, or hold none at all, got {leaf!r} among arrays")
    leaf = as_taken_by_jax(leaf)
    jnp.result_type(leaf)  # raises for what JAX does not take
    return leaf


def _axis_sizes(arrays: tuple[Any, ...]) -> dict[str, int]:
    """Returns a name for each axis size above one: equal sizes are taken for one dimension."""
    sizes = sorted({n for leaf in jax.tree.leaves(arrays) for n in np.shape(leaf) if n > 1})
    return {f"the axes of size {n}": n for n in sizes}


def _by_size(arrays: tuple[Any, ...], changed: Mapping[str, int]) -> tuple[Any, ...]:
    new = {n: changed.get(f"the axes of size {n}", n) for n in _axis_sizes(arrays).values()}

    def struct(leaf: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(tuple(new.get(n, n) for n in np.shape(leaf)), jnp.result_type(leaf))

    return jax.tree.map(struct, arrays)


def _described(arrays: Any) -> str:
    return ", ".join(f"{jnp.result_type(a)} {np.shape(a)}" for a in jax.tree.leaves(arrays)) or "no array at all"


def _name(fn: Callable[..., Any]) -> str:
    inner = fn.func if isinstance(fn, partial) else fn
    return getattr(inner, "__name__", type(inner).__name__)
