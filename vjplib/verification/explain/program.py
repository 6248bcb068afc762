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
        inputs: Sequence[Any],
        after: Callable[[Any, Sequence[Any]], Sequence[Any]] = lambda _, outputs: outputs,
        bind: Callable[..., Sequence[Any]] = bind_eqn,
    ) -> list[Any]:
        """Return the cotangents at some inputs; `after` and `bind` are those of `vjplib.compat.evaluated`."""
        return evaluated(self.jaxpr, self.consts, inputs, after, bind)

    def cotangents(self, only: Sequence[int] | None = None) -> Callable[[Any, Sequence[Any]], Any]:
        """Return the function of some factors, all for None, and of the inputs that gives all cotangents, flat."""
        position = {number: i for i, number in enumerate(range(len(self.places)) if only is None else only)}

        def run(theta: Any, inputs: Sequence[Any]) -> Any:
            number = iter(range(len(self.places)))

            def factor(y: Any) -> Any:
                at = position.get(next(number)) if _scalable(y) else None
                return y if at is None else y * theta[at].astype(y.dtype)

            def scaled(eqn: Any, ys: Sequence[Any]) -> Sequence[Any]:
                return ys if mark_of(eqn) is not None else [factor(y) for y in ys]

            return jnp.concatenate([jnp.ravel(dx) for dx in self.evaluate(inputs, scaled)])

        return run


def with_factors(subject: CallUnderTest, leaves: Leaves, gs: Leaves) -> ScaledProgram:
    """Return the pullback of a subject, which JAX can differentiate once, with a factor on each equation."""

    def pullback(leaves: Leaves, gs: Leaves) -> Leaves:
        return jax.vjp(subject.call, *leaves)[1](gs)

    with backwards_where_written():
        jaxpr, consts = unclose(jax.make_jaxpr(pullback)(leaves, gs))
    jaxpr, inputs = without_dead_code(jaxpr), jax.tree.leaves((leaves, gs))
    factors: list[tuple[Place, bool]] = []
    in_backward = backward_equations()

    def note(eqn: Any, outputs: Sequence[Any]) -> Sequence[Any]:
        inside = in_backward(eqn)
        if mark_of(eqn) is None:
            count = sum(_scalable(v.aval) for v in eqn.outvars)
            factors.extend([(place_of(eqn), inside and _MOVES in outputs)] * count)
        return outputs

    def reach(eqn: Any, values: Sequence[Any], **params: Any) -> Sequence[Any]:
        del params
        return [_MOVES if any(v is _MOVES for v in values) else None] * len(eqn.outvars)

    evaluated(jaxpr, [None] * len(consts), [_MOVES] * len(inputs), note, reach)
    places, backward = zip(*factors, strict=True) if factors else ((), ())
    return ScaledProgram(jaxpr, consts, inputs, places, backward)


def backward_equations() -> Callable[[Any], bool]:
    """Return a function to be called with each equation in turn: True for those of a backward, its marks left out."""
    inside = False

    def in_backward(eqn: Any) -> bool:
        nonlocal inside
        mark = mark_of(eqn)
        inside = inside if mark is None else mark
        return inside and mark is None

    return in_backward


def place_of(eqn: Any) -> Place:
    """Return the expression that an equation comes from."""
    file, line, function, source = where_written(eqn)
    return Place(eqn.primitive.name, file, line, function, source if len(source) <= LONGEST else "")


def _scalable(output: Any) -> bool:
    return output.size > 0 and jnp.issubdtype(output.dtype, jnp.floating)


class Draw(NamedTuple):
    """Leaves and output cotangents in float64, with the cotangents of the function and of the oracle there."""

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
    found = subject.answers_at(leaves, gs)
    return Draw(leaves, gs, found.dxs, found.true_dxs)


class Search:
    """The errors of one call at all draws, and whether a correction removes those of some cotangents at each.

    It is looked for at the first draw. `wrong` are the numbers of the cotangents that are wrong.
    """

    def __init__(
        self, subject: CallUnderTest, program: ScaledProgram, draws: Sequence[Draw], wrong: Sequence[int]
    ) -> None:
        self.subject, self.program, self.draws, self.wrong = subject, program, draws, wrong
        self.tolerance = math.sqrt(subject.eps)
        self.cotangents = subject.compiled(program.cotangents())
        self.ones = jnp.ones(len(program.places))
        truth = draws[0].truth
        self.owner = np.repeat(np.arange(len(truth)), [o.size for o in truth])
        self.sizes = sizes(truth)

    def error(self, number: int, mask: np.ndarray, dxs: Sequence[Any] | None = None) -> np.ndarray:
        """Return the error of cotangents, the given ones for None, at a draw, relative to their sizes, under a mask."""
        right, wrong = map(flat, (self.draws[number].truth, self.draws[number].given if dxs is None else dxs))
        return ((right - wrong) / self.sizes)[mask]

    def mask(self, at: Sequence[int]) -> np.ndarray:
        """Return the entries that a correction of these cotangents must make, or leave, right."""
        return ~np.isin(self.owner, [i for i in self.wrong if i not in at])

    def holds(self, corrected: Callable[[int], Sequence[Any]], mask: np.ndarray) -> bool:
        """Return whether a correction, a function of the number of a draw, makes the cotangents right at each."""
        norm = np.linalg.norm
        return all(
            norm(self.error(number, mask, corrected(number))) <= self.tolerance * norm(self.error(number, mask))
            for number in range(len(self.draws))
        )


def flat(arrays: Sequence[Any]) -> np.ndarray:
    """Return arrays as one vector."""
    return np.concatenate([np.ravel(a) for a in arrays])


def sizes(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """Return for each entry of the flat arrays the norm of its array."""
    return flat([np.full(a.size, max(float(np.linalg.norm(a)), np.finfo(float).tiny)) for a in arrays])
