"""Coverage: which equations of the backward change a cotangent at these inputs.

If a factor on an equation's output changes no cotangent, no comparison at these inputs can show a fault there. The
derivative of the cotangents by all factors, which `locate` takes too, tells which equations are seen. One that changes
none at the call may do so in the tails that the record declares, where each component is compared with its own size.
Only the author knows why an equation is not seen: a mask may hide it, it may cancel, or nothing may use it.
"""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from vjplib.compat import x64
from vjplib.verification.call import CallUnderTest
from vjplib.verification.claim import Claim
from vjplib.verification.claims.accuracy import at_tails
from vjplib.verification.explain.locate import MOST
from vjplib.verification.explain.program import with_factors
from vjplib.verification.report import Finding, Place, describe_error, noted, passed, skipped
from vjplib.verification.tolerance import HALF_THE_DIGITS

SHOWN = 5  # blind equations named
OTHER = -2.0  # a factor that changes comparisons


def check(subject: CallUnderTest) -> Iterator[Finding]:
    """Yield a pass if a factor on any equation of the backward changes a cotangent, else a note that names the others.

    Left out are equations without a floating output, and those that no result or no input is connected with.
    """
    try:
        with x64():
            blind, count, reason = _blind(subject)
    except Exception as error:  # an equation may have no derivative, or the rule may raise; contract and value say so
        blind, count, reason = [], 0, f"the backward has no derivative by its equations: {describe_error(error)}"
    data = {"equations": count, "blind": blind}
    if reason:
        yield skipped(reason)
    elif blind:
        named = ", ".join(blind[:SHOWN]) + (f", and {len(blind) - SHOWN} others" if len(blind) > SHOWN else "")
        message = f"these inputs see {count - len(blind)} of {count} equations of the backward; no cotangent moves with"
        yield noted(f"{message} {named}", data=data)
    else:
        yield passed(f"these inputs see every one of {count} equations of the backward", data=data)


def _blind(subject: CallUnderTest) -> tuple[list[str], int, str]:
    """Return the equations that change no cotangent, the number of all equations, and why nothing was decided."""
    leaves = subject.leaves(np.float64)
    program = with_factors(subject, leaves, subject.cotangents(leaves))
    inside = [i for i, backward in enumerate(program.backward) if backward]
    if not inside:
        return [], 0, "no floating equation of a custom_vjp's backward is in sight: there is none, or it is in a loop"
    if len(inside) > MOST:
        return [], len(inside), f"the backward has {len(inside)} equations, more than {MOST}"
    ones = jnp.ones(len(inside))
    plain = program.evaluate(lambda eqn, outputs: outputs)
    weights = [1 / max(float(np.linalg.norm(dx)), np.finfo(float).tiny) for dx in plain]
    cotangents = program.cotangents(weights, inside)
    moves = np.asarray(jax.jit(jax.jacfwd(cotangents))(ones))
    if not np.isfinite(moves).all():
        return [], len(inside), "a cotangent, or its derivative by an equation, is not finite at these inputs"
    blind = np.flatnonzero(np.linalg.norm(moves, axis=0) <= HALF_THE_DIGITS)
    jitted = jax.jit(cotangents) if blind.size else cotangents
    # An equation that only decides a comparison has no derivative: its output is given the other sign.
    changes = [np.linalg.norm(jitted(ones.at[i].set(OTHER)) - jitted(ones)) for i in blind]
    unseen = [i for i, change in zip(blind, changes, strict=True) if change <= HALF_THE_DIGITS]
    if unseen and subject.tails is not None:
        unseen = _unseen_in_tails(subject, program.places, [inside[i] for i in unseen])
        return [str(program.places[number]) for number in unseen], len(inside), ""
    return [str(program.places[inside[i]]) for i in unseen], len(inside), ""


def _unseen_in_tails(subject: CallUnderTest, places: tuple[Place, ...], numbers: list[int]) -> list[int]:
    """Return the equations that change no component of a cotangent, relative to its size, in the tails either."""
    assert subject.tails is not None
    tail, there = at_tails(subject, subject.tails, np.float64)
    program = with_factors(there, there.leaves(np.float64), (np.asarray(tail.g, np.float64),))
    if program.places != places:  # another program, with other equations
        return numbers
    cotangents = jax.jit(program.cotangents([1.0] * len(tail.exact), numbers))
    ones = jnp.ones(len(numbers))
    plain = np.asarray(cotangents(ones))
    sized = plain != 0
    unseen = []
    for i, number in enumerate(numbers):
        changed = np.asarray(cotangents(ones.at[i].set(OTHER)))
        if np.max(np.abs(changed[sized] / plain[sized] - 1), initial=0) <= HALF_THE_DIGITS:
            unseen.append(number)
    return unseen


CLAIM = Claim("coverage", check, alias="V13", needs_oracle=False, cost=(1, 6))
