"""Diagnose: the known trap that a failure is due to, where the failure itself shows it; else none is named."""

import inspect
import itertools
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from vjplib.compat import (
    CustomVJP,
    custom_vjp_of,
    equations,
    force_retrace,
    recorded_custom_vjps,
    replaced_custom_vjp_calls,
)
from vjplib.verification.call import Answers, CallUnderTest, Leaves, attempt
from vjplib.verification.tolerance import relative_gap, size_of

UNTRACEABLE = (
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
    jax.errors.NonConcreteBooleanIndexError,
)
COARSE = 0.05  # the relative error that half precision may make
SHORTEST = 5  # an axis long enough to have a middle beside its ends
DEPTH = 4
_tokens = itertools.count()


def rules_called(subject: CallUnderTest) -> list[tuple[CustomVJP, tuple[Any, ...], dict[str, Any]]]:
    """Return the parts, the arguments and the keyword arguments of each custom_vjp that the call calls."""
    leaves = subject.leaves()
    with recorded_custom_vjps() as calls:
        try:
            with jax.disable_jit():  # jit does not call again a function that it has traced before
                jax.eval_shape(lambda ls: subject.whole(ls), leaves)
        except Exception:  # a while loop, for one, cannot run without jit
            del calls[:]
            jax.eval_shape(lambda ls: subject.whole(ls), leaves)
        return [call for call in calls if not getattr(call[0].primal, "over_axes", False)]


def raised(subject: CallUnderTest, error: Exception) -> str:
    """Return the trap that an exception from the function under examination is due to, empty if it does not show."""
    text = str(error)
    if "nondiff_argnums" in text and "racer" in text:
        return "array-in-nondiff"
    if "closed-over value" in text or "can't close over Tracers" in text:
        return "closed-over-value"
    if "forward-mode autodiff (jvp) to a custom_vjp" in text:
        return "forward-over-reverse"
    if "fwd output type" in text and "primal output type" in text:
        return "forward-is-not-the-primal"
    runs = not isinstance(attempt(lambda: subject.outputs(subject.leaves())), Exception)
    if isinstance(error, UNTRACEABLE):
        return "backward-not-jittable" if runs else "primal-not-jittable"
    if not runs:
        return ""
    if "is not a valid JAX type" in text:
        return "residual-is-no-array"
    if "float0" in text:
        return "integers"
    rules = passes_of(subject)
    if ("SymbolicZero" in text or "CustomVJPPrimal" in text) and any(rule.symbolic_zeros for rule in rules):
        return "symbolic-zeros"
    if isinstance(error, jax.errors.UnexpectedTracerError):
        return _leaked(subject, rules)
    return ""


def passes_of(subject: CallUnderTest) -> list[CustomVJP]:
    """Return the custom_vjps that the call calls, none if it raises."""
    called = attempt(lambda: rules_called(subject))
    return [] if isinstance(called, Exception) else [rule for rule, _, _ in called]


def _leaked(subject: CallUnderTest, rules: list[CustomVJP]) -> str:
    """Return the trap of a tracer that left its trace: by a value that a pass closes over, or by one that it writes."""
    before = _closed_over(rules)
    attempt(lambda: jax.eval_shape(subject.pull(subject.call), *subject.point()))
    if [*map(id, before)] != [*map(id, _closed_over(rules))]:
        return "hidden-state"
    return "closed-over-value" if any(isinstance(v, Tracer) for v in before) else ""


def _closed_over(rules: list[CustomVJP]) -> list[Any]:
    """Return the values that the rules' functions reach other than by their arguments, containers opened."""
    return [v for rule in rules for f in (rule.primal, rule.fwd, rule.bwd) for v in _reached(f, DEPTH)]


def _reached(value: Any, depth: int) -> Iterator[Any]:
    if depth == 0:
        return
    if isinstance(value, partial):
        inside = [value.func, *value.args, *value.keywords.values()]
    elif inspect.isfunction(value):
        seen = inspect.getclosurevars(value)
        inside = [*seen.nonlocals.values(), *(v for v in seen.globals.values() if isinstance(v, (dict, list, set)))]
    elif isinstance(value, Mapping):
        inside = list(value.values())
    elif isinstance(value, (list, tuple, set)):
        inside = list(value)
    else:
        yield value
        return
    for item in inside:
        yield from _reached(item, depth - 1)


def refused_by_jax(run: Callable[[], Any], error: Exception) -> bool:
    """Return True if `run` raises the same error with passes that cannot be wrong in place of every custom_vjp's.

    These keep nothing and return None, which stands for zero. JAX 0.10 with JAX_CUSTOM_VJP3=1 refuses jax.checkpoint of
    any rule that has static arguments or a pytree for an argument.
    """
    seen = False

    def replaced(original: Callable[..., Any], fn: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal seen
        rule = custom_vjp_of(fn)
        if rule is None:
            return original(fn, *args, **kwargs)
        seen = True
        given = inspect.signature(rule.primal).bind(*args, **kwargs)
        given.apply_defaults()
        nothing = (None,) * (len(given.args) - len(rule.static))
        idle = jax.custom_vjp(rule.primal, nondiff_argnums=tuple(sorted(rule.static)))
        idle.defvjp(lambda *args: (rule.primal(*args), None), lambda *given: nothing)
        return original(idle, *args, **kwargs)

    try:
        with replaced_custom_vjp_calls(replaced), force_retrace(f"idle {next(_tokens)}"):
            jax.eval_shape(run)
    except Exception as other:  # whatever JAX raises
        return seen and type(other) is type(error) and str(other) == str(error)
    return False


def values(subject: CallUnderTest, leaves: Leaves, gs: Leaves, found: Answers) -> dict[str, str]:
    """Return the trap behind each cotangent that differs from the oracle's in float64, by its name in findings."""
    traps, digits = {}, float(np.sqrt(subject.eps))
    for i, (p, y, o) in enumerate(zip(found.primal, found.ys, found.true_ys, strict=True)):
        if _equal(p, o, digits) and not _equal(y, o, digits):
            names = (f"output {i}", f"output {i} of the forward pass", "output of the forward pass")
            traps |= dict.fromkeys(names if i == 0 else names[:2], "forward-is-not-the-primal")
    wrong = [i for i, pair in enumerate(zip(found.dxs, found.true_dxs, strict=True)) if not _equal(*pair, digits)]
    if not wrong:
        return traps
    uniform = _at_uniform_cotangents(subject, leaves, gs)
    lower = _casts_lower(subject, leaves, gs)
    conjugates = _conjugates(subject, leaves, gs)
    for i in wrong:
        r, o = found.dxs[i], found.true_dxs[i]
        alike = [other for j, other in enumerate(found.true_dxs) if j != i and _equal(r, other, digits)]
        if r.shape == o.shape and np.iscomplexobj(r) != np.iscomplexobj(o):
            trap = "real-and-complex"
        elif r.shape != o.shape or r.dtype != o.dtype or not np.all(np.isfinite(o)) or not np.all(np.isfinite(r)):
            continue
        elif not np.any(r):
            trap = "forgotten-gradient"
        elif conjugates[i]:
            trap = "conjugate-missing"
        elif np.iscomplexobj(o) and (_equal(r, o.real + 0j, digits) or _equal(r.real + 0j, o.real + 0j, digits)):
            trap = "real-and-complex"
        elif any(other.shape == o.shape for other in alike):
            trap = "permuted-cotangents"
        elif lower and relative_gap(r, o) < COARSE:
            trap = "low-precision-inside"
        elif uniform[i]:
            trap = "non-uniform-cotangent"
        elif _at_the_edge(r, o, digits):
            trap = "edge-of-the-image"
        elif np.isclose(np.sum(r), np.sum(o), digits, digits * size_of(o)) and _has_equal_axes(leaves, gs, o):
            trap = "summed-over-the-wrong-axis"
        else:
            continue
        traps[f"cotangent of {subject.names[i]}"] = trap
    return traps


def _equal(r: np.ndarray, o: np.ndarray, digits: float) -> bool:
    return relative_gap(r, o) <= digits


def _at_uniform_cotangents(subject: CallUnderTest, leaves: Leaves, gs: Leaves) -> list[bool]:
    """Return True for each argument whose cotangent is right, and not zero, at uniform cotangents of the outputs."""
    if all(g.size <= 1 for g in gs):
        return [False] * len(leaves)
    right, digits = [True] * len(leaves), float(np.sqrt(subject.eps))
    for level in (1.0, 3.0):
        found = subject.answers_at(leaves, tuple(np.full_like(g, level) for g in gs))
        for i, (r, o) in enumerate(zip(found.dxs, found.true_dxs, strict=True)):
            right[i] = right[i] and _equal(r, o, digits) and bool(np.any(o))
    return right


def _conjugates(subject: CallUnderTest, leaves: Leaves, gs: Leaves) -> list[bool]:
    """Return True for each argument whose cotangent is the conjugate of the right one at real output cotangents."""
    if not any(map(np.iscomplexobj, leaves)):
        return [False] * len(leaves)
    found = subject.answers_at(leaves, tuple(g.real.astype(g.dtype) for g in gs))
    pairs, digits = zip(found.dxs, found.true_dxs, strict=True), float(np.sqrt(subject.eps))
    return [np.iscomplexobj(o) and _equal(r, np.conj(o), digits) and not _equal(r, o, digits) for r, o in pairs]


def _at_the_edge(r: np.ndarray, o: np.ndarray, digits: float) -> bool:
    """Return True if along some axis only entries at its ends differ."""
    differs = np.abs(r - o) > digits * np.max(np.abs(o), initial=0.0)
    long = [(axis, n) for axis, n in enumerate(o.shape) if n >= SHORTEST]
    return any(not np.take(differs, range(1, n - 1), axis).any() for axis, n in long)


def _has_equal_axes(leaves: Leaves, gs: Leaves, o: np.ndarray) -> bool:
    """Return True if a larger array of the call, over which o is broadcast, has two axes of the size of one of o's."""
    return any(a.ndim > o.ndim and a.shape.count(n) > 1 for a in (*leaves, *gs) for n in o.shape if n > 1)


def _casts(program: Any, bits: int) -> Iterator[str]:
    """Yield the floating dtypes of fewer bits that a program, or one inside it, casts to."""
    for eqn in equations(program):
        if eqn.primitive.name == "convert_element_type":
            new, old = jnp.dtype(eqn.params["new_dtype"]), eqn.invars[0].aval.dtype
            if jnp.issubdtype(new, jnp.inexact) and jnp.issubdtype(old, jnp.inexact) and jnp.finfo(new).bits < bits:
                yield new.name


def _casts_lower(subject: CallUnderTest, leaves: Leaves, gs: Leaves) -> bool:
    """Return True if the passes, and not the oracle, cast to a lower precision than that of the arguments."""
    made = [jax.make_jaxpr(subject.pull(subject.call))(leaves, gs)]
    if subject.undifferentiable is None:
        made.append(jax.make_jaxpr(subject.pull(subject.oracle))(leaves, gs))
    else:
        made.append(jax.make_jaxpr(subject.oracle)(*leaves))
    bits = min(jnp.finfo(a.dtype).bits for a in leaves)
    lower, allowed = (set(_casts(program, bits)) for program in made)
    return bool(lower - allowed)


def lower_precision(subject: CallUnderTest, leaves: Leaves, gs: Leaves, gap: float) -> str:
    """Return "low-precision-inside" if a small relative error in float64 comes with a cast to fewer bits, else ""."""
    return "low-precision-inside" if gap < COARSE and _casts_lower(subject, leaves, gs) else ""
