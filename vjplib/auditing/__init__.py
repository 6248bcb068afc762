"""The auditor: finds every custom rule that a JAX program calls, and verifies each at the inputs of these calls."""

import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from vjplib.auditing.judge import Effort, Judgement, judge
from vjplib.auditing.recording import CallGroup, Watch
from vjplib.auditing.recording import watching as watching
from vjplib.auditing.report import AuditedRule as AuditedRule
from vjplib.auditing.report import AuditReport as AuditReport
from vjplib.auditing.report import order
from vjplib.verification.call import combine, inexact
from vjplib.verification.claims.residuals import residual_bytes
from vjplib.verification.report import describe_error

SECONDS = 60.0  # time limit of one rule
MOST_SHAPES = {"quick": 2, "standard": 6, "deep": 24}  # examined of one rule


def audit(fn: Callable[..., Any], *args: Any, **kwargs: Any) -> AuditReport:
    """Verify each custom rule that fn(*args, **kwargs) calls, at the inputs of these calls.

    fn runs once, unchanged: each call of a `jax.custom_vjp`, a `jax.custom_jvp`, a hijax primitive or `linear_call`
    records the values of its arguments, through jit, grad, scan, while, cond, vmap, checkpoint, shard_map and rules
    inside rules. Then each rule is verified at a sample of these calls, against autodiff of its primal in float64.

    `watching` and `examined` do the same for several steps, and with other options.

    Args:
        fn: any program in JAX: a loss, a training step with its gradients, a solver.
        *args: its arguments.
        **kwargs: its keyword arguments.

    Returns:
        An `AuditReport`: `.ok`, `.rules`, `.failures`; prints as a table of 80 columns. If fn raises, `.raised` holds
        the message, and the calls until then are examined.

    Raises:
        TypeError: fn is not callable.

    Example:
        >>> @jax.custom_vjp
        ... def dense(x, W, b):
        ...     return x @ W + b
        >>> dense.defvjp(lambda x, W, b: (x @ W + b, (x, W)), lambda r, g: (g @ r[1].T, r[0].T @ g, g.mean(0)))
        >>> @jax.jit
        ... def step(W, b, x):
        ...     return jax.grad(lambda W, b: jnp.sum(jax.nn.relu(dense(x, W, b)) ** 2), (0, 1))(W, b)
        >>> report = audit(step, jnp.ones((5, 3)), jnp.ones(3), jnp.ones((2, 5)))
        >>> report.ok, {rule.name: rule.verdict for rule in report.rules}
        (False, {'dense': 'fail', 'relu': 'pass'})
    """
    if not callable(fn):
        raise TypeError(f"fn must be callable, got {fn!r}")
    raised = ""
    with watching() as watch:
        try:
            jax.block_until_ready(fn(*args, **kwargs))
        except Exception as error:  # of a rule or of the program: the calls until then are examined
            raised = describe_error(error)
    name = getattr(fn, "__name__", type(fn).__name__)
    kept = 0 if watch.gradients or raised else _kept_by(fn, args, kwargs)
    return examined(watch, name=name, raised=raised, kept=kept)


def examined(
    watch: Watch,
    *,
    name: str = "the program",
    effort: Effort = "standard",
    seconds: float = SECONDS,
    by_design: Mapping[str, str] | None = None,
    raised: str = "",
    kept: int = 0,
    progress: Callable[[list[CallGroup]], Any] = iter,
) -> AuditReport:
    """Return the report on the rules that a watch recorded.

    Args:
        watch: the value of `watching`, after its context has ended.
        name: of the program.
        effort: "quick" examines one call of each rule at two shapes at most; "deep" eight calls at 24 shapes, and also
            transforms, second derivatives and edges. Their failures are notes: the program does not use them.
        seconds: the time limit for one rule, at all its shapes.
        by_design: the reason by name of each rule whose derivative differs from autodiff's on purpose.
        raised: the message of the exception that the program raised.
        kept: the bytes that the program's gradient would keep, if the program takes none itself.
        progress: takes the groups and yields each before it is examined.

    Raises:
        ValueError: effort is not known, or seconds is not positive.

    Example:
        >>> with watching(seed=1) as watch:
        ...     for step in range(3):
        ...         y = jax.nn.relu(jnp.float32(step - 1))
        >>> report = examined(watch, effort="quick")
        >>> [(rule.name, rule.calls, rule.verdict) for rule in report.rules]
        [('relu', 3, 'pass')]
    """
    if effort not in MOST_SHAPES:
        raise ValueError(f"effort must be one of {', '.join(MOST_SHAPES)}, got {effort!r}")
    if not seconds > 0:
        raise ValueError(f"seconds must be positive, got {seconds!r}")
    start = time.perf_counter()
    total, reasons, rows = watch.kept or kept, by_design or {}, []
    shapes, taken = defaultdict(int), defaultdict(float)
    # Of the shapes of one rule, the one called most comes first.
    for group in progress(sorted(watch.groups.values(), key=lambda g: (g.name, g.source, -g.calls))):
        rule = (group.name, group.source)
        shapes[rule] += 1
        left = seconds - taken[rule]
        if shapes[rule] > MOST_SHAPES[effort]:
            reason = f"not examined: the program called this rule at more than {MOST_SHAPES[effort]} shapes"
            found = Judgement("undecided", reason)
        elif left <= 0:
            found = Judgement("undecided", f"not examined: other shapes of this rule took all of its {seconds:g} s")
        else:
            known = [reasons[name] or "no reason given" for name in _names(group.name) if name in reasons]
            design = f"by design, as the caller says: {known[0]}" if known else None
            found = judge(group, effort, watch.seed, left, design)
        if found.verdict == "fail" and watch.gradients and not group.derived:
            reason = f"this program, which takes gradients, does not differentiate it; otherwise: {found.reason}"
            found = replace(found, verdict="note", reason=reason)
        taken[rule] += found.seconds
        rows.append(_row(group, found, total, bool(watch.gradients)))
    met = {name for row in rows for name in _names(row.name)}
    unmet = tuple(name for name in reasons if name not in met)
    return AuditReport(name, order(rows), raised, total, time.perf_counter() - start, unmet)


def _names(rule: str) -> tuple[str, str]:
    """Return the names of a rule in `by_design`: its qualified name, and the last part of it."""
    return rule, rule.rsplit(".", 1)[-1]


def _row(group: CallGroup, found: Judgement, total: int, gradients: bool) -> AuditedRule:
    counted = group.differentiated if gradients else group.calls
    share = found.kept * counted / total if total and found.kept is not None and not group.recomputed else None
    same = ("name", "kind", "source", "shapes", "calls", "differentiated", "recomputed")
    of_group = {name: getattr(group, name) for name in same}
    return AuditedRule(**of_group, callers=tuple(filter(None, group.callers)), share=share, **vars(found))


def _kept_by(fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    """Return the bytes that the gradient of a program without gradients would keep; 0 if it has no gradient."""
    leaves, tree = jax.tree.flatten(args)
    floating = [i for i, a in enumerate(leaves) if hasattr(a, "dtype") and jnp.issubdtype(a.dtype, jnp.inexact)]

    def flat(*moving: Any) -> Any:
        return inexact(fn(*jax.tree.unflatten(tree, combine(leaves, floating, moving)), **kwargs))

    try:
        return residual_bytes(flat, *(leaves[i] for i in floating))
    except Exception:  # a program need not have a gradient
        return 0
