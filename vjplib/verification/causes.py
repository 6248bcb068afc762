"""Causes: the failures of a report grouped by the mistake that explains them, and the paragraph on each."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from vjplib.verification.explain.traps import describe
from vjplib.verification.report import SIZES, Code, Finding, Report

_OF_VALUES = ("value", "variations", "edges", "accuracy", "taylor")
_DERIVED = ("edges", "variations")
_WRONG: tuple[Code, ...] = ("wrong_value", "inaccurate")
_NAMES = {"second_order": "second order", "taylor": "Taylor's remainder"}
_HEADINGS: Mapping[Code, str] = {
    "both_wrong": "someone's derivative is wrong: the rule and autodiff of the reference agree in float32 on garbage",
    "not_linear": "the backward is not linear in the cotangent",
    "hidden_state": "two runs give different numbers",
    "wrong_aval": "a shape, dtype or tree is wrong",
    "raises": "it raises an exception",
    "passes_raise": "the passes raise an exception where they are called alone",
    "derivative_raises": "its derivative raises an exception",
    "not_refused": "second derivatives are declared to be refused, and run",
    "residual_bytes": "the residuals are not of the size claimed",
    "growth": "time or memory grows too fast",
    "communication": "data is sent between devices",
    "side_effect": "it changes the state of the process",
    "prints": "it prints",
    "timeout": "it did not end in time",
    "died": "the process died",
    "unusable_record": "the record cannot be used",
}
LINES = 6
"""As many lines of detail a paragraph has at most."""


@dataclass(frozen=True)
class Cause:
    """Failures reported together.

    Args:
        lead: the failure that is explained, or the first.
        findings: all of them, the lead first.
        elsewhere: failures of the same cotangents at other calls, for which the explanation was not tried.
        derived: whether the call as given is right, and only calls derived from it are wrong.
    """

    lead: Finding
    findings: tuple[Finding, ...]
    elsewhere: tuple[Finding, ...] = ()
    derived: bool = False

    @property
    def claims(self) -> tuple[str, ...]:
        """The claims that fail by it."""
        return tuple(dict.fromkeys(f.claim for f in (*self.findings, *self.elsewhere)))

    @property
    def counterexample(self) -> str:
        """Python source that shows it; empty where none was made."""
        return next((f.counterexample.strip() for f in self.findings if f.counterexample), "")


def causes(report: Report) -> tuple[Cause, ...]:
    """Return the failures of a report by their causes, each failure once.

    Where one correction makes cotangents right, the errors of these cotangents, in whatever claim, and of second
    derivatives follow from the same cause, unless they are not finite or fell into another trap. Other failures stand
    together if they are errors of one array, or fell into one trap, or are of one kind; nothing is left out of the text
    then but further errors of one array in one claim. Errors of second derivatives stand with those of the first.
    """
    left = list(report.failures)
    found: list[Cause] = []
    for lead in [f for f in left if f.explanation is not None and f.explanation.complete]:
        if lead not in left:
            continue
        same = [f for f in left if _follows(f, lead)]
        here = [f for f in same if f is not lead and (f.case == lead.case or f.claim == "variations")]
        elsewhere = [f for f in same if f is not lead and f not in here]
        left = [f for f in left if f not in same]
        found.append(Cause(lead, (lead, *here), tuple(elsewhere)))
    groups: dict[tuple[str, ...], list[Finding]] = {}
    for f in left:
        groups.setdefault(_key(f, groups), []).append(f)
    found += [Cause(group[0], tuple(group)) for group in groups.values()]
    order = {id(f): i for i, f in enumerate(report.failures)}
    right = report.level("value") == "pass" and not any(f.case for f in report.findings if f.claim == "value")
    found = [replace(cause, derived=right and set(cause.claims) <= set(_DERIVED)) for cause in found]
    return tuple(sorted(found, key=lambda cause: order[id(cause.lead)]))


def _follows(f: Finding, lead: Finding) -> bool:
    """Return whether a failure follows from the cause of another, which one correction removes."""
    assert lead.explanation is not None
    finite = f.ratio is None or math.isfinite(f.ratio)
    if f.code not in _WRONG or not finite or f.trap not in ("", lead.trap):
        return f is lead
    if f.claim == "second_order":
        return True
    return f.claim in _OF_VALUES and f.argument in lead.explanation.cotangents


def _key(f: Finding, groups: Mapping[tuple[str, ...], Sequence[Finding]]) -> tuple[str, ...]:
    """Return the key of the group that a failure is reported with, an existing one where it fits."""
    if f.code in _WRONG and (f.claim in _OF_VALUES or f.claim == "second_order"):
        cause = f.trap or ("" if f.ratio is None or math.isfinite(f.ratio) else "not finite")
        if cause:  # whichever arrays it makes wrong
            return "wrong", cause, f.claim if f.claim == "second_order" else ""
        for key, group in groups.items():
            untrapped = key[0] == "wrong" and (not key[1] or any(other.claim == "value" for other in group))
            if untrapped and (not f.argument or any(other.argument == f.argument for other in group)):
                return key
        return "wrong", "", f.argument or f.claim
    code = "raises" if f.code == "passes_raise" else f.code
    return (code, f.trap) if code and code not in _WRONG else (f.claim, f.code, f.trap)


def paragraph(cause: Cause) -> str:
    """Return the text of a cause: what is wrong, where and by what, what else fails by it, and how to reproduce it.

    Example:
        >>> late = Finding("linearity", "fail", "did not end within 120 s", code="timeout")
        >>> print(paragraph(Cause(late, (late,))))
        it did not end in time
          linearity: did not end within 120 s
    """
    lines = [heading(cause), *(f"  {line}" for line in details(cause))]
    if cause.counterexample:
        lines += ["  reproduce:", "", cause.counterexample, ""]
    return "\n".join(lines)


def heading(cause: Cause) -> str:
    """Return what is wrong, and by how much."""
    lead = cause.lead
    arguments = list(dict.fromkeys(f.argument for f in cause.findings if f.argument))
    worst = max((f.ratio for f in cause.findings if f.ratio is not None), default=None)
    if lead.explanation is not None and lead.explanation.complete:
        arguments, worst = list(lead.explanation.cotangents), lead.ratio
    if lead.code not in _WRONG:
        what = _HEADINGS.get(lead.code, f"{lead.claim} fails")
    elif arguments and lead.claim in _OF_VALUES:
        what = _wrong(arguments)
    elif lead.claim == "second_order":
        what = "the second derivative is wrong"
    elif lead.claim == "modes":
        what = "parts of the primitive differ from its body" if len(arguments) > 1 else f"{arguments[0]} is wrong"
    else:
        what = f"{lead.claim} changes the result" if lead.claim in ("transforms", "sharding") else f"{lead.claim} fails"
    return what + (f" ({times(worst)} the tolerance)" if worst is not None else "")


def _wrong(arguments: Sequence[str]) -> str:
    """Return that arrays are wrong.

    Example:
        >>> _wrong(["cotangent of x", "cotangent of W"]), _wrong(["output 0"]), _wrong(["output", "cotangent of x"])
        ('the cotangents of x and W are wrong', 'output 0 is wrong', 'the output and the cotangent of x are wrong')
    """
    names = [a.removeprefix("cotangent of ") for a in arguments]
    plural = "the cotangents of " if len(names) > 1 and all(map(str.__ne__, names, arguments)) else ""
    if not plural:
        names = [a if a.startswith("output ") and a.split()[1].isdecimal() else f"the {a}" for a in arguments]
    joined = f"{', '.join(names[:-1])} and {names[-1]} are" if len(names) > 1 else f"{names[0]} is"
    return f"{plural}{joined} wrong"


def details(cause: Cause) -> Iterator[str]:
    """Yield the lines of a cause below its heading, without the reproduction."""
    lead, explanation = cause.lead, cause.lead.explanation
    if explanation is not None and explanation.complete:
        if lead.case:
            yield f"at {lead.case}"
        yield str(explanation)
        if lead.trap:
            yield describe(lead.trap)
        others = [claim for claim in dict.fromkeys(f.claim for f in cause.findings) if claim != lead.claim]
        if others:
            yield f"also wrong for the same reason: {', '.join(_NAMES.get(c, c) for c in others)}"
        if cases := list(dict.fromkeys(f.case for f in cause.elsewhere)):
            listed = "; ".join(cases[:3]) + (f"; and {len(cases) - 3} others" if len(cases) > 3 else "")
            yield f"also wrong at other calls, maybe for the same reason: {listed}"
        return
    shown: list[Finding] = []
    for f in sorted(cause.findings, key=lambda f: -(f.ratio or 0.0)):
        if not any(f.claim == other.claim and f.argument == other.argument for other in shown):
            shown.append(f)
    if len(shown) == 1 and lead.code in _WRONG:
        shown += [f for f in cause.findings if f not in shown][:1]
    shown = sorted(shown[:LINES], key=cause.findings.index)
    named = len({f.argument for f in cause.findings if f.argument}) > 1 or lead.code not in _WRONG
    yield from (_line(f, named) for f in shown)
    if len(cause.findings) > len(shown):
        yield f"and {len(cause.findings) - len(shown)} more"
    if lead.trap:
        yield describe(lead.trap)
    elif explanation is not None and str(explanation):
        yield str(explanation)
    if cause.derived:
        yield _remedy(cause)


def _remedy(cause: Cause) -> str:
    """Return that the call as given is right, and how to leave out calls derived from it that make no sense."""
    if "edges" in cause.claims:
        return "right at your call; if the function is not meant for such inputs, domain= says so"
    sizes = any(f.case.startswith(SIZES) for f in cause.findings)
    return "right at your call" + (
        "; if the function is not meant for such sizes, an exception says so" if sizes else ""
    )


def _line(f: Finding, argument: bool) -> str:
    """Return a finding on one line, without what the heading says."""
    where = f" [{f.case}]" if f.case else ""
    what = f"{f.argument}: " if f.argument and argument else ""
    measured = []
    if f.ratio is not None:
        measured.append(f"{times(f.ratio)} the tolerance")
    if f.index is not None:
        measured.append(f"worst at {f.index}")
    return f"{_NAMES.get(f.claim, f.claim)}{where}: {what}{f.message}" + (
        f" ({', '.join(measured)})" if measured else ""
    )


def times(ratio: float) -> str:
    """Return a ratio to two digits.

    Example:
        >>> times(4316239.7), times(50.5), times(float("inf"))
        ('4.3e6 x', '50 x', 'inf x')
    """
    digits = f"{ratio:.2g}"
    mantissa, power, exponent = digits.partition("e")
    return f"{mantissa}e{int(exponent)} x" if power else f"{digits} x"
