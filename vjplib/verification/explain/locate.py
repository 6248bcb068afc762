"""Locate: where cotangents are wrong, the expression of the backward that one correction would make right.

The program of the pullback is evaluated with a factor theta_i = 1 on the output of each equation i. One derivative by
theta shows how the cotangents move with each; if the error lies along one of these directions, that equation is at
fault, and how far along is the factor it lacks. A wrong sign comes back as -1, a forgotten 1/n as 1/n. Where no factor
explains the error, `terms` looks for a missing product or term. A correction must hold at other numbers too.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import jax
import numpy as np

from vjplib.compat import x64
from vjplib.verification.call import CallUnderTest
from vjplib.verification.explain import shrink, terms
from vjplib.verification.explain.program import Draw, Search, draw_at, with_factors
from vjplib.verification.report import Explanation, Place, describe_error
from vjplib.verification.tolerance import HALF_THE_DIGITS, relative_gap

MOST = 300  # equations, each a direction in which the derivative is taken
TRIED = 8  # equations whose factor is tried, not extrapolated
TELLING = 5  # a smaller number may be any size by chance, and is named one only if it was tried at other sizes
SHOWN = 2  # places named of those that one factor cannot tell apart


def explain(subject: CallUnderTest) -> tuple[Explanation, ...]:
    """Return what is at fault where cotangents differ from the oracle's, each with a counterexample.

    One explanation covers all wrong cotangents if one correction does; else each has its own.
    """
    with x64():
        draw = draw_at(subject, *subject.point(np.float64))
        gaps = [relative_gap(r, o) for r, o in zip(draw.given, draw.truth, strict=True)]
        wrong = [i for i, gap in enumerate(gaps) if gap > subject.digits(gap)]
        if not wrong or not all(np.isfinite(o).all() for o in draw.truth):
            return (Explanation(counterexample=shrink.smallest(subject)),)
        if not all(np.isfinite(r).all() for r in draw.given):
            return (Explanation(reason="a cotangent is not finite, so no factor can be computed"),)
        if subject.complex:
            found = [Explanation(reason="numbers are complex, for which no place is looked for")]
        else:
            try:
                found = locate(subject, draw, wrong)
            except Exception as error:  # an equation may have no derivative; the rule is wrong all the same
                found = [Explanation(reason=f"no place can be looked for: {describe_error(error)}")]
    sources = [shrink.counterexample(subject, draw.leaves, draw.gs, e.cotangents) for e in found]
    return tuple(replace(e, counterexample=source) for e, source in zip(found, sources, strict=True))


def another_draw(subject: CallUnderTest, draw: Draw) -> Draw | None:
    """Return other numbers of similar size, of either sign if function and oracle are finite there; None if nowhere."""
    rng = np.random.default_rng((subject.seed, 7))
    moved = tuple((a * rng.uniform(0.5, 1.5, a.shape)).astype(a.dtype) for a in draw.leaves)
    signed = tuple((a * rng.choice([-1.0, 1.0], a.shape)).astype(a.dtype) for a in moved)
    for leaves in (signed, moved):
        other = draw_at(subject, leaves, subject.cotangents(leaves, 1))
        if all(np.isfinite(a).all() for a in (*other.given, *other.truth)):
            return other
    return None


def locate(subject: CallUnderTest, draw: Draw, wrong: Sequence[int]) -> list[Explanation]:
    """Return the corrections that make wrong cotangents right, or why there is none."""
    program = with_factors(subject, draw.leaves, draw.gs)
    if len(program.places) > MOST:
        return [Explanation(reason=f"the backward has more than {MOST} equations: no place was looked for")]
    other = another_draw(subject, draw)
    search = Search(subject, program, (draw, *((other,) if other else ())), wrong)
    moves = np.asarray(jax.jacfwd(search.cotangents)(search.ones, draw.inputs))  # (entries, equations)
    found = [_factor(search, moves, wrong)]
    if other is None:
        found = [replace(found[0], kind="", reason="no other numbers are finite, at which a factor could be tried")]
    elif not found[0].complete:
        singly = found if len(wrong) == 1 else [_factor(search, moves, [i]) for i in wrong]
        found = [e if e.complete else terms.missing(search, i) or e for e, i in zip(singly, wrong, strict=True)]
    return found


def _factor(search: Search, moves: np.ndarray, at: Sequence[int]) -> Explanation:
    """Return the expression, and the factor, that explain most of the error of some cotangents."""
    program, mask = search.program, search.mask(at)
    named = tuple(f"cotangent of {search.subject.names[i]}" for i in at)
    if not program.places:
        return Explanation("", named, reason="the backward has no differentiable equation, and lacks no single term")
    error = search.error(0, mask)
    moved = (moves / search.sizes[:, None])[mask]
    lengths = np.einsum("ei,ei->i", moved, moved)
    steps = np.divide(error @ moved, lengths, out=np.zeros(len(lengths)), where=lengths > 0)
    unexplained = np.linalg.norm(error[:, None] - moved * steps, axis=0) / np.linalg.norm(error)

    def scaled(i: int, number: int = 0) -> list[Any]:
        theta = search.ones.at[i].add(steps[i])
        return [search.cotangents(theta, search.draws[number].inputs)]

    # What is not linear in its factor, as a residual used twice, is seen only when the factor is tried.
    for i in np.argsort(unexplained, kind="stable")[:TRIED]:
        tried = np.linalg.norm(search.error(0, mask, scaled(i))) / np.linalg.norm(error)
        unexplained[i] = max(unexplained[i], tried)
    best = int(np.argmin(unexplained))
    alike = np.flatnonzero(
        (unexplained <= unexplained[best] + search.tolerance)
        & np.isclose(steps, steps[best], rtol=search.tolerance, atol=search.tolerance)
    )
    factor = 1 + float(steps[best])
    right = [i for i in alike[:TRIED] if search.holds(lambda n, i=i: scaled(i, n), mask)]
    if unexplained[best] > search.tolerance or not right:
        places = _innermost([program.places[i] for i in alike])
        reason = "no factor on one expression, and no single missing factor or term, explains the error"
        if unexplained[best] <= search.tolerance:
            return Explanation("", named, reason=f"{reason} at other numbers too")
        return Explanation("", named, places, factor, unexplained=float(unexplained[best]), reason=reason)
    backward = [i for i in right if program.backward[i]] or right
    factor = _whole(factor) if abs(factor) >= 1 else 1 / _whole(1 / factor) if abs(factor) > HALF_THE_DIGITS else 0.0
    meaning = _meaning(search, backward[0], factor, at)
    places = [program.places[i] for i in backward]
    if meaning:  # which the sums over that axis are the likeliest to lack, or to have too much
        places = [p for p in places if p.primitive == "reduce_sum"] or places
    return Explanation("factor", named, _innermost(places), factor, meaning)


def _whole(number: float) -> float:
    """Return a number, a whole one in its place where it is that up to rounding."""
    return float(round(number)) if math.isclose(number, round(number), rel_tol=HALF_THE_DIGITS) else number


def _innermost(places: Sequence[Place]) -> tuple[Place, ...]:
    """Return the places that hold no other in their source, each once, the last few."""
    once = {(p.where, p.expression): p for p in reversed(places)}
    kept = [
        p
        for p in reversed(once.values())
        if not any(q is not p and q.line == p.line and q.source and q.source in p.source for q in once.values())
    ]
    return tuple(kept[-SHOWN:])


def _meaning(search: Search, equation: int, factor: float, at: Sequence[int]) -> str:
    """Return which size of the call a factor or its inverse is, also where the axes have other sizes; "" for none."""
    subject = search.subject
    if factor == 0:
        return ""
    times = max(abs(factor), 1 / abs(factor))
    first = [subject.names[i] for i in at]
    named = [(text, n) for text, n in _sizes(subject, first) if math.isclose(n, times, rel_tol=1e-6) and times != 1]
    if not named:
        return ""
    unsure = named[0][0] if times >= TELLING else ""
    other = subject.resized({k: n + 1 + i for i, (k, n) in enumerate(sorted(subject.sizes.items()))})
    if other is None:
        return unsure
    draw = draw_at(other, *other.point(np.float64))
    program = with_factors(other, draw.leaves, draw.gs)
    if [p.primitive for p in program.places] != [p.primitive for p in search.program.places]:
        return unsure
    there = Search(other, program, (draw,), search.wrong)
    sizes = dict(_sizes(other, first))
    held = []
    for text, _ in named:
        n = math.copysign(sizes.get(text, 1.0), factor)
        theta = there.ones.at[equation].set(n if abs(factor) > 1 else 1 / n)
        corrected = [there.cotangents(theta, draw.inputs)]
        if there.holds(lambda _, corrected=corrected: corrected, there.mask(at)):
            held.append(text)
    own = [text for text in held if any(f"{name}'s" in text for name in first)] or held[:1]
    return " or ".join(own[:2])  # axes of equal size grow together: either may be meant


def _sizes(subject: CallUnderTest, first: Sequence[str]) -> Iterator[tuple[str, float]]:
    """Yield what a factor may be, in words, and its number: the arguments named first come first."""
    shapes = dict(zip(subject.names, (leaf.shape for leaf in subject.leaves()), strict=True))
    named: dict[str, int] = {}
    for name in dict.fromkeys((*first, *subject.names)):
        shape = shapes[name]
        for axis, n in enumerate(shape):
            which = "last axis" if axis == len(shape) - 1 else "first axis" if axis == 0 else f"axis {axis}"
            named[f"the size of {name}'s {which}" if len(shape) > 1 else f"the size of {name}"] = n
    for name, shape in shapes.items():
        if len(shape) > 1:
            named[f"the size of {name}"] = math.prod(shape)
        for a, b in itertools.combinations(range(len(shape)), 2) if len(shape) > 2 else ():
            named[f"the product of the sizes of {name}'s axes {a} and {b}"] = shape[a] * shape[b]
    yield from named.items()
    yield from ((f"the square root of {text}", math.sqrt(n)) for text, n in named.items())
    yield from ((f"n / (n - 1), where n is {text}", n / (n - 1)) for text, n in named.items() if n > 1)
