"""Order two: the backward is itself differentiable, backwards and forwards, and right; or refused as declared."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import numpy as np

from vjplib.compat import x64
from vjplib.verification.call import Answers, CallUnderTest, Leaves, normal_of
from vjplib.verification.claim import Claim
from vjplib.verification.explain.diagnose import lower_precision, optimizes_remat, raised
from vjplib.verification.oracle import DRAWS, roundings
from vjplib.verification.report import Finding, describe_error, failed, noted, passed
from vjplib.verification.tolerance import SLACK, relative_gap, size_of

_REVERSE, _FORWARD = "reverse over reverse", "forward over reverse"


def check(subject: CallUnderTest, forwards: bool = True) -> Iterator[Finding]:
    """Yields a finding for each mode and each derivative, in float64 against the oracle.

    The pullback B(x, g) is differentiated in both arguments: its VJP with a random direction is reverse over reverse,
    its JVP forward over reverse. Rules that declare no second derivative must raise.

    Args:
        subject: what to examine.
        forwards: whether forward over reverse is computed too; if not it is lowered, which shows a refusal.
    """
    with x64():
        leaves = subject.leaves(np.float64)
        gs, directions = subject.cotangents(leaves, 1), subject.cotangents(leaves, 2)
        rng = np.random.default_rng((subject.seed, 4))
        tangents = tuple(normal_of(rng, a.shape, a.dtype) for a in leaves)
        point = (leaves, gs, tangents, directions)
        modes = {}
        for mode, second in ((_REVERSE, _backwards), (_FORWARD, _forwards)):
            last = second is _forwards and not forwards
            try:  # JAX refuses forward mode of a custom_vjp as late as it lowers the program
                program = jax.jit(lambda p, second=second: second(subject.pull(subject.call), *p))
                program.lower(point) if last else program.trace(point)
            except Exception as error:  # a refusal is a finding, whatever its type
                yield _refusal(subject, mode, error)
                continue
            if last and subject.order_two:
                yield passed(f"{mode} is not refused")
                continue
            modes[mode] = second
        pulls = (subject.pull(subject.call), subject.pull(subject.oracle))

        def second_order(modes: Mapping[str, Callable[..., Any]]) -> dict[str, Any]:
            return subject.compiled(lambda p: {m: [f(pull, *p) for pull in pulls] for m, f in modes.items()})(point)

        try:
            results = second_order(modes)
        except Exception:  # some refuse as late as they are compiled: one at a time, then, to know which
            results = {}
            for mode, second in modes.items():
                try:
                    results |= second_order({mode: second})
                except Exception as error:  # a refusal is a finding, whatever its type
                    yield _refusal(subject, mode, error)
        for mode, (found, expected) in results.items():
            if not subject.order_two:
                yield failed("not_refused", f"{mode} is declared to be refused, yet runs")
                continue
            finding = _compare(subject, mode, found, expected)
            yield finding if finding.level == "pass" else _suspected(subject, mode, modes[mode], point, found, expected)


def _suspected(
    subject: CallUnderTest, mode: str, second: Callable[..., Any], point: Any, found: Any, expected: Any
) -> Finding:
    """Returns the finding on derivatives that differ by more than their own size explains.

    The difference may be the rounding of what is as large as the first derivatives, or of terms that cancel.
    """
    leaves, gs, *_ = point
    answers = subject.answers(leaves, gs)
    scale = max(*(size_of(np.asarray(a)) for a in answers.true_dxs), *roundings(subject, leaves, gs))
    finding = _compare(subject, mode, found, expected, scale)
    if finding.level == "pass":
        return finding
    if _is_rounding(subject, second, point, found, expected, scale):
        message = f"{mode} undecided: all terms cancel, and what is left of the oracle is their rounding"
        return noted(message)
    parts = (found, expected) if second is _backwards else (found[1], expected[1])
    return replace(finding, trap=_trap(subject, (leaves, gs), answers, *parts, scale))


def _trap(
    subject: CallUnderTest, at: tuple[Leaves, Leaves], first: Answers, found: Any, expected: Any, scale: float
) -> str:
    """Returns the trap where the first derivatives are right, and the second are zero or of few digits."""
    first = jax.tree.map(np.asarray, first)
    gaps = [relative_gap(r, o) for r, o in zip(first.dxs, first.true_dxs, strict=True)]
    if any(gap > subject.digits(gap) for gap in gaps):
        return lower_precision(subject, *at, max(map(relative_gap, first.dxs, first.true_dxs)))
    pairs = [(np.asarray(r), np.asarray(o)) for r, o in zip(*map(jax.tree.leaves, (found, expected)), strict=True)]
    wrong = [(r, o) for r, o in pairs if (gap := relative_gap(r, o, scale)) > subject.digits(gap)]
    if any(not np.any(r) for r, _ in wrong):
        return "second-order-zero"
    return lower_precision(subject, *at, max(relative_gap(r, o, scale) for r, o in wrong))


def _is_rounding(
    subject: CallUnderTest, second: Callable[..., Any], point: Any, found: Any, expected: Any, scale: float
) -> bool:
    """Returns whether derivatives differ by no more than the oracle's move where each input is rounded in float64."""
    rng = np.random.default_rng((subject.seed, 8))
    unit = subject.eps / 2
    program = subject.compiled(lambda p: second(subject.pull(subject.oracle), *p))
    moved = [
        jax.tree.leaves(program(jax.tree.map(lambda a: a * (1 + unit * rng.uniform(-1, 1, np.shape(a))), point)))
        for _ in range(DRAWS)
    ]
    for i, (r, o) in enumerate(zip(*map(jax.tree.leaves, (found, expected)), strict=True)):
        r, o = np.asarray(r), np.asarray(o)
        noise = SLACK * max(size_of(np.asarray(part[i]) - o) for part in moved)
        gap = relative_gap(r, o, scale)
        if gap > subject.digits(gap) and not size_of(r - o) <= noise:
            return False
    return all(np.isfinite(np.asarray(r)).all() for r in jax.tree.leaves(found))


def _refusal(subject: CallUnderTest, mode: str, error: Exception) -> Finding:
    if subject.order_two:
        trap = "optimize-remat" if optimizes_remat(subject) else raised(subject, error)
        return failed("raises", f"{mode} raises {describe_error(error)}", trap=trap)
    return passed(f"{mode} is refused, as declared, by {describe_error(error)}")


def _backwards(pull: Callable[..., Any], xs: Leaves, gs: Leaves, tangents: Leaves, directions: Leaves) -> Any:
    del directions
    _, back = jax.vjp(lambda x, g: pull(x, g)[1], xs, gs)
    return back(tangents)


def _forwards(pull: Callable[..., Any], xs: Leaves, gs: Leaves, tangents: Leaves, directions: Leaves) -> Any:
    return jax.jvp(pull, (xs, gs), (tangents, directions))[1]  # of the outputs too, as jax.hessian has it


def _compare(subject: CallUnderTest, mode: str, found: Any, expected: Any, scale: float = 0.0) -> Finding:
    gaps = [
        ((gap := relative_gap(np.asarray(r), np.asarray(o), scale)) / subject.digits(gap), part)
        for r, o, part in zip(*map(jax.tree.leaves, (found, expected)), _parts(subject, mode, found), strict=True)
    ]
    worst, at = max(gaps)
    if worst > 1:
        return failed("wrong_value", f"{mode} differs from the oracle {at}", "", worst)
    return passed(f"{mode} equals the oracle", "", worst)


def _parts(subject: CallUnderTest, mode: str, found: tuple[Leaves, Leaves]) -> list[str]:
    """Returns where a second derivative stands, for each array of it."""
    if mode == _REVERSE:
        inputs = [*subject.names, *(f"the cotangent of output {i}" for i in range(len(found[1])))]
        return [f"in the derivative with respect to {x}" for x in inputs]
    outputs = [*(f"output {i}" for i in range(len(found[0]))), *(f"the cotangent of {name}" for name in subject.names)]
    return [f"in the derivative of {y}" for y in outputs]


CLAIM = Claim(
    "second_order",
    check,
    alias="V5",
    quick=partial(check, forwards=False),
    further={"standard": check},
    cost=(8, 18),
)
