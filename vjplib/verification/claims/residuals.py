"""Residuals: the bytes kept between forward and backward, against the claim and against autodiff."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from vjplib.compat import Literal, unclose, used_inputs
from vjplib.verification.call import CallUnderTest
from vjplib.verification.claim import Claim
from vjplib.verification.report import Finding, finding


def residual_bytes(f: Callable[..., Any], *leaves: Any) -> int:
    """Return the bytes that JAX keeps to pull a cotangent back through f, each array counted once.

    f is traced and not computed.

    Args:
        f: a function of arrays that returns arrays.
        *leaves: its arguments, arrays or `jax.ShapeDtypeStruct`.

    Example:
        >>> x = jax.ShapeDtypeStruct((8,), np.float32)
        >>> residual_bytes(jax.numpy.sin, x), residual_bytes(lambda x: 2 * x, x)
        (32, 0)
    """
    return _bytes(_kept(f, *leaves)[0])


def _kept(f: Callable[..., Any], *leaves: Any) -> tuple[list[Any], Any, Any]:
    """Return the variables kept for the backward, the shapes of the outputs, and the backward."""
    traced, (outputs, back) = jax.make_jaxpr(lambda *ls: jax.vjp(f, *ls), return_shape=True)(*leaves)
    return traced.jaxpr.outvars[len(jax.tree.leaves(outputs)) :], outputs, back


def _bytes(kept: Sequence[Any]) -> int:
    arrays = {id(v): v.aval for v in kept if not isinstance(v, Literal)}.values()
    return sum(math.prod(a.shape) * a.dtype.itemsize for a in arrays)


def unused_bytes(f: Callable[..., Any], *leaves: Any) -> int:
    """Return the bytes among those kept that the backward never uses; arguments as `residual_bytes`.

    Example:
        >>> f = jax.custom_vjp(lambda x: 2 * x)
        >>> f.defvjp(lambda x: (2 * x, x), lambda x, g: (2 * g,))
        >>> unused_bytes(f, jax.ShapeDtypeStruct((8,), np.float32))
        32
    """
    kept, outputs, back = _kept(f, *leaves)
    backward, _ = unclose(jax.make_jaxpr(lambda back, gs: back(gs))(back, outputs))
    used = {id(v) for v, is_used in zip(kept, used_inputs(backward), strict=False) if is_used}
    return _bytes([v for v in kept if id(v) not in used])


def check(subject: CallUnderTest) -> Iterator[Finding]:
    """Yield one finding, on the call in float32."""
    leaves = subject.leaves(np.float32)
    ours = residual_bytes(subject.call, *leaves)
    theirs = residual_bytes(subject.flat(subject.compared) if subject.compared else subject.oracle, *leaves)
    unused, claimed = unused_bytes(subject.call, *leaves), subject.residuals
    message = f"keeps {ours:,} bytes, autodiff {theirs:,}"
    message += f"; {unused:,} of them the backward never uses" if unused else ""
    trap = "residuals-kept" if unused or (claimed is not None and ours > claimed) else ""
    if claimed is None:
        level = "note" if ours > theirs or unused else "pass"
    elif ours == claimed:
        level = "pass"
    else:
        level, message = "fail", f"{message}; {claimed:,} are claimed"
    yield finding(level, "residual_bytes", message, trap=trap, data={"bytes": ours, "autodiff": theirs})


CLAIM = Claim("residuals", check, alias="V7", quick=check, random=check, traces_only=True)
