"""V7, residuals: the bytes kept between forward and backward, against the claim and against autodiff."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from vjplib.compat import Literal
from vjplib.verification.report import Finding
from vjplib.verification.subject import Subject


def residual_bytes(f: Callable[..., Any], *leaves: Any) -> int:
    """Returns the bytes that JAX keeps to pull a cotangent back through f, each array counted once.

    Only shapes are traced.

    Args:
        f: a function of arrays that returns arrays.
        *leaves: its arguments, arrays or `jax.ShapeDtypeStruct`.

    Example:
        >>> x = jax.ShapeDtypeStruct((8,), np.float32)
        >>> residual_bytes(jax.numpy.sin, x), residual_bytes(lambda x: 2 * x, x)
        (32, 0)
    """
    traced, (outputs, _) = jax.make_jaxpr(lambda *ls: jax.vjp(f, *ls), return_shape=True)(*leaves)
    kept = traced.jaxpr.outvars[len(jax.tree.leaves(outputs)) :]
    arrays: dict[int, Any] = {id(v): v.aval for v in kept if not isinstance(v, Literal)}
    return sum(int(np.prod(a.shape, dtype=np.int64)) * a.dtype.itemsize for a in arrays.values())


def check(subject: Subject) -> Iterator[Finding]:
    """Yields one finding, on the call in float32."""
    leaves = subject.leaves(np.float32)
    ours = residual_bytes(subject.call, *leaves)
    theirs = residual_bytes(subject.baseline, *leaves)
    message = f"keeps {ours:,} bytes, autodiff {theirs:,}"
    trap = "residuals-kept" if ours > (theirs if subject.residuals is None else subject.residuals) else ""
    if subject.residuals is None:
        level = "note" if ours > theirs else "pass"
    elif ours == subject.residuals:
        level = "pass"
    else:
        level, message = "fail", f"{message}; {subject.residuals:,} are claimed"
    yield Finding("V7", level, message, case=subject.case, trap=trap, data={"bytes": ours, "autodiff": theirs})
