"""The program of a pullback with a factor on each equation's output, and the errors that corrections must remove."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vjplib.compat import (
    backwards_where_written,
    bind_eqn,
    evaluated,
    mark_of,
    unclose,
    where_written,
    without_dead_code,
)
from vjplib.verification.call import CallUnderTest, Leaves
from vjplib.verification.report import Place

LONGEST = 60  # source of a place that is quoted


_MOVES = object()  # a value that depends on an input


class ScaledProgram(NamedTuple):
    """The pullback at one call as a program with a factor on the output of each equation.

    Args:
        jaxpr: the program.
        consts: the values of its constants.
        inputs: the leaves and output cotangents it was traced at.
        places: the expression of each factor.
        backward: of each factor, whether its equation stands in a backward, and depends on what that is given.
    """

    jaxpr: Any
    consts: Sequence[Any]
    inputs: Sequence[Any]
    places: tuple[Place, ...]
    backward: tuple[bool, ...]

    def evaluate(
        self,
        after: Callable[[Any, Sequence[Any]], Sequence[Any]],
        inputs: Sequence[Any] | None = None,
        bind: Callable[..., Sequence[Any]] = bind_eqn,
    ) -> list[Any]:
        """Return the cotangents, the outputs of each equation passed through `after`.

        Args:
            after: takes an equation and its outputs, and returns what to use in their place.
            inputs: leaves and output cotangents; None for those of the trace.
            bind: takes an equation, its inputs and parameters, and returns its outputs.
        """
        return evaluated(self.jaxpr, self.consts, self.inputs if inputs is None else inputs, after, bind)

    def cotangents(self, weights: Sequence[float], only: Sequence[int] | None = None) -> Callable[..., Any]:
        """Return the function of the factors that gives all cotangents, each times its weight, as one vector.

        Args:
            weights: of the cotangents.
            only: the numbers of the factors that it is a function of, the others being 1; None for all.

        Returns:
            A function of the factors and of the inputs; None for those of the trace.
        """
        numbers = range(len(self.places)) if only is None else only
        position = {number: i for i, number in enumerate(numbers)}

        def run(theta: Any, inputs: Sequence[Any] | None = None) -> Any:
            number = iter(range(len(self.places)))

            def factor(y: Any) -> Any:
                at = position.get(next(number)) if _scalable(y) else None
                return y if at is None else y * theta[at].astype(y.dtype)

            dxs = self.evaluate(lambda eqn, ys: ys if mark_of(eqn) is not None else [factor(y) for y in ys], inputs)
            return jnp.concatenate([w * jnp.ravel(dx) for w, dx in zip(weights, dxs, strict=True)])

        return run


def with_factors(subject: CallUnderTest, leaves: Leaves, gs: Leaves) -> ScaledProgram:
    """Return the pullback of a subject at a call, with a factor on each equation.

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
    places: list[Place] = []
    backward: list[bool] = []
    inside = False

    def note(eqn: Any, outputs: Sequence[Any]) -> Sequence[Any]:
        nonlocal inside
        mark = mark_of(eqn)
        if mark is not None:
            inside = mark
            return outputs
        count = sum(_scalable(v.aval) for v in eqn.outvars)
        places.extend([place_of(eqn)] * count)
        backward.extend([inside and _MOVES in outputs] * count)
        return outputs

    def reach(eqn: Any, values: Sequence[Any], **params: Any) -> Sequence[Any]:
        del params
        return [_MOVES if any(v is _MOVES for v in values) else None] * len(eqn.outvars)

    evaluated(jaxpr, [None] * len(consts), [_MOVES] * len(inputs), note, reach)
    return ScaledProgram(jaxpr, consts, inputs, tuple(places), tuple(backward))


def place_of(eqn: Any) -> Place:
    """Return the expression that an equation comes from."""
    file, line, function, source = where_written(eqn)
    return Place(eqn.primitive.name, file, line, function, source if len(source) <= LONGEST else "")


def _scalable(output: Any) -> bool:
    return output.size > 0 and jnp.issubdtype(output.dtype, jnp.floating)


class Draw(NamedTuple):
    """Numbers at which the cotangents are compared.

    Args:
        leaves: the differentiated leaves, in float64.
        gs: the output cotangents.
        given: the cotangents of the function under examination.
        truth: the oracle's.
    """

    leaves: Leaves
    gs: Leaves
    given: Leaves
    truth: Leaves

    @property
    def inputs(self) -> list[Any]:
        """The inputs of the pullback's program."""
        return jax.tree.leaves((self.leaves, self.gs))


def draw_at(subject: CallUnderTest, leaves: Leaves, gs: Leaves) -> Draw:
    """Return what is given and what is right at leaves and output cotangents, on the host."""
    found = jax.tree.map(np.asarray, subject.answers(leaves, gs))
    return Draw(leaves, gs, found.dxs, found.true_dxs)


class Search:
    """The errors of one call at two draws, and whether a correction removes those of some cotangents.

    Args:
        subject: the call under examination.
        program: its pullback with a factor on each equation.
        draws: where a correction must hold; the first is where it is looked for.
        wrong: the numbers of the cotangents that are wrong.
    """

    def __init__(
        self, subject: CallUnderTest, program: ScaledProgram, draws: Sequence[Draw], wrong: Sequence[int]
    ) -> None:
        self.subject, self.program, self.draws, self.wrong = subject, program, draws, wrong
        self.tolerance = math.sqrt(subject.eps)
        self.cotangents = subject.compiled(program.cotangents([1.0] * len(draws[0].truth)))
        self.ones = jnp.ones(len(program.places))
        norms = [max(float(np.linalg.norm(o)), np.finfo(float).tiny) for o in draws[0].truth]
        self.owner = np.concatenate([np.full(o.size, i) for i, o in enumerate(draws[0].truth)])
        self.weights = 1 / np.array(norms)[self.owner]

    def error(self, number: int, dxs: Sequence[Any] | np.ndarray, mask: np.ndarray) -> np.ndarray:
        """Return how far cotangents are from the right ones at a draw, weighted, where the mask holds."""
        right = np.concatenate([np.ravel(o) for o in self.draws[number].truth])
        flat = dxs if isinstance(dxs, np.ndarray) else np.concatenate([np.ravel(dx) for dx in dxs])
        return (self.weights * (right - flat))[mask]

    def mask(self, at: Sequence[int]) -> np.ndarray:
        """Return the entries that a correction of these cotangents must make, or leave, right."""
        return ~np.isin(self.owner, [i for i in self.wrong if i not in at])

    def holds(self, corrected: Callable[[int], Any], mask: np.ndarray) -> bool:
        """Return whether a correction, a function of the number of a draw, makes the cotangents right at each."""
        for number, draw in enumerate(self.draws):
            before = np.linalg.norm(self.error(number, draw.given, mask))
            after = np.linalg.norm(self.error(number, corrected(number), mask))
            if not after <= self.tolerance * before:
                return False
        return True
