"""What verification found: findings, and the report that holds them."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from vjplib.verification.explain.traps import describe

Level = Literal["pass", "fail", "note", "skipped"]

Code = Literal[
    "",
    "wrong_value",
    "inaccurate",
    "not_linear",
    "hidden_state",
    "wrong_aval",
    "raises",
    "passes_raise",
    "derivative_raises",
    "not_refused",
    "residual_bytes",
    "growth",
    "communication",
    "side_effect",
    "prints",
    "kink",
    "by_design",
    "solver",
    "undecided_call",
    "timeout",
    "died",
    "unusable_record",
]
"""What kind of finding it is, for programs; a finding that says no more than its level has none."""
SIGNS: Mapping[Level, str] = {"pass": "ok", "fail": "FAIL", "note": "note", "skipped": "skip"}
_GRAVITY: tuple[Level, ...] = ("fail", "skipped", "pass", "note")


@dataclass(frozen=True)
class Explanation:
    """Why cotangents are wrong, as far as the program of the backward tells.

    Args:
        factor: what the output of the equation at fault has to be multiplied by; None where none was looked for.
        places: primitive, file, line and function of the equations of which any one may be at fault.
        unexplained: the share of the error that the factor leaves.
        reason: why no factor was looked for, or none found.
        counterexample: Python source that shows the failure on a few numbers; empty where none was made.
    """

    factor: float | None = None
    places: tuple[str, ...] = ()
    unexplained: float = 0.0
    reason: str = ""
    counterexample: str = ""

    def __str__(self) -> str:
        """Return the explanation on one line."""
        where = " or ".join(self.places)
        if self.factor is None:
            return self.reason
        if self.reason:
            return f"{self.reason}; the best, on the output of {where}, leaves {self.unexplained:.0%} of it"
        return f"multiplying by {self.factor:.6g} the output of {where} makes every cotangent right"


@dataclass(frozen=True)
class Finding:
    """One thing verified of one function.

    Args:
        claim: the name of the claim, a key of `vjplib.verification.CLAIMS`.
        level: "pass"; "fail"; "note", a limitation or a credit; or "skipped", undecided for the reason in the message.
        message: what was found, in words.
        argument: the argument or output concerned, as in "cotangent of x"; empty for the whole.
        ratio: the error in units of the tolerance, where one was measured; above 1 it fails.
        index: where the error is worst, an index into that array.
        case: which call was examined.
        trap: the known trap that the author fell into, a key of `vjplib.verification.explain.traps.TRAPS`; empty for
            none.
        counterexample: Python source that shows the failure on a few numbers; empty where none was made.
        code: what kind of finding it is, for programs.
        explanation: why it fails, where that was looked for.
        data: what was measured, by name, as JSON has it: what plots are drawn from.
    """

    claim: str
    level: Level
    message: str
    argument: str = ""
    ratio: float | None = None
    index: tuple[int, ...] | None = None
    case: str = ""
    trap: str = ""
    counterexample: str = ""
    code: Code = ""
    explanation: Explanation | None = None
    data: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __str__(self) -> str:
        """Return the finding on one line."""
        parts = [self.claim, SIGNS[self.level]]
        if self.case:
            parts.append(f"[{self.case}]")
        if self.argument:
            parts.append(f"{self.argument}:")
        parts.append(self.message)
        if self.ratio is not None:
            parts.append(f"(error {self.ratio:.3g} x the tolerance")
            parts[-1] += f", worst at {self.index})" if self.index is not None else ")"
        if self.trap:
            parts.append(f"({describe(self.trap)})")
        return " ".join(parts)


def finding(
    level: Level,
    code: Code,
    message: str,
    argument: str = "",
    ratio: float | None = None,
    index: tuple[int, ...] | None = None,
    *,
    claim: str = "",
    **more: Any,
) -> Finding:
    """Return a finding of a claim that the runner names, with the code if it fails."""
    return Finding(claim, level, message, argument, ratio, index, code=code if level == "fail" else "", **more)


def passed(message: str, argument: str = "", ratio: float | None = None, **more: Any) -> Finding:
    """Return a finding that something holds."""
    return finding("pass", "", message, argument, ratio, **more)


def failed(code: Code, message: str, argument: str = "", ratio: float | None = None, **more: Any) -> Finding:
    """Return a failure."""
    return finding("fail", code, message, argument, ratio, **more)


def noted(message: str, argument: str = "", *, claim: str = "", code: Code = "", **more: Any) -> Finding:
    """Return a note: a limitation, a convention or a credit."""
    return Finding(claim, "note", message, argument, code=code, **more)


def skipped(message: str, argument: str = "", *, claim: str = "", code: Code = "", **more: Any) -> Finding:
    """Return a finding that something could not be decided, with the reason."""
    return Finding(claim, "skipped", message, argument, code=code, **more)


def describe_error(error: Exception) -> str:
    """Returns an exception's type and the first line of its message.

    Example:
        >>> describe_error(ValueError("x must be positive, got -1"))
        'ValueError: x must be positive, got -1'
    """
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"


@dataclass(frozen=True)
class Report:
    """The proof sheet of one function.

    Args:
        name: the function's name.
        findings: all findings, in the order of the claims.
        seconds: how long it took.

    Example:
        >>> report = Report("f", (Finding("contract", "pass", "as promised"), Finding("value", "fail", "wrong", "x")))
        >>> report.ok, [finding.argument for finding in report.failures]
        (False, ['x'])
    """

    name: str
    findings: tuple[Finding, ...]
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether something was proved and nothing failed."""
        return not self.failures and any(f.level == "pass" for f in self.findings)

    @property
    def failures(self) -> tuple[Finding, ...]:
        """The findings that fail."""
        return tuple(f for f in self.findings if f.level == "fail")

    def level(self, claim: str) -> Level | None:
        """Returns what a claim comes to: its gravest level, a note counting less than a pass; None if not examined."""
        levels = {f.level for f in self.findings if f.claim == claim}
        return next((level for level in _GRAVITY if level in levels), None)

    def __str__(self) -> str:
        """Returns the report as a table, failures in full below it."""
        from vjplib.verification.text import render  # which imports the claims, and they this module

        return render([self])

    def to_dict(self) -> dict[str, Any]:
        """Returns name, ok, seconds and findings as JSON has them: a ratio that is not finite becomes a string."""
        findings = [asdict(f) for f in self.findings]
        return as_json({"name": self.name, "ok": self.ok, "seconds": self.seconds, "findings": findings})

    def to_json(self) -> str:
        """Returns `to_dict` as JSON."""
        return json.dumps(self.to_dict(), indent=2)

    def to_markdown(self) -> str:
        """Returns the report as a Markdown table of claims, one row a finding."""
        rows = ["| claim | result | case | argument | finding |", "|---|---|---|---|---|"]
        for f in self.findings:
            cells = (f.claim, SIGNS[f.level], f.case, f.argument, f.message)
            rows.append("| " + " | ".join(map(in_markdown, cells)) + " |")
        return "\n".join(rows)


def as_json(value: Any) -> Any:
    """Returns a tree of dicts and lists with each number that JSON has not, as an infinity, made text."""
    if isinstance(value, dict):
        return {k: as_json(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_json(v) for v in value]
    return repr(value) if isinstance(value, float) and not math.isfinite(value) else value


def in_markdown(text: str) -> str:
    r"""Returns text of one line that stays text in Markdown, tables included.

    Example:
        >>> print(in_markdown("<script> of a|b * c"))
        &lt;script> of a\|b \* c
    """
    joined = " ".join(text.replace("&", "&amp;").replace("<", "&lt;").split())
    return "".join(f"\\{letter}" if letter in "\\|*`[]" else letter for letter in joined)
