"""Causes: the failures of a report, those that one mistake explains together, and the paragraph that tells of each."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from vjplib.verification.explain.traps import describe
from vjplib.verification.report import Code, Finding, Report

_OF_VALUES = ("value", "variations", "edges", "accuracy", "taylor")
_WRONG: tuple[Code, ...] = ("wrong_value", "inaccurate")
_NAMES = {"second_order": "second order", "taylor": "Taylor's remainder"}
_HEADINGS: Mapping[Code, str] = {
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
    """Failures that are told together.

    Args:
        lead: the failure that is explained, or the first.
        findings: all of them, the lead first.
        elsewhere: failures of the same cotangents at other calls, for which the explanation was not tried.
    """

    lead: Finding
    findings: tuple[Finding, ...]
    elsewhere: tuple[Finding, ...] = ()

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
    together only if they are of one claim, kind and argument, or are errors of one and the same cotangent, of which the
    text then has a line for each claim. Errors of second derivatives stand with those of the first.
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
        groups.setdefault(_key(f, list(groups)), []).append(f)
    found += [Cause(group[0], tuple(group)) for group in groups.values()]
    order = {id(f): i for i, f in enumerate(report.failures)}
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


def _key(f: Finding, known: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    """Return what failures that are told together have in common, as a key that is known already where one fits."""
    key = (f.claim, f.code, f.argument, f.trap)
    if f.code in _WRONG and f.claim in _OF_VALUES and f.argument:
        key = ("", "", f.argument, f.trap)
    alike = [k for k in known if not k[0] and (k[2] == f.argument or f.claim == "second_order")]
    error = not key[0] or (f.claim == "second_order" and f.code in _WRONG)
    return alike[0] if alike and error and not f.trap else key


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
    arguments = [lead.argument] if lead.argument else []
    if lead.explanation is not None and lead.explanation.complete:
        arguments = list(lead.explanation.cotangents)
    worst = lead.ratio
    if len(arguments) > 1 or lead.explanation is None:
        worst = max((f.ratio for f in cause.findings if f.ratio is not None), default=None)
    what = _wrong(lead, arguments) if lead.code in _WRONG else _HEADINGS.get(lead.code, f"{lead.claim} fails")
    return what + (f" ({times(worst)} the tolerance)" if worst is not None else "")


def _wrong(lead: Finding, arguments: Sequence[str]) -> str:
    if lead.claim in _OF_VALUES and arguments:
        names = [a.removeprefix("cotangent of ") for a in arguments]
        if len(arguments) > 1 and all(a.startswith("cotangent of ") for a in arguments):
            return f"the cotangents of {', '.join(names[:-1])} and {names[-1]} are wrong"
        return f"the {arguments[0]} is {'inaccurate' if lead.code == 'inaccurate' else 'wrong'}"
    if lead.claim == "second_order":
        return "the second derivative is wrong"
    return f"{lead.claim} changes the result" if lead.claim in ("transforms", "sharding") else f"{lead.claim} fails"


def details(cause: Cause) -> Iterator[str]:
    """Yield the lines of a cause below its heading, without the reproduction."""
    lead, explanation = cause.lead, cause.lead.explanation
    if explanation is not None and explanation.complete:
        if lead.case:
            yield f"at {lead.case}"
        yield str(explanation)
        if lead.trap:
            yield describe(lead.trap)
        others = [claim for claim in cause.claims if claim != lead.claim and any(_of(cause.findings, claim))]
        if others:
            yield f"also wrong for the same reason: {', '.join(_NAMES.get(c, c) for c in others)}"
        if cases := list(dict.fromkeys(f.case for f in cause.elsewhere)):
            shown = "; ".join(cases[:3]) + (f"; and {len(cases) - 3} others" if len(cases) > 3 else "")
            yield f"also wrong at other calls, maybe for the same reason: {shown}"
        return
    worst = {claim: max(_of(cause.findings, claim), key=lambda f: f.ratio or 0.0) for claim in cause.claims}
    shown = list(worst.values())
    if len(shown) == 1:
        shown = sorted(cause.findings, key=lambda f: -(f.ratio or 0.0))[: LINES // 2]
    elif lead.claim in worst:
        worst[lead.claim] = lead
        shown = list(worst.values())
    for f in shown[:LINES]:
        yield _line(f, f.argument != lead.argument or not _names_argument(lead))
    if len(cause.findings) > len(shown[:LINES]):
        yield f"and {len(cause.findings) - len(shown[:LINES])} more"
    if lead.trap:
        yield describe(lead.trap)
    elif explanation is not None and str(explanation):
        yield str(explanation)


def _names_argument(lead: Finding) -> bool:
    """Return whether the heading names the argument."""
    return lead.code in _WRONG and lead.claim in _OF_VALUES


def _of(findings: Sequence[Finding], claim: str) -> list[Finding]:
    return [f for f in findings if f.claim == claim]


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
