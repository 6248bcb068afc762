"""V2, value: the primal, the forward pass and every cotangent equal the float64 oracle, at three scales of input."""

from collections.abc import Iterator

import numpy as np

from vjplib.verification.measure import Error, consult, error, unit_of
from vjplib.verification.report import Finding
from vjplib.verification.subject import Leaves, Subject

SCALES = (1.0, 1e-3, 30.0)


def check(subject: Subject, scales: tuple[float, ...] = SCALES) -> Iterator[Finding]:
    """Yields a finding for each output and each differentiated argument: its worst over the scales, in float32.

    Args:
        subject: what to examine.
        scales: factors of the floating arguments.
    """
    worst: dict[str, tuple[Error, str]] = {}
    given = subject.leaves(np.float32)
    usual = consult(subject, given, subject.cotangents(given), unit_of(given)).values
    for scale in scales:
        leaves = subject.leaves(np.float32, scale)
        for name, e in compare(subject, leaves, subject.cotangents(leaves), usual):
            if name not in worst or e.ratio > worst[name][0].ratio:
                worst[name] = e, f"inputs times {scale:g}"
    for name, (e, where) in worst.items():
        yield judged("V2", name, e, where, subject.case)


def judged(claim: str, name: str, e: Error, where: str, case: str) -> Finding:
    """Returns the finding for a measured error."""
    message = f"{'differs from' if e.ratio > 1 else 'equals'} the float64 oracle, {where}"
    if e.unstable:
        message += "; autodiff of the reference is itself unstable there"
    return Finding(claim, "fail" if e.ratio > 1 else "pass", message, name, e.ratio, e.index, case)


def compare(
    subject: Subject, leaves: Leaves, gs: Leaves, usual: Leaves | None = None, strict: bool = True
) -> Iterator[tuple[str, Error]]:
    """Yields the error of each output, differentiated and not, and of each cotangent, against the oracle.

    Args:
        subject: what to examine.
        leaves: the differentiated leaves, in the working dtype.
        gs: the output cotangents.
        usual: the oracle's outputs and cotangents at the inputs as given; None for those at these leaves.
        strict: see `vjplib.verification.measure.error`.
    """
    unit = unit_of(leaves)
    oracle = consult(subject, leaves, gs, unit)
    ys, dxs = subject.fast(leaves, gs)
    autodiff = [np.asarray(a) for part in subject.truth(leaves, gs) for a in part]
    outputs = [f"output {i}" if len(ys) > 1 else "output" for i in range(len(ys))]
    differentiated = [f"{name} of the forward pass" for name in outputs]
    cotangents = [f"cotangent of {name}" for name in subject.names]
    answers = [
        *zip(range(len(ys)), outputs, subject.primal(*leaves), strict=True),
        *zip(range(len(ys) + len(dxs)), differentiated + cotangents, (*ys, *dxs), strict=True),
    ]
    for i, name, r in answers:
        draws = [d[i] for d in oracle.draws]
        yield (
            name,
            error(
                np.asarray(r), oracle.values[i], autodiff[i], draws, unit, None if usual is None else usual[i], strict
            ),
        )
