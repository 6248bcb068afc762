"""A rule with its cases, and the mutations that its backward allows."""

import inspect
import itertools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Self

import jax
import numpy as np

from vjplib.compat import x64
from vjplib.mutation.mutate import keyword_mutations, mutations, shown
from vjplib.mutation.operators import STATIC, Mutation
from vjplib.rule import Case, Rule
from vjplib.verification.api import at_call, at_case
from vjplib.verification.call import SMALL, CallUnderTest, attempt, is_inexact
from vjplib.verification.claims.variations import other_values
from vjplib.verification.tolerance import size_of

OTHER_SIZES = 3
LONG = 1031  # an axis along which a sum of normal numbers without their signs no longer grows in bfloat16


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
    return _target_call(at_case(rule, case, seed, **sizes))


def _target_call(call: CallUnderTest) -> TargetCall:
    given = {name: getattr(call, name) for name in CallUnderTest.__dataclass_fields__}
    return TargetCall(**{**given, "hurried": True})


def _by_keyword(rule: Rule, call: CallUnderTest) -> list[TargetCall]:
    """Return the call with its arrays after the first floating one by keyword, as `verify` takes it, if it has any.

    A function that takes them by position alone has no such call, nor has a reference with other names for them.
    """
    floating = [i for i, a in enumerate(call.args) if a is not None and is_inexact(a)]
    if len(floating) < 2 or call.axes:
        return []
    first = floating[0] + 1
    named = [list(inspect.signature(f).parameters.values())[first : len(call.args)] for f in (rule.fn, rule.reference)]
    names = [[p.name for p in ps if p.kind is p.POSITIONAL_OR_KEYWORD] for ps in named]
    if names[0] != names[1] or len(names[0]) != len(call.args) - first:
        return []
    kwargs = {**dict(zip(names[0], call.args[first:], strict=True)), **call.kwargs}
    made = at_call(
        rule.fn, call.args[:first], kwargs, reference=rule.reference, order_two=rule.order_two, seed=call.seed
    )
    return [_target_call(replace(made, domain=None, case=f"{call.case}, by keyword"))]


class Target:
    """A rule with its cases, shared by all its mutants; all random numbers come from the seed."""

    def __init__(self, rule: Rule, seed: int) -> None:
        self.rule, self.seed = rule, seed
        self.cases = [_call(rule, case, seed) for case in rule.cases]
        self.by_keyword = _by_keyword(rule, self.cases[0])
        self.calls = [*self.cases, *self.by_keyword]
        self._longer: dict[int, list[TargetCall]] = {}

    @cached_property
    def candidates(self) -> list[tuple[int, Mutation]]:
        """Mutations, each with the number of its call, in the order in which to try them: each operator in turn."""
        rng = np.random.default_rng((self.seed, 6))
        by_operator: dict[str, list[tuple[int, Mutation]]] = {}
        for mutation, numbers in self._places.items():
            by_operator.setdefault(mutation.operator, []).append((numbers[0], mutation))
        piles = [[pile[k] for k in rng.permutation(len(pile))] for pile in by_operator.values()]
        turns = itertools.zip_longest(*[piles[k] for k in rng.permutation(len(piles))])
        return [candidate for turn in turns for candidate in turn if candidate is not None]

    @cached_property
    def _places(self) -> dict[Mutation, list[int]]:
        """Mutations, each with the numbers of the calls that it can be made at.

        One of a static argument is made where it does not show, if it can be, and left out if it shows nowhere.
        """
        found: dict[Mutation, list[int]] = {}
        for i, call in enumerate(self.calls):
            for mutation in mutations(call) if i < len(self.cases) else keyword_mutations(call):
                found.setdefault(mutation, []).append(i)
        if static := [mutation for mutation in found if mutation.primitive == STATIC]:
            showing = [shown(call, static) for call in (*self.cases, *self.varied)]
            for mutation in static:
                if not any(mutation in at for at in showing):
                    del found[mutation]
                else:
                    found[mutation].sort(key=lambda i, m=mutation: m in showing[i])
        return found

    @cached_property
    def varied(self) -> list[TargetCall]:
        """The first case with other values of its static arguments: the record's, or else guessed ones."""
        base, rule = self.cases[0], self.rule
        found = []
        for name, given in base.static.items():
            for new in rule.vary[name] if name in rule.vary else other_values(given):
                other = base.with_static({name: new}, f"{base.case}, {name} made {new!r}")
                if attempt(lambda other=other: other.accepted) is True:
                    found.append(other)
        return found

    def longer(self, i: int) -> list[TargetCall]:
        """Return call i with each of its axes made `LONG` in turn, where it stays small, and no number negative."""
        i = i if i < len(self.cases) else 0
        case = self.rule.cases[i]
        for name in case.dims if i not in self._longer else ():
            sizes = {**case.dims, name: LONG}
            if name not in case.fixed and case.valid(**sizes):
                call = _call(self.rule, case, self.seed, **sizes)
                if sum(map(np.size, jax.tree.leaves(call.args))) <= SMALL:
                    args = jax.tree.map(lambda a: np.abs(a) if is_inexact(a) else a, call.args)
                    self._longer.setdefault(i, []).append(replace(call, args=args, tails=None))
        return self._longer.get(i, [])

    @cached_property
    def elsewhere(self) -> list[TargetCall]:
        """The cases at other sizes."""
        found = []
        for i, case in enumerate(self.rule.cases):
            rng = np.random.default_rng((self.seed, 7, i))
            found += [_call(self.rule, case, self.seed, **case.sizes(rng)) for _ in range(OTHER_SIZES)]
        return found
