"""V5, order two: the backward is itself differentiable, backwards and forwards, and right; or refused as declared."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from vjplib.compat import x64
from vjplib.verification.measure import HALF_THE_DIGITS, relative_gap, size_of
from vjplib.verification.report import Finding, said
from vjplib.verification.subject import Leaves, Subject


def check(subject: Subject) -> Iterator[Finding]:
    """Yields a finding for each mode and each derivative, in float64 against the oracle.

    The pullback B(x, g) is differentiated in both arguments: its VJP with a random direction is reverse over reverse,
    its JVP forward over reverse. Rules that declare no second derivative must raise.
    """
    with x64():
        leaves = subject.leaves(np.float64)
        gs, directions = subject.cotangents(leaves, 1), subject.cotangents(leaves, 2)
        rng = np.random.default_rng((subject.seed, 4))
        tangents = tuple(rng.standard_normal(a.shape) for a in leaves)
        point = (leaves, gs, tangents, directions)
        modes = {}
        for mode, second in (("reverse over reverse", _backwards), ("forward over reverse", _forwards)):
            try:
                jax.eval_shape(lambda p, second=second: second(subject.pull(subject.call), *p), point)
            except Exception as error:  # a refusal is a finding, whatever its type
                yield _refusal(subject, mode, error)
                continue
            if subject.order_two:
                modes[mode] = second
            else:
                yield Finding("V5", "fail", f"{mode} is declared to be refused, yet runs", case=subject.case)
        pulls = (subject.pull(subject.call), subject.pull(subject.oracle))
        second_order = jax.jit(lambda p: {mode: [f(pull, *p) for pull in pulls] for mode, f in modes.items()})(point)
        scale = max(size_of(np.asarray(a)) for a in subject.answers(leaves, gs).true_dxs)
        for mode, (found, expected) in second_order.items():
            yield _compare(subject, mode, found, expected, scale)


def _refusal(subject: Subject, mode: str, error: Exception) -> Finding:
    if subject.order_two:
        return Finding("V5", "fail", f"{mode} raises {said(error)}", case=subject.case)
    return Finding("V5", "pass", f"{mode} is refused, as declared, by {said(error)}", case=subject.case)


def _backwards(pull: Callable[..., Any], xs: Leaves, gs: Leaves, tangents: Leaves, directions: Leaves) -> Any:
    del directions
    _, back = jax.vjp(lambda x, g: pull(x, g)[1], xs, gs)
    return back(tangents)


def _forwards(pull: Callable[..., Any], xs: Leaves, gs: Leaves, tangents: Leaves, directions: Leaves) -> Any:
    return jax.jvp(lambda x, g: pull(x, g)[1], (xs, gs), (tangents, directions))[1]


def _compare(subject: Subject, mode: str, found: Any, expected: Any, scale: float) -> Finding:
    parts, _ = jax.tree_util.tree_flatten_with_path(found)
    gaps = [
        (relative_gap(np.asarray(r), np.asarray(o), scale) / HALF_THE_DIGITS, jax.tree_util.keystr(path))
        for (path, r), o in zip(parts, jax.tree.leaves(expected), strict=True)
    ]
    worst, at = max(gaps)
    if worst > 1:
        return Finding("V5", "fail", f"{mode} differs from the oracle in part {at}", "", worst, case=subject.case)
    return Finding("V5", "pass", f"{mode} equals the oracle", "", worst, case=subject.case)
