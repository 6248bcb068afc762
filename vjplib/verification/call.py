"""CallUnderTest: a function with one call to examine it at, flattened to the leaves that can be differentiated."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from vjplib.compat import fast_compile_options, programs, strip_custom_rules, unclose, x64
from vjplib.rule import Tail
from vjplib.verification.report import describe_error
from vjplib.verification.tolerance import HALF_THE_DIGITS

Leaves = tuple[Any, ...]
T = TypeVar("T")
SMALL = 100_000  # elements
SCALES = (1.0, 1e-3, 30.0)  # factors of the inputs at which values are compared


@jax.tree_util.register_pytree_node_class
class Static:
    """An argument that is no array, such as an axis or a function: a pytree without leaves."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def tree_flatten(self) -> tuple[tuple[()], "Static"]:
        """Returns no leaves, and itself."""
        return (), self

    @classmethod
    def tree_unflatten(cls, static: "Static", leaves: tuple[()]) -> "Static":
        """Returns the argument that was flattened."""
        del leaves
        return static


def combine(leaves: Sequence[Any], places: Sequence[int], values: Sequence[Any]) -> list[Any]:
    """Return the leaves with other values in some places.

    Example:
        >>> combine("abc", (0, 2), "xy")
        ['x', 'b', 'y']
    """
    combined = list(leaves)
    for i, value in zip(places, values, strict=True):
        combined[i] = value
    return combined


class Answers(NamedTuple):
    """Outputs and cotangents of one call.

    Args:
        primal: the outputs of the function, undifferentiated.
        ys: its outputs when differentiated.
        dxs: its cotangents.
        true_ys: the oracle's outputs.
        true_dxs: the oracle's cotangents, by autodiff.
    """

    primal: Leaves
    ys: Leaves
    dxs: Leaves
    true_ys: Leaves
    true_dxs: Leaves


@dataclass(frozen=True)
class CallUnderTest:
    """A function, its oracle and one call.

    Args:
        fn: the function under examination.
        reference: what it must equal, differentiated by JAX; None for fn's own primal, custom rules stripped.
        args: positional arguments, any pytrees; leaves of a floating or complex dtype are differentiated, others not.
        kwargs: keyword arguments, not differentiated.
        seed: of every random number.
        order_two: whether second derivatives are offered.
        residuals: the bytes that the call is claimed to keep for the backward, or None.
        compared: what residuals are compared with; None for the oracle.
        sizes: the dimensions of the call that may be enlarged, by name.
        resize: takes other sizes for some of them; returns the arguments and array keyword arguments then, as
            `jax.ShapeDtypeStruct`.
        case: a name for the call.
        tails: makes a call whose exact cotangents are known of log-spaced numbers, or None; see `vjplib.rule.Rule`.
        hurried: whether compiling may leave out optimisation in float32 too; in float64 it does, if the call is small.
    """

    fn: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    reference: Callable[..., Any] | None = None
    seed: int = 0
    order_two: bool = True
    residuals: int | None = None
    compared: Callable[..., Any] | None = None
    sizes: Mapping[str, int] = field(default_factory=dict)
    resize: Callable[[Mapping[str, int]], tuple[tuple[Any, ...], Mapping[str, Any]]] | None = None
    case: str = ""
    hurried: bool = False
    tails: Callable[[np.ndarray], Tail] | None = None

    def flat(self, f: Callable[..., Any]) -> Callable[..., Leaves]:
        """Returns f at this call as a function of the differentiated leaves, to its floating output leaves."""

        def run(*leaves: Any) -> Leaves:
            outputs = jax.tree.leaves(f(*self.rebuild(leaves), **self.kwargs))
            return tuple(y for y in outputs if jnp.issubdtype(jnp.result_type(y), jnp.inexact))

        return run

    @property
    def call(self) -> Callable[..., Leaves]:
        """The function under examination, flat."""
        return self.flat(self.fn)

    @property
    def oracle(self) -> Callable[..., Leaves]:
        """The reference, or the function's primal with every custom rule stripped, flat."""
        return strip_custom_rules(self.call) if self.reference is None else self.flat(self.reference)

    @property
    def baseline(self) -> Callable[..., Leaves]:
        """What residuals are compared with, flat."""
        return self.oracle if self.compared is None else self.flat(self.compared)

    @cached_property
    def _flat(self) -> tuple[list[Any], Any]:
        return jax.tree.flatten(self.args)

    @cached_property
    def differentiable(self) -> tuple[int, ...]:
        """Which leaves of the arguments are differentiated."""
        return tuple(i for i, leaf in enumerate(self._flat[0]) if jnp.issubdtype(jnp.result_type(leaf), jnp.inexact))

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The name of each differentiated leaf, as the function's signature has it."""
        named = parameters(self.fn, len(self.args))
        paths, _ = jax.tree_util.tree_flatten_with_path(self.args)
        every = [named[path[0].idx] + jax.tree_util.keystr(path[1:]) for path, _ in paths]
        return tuple(every[i] for i in self.differentiable)

    def leaves(self, dtype: Any = None, scale: float = 1.0) -> Leaves:
        """Returns the differentiated leaves, times scale, in a dtype (their own for None), as NumPy arrays."""
        picked = (np.asarray(self._flat[0][i]) for i in self.differentiable)
        with np.errstate(over="ignore", under="ignore"):  # scaled in float64: half precision would overflow first
            return tuple(
                (leaf.astype(kind_of(leaf.dtype, np.float64)) * scale).astype(kind_of(leaf.dtype, dtype))
                for leaf in picked
            )

    @cached_property
    def complex(self) -> bool:
        """Whether an argument or an output that is differentiated is complex."""
        leaves = self.leaves()
        return any(jnp.issubdtype(a.dtype, jnp.complexfloating) for a in (*leaves, *self.outputs(leaves)))

    def rebuild(self, leaves: Sequence[Any]) -> tuple[Any, ...]:
        """Returns the positional arguments with these differentiated leaves in place."""
        own = [leaf if i in self.differentiable else jnp.asarray(leaf) for i, leaf in enumerate(self._flat[0])]
        args = jax.tree.unflatten(self._flat[1], combine(own, self.differentiable, leaves))
        return tuple(a.value if isinstance(a, Static) else a for a in args)

    def pull(self, f: Callable[..., Leaves]) -> Callable[[Leaves, Leaves], tuple[Leaves, Leaves]]:
        """Returns the function of leaves and output cotangents that gives a flat f's outputs and cotangents."""

        def run(leaves: Leaves, gs: Leaves) -> tuple[Leaves, Leaves]:
            ys, back = jax.vjp(f, *leaves)
            # A function may return one dtype whatever it is given.
            return ys, back(tuple(g if g.dtype == y.dtype else g.astype(y.dtype) for g, y in zip(gs, ys, strict=True)))

        return run

    @cached_property
    def eps(self) -> float:
        """The step between numbers near one of the coarsest dtype that the oracle casts to, where it is given float64.

        A function may compute in float32 whatever it is given: what it comes to is known to the digits of that.
        """
        try:
            with x64():
                program = jax.make_jaxpr(self.oracle)(*self.leaves(np.float64))
        except Exception:  # what the function raises is for the claims to report
            return float(np.finfo(np.float64).eps)
        return max(float(np.finfo(np.float64).eps), _coarsest(unclose(program)[0]))

    def digits(self, gap: float) -> float:
        """Returns what a relative gap in float64 is measured by: half the digits that the oracle has."""
        return HALF_THE_DIGITS if gap <= HALF_THE_DIGITS else float(np.sqrt(self.eps))

    def outputs(self, leaves: Leaves) -> tuple[jax.ShapeDtypeStruct, ...]:
        """Returns the shape and dtype of each floating output leaf."""
        return jax.eval_shape(self.call, *leaves)

    def cotangents(self, leaves: Leaves, seed: int = 0) -> Leaves:
        """Returns standard normal cotangents of the outputs, in their dtypes."""
        rng = np.random.default_rng((self.seed, 1, seed))
        return tuple(normal_of(rng, y.shape, y.dtype) for y in self.outputs(leaves))

    @cached_property
    def answers(self) -> Callable[[Leaves, Leaves], "Answers"]:
        """All answers at leaves and cotangents as one compiled program: compiling is what takes the time."""
        ours, theirs = self.pull(self.call), self.pull(self.oracle)

        def program(leaves: Leaves, gs: Leaves) -> Answers:
            return Answers(self.call(*leaves), *ours(leaves, gs), *theirs(leaves, gs))

        double = self.compiled(program)
        single = double if self.hurried else jax.jit(program)
        return lambda leaves, gs: (double if any(a.dtype == np.float64 for a in leaves) else single)(leaves, gs)

    def compiled(self, f: Callable[..., T]) -> Callable[..., T]:
        """Returns f jitted, and compiled without optimisation if the call is small: that takes less time in all."""
        return jax.jit(f, compiler_options=fast_compile_options() if self.small else None)

    @cached_property
    def small(self) -> bool:
        """Whether the call's arrays are so small that computing takes no time, however it is compiled."""
        return sum(np.size(leaf) for leaf in self._flat[0]) <= SMALL

    @cached_property
    def pullback(self) -> Callable[[Leaves, Leaves], tuple[Leaves, Leaves]]:
        """`pull` of the function alone, jitted, its results on the host."""
        if self.undifferentiable is None:
            return lambda leaves, gs: jax.tree.map(np.asarray, tuple(self.answers(leaves, gs)[1:3]))
        jitted = self.compiled(self.pull(self.call))
        return lambda leaves, gs: jax.tree.map(np.asarray, jitted(leaves, gs))

    @cached_property
    def undifferentiable(self) -> str | None:
        """Why JAX cannot differentiate the oracle, or None; None too where the function itself does not run."""
        leaves = self.leaves(np.float32)
        try:
            gs = self.cotangents(leaves)
        except Exception:  # that is the function's failure, which the claims report
            return None
        try:
            jax.eval_shape(self.pull(self.oracle), leaves, gs)
        except Exception as error:  # JAX has no one type for it
            return describe_error(error)
        return None

    @cached_property
    def runs(self) -> bool:
        """Whether function and oracle take a call that nobody made: they may have their reasons to refuse it."""
        leaves = self.leaves(np.float32)
        try:
            gs = self.cotangents(leaves)
            for f in (self.call, self.oracle):
                jax.eval_shape(self.pull(f), leaves, gs)
        except Exception:  # whatever a function raises at such a call
            return False
        return bool(gs)

    @cached_property
    def truths(self) -> Callable[[Leaves, Leaves], tuple[Leaves, Leaves]]:
        """The oracle's outputs and cotangents, in float64: of `answers`, if that need not be compiled twice."""
        alone = self.compiled(self.pull(self.oracle))
        if not self.small:
            return alone
        programs = [lambda leaves, gs: tuple(self.answers(leaves, gs)[3:]), alone]

        def run(leaves: Leaves, gs: Leaves) -> tuple[Leaves, Leaves]:
            if len(programs) == 2:
                try:
                    return programs[0](leaves, gs)
                except Exception:  # the function may not run in float64 where the oracle does
                    del programs[0]
            return programs[0](leaves, gs)

        return run

    def at(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], case: str) -> "CallUnderTest":
        """Returns the same subject at another call."""
        return replace(self, args=args, kwargs=kwargs, case=case)


def _coarsest(jaxpr: Any) -> float:
    """Returns the largest eps among the floating dtypes of 16 bits and more that a program casts wider ones to."""
    coarsest = 0.0
    for eqn in jaxpr.eqns:
        inner = programs(eqn.params)
        if not inner:
            given, made = ([e for v in part if (e := _eps_of(v.aval))] for part in (eqn.invars, eqn.outvars))
            coarsest = max([coarsest, *(e for e in made if given and e > min(given))])
        coarsest = max([coarsest, *(_coarsest(program) for _, program, _ in inner)])
    return coarsest


def _eps_of(aval: Any) -> float | None:
    dtype = getattr(aval, "dtype", None)
    if dtype is None or not jnp.issubdtype(dtype, jnp.inexact) or jnp.finfo(dtype).bits < 16:
        return None
    return float(jnp.finfo(dtype).eps)


def kind_of(own: Any, dtype: Any) -> Any:
    """Returns dtype, None for an array's own; for a complex array the complex dtype of as many bits to a part.

    Example:
        >>> kind_of(np.complex64, np.float64), kind_of(np.float32, None)
        (dtype('complex128'), <class 'numpy.float32'>)
    """
    if dtype is None:
        return own
    if not jnp.issubdtype(own, jnp.complexfloating):
        return dtype
    return np.dtype(np.complex128 if dtype == np.float64 else np.complex64)


def normal_of(rng: np.random.Generator, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Returns standard normal numbers, of both parts where the dtype is complex."""
    drawn = rng.standard_normal(shape)
    if jnp.issubdtype(dtype, jnp.complexfloating):
        drawn = drawn + 1j * rng.standard_normal(shape)
    return np.asarray(drawn).astype(dtype)


def as_taken_by_jax(leaf: Any) -> Any:
    """Returns an array in the dtype that JAX takes it in: 32 bits for 64 unless jax_enable_x64 is set.

    Example:
        >>> [as_taken_by_jax(x).dtype.name for x in (np.array([1, 2]), np.array([0.5]), 0.5)]
        ['int32', 'float32', 'float32']
    """
    array = leaf if hasattr(leaf, "dtype") else np.asarray(leaf)
    if jnp.issubdtype(array.dtype, jax.dtypes.extended):  # keys of random numbers
        return array
    dtype = jax.dtypes.canonicalize_dtype(array.dtype)
    return array if dtype == array.dtype else array.astype(dtype)


def parameters(fn: Callable[..., Any], count: int) -> list[str]:
    """Returns a name for each of count positional arguments."""
    try:
        parameters = inspect.signature(fn).parameters.values()
    except (TypeError, ValueError):  # built-in functions may have no signature
        parameters = ()
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    names = [p.name for p in parameters if p.kind in positional]
    return [names[i] if i < len(names) else f"args[{i}]" for i in range(count)]
