"""Rule: the record that each rule file ends with, and `find`, which finds the records.

Verification, pytest, bench and the documentation read them.

Authors write inputs, the library writes assertions: a record holds a rule's function, the reference it must equal, the
baselines that users would otherwise call, and the calls to test. Shapes are strings of dimension names, as in
jaxtyping, so that one `Case` gives a concrete call, calls at random sizes, a symbolic call and a benchmark.
"""

import difflib
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, NamedTuple

import jax
import numpy as np

Dims = Mapping[str, int]
Draw = Callable[[np.random.Generator, tuple[int, ...], Dims], np.ndarray]


def normal(rng: np.random.Generator, shape: tuple[int, ...], dims: Dims) -> np.ndarray:
    """Return standard normal numbers; the draw of an argument given as a plain string."""
    return rng.standard_normal(shape)


class Input(NamedTuple):
    """One array argument of a case: its shape in dimension names, and how its numbers are drawn.

    Floating numbers are cast to the dtype under test; integers and booleans are passed as drawn.

    Args:
        shape: names and integers separated by spaces: `"b n"`, `"n 3"`, `""` for a scalar.
        draw: a function of a NumPy generator, the concrete shape and the sizes of all dimensions; returns the array.
    """

    shape: str
    draw: Draw = normal


def index_below(dimension: str) -> Draw:
    """Return a draw of int32 indices into a dimension: `Input("b", index_below("n"))` are labels of n classes."""
    return lambda rng, shape, dims: rng.integers(0, dims[dimension], shape, dtype=np.int32)


def random_mask(rng: np.random.Generator, shape: tuple[int, ...], dims: Dims) -> np.ndarray:
    """Return a boolean mask, True for about two thirds of the elements and for the first of each row."""
    mask = rng.random(shape) < 2 / 3
    mask[..., :1] = True
    return mask


def distribution(rng: np.random.Generator, shape: tuple[int, ...], dims: Dims) -> np.ndarray:
    """Return probability vectors along the last axis, drawn uniformly from the simplex."""
    weights = rng.exponential(size=shape)
    return weights / np.maximum(weights.sum(-1, keepdims=True), np.finfo(np.float64).tiny)


class Arguments(NamedTuple):
    """The concrete positional and keyword arguments of one call."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]


@dataclass(frozen=True)
class Case:
    """A family of calls with different sizes and numbers.

    Args:
        inputs: one `Input`, or only its shape, for each positional argument; None is passed as None.
        dims: the size of each named dimension; pairwise distinct primes reveal a swapped axis.
        kwargs: keyword arguments, not differentiated; an `Input` among them is drawn.
        fixed: dimensions that keep their size when sizes are varied (kernel lengths that unroll a loop).
        valid: a function of the sizes; False for sizes that the rule refuses.
        growth: whether to measure the case at growing sizes.
        label: a name for tables of benchmarks, where sizes alone are not clear.

    Example:
        >>> case = Case(("b n", Input("b", index_below("n"))), {"b": 2, "n": 5})
        >>> [a.shape for a in case.call(np.random.default_rng(0)).args]
        [(2, 5), (2,)]
    """

    inputs: tuple[Input | str | None, ...]
    dims: Dims
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    fixed: tuple[str, ...] = ()
    valid: Callable[..., bool] = lambda **dims: True
    growth: bool = True
    label: str = ""

    def __post_init__(self) -> None:
        if missing := sorted({n for s in self.shapes if s for n in s.split() if not n.isdigit()} - set(self.dims)):
            raise ValueError(f"dims must give the size of every dimension that inputs name, lacks {missing}")

    @property
    def name(self) -> str:
        """The label, or the sizes of the named dimensions."""
        return self.label or " ".join(f"{name}={n}" for name, n in self.dims.items()) or "scalars"

    @property
    def arrays(self) -> tuple[Input | None, ...]:
        """The inputs, with plain strings converted to `Input`."""
        return tuple(Input(i) if isinstance(i, str) else i for i in self.inputs)

    @property
    def shapes(self) -> tuple[str | None, ...]:
        """The shape of each input in dimension names."""
        return tuple(i.shape if i else None for i in self.arrays)

    def call(self, rng: np.random.Generator, dtype: Any = np.float32, scale: float = 1.0, **sizes: int) -> Arguments:
        """Return concrete arguments, floating ones scaled and cast to dtype, at these sizes in place of `dims`."""
        dims = {**self.dims, **sizes}
        args = tuple(i and _array(i, rng, dims, dtype, scale) for i in self.arrays)
        drawn = {k: _array(v, rng, dims, dtype, scale) for k, v in self.kwargs.items() if isinstance(v, Input)}
        return Arguments(args, {**self.kwargs, **drawn})

    def avals(self, dims: Dims, dtype: Any = np.float32) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the shapes and dtypes of the arguments and of the drawn keyword arguments at these sizes."""
        drawn = self.call(np.random.default_rng(0), dtype)

        def aval(i: Input, value: np.ndarray) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(_concrete(i.shape, dims), value.dtype)

        args = tuple(i and aval(i, value) for i, value in zip(self.arrays, drawn.args, strict=True))
        return args, {k: aval(v, drawn.kwargs[k]) for k, v in self.kwargs.items() if isinstance(v, Input)}

    def sizes(self, rng: np.random.Generator, largest: int = 9) -> dict[str, int]:
        """Return random valid sizes from 1 to the largest; those in `fixed` stay."""
        while True:
            drawn = {d: n if d in self.fixed else int(rng.integers(1, largest + 1)) for d, n in self.dims.items()}
            if self.valid(**drawn):
                return drawn


def _concrete(shape: str, dims: Dims) -> tuple[int, ...]:
    return tuple(int(name) if name.isdigit() else dims[name] for name in shape.split())


def _array(i: Input, rng: np.random.Generator, dims: Dims, dtype: Any, scale: float) -> np.ndarray:
    drawn = np.asarray(i.draw(rng, _concrete(i.shape, dims), dims))
    if not np.issubdtype(drawn.dtype, np.floating):
        return drawn
    return (drawn * scale).astype(dtype)


class Edge(NamedTuple):
    """A named input at which derivatives are easily wrong: a zero, a tie, an infinity, a mask that excludes all.

    Args:
        name: a description of the input, for the report.
        args: positional arguments; floating ones are cast to the dtype under test.
        kwargs: keyword arguments.
    """

    name: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any] = {}


class Scaling(NamedTuple):
    """A function to time at growing sizes, to fit the exponent of its cost."""

    fn: Callable[..., Any]
    case: Case  # its own size of the growing dimension is ignored
    sizes: tuple[str, tuple[int, ...]]  # the name of the growing dimension, and at least two sizes


class Tail(NamedTuple):
    """A call whose cotangents are known to full relative accuracy, however small they are."""

    args: tuple[np.ndarray, ...]  # floating ones are cast to the dtype under test, and must be exact in it
    g: np.ndarray  # the cotangent of the output
    exact: tuple[np.ndarray, ...]  # that of each floating argument, in float64, computed without cancellation


QUANTITIES = ("kept bytes", "scratch bytes", "time", "error")
"""The quantities of a `Gain`."""


@dataclass(frozen=True)
class Gain:
    """A quantity that is smaller for a rule than for autodiff of a baseline; `vjplib bench --reasons` measures it.

    Args:
        quantity: "kept bytes" between forward and backward; "scratch bytes" or "time" of a compiled program of both
            that returns the output; or the largest relative "error": at an edge or a case of an output or cotangent,
            relative to its largest entry, where NaN is an infinite error; otherwise of a component of a cotangent in
            the record's tails.
        at_most: the largest multiple of the baseline's quantity that the rule's may be, below 1.
        at: the call to measure, a case or an edge, or the name of a benchmark case or an edge of the record; None for
            the record's first benchmark case, or for its tails if the quantity is the error. At an edge only the error
            is measured.
        baseline: the name of the baseline; "" for the record's first.
        dtype: the floating dtype of the call.
        platform: the platform on which time and scratch bytes are claimed; on others they are not measured.

    Example:
        >>> Gain("kept bytes", 0.34).at_most
        0.34
        >>> Gain("speed", 0.5)
        Traceback (most recent call last):
        ValueError: quantity must be one of kept bytes, scratch bytes, time, error, got 'speed'
    """

    quantity: str
    at_most: float
    at: Case | Edge | str | None = None
    baseline: str = ""
    dtype: str = "float32"
    platform: str = "cpu"

    def __post_init__(self) -> None:
        if self.quantity not in QUANTITIES:
            raise ValueError(f"quantity must be one of {', '.join(QUANTITIES)}, got {self.quantity!r}")
        if not 0 <= self.at_most < 1:
            raise ValueError(f"at_most must be at least 0 and below 1, got {self.at_most}")
        if isinstance(self.at, Edge) and self.quantity != "error":
            raise ValueError(f"at must be a case, as only the error is measured at an edge, got {self.at.name!r}")


MODES_TWO = ("reverse", "forward")
"""The modes of second derivatives, each over reverse, as `order_two` names them."""


def second_derivatives(order_two: Any) -> dict[str, bool]:
    """Return whether each mode of second derivatives is offered, as `order_two` of a record or of `verify` says.

    A mode that a mapping does not name is offered.

    Raises:
        TypeError: it is neither a bool nor a mapping of modes to bools.
        ValueError: a mapping names another mode.

    Example:
        >>> second_derivatives(False), second_derivatives({"reverse": False})
        ({'reverse': False, 'forward': False}, {'reverse': False, 'forward': True})
    """
    if isinstance(order_two, bool):
        return dict.fromkeys(MODES_TWO, order_two)
    if not isinstance(order_two, Mapping) or not all(isinstance(offered, bool) for offered in order_two.values()):
        expected = "True, False or a mapping such as {'reverse': False, 'forward': True}"
        raise TypeError(f"order_two must be {expected}, got {order_two!r}")
    if unknown := [mode for mode in order_two if mode not in MODES_TWO]:
        raise ValueError(f"order_two must name modes among {', '.join(MODES_TWO)}, got {', '.join(map(repr, unknown))}")
    return dict.fromkeys(MODES_TWO, True) | dict(order_two)


def check_axes(axes: Any) -> dict[str, int]:
    """Return the sizes of named axes, by name.

    Raises:
        TypeError: it is no mapping.
        ValueError: a size is no positive integer.

    Example:
        >>> check_axes({"i": 4}), check_axes(None)
        ({'i': 4}, {})
        >>> check_axes({"i": 0})
        Traceback (most recent call last):
        ValueError: axes must give each named axis a size of at least 1, got {'i': 0}
    """
    if axes is None:
        return {}
    if not isinstance(axes, Mapping):
        raise TypeError(f"axes must map the names of axes to their sizes, such as {{'i': 4}}, got {axes!r}")
    if not all(isinstance(n, (int, np.integer)) and not isinstance(n, bool) and n >= 1 for n in axes.values()):
        raise ValueError(f"axes must give each named axis a size of at least 1, got {dict(axes)!r}")
    return {name: int(n) for name, n in axes.items()}


@dataclass(frozen=True)
class Rule:
    """The record of one rule.

    Args:
        fn: the public function.
        reference: the same function in plain jnp, with no custom rule inside: its autodiff in float64 is the oracle. It
            must be stable wherever the rule claims to be, and defines the convention at kinks and ties.
        baselines: the functions that users would otherwise call, by name; claims compare with the first.
        cases: calls to verify; the first is the typical one.
        edges: inputs at the boundary of the domain.
        bench: large calls to time.
        scaling: functions to time at growing sizes, by name.
        residual_bytes: the bytes that float32 calls of the first case keep between forward and backward, a function of
            its sizes.
        jacobian: the derivative of a one-vector call with respect to each argument, as objects of `vjplib.jacobians`
            (None for an argument whose Jacobian has no short form).
        reason: why the rule exists, in one sentence. Figures are given by gains.
        source: where the mathematics is found.
        order_two: whether second derivatives are offered; if False, verification checks that they are refused. A
            mapping such as `{"reverse": False, "forward": True}` says so of each mode, both over reverse.
        communication: whether devices may send data to one another that autodiff would not send. False claims that they
            send none, and that the rule runs under each kind of sharding.
        axes: the sizes of named axes for a rule that is called where they are bound, such as `{"i": 4}`; the rule is
            mapped over them. Cases and edges are calls of one device.
        tails: a function of log-spaced numbers of both signs, (n,), that returns a call with its exact cotangents, for
            the largest relative error of the rule and its baselines.
        domain: what arguments have to be, as `vjplib.verify` takes it; None for no condition, as the draws say it all.
        vary: values that static arguments may take, by name, beside those of the cases.
        dtypes: the floating dtypes that the function takes, by name, as `vjplib.verify` takes them; None to find out.
        whole_array: True for rules whose typical call is not of one vector, which state no Jacobian.
        gains: the measured part of the reason; `vjplib bench --reasons` reports a gain that has gone.
        lecture: True for a layer of the lecture, a reason that needs no measurement.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> Rule(fn=jnp.sin, reference=jnp.sin, baselines={"jnp.sin": jnp.sin}, cases=(Case(("n",), {"n": 3}),)).name
        'sin'
    """

    fn: Callable[..., Any]
    reference: Callable[..., Any]
    baselines: Mapping[str, Callable[..., Any]]
    cases: tuple[Case, ...]
    edges: tuple[Edge, ...] = ()
    bench: tuple[Case, ...] = ()
    scaling: Mapping[str, Scaling] = field(default_factory=dict)
    residual_bytes: Callable[..., int] | None = None
    jacobian: Callable[..., tuple[Any, ...]] | None = None
    reason: str = ""
    source: str = ""
    order_two: bool | Mapping[str, bool] = True
    communication: bool = False
    axes: Mapping[str, int] = field(default_factory=dict)
    tails: Callable[[np.ndarray], Tail] | None = None
    domain: Any = None
    vary: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    dtypes: tuple[str, ...] | None = None
    whole_array: bool = False
    gains: tuple[Gain, ...] = ()
    lecture: bool = False

    def __post_init__(self) -> None:
        second_derivatives(self.order_two)  # both raise for what they do not know
        check_axes(self.axes)
        if not self.cases:
            raise ValueError(f"cases of {self.name} must hold at least one Case, got none")
        for gain in self.gains:
            self._check_gain(gain)

    def _check_gain(self, gain: Gain) -> None:
        claimed = f"the gain in {gain.quantity} of {self.name}"
        if gain.baseline not in ("", *self.baselines) or not self.baselines:
            raise ValueError(f"{claimed} must name a baseline of the record, got {gain.baseline!r}")
        error = gain.quantity == "error"
        if gain.at is None and not (self.tails if error else self.bench):
            raise ValueError(
                f"{claimed} must name a call in at, for the record gives no {'tails' if error else 'bench'}"
            )
        if gain.at is not None and self.call_of(gain) is None:
            known = f"a case of bench{' or an edge' if error else ''}"
            raise ValueError(f"{claimed} must be at {known} of the record, or at one of its own, got {gain.at!r}")

    @property
    def name(self) -> str:
        """The public function's name."""
        return self.fn.__name__

    def baseline_of(self, gain: Gain) -> str:
        """Return the name of the baseline that a gain compares with."""
        return gain.baseline or next(iter(self.baselines))

    def call_of(self, gain: Gain) -> Case | Edge | None:
        """Return the case or the edge that a gain is measured at; None for the tails."""
        if isinstance(gain.at, (Case, Edge)):
            return gain.at
        error = gain.quantity == "error"
        if gain.at is None:
            return None if error else next(iter(self.bench), None)
        calls = (*self.bench, *(self.edges if error else ()))
        return next((call for call in calls if call.name == gain.at), None)

    def named_call_of(self, gain: Gain) -> str:
        """Return the name of the call that a gain is measured at, with its dtype unless that is float32."""
        call = self.call_of(gain)
        name = call.name if call else "the tails"
        return name if gain.dtype == "float32" else f"{name} in {gain.dtype}"

    def claimed(self) -> list[str]:
        """Return a phrase for each gain.

        Example:
            >>> [softplus] = find("softplus")
            >>> softplus.claimed()
            ["kept bytes at most 0.5 of jax.nn.softplus's"]
        """
        texts = []
        for gain in self.gains:
            call = self.named_call_of(gain)
            preposition = "at" if self.call_of(gain) else "in"
            where = "" if gain.at is None and gain.quantity != "error" else f", {preposition} {call}"
            texts.append(f"{gain.quantity} at most {gain.at_most:g} of {self.baseline_of(gain)}'s{where}")
        return texts


# ------------------------------------------------------------------------------------------------ finding the records

_RULES = "vjplib.rules"


def rules_in(module: ModuleType) -> tuple[Rule, ...]:
    """Return the records of a module.

    Args:
        module: a module with a tuple `RULES`.

    Raises:
        ValueError: the module has no RULES, or an entry that is not a `Rule`.

    Example:
        >>> import vjplib.rules.softmax
        >>> [rule.name for rule in rules_in(vjplib.rules.softmax)]
        ['softmax', 'log_softmax', 'logsumexp', 'sparsemax']
    """
    records = getattr(module, "RULES", None)
    if not isinstance(records, tuple) or not all(isinstance(r, Rule) for r in records):
        raise ValueError(f"{module.__name__} must end in RULES, a tuple of vjplib.Rule, got {records!r}")
    return records


def rules() -> tuple[Rule, ...]:
    """Return the records of every module in `vjplib.rules` that ends in RULES, in order of the modules' names."""
    package = importlib.import_module(_RULES)
    modules = (importlib.import_module(info.name) for info in pkgutil.walk_packages(package.__path__, f"{_RULES}."))
    return tuple(rule for module in modules if hasattr(module, "RULES") for rule in rules_in(module))


def _family(rule: Rule) -> str:
    """Return the name of the rule's file or folder in `vjplib.rules`."""
    return inspect.unwrap(rule.fn).__module__.removeprefix(f"{_RULES}.").partition(".")[0]


def find(target: str) -> tuple[Rule, ...]:
    """Return the records that a command-line target names.

    Args:
        target: the name of a rule of the library; the name of a file or folder of `vjplib.rules` for all rules
            there, such as `convolution`; `package.module` for all records of a module, or
            `package.module:name` for one.

    Raises:
        ValueError: the target names nothing; the message lists the names there are.

    Example:
        >>> [rule.name for rule in find("vjplib.rules.softmax:log_softmax")]
        ['log_softmax']
        >>> [rule.name for rule in find("pooling")]
        ['reduce_window_max', 'max_pool', 'min_pool', 'avg_pool']
    """
    path, _, name = target.rpartition(":") if ":" in target else (target, "", "")
    own = rules()
    for called in (lambda rule: rule.name, _family):
        if not name and (named := tuple(rule for rule in own if called(rule) == path)):
            return named
    try:
        known = rules_in(importlib.import_module(path))
    except ModuleNotFoundError as error:
        if error.name is None or not (path == error.name or path.startswith(f"{error.name}.")):
            raise
        names = [rule.name for rule in own]
        near = difflib.get_close_matches(path, names, 1)
        known = f"did you mean {near[0]!r}?" if near else f"the rules are {', '.join(names)}"
        raise ValueError(f"target must be a rule, or a module that can be imported, got {target!r}; {known}") from None
    if not known:
        raise ValueError(f"{path} must hold a rule, its RULES are empty")
    found = tuple(rule for rule in known if name in ("", rule.name))
    if not found:
        raise ValueError(f"{path} must hold a rule named {name!r}, has {', '.join(rule.name for rule in known)}")
    return found
