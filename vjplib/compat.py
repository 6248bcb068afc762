"""Every import from JAX that is experimental, private or has moved between the supported lines, in one place."""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import copy_context
from functools import cache, partial, wraps
from threading import RLock
from typing import TYPE_CHECKING, Any, NamedTuple, ParamSpec, Protocol, TypeVar

import jax
import numpy as np
from jax._src import api, config, source_info_util
from jax._src.core import trace_ctx
from jax._src.interpreters import partial_eval
from jax._src.interpreters.batching import BatchTrace, BatchTracer
from jax.ad_checkpoint import checkpoint_name
from jax.custom_derivatives import CustomVJPPrimal, SymbolicZero
from jax.experimental.xla_metadata import set_xla_metadata
from jax.extend.core import Jaxpr
from jax.extend.core import Literal as Literal
from jax.extend.core import Primitive as Primitive
from jax.sharding import AxisType, auto_axes, get_abstract_mesh

P = ParamSpec("P")
R = TypeVar("R", covariant=True)
T = TypeVar("T")


def separate_call(f: Callable[..., Any], **jit_options: Any) -> Callable[..., Any]:
    """Returns f jitted, and kept a call of its own in the compiled CPU program.

    XLA:CPU fuses shifted slices into whatever consumes them and recomputes them there; a call that may not be inlined
    stays as fast as it is alone, however its result is used. The attribute is one that only the CPU compiler reads, so
    use this inside the CPU branch of `jax.lax.platform_dependent`.

    Args:
        f: a function of arrays.
        jit_options: options of `jax.jit`.

    Example:
        >>> import jax.numpy as jnp
        >>> float(separate_call(jnp.sin)(0.0))
        0.0
    """
    jitted = jax.jit(f, **jit_options)

    def call(*args: Any, **kwargs: Any) -> Any:
        with set_xla_metadata(inlineable="false"):
            return jitted(*args, **kwargs)

    return call


def mapped(x: Any) -> bool:
    """Returns whether the innermost transformation at work is `jax.vmap`, and x has an axis that it maps over.

    Example:
        >>> import jax.numpy as jnp
        >>> seen = []
        >>> _ = jax.vmap(lambda x, y: seen.append((mapped(x), mapped(y))), in_axes=(0, None))(jnp.ones(2), 1.0)
        >>> seen
        [(True, False)]
    """
    trace = trace_ctx.trace
    return isinstance(trace, BatchTrace) and isinstance(x, BatchTracer) and x._trace.tag is trace.tag


def automatic(f: Callable[..., Any], result: jax.ShapeDtypeStruct) -> Callable[..., Any]:
    """Returns f, under a mesh with explicit axes to be partitioned by the compiler, as it is under automatic ones.

    Slices and reshapes of sharded dimensions are refused where axes are explicit, though they partition well.

    Args:
        f: a function of arrays.
        result: what it returns, with the sharding that is to come out.

    Example:
        >>> import jax.numpy as jnp
        >>> automatic(jnp.sin, jax.ShapeDtypeStruct((), jnp.float32)) is jnp.sin
        True
    """
    if not any(kind == AxisType.Explicit for kind in get_abstract_mesh().axis_types):
        return f
    return auto_axes(f, out_sharding=result.sharding)


def as_varying(cotangent: jax.Array, primal: jax.Array) -> jax.Array:
    """Returns a cotangent summed over the mesh axes of `jax.shard_map` along which it varies and its primal does not.

    Shards that share a value each have a part of its cotangent. Outside shard_map, and where it does not keep account
    (check_vma=False), this changes nothing.

    Example:
        >>> float(as_varying(jax.numpy.ones(()), jax.numpy.zeros(())))
        1.0
    """
    axes = jax.typeof(cotangent).manual_axis_type.varying - jax.typeof(primal).manual_axis_type.varying
    return jax.lax.psum(cotangent, tuple(sorted(axes))) if axes else cotangent


def x64() -> Any:
    """Returns a context in which float64 stays float64, whatever the user's setting."""
    return jax.enable_x64(True)


def leaks_unchecked() -> Any:
    """Returns a context in which JAX does not look for tracers that outlive their trace."""
    return config.check_tracer_leaks(False)


@cache
def hasty_options() -> dict[str, Any] | None:
    """Returns options of `jax.jit` by which the CPU's compiler takes the least time, None where it takes none of them.

    What is computed is the same, slower: for programs that run a few times on small arrays. They are for a jit that
    stands inside no other.
    """
    if jax.default_backend() != "cpu":
        return None
    hasty = {"xla_backend_optimization_level": 0}
    for options in (hasty | {"xla_cpu_use_fusion_emitters": False}, hasty):
        try:
            jax.jit(lambda: 1, compiler_options=options).lower().compile()
        except Exception:  # an option that this version does not know
            continue
        return options
    return None


def patient(flags: str) -> str:
    """Returns XLA's flags, with time for devices made of one processor to wait for one another.

    A process whose devices wait longer than 40 seconds is ended by XLA, and on a busy machine they may.

    Example:
        >>> patient("--xla_force_host_platform_device_count=4")
        '--xla_force_host_platform_device_count=4 --xla_cpu_collective_call_terminate_timeout_seconds=3600'
        >>> patient("--xla_cpu_collective_call_terminate_timeout_seconds=9")
        '--xla_cpu_collective_call_terminate_timeout_seconds=9'
    """
    name = "--xla_cpu_collective_call_terminate_timeout_seconds"
    return flags if name in flags else f"{flags} {name}=3600".strip()


def carried(f: Callable[[], T]) -> Callable[[], T]:
    """Returns f as it runs in this thread's contexts of JAX (x64, precision, mesh, ...), for another thread to run.

    Example:
        >>> import threading
        >>> found = []
        >>> with x64():
        ...     thread = threading.Thread(target=carried(lambda: found.append(jax.numpy.zeros(1).dtype)))
        >>> thread.start()
        >>> thread.join()
        >>> found
        [dtype('float64')]
    """
    context = copy_context()
    states = [state for state in vars(config).values() if isinstance(state, config.config_ext.Config)]
    held = [(state, state.get_local()) for state in states if state.get_local() is not config.config_ext.unset]

    def run() -> T:
        for state, value in held:
            state.set_local(value)
            if hook := getattr(state, "_update_thread_local_hook", None):
                hook(value)
        return context.run(f)

    return run


def settings() -> dict[str, Any]:
    """Returns every setting of `jax.config`, by name, as it holds for all threads."""
    return {name: state.get_global() for name, state in config.config_states.items()}


class Differentiable(Protocol[P, R]):
    """The type of a custom_vjp: called as the function it was made of is, with the rule attached to it."""

    __name__: str
    fwd: Callable[..., Any] | None
    bwd: Callable[..., Any] | None

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Returns what the function returns."""
        ...

    def defvjp(self, fwd: Callable[..., Any], bwd: Callable[..., Any]) -> None:
        """Attaches the forward and the backward pass."""
        ...


if TYPE_CHECKING:

    def custom_vjp(
        fun: Callable[P, T], nondiff_argnums: Sequence[int] = (), nondiff_argnames: Sequence[str] = ()
    ) -> Differentiable[P, T]:
        """`jax.custom_vjp`, typed so that the rule keeps its function's signature."""
        ...
else:
    custom_vjp = jax.custom_vjp


class CustomVJP(NamedTuple):
    """What a custom_vjp is made of, under either of JAX's implementations (`jax_custom_vjp3`).

    Args:
        primal: the function it was given.
        fwd: its forward pass.
        bwd: its backward pass.
        static: which positional arguments are not differentiated, by nondiff_argnums or nondiff_argnames.
        symbolic_zeros: whether the passes take symbolic zeros.
        name: the primal's name.
        optimize_remat: whether the forward is to be optimized for rematerialization.
    """

    primal: Callable[..., Any]
    fwd: Callable[..., Any]
    bwd: Callable[..., Any]
    static: frozenset[int]
    symbolic_zeros: bool
    name: str
    optimize_remat: bool = False


def custom_vjp_of(fn: Any) -> CustomVJP | None:
    """Returns the parts of a custom_vjp, None for any other function.

    Example:
        >>> custom_vjp_of(jax.numpy.sin) is None
        True
    """
    if not isinstance(fn, _implementations()):
        return None
    primal = getattr(fn, "fun", None) or fn.f
    static = fn.nondiff_argnums if hasattr(fn, "nondiff_argnums") else fn.static_argnums
    symbolic = fn.symbolic_zeros if hasattr(fn, "symbolic_zeros") else fn.symz
    remat = bool(getattr(fn, "optimize_remat", False) or getattr(fn, "opt_remat", False))
    name = getattr(primal, "__name__", type(primal).__name__)  # a partial has none
    return CustomVJP(primal, fn.fwd, fn.bwd, frozenset(static), bool(symbolic), name, remat)


def _implementations() -> tuple[type, ...]:
    """Returns the classes that `jax.custom_vjp(f)` may be of: with jax_custom_vjp3 it makes an object of another."""
    return tuple({jax.custom_vjp, type(jax.custom_vjp(lambda x: x))})


_replacements: list[Callable[..., Any]] = []
_originals: dict[type, Callable[..., Any]] = {}
_patching = RLock()


@contextmanager
def replaced_custom_vjp_calls(call: Callable[..., Any]) -> Iterator[None]:
    """Every call of a custom_vjp inside the context is call(original, fn, *args, **kwargs) instead.

    The class is patched for all threads. Contexts may nest, and overlap in any order; the last one is asked first.

    Args:
        call: takes what a call does otherwise, the custom_vjp, and the arguments.
    """

    def mine(*given: Any, **kwargs: Any) -> Any:
        return call(*given, **kwargs)

    with _patching:
        if not _replacements:
            for kind in _implementations():
                _originals[kind] = original = kind.__call__
                kind.__call__ = _dispatching(original)
        _replacements.append(mine)
    try:
        yield
    finally:
        with _patching:
            _replacements.remove(mine)
            if not _replacements:
                for kind, original in _originals.items():
                    kind.__call__ = original
                _originals.clear()


def _dispatching(original: Callable[..., Any]) -> Callable[..., Any]:
    def ask(calls: tuple[Callable[..., Any], ...], fn: Any, *args: Any, **kwargs: Any) -> Any:
        if not calls:
            return original(fn, *args, **kwargs)
        return calls[-1](partial(ask, calls[:-1]), fn, *args, **kwargs)

    return lambda self, *args, **kwargs: ask(tuple(_replacements), self, *args, **kwargs)


class CustomJVP(NamedTuple):
    """What a custom_jvp is made of.

    Args:
        primal: the function it was given.
        jvp: its rule.
        static: which positional arguments are not differentiated.
    """

    primal: Callable[..., Any]
    jvp: Callable[..., Any]
    static: frozenset[int]


def custom_jvp_of(fn: Any) -> CustomJVP | None:
    """Returns the parts of a custom_jvp, None for any other function.

    Example:
        >>> custom_jvp_of(jax.numpy.sin) is None
        True
    """
    if not isinstance(fn, jax.custom_jvp) or fn.jvp is None:
        return None
    return CustomJVP(fn.fun, fn.jvp, frozenset(fn.nondiff_argnums))


@contextmanager
def replaced_custom_jvp_calls(call: Callable[..., Any]) -> Iterator[None]:
    """Every call of a custom_jvp inside the context is call(original, fn, *args, **kwargs) instead.

    The class is patched for all threads; such contexts must not overlap other than by nesting.
    """
    original = jax.custom_jvp.__call__
    jax.custom_jvp.__call__ = lambda self, *args, **kwargs: call(original, self, *args, **kwargs)
    try:
        yield
    finally:
        jax.custom_jvp.__call__ = original


@contextmanager
def replaced_vjp(call: Callable[..., Any]) -> Iterator[None]:
    """Every call of `jax.vjp` inside the context, those of `jax.grad` too, is call(original, *args, **kwargs) instead.

    JAX's module is patched for all threads; such contexts must not overlap other than by nesting. A name that another
    module has imported `jax.vjp` by before stays as it is.
    """
    original = api.vjp

    @wraps(original)
    def replacing(*args: Any, **kwargs: Any) -> Any:
        return call(original, *args, **kwargs)

    api.vjp = jax.vjp = replacing
    try:
        yield
    finally:
        api.vjp = jax.vjp = original


def remade(rule: CustomVJP, bwd: Callable[..., Any]) -> Any:
    """Returns a custom_vjp of the same parts, with another backward."""
    same = jax.custom_vjp(rule.primal, nondiff_argnums=tuple(sorted(rule.static)))
    options = {"optimize_remat": True} if rule.optimize_remat else {}
    same.defvjp(rule.fwd, bwd, symbolic_zeros=rule.symbolic_zeros, **options)
    return same


@contextmanager
def traced_afresh(token: str) -> Iterator[None]:
    """In this context functions that `jax.jit` has traced before are traced again, once for each token."""
    with set_xla_metadata(vjplib=token):
        yield


@contextmanager
def recorded_custom_vjps() -> Iterator[list[tuple[CustomVJP, tuple[Any, ...], dict[str, Any]]]]:
    """Records every call of a custom_vjp made inside the context: its parts, arguments and keyword arguments.

    Calls made by other threads meanwhile are recorded too.
    """
    calls = []

    def recorded(original: Callable[..., Any], fn: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append((custom_vjp_of(fn), args, kwargs))
        return original(fn, *args, **kwargs)

    with replaced_custom_vjp_calls(recorded):
        yield calls


_ENTER, _LEAVE = "vjplib: a backward begins", "vjplib: a backward ends"
_tokens = itertools.count()


@contextmanager
def backwards_where_written() -> Iterator[None]:
    """In this context equations of a custom_vjp's backward come from the lines it is written on, not from its call.

    JAX gives them the call's. Where a backward begins and ends stands in the program too, for `mark_of` to tell.
    """

    def call(original: Callable[..., Any], fn: Any, *args: Any, **kwargs: Any) -> Any:
        rule = custom_vjp_of(fn)
        assert rule is not None

        def bwd(*given: Any) -> Any:
            with as_written():
                dxs = rule.bwd(*given[:-2], *_marked(given[-2:], _ENTER))
                return _marked(dxs, _LEAVE)

        return original(remade(rule, bwd), *args, **kwargs)

    with replaced_custom_vjp_calls(call), traced_afresh(f"where written {next(_tokens)}"):
        yield


@contextmanager
def as_written() -> Iterator[None]:
    """In this context equations come from the lines of the functions called in it, not from those that called them."""
    context = source_info_util._source_info_context
    outer, context.context = context.context, source_info_util.new_source_info()
    try:
        yield
    finally:
        context.context = outer


def _marked(tree: Any, text: str) -> Any:
    """Returns a pytree each array of which has gone through an equation that names it."""
    return jax.tree.map(lambda leaf: checkpoint_name(leaf, text) if is_plain_array(leaf) else leaf, tree)


def is_plain_array(leaf: Any) -> bool:
    """Returns whether a leaf is an array with numbers in it: no symbolic zero, no float0, no random key, no text."""
    dtype = getattr(leaf, "dtype", None)
    if dtype is None or not isinstance(leaf, (jax.Array, np.ndarray, np.generic)) or dtype == jax.dtypes.float0:
        return False
    return not jax.numpy.issubdtype(dtype, jax.dtypes.extended)


def mark_of(eqn: Any) -> bool | None:
    """Returns True for the equations with which a backward begins, False for those it ends with, None for others.

    They stand in programs that are traced in `backwards_where_written`, one for each array, and change nothing.
    """
    name = eqn.params.get("name") if eqn.primitive.name == "name" else None
    return {_ENTER: True, _LEAVE: False}.get(name) if isinstance(name, str) else None


def is_symbolic_zero(a: Any) -> bool:
    """Returns whether a is a symbolic zero, as a backward with symbolic_zeros=True gets and may return."""
    return isinstance(a, SymbolicZero)


def symbolic_zero_of(y: Any) -> SymbolicZero:
    """Returns the symbolic zero that stands for the cotangent of an output."""
    return SymbolicZero(jax.typeof(y).to_tangent_aval())


def perturbed(x: Any) -> CustomVJPPrimal:
    """Returns an argument as a forward pass with symbolic_zeros=True gets it, marked as differentiated."""
    return CustomVJPPrimal(x, True)


def symbolic_zero_aval(a: Any) -> Any:
    """Returns the shape and dtype of a symbolic zero, anything else as it is."""
    return a.aval if isinstance(a, SymbolicZero) else a


def strip_custom_rules(f: Callable[..., Any]) -> Callable[..., Any]:
    """Returns f without the custom derivative rules inside it, so that JAX differentiates what f computes.

    The rules of `jax.custom_vjp` and `jax.custom_jvp` are replaced by the functions they were given for, through jit,
    scan, while, cond and checkpoint.

    Args:
        f: a function of arrays that returns a pytree of arrays.

    Example:
        >>> import jax.numpy as jnp
        >>> wrong = jax.custom_vjp(jnp.sin)
        >>> wrong.defvjp(lambda x: (jnp.sin(x), None), lambda res, g: (0 * g,))
        >>> float(jax.grad(wrong)(0.0)), float(jax.grad(strip_custom_rules(wrong))(0.0))
        (0.0, 1.0)
    """

    def stripped(*args: Any) -> Any:
        closed, out = jax.make_jaxpr(f, return_shape=True)(*args)
        values = _evaluate(*opened(closed), jax.tree.leaves(args))
        return jax.tree.unflatten(jax.tree.structure(out), values)

    return stripped


def programs(params: Mapping[str, Any]) -> list[tuple[str, Jaxpr, list[Any]]]:
    """Returns the programs among an equation's parameters: the parameter's name, the jaxpr and its constants."""
    named = ((n, v) for n, vs in params.items() for v in (vs if isinstance(vs, (tuple, list)) else (vs,)))
    held = ((name, _program(value)) for name, value in named)
    return [(name, *opened(program)) for name, program in held if program is not None]


def _program(value: Any) -> Any:
    """Returns the jaxpr that a parameter is, or that the primitive object of the newer custom_vjp holds, or None."""
    value = getattr(getattr(value, "traced", None), "jaxpr", value)
    return value if isinstance(getattr(value, "jaxpr", value), Jaxpr) else None  # closed over its constants, or not


def opened(item: Any) -> tuple[Jaxpr, list[Any]]:
    """Returns a jaxpr, closed or not, and the constants that it holds."""
    return getattr(item, "jaxpr", item), list(getattr(item, "consts", ()))


_CUSTOM = {"custom_jvp_call", "custom_vjp_call", "call_hi_primitive"}
INLINED = frozenset({"jit", "pjit", "remat2", "checkpoint", "closed_call"})
_INLINED = _CUSTOM | INLINED


def holds_custom_vjp(program: Any) -> bool:
    """Returns whether a jaxpr, or a program inside it, calls a custom_vjp."""
    jaxpr, _ = opened(program)
    return any(
        eqn.primitive.name in ("custom_vjp_call", "call_hi_primitive")
        or any(holds_custom_vjp(inner) for _, inner, _ in programs(eqn.params))
        for eqn in jaxpr.eqns
    )


def _holds_custom_rule(jaxpr: Jaxpr) -> bool:
    return any(
        eqn.primitive.name in _CUSTOM or any(_holds_custom_rule(inner) for _, inner, _ in programs(eqn.params))
        for eqn in jaxpr.eqns
    )


def bound(eqn: Any, values: Sequence[Any], **params: Any) -> Sequence[Any]:
    """Returns the outputs of an equation at these inputs, with these parameters in place of its own."""
    given = {**eqn.params, **params}
    with eqn.ctx.manager:
        outputs = eqn.primitive.bind(*values, **eqn.primitive.get_bind_params(given))
    return outputs if eqn.primitive.multiple_results else (outputs,)


def evaluated(
    jaxpr: Jaxpr,
    consts: Sequence[Any],
    args: Sequence[Any],
    after: Callable[[Any, Sequence[Any]], Sequence[Any]],
    bind: Callable[..., Sequence[Any]] = bound,
) -> list[Any]:
    """Returns what a jaxpr computes, each custom rule in it by its primal, each equation's outputs passed through.

    Args:
        jaxpr: the program; what it inlines, as jit does, is evaluated equation by equation too.
        consts: the values of its constants.
        args: the values of its arguments.
        after: takes an equation and its outputs, and returns what to use in their place.
        bind: takes an equation, its inputs and changed parameters, and returns its outputs; values may be anything
            that it makes of them.
    """
    return interpreted(jaxpr, consts, args, lambda eqn, values: _applied(eqn, values, after, bind))


def interpreted(
    jaxpr: Jaxpr, consts: Sequence[Any], args: Sequence[Any], apply: Callable[[Any, list[Any]], Sequence[Any]]
) -> list[Any]:
    """Returns what a jaxpr computes, the outputs of each equation being apply(equation, values of its inputs)."""
    env = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *args), strict=True))

    def read(v: Any) -> Any:
        return v.val if isinstance(v, Literal) else env[v]

    for eqn in jaxpr.eqns:
        env.update(zip(eqn.outvars, apply(eqn, [read(v) for v in eqn.invars]), strict=True))
    return [read(v) for v in jaxpr.outvars]


def without_dead_code(jaxpr: Jaxpr) -> Jaxpr:
    """Returns a program without the equations that no output of it depends on."""
    return partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars), instantiate=True)[0]


def used_inputs(jaxpr: Jaxpr) -> list[bool]:
    """Returns of each input of a program whether an output depends on it."""
    return partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars), instantiate=False)[1]


def source_of(eqn: Any) -> str:
    """Returns file, line and function of the user's code that an equation comes from."""
    return source_info_util.summarize(eqn.source_info)


def _evaluate(jaxpr: Jaxpr, consts: Sequence[Any], args: Sequence[Any]) -> list[Any]:
    """Evaluates a jaxpr, each custom rule in it by its primal."""
    return evaluated(jaxpr, consts, args, lambda eqn, outputs: outputs)


def _applied(
    eqn: Any,
    values: list[Any],
    after: Callable[[Any, Sequence[Any]], Sequence[Any]],
    bind: Callable[..., Sequence[Any]],
) -> Sequence[Any]:
    inner = programs(eqn.params)
    if eqn.primitive.name in _INLINED and inner:
        _, jaxpr, consts = inner[0]
        return evaluated(jaxpr, consts, values, after, bind)
    params = {name: _stripped_parameter(value) for name, value in eqn.params.items()} if inner else {}
    return after(eqn, bind(eqn, values, **params))


def _stripped_parameter(value: Any) -> Any:
    if isinstance(value, (tuple, list)):
        items = [_stripped_parameter(item) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    if _program(value) is None:
        return value
    jaxpr, consts = opened(value)
    if not _holds_custom_rule(jaxpr):
        return value
    return jax.make_jaxpr(lambda *args: _evaluate(jaxpr, consts, args))(*(v.aval for v in jaxpr.invars))
