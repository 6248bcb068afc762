"""The runner: the checks of one report, one after the other, each with a time limit; what they raise is a finding."""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from vjplib.verification.axes import unbound_axis
from vjplib.verification.call import CallUnderTest
from vjplib.verification.claim import Check, Claim
from vjplib.verification.explain.diagnose import raised
from vjplib.verification.isolation import as_finding, run_with_timeout
from vjplib.verification.report import Finding, explained, skipped


class Job(NamedTuple):
    """The check of a claim at one call."""

    claim: Claim
    check: Check
    subject: CallUnderTest


class Runner:
    """The jobs of one report; after one that times out the others are skipped, for they would time out too.

    Args:
        seconds: the time limit of a job.

    Raises:
        TypeError: seconds is not a number.
        ValueError: seconds is not positive.
    """

    def __init__(self, seconds: float) -> None:
        if isinstance(seconds, bool) or not isinstance(seconds, (int, float)):
            raise TypeError(f"time_limit must be a number of seconds, got {seconds!r}")
        if not seconds > 0:
            raise ValueError(f"time_limit must be a positive number of seconds, got {seconds!r}")
        self.seconds, self.hung = seconds, False
        self.outside: list[Finding] = []
        self.explained: set[str] = set()  # claims
        self.unbound = ""  # the named axis that the call lacks

    def all(self, jobs: Sequence[Job]) -> list[Finding]:
        """Return the findings of all jobs, in their order."""
        return [finding for job in jobs for finding in self.one(job)]

    def one(self, job: Job) -> list[Finding]:
        """Return the findings of a job; an exception is a failure of the function, never of the run."""
        claim, check, subject = job
        if self.unbound:  # said once, of the first claim
            return []
        findings: list[Finding] = []  # those before an exception count

        def work() -> list[Finding]:
            if claim.needs_oracle and subject.undifferentiable is not None:
                findings.append(
                    skipped(f"JAX cannot differentiate the oracle ({subject.undifferentiable}); give a reference")
                )
            elif not claim.traces_only and subject.too_large:
                findings.append(skipped(subject.too_large))
            else:
                findings.extend(check(subject))
            return findings

        if self.hung:
            findings.append(skipped("skipped: an earlier check timed out"))
        elif not isinstance(outcome := run_with_timeout(work, self.seconds), list):
            self.hung = outcome is None
            trap = raised(subject, outcome) if isinstance(outcome, Exception) else ""
            findings = [*findings, replace(as_finding(outcome, self.seconds), trap=trap)]
        if any(f.code == "raises" for f in findings):
            self.unbound = unbound_axis(subject)
        if self.unbound:
            bound = ", ".join(f"{name!r}: {n}" for name, n in {**subject.axes, self.unbound: 4}.items())
            findings = [
                skipped(f"the call needs a named axis {self.unbound}: give axes={{{bound}}}; nothing is examined")
            ]
        named = [replace(f, claim=f.claim or claim.name, case=f.case or subject.case) for f in findings]
        return self._explained(job, named)

    def _explained(self, job: Job, findings: list[Finding]) -> list[Finding]:
        """Return findings with what explains the first failures of the claim in this report."""
        explain = job.claim.explain
        failed = any(f.level == "fail" for f in findings)
        if not failed or explain is None or self.hung or job.claim.name in self.explained:
            return findings
        self.explained.add(job.claim.name)
        outcome = run_with_timeout(lambda: explain(job.subject), self.seconds)
        self.hung = outcome is None
        return explained(findings, outcome) if isinstance(outcome, tuple) else findings
