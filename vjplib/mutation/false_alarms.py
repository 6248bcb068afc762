"""False alarms: runs of unchanged, correct rules, at which no check may find a fault."""

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vjplib.compat import x64
from vjplib.mutation.equivalence import DTYPES, SCALES
from vjplib.mutation.examples import Example, drawn_call, dtypes_of, redrawn
from vjplib.mutation.other_checkers import complaint_of, others
from vjplib.rule import Rule
from vjplib.verification.api import at_case
from vjplib.verification.call import CallUnderTest, attempt
from vjplib.verification.claim import Check, Claim
from vjplib.verification.claims import (
    accuracy,
    contract,
    edges,
    linearity,
    second_order,
    taylor,
    transforms,
    value,
    variations,
)
from vjplib.verification.registry import resolve
from vjplib.verification.runner import Job, Runner


class Alarm(NamedTuple):
    """A false alarm: the check that raised it, the rule, the number of the run, its call, and the message."""

    by: str
    rule: str
    run: int
    call: str
    message: str


class Alarms(NamedTuple):
    """How many runs of correct rules there were, each examined by every check, and the false alarms."""

    runs: int
    alarms: tuple[Alarm, ...]

    def of(self, by: str) -> int:
        """Return the number of runs at which a check raised an alarm."""
        return len({alarm.run for alarm in self.alarms if alarm.by == by})


def joined(parts: Iterable[Alarms]) -> Alarms:
    """Return the alarms of several parts of the runs, by check and run."""
    parts = list(parts)
    found = sorted((alarm for part in parts for alarm in part.alarms), key=lambda alarm: (alarm.by, alarm.run))
    return Alarms(sum(part.runs for part in parts), tuple(found))


class _Run(NamedTuple):
    """One run: the call, the dtype of its floating arrays, None for its own, and words for both."""

    subject: CallUnderTest
    dtype: Any
    call: str


def run_correct(rule: Rule | Example, runs: Sequence[int], seed: int) -> Alarms:
    """Return the alarms that the verifier, check_grads and chex raise at these runs of an unchanged rule.

    The runs share one random choice of sizes, masks and indices, of a record's case or of an example's call; each draws
    its own dtype, scale and floating numbers. Every run examines the value, in the run's dtype and in float64; the
    first run also examines the contract and one claim chosen by the run's number. check_grads and chex get the function
    jitted.
    """
    rng = np.random.default_rng((seed, *runs[:1]))
    of_record = isinstance(rule, Rule)
    base, drawn = _runs_of_record(rule, runs, seed, rng) if of_record else _runs_of_example(rule, runs, seed, rng)
    turns = TURNS if of_record else (*TURNS, *MORE_TURNS)
    jitted = jax.jit(base.call)
    chosen = None if of_record else resolve(rule.options.get("claims"))
    runner = Runner(math.inf)
    alarms = []
    for k, (run, at) in enumerate(zip(runs, drawn, strict=True)):
        alarm = partial(Alarm, rule=rule.name, run=run, call=at.call)
        with x64() if at.dtype == "float64" else nullcontext():
            checks = [*_of_value(at.dtype), *((_CONTRACT, _in_turn(run, turns)) if k == 0 else ())]
            for claim, check in checks:
                if chosen is None or claim in chosen:
                    found = runner.one(Job(claim, check, at.subject))
                    alarms += [alarm("vjplib", message=str(f)) for f in found if f.level == "fail"]
            leaves = at.subject.cast(at.dtype)
            messages = {by: complaint_of(by, jitted, leaves) for by in others()}
            alarms += [alarm(by, message=message) for by, message in messages.items() if message]
    return Alarms(len(runs), tuple(alarms))


def _runs_of_record(
    rule: Rule, runs: Sequence[int], seed: int, rng: np.random.Generator
) -> tuple[CallUnderTest, Iterator[_Run]]:
    """Return a call of a record at random sizes, and the runs."""
    case = rule.cases[int(rng.integers(len(rule.cases)))]
    sizes = case.sizes(rng)
    base = replace(at_case(rule, case, int(rng.integers(2**31)), **sizes), hurried=True)

    def drawn() -> Iterator[_Run]:
        for run in runs:
            dtype = DTYPES[int(rng.integers(len(DTYPES)))]
            scale = float(10 ** rng.uniform(*np.log10(SCALES)))
            new = case.call(np.random.default_rng((seed, run)), jnp.dtype(dtype), scale, **sizes).args
            args = tuple(b if a is None or b.dtype != np.float32 else a for a, b in zip(new, base.args, strict=True))
            subject = replace(base, args=args, seed=run, base=base)
            yield _Run(subject, jnp.dtype(dtype), f"{base.case}, {dtype}, inputs times {scale:.3g}")

    return base, drawn()


def _runs_of_example(
    example: Example, runs: Sequence[int], seed: int, rng: np.random.Generator
) -> tuple[CallUnderTest, Iterator[_Run]]:
    """Return a call of an example at random sizes, and the runs: within its domain, and in dtypes that it takes."""
    base = drawn_call(example, rng)
    dtypes = dtypes_of(base, DTYPES)

    def drawn() -> Iterator[_Run]:
        for run in runs:
            own = np.random.default_rng((seed, run))
            dtype, scale = dtypes[int(rng.integers(len(dtypes)))], float(10 ** rng.uniform(*np.log10(SCALES)))
            for tried, times in ((dtype, scale), (None, scale), (None, 1.0)):
                args = redrawn(base, own, tried, times)
                subject = base if args is None else replace(base, args=args, seed=run, base=base)
                if args is not None and _in_range(subject, tried):
                    break
            yield _Run(subject, tried, f"{base.case}, {tried or 'its own dtype'}, inputs times {times:.3g}")

    return base, drawn()


def _in_range(subject: CallUnderTest, dtype: Any) -> bool:
    """Return True if the function's outputs are finite: where they are not, a call proves nothing."""
    with x64() if dtype == np.float64 else nullcontext():
        leaves = subject.cast(dtype)
        found = attempt(lambda: subject.answers_at(leaves, subject.cotangents(leaves)).primal)
    return isinstance(found, Exception) or all(np.isfinite(y).all() for y in found)


def _of_value(dtype: Any) -> list[tuple[Claim, Check]]:
    if dtype is None or dtype == np.float32:
        in_own_halves = [(accuracy.CLAIM, accuracy.CLAIM.at("quick") or accuracy.check)] if dtype is None else []
        return [(value.CLAIM, partial(value.check, scales=(1.0,))), *in_own_halves]
    if dtype == np.float64:
        return [(value.CLAIM, value.in_float64)]
    return [(accuracy.CLAIM, partial(accuracy.check, dtypes=(dtype.name,))), (value.CLAIM, value.in_float64)]


def _in_turn(run: int, turns: Sequence[tuple[Claim, Check]]) -> tuple[Claim, Check]:
    return turns[int(np.random.default_rng(run).integers(len(turns)))]


_CONTRACT = (contract.CLAIM, contract.check)
TURNS: tuple[tuple[Claim, Check], ...] = (
    (linearity.CLAIM, linearity.check),
    (second_order.CLAIM, second_order.check),
    (transforms.CLAIM, partial(transforms.check, eager=False)),
    (edges.CLAIM, edges.check),
)
MORE_TURNS: tuple[tuple[Claim, Check], ...] = tuple(
    (claim, claim.check) for claim in (value.CLAIM, accuracy.CLAIM, variations.CLAIM, taylor.CLAIM)
)
"""Of calls that have no record, whose domain is inferred."""
