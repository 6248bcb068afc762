"""The claims at one call, as `vjplib.verify` examines them."""

from vjplib.verification.isolation import TIME_LIMIT
from vjplib.verification.registry import selected
from vjplib.verification.runner import Job, Runner


def examine(subject, claims=None):
    """Return the findings of each claim on a `CallUnderTest`."""
    return Runner(TIME_LIMIT).all([Job(claim, check, subject) for claim, check in selected("standard", claims)])
