"""Claim: the record that each file in `claims/` ends with, as each rule file ends with its `RULES`."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from vjplib.verification.call import CallUnderTest
from vjplib.verification.report import Explanation, Finding

Effort = Literal["quick", "standard", "deep"]
EFFORTS: tuple[Effort, ...] = ("quick", "standard", "deep")
Check = Callable[[CallUnderTest], Iterable[Finding]]


def reduced(check: Check) -> Check:
    """Return a check that runs at `CallUnderTest.reduced`, for claims that hardly depend on the sizes of arrays."""

    def run(subject: CallUnderTest) -> Iterator[Finding]:
        at = subject.reduced
        yield from (replace(f, case=f.case or at.case) for f in check(at))

    return run


@dataclass(frozen=True)
class Claim:
    """One kind of claim about a derivative: its checks, and what they cost.

    Args:
        name: a lower-case word, "value" or "second_order"; findings carry it.
        check: returns the findings at one call, at effort "standard". The runner adds the claim's name and the case.
        alias: another name, accepted wherever claims are selected.
        quick: the check at effort "quick"; None leaves the claim out.
        deep: the check at effort "deep"; None for `check`.
        further: the checks at a record's cases after the first, by effort; efforts left out examine the first alone.
            At "deep" every case is examined as the first.
        random: the check at cases of random sizes, at effort "deep".
        named: the check of a record's named edges, which it takes as `edges`.
        explain: explains failures of this claim; the runner attaches each explanation to the first that it explains.
        records: False for claims about a user's single call, which a record's cases answer already.
        needs_oracle: whether JAX must be able to differentiate the reference.
        traces_only: whether the check computes nothing, so that the sizes of arrays do not matter.
        cost: about how long the check takes on small arrays, in tenths of a second, at "quick" and at "standard".

    Example:
        >>> from vjplib.verification.report import passed
        >>> claim = Claim("named", lambda call: [passed("the function has a name")] if call.fn.__name__ else [])
        >>> import vjplib
        >>> print(*vjplib.verify(vjplib.tanh, (0.5,), claims=(claim,)).findings)
        named ok the function has a name
    """

    name: str
    check: Check
    alias: str = ""
    quick: Check | None = None
    deep: Check | None = None
    further: Mapping[str, Check] = field(default_factory=dict, hash=False)
    random: Check | None = None
    named: Callable[..., Iterable[Finding]] | None = None
    explain: Callable[[CallUnderTest], tuple[Explanation, ...]] | None = None
    records: bool = True
    needs_oracle: bool = True
    traces_only: bool = False
    cost: tuple[int, int] = (1, 1)

    def at(self, effort: str) -> Check | None:
        """Return the check at an effort, None where the effort leaves the claim out."""
        return {"quick": self.quick, "standard": self.check, "deep": self.deep or self.check}[effort]
