"""Recording: every custom rule that is called inside a context, with a sample of the values of its arguments."""

import inspect
import itertools
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import ShapedArray, Tracer

from vjplib.auditing.source import caller_of, code_of, definition_of, key_of, shortened
from vjplib.auditing.tap import Axes, requested, tap
from vjplib.compat import (
    CustomJVP,
    CustomVJP,
    HiPrimitive,
    LinearCall,
    as_function,
    custom_jvp_of,
    custom_vjp_of,
    force_retrace,
    hi_primitive_parts_of,
    replaced_custom_jvp_calls,
    replaced_custom_vjp_calls,
    replaced_hi_primitive_calls,
    replaced_linear_calls,
    replaced_vjp,
)
from vjplib.verification.avals import Aval

_Parts = CustomVJP | CustomJVP | HiPrimitive | LinearCall


class RecordedCall(NamedTuple):
    """A recorded call of a rule, its positional arguments on the host.

    `perturbed` says which of their leaves the program differentiated by; it is empty if it did not differentiate.
    `weak` holds True in place of each leaf that is weakly typed, as Python numbers are.
    """

    fn: Callable[..., Any]
    args: tuple[Any, ...]
    perturbed: tuple[bool, ...] = ()
    weak: tuple[Any, ...] = ()


@dataclass(eq=False)
class CallGroup:
    """All calls of one rule with the same shapes and static arguments; `keep` of them are sampled.

    Once traced, it has as many floating `outputs`; the program passes cotangents for those that are `requested`.
    """

    name: str
    kind: str
    source: str
    static: frozenset[int]
    shapes: str
    keep: int
    rng: np.random.Generator
    callers: dict[str, None] = field(default_factory=dict)
    calls: int = 0
    differentiated: int = 0
    recomputed: bool = False
    unseen: str = ""
    sample: list[tuple[float, RecordedCall]] = field(default_factory=list)
    first: "CallSite | None" = None
    derived: bool = False
    outputs: int = 0
    requested: set[int] = field(default_factory=set)

    def add(self, site: "CallSite", values: Sequence[np.ndarray], axes: Axes, perturbed: tuple[bool, ...]) -> None:
        """Count calls, each element of a vmapped call as one, and keep those that fall into the sample."""
        sizes = [size for size, _ in axes]
        count = int(np.prod(sizes, dtype=np.int64))
        self.calls += count
        self.differentiated += count * bool(perturbed)
        # Each call draws a number, and the largest stay: every call is equally likely to.
        draws = self.rng.random(count)
        for i in np.argsort(-draws, kind="stable")[: self.keep]:
            draw = float(draws[i])
            if len(self.sample) < self.keep or draw > self.sample[-1][0]:
                at = np.unravel_index(int(i), sizes) if sizes else ()
                self.sample.append((draw, site.call(_picked(values, axes, at), perturbed)))
                self.sample.sort(key=lambda pair: -pair[0])
                del self.sample[self.keep :]


def _picked(values: Sequence[np.ndarray], axes: Axes, at: Sequence[Any]) -> list[np.ndarray]:
    """Return the values of one element of a vmapped call: the last vmap applied is undone first."""
    for (_, dims), i in zip(reversed(axes), reversed(at), strict=True):
        values = [v if dim is None else np.take(v, int(i), axis=dim) for v, dim in zip(values, dims, strict=True)]
    return list(map(np.array, values))


@dataclass(eq=False)
class CallSite:
    """A call of a rule in a program, which listens to the values of its traced arguments.

    `tree` and `leaves` are its positional arguments, with an `Aval` in place of each leaf that is traced.
    """

    watch: "Watch"
    group: CallGroup
    fn: Callable[..., Any]
    tree: Any
    leaves: list[Any]

    def __call__(self, values: Sequence[np.ndarray], axes: Axes, perturbed: tuple[bool, ...]) -> None:
        """Take the values of the traced leaves; a compiled program may run after the watch has ended."""
        if self.watch.closed:
            return
        with self.watch.lock:
            self.group.add(self, values, axes, perturbed)

    def differentiates(self) -> None:
        """Note that the rule is differentiated, even if only while traced."""
        self.group.derived = True

    def call(self, values: Sequence[np.ndarray], perturbed: tuple[bool, ...] = ()) -> RecordedCall:
        """Return the call with these values of the traced leaves."""
        rest, moving = iter(values), iter(perturbed)
        leaves = [_as_traced(next(rest), a) if isinstance(a, Aval) else _on_host(a) for a in self.leaves]
        marks = tuple(isinstance(a, Aval) and next(moving) for a in self.leaves) if perturbed else ()
        weak = [a.weak if isinstance(a, Aval) else isinstance(a, float) for a in self.leaves]
        return RecordedCall(self.fn, jax.tree.unflatten(self.tree, leaves), marks, jax.tree.unflatten(self.tree, weak))

    def draw(self, rng: np.random.Generator) -> RecordedCall | None:
        """Return the call with standard normal numbers; None if it takes integers or random keys."""
        traced = [a for a in self.leaves if isinstance(a, Aval)]
        if not all(jnp.issubdtype(a.dtype, np.floating) for a in traced):
            return None
        return self.call([np.asarray(rng.standard_normal(a.shape)).astype(a.dtype) for a in traced])


class KeyData(NamedTuple):
    """A random key on the host: the callback that records values may not call JAX."""

    data: np.ndarray
    dtype: Any


def _as_traced(value: np.ndarray, aval: Aval) -> Any:
    return KeyData(value, aval.dtype) if _is_key(aval.dtype) else value


def _on_host(leaf: Any) -> Any:
    return np.array(leaf) if isinstance(leaf, jax.Array) and not _is_key(leaf.dtype) else leaf


def _is_key(dtype: Any) -> bool:
    return jnp.issubdtype(dtype, jax.dtypes.prng_key)


@dataclass(eq=False)
class _Gradient:
    """A call of `jax.vjp`: the bytes that it keeps, and how often it runs."""

    kept: int = 0
    runs: int = 0

    def __call__(self, values: Sequence[np.ndarray], axes: Axes, perturbed: tuple[bool, ...]) -> None:
        self.runs += int(np.prod([size for size, _ in axes], dtype=np.int64))

    def differentiates(self) -> None:
        """Do nothing: a gradient of a gradient counts as one."""


class Watch:
    """The rules that a program called; `watching` makes one, and `vjplib.examined` the report."""

    def __init__(self, seed: int = 0, keep: int = 3) -> None:
        self.seed, self.keep = seed, keep
        self.groups: dict[Any, CallGroup] = {}
        self.gradients: list[_Gradient] = []
        self.lock = threading.Lock()
        self.open, self.closed = False, False
        self._local = threading.local()

    @property
    def kept(self) -> int:
        """The bytes that all gradients of the program kept for their backward passes, each as often as it ran."""
        return sum(g.kept * g.runs for g in self.gradients)

    def called(self, original: Callable[..., Any], fn: Any, *args: Any, **kwargs: Any) -> Any:
        """Record a call of a custom rule, and make it."""
        parts: _Parts | None = custom_vjp_of(fn) or custom_jvp_of(fn) or hi_primitive_parts_of(fn)
        parts = fn if isinstance(fn, LinearCall) else parts
        if not self.open or parts is None or None in parts.passes:
            return original(fn, *args, **kwargs)
        try:
            bound = inspect.signature(parts.primal).bind(*args, **kwargs)
            bound.apply_defaults()
        except (TypeError, ValueError):  # JAX refuses it as well, or the function has no signature
            return original(fn, *args, **kwargs)
        caller, recomputed, in_pallas, by_itself = caller_of(set(map(code_of, parts.passes)) - {None})
        if bound.kwargs or by_itself:
            return original(fn, *args, **kwargs)
        leaves, tree = jax.tree.flatten(bound.args)
        traced = [i for i, leaf in enumerate(leaves) if _is_traced_array(leaf)]
        seen = [Aval(a.shape, a.dtype) if i in traced else a for i, a in enumerate(leaves)]
        with self.lock:
            group = self._group(parts, bound.args, seen)
            group.callers.setdefault(caller)
            group.recomputed |= recomputed
            site = CallSite(self, group, as_function(fn) if isinstance(parts, HiPrimitive) else fn, tree, seen)
            group.first = group.first or site
            if in_pallas or any(isinstance(a, Tracer) for a in seen):
                group.unseen = "inside a kernel, where values cannot be read" if in_pallas else "a mutable reference"
                return original(fn, *args, **kwargs)
            if not traced:
                group.add(site, (), (), ())
                return original(fn, *args, **kwargs)
        for i, value in zip(traced, tap([leaves[i] for i in traced], site), strict=True):
            leaves[i] = value
        outputs, out = jax.tree.flatten(original(fn, *jax.tree.unflatten(tree, leaves)))
        moving = [i for i, y in enumerate(outputs) if _is_traced_array(y) and jnp.issubdtype(y.dtype, jnp.inexact)]
        group.outputs = max(group.outputs, len(moving))
        for i, value in zip(moving, requested([outputs[i] for i in moving], group.requested.add), strict=True):
            outputs[i] = value
        return jax.tree.unflatten(out, outputs)

    def _group(self, parts: _Parts, args: tuple[Any, ...], seen: list[Any]) -> CallGroup:
        owners = [i for i, a in enumerate(args) for _ in jax.tree.leaves(a)]
        pairs = list(zip(owners, seen, strict=True))
        described = [key_of(a) if i in parts.static else _described(a) for i, a in pairs]
        if isinstance(parts, HiPrimitive):
            kind, name, source = "hijax", parts.name, definition_of(parts.source)[1]
            described += [f"{n}={key_of(value)}" for n, value in parts.parameters]
        elif isinstance(parts, LinearCall):
            kind, name, source = "linear_call", parts.name, shortened(parts.place)
        else:
            kind = "custom_vjp" if isinstance(parts, CustomVJP) else "custom_jvp"
            name, source = definition_of(parts.primal)
        key = (kind, name, source, key_of(parts.passes[-1]), tuple(described))
        if key not in self.groups:
            shown = " ".join(_described(a) for i, a in pairs if i not in parts.static)
            rng = np.random.default_rng((self.seed, len(self.groups)))
            self.groups[key] = CallGroup(name, kind, source, parts.static, shown, self.keep, rng)
        return self.groups[key]

    def gradient(self, original: Callable[..., Any], fun: Any, *primals: Any, **options: Any) -> Any:
        """Record a call of `jax.vjp`, and make it."""
        if not self.open or getattr(self._local, "inside", False):
            return original(fun, *primals, **options)
        leaves, tree = jax.tree.flatten(primals)
        gradient = _Gradient()
        first = next((i for i, leaf in enumerate(leaves) if isinstance(leaf, jax.Array)), None)  # traced ones are too
        gradient.runs = int(first is None)
        if first is not None:
            leaves[first] = tap([leaves[first]], gradient)[0]
        self._local.inside = True
        try:
            result = original(fun, *jax.tree.unflatten(tree, leaves), **options)
        finally:
            self._local.inside = False
        arrays = {id(a): a for a in jax.tree.leaves(result[1]) if hasattr(a, "dtype") and hasattr(a, "shape")}
        gradient.kept = sum(int(np.prod(a.shape, dtype=np.int64)) * a.dtype.itemsize for a in arrays.values())
        self.gradients.append(gradient)
        return result


_tokens = itertools.count()


@contextmanager
def watching(seed: int = 0, keep: int = 3) -> Iterator[Watch]:
    """Record every custom_vjp, custom_jvp, hijax primitive and linear_call that is called inside the context.

    Functions that `jax.jit` has traced before are traced again. Inside the context JAX's classes are patched, for all
    threads.

    Args:
        seed: the seed of the samples.
        keep: how many calls of each rule and shapes to sample.
    """
    watch = Watch(seed, keep)
    with (
        force_retrace(f"audit {next(_tokens)}"),
        replaced_custom_vjp_calls(watch.called),
        replaced_custom_jvp_calls(watch.called),
        replaced_hi_primitive_calls(watch.called),
        replaced_linear_calls(watch.called),
        replaced_vjp(watch.gradient),
    ):
        watch.open = True
        try:
            yield watch
        finally:
            watch.open = False
            _settle()
            watch.closed = True


def _settle() -> None:
    """Wait for programs that still run, so that their values are recorded."""
    for array in jax.live_arrays():
        with suppress(Exception):  # it is deleted, or its program failed, as the caller knows
            array.block_until_ready()
    jax.effects_barrier()


def _is_traced_array(leaf: Any) -> bool:
    return isinstance(leaf, Tracer) and isinstance(leaf.aval, ShapedArray)


def _described(leaf: Any) -> str:
    return f"{leaf.dtype}{list(leaf.shape)}" if hasattr(leaf, "dtype") else type(leaf).__name__
