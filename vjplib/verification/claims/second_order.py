"""Second order: the backward is itself differentiable, backwards and forwards, and right; or refused as declared."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import numpy as np

from vjplib.compat import not_offered, x64
from vjplib.verification.call import CallUnderTest, attempt_all, normal_of
from vjplib.verification.claim import Claim
from vjplib.verification.explain.diagnose import lower_precision, passes_of, raised
from vjplib.verification.oracle import DRAWS, roundings
from vjplib.verification.report import Finding, describe_error, failed, noted, passed
from vjplib.verification.tolerance import SLACK, relative_gap, size_of

_REVERSE, _FORWARD = "reverse over reverse", "forward over reverse"
Pairs = Sequence[tuple[np.ndarray, np.ndarray]]  # the second derivatives of the function, and of the oracle


def check(subject: CallUnderTest, forwards: bool = True) -> Iterator[Finding]:
    """Yield a finding for each mode, in float64 against the oracle.

    The pullback B(x, g) is differentiated in both arguments: its VJP with a random direction is reverse over reverse,
    its JVP forward over reverse; without `forwards` the latter is only lowered, which shows a refusal. Rules that
    declare no second derivative must raise.
    """
    with x64():
        leaves = subject.leaves(np.float64)
        gs, directions = subject.cotangents(leaves, 1), subject.cotangents(leaves, 2)
        rng = np.random.default_rng((subject.seed, 4))
        point = ((leaves, gs), tuple(normal_of(rng, a.shape, a.dtype) for a in leaves), directions)
        pulls = (subject.pull(subject.call), subject.pull(subject.oracle))
        only_lowered = {_FORWARD} if subject.order_two and not forwards else set()

        def traced(mode: str) -> Any:
            program = jax.jit(lambda p: _MODES[mode](pulls[0], *p))
            # JAX refuses forward mode of a custom_vjp as late as it lowers the program.
            return (program.trace if forwards or mode == _REVERSE else program.lower)(point)

        def second_order(modes: Sequence[str]) -> Any:
            ran = [mode for mode in modes if mode not in only_lowered]
            run = subject.compiled(lambda p: {mode: [_MODES[mode](pull, *p) for pull in pulls] for mode in ran})
            return dict.fromkeys(modes) | (jax.device_get(run(point)) if ran else {})

        # Some refuse as late as they are compiled.
        for mode, found in attempt_all(second_order, {mode: partial(traced, mode) for mode in _MODES}).items():
            if isinstance(found, Exception):
                yield _refusal(subject, mode, found)
            elif not subject.order_two:
                yield failed("not_refused", f"{mode} is declared to be refused, yet runs")
            elif mode in only_lowered:
                yield passed(f"{mode} is not refused")
            else:
                yield _judged(subject, mode, point, list(zip(*map(jax.tree.leaves, found), strict=True)))


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
        program(jax.tree.map(lambda a: a * (1 + unit * rng.uniform(-1, 1, np.shape(a))), point)) for _ in range(DRAWS)
    ]
    for (r, o), moved in zip(pairs, zip(*draws, strict=True), strict=True):
        noise = SLACK * max(size_of(np.asarray(m) - o) for m in moved)
        if subject.ratio(relative_gap(r, o, scale)) > 1 and not size_of(r - o) <= noise:
            return False
    return all(np.isfinite(r).all() for r, _ in pairs)


def _refusal(subject: CallUnderTest, mode: str, error: Exception) -> Finding:
    if subject.order_two:
        if missing := not_offered(error):
            return noted(f"{mode} is not offered: the primitive does not support {missing}")
        trap = "optimize-remat" if any(rule.optimize_remat for rule in passes_of(subject)) else raised(subject, error)
        return failed("raises", f"{mode} raises {describe_error(error)}", trap=trap)
    return passed(f"{mode} is refused, as declared, by {describe_error(error)}")


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

CLAIM = Claim("second_order", check, alias="V5", quick=_lowered, further={"standard": check}, cost=(8, 18))
