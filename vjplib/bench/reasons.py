"""Reasons: the gains that a record claims, each measured beside autodiff of its baseline.

Bytes and errors do not depend on the load of the machine. A time is measured again before its gain is called gone.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vjplib.bench.environment import environment
from vjplib.bench.rules import compiled, subject_at
from vjplib.bench.timing import interleaved
from vjplib.compat import x64
from vjplib.rule import Case, Gain, Rule
from vjplib.verification.call import CallUnderTest, Leaves
from vjplib.verification.claims.accuracy import tail_error
from vjplib.verification.claims.residuals import residual_bytes
from vjplib.verification.oracle import leaves_to_float64
from vjplib.verification.report import as_json

TRIES = 4
"""The number of times that a time is measured before its gain is called gone; each try takes twice as long."""
NOTHING = "not measured: the record claims no gain"
LECTURE = "a layer of the lecture"


@dataclass(frozen=True)
class Measurement:
    """One gain of a rule as measured; or a rule that claims none, and then `note` says why it is kept.

    Args:
        rule: the rule's name.
        reason: why the rule exists, as its record says.
        quantity: what is measured, a member of `vjplib.rule.QUANTITIES`.
        call: the call at which it is measured.
        baseline: the baseline's name.
        at_most: the claimed bound on the ratio.
        ours: the rule's bytes, seconds or error, and theirs that of autodiff of the baseline; None if not measured.
        note: why nothing is measured; "" where something is.

    Example:
        >>> found = Measurement("f", "keeps x alone", "kept bytes", "n=8", "jnp.f", 0.5, ours=32, theirs=96)
        >>> round(found.ratio, 3), found.verdict
        (0.333, 'holds')
    """

    rule: str
    reason: str
    quantity: str = ""
    call: str = ""
    baseline: str = ""
    at_most: float | None = None
    ours: float | None = None
    theirs: float | None = None
    note: str = ""

    @property
    def ratio(self) -> float:
        """The rule's figure as a multiple of the baseline's: 0 if only the baseline's is infinite; NaN if unknown."""
        if self.ours is None or self.theirs is None or not math.isfinite(self.ours):
            return math.nan
        if self.theirs == 0:
            return math.inf if self.ours else 1.0
        return self.ours / self.theirs

    @property
    def gone(self) -> bool:
        """True if the gain is measured and not there."""
        return not self.note and not (self.at_most is not None and self.ratio <= self.at_most)

    @property
    def verdict(self) -> str:
        """The note, "holds" or "gone"."""
        return self.note or ("gone" if self.gone else "holds")


def measure_reason(rule: Rule, *, seconds: float = 1.0) -> list[Measurement]:
    """Measure the gains that a record claims, in their order; a record without gains gives one entry with a note.

    Args:
        rule: the record.
        seconds: how long the first try to measure a time takes, as in `vjplib.bench.timing.interleaved`.

    Raises:
        ValueError: seconds is negative.

    Example:
        >>> from vjplib.rule import find
        >>> [found] = measure_reason(find("softplus")[0])
        >>> found.quantity, found.ours, found.theirs, found.verdict
        ('kept bytes', 16777216, 33554432, 'holds')
    """
    if seconds < 0:
        raise ValueError(f"seconds must be at least 0, got {seconds}")
    if not rule.gains:
        return [Measurement(rule.name, rule.reason, note=LECTURE if rule.lecture else NOTHING)]
    return [_measurement(rule, gain, seconds) for gain in rule.gains]


def to_dict(found: Sequence[Measurement]) -> dict[str, Any]:
    """Return measurements and the environment in plain types, as `vjplib bench --reasons --json` writes them."""
    rows = [{**asdict(m), "ratio": m.ratio, "verdict": m.verdict, "gone": m.gone} for m in found]
    return {"environment": environment(), "reasons": as_json(rows)}


def remarks(found: Sequence[Measurement]) -> Iterator[str]:
    """Yield a line for each gain that has gone."""
    for m in (m for m in found if m.gone):
        message = (
            f"{m.quantity} ({m.call}) is {m.ratio:.3g} of {m.baseline}'s, but the record claims at most {m.at_most:g}"
        )
        yield f"{m.rule}: {message}. Correct the record, or remove the rule if it has no other reason"


# ------------------------------------------------------------------------------------------------------ the quantities


def _measurement(rule: Rule, gain: Gain, seconds: float) -> Measurement:
    baseline = rule.baseline_of(gain)
    functions, note, pair = (rule.fn, rule.baselines[baseline]), "", (None, None)
    platform = jax.default_backend()
    if gain.quantity in ("time", "scratch bytes") and gain.platform != platform:
        note = f"not measured: claimed for {gain.platform}, this is {platform}"
    elif gain.quantity == "error":
        pair = _errors(rule, gain, functions)
    else:
        case = rule.call_of(gain)
        assert isinstance(case, Case)  # the record has refused all else
        subject = subject_at(rule, case, jnp.dtype(gain.dtype))
        if gain.quantity == "kept bytes":
            pair = tuple(residual_bytes(subject.flat(fn), *subject.leaves()) for fn in functions)
        else:
            programs = compiled(subject, functions, "returned")
            pair = tuple(program.temporary for program in programs)
            if gain.quantity == "time":
                pair = _seconds([program.run for program in programs], gain.at_most, seconds)
            elif None in pair:
                note = "not measured: the compiler does not report it"
    ours, theirs = pair
    return Measurement(
        rule.name, rule.reason, gain.quantity, rule.named_call_of(gain), baseline, gain.at_most, ours, theirs, note
    )


def _seconds(runs: Sequence[Callable[[], Any]], at_most: float, seconds: float) -> tuple[float, float]:
    """Return the median times of two programs, of the first try at which the ratio is small enough, or of the best."""
    tries = []
    for _ in range(TRIES):
        ours, theirs = np.median(interleaved(runs, seconds), axis=1).tolist()
        tries.append((ours, theirs))
        if ours <= at_most * theirs:
            break
        seconds *= 2
    return min(tries, key=lambda pair: pair[0] / pair[1])


def _errors(rule: Rule, gain: Gain, functions: Sequence[Callable[..., Any]]) -> tuple[float, ...]:
    """Return the error of each function: in the tails, or at a case or an edge."""
    dtype, call = jnp.dtype(gain.dtype), rule.call_of(gain)
    if call is None:
        assert rule.tails is not None  # the record has refused it
        return tuple(tail_error(CallUnderTest(fn, ()), rule.tails, dtype) for fn in functions)
    if isinstance(call, Case):
        subject = subject_at(rule, call, dtype)
    else:
        args = tuple(None if a is None else np.asarray(a) for a in call.args)
        subject = CallUnderTest(rule.fn, args, call.kwargs)
    leaves = subject.cast(dtype)
    gs = subject.cotangents(leaves)
    with x64():
        exact = _results(subject, rule.reference, *leaves_to_float64(leaves, gs))
    return tuple(_error(_results(subject, fn, leaves, gs), exact) for fn in functions)


def _results(subject: CallUnderTest, fn: Callable[..., Any], leaves: Leaves, gs: Leaves) -> list[np.ndarray]:
    """Return outputs and cotangents of a function at a call, as NumPy arrays in float64."""
    return [np.asarray(a, np.float64) for a in jax.tree.leaves(jax.jit(subject.pull(subject.flat(fn)))(leaves, gs))]


def _error(found: Sequence[np.ndarray], exact: Sequence[np.ndarray]) -> float:
    """Return the largest error of an array, relative to its largest entry, or to that of all if it is exactly 0.

    Entries count whose exact value is finite; NaN is an infinite error.
    """
    finite = [np.isfinite(b) for b in exact]
    scales = [float(np.max(np.abs(b[f]), initial=0)) for b, f in zip(exact, finite, strict=True)]
    errors = [0.0]
    for a, b, f, scale in zip(found, exact, finite, scales, strict=True):
        apart = np.where(np.isnan(a), np.inf, np.abs(a - np.where(f, b, 0)))[f]
        errors.append(float(np.max(apart, initial=0)) / (scale or max(scales) or 1.0))
    return max(errors)
