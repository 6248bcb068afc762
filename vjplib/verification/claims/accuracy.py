"""Accuracy: the error against float64 beside that of autodiff of the reference, in float32 and half precision.

Where the record declares tails, each component of the cotangents is held to its own size there; so is that of any
elementwise function of one array. In half precision cotangents of one sign are tried too: what is added up in few bits
stays small where signs differ.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vjplib.precision import compute_dtype
from vjplib.rule import Tail
from vjplib.verification.call import CallUnderTest, Leaves
from vjplib.verification.claim import Claim
from vjplib.verification.claims.value import compare
from vjplib.verification.oracle import typical_magnitude
from vjplib.verification.report import Finding, describe_error, finding, skipped
from vjplib.verification.tails import in_tails
from vjplib.verification.tolerance import MANIFEST, Error

DTYPES = ("float32", "bfloat16", "float16")
TAILS = np.outer((-1.0, 1.0), np.geomspace(1e-3, 80.0, 200)).ravel()
"""The log-spaced numbers of both signs that tails are made of."""


def check(subject: CallUnderTest, dtypes: Sequence[str] = DTYPES) -> Iterator[Finding]:
    """Yield a finding for each dtype, the worst cotangent's error as a multiple of autodiff's, and one for its tails.

    Half precision cannot show an error under about 3 %, so this judges stability, not correctness.
    """
    if subject.dtypes is not None:
        dtypes = [dtype for dtype in dtypes if dtype in subject.dtypes]
    for dtype in map(jnp.dtype, dtypes[:1] if subject.complex else dtypes):  # no complex number has parts of 16 bits
        leaves = subject.cast(dtype)
        try:
            gs = subject.cotangents(leaves)
            errors = _errors(subject, leaves, gs)
            if jnp.finfo(dtype).bits < 32:
                of_one_sign = _errors(subject, leaves, tuple(np.abs(g).astype(g.dtype) for g in gs))
                errors = [
                    max(pair, key=lambda named: named[1].excused) for pair in zip(errors, of_one_sign, strict=True)
                ]
        except Exception as refusal:  # a function, or the compiler, may refuse a dtype with any exception
            yield skipped(f"{dtype}: refused, {describe_error(refusal)}")
            continue
        name, e = max(errors, key=lambda pair: pair[1].excused)
        share = max(e.relative for _, e in errors)
        message = f"{dtype}: " + (f"{share:.2g}x autodiff's error" if np.isfinite(share) else "autodiff makes no error")
        level = "fail" if e.excused > 1 else "pass"
        if level == "fail" and e.lost:
            level, message = "note", f"{dtype}: undecided, autodiff of the reference is not finite either"
        arrays = [{"name": name, "rule": e.size, "autodiff": e.of_autodiff} for name, e in errors]
        data = {"dtype": dtype.name, "arrays": arrays}
        yield finding(level, "inaccurate", message, name, e.excused, e.index, data=data)
        if subject.tails is not None:
            share = tail_error(subject, subject.tails, dtype)
            # The exponential multiplies the rounding of its argument, and the result is rounded.
            ratio = share / float(TAILS.max() * jnp.finfo(compute_dtype(dtype)).eps + 2 * jnp.finfo(dtype).eps)
            message = f"{dtype}: a component of a cotangent is {share:.1e} of its own size off in the tails"
            yield finding("fail" if ratio > 1 else "pass", "inaccurate", message, "cotangents", ratio)
        elif dtype == np.float32:
            yield from in_tails(subject)


def _errors(subject: CallUnderTest, leaves: Leaves, gs: Leaves) -> list[tuple[str, Error]]:
    """Return the errors of outputs and cotangents; one that is total where autodiff is right is never excused."""
    errors = compare(subject, leaves, gs, typical_magnitude(subject, leaves, gs))
    return [(name, replace(e, excused=max(e.excused, e.size / MANIFEST)) if e.total else e) for name, e in errors]


def _in_own_half_precision(subject: CallUnderTest) -> Iterator[Finding]:
    """Examine the call in half precision only where it has such dtypes itself."""
    return check(subject, sorted({a.dtype.name for a in subject.leaves()} & {"float16", "bfloat16"}))


def tail_error(subject: CallUnderTest, tails: Callable[[np.ndarray], Tail], dtype: Any = np.float32) -> float:
    """Return the largest relative error of a component of a function's cotangents at a call of known cotangents.

    The call is that of tails, in a dtype; components count whose exact value is a normal number of the dtype.

    Example:
        >>> def tails(x):
        ...     e = np.exp(-np.abs(x))
        ...     return Tail((x,), np.ones_like(x), (e / (1 + e) ** 2,))
        >>> tail_error(CallUnderTest(lambda x: 1 / (1 + jnp.exp(-x)), ()), tails)
        1.0
    """
    tail, there = at_tails(subject, tails, dtype)
    _, found = jax.jit(there.pull(there.call))(there.leaves(dtype), (np.asarray(tail.g).astype(dtype),))
    errors = [0.0]
    for dx, exact in zip(found, tail.exact, strict=True):
        normal = np.abs(exact) >= float(jnp.finfo(dtype).tiny)
        errors.append(float(np.max(np.abs(np.asarray(dx, np.float64)[normal] / exact[normal] - 1), initial=0)))
    return max(errors)


def at_tails(subject: CallUnderTest, tails: Callable[[np.ndarray], Tail], dtype: Any) -> tuple[Tail, CallUnderTest]:
    """Return the call that tails makes of log-spaced numbers of a dtype, and the function at that call."""
    tail = tails(np.unique(TAILS.astype(dtype))[::-1].astype(np.float64))
    return tail, subject.at(tail.args, {}, f"tails in {jnp.dtype(dtype).name}")


CLAIM = Claim("accuracy", check, alias="V11", quick=_in_own_half_precision, cost=(1, 8))
