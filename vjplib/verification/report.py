"""What verification found: findings, and the report that holds them."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from vjplib.verification.explain.traps import describe

Level = Literal["pass", "fail", "doubt", "note", "skipped"]

Code = Literal[
    "",
    "wrong_value",
    "both_wrong",
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
    "sampler",
    "undecided_call",
    "timeout",
    "died",
    "unusable_record",
]
"""What kind of finding it is, for programs; a finding that says no more than its level has none."""
SIGNS: Mapping[Level, str] = {"pass": "ok", "fail": "FAIL", "doubt": "doubt", "note": "note", "skipped": "skip"}
_GRAVITY: tuple[Level, ...] = ("fail", "skipped", "pass", "doubt", "note")


Kind = Literal["", "factor", "product", "addition", "replacement"]
"""What is wrong with a backward, as far as it is known; see `Explanation`."""


@dataclass(frozen=True)
class Place:
    """An expression of a backward, as the program of the backward tells.

    Args:
        primitive: the primitive that computes it; empty for a statement.
        file: the file it is written in.
        line: its line, counted from 1.
        function: the function it is written in.
        source: its text, empty where that is not known.
    """

    primitive: str
    file: str
    line: int
    function: str = ""
    source: str = ""

    @property
    def where(self) -> str:
        """File, line and function, the file as short as it can be opened by.

        Example:
            >>> Place("mul", "/somewhere/else/rms.py", 9, "rms.<locals>.bwd").where
            'rms.py:9 in bwd'
        """
        path, name = Path(self.file), self.function.rpartition(".")[2]
        try:
            path = path.relative_to(Path.cwd())
        except ValueError:  # not below the working directory
            path = Path(path.name)
        return f"{path}:{self.line}" + (f" in {name}" if name.isidentifier() else "")

    def __str__(self) -> str:
        """Return the expression and where it stands."""
        return f"{self.expression} at {self.where}"

    @property
    def expression(self) -> str:
        """The source of the expression, or the output of its primitive where that is not known."""
        return f"`{self.source}`" if self.source else f"the output of {self.primitive}"


@dataclass(frozen=True)
class Explanation:
    """Why cotangents are wrong, as far as the program of the backward tells.

    Args:
        kind: what is wrong: a "factor" of an expression, a missing "product" with another value, a missing "addition"
            to the cotangent, or a "replacement" of all of it; empty where none of these makes the cotangents right.
        cotangents: the arguments of findings, such as "cotangent of x", that the correction makes right.
        places: the expressions any one of which may be at fault.
        factor: what the expression has to be multiplied by; None where no factor was looked for.
        meaning: what the factor or its inverse equals, such as "the size of x's last axis"; empty for no more than a
            number.
        term: source of what is to be multiplied by, to be added, or to stand in place of the cotangent.
        operand: the variable of the expression that lacks a factor; empty for another part of it.
        unexplained: the share of the error that the best factor leaves.
        reason: why no factor was looked for, or none found.
        counterexample: Python source that shows the failure on a few numbers; empty where none was made.
    """

    kind: Kind = ""
    cotangents: tuple[str, ...] = ()
    places: tuple[Place, ...] = ()
    factor: float | None = None
    meaning: str = ""
    term: str = ""
    operand: str = ""
    unexplained: float = 0.0
    reason: str = ""
    counterexample: str = ""

    @property
    def complete(self) -> bool:
        """True if one correction makes the cotangents right."""
        return bool(self.kind)

    def __str__(self) -> str:
        """Return the explanation on one line."""
        if not self.places:
            return self.reason
        where = " or ".join(dict.fromkeys(place.where for place in self.places))
        expressions = " or ".join(dict.fromkeys(place.expression for place in self.places))
        if self.kind == "product":
            lacking = f"`{self.operand}` in {expressions}" if self.operand else expressions
            return f"{where}: {lacking} lacks the factor `{self.term}`"
        if self.kind == "addition":
            return f"{where}: a term is missing; adding `{self.term}` to the {self.cotangents[0]} makes it right"
        if self.kind == "replacement":
            return f"{where}: the {self.cotangents[0]} should be `{self.term}`"
        assert self.factor is not None
        if self.kind == "factor":
            return f"{where}: {expressions} {_amiss(self.factor, self.meaning, self.places)}"
        return f"{self.reason}; the best factor, on {expressions} at {where}, leaves {self.unexplained:.0%} of it"


def _amiss(factor: float, meaning: str, places: Sequence[Place]) -> str:
    """Return what is wrong with an expression that a factor makes right.

    Example:
        >>> _amiss(1 / 16, "the size of x's last axis", [])
        "is 16 times too large; 16 is the size of x's last axis"
        >>> _amiss(-1.0, "", []), _amiss(0.0, "", [])
        ('has the wrong sign', 'should not be there')
    """
    if factor == 0:
        return "should not be there"
    times, direction = (factor, "small") if abs(factor) >= 1 else (1 / factor, "large")
    number = f"{abs(times):.6g}"
    size = f"is {number} times too {direction}" if number != "1" else ""
    words = " and ".join(filter(None, ("has the wrong sign" if factor < 0 else "", size)))
    words += f"; {number} is {meaning}" if meaning else ""
    for reduction, other, too in (("sum", "mean", "large"), ("mean", "sum", "small")):
        if meaning.startswith("the size") and too == direction and any(reduction in place.source for place in places):
            words += f". Is a {other} meant where a {reduction} is written?"
    return words


@dataclass(frozen=True)
class Finding:
    """One thing verified of one function.

    Args:
        claim: the name of the claim, a key of `vjplib.verification.CLAIMS`.
        level: "pass"; "fail"; "doubt", a difference at a call that may lie outside the function's domain; "note", a
            limitation or a credit; or "skipped", undecided for the reason in the message.
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


def explained(findings: Sequence[Finding], explanations: Sequence[Explanation]) -> list[Finding]:
    """Return the findings of a claim, each explanation attached to the first failure that it explains.

    What explains no cotangent in particular is attached to the first failure.
    """
    result = list(findings)
    failures = [i for i, f in enumerate(result) if f.level == "fail"]
    for e in explanations:
        first = next((i for i in failures if result[i].argument in e.cotangents), failures[0] if failures else None)
        if first is not None and result[first].explanation is None:
            source = e.counterexample or result[first].counterexample
            result[first] = replace(result[first], explanation=e, counterexample=source)
    return result


def describe_error(error: Exception) -> str:
    """Return an exception's type and the first line of its message.

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
        """True if something was proved and nothing failed."""
        return not self.failures and any(f.level == "pass" for f in self.findings)

    @property
    def failures(self) -> tuple[Finding, ...]:
        """The findings that fail."""
        return tuple(f for f in self.findings if f.level == "fail")

    @property
    def doubts(self) -> tuple[Finding, ...]:
        """The differences at calls that may lie outside the domain, each with what makes it a failure."""
        return tuple(f for f in self.findings if f.level == "doubt")

    @property
    def skipped(self) -> tuple[Finding, ...]:
        """The findings that could not be decided."""
        return tuple(f for f in self.findings if f.level == "skipped")

    @property
    def notes(self) -> tuple[Finding, ...]:
        """The limitations, conventions and credits, which printing leaves out."""
        return tuple(f for f in self.findings if f.level == "note")

    def level(self, claim: str) -> Level | None:
        """Return the gravest level of a claim, doubts and notes counting less than a pass; None if not examined."""
        levels = {f.level for f in self.findings if f.claim == claim}
        return next((level for level in _GRAVITY if level in levels), None)

    def __str__(self) -> str:
        """Return a table, then a paragraph for each cause of failure, and a line for each doubt and skipped claim."""
        from vjplib.verification.text import render  # which imports the claims, and they this module

        return render([self])

    def to_dict(self) -> dict[str, Any]:
        """Return name, ok, seconds and findings, non-finite floats replaced by strings."""
        findings = [asdict(f) for f in self.findings]
        return as_json({"name": self.name, "ok": self.ok, "seconds": self.seconds, "findings": findings})

    def to_json(self) -> str:
        """Return `to_dict` as JSON."""
        return json.dumps(self.to_dict(), indent=2)

    def to_markdown(self) -> str:
        """Return the report as a Markdown table of claims, one row a finding."""
        rows = ["| claim | result | case | argument | finding |", "|---|---|---|---|---|"]
        for f in self.findings:
            cells = (f.claim, SIGNS[f.level], f.case, f.argument, f.message)
            rows.append("| " + " | ".join(map(in_markdown, cells)) + " |")
        return "\n".join(rows)


def as_json(value: Any) -> Any:
    """Return a tree of dicts and lists, non-finite floats, which JSON cannot represent, replaced by strings."""
    if isinstance(value, dict):
        return {k: as_json(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_json(v) for v in value]
    return repr(value) if isinstance(value, float) and not math.isfinite(value) else value


def in_markdown(text: str) -> str:
    r"""Return text on one line, escaped so that Markdown shows it as it is, in tables too.

    Example:
        >>> print(in_markdown("<script> of a|b * c"))
        &lt;script> of a\|b \* c
    """
    joined = " ".join(text.replace("&", "&amp;").replace("<", "&lt;").split())
    return "".join(f"\\{letter}" if letter in "\\|*`[]" else letter for letter in joined)
