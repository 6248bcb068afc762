"""A rule with its cases, and the faults that can be made in it."""

import itertools
from dataclasses import replace
from functools import cached_property

import numpy as np

from vjplib.mutation.mutate import mutations
from vjplib.mutation.operators import Mutation
from vjplib.rule import Rule
from vjplib.verification.api import at_case
from vjplib.verification.call import CallUnderTest

OTHER_SIZES = 3


class Target:
    """A rule with its cases, for all its mutants.

    Args:
        rule: the record.
        seed: of all random numbers.
    """

    def __init__(self, rule: Rule, seed: int) -> None:
        self.rule, self.seed = rule, seed
        self.cases = [replace(at_case(rule, case, seed), hurried=True) for case in rule.cases]

    @cached_property
    def candidates(self) -> list[tuple[int, Mutation]]:
        """Mutations in the order to try them in: each operator in turn, at the cases in turn."""
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
    def elsewhere(self) -> list[CallUnderTest]:
        """The cases at other sizes."""
        found = []
        for i, case in enumerate(self.rule.cases):
            rng = np.random.default_rng((self.seed, 7, i))
            drawn = [case.sizes(rng) for _ in range(OTHER_SIZES)]
            found += [replace(at_case(self.rule, case, self.seed, **sizes), hurried=True) for sizes in drawn]
        return found
