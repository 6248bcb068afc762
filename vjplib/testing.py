"""For tests of one's own rules: a test for each rule and claim under pytest, an assertion under anything.

`assert_verified` needs no pytest. `parametrize`, and the fixture `vjplib_verify` of the plugin, print failures in
short: a paragraph for each cause, a counterexample where one was made, and the command that reproduces them.
"""

import os
import re
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from vjplib.rule import Rule, find, rules, rules_in
from vjplib.verification import NotVerifiedError, Report, verify, verify_rule
from vjplib.verification import assert_verified as assert_verified
from vjplib.verification.causes import causes, paragraph
from vjplib.verification.claim import Effort
from vjplib.verification.registry import order, selected

F = TypeVar("F", bound=Callable[..., Any])
MOST = 5  # causes of failure that are printed

Target = str | Rule | ModuleType | Sequence[Any]


class ClaimError(NotVerifiedError):
    """Raised by a test of a claim that fails; its message is short, its `report` holds every finding."""

    def __init__(self, report: Report, message: str) -> None:
        AssertionError.__init__(self, message)
        self.report = report

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.report, str(self)), self.__dict__


@dataclass
class Sheet:
    """What is known of one function, filled as its claims are asked for.

    Args:
        name: in test ids.
        examine: takes claims, effort and seed, by keyword; returns the report.
        effort: at which it is examined unless the command line says deep.
        target: what names the function on vjplib's command line; empty if nothing does.
        expected: claims that are to be asked for, examined together with the first.
        asked: claims that were asked for.
        known: by claim the report that tells of it, or what was raised in its place.
        record: whether a record is examined, not a single call.
    """

    name: str
    examine: Callable[..., Report]
    effort: Effort
    target: str = ""
    expected: set[str] = field(default_factory=set)
    asked: set[str] = field(default_factory=set)
    known: dict[tuple[str, str, int], Report | Exception] = field(default_factory=dict)
    record: bool = True

    def report(self, claim: str) -> Report:
        """Return a report that holds the claim."""
        __tracebackhide__ = True
        self.asked.add(claim)
        effort, seed = effort_and_seed(self.effort)
        if (claim, effort, seed) not in self.known:
            claims = sorted({claim, *self.expected}, key=order)
            try:
                found = self.examine(claims=claims, effort=effort, seed=seed)
            except Exception as error:  # arguments that make no sense, of which each claim's test tells
                found = error
            self.known |= {(c, effort, seed): found for c in claims}
        found = self.known[claim, effort, seed]
        if isinstance(found, Exception):
            raise found.with_traceback(None)
        return found


@dataclass(frozen=True)
class Proof:
    """One claim of one function, to be called by a test: it fails, skips or returns."""

    sheet: Sheet
    claim: str

    @property
    def report(self) -> Report:
        """The report that tells of the claim."""
        __tracebackhide__ = True
        return self.sheet.report(self.claim)

    def __call__(self) -> None:
        """Return if the claim is shown or only noted.

        Raises:
            ClaimError: an AssertionError; the claim fails.
            unittest.SkipTest: it could not be decided.
        """
        __tracebackhide__ = True
        report = self.report
        findings = [f for f in report.findings if f.claim == self.claim]
        level = report.level(self.claim)
        if level == "fail":
            heading = f"{self.sheet.name}: {self.claim} fails"
            raise ClaimError(report, "\n".join(_lines(heading, report, self.claim, self._command())))
        if level in ("skipped", None):
            import pytest

            undecided = [f for f in findings if f.level == "skipped"]
            pytest.skip(str(undecided[0]) if undecided else "there is nothing to examine")

    def _command(self) -> str:
        effort, seed = effort_and_seed(self.sheet.effort)
        if not self.sheet.target:
            return _again()
        extent = "" if effort == "standard" else f" --{effort}"
        return f"vjplib verify {shlex.quote(self.sheet.target)} --claims {self.claim} --seed {seed}{extent}"


def parametrize(
    *targets: Target, claims: Sequence[str] | None = None, effort: Effort = "standard", argument: str = "proof"
) -> Callable[[F], F]:
    """Parametrize a test over functions and claims under pytest, with ids such as `softmax-value`.

    The test takes an argument `proof` and calls it; one that neither calls it nor reads its report fails. Claims of one
    function are examined together where they run in one process: always without pytest-xdist, and with its
    `--dist=loadgroup`.

    Args:
        *targets: records, each a `Rule`, a tuple of them, a module that ends in RULES or what names them on the command
            line, such as "my_package.my_rules"; or calls, each a pair `(fn, args)` or a triple `(fn, args, kwargs)`.
        claims: which to examine; None for all that the effort includes.
        effort: "quick", "standard" or "deep"; deep in any case where pytest has the option `--vjplib-deep`.
        argument: the name of the test's argument.

    Returns:
        A decorator of a test function.

    Raises:
        TypeError: a target is none of these, or claims is a single string.
        ValueError: a target names nothing; effort or claims are not known; there is no target.

    Example:
        >>> import vjplib
        >>> @parametrize("softmax", (vjplib.tanh, (0.5,)), claims=("contract", "value"), effort="quick")
        ... def test_rules(proof):
        ...     proof()
        >>> [case.id for case in test_rules.pytestmark[0].args[1]]
        ['softmax-contract', 'softmax-value', 'tanh-contract', 'tanh-value']
        >>> test_rules.pytestmark[0].args[1][3].values[0]()  # as pytest calls the last of them
    """
    import pytest

    chosen = {record: [c.name for c, _ in selected(effort, claims, record)] for record in (True, False)}
    sheets = [sheet for target in targets for sheet in _sheets(target, effort)]
    if not sheets:
        raise ValueError("targets must name at least one rule or call, got none")
    for sheet in sheets:
        same = [other for other in sheets if other.name == sheet.name]
        if len(same) > 1:
            for number, other in enumerate(same):
                other.name = f"{other.name}{number}"

    def decorate(test: F) -> F:
        for sheet in sheets:
            if sheet.target.partition(":")[0] == test.__module__:  # a test file, which the command line cannot import
                sheet.target = ""
        cases = [
            pytest.param(Proof(sheet, claim), id=f"{sheet.name}-{claim}", marks=pytest.mark.xdist_group(sheet.name))
            for sheet in sheets
            for claim in chosen[sheet.record]
        ]
        return pytest.mark.parametrize(argument, cases)(test)

    return decorate


def _sheets(target: Any, effort: Effort) -> Iterator[Sheet]:
    if isinstance(target, str):
        own = {id(rule) for rule in rules()}
        for rule in find(target):
            place = rule.name if id(rule) in own else f"{target.partition(':')[0]}:{rule.name}"
            yield _of_record(rule, effort, place)
    elif isinstance(target, Rule):
        yield _of_record(target, effort, _place(target))
    elif isinstance(target, ModuleType):
        yield from (_of_record(rule, effort, f"{target.__name__}:{rule.name}") for rule in rules_in(target))
    elif _is_call(target):
        fn, args, *rest = target
        kwargs = rest[0] if rest else {}
        name = getattr(fn, "__name__", type(fn).__name__)
        yield Sheet(name, partial(verify, fn, args, kwargs), effort, record=False)
    elif isinstance(target, (tuple, list)):
        for inner in target:
            yield from _sheets(inner, effort)
    else:
        raise TypeError(
            "targets must be rules, modules that end in RULES, their names, or calls (fn, args) or (fn, args, kwargs); "
            f"got {target!r}"
        )


def _is_call(target: Any) -> bool:
    several = (Rule, str, tuple, list, ModuleType)
    if not isinstance(target, (tuple, list)) or not target or isinstance(target[0], several):
        return False
    if not callable(target[0]) or len(target) not in (2, 3) or not isinstance(target[1], (tuple, list)):
        raise TypeError(f"a call must be (fn, args) or (fn, args, kwargs) with args a tuple, got {target!r}")
    return True


def _of_record(rule: Rule, effort: Effort, target: str) -> Sheet:
    return Sheet(rule.name, partial(verify_rule, rule), effort, target)


def _place(rule: Rule) -> str:
    """Return the command-line target of a record, empty if it is in no module's RULES."""
    for fn in (rule.fn, getattr(rule.fn, "__wrapped__", None)):
        name = getattr(fn, "__module__", None)
        records = getattr(sys.modules.get(name or ""), "RULES", ())
        if isinstance(records, tuple) and any(record is rule for record in records):
            return f"{name}:{rule.name}"
    return ""


def verified(target: Rule | Callable[..., Any], *args: Any, **options: Any) -> Report:
    """Return the report of a record, or of a call as `vjplib.verify` takes it, if every claim holds.

    This is what the fixture `vjplib_verify` is. Under pytest's options `--vjplib-deep` and `--vjplib-seed` effort and
    seed are theirs, unless given here.

    Raises:
        ClaimError: an AssertionError, with a short message: the failures, a counterexample and how to run it again.

    Example:
        >>> import vjplib
        >>> verified(vjplib.tanh, (0.5,), effort="quick").ok
        True
    """
    __tracebackhide__ = True
    effort, seed = effort_and_seed("standard")
    options = {"effort": effort, "seed": seed, **options}
    report = verify_rule(target, *args, **options) if isinstance(target, Rule) else verify(target, *args, **options)
    if not report.ok:
        caller = sys._getframe(1)
        place = caller.f_code.co_filename.removeprefix(f"{Path.cwd()}{os.sep}")
        heading = f"{place}:{caller.f_lineno}: {report.name} is not verified"
        heading += "" if report.failures else ": no claim was decided"
        raise ClaimError(report, "\n".join(_lines(heading, report, None, _again())))
    return report


def _lines(heading: str, report: Report, claim: str | None, command: str) -> Iterator[str]:
    yield heading
    found = [cause for cause in causes(report) if claim is None or claim in cause.claims]
    for cause in found[:MOST]:
        yield paragraph(cause)
    if len(found) > MOST:
        yield f"and {len(found) - MOST} more causes"
    if not report.failures:
        yield from (f"  {f}" for f in report.skipped[:MOST])
    if command:
        yield f"Reproduce: {command}"


def effort_and_seed(effort: Effort) -> tuple[Effort, int]:
    """Return the effort and the seed to examine with: pytest's options, or the effort given and 0.

    Example:
        >>> effort_and_seed("quick")
        ('quick', 0)
    """
    options = _options()
    return (effort, 0) if options is None else ("deep" if options.vjplib_deep else effort, options.vjplib_seed or 0)


def _options() -> Any:
    """Return the options of the pytest at work; None outside pytest, or without the plugin."""
    plugin = sys.modules.get("vjplib_pytest")
    return plugin.configs[-1].option if plugin is not None and plugin.configs else None


def _again() -> str:
    """Return the command that reruns the current test, empty outside pytest."""
    test = os.environ.get("PYTEST_CURRENT_TEST", "").rpartition(" ")[0]
    node = re.sub(r"@[^\]]*$", "", test)  # the group, which pytest-xdist appends
    effort, seed = effort_and_seed("standard")
    options = "" if _options() is None else f" --vjplib-seed {seed}{' --vjplib-deep' if effort == 'deep' else ''}"
    return f"pytest {shlex.quote(node)}{options}" if node else ""
