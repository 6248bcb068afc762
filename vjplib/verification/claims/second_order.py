"""Second order: the backward is itself differentiable, backwards and forwards, and right; or refused as declared."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import numpy as np

from vjplib.compat import not_offered, strip_custom_rules, x64
from vjplib.verification.call import CallUnderTest, Leaves, attempt, attempt_all, normal_of
from vjplib.verification.claim import Claim, reduced
from vjplib.verification.domain import Doubt, as_findings
from vjplib.verification.explain.diagnose import lower_precision, passes_of, raised
from vjplib.verification.oracle import DRAWS, roundings
from vjplib.verification.report import Finding, describe_error, failed, noted, passed
from vjplib.verification.tolerance import SLACK, relative_gap, size_of

_REVERSE, _FORWARD = "reverse over reverse", "forward over reverse"
_OVER = {_REVERSE: "reverse", _FORWARD: "forward"}  # as `order_two` names them
Pairs = Sequence[tuple[np.ndarray, np.ndarray]]  # the second derivatives of the function, and of the oracle


def check(subject: CallUnderTest, forwards: bool = True) -> Iterator[Finding]:
    """Yield a finding for each mode, in float64 against the oracle.

    The pullback B(x, g) is differentiated in both arguments: its VJP with a random direction is reverse over reverse,
    its JVP forward over reverse; without `forwards` the latter is only lowered, which shows a refusal. A mode that is
    declared to be refused must raise. Where that of the oracle raises too, nothing is held against the function.
    """
    with x64():
        leaves = subject.leaves(np.float64)
        gs, directions = subject.cotangents(leaves, 1), subject.cotangents(leaves, 2)
        rng = np.random.default_rng((subject.seed, 4))
        point = ((leaves, gs), tuple(normal_of(rng, a.shape, a.dtype) for a in leaves), directions)
        pulls = (subject.pull(subject.call), subject.pull(subject.oracle))
        only_lowered = {_FORWARD} if subject.offers("forward") and not forwards else set()

        def traced(mode: str) -> Any:
            program = jax.jit(lambda p: _MODES[mode](pulls[0], *p))
            # JAX refuses forward mode of a custom_vjp as late as it lowers the program.
            return (program.trace if forwards or mode == _REVERSE else program.lower)(point)

        def second_order(modes: Sequence[str]) -> Any:
            for mode in only_lowered.intersection(modes):
                traced(mode)
            ran = [mode for mode in modes if mode not in only_lowered]
            run = subject.compiled(lambda p: {mode: [_MODES[mode](pull, *p) for pull in pulls] for mode in ran})
            return dict.fromkeys(modes) | (jax.device_get(run(point)) if ran else {})

        # Some refuse as late as they are compiled.
        results = attempt_all(second_order, {mode: partial(traced, mode) for mode in _MODES})
        stated = _stated({_OVER[mode]: not isinstance(found, Exception) for mode, found in results.items()})
        for mode, found in results.items():
            if isinstance(found, Exception):
                yield _refusal(subject, mode, found, point, stated)
            elif not subject.offers(_OVER[mode]):
                yield failed("not_refused", f"{mode} is declared to be refused, yet runs: {stated} says what happens")
            elif mode in only_lowered:
                yield passed(f"{mode} is not refused")
            else:
                pairs = list(zip(*map(jax.tree.leaves, found), strict=True))
                if mode == _FORWARD and subject.reference is not None:
                    pairs, own = _outputs_as_written(subject, point, pairs)
                    if own:
                        message = "is that of the function as it is written, not the reference's"
                        outputs = " and ".join(f"output {i}" for i in own)
                        yield noted(f"{mode}: the derivative of {outputs} {message}: JAX has no other")
                judged = _judged(subject, mode, point, pairs)
                yield _along_the_domain(subject, mode, point, judged) if judged.level == "fail" else judged


def _along_the_domain(subject: CallUnderTest, mode: str, point: Any, judged: Finding) -> Finding:
    """Return a failure; a doubt if it is right along the properties of the arguments, such as among symmetric ones."""
    (leaves, gs), tangents, directions = point
    domain = subject.domain
    along = domain and domain.tangent(subject.differentiable, leaves, tangents)
    if domain is None or along is None:
        return judged
    at = ((leaves, gs), along if mode == _FORWARD else tangents, directions)
    program = subject.compiled(lambda p: [_MODES[mode](subject.pull(f), *p) for f in (subject.call, subject.oracle)])
    both = jax.device_get(program(at))
    if mode == _REVERSE:  # the cotangents of the arguments count along the properties alone
        both = [(domain.tangent(subject.differentiable, leaves, dxs), rest) for dxs, rest in both]
    again = _judged(subject, mode, at, list(zip(*map(jax.tree.leaves, both), strict=True)))
    if again.level == "fail":
        return judged
    lost = {
        n: ", ".join(p.name for p in domain.of(i))
        for i, n in zip(subject.differentiable, subject.names, strict=True)
        if domain.of(i)
    }
    return next(iter(as_findings([Doubt(f"second order, {mode}, along directions", (), lost)])))


def _judged(subject: CallUnderTest, mode: str, point: Any, pairs: Pairs) -> Finding:
    """Return the finding on one mode.

    A difference may be the rounding of numbers as large as the first derivatives, or of terms that cancel.
    """
    finding = _compare(subject, mode, pairs)
    if finding.level == "pass":
        return finding
    leaves, gs = point[0]
    first = subject.answers_at(leaves, gs)
    scale = max(*map(size_of, first.true_dxs), *roundings(subject, leaves, gs))
    finding = _compare(subject, mode, pairs, scale)
    if finding.level == "pass":
        return finding
    if _is_rounding(subject, mode, point, pairs, scale):
        return noted(f"{mode} undecided: all terms cancel, and what is left of the oracle is their rounding")
    gaps = [relative_gap(r, o) for r, o in zip(first.dxs, first.true_dxs, strict=True)]
    if all(subject.ratio(gap) <= 1 for gap in gaps):
        pairs = pairs if mode == _REVERSE else pairs[len(gs) :]  # those of the cotangents
        wrong = [(r, gap) for r, o in pairs if subject.ratio(gap := relative_gap(r, o, scale)) > 1]
        if not all(np.any(r) for r, _ in wrong):
            return replace(finding, trap="second-order-zero")
        gaps = [gap for _, gap in wrong]
    return replace(finding, trap=lower_precision(subject, leaves, gs, max(gaps, default=np.inf)))


def _is_rounding(subject: CallUnderTest, mode: str, point: Any, pairs: Pairs, scale: float) -> bool:
    """Return True if rounding each input in float64 changes the oracle's derivatives by as much as these differ."""
    rng = np.random.default_rng((subject.seed, 8))
    unit = subject.eps / 2
    program = subject.compiled(lambda p: jax.tree.leaves(_MODES[mode](subject.pull(subject.oracle), *p)))
    draws = [
        program(jax.tree.map(lambda a: (a * (1 + unit * rng.uniform(-1, 1, np.shape(a)))).astype(a.dtype), point))
        for _ in range(DRAWS)
    ]
    for (r, o), moved in zip(pairs, zip(*draws, strict=True), strict=True):
        noise = SLACK * max(size_of(np.asarray(m) - o) for m in moved)
        if subject.ratio(relative_gap(r, o, scale)) > 1 and not size_of(r - o) <= noise:
            return False
    return all(np.isfinite(r).all() for r, _ in pairs)


def _outputs_as_written(subject: CallUnderTest, point: Any, pairs: Pairs) -> tuple[Pairs, list[int]]:
    """Return the pairs of forward over reverse, and the outputs whose derivative is the function's own.

    In that mode JAX differentiates the forward pass as plain code, whatever the rule says: where the reference has a
    surrogate's derivative, as a straight-through sign has, no rule can give it. Such outputs stand beside the
    derivative of the primal, custom rules stripped. The cotangents stay beside the reference's.
    """
    count = len(point[0][1])
    wrong = [i for i, (r, o) in enumerate(pairs[:count]) if subject.ratio(relative_gap(r, o)) > 1]
    if not wrong:
        return pairs, []
    (leaves, _), tangents, _ = point
    program = subject.compiled(lambda xs, ts: jax.jvp(strip_custom_rules(subject.call), xs, ts)[1])
    plain = attempt(lambda: jax.device_get(program(leaves, tangents)))
    if isinstance(plain, Exception):
        return pairs, []
    own = [i for i in wrong if np.isfinite(plain[i]).all() and subject.ratio(relative_gap(pairs[i][0], plain[i])) <= 1]
    return [(r, plain[i]) if i in own else (r, o) for i, (r, o) in enumerate(pairs)], own


def _refusal(subject: CallUnderTest, mode: str, error: Exception, point: Any, stated: str) -> Finding:
    raises = f"{mode} raises {describe_error(error)}"
    if not subject.offers(_OVER[mode]):
        return passed(f"{mode} is refused, as declared, by {describe_error(error)}")
    if missing := not_offered(error):
        return noted(f"{mode} is not offered: the primitive does not support {missing}")
    # Both are compiled together, so the error may be the oracle's.
    if isinstance(attempt(lambda: jax.jit(_derivative(mode, subject.oracle, subject)).lower(point)), Exception):
        return noted(f"{raises}; so does that of the oracle")
    trap = "optimize-remat" if any(rule.optimize_remat for rule in passes_of(subject)) else raised(subject, error)
    return failed("raises", f"{raises}; where that is meant, state it: {stated}", trap=trap)


def _derivative(mode: str, f: Callable[..., Leaves], subject: CallUnderTest) -> Callable[[Any], Any]:
    """Return the second derivative of a flat function in a mode, a function of the point."""
    return lambda p: _MODES[mode](subject.pull(f), *p)


def _stated(runs: Mapping[str, bool]) -> str:
    """Return the `order_two` that says which modes run.

    Example:
        >>> _stated({"reverse": False, "forward": True}), _stated({"reverse": False, "forward": False})
        ("order_two={'reverse': False, 'forward': True}", 'order_two=False')
    """
    every = set(runs.values())
    return f"order_two={every.pop() if len(every) == 1 else dict(runs)}"


_MODES: dict[str, Callable[..., Any]] = {
    _REVERSE: lambda pull, at, tangents, directions: jax.vjp(lambda *p: pull(*p)[1], *at)[1](tangents),
    # of the outputs too, as in jax.hessian
    _FORWARD: lambda pull, at, tangents, directions: jax.jvp(pull, at, (tangents, directions))[1],
}


def _compare(subject: CallUnderTest, mode: str, pairs: Pairs, scale: float = 0.0) -> Finding:
    names, outputs = subject.names, [f"output {i}" for i in range(len(pairs) - len(subject.names))]
    if mode == _REVERSE:
        inputs = [*names, *(f"the cotangent of {y}" for y in outputs)]
        parts = [f"in the derivative with respect to {x}" for x in inputs]
    else:
        parts = [f"in the derivative of {y}" for y in (*outputs, *(f"the cotangent of {x}" for x in names))]
    ratios = [subject.ratio(relative_gap(r, o, scale)) for r, o in pairs]
    worst, where = max(zip(ratios, parts, strict=True))
    if worst > 1:
        return failed("wrong_value", f"{mode} differs from the oracle {where}", "", worst)
    return passed(f"{mode} equals the oracle", "", worst)


_lowered = partial(check, forwards=False)

CLAIM = Claim("second_order", check, alias="V5", quick=reduced(_lowered), further={"standard": check}, cost=(8, 18))
