"""verify: all claims of one function, or of one record, gathered into a report."""

import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vjplib.compat import as_function, custom_vjp_of, hi_primitive_of, require_passes
from vjplib.rule import Case, Rule, check_axes, second_derivatives
from vjplib.verification.axes import along_axes, on_all_devices
from vjplib.verification.call import ByPosition, CallUnderTest, Static, as_taken_by_jax, is_inexact, parameters
from vjplib.verification.claim import Claim, Effort
from vjplib.verification.claims.value import CLAIM as VALUE
from vjplib.verification.claims.variations import at_stated_values
from vjplib.verification.domain import Stated, domain_of
from vjplib.verification.isolation import TIME_LIMIT, as_finding, detect_side_effects, run_with_timeout
from vjplib.verification.registry import order, selected
from vjplib.verification.report import SIZES, Finding, Report
from vjplib.verification.runner import Job, Runner

QUICK_CASES = 2  # whose values are compared in "quick"
RANDOM_SIZES = 20  # at each case in "deep"
DTYPES = ("float64", "float32", "bfloat16", "float16")


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
    claims: Sequence[str | Claim] | None = None,
    order_two: bool | Mapping[str, bool] = True,
    communication: bool = True,
    axes: Mapping[str, int] | None = None,
    residual_bytes: int | None = None,
    dtypes: Sequence[str] | None = None,
    domain: Stated | None = None,
    vary: Mapping[str, Sequence[Any]] | None = None,
    seed: int = 0,
    time_limit: float = TIME_LIMIT,
) -> Report:
    """Verify the derivative of fn at a call: every claim about it is shown or refuted.

    The arguments give shapes and magnitudes; dtypes, scales and sizes are varied from there. Pairwise distinct prime
    sizes, and a batch of at least two, reveal swapped axes. Each property that an argument has, such as sorted,
    positive or symmetric, is taken for a condition: what differs at inputs without it is a doubt, and no failure.

    Args:
        fn: any function of arrays, in particular a `jax.custom_vjp`, a hijax primitive, or a function that
            calls one.
        args: positional arguments, pytrees of arrays. Floating leaves are differentiated, integers and booleans not.
            Other arguments (an axis, a function, anything in a place named by nondiff_argnums) are passed on unchanged.
        kwargs: keyword arguments. Floating arrays are differentiated as positional ones are; Python's numbers are not.
        reference: the same function, written so that JAX can differentiate it. None for fn itself with its custom
            rules stripped.
        effort: how much to examine, see below.
        claims: the claims to examine: names such as `("contract", "value")`, their aliases such as V2, or records of
            your own; None for all that the effort includes.
        order_two: whether second derivatives are offered; False verifies that they are refused, and a mapping such as
            `{"reverse": False, "forward": True}` says so for reverse over reverse and for forward over reverse.
        communication: whether devices may send data to one another that autodiff would not send, which is noted then;
            False claims that they send none.
        axes: the sizes of named axes, such as `{"i": 4}`, for a function that is called where they are bound, in
            `jax.shard_map` or in `jax.vmap` with `axis_name`. args are then those of one device; each of the others has
            the same arrays, floating ones times a number from 1/2 to 1.
        residual_bytes: the bytes that the call in float32 is claimed to keep for its backward.
        dtypes: the floating dtypes that fn takes, such as `("float32", "bfloat16")`; None to find out. Comparisons are
            in float64 where it is among them, for no other shows so much.
        domain: what arguments have to be, by their names: one or more of `vjplib.verification.domain.NAMES`, such as
            "positive", or "real" for anything. Or a function of a NumPy generator and of the size that each size of
            the call becomes, which draws positional arguments.
        vary: the values that static arguments may take, by their names; what differs there fails, and others are not
            tried. Without it, what differs at another value than the given one is a doubt.
        seed: of all random numbers; the same seed gives the same report.
        time_limit: seconds after which a claim fails as a timeout. Claims run in threads for this; `math.inf` runs
            them in the caller's own, for a debugger.

    | effort | examines |
    |---|---|
    | "quick" | values at one scale, the transforms under jit, half precision only if the call uses it |
    | "standard" | also three scales, runs without jit, several devices, coverage, each axis made 1 and n + 1 |
    | "deep" | also more sizes of each axis |

    Returns:
        A `Report`: `.ok`, `.findings` and `.failures`; prints as a table.

    Raises:
        TypeError: fn is not callable, args is not a tuple or list, claims is a single string, domain or vary is no
            mapping, or order_two or axes is of another kind.
        ValueError: args holds nothing to differentiate, fn returns nothing that has a derivative or is a custom_vjp
            without `defvjp`, effort, claims or dtypes are not known, domain or vary name what there is not, or
            time_limit is not positive.

    Example:
        >>> import vjplib
        >>> wrong = jax.custom_vjp(jnp.tanh)
        >>> wrong.defvjp(lambda x: (jnp.tanh(x), jnp.tanh(x)), lambda y, g: (g * (1 - y),))
        >>> x = np.linspace(-1, 1, 7, dtype=np.float32)
        >>> vjplib.verify(vjplib.tanh, (x,), effort="quick").ok, vjplib.verify(wrong, (x,), effort="quick").ok
        (True, False)
    """
    start = time.perf_counter()
    _check_seed(seed)
    chosen, run = selected(effort, claims, record=False), Runner(time_limit)
    with detect_side_effects((fn,), run.outside):
        options = {"reference": reference, "order_two": order_two, "residual_bytes": residual_bytes, "seed": seed}
        options |= {"communication": communication, "axes": axes, "dtypes": dtypes, "domain": domain, "vary": vary}
        subject = at_call(fn, args, kwargs, run, hurried=effort == "quick", **options)
        findings = run.all([Job(claim, check, subject) for claim, check in chosen])
    return _report(_name(fn), findings, run, start, chosen)


def _report(
    name: str, findings: Sequence[Finding], run: Runner, start: float, chosen: Sequence[tuple[Claim, Any]]
) -> Report:
    """Return a report with the side effects that were seen, if they are of the chosen claims."""
    names = [claim.name for claim, _ in chosen]
    outside = [f for f in run.outside if f.claim in names]
    ordered = sorted([*findings, *outside], key=lambda f: order(f.claim))
    return Report(name, tuple(ordered), time.perf_counter() - start)


def at_call(
    fn: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any] | None = None,
    run: Runner | None = None,
    *,
    order_two: bool | Mapping[str, bool] = True,
    residual_bytes: int | None = None,
    axes: Mapping[str, int] | None = None,
    dtypes: Sequence[str] | None = None,
    domain: Stated | None = None,
    vary: Mapping[str, Sequence[Any]] | None = None,
    **options: Any,
) -> CallUnderTest:
    """Return a user's call with its domain; takes the arguments of `verify` that say what the call is."""
    second_derivatives(order_two)  # raises for what it does not know
    options |= {"order_two": order_two, "residuals": residual_bytes}
    options |= {"axes": check_axes(axes), "dtypes": _dtypes(dtypes)}
    kwargs = {} if kwargs is None else kwargs
    subject = _checked(fn, args, kwargs, Runner(math.inf) if run is None else run, **options)
    return _with_domain(subject, domain, {} if vary is None else vary)


def _checked(
    fn: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], run: Runner, **options: Any
) -> CallUnderTest:
    """Return a user's call, its arguments checked and converted."""
    if not callable(fn):
        raise TypeError(f"fn must be callable, got {fn!r}")
    if not isinstance(kwargs, Mapping):
        raise TypeError(f"kwargs must be a mapping of keyword arguments, got {kwargs!r}")
    if not isinstance(args, (tuple, list)):
        raise TypeError(f"args must be a tuple of positional arguments, got {type(args).__name__}")
    fn = fn if hi_primitive_of(fn) is None else as_function(fn)
    static: Collection[int] = ()
    if parts := custom_vjp_of(fn):
        require_passes(parts)
        static = parts.static
    fn, args, kwargs = _by_position(fn, args, kwargs, static)
    if (reference := options.get("reference")) is not None and isinstance(fn, ByPosition):
        options["reference"] = ByPosition(reference, fn.keywords)
    given = tuple(Static(a) if i in static or _is_static(a) else a for i, a in enumerate(args))
    weak = frozenset(
        i
        for i, leaf in enumerate(jax.tree.leaves(given))
        if isinstance(leaf, (float, complex)) and not hasattr(leaf, "dtype")
    )
    arrays = jax.tree.map(_array, given)
    sizes = {f"{SIZES} {n}": n for n in sorted({n for a in jax.tree.leaves(arrays) for n in np.shape(a)}) if n > 1}
    resize = partial(_resized, arrays, sizes)
    subject = CallUnderTest(fn, arrays, kwargs, sizes=sizes, resize=resize, weak=weak, **options)
    subject = along_axes(subject, subject.axes)
    if not subject.differentiable:
        raise ValueError(f"args must hold at least one floating array to differentiate, got {_described(arrays)}")
    if not any(np.size(leaf) for leaf in subject.leaves()):
        raise ValueError(f"args must hold at least one number to differentiate, got {_described(arrays)}")
    outputs = run_with_timeout(lambda: subject.outputs(subject.leaves()), run.seconds)
    if outputs is None:
        run.hung = True
        run.outside.append(replace(as_finding(None, run.seconds), claim="contract"))
    if outputs == ():  # what fn raises is for the claims to report
        raise ValueError("fn must return at least one floating array, to have a derivative; it returned none")
    return subject


def _with_domain(subject: CallUnderTest, stated: Stated | None, vary: Mapping[str, Sequence[Any]]) -> CallUnderTest:
    """Return a call with the domain that its arguments state by example, as far as the caller states no other."""
    if not isinstance(vary, Mapping):
        raise TypeError(f"vary must map static arguments to the values they may take, got {vary!r:.60}")
    static = subject.static
    if unknown := [name for name in vary if name not in static]:
        raise ValueError(
            f"vary must name static arguments, of {', '.join(static) or 'which there are none'}, got {unknown}"
        )
    if single := [name for name, values in vary.items() if isinstance(values, str) or not isinstance(values, Sequence)]:
        raise TypeError(f"vary must give a tuple of values for {single[0]}, got {vary[single[0]]!r:.60}")
    names = parameters(subject.fn, len(subject.args))
    return replace(subject, vary=vary, domain=domain_of(subject.args, stated, names, subject.seed))


def assert_verified(fn: Callable[..., Any], args: Sequence[Any], *rest: Any, **options: Any) -> None:
    """Raise an error unless every claim that `verify` examines holds; takes the same arguments.

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
    claims: Sequence[str | Claim] | None = None,
    seed: int = 0,
    time_limit: float = TIME_LIMIT,
) -> Report:
    """Verify a record: every claim at its first case, the main ones at all, and its named edges.

    Args:
        rule: the record.
        effort: "quick" examines the first case, the contract at all, the value at one more in float64, and no named
            edge; "standard" the main claims at every case; "deep" every claim at every case, and each case at 20 random
            sizes.
        claims: the claims to examine; None for all that the effort includes.
        seed: of all random numbers.
        time_limit: seconds after which a claim at one case fails as a timeout, as in `verify`.

    Raises:
        ValueError: effort or claims are not known, or time_limit is not positive.

    Example:
        >>> from vjplib.rule import find
        >>> verify_rule(find("sigmoid")[0], effort="quick", claims=("contract", "residuals")).ok
        True
    """
    return verify_part(rule, claims, claims, effort=effort, seed=seed, time_limit=time_limit)


def verify_part(
    rule: Rule,
    claims: Sequence[str | Claim] | None,
    whole: Sequence[str | Claim] | None,
    *,
    effort: Effort = "standard",
    seed: int = 0,
    time_limit: float = TIME_LIMIT,
) -> Report:
    """Verify some claims of a record, of the `whole` that several processes examine; otherwise as `verify_rule`.

    Side effects seen here are reported if they are of a claim of the whole.
    """
    start = time.perf_counter()
    _check_seed(seed)
    chosen, run = selected(effort, claims), Runner(time_limit)
    with detect_side_effects((rule.fn,), run.outside):
        jobs = []
        for i, case in enumerate(rule.cases):
            subject = replace(at_case(rule, case, seed), hurried=effort == "quick")
            for claim, first in chosen:
                check = first if i == 0 or effort == "deep" else claim.further.get(effort)
                if check and (effort != "quick" or i < QUICK_CASES or claim.traces_only):
                    jobs.append(Job(claim, check, subject))
                if claim is VALUE and i == 0 and subject.vary and effort != "quick":
                    jobs.append(Job(claim, at_stated_values, subject))
            for number in range(RANDOM_SIZES if effort == "deep" else 0):
                rng = np.random.default_rng((seed, i, number))
                sizes = case.sizes(rng)
                if sizes != dict(case.dims):
                    subject = at_case(rule, case, int(rng.integers(2**31)), **sizes)
                    jobs += [Job(claim, claim.random, subject) for claim, _ in chosen if claim.random]
        first_case, groups = at_case(rule, rule.cases[0], seed), {}
        for edge in rule.edges:  # those that may share compiled programs stand together
            if rule.axes:
                arrays = [a if a is None else np.asarray(a) for a in edge.args]
                edge = edge._replace(args=on_all_devices(arrays, rule.axes, seed))
            groups.setdefault(repr(([np.shape(a) for a in edge.args], edge.kwargs)), []).append(edge)
        for claim, _ in chosen:
            if claim.named and effort != "quick":
                jobs += [Job(claim, partial(claim.named, edges=edges), first_case) for edges in groups.values()]
        findings = run.all(jobs)
    return _report(rule.name, findings, run, start, selected(effort, whole))


def at_case(rule: Rule, case: Case, seed: int = 0, **sizes: int) -> CallUnderTest:
    """Return the call of a record at one of its cases, or at other sizes; the first case carries the residual claim."""
    main = case is rule.cases[0]
    dims = {**case.dims, **sizes}
    call = case.call(np.random.default_rng(seed), np.float32, **dims)
    described = [f"{k}={v}" for k, v in dims.items()]
    described += [f"{k}=mask" if isinstance(v, np.ndarray) else f"{k}={v}" for k, v in call.kwargs.items()]
    names = parameters(rule.fn, len(call.args))
    subject = CallUnderTest(
        rule.fn,
        call.args,
        call.kwargs,
        reference=rule.reference,
        seed=seed,
        order_two=rule.order_two,
        communication=rule.communication,
        residuals=rule.residual_bytes(**dims) if main and rule.residual_bytes else None,
        compared=next(iter(rule.baselines.values()), None) if main else None,
        sizes={k: v for k, v in dims.items() if k not in case.fixed} if case.growth else {},
        resize=lambda changed: case.avals({**dims, **changed}),
        case=" ".join(described) or "scalars",
        tails=rule.tails if main else None,
        domain=None if rule.domain is None else domain_of(call.args, rule.domain, names, seed),
        vary=rule.vary,
        dtypes=_dtypes(rule.dtypes),
    )
    return along_axes(subject, rule.axes)


def _check_seed(seed: Any) -> None:
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or seed < 0:
        raise ValueError(f"seed must be an integer of at least 0, got {seed!r}")


def _dtypes(dtypes: Any) -> tuple[str, ...] | None:
    if dtypes is None:
        return None
    if isinstance(dtypes, str):
        raise TypeError(f"dtypes must be a sequence of names, such as ('float32',), got {dtypes!r}")
    try:
        names = tuple(jnp.dtype(dtype).name for dtype in dtypes)
    except TypeError:  # numpy's, for what is no dtype
        names = tuple(map(str, dtypes))
    if not names or not set(names) <= set(DTYPES):
        raise ValueError(f"dtypes must be among {', '.join(DTYPES)}, got {', '.join(names) or 'none'}")
    return names


def _by_position(
    fn: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], static: Collection[int]
) -> tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]:
    """Return the call with its floating arrays by keyword last among the positional arguments, to be differentiated."""
    nondiff = [parameters(fn, i + 1)[i] for i in static]
    moving = [name for name, value in kwargs.items() if name not in nondiff and _is_floating(value)]
    if not moving:
        return fn, tuple(args), dict(kwargs)
    rest = {name: value for name, value in kwargs.items() if name not in moving}
    return ByPosition(fn, moving), (*args, *(kwargs[name] for name in moving)), rest


def _is_floating(value: Any) -> bool:
    """Return True for an array, or a pytree of arrays, some of them floating."""
    leaves = jax.tree.leaves(value)
    return all(hasattr(leaf, "dtype") for leaf in leaves) and any(map(is_inexact, leaves))


def _is_static(argument: Any) -> bool:
    """Return True if no leaf of an argument is an array or a Python float."""
    leaves = jax.tree.leaves(argument)
    return bool(leaves) and not any(isinstance(a, (float, complex)) or hasattr(a, "dtype") for a in leaves)


def _array(leaf: Any) -> Any:
    if not hasattr(leaf, "dtype") and not isinstance(leaf, (bool, int, float, complex)):
        raise TypeError(f"args must be pytrees of arrays and numbers, or hold none at all, got {leaf!r} among arrays")
    leaf = as_taken_by_jax(leaf)
    jnp.result_type(leaf)  # raises for dtypes that JAX does not accept
    return leaf


def _resized(arrays: Any, sizes: Mapping[str, int], changed: Mapping[str, int]) -> tuple[Any, dict[str, Any]]:
    """Return the shapes and dtypes of arrays with some sizes changed: axes of one size count as one dimension."""
    new = {n: changed.get(name, n) for name, n in sizes.items()}
    shape = lambda leaf: tuple(new.get(n, n) for n in np.shape(leaf))  # noqa: E731
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(shape(leaf), jnp.result_type(leaf)), arrays), {}


def _described(arrays: Any) -> str:
    return ", ".join(f"{jnp.result_type(a)} {np.shape(a)}" for a in jax.tree.leaves(arrays)) or "no array at all"


def _name(fn: Callable[..., Any]) -> str:
    inner = fn.func if isinstance(fn, partial) else fn
    return getattr(inner, "__name__", type(inner).__name__)
