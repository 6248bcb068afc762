"""The auditor: finds every custom rule that a JAX program calls, and verifies each at the inputs that it meets."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from vjplib.auditing.examine import Effort, Examined, examine
from vjplib.auditing.report import AuditedRule as AuditedRule
from vjplib.auditing.report import AuditReport as AuditReport
from vjplib.auditing.report import order
from vjplib.auditing.watching import Group, Watch
from vjplib.auditing.watching import watching as watching
from vjplib.verification.call import combine
from vjplib.verification.claims.residuals import residual_bytes
from vjplib.verification.report import describe_error

SECONDS = 60.0  # that one rule may take
MOST_SHAPES = {"quick": 2, "standard": 6, "deep": 24}  # of one rule that are examined


def audit(fn: Callable[..., Any], *args: Any, **kwargs: Any) -> AuditReport:
    """Returns what is right and wrong with each custom rule that fn(*args, **kwargs) calls, at the inputs it meets.

    fn runs once, as it is: through jit, grad, scan, while, cond, vmap, checkpoint, shard_map and rules inside rules,
    each call of a `jax.custom_vjp` or `jax.custom_jvp` tells the values of its arguments. Then each rule is verified at
    a sample of these, against autodiff in float64 of what it computes.

    `watching` and `examined` do the same for several steps, and with other options.

    Args:
        fn: any program in JAX: a loss, a training step with its gradients, a solver.
        *args: its arguments.
        **kwargs: its keyword arguments.

    Returns:
        An `AuditReport`: `.ok`, `.rules`, `.failures`; prints as a table of 80 columns. What fn raises is told by
        `.raised`, and what was met until then is examined.

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
        except Exception as error:  # a rule's fault, or the program's: what was met until then is examined
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
    progress: Callable[[list[Group]], Any] = iter,
) -> AuditReport:
    """Returns the report on what a watch has met.

    Args:
        watch: what `watching` gave, its context ended.
        name: of the program.
        effort: "quick" examines one call of each rule at two shapes at most; "deep" eight calls at 24 shapes, and also
            transforms, second derivatives and edges, which it notes only, being beyond what the program does.
        seconds: how long examining one rule may take, at all its shapes.
        by_design: rules whose derivatives are known to differ from autodiff's, by name, and why.
        raised: what the program raised.
        kept: the bytes that the program's gradient would keep, where it took none itself.
        progress: passes on the groups, one at a time, as they are examined.

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
    total, taken = watch.kept or kept, {}
    shapes: dict[tuple[str, str], int] = {}
    rows = []
    # Of the shapes of one rule, those called most come first.
    for group in progress(sorted(watch.groups.values(), key=lambda g: (g.name, g.source, -g.calls))):
        rule = (group.name, group.source)
        number = shapes[rule] = shapes.get(rule, 0) + 1
        left = seconds - taken.get(rule, 0.0)
        if number > MOST_SHAPES[effort]:
            found = Examined("undecided", f"not examined: more than {MOST_SHAPES[effort]} shapes of this rule were met")
        elif left <= 0:
            found = Examined("undecided", f"not examined: other shapes took the {seconds:g} s that a rule may take")
        else:
            found = examine(group, effort, watch.seed, left, _known(group, by_design))
        if found.verdict == "fail" and watch.gradients and not group.derived:
            reason = f"this program, which takes gradients, does not differentiate it; otherwise: {found.reason}"
            found = found._replace(verdict="note", reason=reason)
        taken[rule] = taken.get(rule, 0.0) + found.seconds
        rows.append(_row(group, found, total, bool(watch.gradients)))
    met = {name for row in rows for name in _names(row.name)}
    unmet = tuple(name for name in by_design or () if name not in met)
    return AuditReport(name, order(rows), raised, total, time.perf_counter() - start, unmet)


def _names(rule: str) -> tuple[str, str]:
    """Returns the names by which a caller may call a rule: its own, and the last part of it."""
    return rule, rule.rsplit(".", 1)[-1]


def _known(group: Group, by_design: Mapping[str, str] | None) -> str | None:
    reasons = by_design or {}
    said_so = (reasons[n] or "no reason given" for n in _names(group.name) if n in reasons)
    return next((f"by design, as the caller says: {reason}" for reason in said_so), None)


def _row(group: Group, found: Examined, total: int, gradients: bool) -> AuditedRule:
    counted = group.differentiated if gradients else group.calls
    share = found.kept * counted / total if total and found.kept is not None and not group.recomputed else None
    return AuditedRule(
        name=group.name,
        kind=group.kind,
        source=group.source,
        callers=tuple(c for c in group.callers if c),
        shapes=group.shapes,
        calls=group.calls,
        differentiated=group.differentiated,
        share=share,
        recomputed=group.recomputed,
        **found._asdict(),
    )


def _kept_by(fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    """Returns the bytes that the gradient of a program would keep that takes none itself; 0 where it has none."""
    leaves, tree = jax.tree.flatten(args)
    floating = [i for i, a in enumerate(leaves) if hasattr(a, "dtype") and jnp.issubdtype(a.dtype, jnp.inexact)]

    def flat(*moving: Any) -> Any:
        outputs = jax.tree.leaves(fn(*jax.tree.unflatten(tree, combine(leaves, floating, moving)), **kwargs))
        return [y for y in outputs if jnp.issubdtype(jnp.result_type(y), jnp.inexact)]

    try:
        return residual_bytes(flat, *(leaves[i] for i in floating))
    except Exception:  # a program need not have a gradient
        return 0
