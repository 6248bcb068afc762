"""The rule of a custom_jvp: its tangents equal autodiff's of the primal, and are linear in the input tangents."""

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from vjplib.auditing.by_design import moved, normal_like
from vjplib.auditing.sampling import beside_autodiff
from vjplib.compat import x64
from vjplib.verification.call import CallUnderTest, Leaves
from vjplib.verification.oracle import DRAWS, leaves_to_float64
from vjplib.verification.report import Finding, failed, noted, passed
from vjplib.verification.tolerance import HALF_THE_DIGITS, error, relative_gap, unit_of


def check(subject: CallUnderTest, elsewhere: bool = False) -> Iterator[Finding]:
    """Yield a finding for each output tangent, and one on linearity.

    At kinks a tangent may differ from autodiff's by choice: the rule's cotangents are judged for that. Where the primal
    is another function in float64, `elsewhere`, the measure is autodiff in the dtypes of the call.
    """
    leaves = subject.leaves()
    rng = np.random.default_rng((subject.seed, 6))
    ts = normal_like(rng, leaves)
    ours, theirs = (jax.jit(lambda xs, ts, f=f: jax.jvp(f, xs, ts)[1]) for f in (subject.call, subject.oracle))
    unit = unit_of(leaves)
    found, autodiff = _host(ours(leaves, ts)), _host(theirs(leaves, ts))
    names = [f"tangent of output {i}" if len(found) > 1 else "tangent of output" for i in range(len(found))]
    exact = leaves_to_float64(leaves, ts)
    if elsewhere:
        few = bool(unit > np.finfo(np.float32).eps / 2)
        for name, r, a in zip(names, found, autodiff, strict=True):
            yield beside_autodiff(name, r, a, unit, "forward mode", few)
        yield _linearity(ours, exact, rng)
        return
    with x64():
        truth = _host(theirs(*exact))
        draws = []
        for _ in range(DRAWS):
            rounded = [tuple(a * (1 + unit * rng.uniform(-1, 1, a.shape)) for a in part) for part in exact]
            draws.append([d - o for d, o in zip(_host(theirs(*rounded)), truth, strict=True)])
    for i, (name, r, o, a) in enumerate(zip(names, found, truth, autodiff, strict=True)):
        e = error(r, o, a, [d[i] for d in draws], unit)
        at = {"argument": name, "ratio": e.excused, "index": e.index, "case": subject.case}
        if e.known == 0:
            yield noted("undecided, the oracle is NaN there", **at)
        elif e.excused <= 1:
            yield passed("equals the float64 oracle", **at)
        elif _agrees_nearby(subject, ours, theirs, exact):
            yield noted("another slope than autodiff's at a kink; equal at inputs moved a little", code="kink", **at)
        else:
            yield failed("wrong_value", "differs from the float64 oracle", **at)
    yield _linearity(ours, exact, rng)


def _agrees_nearby(subject: CallUnderTest, ours: Any, theirs: Any, exact: tuple[Leaves, ...]) -> bool:
    leaves, ts = exact
    with x64():
        points = [moved(subject, leaves, k) for k in range(4)]
        pairs = [pair for at in points for pair in zip(_host(ours(at, ts)), _host(theirs(at, ts)), strict=True)]
    return all(relative_gap(r, o) <= HALF_THE_DIGITS for r, o in pairs)


def _linearity(ours: Any, exact: tuple[Leaves, ...], rng: np.random.Generator) -> Finding:
    with x64():
        leaves, ts = exact
        others = normal_like(rng, ts)
        first, second = _host(ours(leaves, ts)), _host(ours(leaves, others))
        double = _host(ours(leaves, tuple(2 * t for t in ts)))
        total = _host(ours(leaves, tuple(t + s for t, s in zip(ts, others, strict=True))))
    laws = {
        "J(2 t) = 2 J(t)": max(relative_gap(d, 2 * a) for d, a in zip(double, first, strict=True)),
        "J(t + s) = J(t) + J(s)": max(relative_gap(c, a + b) for c, a, b in zip(total, first, second, strict=True)),
    }
    law, gap = max(laws.items(), key=lambda pair: pair[1])
    if gap > HALF_THE_DIGITS:
        message = f"the rule is not linear in the tangent: {law} is off by {gap:.1e} of its size"
        return failed("not_linear", message, "tangent", gap / HALF_THE_DIGITS)
    return passed("linear in the tangent", "tangent", gap / HALF_THE_DIGITS)


def _host(tree: Any) -> list[np.ndarray]:
    return [np.asarray(a) for a in jax.tree.leaves(tree)]
