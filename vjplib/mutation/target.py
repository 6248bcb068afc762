"""A rule with its cases, and the mutations that its backward allows."""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np

from vjplib.compat import x64
from vjplib.mutation.mutate import mutations
from vjplib.mutation.operators import Mutation
from vjplib.rule import Case, Rule
from vjplib.verification.api import at_case
from vjplib.verification.call import CallUnderTest
from vjplib.verification.tolerance import size_of

OTHER_SIZES = 3


@dataclass(frozen=True)
class TargetCall(CallUnderTest):
    """A call of the rule, or of a mutant of it, which keeps what is computed once for all mutants."""

    @cached_property
    def _others(self) -> dict[str, Any]:
        return {}

    def at(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], case: str) -> Self:
        """Return the call of that name, made once."""
        if case not in self._others:
            self._others[case] = super().at(args, kwargs, case)
        return self._others[case]

    @cached_property
    def expected(self) -> dict[Any, Any]:
        """What `equivalence` compares with, by dtype and points."""
        return {}

    @cached_property
    def signature(self) -> bytes | None:
        """The cotangents of the call in float64, rounded to nine digits; None where it cannot be run."""
        try:
            with x64():
                leaves = self.leaves(np.float64)
                dxs = [np.asarray(dx) for dx in self.answers(leaves, self.cotangents(leaves)).dxs]
        except Exception:  # the mutant raises: no two are alike then
            return None
        with np.errstate(invalid="ignore", over="ignore"):
            digits = [np.round(dx / max(size_of(dx), 1e-300), 9) + 0.0 for dx in dxs]
        return b"|".join(
            d.tobytes() + repr(round(float(np.log(size_of(dx) + 1e-300)), 9)).encode()
            for d, dx in zip(digits, dxs, strict=True)
        )


def _call(rule: Rule, case: Case, seed: int, **sizes: int) -> TargetCall:
    call = at_case(rule, case, seed, **sizes)
    given = {name: getattr(call, name) for name in CallUnderTest.__dataclass_fields__}
    return TargetCall(**{**given, "hurried": True})


class Target:
    """A rule with its cases, shared by all its mutants; all random numbers come from the seed."""

    def __init__(self, rule: Rule, seed: int) -> None:
        self.rule, self.seed = rule, seed
        self.cases = [_call(rule, case, seed) for case in rule.cases]

    @cached_property
    def candidates(self) -> list[tuple[int, Mutation]]:
        """Mutations in the order in which to try them: each operator in turn, at each case in turn."""
        rng = np.random.default_rng((self.seed, 6))
        by_operator: dict[str, list[tuple[int, Mutation]]] = {}
        seen = set()
        for i, case in enumerate(self.cases):
            for mutation in mutations(case):
                if mutation not in seen:
                    seen.add(mutation)
                    by_operator.setdefault(mutation.operator, []).append((i, mutation))
        piles = [[pile[k] for k in rng.permutation(len(pile))] for pile in by_operator.values()]
        turns = itertools.zip_longest(*[piles[k] for k in rng.permutation(len(piles))])
        return [candidate for turn in turns for candidate in turn if candidate is not None]

    @cached_property
    def elsewhere(self) -> list[TargetCall]:
        """The cases at other sizes."""
        found = []
        for i, case in enumerate(self.rule.cases):
            rng = np.random.default_rng((self.seed, 7, i))
            found += [_call(self.rule, case, self.seed, **case.sizes(rng)) for _ in range(OTHER_SIZES)]
        return found
