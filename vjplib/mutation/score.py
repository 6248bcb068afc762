"""What becomes of a rule's mutants, by the verifier's claims and by other checks."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np

from vjplib.compat import x64
from vjplib.mutation.equivalence import equivalent
from vjplib.mutation.mutate import Mutant, mutate
from vjplib.mutation.operators import Mutation
from vjplib.mutation.other_checkers import complaint_of, others
from vjplib.mutation.target import Target
from vjplib.rule import Rule
from vjplib.verification.call import CallUnderTest
from vjplib.verification.claim import Check, Claim
from vjplib.verification.claims import accuracy, contract, edges, linearity, second_order, transforms, value
from vjplib.verification.tolerance import size_of

MUTANTS = 20
TRIES = 4
"""How many candidates are looked at for each mutant wanted."""


@dataclass(frozen=True)
class Outcome:
    """What became of one mutant.

    Args:
        mutation: the fault, in words, with its file and line.
        operator: what is done wrong.
        case: the call that it was made at.
        verdict: "killed", "equivalent" or "survived".
        claim: the claim that killed it, empty for none.
        first_order: whether the first derivatives, at that call, differ from the rule's.
        check_grads: whether check_grads raises.
        chex: whether assert_numerical_grads raises; None where chex is not installed.
    """

    mutation: str
    operator: str
    case: str
    verdict: str
    claim: str
    first_order: bool
    check_grads: bool
    chex: bool | None


@dataclass(frozen=True)
class Score:
    """The mutants of one rule.

    Args:
        name: the rule's.
        outcomes: one for each mutant.
        seconds: how long it took.
    """

    name: str
    outcomes: tuple[Outcome, ...]
    seconds: float

    def count(self, verdict: str) -> int:
        """Returns how many mutants came to a verdict."""
        return sum(o.verdict == verdict for o in self.outcomes)


def score(rule: Rule, count: int = MUTANTS, seed: int = 0) -> Score:
    """Returns what becomes of a rule's mutants.

    Mutants with the first derivatives of one before are left out, so that the count is not of one fault in many forms;
    those with the rule's own are not.

    Args:
        rule: the record.
        count: how many mutants that are not equivalent to the rule, if there are so many.
        seed: of all random numbers.

    Example:
        >>> from vjplib.rule import find
        >>> of_tanh = score(find("tanh")[0], count=3)
        >>> of_tanh.count("killed"), of_tanh.count("survived")
        (3, 0)
    """
    start = time.perf_counter()
    target = Target(rule, seed)
    outcomes: list[Outcome] = []
    signatures: set[bytes] = set()
    for i, mutation in target.candidates[: TRIES * count]:
        if sum(o.verdict != "equivalent" for o in outcomes) >= count:
            break
        outcome = _outcome(target, i, mutation, signatures)
        if outcome is not None:
            outcomes.append(outcome)
    return Score(rule.name, tuple(outcomes), time.perf_counter() - start)


def _outcome(target: Target, i: int, mutation: Mutation, signatures: set[bytes]) -> Outcome | None:
    """Returns what becomes of a mutant, None where it is one of those before."""
    base = target.cases[i]
    subject = mutate(base, mutation)
    own, theirs = _signature(base), _signature(subject)
    first_order = own is None or theirs is None or own != theirs
    if first_order and theirs is not None:
        if theirs in signatures:
            return None
        signatures.add(theirs)
    claim = killer(target, i, subject)
    verdict = "killed" if claim else "equivalent" if equivalent(target, mutation) else "survived"
    leaves = subject.leaves(np.float32)
    raised = {by: verdict != "equivalent" and bool(complaint_of(by, subject.call, leaves)) for by in others()}
    grads, chex = raised["check_grads"], raised.get("chex")
    return Outcome(str(mutation), mutation.operator, base.case, verdict, claim, first_order, grads, chex)


def _signature(subject: CallUnderTest) -> bytes | None:
    """Returns the cotangents of a call in float64, rounded to nine digits; None where it cannot be run."""
    kept = subject.__dict__
    if "_signature" not in kept:
        try:
            with x64():
                leaves = subject.leaves(np.float64)
                dxs = [np.asarray(dx) for dx in subject.answers(leaves, subject.cotangents(leaves)).dxs]
        except Exception:  # the mutant raises: no two are alike then
            return None
        with np.errstate(invalid="ignore", over="ignore"):
            digits = [np.round(dx / max(size_of(dx), 1e-300), 9) + 0.0 for dx in dxs]
        kept["_signature"] = b"|".join(
            d.tobytes() + repr(round(float(np.log(size_of(dx) + 1e-300)), 9)).encode()
            for d, dx in zip(digits, dxs, strict=True)
        )
    return kept["_signature"]


def killer(target: Target, i: int, subject: Mutant) -> str:
    """Returns the first claim that fails of a mutant, of all that standard verification examines; empty for none."""
    for claim, check, at in _examinations(target, i, subject):
        try:
            failed = any(f.level == "fail" for f in check(at))
        except Exception:  # what a rule raises is a failure of the claim
            failed = True
        if failed:
            return claim.name
    return ""


def _examinations(target: Target, i: int, subject: Mutant) -> Iterator[tuple[Claim, Check, CallUnderTest]]:
    """Yields claims with their checks and subjects, from the cheapest on."""
    assert subject.mutation is not None
    others = [mutate(base, subject.mutation) for k, base in enumerate(target.cases) if k != i]
    yield value.CLAIM, value.in_float64, subject
    yield from ((c, c.check, subject) for c in (linearity.CLAIM, second_order.CLAIM, contract.CLAIM))
    yield from ((value.CLAIM, value.in_float64, other) for other in others)
    yield from ((second_order.CLAIM, second_order.check, other) for other in others)
    yield from ((value.CLAIM, value.in_float64, mutate(base, subject.mutation)) for base in target.elsewhere)
    main = subject if i == 0 else mutate(target.cases[0], subject.mutation)
    yield edges.CLAIM, partial(edges.check_named, edges=target.rule.edges), main
    yield from ((c, c.check, subject) for c in (edges.CLAIM, value.CLAIM, accuracy.CLAIM))
    if main is not subject:
        yield accuracy.CLAIM, accuracy.check, main
    yield transforms.CLAIM, partial(transforms.check, eager=False), subject
