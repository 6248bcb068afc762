"""Calls of `jax.custom_derivatives.linear_call`: their parts, and a context that replaces them."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jax.numpy as jnp
from jax._src.custom_derivatives import linear_call_p
from jax.custom_derivatives import linear_call

from vjplib.compat.jaxprs import bind_eqn, interpreted, unclose


class LinearCall:
    """One call of `linear_call` as a function of arrays alone, and its parts, named as those of a `CustomVJP`.

    The arguments that it is not linear in come first; they are `static`, for JAX refuses to differentiate by them.

    Args:
        parameters: those of its equation.
    """

    def __init__(self, parameters: dict[str, Any]) -> None:
        program: Any = unclose(parameters["callee"])[0]
        self.parameters = parameters
        self.static = frozenset(range(parameters["num_callee_consts"] + parameters["num_res"]))
        self.name, _, self.place = program.debug_info.func_src_info.partition(" at ")
        self.primal = lambda *args: self(*args)
        self.passes = (self.primal,)
        self.dtypes = [v.aval.dtype for v in program.invars]

    def __call__(self, *args: Any) -> Any:
        """Return the outputs, flat; at arguments of other dtypes than it was made for, of the call made for these."""
        if [jnp.result_type(a) for a in args] == self.dtypes:
            return linear_call_p.bind(*args, **self.parameters)
        count = len(self.static)
        wide = jnp.result_type(*args[count:])
        held = [jnp.asarray(a, wide) if jnp.issubdtype(jnp.result_type(a), jnp.floating) else a for a in args[:count]]
        transpose, constants = self.parameters["transpose_thunk"]()
        consts = self.parameters["num_callee_consts"]

        def forwards(held: Any, moving: Any) -> Any:
            return _evaluated(self.parameters["callee"], (*held, *moving))

        def backwards(held: Any, gs: Any) -> Any:
            return _evaluated(transpose, (*constants, *held[consts:], *gs))

        return linear_call(forwards, backwards, held, list(args[count:]))


def _evaluated(program: Any, args: Any) -> list[Any]:
    jaxpr, consts = unclose(program)
    return interpreted(jaxpr, consts, args, bind_eqn)


@contextmanager
def replaced_linear_calls(call: Callable[..., Any]) -> Iterator[None]:
    """Context in which every call of `linear_call` is call(original, a `LinearCall`, *args) instead.

    JAX's primitive is patched for all threads; such contexts may nest and must not overlap otherwise. Calls of it that
    derivatives make are left as they are.
    """
    code, before = linear_call.__code__, linear_call_p.bind

    def bind(*args: Any, **parameters: Any) -> Any:
        if sys._getframe(1).f_code is not code:
            return before(*args, **parameters)
        return call(lambda fn, *given: before(*given, **fn.parameters), LinearCall(parameters), *args)

    vars(linear_call_p)["bind"] = bind
    try:
        yield
    finally:
        del vars(linear_call_p)["bind"]
