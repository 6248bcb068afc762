"""Reading, evaluating and changing jaxprs."""

import linecache
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
from jax._src import source_info_util
from jax._src.interpreters import partial_eval
from jax.extend.core import Jaxpr, Literal

from vjplib.compat.hijax import HI_PRIMITIVE, body_of, has_body


def strip_custom_rules(f: Callable[..., Any]) -> Callable[..., Any]:
    """Return f without the custom derivative rules inside it, so that JAX differentiates its primal.

    Each `jax.custom_vjp` and `jax.custom_jvp` is replaced by its primal, each hijax primitive by its body and each
    `linear_call` by its function, through jit, scan, while, cond and checkpoint.

    Example:
        >>> import jax.numpy as jnp
        >>> wrong = jax.custom_vjp(jnp.sin)
        >>> wrong.defvjp(lambda x: (jnp.sin(x), None), lambda res, g: (0 * g,))
        >>> float(jax.grad(wrong)(0.0)), float(jax.grad(strip_custom_rules(wrong))(0.0))
        (0.0, 1.0)
    """

    def stripped(*args: Any) -> Any:
        closed, out = jax.make_jaxpr(f, return_shape=True)(*args)
        values = evaluated(*unclose(closed), jax.tree.leaves(args))
        return jax.tree.unflatten(jax.tree.structure(out), values)

    return stripped


def programs(params: Mapping[str, Any]) -> list[tuple[str, Jaxpr, list[Any]]]:
    """Return the programs among an equation's parameters: the parameter's name, the jaxpr and its constants."""
    named = ((n, v) for n, vs in params.items() for v in (vs if isinstance(vs, (tuple, list)) else (vs,)))
    held = ((name, _program(value)) for name, value in named)
    return [(name, *unclose(program)) for name, program in held if program is not None]


def _program(value: Any) -> Any:
    """Return the jaxpr of a parameter, of a hijax primitive that is one, or None; the newer custom_vjp is one too."""
    if has_body(value):
        try:
            return body_of(value)
        except Exception:  # it takes no arrays, or needs the mesh axes that it was called under
            return None
    value = getattr(getattr(value, "traced", None), "jaxpr", value)
    return value if isinstance(getattr(value, "jaxpr", value), Jaxpr) else None  # with or without its constants


def unclose(item: Any) -> tuple[Jaxpr, list[Any]]:
    """Return a jaxpr, closed or not, and the constants that it holds."""
    return getattr(item, "jaxpr", item), list(getattr(item, "consts", ()))


_CUSTOM = {"custom_jvp_call", "custom_vjp_call", HI_PRIMITIVE, "linear_call"}
INLINED = frozenset({"jit", "pjit", "remat2", "checkpoint", "closed_call"})
_INLINED = _CUSTOM | INLINED


def equations(program: Any) -> Iterator[Any]:
    """Yield the equations of a jaxpr, each after those of the programs inside it."""
    for eqn in unclose(program)[0].eqns:
        for _, inner, _ in programs(eqn.params):
            yield from equations(inner)
        yield eqn


def holds_custom_vjp(program: Any) -> bool:
    """Return whether a jaxpr, or a program inside it, calls a custom_vjp."""
    return any(eqn.primitive.name == "custom_vjp_call" or _is_traced_rule(eqn) for eqn in equations(program))


def _is_traced_rule(eqn: Any) -> bool:
    """Return whether an equation calls the primitive that the newer custom_vjp makes."""
    return eqn.primitive.name == HI_PRIMITIVE and hasattr(eqn.params["_prim"], "traced")


def bind_eqn(eqn: Any, values: Sequence[Any], **params: Any) -> Sequence[Any]:
    """Return the outputs of an equation at these inputs, with these parameters in place of its own."""
    given = {**eqn.params, **params}
    with eqn.ctx.manager:
        outputs = eqn.primitive.bind(*values, **eqn.primitive.get_bind_params(given))
    return outputs if eqn.primitive.multiple_results else (outputs,)


def evaluated(
    jaxpr: Jaxpr,
    consts: Sequence[Any],
    args: Sequence[Any],
    after: Callable[[Any, Sequence[Any]], Sequence[Any]] = lambda eqn, outputs: outputs,
    bind: Callable[..., Sequence[Any]] = bind_eqn,
    enter: Callable[[Any, Sequence[Any]], Any] = lambda eqn, values: None,
) -> list[Any]:
    """Evaluate a jaxpr, each custom rule by its primal, each equation's outputs passed through `after`.

    Args:
        jaxpr: the program; programs inside it that are inlined, as jit's, are evaluated equation by equation too.
        consts: the values of its constants.
        args: the values of its arguments.
        after: takes an equation and its outputs; returns the outputs to use.
        bind: takes an equation, its inputs and changed parameters; returns its outputs, of any type.
        enter: takes an equation that is replaced by the program inside it, and its inputs.
    """

    def apply(eqn: Any, values: list[Any]) -> Sequence[Any]:
        inner = programs(eqn.params)
        if eqn.primitive.name in _INLINED and inner:
            enter(eqn, values)
            _, program, held = inner[0]
            return evaluated(program, held, values, after, bind, enter)
        if eqn.primitive.name == HI_PRIMITIVE and has_body(eqn.params["_prim"]):
            body_of(eqn.params["_prim"])  # raises
        params = with_programs(eqn.params, _stripped) if inner else {}
        return after(eqn, bind(eqn, values, **params))

    return interpreted(jaxpr, consts, args, apply)


def interpreted(
    jaxpr: Jaxpr, consts: Sequence[Any], args: Sequence[Any], apply: Callable[[Any, list[Any]], Sequence[Any]]
) -> list[Any]:
    """Evaluate a jaxpr; the outputs of each equation are apply(equation, values of its inputs)."""
    env = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *args), strict=True))

    def read(v: Any) -> Any:
        return v.val if isinstance(v, Literal) else env[v]

    for eqn in jaxpr.eqns:
        env.update(zip(eqn.outvars, apply(eqn, [read(v) for v in eqn.invars]), strict=True))
    return [read(v) for v in jaxpr.outvars]


def scan_parts(eqn: Any) -> tuple[int, int]:
    """Return how many of the inputs of a scan are constants of its loop, and how many are carried after these."""
    if "num_carry" in eqn.params:
        return eqn.params["num_consts"], eqn.params["num_carry"]
    consts, carry, _ = eqn.params["ft_in"].update(eqn.invars).unpack()
    return len(list(consts)), len(list(carry))


def without_dead_code(jaxpr: Jaxpr) -> Jaxpr:
    """Return a program without the equations that none of its outputs depends on."""
    return partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars), instantiate=True)[0]


def used_inputs(jaxpr: Jaxpr) -> list[bool]:
    """Return for each input of a program whether an output depends on it."""
    return partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars), instantiate=False)[1]


def source_of(eqn: Any) -> str:
    """Return file, line and function of the user's code that an equation comes from."""
    return source_info_util.summarize(eqn.source_info)


def where_written(eqn: Any) -> tuple[str, int, str, str]:
    """Return file, line and function of the user's code that an equation comes from, and the source of the expression.

    The source is empty where the file cannot be read.
    """
    frame = source_info_util.user_frame(eqn.source_info.traceback)
    if frame is None:
        return "", 0, "", ""
    lines = linecache.getlines(frame.file_name)[frame.start_line - 1 : frame.end_line]
    if lines:  # columns count bytes
        lines[-1] = lines[-1].encode()[: frame.end_column].decode()
        lines[0] = lines[0].encode()[frame.start_column :].decode()
    return frame.file_name, frame.start_line, frame.function_name, " ".join(" ".join(lines).split())


def with_programs(held: Any, change: Callable[[Any], Any]) -> Any:
    """Return an equation's parameters, or one of them, with each program changed, in the order of `programs`."""
    if isinstance(held, dict):
        return {name: with_programs(value, change) for name, value in held.items()}
    if isinstance(held, (tuple, list)):
        items = [with_programs(item, change) for item in held]
        return type(held)(*items) if hasattr(held, "_fields") else type(held)(items)
    return held if has_body(held) or _program(held) is None else change(held)


def _stripped(program: Any) -> Any:
    if all(eqn.primitive.name not in _CUSTOM for eqn in equations(program)):
        return program
    jaxpr, consts = unclose(program)
    return jax.make_jaxpr(lambda *args: evaluated(jaxpr, consts, args))(*(v.aval for v in jaxpr.invars))
