"""Locate: where cotangents are wrong, the equation of the backward that a single factor would make right.

The program of the pullback is evaluated with a factor theta_i = 1 on the output of each equation i. One derivative by
theta shows how the cotangents move with each; if the error lies along one of these directions, that equation is at
fault, and how far along is the factor it lacks. A wrong sign comes back as -1, a forgotten 1/n as 1/n.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vjplib.compat import backwards_where_written, evaluated, mark_of, source_of, unclose, without_dead_code, x64
from vjplib.verification.call import CallUnderTest, Leaves
from vjplib.verification.explain import shrink
from vjplib.verification.report import Explanation, describe_error
from vjplib.verification.tolerance import HALF_THE_DIGITS, relative_gap

MOST = 300  # equations, each a direction in which the derivative is taken
SHOWN = 3  # places named of those that one factor cannot tell apart


def explain(subject: CallUnderTest) -> Explanation:
    """Return which equation is at fault where cotangents differ from the oracle's, and a counterexample."""
    with x64():
        leaves = subject.leaves(np.float64)
        gs = subject.cotangents(leaves)
        found = jax.tree.map(np.asarray, subject.answers(leaves, gs))
        gaps = [relative_gap(r, o) for r, o in zip(found.dxs, found.true_dxs, strict=True)]
        if all(gap <= subject.digits(gap) for gap in gaps) or not all(np.isfinite(o).all() for o in found.true_dxs):
            return Explanation(counterexample=shrink.smallest(subject))
        if not all(np.isfinite(r).all() for r in found.dxs):
            return Explanation(reason="a cotangent is not finite: no factor leads from there")
        if subject.complex:
            found_out = Explanation(reason="no place is looked for where numbers are complex")
        else:
            try:
                found_out = locate(subject, leaves, gs, found.true_dxs)
            except Exception as error:  # an equation may have no derivative; the rule is wrong all the same
                found_out = Explanation(reason=f"no place can be looked for: {describe_error(error)}")
    return replace(found_out, counterexample=shrink.counterexample(subject, leaves, gs))


def locate(subject: CallUnderTest, leaves: Leaves, gs: Leaves, truth: Leaves) -> Explanation:
    """Returns the equation of the backward, and the factor, that explain most of the error of the cotangents.

    Args:
        subject: what to examine, its function JAX-differentiable once.
        leaves: the differentiated leaves, in float64.
        gs: the output cotangents.
        truth: what the cotangents should be.

    Returns:
        The explanation, without a factor where the program is too long to look.
    """
    program = with_factors(subject, leaves, gs)
    places = program.places
    if not 0 < len(places) <= MOST:
        reason = f"the backward has more than {MOST} equations, or none that is differentiable: no place was looked for"
        return Explanation(reason=reason)
    weights = [1 / max(float(np.linalg.norm(o)), np.finfo(float).tiny) for o in truth]
    cotangents, ones = jax.jit(program.cotangents(weights)), jnp.ones(len(places))
    target = np.concatenate([w * np.ravel(o) for w, o in zip(weights, truth, strict=True)])
    error = target - np.asarray(cotangents(ones))
    moves = np.asarray(jax.jacfwd(cotangents)(ones))  # (entries, equations)
    lengths = np.einsum("ei,ei->i", moves, moves)
    steps = np.divide(error @ moves, lengths, out=np.zeros(len(places)), where=lengths > 0)
    unexplained = np.linalg.norm(error[:, None] - moves * steps, axis=0) / np.linalg.norm(error)
    # What is not linear in its factor, as a residual used twice, is seen only when the factor is tried.
    for i in np.argsort(unexplained, kind="stable")[:SHOWN]:
        tried = np.linalg.norm(target - np.asarray(cotangents(ones.at[i].add(steps[i])))) / np.linalg.norm(error)
        unexplained[i] = max(unexplained[i], tried)
    best = int(np.argmin(unexplained))
    alike = np.flatnonzero(
        (unexplained <= unexplained[best] + HALF_THE_DIGITS)
        & np.isclose(steps, steps[best], rtol=HALF_THE_DIGITS, atol=HALF_THE_DIGITS)
    )
    named = tuple(dict.fromkeys(places[i] for i in alike))
    missing = "no factor on a single equation explains the error, so a term may be missing"
    reason = missing if unexplained[best] > HALF_THE_DIGITS else ""
    return Explanation(1 + float(steps[best]), named[-SHOWN:], float(unexplained[best]), reason)


_MOVES = object()  # a value that depends on an input


class ScaledProgram(NamedTuple):
    """The pullback at one call as a program with a factor on the output of each equation.

    Args:
        evaluate: takes what each floating output is passed through, and returns the cotangents.
        places: primitive, file, line and function of the equation of each factor.
        backward: of each factor, whether its equation stands in a backward, and depends on what that is given.
    """

    evaluate: Callable[[Callable[[Any, Sequence[Any]], Sequence[Any]]], list[Any]]
    places: tuple[str, ...]
    backward: tuple[bool, ...]

    def cotangents(self, weights: Sequence[float], only: Sequence[int] | None = None) -> Callable[[Any], Any]:
        """Returns the function of the factors that gives all cotangents, each times its weight, as one vector.

        Args:
            weights: of the cotangents.
            only: the numbers of the factors that it is a function of, the others being 1; None for all.
        """
        numbers = range(len(self.places)) if only is None else only
        position = {number: i for i, number in enumerate(numbers)}

        def run(theta: Any) -> Any:
            number = iter(range(len(self.places)))

            def factor(y: Any) -> Any:
                at = position.get(next(number)) if _scalable(y) else None
                return y if at is None else y * theta[at].astype(y.dtype)

            dxs = self.evaluate(lambda eqn, ys: ys if mark_of(eqn) is not None else [factor(y) for y in ys])
            return jnp.concatenate([w * jnp.ravel(dx) for w, dx in zip(weights, dxs, strict=True)])

        return run


def with_factors(subject: CallUnderTest, leaves: Leaves, gs: Leaves) -> ScaledProgram:
    """Returns the pullback of a subject at a call, with a factor on each equation.

    Args:
        subject: what to examine, its function JAX-differentiable once.
        leaves: the differentiated leaves.
        gs: the output cotangents.
    """

    def pullback(leaves: Leaves, gs: Leaves) -> Leaves:
        return jax.vjp(subject.call, *leaves)[1](gs)

    with backwards_where_written():
        jaxpr, consts = unclose(jax.make_jaxpr(pullback)(leaves, gs))
    jaxpr, inputs = without_dead_code(jaxpr), jax.tree.leaves((leaves, gs))
    places: list[str] = []
    backward: list[bool] = []
    inside = False

    def note(eqn: Any, outputs: Sequence[Any]) -> Sequence[Any]:
        nonlocal inside
        mark = mark_of(eqn)
        if mark is not None:
            inside = mark
            return outputs
        count = sum(_scalable(v.aval) for v in eqn.outvars)
        places.extend([f"{eqn.primitive.name} at {source_of(eqn)}"] * count)
        backward.extend([inside and _MOVES in outputs] * count)
        return outputs

    def reach(eqn: Any, values: Sequence[Any], **params: Any) -> Sequence[Any]:
        del params
        return [_MOVES if any(v is _MOVES for v in values) else None] * len(eqn.outvars)

    evaluated(jaxpr, [None] * len(consts), [_MOVES] * len(inputs), note, reach)
    return ScaledProgram(lambda after: evaluated(jaxpr, consts, inputs, after), tuple(places), tuple(backward))


def _scalable(output: Any) -> bool:
    return output.size > 0 and jnp.issubdtype(output.dtype, jnp.floating)
