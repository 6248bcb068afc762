"""Watch: every custom rule that is called inside a context, and a sample of the values that each is called with."""

import inspect
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import ShapedArray, Tracer

from vjplib.auditing.tap import Axes, asked, tap
from vjplib.compat import (
    custom_jvp_of,
    custom_vjp_of,
    force_retrace,
    replaced_custom_jvp_calls,
    replaced_custom_vjp_calls,
    replaced_vjp,
)

_JAX = os.path.dirname(jax.__file__) + os.sep
_OURS = os.path.dirname(os.path.dirname(__file__)) + os.sep
_CHECKPOINT, _PALLAS = "ad_checkpoint.py", f"{os.sep}pallas{os.sep}"


class Aval(NamedTuple):
    """Shape and dtype of a traced leaf; the dtype of random keys is JAX's own."""

    shape: tuple[int, ...]
    dtype: Any


class Met(NamedTuple):
    """A call that a rule met.

    Args:
        fn: the custom_vjp or custom_jvp.
        args: its positional arguments, arrays on the host.
        perturbed: which leaves of them the program differentiated by; none where it was not differentiated.
    """

    fn: Callable[..., Any]
    args: tuple[Any, ...]
    perturbed: tuple[bool, ...] = ()


@dataclass(eq=False)
class Group:
    """All calls of one rule with the same shapes and static arguments.

    Args:
        name: the rule's name.
        kind: "custom_vjp" or "custom_jvp".
        source: file and line where it is defined.
        static: which positional arguments are not differentiated.
        shapes: its arguments, as text.
        keep: how many calls to sample.
        rng: what chooses them.
        outputs: how many floating outputs it has, where it was traced.
        asked: whose cotangents the program sends, of these.
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
    drawn: bool = False
    sample: list[tuple[float, Met]] = field(default_factory=list)
    first: "Site | None" = None
    derived: bool = False
    outputs: int = 0
    asked: set[int] = field(default_factory=set)

    def add(self, site: "Site", values: Sequence[np.ndarray], axes: Axes, perturbed: tuple[bool, ...]) -> None:
        """Counts calls, as many as vmap made of one, and keeps those that fall into the sample."""
        sizes = [size for size, _ in axes]
        count = int(np.prod(sizes, dtype=np.int64))
        self.calls += count
        self.differentiated += count * bool(perturbed)
        # Each call draws a number, and the largest stay: every call is as likely to.
        draws = self.rng.random(count)
        for i in np.argsort(-draws, kind="stable")[: self.keep]:
            draw = float(draws[i])
            if len(self.sample) < self.keep or draw > self.sample[-1][0]:
                at = np.unravel_index(int(i), sizes) if sizes else ()
                picked = [_picked(values, axes, at, k) for k in range(len(values))]
                self.sample.append((draw, site.met(picked, perturbed)))
                self.sample.sort(key=lambda pair: -pair[0])
                del self.sample[self.keep :]


def _picked(values: Sequence[np.ndarray], axes: Axes, at: Sequence[Any], k: int) -> np.ndarray:
    """Returns what value k is in one call of those that vmap made one: the last vmap applied is undone first."""
    value = values[k]
    for (_, dims), i in zip(reversed(axes), reversed(at), strict=True):
        if dims[k] is not None:
            value = np.take(value, int(i), axis=dims[k])
    return np.array(value)


@dataclass(eq=False)
class Site:
    """A call of a rule in a program: it listens to the values of its traced arguments.

    Args:
        watch: whose groups it belongs to.
        group: where its calls go.
        fn: the rule.
        tree: the tree of its positional arguments.
        leaves: their leaves, an `Aval` in place of each that is traced.
    """

    watch: "Watch"
    group: Group
    fn: Callable[..., Any]
    tree: Any
    leaves: list[Any]

    def __call__(self, values: Sequence[np.ndarray], axes: Axes, perturbed: tuple[bool, ...]) -> None:
        """Takes the values of the traced leaves; programs that are kept by the call's arguments may run later still."""
        if self.watch.closed:
            return
        with self.watch.lock:
            self.group.add(self, values, axes, perturbed)

    def differentiates(self) -> None:
        """Takes note that the rule is differentiated, were it only traced."""
        self.group.derived = True

    def met(self, values: Sequence[np.ndarray], perturbed: tuple[bool, ...] = ()) -> Met:
        """Returns the call with these values of the traced leaves."""
        rest, moving = iter(values), iter(perturbed)
        leaves = [_as_traced(next(rest), a) if isinstance(a, Aval) else _on_host(a) for a in self.leaves]
        marks = tuple(isinstance(a, Aval) and next(moving) for a in self.leaves) if perturbed else ()
        return Met(self.fn, jax.tree.unflatten(self.tree, leaves), marks)

    def draw(self, rng: np.random.Generator) -> Met | None:
        """Returns the call with standard normal numbers, None where whole numbers or keys would have to be known."""
        traced = [a for a in self.leaves if isinstance(a, Aval)]
        if not all(jnp.issubdtype(a.dtype, np.floating) for a in traced):
            return None
        return self.met([np.asarray(rng.standard_normal(a.shape)).astype(a.dtype) for a in traced])


class KeyData(NamedTuple):
    """A random key on the host: JAX may not be called where values are met."""

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
    """A call of `jax.vjp`: what it keeps, and how often it runs."""

    kept: int = 0
    runs: int = 0

    def __call__(self, values: Sequence[np.ndarray], axes: Axes, perturbed: tuple[bool, ...]) -> None:
        self.runs += int(np.prod([size for size, _ in axes], dtype=np.int64))

    def differentiates(self) -> None:
        """A gradient of a gradient is one."""


class Watch:
    """What was met while a program ran; `report` of `vjplib.auditing` examines it.

    Args:
        seed: of what is sampled.
        keep: how many calls of each rule and shapes to sample.
    """

    def __init__(self, seed: int = 0, keep: int = 3) -> None:
        self.seed, self.keep = seed, keep
        self.groups: dict[Any, Group] = {}
        self.gradients: list[_Gradient] = []
        self.lock = threading.Lock()
        self.open, self.closed = False, False
        self._local = threading.local()

    @property
    def kept(self) -> int:
        """The bytes that all gradients of the program kept for their backward passes, each as often as it ran."""
        return sum(g.kept * g.runs for g in self.gradients)

    def met(
        self,
        parts_of: Callable[[Any], Any],
        kind: str,
        original: Callable[..., Any],
        fn: Any,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """Is called in place of a custom rule, and calls it."""
        parts = parts_of(fn)
        ready = self.open and (parts.fwd and parts.bwd if kind == "custom_vjp" else parts.jvp)
        if not ready:
            return original(fn, *args, **kwargs)
        try:
            bound = inspect.signature(parts.primal).bind(*args, **kwargs)
            bound.apply_defaults()
        except (TypeError, ValueError):  # JAX refuses it as well, or the function has no signature
            return original(fn, *args, **kwargs)
        if bound.kwargs:
            return original(fn, *args, **kwargs)
        own = {_code_of(f) for f in (parts[1:3] if kind == "custom_vjp" else parts[1:2])}
        caller, recomputed, in_pallas, by_itself = _where(own - {None})
        if by_itself:
            return original(fn, *args, **kwargs)
        leaves, tree = jax.tree.flatten(bound.args)
        traced = [i for i, leaf in enumerate(leaves) if _is_traced_array(leaf)]
        seen = [Aval(a.shape, a.dtype) if i in traced else a for i, a in enumerate(leaves)]
        with self.lock:
            group = self._group(fn, parts, kind, tree, bound.args, seen)
            group.callers.setdefault(caller)
            group.recomputed |= recomputed
            site = Site(self, group, fn, tree, seen)
            group.first = group.first or site
            if in_pallas or any(isinstance(a, Tracer) for a in seen):
                group.unseen = "inside a kernel, where values cannot be had" if in_pallas else "a mutable reference"
                return original(fn, *args, **kwargs)
            if not traced:
                group.add(site, (), (), ())
                return original(fn, *args, **kwargs)
        for i, value in zip(traced, tap([leaves[i] for i in traced], site), strict=True):
            leaves[i] = value
        outputs, out = jax.tree.flatten(original(fn, *jax.tree.unflatten(tree, leaves)))
        moving = [i for i, y in enumerate(outputs) if _is_traced_array(y) and jnp.issubdtype(y.dtype, jnp.inexact)]
        group.outputs = max(group.outputs, len(moving))
        for i, value in zip(moving, asked([outputs[i] for i in moving], group.asked.add), strict=True):
            outputs[i] = value
        return jax.tree.unflatten(out, outputs)

    def _group(self, fn: Any, parts: Any, kind: str, tree: Any, args: tuple[Any, ...], seen: list[Any]) -> Group:
        owners = [i for i, a in enumerate(args) for _ in jax.tree.leaves(a)]
        described = [_key_of(a) if i in parts.static else _aval_key(a) for i, a in zip(owners, seen, strict=True)]
        name, source = _definition(parts.primal)
        rule = parts.bwd if kind == "custom_vjp" else parts.jvp
        key = (kind, name, source, _key_of(rule), tuple(described))
        if key not in self.groups:
            shown = [
                d if isinstance(d, str) else f"{d[1]}{list(d[0])}"
                for i, d in zip(owners, described, strict=True)
                if i not in parts.static
            ]
            rng = np.random.default_rng((self.seed, len(self.groups)))
            self.groups[key] = Group(name, kind, source, parts.static, " ".join(shown), self.keep, rng)
        return self.groups[key]

    def gradient(self, original: Callable[..., Any], fun: Any, *primals: Any, **options: Any) -> Any:
        """Is called in place of `jax.vjp`, and calls it."""
        if not self.open or getattr(self._local, "inside", False):
            return original(fun, *primals, **options)
        leaves, tree = jax.tree.flatten(primals)
        gradient = _Gradient()
        for i, leaf in enumerate(leaves):
            if isinstance(leaf, jax.Array):  # traced ones are too
                leaves[i] = tap([leaf], gradient)[0]
                break
        else:
            gradient.runs = 1
        self._local.inside = True
        try:
            result = original(fun, *jax.tree.unflatten(tree, leaves), **options)
        finally:
            self._local.inside = False
        arrays = {id(a): a for a in jax.tree.leaves(result[1]) if hasattr(a, "dtype") and hasattr(a, "shape")}
        gradient.kept = sum(int(np.prod(a.shape, dtype=np.int64)) * a.dtype.itemsize for a in arrays.values())
        self.gradients.append(gradient)
        return result


_tokens = iter(range(sys.maxsize))


@contextmanager
def watching(seed: int = 0, keep: int = 3) -> Iterator[Watch]:
    """Watches every custom_vjp and custom_jvp that is called inside the context.

    Functions that `jax.jit` has traced before are traced again. For the time of the context JAX's classes are patched,
    for all threads.

    Args:
        seed: of what is sampled.
        keep: how many calls of each rule and shapes to sample.
    """
    watch = Watch(seed, keep)
    call = {"custom_vjp": custom_vjp_of, "custom_jvp": custom_jvp_of}
    with (
        force_retrace(f"audit {next(_tokens)}"),
        replaced_custom_vjp_calls(partial(watch.met, call["custom_vjp"], "custom_vjp")),
        replaced_custom_jvp_calls(partial(watch.met, call["custom_jvp"], "custom_jvp")),
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
    """Waits for what still runs, so that its values are met."""
    for array in jax.live_arrays():
        if not array.is_deleted():
            try:
                array.block_until_ready()
            except Exception:  # a program that failed has told its caller
                continue
    jax.effects_barrier()


def _is_traced_array(leaf: Any) -> bool:
    return isinstance(leaf, Tracer) and isinstance(leaf.aval, ShapedArray)


def _aval_key(leaf: Any) -> Any:
    if isinstance(leaf, Aval) or hasattr(leaf, "dtype"):
        return tuple(leaf.shape), str(leaf.dtype)
    return type(leaf).__name__


def _key_of(static: Any) -> str:
    """Returns what tells a static argument from another: a value, or where a function is written."""
    if callable(static) and not isinstance(static, type):
        inner = static.func if isinstance(static, partial) else static
        code = getattr(inspect.unwrap(inner), "__code__", None)
        return f"{code.co_filename}:{code.co_firstlineno}" if code else type(inner).__name__
    if isinstance(static, (Aval, bool, int, float, str, type(None), np.dtype)):
        return repr(static)
    return type(static).__name__


def _where(own: set[Any]) -> tuple[str, bool, bool, bool]:
    """Returns the line that calls a rule, and whether in jax.checkpoint, in a Pallas kernel, by its own passes."""
    caller, recomputed, in_pallas = "", False, False
    frame = sys._getframe(2)
    while frame is not None:
        path = frame.f_code.co_filename
        if frame.f_code in own:
            return caller, recomputed, in_pallas, True
        if path.startswith(_JAX):
            recomputed = recomputed or path.endswith(_CHECKPOINT)
            in_pallas = in_pallas or _PALLAS in path
        elif not caller and not path.startswith((_OURS + "auditing", _OURS + "compat")) and "contextlib" not in path:
            caller = f"{shortened(path)}:{frame.f_lineno}"
        frame = frame.f_back
    return caller, recomputed, in_pallas, False


def _code_of(f: Any) -> Any:
    while isinstance(f, partial):
        f = f.func
    return getattr(getattr(f, "__func__", f), "__code__", None)


def _definition(primal: Any) -> tuple[str, str]:
    """Returns a rule's name, and file and line; of what a decorator such as Equinox's wraps, if it does wrap."""
    inner = primal.func if isinstance(primal, partial) else inspect.unwrap(primal)
    code = _code_of(inner) or _code_of(type(inner).__call__)
    source = f"{shortened(code.co_filename)}:{code.co_firstlineno}" if code else "unknown"
    cells = [c.cell_contents for c in getattr(inner, "__closure__", None) or () if _is_full(c)]
    held = [f for c in cells for f in (c, getattr(c, "fn", None)) if inspect.isfunction(f)]
    wrapped = {f.__code__: f for f in held if code is not None and f.__code__.co_filename != code.co_filename}
    if len(wrapped) == 1:
        code, inner = wrapped.popitem()
        source = f"{shortened(code.co_filename)}:{code.co_firstlineno}, wrapped at {source}"
    return getattr(inner, "__qualname__", type(primal).__name__).replace("<locals>.", ""), source


def _is_full(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True


def shortened(path: str) -> str:
    """Returns a path relative to the folder of packages, or to the working directory, that it lies in.

    Example:
        >>> shortened("/usr/lib/python3/site-packages/flax/linen/fp8_ops.py")
        'flax/linen/fp8_ops.py'
    """
    for folder in (f"site-packages{os.sep}", f"dist-packages{os.sep}"):
        if folder in path:
            return path.rsplit(folder, 1)[1]
    here = os.getcwd() + os.sep
    return path.removeprefix(here)
