"""Judge: verifies one rule at the calls that a program made of it, and sums up the findings.

The claims of `vjplib.verification` are examined at the inputs of the program only. How a rule behaves elsewhere, at
other sizes, scales or dtypes, does not matter to the program: "deep" examines it, and adds notes only.
"""

import inspect
import time
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from vjplib.auditing.by_design import by_design, iterated, kinks
from vjplib.auditing.forward import check as forward
from vjplib.auditing.recording import CallGroup, KeyData, RecordedCall
from vjplib.auditing.sampling import APART, CHOICE, beside_autodiff, deciding, draws
from vjplib.compat import x64
from vjplib.verification.call import CallUnderTest, Leaves, Static, as_taken_by_jax, attempt, inexact, parameters
from vjplib.verification.claim import Check, Claim
from vjplib.verification.claims import contract, edges, linearity, modes, second_order, taylor, transforms, value
from vjplib.verification.claims.residuals import residual_bytes
from vjplib.verification.explain import locate
from vjplib.verification.isolation import run_with_timeout
from vjplib.verification.report import Finding, describe_error, explained, failed, noted, passed, skipped
from vjplib.verification.tolerance import HALF_THE_DIGITS, Error, unit_of

Effort = Literal["quick", "standard", "deep"]
Verdict = Literal["pass", "fail", "note", "undecided"]
SAMPLES = {"quick": 1, "standard": 3, "deep": 8}
DECIDING = (value.CLAIM.name, taylor.CLAIM.name)
SINGLE = 64 * float(np.finfo(np.float32).eps)
BEYOND = (transforms.CLAIM, second_order.CLAIM, edges.CLAIM)  # examined in "deep"


@dataclass(frozen=True)
class Judgement:
    """The judgement on a group of calls.

    Args:
        verdict: "pass"; "fail"; "note", where a difference is by design or nothing is differentiated; or "undecided".
        reason: why, as text; empty for a pass without a remark.
        findings: all findings.
        error: the largest error of a cotangent against float64, relative to its size; None where none was measured.
        autodiff_error: the same error of autodiff of the primal.
        relative: the error as a multiple of autodiff's; None where autodiff makes none.
        kept: the bytes that one call keeps for its backward.
        autodiff_kept: the bytes that autodiff of the primal would keep.
        sampled: how many calls were examined.
        seconds: the time taken.
    """

    verdict: Verdict
    reason: str
    findings: tuple[Finding, ...] = ()
    error: float | None = None
    autodiff_error: float | None = None
    relative: float | None = None
    kept: int | None = None
    autodiff_kept: int | None = None
    sampled: int = 0
    seconds: float = 0.0


def judge(group: CallGroup, effort: Effort, seed: int, seconds: float, known: str | None = None) -> Judgement:
    """Return the judgement on a group of calls; an exception of the rule, or its taking longer, is a finding.

    `known` is why a difference is by design, as the caller says; None if the caller says nothing.
    """
    start = time.perf_counter()
    calls = [call for _, call in group.sample][: SAMPLES[effort]]
    drawn = ""
    if not calls and group.first is not None and not group.unseen:
        call = group.first.draw(np.random.default_rng((seed, 7)))
        calls, drawn = [call] if call else [], "on random numbers, because it was traced and never ran"
    if not calls:
        why = group.unseen or "it was traced and never ran, and takes integers that cannot be made up"
        return Judgement("undecided", f"no values were recorded: {why}")
    work = _Work(group, calls, seed, effort)
    outcome = run_with_timeout(work.run, seconds)
    took = time.perf_counter() - start
    if outcome is None:
        if not work.narrowed:
            work.findings = [replace(f, level="skipped") if f.level == "fail" else f for f in work.findings]
        work.sampled(work.subjects[0])
        work.add(skipped(f"did not end within {seconds:.0f} s", code="timeout"))
    elif isinstance(outcome, BaseException):
        work.add(skipped(f"cannot be examined: {_describe(outcome)}"))
    return replace(work.judged(drawn, known), sampled=len(calls), seconds=took)


def _restricted(subject: CallUnderTest, perturbed: tuple[bool, ...], outputs: set[int]) -> CallUnderTest:
    """Return the call as the program uses it: only these leaves differentiated, only these outputs."""
    marks = iter(perturbed)
    fixed = jax.tree.map(lambda a: a if next(marks) else Static(a), subject.args) if any(perturbed) else subject.args

    def bare(a: Any) -> Any:
        return jnp.asarray(a.value) if isinstance(a, Static) else a

    def fn(*args: Any) -> Any:
        floating = inexact(subject.fn(*jax.tree.map(bare, args, is_leaf=lambda a: isinstance(a, Static))))
        return [y for i, y in enumerate(floating) if i in outputs or not outputs]

    fn.__name__ = getattr(subject.fn, "__name__", "fn")
    names = parameters(subject.fn, len(subject.args))
    kind = inspect.Parameter.POSITIONAL_ONLY
    if all(map(str.isidentifier, names)) and len(set(names)) == len(names):
        vars(fn)["__signature__"] = inspect.Signature([inspect.Parameter(n, kind) for n in names])
    kept = [i for i in range(len(jax.tree.leaves(subject.args))) if not any(perturbed) or perturbed[i]]
    weak = frozenset(n for n, i in enumerate(kept) if i in subject.weak)
    return CallUnderTest(fn, fixed, seed=subject.seed, weak=weak)


def _subject(group: CallGroup, call: RecordedCall, seed: int) -> CallUnderTest:
    def key(leaf: Any) -> Any:
        if not isinstance(leaf, KeyData):
            return leaf
        return jax.random.wrap_key_data(jnp.asarray(leaf.data), impl=leaf.dtype._impl.name)

    def number(leaf: Any) -> Any:
        return leaf if callable(leaf) or isinstance(leaf, str) or np.ndim(leaf) else as_taken_by_jax(leaf)

    args = [jax.tree.map(key, a, is_leaf=_is_key_data) for a in call.args]
    args = [Static(a) if i in group.static else jax.tree.map(number, a) for i, a in enumerate(args)]
    moving = [flag for i, flag in enumerate(call.weak) if i not in group.static]
    weak = frozenset(i for i, flag in enumerate(jax.tree.leaves(moving)) if flag)
    return CallUnderTest(call.fn, tuple(args), seed=seed, weak=weak)


def _marks(group: CallGroup, call: RecordedCall) -> tuple[bool, ...]:
    """Return which leaves of the arguments that are not static the program differentiated by."""
    owners = [i for i, a in enumerate(call.args) for _ in jax.tree.leaves(a, is_leaf=_is_key_data)]
    pairs = zip(owners, call.perturbed, strict=True) if call.perturbed else ()
    return tuple(mark for i, mark in pairs if i not in group.static)


def _is_key_data(leaf: Any) -> bool:
    return isinstance(leaf, KeyData)


def _describe(error: BaseException) -> str:
    if isinstance(error, jax.errors.UnexpectedTracerError):
        return "it closes over a value of the program that was being traced, and cannot be called outside of it"
    if isinstance(error, NameError) and "axis" in str(error):
        return "it needs the mesh axes that it was called under"
    return describe_error(error) if isinstance(error, Exception) else type(error).__name__


class _Work:
    """The examination of one group; its findings stay if time runs out."""

    def __init__(self, group: CallGroup, calls: list[RecordedCall], seed: int, effort: Effort) -> None:
        self.group, self.calls, self.effort = group, calls, effort
        self.subjects = [_subject(group, call, seed) for call in calls]
        self.findings: list[Finding] = []
        self.errors: list[tuple[str, Error]] = []
        self.kept: tuple[int, int] | None = None
        self.design, self.remark, self.refused = "", "", False
        self.elsewhere = False  # whether the primal is another function in float64
        self.narrowed = False  # whether it is known if the program differentiates fewer arguments or outputs

    def run(self) -> bool:
        """Fill findings, errors and kept; return True."""
        double = any(a.dtype in (np.float64, np.complex128) for a in self.subjects[0].leaves())
        with x64() if double else nullcontext(), np.errstate(all="ignore"):
            self._as_requested()
        return True

    def _as_requested(self) -> None:
        """Examine the call by every argument and output; if that fails, by those that the program differentiates."""
        self._run()
        self.narrowed = True
        outputs = self.group.requested if len(self.group.requested) < self.group.outputs else set()
        marks = _marks(self.group, self.calls[0])
        subject = self.subjects[0]
        fewer = any(marks) and not all(marks[i] for i in subject.differentiable)
        failures = [f for f in self.findings if f.level == "fail" or (fewer and f.code == "sampler")]
        if failures and not self.design and (outputs or fewer):
            self.findings, self.errors, self.kept = [], [], None
            pairs = zip(self.subjects, self.calls, strict=True)
            self.subjects = [_restricted(s, _marks(self.group, call) if fewer else (), outputs) for s, call in pairs]
            self.refused = failures[0].code == "derivative_raises"
            self.remark = f"as this program differentiates it; by all arguments and outputs: {failures[0]}"
            self._run()
        if self.effort != "quick" and not self.design and self.errors and any(f.level == "fail" for f in self.findings):
            with suppress(Exception):  # the rule may not run in float64
                self.findings = explained(self.findings, locate.explain(self.subjects[0]))

    def add(self, *findings: Finding) -> None:
        """Add findings, by default of the claim on values."""
        self.findings += [f if f.claim else replace(f, claim=value.CLAIM.name) for f in findings]

    def _run(self) -> None:
        subject = self.subjects[0]
        if refusal := self._refusal(subject):
            self.add(refusal)
            return
        if self.group.kind != "custom_jvp":
            self._guarded(contract.CLAIM, partial(contract.check, dtypes=()), subject)
        if subject.undifferentiable is not None:
            self.add(skipped(f"JAX cannot differentiate the primal: {subject.undifferentiable}"))
            self._guarded(taylor.CLAIM, taylor.check, subject)
            self.sampled(subject)
            self._iterated(subject)
            return
        leaves = subject.leaves()
        self.kept = residual_bytes(subject.call, *leaves), residual_bytes(subject.oracle, *leaves)
        for number, other in enumerate(self.subjects):
            self._values(other, number)
        if self.group.kind == "custom_jvp":
            self._guarded(value.CLAIM, partial(forward, elsewhere=self.elsewhere), subject)
        if self.group.kind in ("hijax", "linear_call"):
            self._guarded(modes.CLAIM, modes.check, subject)
        self._guarded(linearity.CLAIM, linearity.check, subject)
        if any(f.level == "fail" for f in self.findings):
            self.design = by_design(subject)
            if not self.design:
                self.sampled(subject)
        if self.effort == "deep":
            for claim in BEYOND:
                self._guarded(claim, claim.further.get("standard", claim.check), subject, beyond=True)

    def _refusal(self, subject: CallUnderTest) -> Finding | None:
        """Return a finding if the rule has no derivative here; None if it has one."""
        if not subject.differentiable:
            return noted("nothing to differentiate: its arguments are no floating numbers")
        leaves = subject.leaves()
        try:
            gs = subject.cotangents(leaves)
        except Exception as error:  # it ran in the program, so only the call outside of it fails
            return skipped(f"cannot be called alone: {_describe(error)}", code="undecided_call")
        if not gs:
            return noted("nothing to differentiate: it returns no floating numbers")
        try:
            jax.eval_shape(subject.pull(subject.call), leaves, gs)
        except (jax.errors.UnexpectedTracerError, NameError) as error:
            return skipped(f"cannot be called alone: {_describe(error)}", code="undecided_call")
        except Exception as error:  # whatever the rule raises is a finding
            if self.group.derived:
                return failed("derivative_raises", f"its derivative raises {describe_error(error)}")
            return noted(f"its derivative, which this program does not use, raises {describe_error(error)}")
        return None

    def _values(self, subject: CallUnderTest, number: int) -> None:
        """Compare with the oracle in the dtypes of the call, and in float32 too if those are of 16 bits."""
        short = unit_of(subject.leaves()) > np.finfo(np.float32).eps / 2
        for dtype in (None, np.float32) if short else (None,):
            leaves = subject.leaves(dtype)
            where = f"call {number + 1} of the sample" + (" in float32" if dtype else "")
            try:
                errors = list(value.compare(subject, leaves, subject.cotangents(leaves)))
            except Exception as error:  # the call's own dtypes were traced above; it may refuse others
                undecided = noted if dtype else skipped
                self.add(undecided(f"{where}: undecided, raises {_describe(error)}", code="undecided_call"))
                continue
            coarse = bool(unit_of(leaves) > np.finfo(np.float32).eps / 2)
            apart = any(e.of_autodiff > APART for name, e in errors if name.startswith("output"))
            if apart and (not coarse or attempt(lambda: draws(subject)) is True):
                self.elsewhere, self.errors = True, []
                self._beside_autodiff(subject, leaves, where, coarse)
                continue
            failed = [name for name, e in errors if e.excused > 1]
            excuses = kinks(subject, leaves, failed) if failed else {}
            for name, e in errors:
                self.add(_judged(name, e, where, excuses.get(name)))
                if dtype is None and name not in excuses and e.known > 0:  # at a kink a difference is no error
                    self.errors.append((name, e))
        if number == 0 and not any(f.level == "fail" for f in self.findings):
            self._guarded(value.CLAIM, value.in_float64, subject, beyond=True)

    def _iterated(self, subject: CallUnderTest) -> None:
        """Leave a small difference from the derivative of a solver's steps undecided."""
        failures = [i for i, f in enumerate(self.findings) if f.level == "fail" and f.claim == taylor.CLAIM.name]
        reason = attempt(lambda: iterated(subject)) if failures else ""
        if reason and not isinstance(reason, Exception):  # a loop need not have a forward derivative
            for i in failures:
                f = self.findings[i]
                self.findings[i] = replace(f, level="skipped", code="solver", message=f"{reason}; {f.message}")

    def sampled(self, subject: CallUnderTest) -> None:
        """Leave undecided the cotangents of arguments that decide which random numbers are used.

        And tangents and parts of a hijax primitive, which are compared for all arguments together.
        """
        failures = [i for i, f in enumerate(self.findings) if f.level == "fail" and f.code == "wrong_value"]
        names = attempt(lambda: deciding(subject)) if failures else []
        if isinstance(names, Exception) or not names:
            return
        reason, cotangents = CHOICE.format(" and ".join(names)), [f"cotangent of {name}" for name in names]
        for i in failures:
            f = self.findings[i]
            if f.argument in cotangents or f.argument.startswith("tangent of") or f.claim == modes.CLAIM.name:
                self.findings[i] = replace(f, level="skipped", code="sampler", message=f"{reason}; {f.message}")

    def _beside_autodiff(self, subject: CallUnderTest, leaves: Leaves, where: str, coarse: bool) -> None:
        """Compare with autodiff in the dtypes of the call, where the primal is another function in float64.

        A primal that draws random numbers is: in float64 it draws other ones. In 16 bits a difference is noted.
        """
        found, unit = subject.answers_at(leaves, subject.cotangents(leaves)), unit_of(leaves)
        for name, r, a in zip(subject.names, found.dxs, found.true_dxs, strict=True):
            self.add(beside_autodiff(f"cotangent of {name}", r, a, unit, where, coarse))

    def _guarded(self, claim: Claim, check: Check, subject: CallUnderTest, beyond: bool = False) -> None:
        found: list[Finding] = []
        try:
            found.extend(check(subject))
        except Exception as error:  # mostly in float64, which a rule need not take
            found.append(noted(f"undecided, raises {_describe(error)}"))
        for f in found:
            f = replace(f, claim=f.claim or claim.name)
            if _no_fault(f):
                f = replace(f, level="note")
            if beyond and f.level in ("fail", "skipped"):
                f = replace(f, level="note", message=f"beyond what the program does, {f.message}")
            self.findings.append(f)

    def judged(self, drawn: str, known: str | None) -> Judgement:
        """Return the judgement on the findings."""
        design = self.design or known
        findings = list(self.findings)
        for i, f in enumerate(findings) if design else ():
            if f.level == "fail":
                findings[i] = replace(f, level="note", code="by_design", message=f"{f.message}; {design}")
        cotangents = [e for name, e in self.errors if name.startswith("cotangent")] or [e for _, e in self.errors]
        worst = max(cotangents, key=lambda e: e.size) if cotangents else None
        relative = [e.relative for e in cotangents if np.isfinite(e.relative)]
        verdict, reason = _verdict(findings, design)
        if self.remark and verdict != "fail" and not any(f.code == "sampler" for f in findings):
            verdict = "note" if verdict == "pass" and not self.refused else verdict
            reason = f"{reason or 'right'}, {self.remark}"
        return Judgement(
            verdict,
            "; ".join(part for part in (drawn, reason) if part),
            tuple(findings),
            worst.size if worst else None,
            worst.of_autodiff if worst else None,
            max(relative) if relative else None,
            *(self.kept or (None, None)),
        )


def _verdict(findings: list[Finding], design: str | None) -> tuple[Verdict, str]:
    by_level = {level: [f for f in findings if f.level == level] for level in ("fail", "pass", "skipped", "note")}
    shown = [f for f in by_level["pass"] if f.claim in DECIDING]
    if failures := by_level["fail"]:
        return "fail", str(failures[0])
    if design and any(f.code == "by_design" for f in by_level["note"]):
        return "note", design
    if excused := [f for f in by_level["skipped"] if f.code in ("sampler", "solver")]:
        return "undecided", excused[0].message
    if undecided := [f for f in by_level["skipped"] if f.claim in DECIDING]:
        if shown and all(f.claim == taylor.CLAIM.name for f in shown):
            return "pass", f"by Taylor's remainder alone: {undecided[0].message}"
        if not shown or any(f.code == "undecided_call" for f in undecided):
            return "undecided", undecided[0].message
    if shown:
        kinked = [f for f in by_level["note"] if f.code == "kink"]
        return "pass", kinked[0].message if kinked else ""
    notes = [f for f in by_level["note"] if f.claim == value.CLAIM.name] or by_level["note"]
    return ("note", notes[0].message) if notes else ("undecided", "no claim was decided")


def _no_fault(f: Finding) -> bool:
    """Return whether a failure does not matter to any program.

    Only JAX can call the passes of some rules; some compute in float32 whatever their inputs are.
    """
    coarse = f.claim == linearity.CLAIM.name and f.ratio is not None and f.ratio * HALF_THE_DIGITS <= SINGLE
    return f.level == "fail" and (coarse or f.code == "passes_raise")


def _judged(name: str, e: Error, where: str, excuse: str | None) -> Finding:
    at = {"argument": name, "ratio": e.ratio, "index": e.index}
    if e.excused > 1:
        if excuse:
            return noted(f"{where}: {excuse}", code="kink", **at)
        kind = "differs from the float64 oracle" if np.isfinite(e.excused) else "not finite where the oracle is"
        return failed("wrong_value", f"{where}: {kind}", **at)
    if e.known == 0:
        return skipped(f"{where}: undecided, the oracle is NaN there", code="undecided_call", **at)
    if e.ratio > 1:
        return skipped(f"{where}: undecided, {e.excuse}", code="undecided_call", **at)
    if e.known < 1:
        return noted(f"{where}: the oracle is NaN at {1 - e.known:.0%} of it, undecided there", **at)
    return passed(f"{where}: equals the float64 oracle", **at)
