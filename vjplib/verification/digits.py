"""Digits: the dtypes of arrays, and the fewest bits that a program computes in."""

from collections.abc import Iterable
from typing import Any

import jax.numpy as jnp

from vjplib.compat import programs

# Equations that move numbers, and round none that were exact.
_MOVING = frozenset(
    {"broadcast_in_dim", "reshape", "squeeze", "transpose", "slice", "dynamic_slice", "concatenate", "gather", "rev"}
    | {"convert_element_type", "copy", "copy_p", "iota", "expand_dims", "select_n"}
)


def names_of(arrays: Iterable[Any]) -> set[str]:
    """Return the names of the dtypes of floating arrays; of complex ones, of their parts.

    Example:
        >>> import numpy as np
        >>> sorted(names_of((np.ones(2, np.complex64), np.ones(2))))
        ['float32', 'float64']
    """
    return {jnp.finfo(a.dtype).dtype.name for a in arrays}


def eps_of(value: Any) -> float:
    """Return the step between numbers near one of an array's dtype; 0 unless that is floating, of 16 bits or more."""
    dtype = getattr(value, "dtype", None)
    if dtype is None or not jnp.issubdtype(dtype, jnp.inexact) or jnp.finfo(dtype).bits < 16:
        return 0.0
    return float(jnp.finfo(dtype).eps)


def coarsest_cast(jaxpr: Any) -> float:
    """Return the largest eps among the floating dtypes that a program casts wider ones to; 0 for no program."""
    found = [0.0]
    for eqn in jaxpr.eqns if jaxpr is not None else ():
        inner = [coarsest_cast(program) for _, program, _ in programs(eqn.params)]
        inputs, outputs = ([e for v in part if (e := eps_of(v.aval))] for part in (eqn.invars, eqn.outvars))
        found += inner or [e for e in outputs if inputs and e > min(inputs)]
    return max(found)


def coarsest_computed(jaxpr: Any) -> float:
    """Return the largest eps among the dtypes of numbers that a program computes and casts up; 0 for no program.

    Constants in fewer bits are exact, and so are numbers moved, repeated or selected from these.
    """
    found, computed = [0.0], set()
    for eqn in jaxpr.eqns if jaxpr is not None else ():
        found += [coarsest_computed(program) for _, program, _ in programs(eqn.params)]
        inputs = [v for v in eqn.invars if not hasattr(v, "val")]
        if eqn.primitive.name == "convert_element_type" and any(v in computed for v in inputs):
            found += [eps_of(v.aval) for v in inputs if eps_of(v.aval) > eps_of(eqn.outvars[0].aval) > 0]
        if eqn.primitive.name not in _MOVING or any(v in computed for v in inputs):
            computed |= set(eqn.outvars)
    return max(found)
