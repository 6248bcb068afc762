"""Other gradient checks, to compare the verifier with: JAX's check_grads and chex's assert_numerical_grads."""

from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from typing import Any

import jax.test_util
import numpy as np

from vjplib.verification.call import Leaves
from vjplib.verification.report import describe_error

TITLES = {"vjplib": "vjplib", "check_grads": "jax.test_util.check_grads", "chex": "chex.assert_numerical_grads"}


@cache
def others() -> dict[str, Callable[..., None]]:
    """Return the installed checks by name: each takes a function and its arguments, and raises on failure."""
    found: dict[str, Callable[..., None]] = {"check_grads": jax.test_util.check_grads}
    if find_spec("chex") is not None:
        import chex

        found["chex"] = chex.assert_numerical_grads
    return found


def complaint_of(by: str, f: Callable[..., Any], leaves: Leaves) -> str:
    """Return a check's error message on the gradients of f, in a line; empty if the check passes."""
    with np.errstate(all="ignore"):
        try:
            others()[by](f, leaves, order=1, modes=("rev",))
        except Exception as error:  # an AssertionError, or whatever the function raises
            return describe_error(error)
    return ""
