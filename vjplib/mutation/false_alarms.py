"""False alarms: runs of unchanged, correct rules, at which no check may find a fault."""

from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import replace
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


def run_correct(rule: Rule, runs: Sequence[int], seed: int) -> Alarms:
    """Return the alarms that the verifier, check_grads and chex raise at these runs of a record's unchanged rule.

    The runs share one case, one random choice of its sizes, masks and indices; each draws its own dtype, scale and
    floating numbers. Every run examines the value, in the run's dtype and in float64; the first run also examines the
    contract and one claim chosen by the run's number. check_grads and chex get the function jitted.
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
        subject = replace(base, args=args, seed=run, base=base)
        alarm = partial(Alarm, rule=rule.name, run=run, call=f"{base.case}, {dtype}, inputs times {scale:.3g}")
        with x64() if dtype == "float64" else nullcontext():
            checks = [*_of_value(dtype), *((contract.check, _in_turn(run)) if k == 0 else ())]
            alarms += [alarm("vjplib", message=str(f)) for check in checks for f in _failures(check, subject)]
            leaves = subject.leaves(jnp.dtype(dtype))
            messages = {by: complaint_of(by, jitted, leaves) for by in others()}
            alarms += [alarm(by, message=message) for by, message in messages.items() if message]
    return Alarms(len(runs), tuple(alarms))


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
