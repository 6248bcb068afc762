"""Coverage: which equations of the backward change a cotangent at these inputs.

If a factor on an equation's output changes no cotangent, no comparison at these inputs can show a fault there. The
derivative of the cotangents by all factors, which `locate` takes too, tells which equations are seen. One that changes
none at the call may do so in the tails that the record declares, where each component is compared with its own size.
Only the author knows why an equation is not seen: a mask may hide it, it may cancel, or nothing may use it.
"""

from collections.abc import Iterator

import jax
import numpy as np

from vjplib.compat import x64
from vjplib.verification.call import CallUnderTest
from vjplib.verification.claim import Claim
from vjplib.verification.claims.accuracy import at_tails
from vjplib.verification.explain.locate import MOST
from vjplib.verification.explain.program import ScaledProgram, sizes, with_factors
from vjplib.verification.report import Finding, describe_error, noted, passed, skipped
from vjplib.verification.tolerance import HALF_THE_DIGITS

SHOWN = 5  # blind equations named
OTHER = -2.0  # a factor that changes comparisons


def check(subject: CallUnderTest) -> Iterator[Finding]:
    """Yield a pass if a factor on any equation of the backward changes a cotangent, else a note that names the others.

    Left out are equations without a floating output, and those that no result or no input is connected with.
    """
    try:
        with x64():
            found = _examined(subject)
    except Exception as error:  # an equation may have no derivative, or the rule may raise; contract and value say so
        found = skipped(f"the backward has no derivative by its equations: {describe_error(error)}")
    yield found


def _examined(subject: CallUnderTest) -> Finding:
    program = with_factors(subject, *subject.point(np.float64))
    inside = [i for i, backward in enumerate(program.backward) if backward]
    count = len(inside)
    if not inside:
        return skipped("no floating equation of a custom_vjp's backward is in sight: there is none, or it is in a loop")
    if count > MOST:
        return skipped(f"the backward has {count} equations, more than {MOST}")
    moved = jax.jacfwd(program.cotangents(inside))
    both = subject.compiled(lambda factors, inputs: (program.evaluate(inputs), moved(factors, inputs)))
    dxs, moves = jax.device_get(both(np.ones(count), program.inputs))
    size = sizes(dxs)
    if not np.isfinite(moves).all():
        return skipped("a cotangent, or its derivative by an equation, is not finite at these inputs")
    still = np.linalg.norm(moves / size[:, None], axis=0) <= HALF_THE_DIGITS
    # An equation that only decides a comparison has no derivative: its output is given the other sign.
    unseen = _unmoved(subject, program, [i for i, s in zip(inside, still, strict=True) if s], size)
    if unseen and subject.tails is not None:
        tail, there = at_tails(subject, subject.tails, np.float64)
        in_tails = with_factors(there, there.leaves(np.float64), (np.asarray(tail.g, np.float64),))
        if in_tails.places == program.places:  # else another program, with other equations
            unseen = _unmoved(there, in_tails, unseen)
    blind = [str(program.places[i]) for i in unseen]
    data = {"equations": count, "blind": blind}
    if not blind:
        return passed(f"these inputs see every one of {count} equations of the backward", data=data)
    named = ", ".join(blind[:SHOWN]) + (f", and {len(blind) - SHOWN} others" if len(blind) > SHOWN else "")
    message = f"these inputs see {count - len(blind)} of {count} equations of the backward; no cotangent moves with"
    return noted(f"{message} {named}", data=data)


def _unmoved(
    subject: CallUnderTest, program: ScaledProgram, numbers: list[int], size: np.ndarray | None = None
) -> list[int]:
    """Return the equations that change no cotangent where their output is given the other sign.

    The change is relative to `size`, that of each component itself for None.
    """
    if not numbers:
        return []
    cotangents = subject.compiled(program.cotangents(numbers))
    factors = np.concatenate((np.ones((1, len(numbers))), np.where(np.eye(len(numbers)), OTHER, 1.0)))
    given, *changed = (np.asarray(cotangents(row, program.inputs)) for row in factors)
    size = given if size is None else size
    change = (np.stack(changed) - given)[:, size != 0] / size[size != 0]
    return [i for i, gap in zip(numbers, np.linalg.norm(change, axis=1), strict=True) if gap <= HALF_THE_DIGITS]


CLAIM = Claim("coverage", check, alias="V13", needs_oracle=False, cost=(1, 6))
