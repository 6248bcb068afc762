"""verify: all claims of one function, or of one record, gathered into a report."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from vjplib.compat import custom_vjp_of
from vjplib.rule import Case, Rule
from vjplib.verification import (
    accuracy,
    contract,
    edges,
    growth,
    linearity,
    locate,
    order_two,
    residuals,
    transforms,
    value,
)
from vjplib.verification.report import CLAIMS, Finding, Report, said
from vjplib.verification.subject import Static, Subject, as_taken_by_jax

Effort = Literal["quick", "standard", "deep"]
Check = Callable[[Subject], Iterator[Finding]]

CHECKS: dict[str, dict[str, Check]] = {
    "quick": {
        "V1": contract.check,
        "V2": lambda s: value.check(s, scales=(1.0,)),
        "V3": linearity.check,
        "V4": lambda s: transforms.check(s, eager=False),
        "V5": order_two.check,
        "V7": residuals.check,
        "V8": lambda s: growth.check(s, compiled=False),
        "V10": edges.check,
        "V12": locate.check,
    },
    "standard": {
        "V1": contract.check,
        "V2": value.check,
        "V3": linearity.check,
        "V4": transforms.check,
        "V5": order_two.check,
        "V7": residuals.check,
        "V8": growth.check,
        "V10": edges.check,
        "V11": accuracy.check,
        "V12": locate.check,
    },
}
CHECKS["deep"] = CHECKS["standard"]
_EVERY_CASE = {"quick": ("V1", "V2"), "standard": ("V1", "V2", "V3", "V4", "V5")}
_WITHOUT_ORACLE = ("V1", "V3", "V4")
_RANDOM_SIZES = {"quick": 0, "standard": 0, "deep": 20}


class NotVerifiedError(AssertionError):
    """Raised by `assert_verified`; its `report` holds every finding."""

    def __init__(self, report: Report) -> None:
        super().__init__(f"{report.name} is not verified\n{report}")
        self.report = report


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
        effort: "quick" leaves out half precision, runs without jit, compiling at larger sizes, and other sizes of the
            axes: "standard" makes each one and one more, "deep" some others too.
        claims: which to examine, as in `("V1", "V2")`; None for all that the effort includes.
        order_two: whether second derivatives are offered; False verifies that they are refused.
        residual_bytes: the bytes that the call in float32 is claimed to keep for its backward.
        seed: of all random numbers; the same seed gives the same report.

    Returns:
        A `Report`: `.ok`, `.findings` and `.failures`; prints as a table.

    Raises:
        TypeError: fn is not callable, args is not a tuple or list, or an array is complex.
        ValueError: args holds nothing to differentiate, fn returns nothing that has a derivative, or effort or claims
            are not known.

    Example:
        >>> import vjplib
        >>> wrong = jax.custom_vjp(jnp.tanh)
        >>> wrong.defvjp(lambda x: (jnp.tanh(x), jnp.tanh(x)), lambda y, g: (g * (1 - y),))
        >>> x = np.linspace(-1, 1, 7, dtype=np.float32)
        >>> vjplib.verify(vjplib.tanh, (x,), effort="quick").ok, vjplib.verify(wrong, (x,), effort="quick").ok
        (True, False)
    """
    start = time.perf_counter()
    options = {"reference": reference, "order_two": order_two, "residuals": residual_bytes, "seed": seed}
    subject = _at_call(fn, args, dict(kwargs or {}), **options)
    findings = examine(subject, effort, claims)
    if effort != "quick" and (claims is None or "V2" in claims):
        findings += _guarded("V2", lambda s: _at_other_sizes(s, effort), subject)
        findings.sort(key=lambda f: list(CLAIMS).index(f.claim))
    return Report(_name(fn), tuple(findings), time.perf_counter() - start)


def _at_call(fn: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any], **options: Any) -> Subject:
    """Returns the subject that a user's call makes, or refuses it."""
    if not callable(fn):
        raise TypeError(f"fn must be callable, got {fn!r}")
    if not isinstance(args, (tuple, list)):
        raise TypeError(f"args must be a tuple of positional arguments, got {type(args).__name__}")
    parts = custom_vjp_of(fn)
    static = parts.static if parts else ()
    arrays = tuple(Static(a) if i in static or _is_static(a) else jax.tree.map(_array, a) for i, a in enumerate(args))
    sizes = _axis_sizes(arrays)
    subject = Subject(fn, arrays, kwargs, sizes=sizes, resize=lambda new: (_by_size(arrays, new), {}), **options)
    if not subject.differentiable:
        raise ValueError(f"args must hold at least one floating array to differentiate, got {_described(arrays)}")
    try:
        outputs = subject.outputs(subject.leaves())
    except Exception:  # what fn raises is for the claims to report
        return subject
    if not outputs:
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
    rule: Rule, *, effort: Effort = "standard", claims: Sequence[str] | None = None, seed: int = 0
) -> Report:
    """Returns the proof sheet of a record: every claim at its first case, the main ones at all, and its named edges.

    Args:
        rule: the record.
        effort: "quick" examines contract and value at all cases but the first; "deep" examines every claim at every
            case, and each case at 20 random sizes.
        claims: which to examine; None for all that the effort includes.
        seed: of all random numbers.

    Raises:
        ValueError: effort or claims are not known.

    Example:
        >>> from vjplib.catalog import find
        >>> verify_rule(find("sigmoid")[0], effort="quick", claims=("V1", "V7")).ok
        True
    """
    start = time.perf_counter()
    selected = _selected(effort, claims)
    findings: list[Finding] = []
    for i, case in enumerate(rule.cases):
        subject = at_case(rule, case, seed)
        for claim, check in selected:
            if i == 0 or effort == "deep":
                findings += _guarded(claim, check, subject)
            elif claim in _EVERY_CASE[effort]:
                findings += _guarded(claim, CHECKS["quick"][claim], subject)
        for number in range(_RANDOM_SIZES[effort]):
            findings += _at_random_sizes(rule, case, (seed, i, number), claims)
    if claims is None or "V10" in claims:
        named = at_case(rule, rule.cases[0], seed)
        findings += _guarded("V10", lambda s: edges.check_named(s, rule.edges), named)
    order = list(CLAIMS)
    findings.sort(key=lambda f: order.index(f.claim))
    return Report(rule.name, tuple(findings), time.perf_counter() - start)


def _at_random_sizes(rule: Rule, case: Case, seed: tuple[int, ...], claims: Sequence[str] | None) -> Iterator[Finding]:
    rng = np.random.default_rng(seed)
    sizes = case.sizes(rng)
    if sizes == dict(case.dims):
        return
    subject = at_case(rule, case, int(rng.integers(2**31)), **sizes)
    for claim, check in (("V2", lambda s: value.check(s, scales=(1.0,))), ("V7", residuals.check)):
        if claims is None or claim in claims:
            yield from _guarded(claim, check, subject)


def examine(subject: Subject, effort: Effort = "standard", claims: Sequence[str] | None = None) -> list[Finding]:
    """Returns the findings of each claim on one subject."""
    return [f for claim, check in _selected(effort, claims) for f in _guarded(claim, check, subject)]


def _at_other_sizes(subject: Subject, effort: Effort) -> Iterator[Finding]:
    """Yields V2 with one axis size changed at a time: to one, and to the next, of other parity; in deep, to more."""
    integers = len(jax.tree.leaves(subject.args)) > len(subject.differentiable)
    for name, n in subject.sizes.items():
        sizes = {1, n + 1} if effort == "standard" else {1, 2, 3, n - 1, n + 1, n + 2, 2 * n}
        for size in sorted(sizes - {0, n}):
            if size < n and integers:  # they may be indices into the axis
                continue
            other = subject.at(_resized(subject.args, {n: size}), subject.kwargs, f"{name} made {size}")
            if _runs(other):
                yield from value.check(other, scales=(1.0,))


def _runs(subject: Subject) -> bool:
    """Returns whether function and oracle take these sizes: they may have their reasons to refuse them."""
    leaves = subject.leaves(np.float32)
    try:
        jax.eval_shape(subject.answers, leaves, subject.cotangents(leaves))
    except Exception:  # whatever a function raises at a size that nobody called it with
        return False
    return True


def _resized(args: tuple[Any, ...], sizes: Mapping[int, int]) -> tuple[Any, ...]:
    """Returns the arguments with axes of some sizes made others, their numbers repeated or cut."""
    return jax.tree.map(lambda a: np.resize(a, tuple(sizes.get(n, n) for n in np.shape(a))), args)


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
        residuals=rule.residuals(**dims) if main and rule.residuals else None,
        compared=next(iter(rule.baselines.values())) if main else None,
        sizes={k: v for k, v in dims.items() if k not in case.fixed} if case.growth else {},
        resize=lambda changed: case.avals({**dims, **changed}),
        case=" ".join(described) or "scalars",
    )


def _selected(effort: str, claims: Sequence[str] | None) -> list[tuple[str, Check]]:
    if effort not in CHECKS:
        raise ValueError(f"effort must be one of {', '.join(CHECKS)}, got {effort!r}")
    if unknown := sorted(set(claims or ()) - set(CLAIMS)):
        raise ValueError(f"claims must be among {', '.join(CLAIMS)}, got {', '.join(unknown)}")
    checks = CHECKS[effort] if claims is None else {**CHECKS["standard"], **CHECKS[effort]}
    return [(claim, check) for claim, check in checks.items() if claims is None or claim in claims]


def _guarded(claim: str, check: Check, subject: Subject) -> list[Finding]:
    """Returns the findings of a check; what it raises is a failure of the function, never of the run."""
    findings: list[Finding] = []
    if claim not in _WITHOUT_ORACLE and subject.undifferentiable is not None:
        message = f"JAX cannot differentiate the oracle ({subject.undifferentiable}); give a reference"
        return [Finding(claim, "skipped", message, case=subject.case)]
    try:
        findings.extend(check(subject))
    except Exception as error:  # any error that a rule raises is a finding about that rule
        findings.append(Finding(claim, "fail", f"raises {said(error)}", case=subject.case))
    return findings


def _is_static(argument: Any) -> bool:
    """Returns whether nothing in an argument is an array or a Python float."""
    leaves = jax.tree.leaves(argument)
    return bool(leaves) and not any(isinstance(a, float) or hasattr(a, "dtype") for a in leaves)


def _array(leaf: Any) -> Any:
    leaf = as_taken_by_jax(leaf)
    dtype = jnp.result_type(leaf)
    if jnp.issubdtype(dtype, jnp.complexfloating):
        raise TypeError(f"args must hold real arrays, got one of {dtype}; split it in real and imaginary part")
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
