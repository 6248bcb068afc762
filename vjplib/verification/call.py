"""CallUnderTest: a function and one call of it, flattened to the leaves that can be differentiated."""

import inspect
import math
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple, Self, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from vjplib.compat import cost_of, fast_compile_options, is_key, strip_custom_rules, unclose, weakly_typed, x64
from vjplib.rule import Tail, second_derivatives
from vjplib.verification import domain as domains
from vjplib.verification.digits import coarsest_cast, coarsest_computed, eps_of, names_of
from vjplib.verification.report import describe_error
from vjplib.verification.tolerance import HALF_THE_DIGITS, to_float64

Leaves = tuple[Any, ...]
T = TypeVar("T")
SMALL = 100_000  # elements
FOLDED = 1_000  # elements of an array that a program may hold as a constant: the compiler folds what depends on it
SCALES = (1.0, 1e-3, 30.0)  # factors of the inputs at which values are compared


@jax.tree_util.register_static
class Static:
    """An argument that is no array, such as an axis or a function: a pytree without leaves."""

    def __init__(self, value: Any) -> None:
        self.value = value


class _Held(threading.local):
    """The tracers that stand for arrays while a program is traced that takes these as arguments, by their ids."""

    def __init__(self) -> None:
        self.tracers: Mapping[int, Any] = {}

    def get(self, leaf: Any) -> Any:
        """Return the tracer of an array that the program being traced takes as an argument; any other array itself."""
        return self.tracers.get(id(leaf), leaf)


_HELD = _Held()


class Program:
    """A jitted function of leaves and cotangents that takes other large arrays of a call as arguments too.

    Args:
        f: the function; while it is traced, tracers stand for these arrays.
        held: the arrays.
        options: of the compiler.
    """

    def __init__(self, f: Callable[..., Any], held: Leaves, options: Any) -> None:
        def run(arrays: Leaves, *args: Any) -> Any:
            before, _HELD.tracers = _HELD.tracers, {id(a): tracer for a, tracer in zip(held, arrays, strict=True)}
            try:
                return f(*args)
            finally:
                _HELD.tracers = before

        self.held, self.jitted = held, jax.jit(run, compiler_options=options)

    def __call__(self, *args: Any) -> Any:
        """Run the program."""
        return self.jitted(self.held, *args)

    def trace(self, *args: Any) -> Any:
        """Return the program as `jax.jit` traces it."""
        return self.jitted.trace(self.held, *args)


class ByPosition:
    """A function that takes some of another's keyword arguments as its last positional ones.

    Args:
        fn: the other function.
        keywords: the names of these arguments.
    """

    def __init__(self, fn: Callable[..., Any], keywords: Sequence[str]) -> None:
        self.fn, self.keywords = fn, tuple(keywords)
        self.__name__ = getattr(fn, "__name__", type(fn).__name__)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call fn."""
        count = len(args) - len(self.keywords)
        return self.fn(*args[:count], **dict(zip(self.keywords, args[count:], strict=True)), **kwargs)


class Answers(NamedTuple):
    """Outputs and cotangents of one call, the oracle's last; `primal` holds the function's outputs undifferentiated."""

    primal: Leaves
    ys: Leaves
    dxs: Leaves
    true_ys: Leaves
    true_dxs: Leaves

    @property
    def pairs(self) -> list[tuple[Any, Any]]:
        """Each output, then each cotangent, beside the oracle's."""
        return list(zip((*self.ys, *self.dxs), (*self.true_ys, *self.true_dxs), strict=True))


@dataclass(frozen=True)
class CallUnderTest:
    """A function, its oracle and one call.

    Args:
        fn: the function under examination.
        reference: the same function, differentiated by JAX; None for fn's own primal, custom rules stripped.
        args: positional arguments, any pytrees; leaves of a floating or complex dtype are differentiated, others not.
        kwargs: keyword arguments, not differentiated; `ByPosition` makes positional ones of those that are to be.
        seed: of every random number.
        order_two: whether second derivatives are offered, by mode if it is a mapping.
        communication: whether devices may send data that autodiff does not; False claims that they send none.
        axes: the sizes of the named axes that the function is mapped over, see `vjplib.verification.axes`.
        residuals: the bytes that the call is claimed to keep for the backward, or None.
        compared: the function that residuals are compared with; None for the oracle.
        sizes: the dimensions of the call that may be enlarged, by name.
        resize: takes other sizes for some of them; returns the arguments and array keyword arguments then, as
            `jax.ShapeDtypeStruct`.
        case: a name for the call.
        tails: makes a call whose exact cotangents are known of log-spaced numbers, or None; see `vjplib.rule.Rule`.
        base: a call with the same oracle, whose arguments differ in floating numbers alone: its compiled programs serve
            this call too, the oracle's and, if the function is the same, the function's.
        domain: the properties of the arguments that calls derived from this one keep; None for no property.
        vary: values that static arguments may take, by the names of the arguments.
        hurried: whether compiling may leave out optimisation in float32 too; in float64 it does, if the call is small.
        dtypes: the floating dtypes that the function takes, by name; None to find out about float32 and float64.
        found: what was found out about dtypes, which all calls derived from this one share.
        weak: the leaves of the arguments, by their numbers, that are Python numbers: they take their neighbours' dtype.
    """

    fn: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    reference: Callable[..., Any] | None = None
    seed: int = 0
    order_two: bool | Mapping[str, bool] = True
    communication: bool = True
    axes: Mapping[str, int] = field(default_factory=dict)
    residuals: int | None = None
    compared: Callable[..., Any] | None = None
    sizes: Mapping[str, int] = field(default_factory=dict)
    resize: Callable[[Mapping[str, int]], tuple[tuple[Any, ...], Mapping[str, Any]]] | None = None
    case: str = ""
    hurried: bool = False
    tails: Callable[[np.ndarray], Tail] | None = None
    domain: domains.Domain | None = None
    vary: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    base: "CallUnderTest | None" = field(default=None, repr=False)
    dtypes: tuple[str, ...] | None = None
    found: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)
    weak: frozenset[int] = frozenset()

    def offers(self, mode: str) -> bool:
        """Return True if second derivatives are offered in a mode, "reverse" or "forward", each over reverse."""
        return second_derivatives(self.order_two)[mode]

    def flat(self, f: Callable[..., Any]) -> Callable[..., Leaves]:
        """Return f at this call as a function of the differentiated leaves, to its floating output leaves."""
        return lambda *leaves: inexact(f(*self.rebuild(leaves), **self._keywords))

    @property
    def _keywords(self) -> Mapping[str, Any]:
        """The keyword arguments, with tracers for the arrays that the program being traced takes."""
        return jax.tree.map(_HELD.get, dict(self.kwargs)) if _HELD.tracers else self.kwargs

    @property
    def call(self) -> Callable[..., Leaves]:
        """The function under examination, flat; one object, so that JAX traces its shapes once.

        Not where programs take arrays as arguments: a trace that JAX keeps would hold tracers of another program.
        """
        return self.flat(self.fn) if self.held else self._call

    @cached_property
    def _call(self) -> Callable[..., Leaves]:
        return self.flat(self.fn)

    @cached_property
    def held(self) -> Leaves:
        """The large arrays that are not differentiated, which programs take as arguments.

        Empty where the function reads the numbers of a keyword argument, which must then stay a constant.
        """
        others = [leaf for i, leaf in enumerate(self._flat[0]) if i not in self.differentiable]
        large = (a for a in (*others, *jax.tree.leaves(dict(self.kwargs))) if is_array(a) and np.size(a) > FOLDED)
        found = tuple({id(a): a for a in large if not is_key(a)}.values())
        if not found or any(isinstance(a, Tracer) for a in (*self._flat[0], *found)):  # or traced already
            return ()
        leaves, ours = self.cast(), self.pull(self._call)

        def traced(program: Any) -> Any:
            return attempt(lambda: program.trace(leaves, jax.eval_shape(self._call, *leaves)))

        refused = isinstance(traced(Program(ours, found, None)), Exception)
        return () if refused and not isinstance(traced(jax.jit(ours)), Exception) else found

    @property
    def oracle(self) -> Callable[..., Leaves]:
        """The reference, or the function's primal with every custom rule stripped, flat."""
        return strip_custom_rules(self.call) if self.reference is None else self.flat(self.reference)

    @cached_property
    def _flat(self) -> tuple[list[Any], Any]:
        return jax.tree.flatten(self.args)

    @cached_property
    def differentiable(self) -> tuple[int, ...]:
        """The positions of the differentiated leaves among all leaves of the arguments."""
        return tuple(i for i, leaf in enumerate(self._flat[0]) if is_inexact(leaf))

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The name of each differentiated leaf, by the function's signature."""
        named = parameters(self.fn, len(self.args))
        paths = [path for path, _ in jax.tree.leaves_with_path(self.args)]
        return tuple(named[paths[i][0].idx] + jax.tree_util.keystr(paths[i][1:]) for i in self.differentiable)

    def leaves(self, dtype: Any = None, scale: float = 1.0) -> Leaves:
        """Return the differentiated leaves, times scale, in a dtype (their own for None), as NumPy arrays.

        float64 stands for `widest`, float32 for `working`: what a function refuses is not asked of it.
        """
        if dtype is not None and dtype in (np.float32, np.float64):
            dtype = self.widest if dtype == np.float64 else self.working
        return self.cast(dtype, scale)

    def cast(self, dtype: Any = None, scale: float = 1.0) -> Leaves:
        """Return the differentiated leaves, times scale, in this very dtype (their own for None), as NumPy arrays."""
        picked = (np.asarray(self._flat[0][i]) for i in self.differentiable)
        if self.domain is not None and dtype == np.float64 and scale == 1:
            picked = (self._restored(i, leaf) for i, leaf in zip(self.differentiable, picked, strict=True))
        with np.errstate(over="ignore", under="ignore"):  # scaled in float64: half precision would overflow first
            return tuple(
                (leaf.astype(kind_of(leaf.dtype, np.float64)) * scale).astype(kind_of(leaf.dtype, dtype))
                for leaf in picked
            )

    def _restored(self, i: int, leaf: np.ndarray) -> np.ndarray:
        """Return a leaf in float64 whose properties hold to float64's digits."""
        assert self.domain is not None
        return leaf if np.iscomplexobj(leaf) else self.domain.restored(i, leaf.astype(np.float64))

    @cached_property
    def complex(self) -> bool:
        """True if a differentiated argument or output is complex."""
        leaves = self.leaves()
        return any(map(np.iscomplexobj, (*leaves, *self.outputs(leaves))))

    def rebuild(self, leaves: Sequence[Any]) -> tuple[Any, ...]:
        """Return the positional arguments with these differentiated leaves in place."""
        given = enumerate(self._flat[0])
        own = [leaf if i in self.differentiable else jnp.asarray(_HELD.get(leaf)) for i, leaf in given]
        combined = combine(own, self.differentiable, leaves)
        for i in self.weak:  # in half precision all leaves have one dtype, and a weak one would be float32
            if jnp.finfo(combined[i].dtype).bits >= 32:
                combined[i] = weakly_typed(jnp.asarray(combined[i]))
        return unwrap(jax.tree.unflatten(self._flat[1], combined))

    def whole(self, leaves: Sequence[Any]) -> Any:
        """Return the function's output, integers and structure included."""
        return self.fn(*self.rebuild(leaves), **self._keywords)

    def pull(self, f: Callable[..., Leaves]) -> Callable[[Leaves, Leaves], tuple[Leaves, Leaves]]:
        """Return the function of leaves and output cotangents that gives a flat f's outputs and cotangents."""

        def run(leaves: Leaves, gs: Leaves) -> tuple[Leaves, Leaves]:
            ys, back = jax.vjp(f, *leaves)
            # A function may return one dtype for inputs of every dtype.
            return ys, back(tuple(g if g.dtype == y.dtype else g.astype(y.dtype) for g, y in zip(gs, ys, strict=True)))

        return run

    @property
    def working(self) -> Any:
        """float32, in which numbers are compared; for a function that refuses it the dtypes of the call, as None."""
        if self.base is not None:
            return self.base.working
        if "working" not in self.found:
            self.found["working"] = self._working()
        return self.found["working"]

    def _working(self) -> Any:
        own = names_of(self.cast())
        if self.dtypes is not None and "float32" not in self.dtypes:
            return None if own <= set(self.dtypes) else jnp.dtype(self.dtypes[0])
        if self.dtypes is not None or own == {"float32"}:
            return np.float32
        refused = [isinstance(self._traced_in(dtype), Exception) for dtype in (np.float32, None)]
        return None if refused == [True, False] else np.float32

    def _traced_in(self, dtype: Any) -> Any:
        """Return the jaxpr of the function's pullback in a dtype, or what it raises."""
        leaves = self.cast(dtype)
        return attempt(lambda: jax.make_jaxpr(self.pull(self.call))(leaves, self.cotangents(leaves)))

    @property
    def widest(self) -> Any:
        """float64; `working` for a function or an oracle that refuses float64, or is another function there."""
        if self.base is not None:
            return self.base.widest
        if self.dtypes is not None:
            return np.float64 if "float64" in self.dtypes else self.working
        return np.float64 if self.refusal is None else self.working

    @property
    def refusal(self) -> str | None:
        """Why the call is not compared in float64 but in `working`, or None.

        Kernels are written for some dtypes, and a trick with the bits of float32 gives other shapes, or the wrong
        dtype, for other bits. None too where `working` is refused as well: the claims report that.
        """
        if self.base is not None:
            return self.base.refusal
        if "refusal" not in self.found:
            self.found["refusal"] = self._refusal()
        return self.found["refusal"]

    def _refusal(self) -> str | None:
        narrow = self.traced[0]
        if isinstance(narrow, str | None):
            return None
        count = len(narrow.out_avals) - len(self.differentiable)
        with x64():
            leaves = self.cast(np.float64)
            found = attempt(lambda: self._lowered(leaves, self.cotangents(leaves)))
        if isinstance(found, Exception):
            return describe_error(found)
        ys, dxs = found
        if [y.shape for y in ys] != [y.shape for y in narrow.out_avals[:count]]:
            return "its outputs have other shapes"
        single = zip(narrow.out_avals[count:], self.leaves(np.float32), strict=True)
        if any(dx.dtype != x.dtype for dx, x in zip(dxs, leaves, strict=True)):
            return "a cotangent is of another dtype" if all(dx.dtype == x.dtype for dx, x in single) else None
        return None

    def _lowered(self, leaves: Leaves, gs: Leaves) -> tuple[Any, Any]:
        """Return outputs and cotangents as shapes and dtypes; raise what JAX does until it would compile the program.

        It is the program that the claims run, so that it is traced but once.
        """
        if self.undifferentiable is not None:
            traced = self._jitted(self.pull(self.call)).trace(leaves, gs)
            ys, dxs = traced.out_info
        else:
            traced = self._compared[0].trace(leaves, gs)
            ys, dxs = traced.out_info[1:3]
        traced.lower()
        return ys, dxs

    @property
    def compared_in(self) -> str:
        """The name of the dtype that is compared to half the digits."""
        names = names_of(self.leaves(np.float64))
        return names.pop() if len(names) == 1 else "the dtypes of the call"

    @property
    def coarse_oracle(self) -> bool:
        """True if the oracle refuses float64 as the function does, so that it is known in `working` alone."""
        if self.base is not None:
            return self.base.coarse_oracle
        if self.widest == np.float64:
            return False
        if "coarse_oracle" not in self.found:
            self.found["coarse_oracle"] = self._coarse_oracle()
        return self.found["coarse_oracle"]

    def _coarse_oracle(self) -> bool:
        wanted = [y.shape for y in self.outputs(self.leaves(np.float32))]

        def shapes() -> list[Any]:
            leaves = self.cast(np.float64)
            gs = jax.eval_shape(self.oracle, *leaves)
            jax.eval_shape(self.pull(self.oracle), leaves, gs)
            return [g.shape for g in gs]

        with x64():
            return attempt(shapes) != wanted

    @cached_property
    def eps(self) -> float:
        """The step between numbers near one of the coarsest dtype that numbers are compared in, or the oracle casts to.

        A function may compute in float32 whatever its inputs: then its results are known to float32's digits only.
        """
        known = max(map(eps_of, self.leaves(np.float64)), default=float(np.finfo(np.float64).eps))
        return max(known, coarsest_cast(self._program_of_oracle))

    @cached_property
    def eps_elsewhere(self) -> float:
        """`eps`, or that of numbers that the oracle computes in fewer bits and casts up, such as noise in float32.

        Within one program these are the same for function and oracle; another program may round them differently.
        """
        return max(self.eps, coarsest_computed(self._program_of_oracle))

    @cached_property
    def _program_of_oracle(self) -> Any:
        """The oracle's jaxpr in float64, where it takes that; None if it raises, which the claims report."""
        with x64():
            leaves = self.cast(self.working if self.coarse_oracle else np.float64)
            program = attempt(lambda: jax.make_jaxpr(self.oracle)(*leaves))
        return None if isinstance(program, Exception) else unclose(program)[0]

    def digits(self, gap: float, elsewhere: bool = False) -> float:
        """Return the relative gap in `widest` that is tolerated: half the digits that the oracle has there.

        `elsewhere` is true where the gap lies between two programs, and either may round.
        """
        if gap <= HALF_THE_DIGITS:
            return HALF_THE_DIGITS
        return float(np.sqrt(self.eps_elsewhere if elsewhere else self.eps))

    def ratio(self, gap: float, elsewhere: bool = False) -> float:
        """Return a relative gap in `widest` in units of the tolerated one."""
        return gap / self.digits(gap, elsewhere)

    def outputs(self, leaves: Leaves) -> tuple[jax.ShapeDtypeStruct, ...]:
        """Return the shape and dtype of each floating output leaf."""
        return jax.eval_shape(self.call, *leaves)

    def cotangents(self, leaves: Leaves, seed: int = 0) -> Leaves:
        """Return standard normal cotangents of the outputs, in their dtypes."""
        rng = np.random.default_rng((self.seed, 1, seed))
        return tuple(normal_of(rng, y.shape, y.dtype) for y in self.outputs(leaves))

    def point(self, dtype: Any = None, seed: int = 0, scale: float = 1.0) -> tuple[Leaves, Leaves]:
        """Return the leaves, as `leaves` does, and `cotangents` there."""
        leaves = self.leaves(dtype, scale)
        return leaves, self.cotangents(leaves, seed)

    @cached_property
    def answers(self) -> Callable[[Leaves, Leaves], "Answers"]:
        """All answers at leaves and cotangents as one compiled program, for compiling takes most of the time."""
        if self.base is not None:
            return self.base.answers if self.base.fn is self.fn else self._beside(self.base.answers)
        double, single = self._compared
        return self.fitted(
            lambda leaves, gs: (double if any(a.dtype == np.float64 for a in leaves) else single)(leaves, gs)
        )

    @cached_property
    def _compared(self) -> tuple[Any, Any]:
        """The program of all answers, compiled for float64, and for other dtypes."""
        ours, theirs = self.pull(self.call), self.pull(self.oracle)

        def program(leaves: Leaves, gs: Leaves) -> Answers:
            return Answers(self.call(*leaves), *ours(leaves, gs), *theirs(leaves, gs))

        double = self.compiled(program)
        return double, double if self.hurried else self._jitted(program)

    def fitted(self, run: Callable[[Leaves, Leaves], T]) -> Callable[[Leaves, Leaves], T]:
        """Return run for leaves and cotangents in float64 too, which are rounded to `widest`; results are float64."""

        def rounded(leaves: Leaves, gs: Leaves) -> T:
            if self.widest == np.float64 or not names_of((*leaves, *gs)) & {"float64"}:
                return run(leaves, gs)
            like = self.point(np.float64)
            given = jax.tree.map(lambda a, b: np.asarray(a).astype(b.dtype), (leaves, gs), like)
            return jax.tree.map(lambda a: to_float64(np.asarray(a)), run(*given))

        return rounded

    def answers_at(self, leaves: Leaves, gs: Leaves) -> Answers:
        """Return all answers, as NumPy arrays."""
        return jax.tree.map(np.asarray, self.answers(leaves, gs))

    def _beside(self, of_base: Callable[[Leaves, Leaves], "Answers"]) -> Callable[[Leaves, Leaves], "Answers"]:
        """Return the base's answers with this function's outputs and cotangents."""
        ours = self.fitted(self.compiled(self.pull(self.call)))

        def run(leaves: Leaves, gs: Leaves) -> Answers:
            ys, dxs = ours(leaves, gs)
            return of_base(leaves, gs)._replace(ys=ys, dxs=dxs)

        return run

    def compiled(self, f: Callable[..., T]) -> Callable[..., T]:
        """Return f jitted, without optimisation if the call is small: compiling and running then take less in all."""
        return self._jitted(f, fast_compile_options() if self.small else None)

    def _jitted(self, f: Callable[..., Any], options: Any = None) -> Any:
        return Program(f, self.held, options) if self.held else jax.jit(f, compiler_options=options)

    @cached_property
    def small(self) -> bool:
        """True if the arrays are so small that compiling takes longer than computing, optimised or not."""
        return sum(np.size(leaf) for leaf in self._flat[0]) <= SMALL

    @cached_property
    def reduced(self) -> Self:
        """The call with its longest axes halved until it is `small`; the call itself where that is refused."""
        sizes = dict(self.sizes)
        while not self.small and max(sizes.values(), default=1) > 1:
            longest = max(sizes, key=lambda name: sizes[name])
            sizes[longest] = -(-sizes[longest] // 2)
            changed = {name: n for name, n in sizes.items() if n < self.sizes[name]}
            avals = attempt(lambda changed=changed: self.resize and self.resize(changed))
            if isinstance(avals, Exception) or avals is None:
                break
            if sum(math.prod(aval.shape) for aval in jax.tree.leaves(avals)) <= SMALL:
                made = ", ".join(f"{name} made {n}" for name, n in changed.items())
                return self.resized(changed, " ".join(filter(None, (self.case, made)))) or self
        return self

    @cached_property
    def widened(self) -> Self | None:
        """The call with three elements along each axis of fewer; None without such an axis.

        The norm of one number has a slope of 0, and so has that of two less their mean: there all terms cancel.
        """
        short = {name: 3 for name, n in self.sizes.items() if 0 < n < 3}
        made = ", ".join(f"{name} made {n}" for name, n in short.items())
        return self.resized(short, " ".join(filter(None, (self.case, made))))

    @cached_property
    def pullback(self) -> Callable[[Leaves, Leaves], tuple[Leaves, Leaves]]:
        """`pull` of the function alone, jitted, its results as NumPy arrays."""
        if self.undifferentiable is None:
            return lambda leaves, gs: self.answers_at(leaves, gs)[1:3]
        jitted = self.fitted(self.compiled(self.pull(self.call)))
        return lambda leaves, gs: jax.tree.map(np.asarray, jitted(leaves, gs))

    @cached_property
    def traced(self) -> tuple[Any, Any]:
        """The jaxprs of the function's and of the oracle's pullback in float32; for one that raises, the error as text.

        Both are None where the function itself does not run: the claims report that.
        """
        leaves = self.leaves(np.float32)
        gs = attempt(lambda: self.cotangents(leaves))
        if isinstance(gs, Exception):
            return None, None
        both = [attempt(lambda f=f: jax.make_jaxpr(self.pull(f))(leaves, gs)) for f in (self.call, self.oracle)]
        ours, theirs = (describe_error(p) if isinstance(p, Exception) else p for p in both)
        return ours, theirs

    @cached_property
    def too_large(self) -> str | None:
        """Why the call does not fit into free memory, or None; the call is traced and not computed."""
        if any(isinstance(program, str | None) for program in self.traced):  # the claims report what fn raises
            return None
        largest = [cost_of(unclose(program)[0]).largest for program in self.traced]
        needed, free = 8 * max(largest), _free_memory()  # bytes, in float64
        if needed <= free / 2:
            return None
        whose = "the function" if largest[0] >= largest[1] else "autodiff of the reference"
        return (
            f"{whose} forms an array of {max(largest):,} elements, {needed / 1e9:.0f} GB in float64, and "
            f"{free / 1e9:.0f} GB are free: nothing was computed"
        )

    @property
    def undifferentiable(self) -> str | None:
        """Why JAX cannot differentiate the oracle, or None; None too where the function itself does not run."""
        if self.base is not None:
            return self.base.undifferentiable
        return self.traced[1] if isinstance(self.traced[1], str) else None

    @property
    def runs(self) -> bool:
        """True if function and oracle accept this call: the user did not make it, and they may refuse it."""
        return self.accepted and not isinstance(self.traced[0], str)

    @property
    def accepted(self) -> bool:
        """True if the oracle and the function, undifferentiated, accept this call; its passes may still refuse it."""
        accepts = not isinstance(self.traced[1], str | None)
        return accepts and bool(self.outputs(self.leaves(np.float32)))

    @cached_property
    def truths(self) -> Callable[[Leaves, Leaves], tuple[Leaves, Leaves]]:
        """The oracle's outputs and cotangents, in float64: of `answers` where that saves compiling the oracle again."""
        if self.base is not None:
            return self.base.truths
        alone = self.compiled(self.pull(self.oracle))
        if self.coarse_oracle:
            return self.fitted(alone)
        if not self.small or self.widest != np.float64:
            return alone
        programs = [alone, lambda leaves, gs: self.answers(leaves, gs)[3:]]

        def run(leaves: Leaves, gs: Leaves) -> tuple[Leaves, Leaves]:
            found = attempt(lambda: programs[-1](leaves, gs))
            if isinstance(found, Exception):  # the function may not run in float64 where the oracle does
                del programs[1:]
                return alone(leaves, gs)
            return found

        return run

    def at(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], case: str) -> Self:
        """Return the function at another call, the base too."""
        base = self.base.at(args, kwargs, case) if self.base is not None else None
        return replace(self, args=args, kwargs=kwargs, case=case, base=base)

    def resized(
        self, sizes: Mapping[str, int], case: str = "", static: Mapping[str, Any] | None = None, refusing: bool = False
    ) -> Self | None:
        """Return the call with other sizes, its numbers repeated or cut off; None where function or oracle refuses.

        Args:
            sizes: the new sizes, by name.
            case: a name for the new call.
            static: other values of static arguments, by name.
            refusing: whether a call counts that only the passes refuse, not the function itself.

        Arrays keep the properties that the domain names; where none of the new size has them, there is no such call.
        """
        if self.resize is None or not sizes:
            return None
        smaller = any(n < self.sizes[name] for name, n in sizes.items())

        def fill(value: Any, aval: Any) -> Any:
            if np.shape(value) == aval.shape and not smaller:
                return value
            new = np.resize(np.asarray(value), aval.shape)
            inside = smaller and new.size and np.issubdtype(new.dtype, np.integer)
            return new % max(1, min(aval.shape, default=1)) if inside else new  # integers may index an axis

        try:
            avals, drawn = self.resize(sizes)
            if self.domain is None:
                args = jax.tree.map(fill, self.args, avals)
            elif self.domain.draw is not None:
                of = {self.sizes[name]: n for name, n in sizes.items()}
                args = self.domain.redrawn(self.args, (self.seed, 10, *sizes.values()), of)
            else:
                args = self._resized(self.domain, avals, smaller)
            kwargs = {**self.kwargs, **{k: fill(self.kwargs[k], aval) for k, aval in drawn.items()}}
            other = replace(self, args=args, kwargs=kwargs, case=case or self.case, base=None)
            other = other.with_static(static or {})
            return other if (other.accepted if refusing else other.runs) else None
        except Exception:  # a function may refuse, in whatever way, sizes that nobody called it with
            return None

    def _resized(self, domain: domains.Domain, avals: Any, smaller: bool) -> tuple[Any, ...]:
        """Return the arguments at other sizes with the properties that they have."""
        new = [aval.shape for aval in jax.tree.leaves(avals)]
        indexed = [
            (n, m) for a, shape in zip(self._flat[0], new, strict=True) for n, m in zip(np.shape(a), shape, strict=True)
        ]
        made = []
        for i, (a, shape) in enumerate(zip(self._flat[0], new, strict=True)):
            integers = not is_key(a) and jnp.issubdtype(jnp.result_type(a), jnp.integer)
            most = int(np.max(np.asarray(a), initial=0)) if integers else 0
            # An axis that they index is longer than the largest of them.
            below = min((m for n, m in indexed if n > most), default=most + 1)
            rng = np.random.default_rng((self.seed, 7, i))
            made.append(domains.resized(a, shape, domain.of(i), rng, smaller, below))
        return jax.tree.unflatten(self._flat[1], made)

    @property
    def static(self) -> dict[str, Any]:
        """The values of the arguments that are no arrays, by name."""
        names = parameters(self.fn, len(self.args))
        found = {names[i]: a.value for i, a in enumerate(self.args) if isinstance(a, Static)}
        return found | {k: v for k, v in self.kwargs.items() if not any(map(is_array, jax.tree.leaves(v)))}

    def with_static(self, values: Mapping[str, Any], case: str = "") -> Self:
        """Return the call with other values of static arguments."""
        if not values:
            return self
        names = parameters(self.fn, len(self.args))
        args = tuple(
            Static(values[name]) if isinstance(a, Static) and name in values else a
            for name, a in zip(names, self.args, strict=True)
        )
        return self.at(args, {k: values.get(k, v) for k, v in self.kwargs.items()}, case or self.case)


def _free_memory() -> float:
    """Return the bytes of free memory, infinity where the system has no /proc/meminfo."""
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            return next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration, ValueError):
        return math.inf


def attempt(run: Callable[[], T]) -> T | Exception:
    """Return what run returns, or what it raises: a function under examination may raise anything."""
    try:
        return run()
    except Exception as error:
        return error


def attempt_all(
    run: Callable[[Sequence[str]], Mapping[str, Any]], traces: Mapping[str, Callable[[], Any]]
) -> dict[str, Any]:
    """Return the results of run(names) by name, all that can be traced at once, and what the others raise.

    If run raises for all names, each is traced alone, and run again without those that raise; if it still does, each
    is tried alone.
    """
    results = attempt(lambda: run(list(traces)))
    if not isinstance(results, Exception):
        return dict(results)
    raised = {name: error for name, trace in traces.items() if isinstance(error := attempt(trace), Exception)}
    names = [name for name in traces if name not in raised]
    if raised:
        results = attempt(lambda: run(names)) if names else {}
    if isinstance(results, Exception):
        results = {name: attempt(lambda name=name: run([name])[name]) for name in names}
    return {**raised, **results}


def is_array(leaf: Any) -> bool:
    """Return True for arrays and NumPy's numbers."""
    return hasattr(leaf, "dtype") and hasattr(leaf, "shape")


def is_inexact(leaf: Any) -> bool:
    """Return True for floating and complex numbers."""
    return jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)


def inexact(tree: Any) -> Leaves:
    """Return the floating and complex leaves of a pytree."""
    return tuple(filter(is_inexact, jax.tree.leaves(tree)))


def unwrap(args: Sequence[Any]) -> tuple[Any, ...]:
    """Return arguments with each `Static` replaced by its value."""
    return tuple(a.value if isinstance(a, Static) else a for a in args)


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


def kind_of(own: Any, dtype: Any) -> Any:
    """Return dtype, or own if it is None; for a complex array the complex dtype whose parts have that many bits.

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
    """Return standard normal numbers; of a complex dtype, both parts are."""
    drawn = rng.standard_normal(shape)
    if jnp.issubdtype(dtype, jnp.complexfloating):
        drawn = drawn + 1j * rng.standard_normal(shape)
    return np.asarray(drawn).astype(dtype)


def as_taken_by_jax(leaf: Any) -> Any:
    """Return an array in the dtype that JAX converts it to: 32 bits for 64 unless jax_enable_x64 is set.

    Example:
        >>> [as_taken_by_jax(x).dtype.name for x in (np.array([1, 2]), np.array([0.5]), 0.5)]
        ['int32', 'float32', 'float32']
    """
    array = leaf if hasattr(leaf, "dtype") else np.asarray(leaf)
    if is_key(array):
        return array
    dtype = jax.dtypes.canonicalize_dtype(array.dtype)
    return array if dtype == array.dtype else array.astype(dtype)


def parameters(fn: Callable[..., Any], count: int) -> list[str]:
    """Return a name for each of count positional arguments."""
    if isinstance(fn, ByPosition):
        return [*parameters(fn.fn, count - len(fn.keywords)), *fn.keywords]
    try:
        signature = inspect.signature(fn).parameters.values()
    except (TypeError, ValueError):  # built-in functions may have no signature
        signature = ()
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    names = [p.name for p in signature if p.kind in positional]
    return [names[i] if i < len(names) else f"args[{i}]" for i in range(count)]
