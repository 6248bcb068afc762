"""Runs of rules as they are: whatever is found wrong there is a false alarm."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vjplib.compat import x64
from vjplib.mutation.equivalence import DTYPES, SCALES
from vjplib.mutation.other_checkers import complaint_of, others
from vjplib.rule import Rule
from vjplib.verification.api import at_case
from vjplib.verification.call import CallUnderTest
from vjplib.verification.claim import Check
from vjplib.verification.claims import accuracy, contract, edges, linearity, second_order, transforms, value
from vjplib.verification.report import Finding, describe_error, failed


class Alarm(NamedTuple):
    """A correct rule said to be wrong: by whom, at which run, and what was said."""

    by: str
    rule: str
    run: int
    call: str
    message: str


@dataclass(frozen=True)
class Alarms:
    """What correct rules met with.

    Args:
        runs: how many there were.
        asked: of each check, how many runs it took part in.
        alarms: each false alarm.
    """

    runs: int
    asked: Mapping[str, int]
    alarms: tuple[Alarm, ...]

    def of(self, by: str) -> int:
        """Returns how many runs a check raised an alarm at."""
        return len({alarm.run for alarm in self.alarms if alarm.by == by})


def run_correct(rule: Rule, runs: Sequence[int], seed: int) -> list[Alarm]:
    """Returns the alarms raised at runs of a rule as it is, by the verifier, check_grads and chex.

    The runs are at one case and random sizes of it, masks and indices the same; each has a dtype, a scale and floating
    numbers of its own. The value is examined at each run, in its dtype and in float64; the contract and by turns one
    claim more at the first run. To check_grads and chex the function is given jitted.

    Args:
        rule: the record.
        runs: the numbers of the runs.
        seed: of all random numbers.
    """
    rng = np.random.default_rng((seed, *runs[:1]))
    case = rule.cases[int(rng.integers(len(rule.cases)))]
    sizes = case.sizes(rng)
    base = replace(at_case(rule, case, int(rng.integers(2**31)), **sizes), hurried=True)
    jitted = jax.jit(base.call)
    alarms = []
    for k, run in enumerate(runs):
        dtype = DTYPES[int(rng.integers(len(DTYPES)))]
        scale = float(10 ** rng.uniform(*np.log10(SCALES)))
        drawn = case.call(np.random.default_rng((seed, run)), jnp.dtype(dtype), scale, **sizes).args
        args = tuple(b if a is None or b.dtype != np.float32 else a for a, b in zip(drawn, base.args, strict=True))
        subject = replace(base, args=args, seed=run)
        subject.__dict__["answers"] = base.answers  # compiled once: only the floating numbers differ
        alarm = partial(Alarm, rule=rule.name, run=run, call=f"{base.case}, {dtype}, inputs times {scale:.3g}")
        with x64() if dtype == "float64" else nullcontext():
            checks = [*_of_value(dtype), *((contract.check, _in_turn(run)) if k == 0 else ())]
            alarms += [alarm("vjplib", message=str(f)) for check in checks for f in _failures(check, subject)]
            leaves = subject.leaves(jnp.dtype(dtype))
            told = {by: complaint_of(by, jitted, leaves) for by in others()}
            alarms += [alarm(by, message=message) for by, message in told.items() if message]
    return alarms


def _of_value(dtype: str) -> list[Check]:
    if dtype == "float32":
        return [partial(value.check, scales=(1.0,))]
    if dtype == "float64":
        return [value.in_float64]
    return [lambda s: accuracy.check(s, (dtype,)), value.in_float64]


def _in_turn(run: int) -> Check:
    turns = (linearity.check, second_order.check, partial(transforms.check, eager=False), edges.check)
    return turns[np.random.default_rng(run).integers(len(turns))]


def _failures(check: Check, subject: CallUnderTest) -> list[Finding]:
    try:
        return [f for f in check(subject) if f.level == "fail"]
    except Exception as error:  # no correct rule may raise
        return [failed("raises", f"raises {describe_error(error)}", claim="contract", case=subject.case)]
