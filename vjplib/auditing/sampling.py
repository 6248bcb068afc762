"""Sampling: primals that draw random numbers, and arguments that decide which of these numbers are used.

A rejection sampler draws until a number is accepted, and whether it is depends on its parameters. The derivative of
these steps at given random bits is not that of the distribution, which implicit reparameterization gives: where the two
differ, neither is wrong. Dropout draws too, but its argument decides nothing, so that autodiff of it is the measure.

What depends on what is read from the program of the primal: a choice is where numbers become truth values or integers,
or are rounded, and random numbers and an argument both enter. It matters if a random number does nothing else, as the
one by which a proposal is accepted, or if it ends a loop that draws. Where a noisy number is held against zero, as in a
rectifier, that number itself goes on to the output: no such choice.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from vjplib.auditing.by_design import primal_of
from vjplib.compat import INLINED, equations, interpreted, programs, scan_parts, unclose
from vjplib.verification.call import CallUnderTest
from vjplib.verification.report import Finding, finding
from vjplib.verification.tolerance import relative_gap, to_float64

CHOICE = (
    "the primal draws random numbers, and {} decides which of them are used, as in a rejection sampler: the derivative "
    "of these steps is not that of the distribution, which a rule may give"
)
ELSEWHERE = "in float64 the primal gives other values, as random numbers do"
APART = 1e-2  # relative, a gap between a rule and autodiff in one dtype that rounding does not explain
_DRAWS = frozenset({"random_bits", "threefry2x32", "rng_bit_generator", "rng_uniform", "random_gamma"})
_STEPS = frozenset({"floor", "ceil", "round", "sign"})  # floating numbers that jump

_Path = tuple[int, ...]
"""Where an equation stands: itself, and the equations that hold the program it is in."""


class _Flow(NamedTuple):
    """What a number depends on.

    Args:
        smooth: the arguments, by number, and the random numbers, by where they are drawn, that it changes with.
        choices: where it was chosen by arguments and random numbers.
    """

    smooth: frozenset[int | _Path] = frozenset()
    choices: frozenset[_Path] = frozenset()


def beside_autodiff(argument: str, ours: Any, autodiff: Any, unit: float, where: str, few: bool = False) -> Finding:
    """Return the finding on a cotangent or a tangent that is compared with autodiff's in the dtypes of the call.

    Args:
        argument: what is compared.
        ours: the rule's array.
        autodiff: autodiff's.
        unit: half a unit in the last place, relative.
        where: which call it is.
        few: whether the digits are so few that a difference shows nothing.
    """
    gap = relative_gap(to_float64(np.asarray(ours)), to_float64(np.asarray(autodiff)))
    tolerance = 64 * unit
    level = "pass" if gap <= tolerance else "note" if few else "fail" if gap > APART else "skipped"
    return finding(
        level, "wrong_value", f"{where}: {ELSEWHERE}; {gap:.1e} from autodiff there", argument, gap / tolerance
    )


def draws(subject: CallUnderTest) -> bool:
    """Return True if the primal draws random numbers."""
    return any(eqn.primitive.name in _DRAWS for eqn in equations(primal_of(subject)))


def deciding(subject: CallUnderTest) -> list[str]:
    """Return the names of the arguments that decide which of the random numbers of the primal are used.

    Example:
        >>> import jax
        >>> def drop(key, x, rate):
        ...     return jnp.where(jax.random.uniform(key, x.shape) < rate, 0, x)
        >>> deciding(CallUnderTest(drop, (jax.random.key(0), jnp.ones(3), jnp.float32(0.5))))
        ['rate']
    """
    program = primal_of(subject)
    read = _Reading()
    outputs = read.run(program, [_Flow(frozenset({i})) for i in range(len(program.invars))], ())
    used = _joined(outputs)
    found: set[int | _Path] = set()
    for path, smooth in read.choices.items():
        alone = {d for d in smooth if isinstance(d, tuple)} - used.smooth
        if path in used.choices and (alone or path in read.ends):
            found |= smooth
    return [name for i, name in enumerate(subject.names) if i in found]


@dataclass
class _Reading:
    """The choices that a program makes: what enters each, and which of them end a loop that draws."""

    choices: dict[_Path, frozenset[int | _Path]] = field(default_factory=dict)
    ends: set[_Path] = field(default_factory=set)

    def run(self, program: Any, inputs: Sequence[_Flow], path: _Path) -> list[_Flow]:
        """Return what the outputs of a program depend on."""
        jaxpr, consts = unclose(program)

        def apply(eqn: Any, values: list[Any]) -> Sequence[_Flow]:
            flows = [v if isinstance(v, _Flow) else _Flow() for v in values]  # literals are no flows
            return self._of(eqn, flows, (*path, id(eqn)))

        found = interpreted(jaxpr, [_Flow()] * (len(jaxpr.constvars) or len(consts)), inputs, apply)
        return [v if isinstance(v, _Flow) else _Flow() for v in found]

    def _of(self, eqn: Any, flows: list[_Flow], path: _Path) -> Sequence[_Flow]:
        name, inner = eqn.primitive.name, programs(eqn.params)
        if name == "while":
            return self._while(eqn, flows, path)
        if name == "scan":
            consts, carry = scan_parts(eqn)
            body = inner[0][1]
            fixed, carried, rest = flows[:consts], flows[consts : consts + carry], flows[consts + carry :]
            carried = self._settled(body, fixed, carried, rest, path)
            return [*carried, *self.run(body, [*fixed, *carried, *rest], path)[carry:]]
        if name == "cond":
            branches = [self.run(body, flows[1:], (*path, i)) for i, (_, body, _) in enumerate(inner)]
            return [_joined((*parts, _Flow(frozenset(), flows[0].choices))) for parts in zip(*branches, strict=True)]
        if name in INLINED and inner and len(inner[0][1].invars) == len(flows):
            return self.run(inner[0][1], flows, path)
        return self._plain(eqn, _joined(flows), path)

    def _plain(self, eqn: Any, entering: _Flow, path: _Path) -> list[_Flow]:
        """Return what the outputs of an equation depend on, whatever is inside it."""
        if eqn.primitive.name in _DRAWS:
            return [_Flow(entering.smooth | {path}, entering.choices)] * len(eqn.outvars)
        kinds = {type(entry) for entry in entering.smooth}
        if kinds == {int, tuple}:
            self.choices[path] = self.choices.get(path, frozenset()) | entering.smooth
        chosen = _Flow(frozenset(), entering.choices | ({path} if kinds == {int, tuple} else set()))
        jumps = eqn.primitive.name in _STEPS
        from_integers = not any(_is_floating(v) for v in eqn.invars)
        outputs = []
        for v in eqn.outvars:
            smooth = not jumps if _is_floating(v) else from_integers and not _is_bool(v)
            outputs.append(entering if smooth else chosen)
        if chosen not in outputs:
            self.choices.pop(path, None)
        return outputs

    def _while(self, eqn: Any, flows: list[_Flow], path: _Path) -> list[_Flow]:
        params = eqn.params
        (_, test, _), (_, body, _) = sorted(programs(params), key=lambda named: named[0] != "cond_jaxpr")
        n = params["cond_nconsts"]
        fixed, rest = flows[:n], flows[n:]
        consts, carried = rest[: params["body_nconsts"]], rest[params["body_nconsts"] :]
        carried = self._settled(body, consts, carried, (), (*path, 0))
        (ending,) = self.run(test, [*fixed, *carried], (*path, 1))
        for choice in ending.choices:
            if any(isinstance(d, tuple) and d[: len(path)] == path for d in self.choices[choice]):
                self.ends.add(choice)
        return [_Flow(c.smooth, c.choices | ending.choices) for c in carried]

    def _settled(
        self, body: Any, consts: Sequence[_Flow], carried: list[_Flow], rest: Sequence[_Flow], path: _Path
    ) -> list[_Flow]:
        """Return what numbers carried by a loop depend on after any number of steps."""
        while True:
            after = self.run(body, [*consts, *carried, *rest], path)
            joined = [_joined(pair) for pair in zip(carried, after, strict=False)]  # a scan returns more after them
            if joined == carried:
                return joined
            carried = joined


def _joined(flows: Sequence[_Flow]) -> _Flow:
    return _Flow(frozenset().union(*(f.smooth for f in flows)), frozenset().union(*(f.choices for f in flows)))


def _is_floating(v: Any) -> bool:
    dtype = getattr(v.aval, "dtype", None)
    return dtype is not None and jnp.issubdtype(dtype, jnp.inexact)


def _is_bool(v: Any) -> bool:
    return getattr(v.aval, "dtype", None) == jnp.bool_
