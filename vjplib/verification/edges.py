"""V10, edges: where the oracle is finite the rule is, and equal to it, at zeros, ties, huge, tiny and named inputs."""

from collections.abc import Iterator, Sequence

import jax
import numpy as np

from vjplib.compat import x64
from vjplib.rule import Edge
from vjplib.verification.report import Finding
from vjplib.verification.subject import Leaves, Subject, in_default_dtypes
from vjplib.verification.value import compare

KINK = 1e-3


def check(subject: Subject) -> Iterator[Finding]:
    """Yields a finding for each generic edge, at the shapes of the call."""
    leaves = subject.leaves(np.float32)
    gs = subject.cotangents(leaves)
    sparse = tuple(np.where(np.arange(g.size).reshape(g.shape) % 2, g, np.float32(0)) for g in gs)
    yield from _edge(subject, "zeros", tuple(np.zeros_like(a) for a in leaves), gs)
    yield from _edge(subject, "ties", tuple(np.ones_like(a) for a in leaves), gs)
    for name, scale in (("inputs times 100", 1e2), ("inputs times 10,000", 1e4), ("inputs times 1e-30", 1e-30)):
        yield from _edge(subject, name, subject.leaves(np.float32, scale), gs)
    yield from _edge(subject, "subnormal inputs", subject.leaves(np.float32, 1e-40), gs, finite_only=True)
    yield from _edge(subject, "a cotangent with exact zeros", leaves, sparse)


def check_named(subject: Subject, edges: Sequence[Edge]) -> Iterator[Finding]:
    """Yields a finding for each named edge of a record."""
    for edge in edges:
        args = tuple(None if a is None else _single(np.asarray(a)) for a in edge.args)
        at = subject.at(args, edge.kwargs, edge.name)
        leaves = at.leaves()
        yield from _edge(at, edge.name, leaves, at.cotangents(leaves))


def _single(a: np.ndarray) -> np.ndarray:
    return a.astype(np.float32) if np.issubdtype(a.dtype, np.floating) else in_default_dtypes(a)


def _edge(subject: Subject, name: str, leaves: Leaves, gs: Leaves, finite_only: bool = False) -> Iterator[Finding]:
    errors = list(compare(subject, leaves, gs, strict=False))
    if finite_only:  # whether subnormal numbers count as zero is the platform's choice
        errors = [(argument, e) for argument, e in errors if not np.isfinite(e.ratio)]
    failed = [(argument, e) for argument, e in errors if e.ratio > 1]
    if not failed:
        yield Finding("V10", "pass", name, ratio=max((e.ratio for _, e in errors), default=0.0), case=subject.case)
    for argument, e in failed:
        excused = (
            subject.reference is None
            and "cotangent" in argument
            and np.isfinite(e.ratio)
            and _kink(subject, leaves, gs)
        )
        if excused:
            message = (
                f"{name}: another subgradient than autodiff's at a kink; give a reference that states the convention"
            )
            yield Finding("V10", "note", message, argument, e.ratio, e.index, subject.case)
        else:
            message = (
                f"{name}: {'not finite where the oracle is' if not np.isfinite(e.ratio) else 'differs from the oracle'}"
            )
            yield Finding("V10", "fail", message, argument, e.ratio, e.index, subject.case)


def _kink(subject: Subject, leaves: Leaves, gs: Leaves) -> bool:
    """Returns whether the oracle's derivative jumps at these inputs: a step to either side gives other cotangents."""
    rng = np.random.default_rng((subject.seed, 5))
    steps = [rng.uniform(0.5, 1, a.shape) * 1e-6 * np.maximum(1.0, np.abs(a)) for a in leaves]
    sides = []
    with x64():
        exact = tuple(np.asarray(g, np.float64) for g in gs)
        for sign in (-1, 1):
            moved = tuple(np.asarray(a, np.float64) + sign * s for a, s in zip(leaves, steps, strict=True))
            sides.append([np.asarray(dx) for dx in subject.answers(moved, exact).true_dxs])
    jumps = [float(np.max(np.abs(a - b), initial=0.0)) for a, b in zip(*sides, strict=True)]
    sizes = [float(np.max(np.abs(a), initial=0.0)) for a in jax.tree.leaves(sides)]
    return max(jumps, default=0.0) > KINK * max(sizes, default=0.0)
