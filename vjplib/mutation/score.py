"""Score: which of a rule's mutants the verifier's claims kill, and which other checks do."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np

from vjplib.mutation.equivalence import equivalent
from vjplib.mutation.mutate import mutate
from vjplib.mutation.operators import NARROW, NESTED, STATIC, Mutation
from vjplib.mutation.other_checkers import complaint_of, others
from vjplib.mutation.target import Target
from vjplib.rule import Rule
from vjplib.verification.call import CallUnderTest
from vjplib.verification.claim import Check, Claim
from vjplib.verification.claims import (
    accuracy,
    contract,
    edges,
    linearity,
    second_order,
    transforms,
    value,
    variations,
)

MUTANTS = 20
TRIES = 4
"""Candidates to try for each mutant requested."""


@dataclass(frozen=True)
class Outcome:
    """The result of one mutant.

    Args:
        mutation: the bug as text, with its file and line.
        operator: the mutation operator.
        case: the name of the call that it was made at.
        verdict: "killed", "equivalent" or "survived".
        claim: the name of the claim that killed it; empty for none.
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
    """The mutants of one rule, an outcome each, and the seconds that they took."""

    name: str
    outcomes: tuple[Outcome, ...]
    seconds: float

    def count(self, verdict: str) -> int:
        """Return the number of mutants with a verdict."""
        return sum(o.verdict == verdict for o in self.outcomes)


def score(rule: Rule, count: int = MUTANTS, seed: int = 0) -> Score:
    """Return the score of a rule's mutants.

    A mutant with the same first derivatives as an earlier one is left out, so that no bug counts twice; a mutant with
    the rule's own first derivatives is not.

    Args:
        rule: the record.
        count: how many mutants to score that are not equivalent to the rule; fewer if the backward allows fewer.
        seed: of all random numbers.
    """
    start = time.perf_counter()
    target = Target(rule, seed)
    outcomes: list[Outcome] = []
    signatures: set[tuple[str, bytes]] = set()
    for i, mutation in target.candidates[: TRIES * count]:
        if sum(o.verdict != "equivalent" for o in outcomes) >= count:
            break
        outcome = _outcome(target, i, mutation, signatures)
        if outcome is not None:
            outcomes.append(outcome)
    return Score(rule.name, tuple(outcomes), time.perf_counter() - start)


def _outcome(target: Target, i: int, mutation: Mutation, signatures: set[tuple[str, bytes]]) -> Outcome | None:
    """Return the result of a mutant, None for a duplicate of an earlier one."""
    base = target.calls[i]
    subject = mutate(base, mutation)
    own, theirs = base.signature, subject.signature
    first_order = own is None or theirs is None or own != theirs
    if first_order and theirs is not None:
        if (base.case, theirs) in signatures:
            return None
        signatures.add((base.case, theirs))
    claim = killer(target, i, subject, mutation)
    verdict = "killed" if claim else "equivalent" if equivalent(target, mutation) else "survived"
    leaves = subject.leaves(np.float32)
    raised = {by: verdict != "equivalent" and bool(complaint_of(by, subject.call, leaves)) for by in others()}
    grads, chex = raised["check_grads"], raised.get("chex")
    return Outcome(str(mutation), mutation.operator, base.case, verdict, claim, first_order, grads, chex)


def killer(target: Target, i: int, subject: CallUnderTest, mutation: Mutation) -> str:
    """Return the first claim that a mutant fails; empty for none.

    They are those that standard verification examines, and more calls of them: at random sizes, and accuracy at long
    axes. `subject` is its call i, where the mutation was made.
    """
    for claim, check, at in _examinations(target, i, subject, mutation):
        try:
            failed = any(f.level == "fail" for f in check(at))
        except Exception:  # a claim fails whose check raises
            failed = True
        if failed:
            return claim.name
    return ""


def _examinations(
    target: Target, i: int, subject: CallUnderTest, mutation: Mutation
) -> Iterator[tuple[Claim, Check, CallUnderTest]]:
    """Yield claims with their checks and calls, the cheapest first; before them the one that looks for such a fault."""
    under_transforms = (transforms.CLAIM, partial(transforms.check, eager=False), subject)
    in_halves = partial(accuracy.check, dtypes=("bfloat16",))
    long = ((accuracy.CLAIM, in_halves, mutate(base, mutation)) for base in target.longer(i))
    if mutation.operator == NESTED:
        yield under_transforms
    if mutation.operator == NARROW:
        yield from long
    others = [mutate(base, mutation) for k, base in enumerate(target.cases) if k != i]
    yield value.CLAIM, value.in_float64, subject
    yield from ((c, c.check, subject) for c in (linearity.CLAIM, second_order.CLAIM, contract.CLAIM))
    yield from ((value.CLAIM, value.in_float64, other) for other in others)
    if mutation.primitive == STATIC and target.rule.vary:
        yield variations.CLAIM, variations.at_stated_values, subject
    yield from ((second_order.CLAIM, second_order.check, other) for other in others)
    yield from ((value.CLAIM, value.in_float64, mutate(base, mutation)) for base in target.elsewhere)
    main = subject if i == 0 else mutate(target.cases[0], mutation)
    yield edges.CLAIM, partial(edges.check_named, edges=target.rule.edges), main
    yield from ((c, c.check, subject) for c in (edges.CLAIM, value.CLAIM, accuracy.CLAIM))
    if main is not subject:
        yield accuracy.CLAIM, accuracy.check, main
    yield from long
    if mutation.operator != NESTED:
        yield under_transforms
