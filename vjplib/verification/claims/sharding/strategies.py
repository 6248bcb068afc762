"""Strategies of splitting a call over the devices of this process: their results, and the data that they send.

`jax.jit` where the compiler partitions by itself (a mesh of Auto axes) and where the types say how (Explicit axes), and
`jax.shard_map` with check_vma on and off, where each device runs the function on its part. There the gradient is taken
inside, as in a data-parallel training step, and outside. With check_vma off the step sums the gradients of weights over
devices, with it on the rule must, as JAX requires: a missing or superfluous sum shows. Where JAX refuses to trace the
rule because a sum or a sharding is missing, no wrong number results, and nothing is decided.

The compiled programs tell what devices send each other. The data on each device has a prime size that divides no other
size, so an array whose size it divides has the data in it. Such an array may be sent only if autodiff sends one too.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from vjplib.compat import fast_compile_options, strip_custom_rules, x64
from vjplib.verification.call import CallUnderTest, Leaves, attempt, attempt_all, combine
from vjplib.verification.claims.sharding.data_axis import MEAN, SUM, SplitCall, find_data_axis
from vjplib.verification.report import Finding, describe_error, failed, finding, noted, passed, skipped
from vjplib.verification.tolerance import HALF_THE_DIGITS, relative_gap, size_of

AXIS = "data"  # the name of the mesh's axis
MOST_DEVICES = 4
_NOISE = 1e3 * float(np.finfo(np.float64).eps)  # of the largest cotangent: sums in another order, where terms cancel
# Parts of JAX's messages where it refuses a backward for its sharding, and the remedy.
_REFUSALS = {
    "{V:": (
        "sum it over the axes along which it varies and its argument does not, by jax.lax.psum over "
        "jax.typeof(cotangent).manual_axis_type.varying - jax.typeof(argument).manual_axis_type.varying"
    ),
    "out_sharding": "give the product over the data out_sharding=jax.typeof(argument).sharding",
    "bwd rule": "give it its argument's sharding, by jax.sharding.reshard(cotangent, jax.typeof(argument).sharding)",
}
_TYPES = (
    "give each array that the backward makes its argument's sharding, by jax.sharding.reshard, or compute it in "
    "jax.sharding.auto_axes"
)
_SENT = re.compile(
    r"^\s*(?:ROOT )?\S+ = (.*?) ((?:ragged-)?all-to-all|all-gather|all-reduce|reduce-scatter|collective-permute"
    r"|collective-broadcast)(?:-start)?\("
)
_SUMS = ("all-reduce", "reduce-scatter")

Program = Callable[[tuple[Any, ...], Leaves], Any]
Sent = list[tuple[str, tuple[int, ...]]]  # operations and shapes


def here(subject: CallUnderTest, agreed: bool = False) -> Iterator[Finding]:
    """Yield the findings on the devices of this process; `agreed` if fn equals its oracle in one of a single device."""
    devices = jax.devices()[:MOST_DEVICES]
    for dtype, context in ((np.float64, x64), (np.float32, nullcontext))[subject.widest != np.float64 :]:
        with context():
            data = find_data_axis(subject, len(devices), dtype)
            if data is not None:
                yield from _Strategies(subject, data, devices).findings(agreed)
                return
    yield skipped("no data axis found: the function of a part of the arguments is nowhere a part of the function")


class _Strategy(NamedTuple):
    """The kind of mesh, and the program that pulls a function of the arrays back."""

    kind: AxisType
    program: Callable[[Callable[..., Leaves]], Program]


class _Strategies:
    """All strategies for one call."""

    def __init__(self, subject: CallUnderTest, data: SplitCall, devices: Sequence[Any]) -> None:
        self.subject, self.data, self.devices = subject, data, devices
        self.ours = data.of(subject.fn)
        self.autodiff = {"the function itself": strip_custom_rules(self.ours)}
        if subject.reference is not None:
            self.autodiff = {"the reference": data.of(subject.reference), **self.autodiff}
        rng = np.random.default_rng((subject.seed, 7))
        ys = jax.eval_shape(self.ours, *data.arrays)
        self.gs = tuple(rng.standard_normal(y.shape).astype(y.dtype) for y in ys)
        self.specs = tuple(map(_spec, data.axes)), tuple(map(_spec, data.outputs))  # of arrays, and of outputs
        self.strategies = {_by_jit(kind): _Strategy(kind, self.by_compiler) for kind in _KINDS}
        for checked in (True, False):
            for side, make in (("inside", self.inside), ("outside", self.outside)):
                name = f"shard_map, check_vma={checked}, gradient {side}"
                self.strategies[name] = _Strategy(AxisType.Auto, lambda f, make=make, checked=checked: make(f, checked))

    def findings(self, agreed: bool) -> Iterator[Finding]:
        """Yield the findings on each strategy, then those on what is sent."""
        expected = self.alone(self.ours)
        if agreed and self.subject.undifferentiable is None:
            name = "one device of a process that has several"
            yield self.compared(name, expected, self.alone(next(iter(self.autodiff.values()))))
        results: dict[str, tuple[Any, str]] = {}
        for kind in _KINDS:
            names = [name for name, strategy in self.strategies.items() if strategy.kind == kind]
            traces = {name: partial(self.trace, name, self.ours) for name in names}
            for name, result in attempt_all(lambda names: self.run(names, self.ours), traces).items():
                if isinstance(result, Exception):
                    yield self.refusal(name, result, kind == AxisType.Explicit and _by_jit(AxisType.Auto) in results)
                else:
                    results[name] = result
        for name, (result, _) in results.items():
            yield self.compared(name, result, expected)
        yield from self.sent({name: text for name, (_, text) in results.items()})

    def alone(self, f: Callable[..., Leaves]) -> Any:
        """Return outputs and cotangents on one device."""
        run = jax.jit(self.by_compiler(f), compiler_options=fast_compile_options())
        return jax.device_get(run(self.data.arrays, self.gs))

    def placed(self, kind: AxisType) -> tuple[Any, Any]:
        """Return a mesh, and the arrays and cotangents on it."""
        mesh = jax.make_mesh((len(self.devices),), (AXIS,), axis_types=(kind,), devices=self.devices)
        given = (self.data.arrays, self.gs)
        return mesh, jax.tree.map(lambda a, spec: jax.device_put(a, NamedSharding(mesh, spec)), given, self.specs)

    def run(self, names: Sequence[str], f: Callable[..., Leaves]) -> dict[str, tuple[Any, str]]:
        """Return the results of strategies on one mesh, compiled as one program, each with the program's text."""
        mesh, given = self.placed(self.strategies[names[0]].kind)
        with jax.set_mesh(mesh):
            programs = {name: self.strategies[name].program(f) for name in names}
            jitted = jax.jit(
                lambda arrays, gs: {name: run(arrays, gs) for name, run in programs.items()},
                compiler_options=fast_compile_options(),
            )
            ready = jitted.lower(*given).compile()
            results, text = jax.tree.map(np.asarray, ready(*given)), ready.as_text() or ""
        return {name: (results[name], text) for name in names}

    def trace(self, name: str, f: Callable[..., Leaves]) -> Any:
        """Trace a strategy, which JAX may refuse by any exception."""
        strategy = self.strategies[name]
        mesh, given = self.placed(strategy.kind)
        with jax.set_mesh(mesh):
            return jax.eval_shape(strategy.program(f), *given)

    def refused(self, name: str, f: Callable[..., Leaves]) -> bool:
        """Return True if JAX refuses to trace a strategy."""
        return isinstance(attempt(lambda: self.trace(name, f)), Exception)

    def refusal(self, name: str, error: Exception, of_types: bool = False) -> Finding:
        """Return a failure, or a note or a skip where JAX refuses the rule or autodiff for their sharding.

        `of_types` if the types of arrays alone are to blame, as the compiler finds a way by itself: under Explicit axes
        their shardings are part of these, so that what mixes two raises, in a scan or a transpose too, in many words.
        That is loud, and no wrong number; it fails only where all ways are claimed, as they are by a record.
        """
        remedy = next((remedy for sign, remedy in _REFUSALS.items() if sign in str(error)), "")
        remedy = remedy or (_TYPES if of_types and self.subject.communication else "")
        level, but = "fail", "autodiff does not"
        refused = [of for of, f in self.autodiff.items() if self.refused(name, f)]
        if self.subject.undifferentiable is not None:
            level, but = "skipped", "there is no autodiff to compare with"
        elif refused:
            level, but = "note", f"so does autodiff of {refused[0]}"
        elif remedy or type(error).__name__ == "ShardingTypeError":
            level, but = "skipped", "nothing can be shown there; autodiff is not refused"
            but += f". Remedy: {remedy}" if remedy else ""
        return finding(level, "raises", f"{name}: raises {describe_error(error)}; {but}")

    def compared(self, name: str, result: Any, expected: Any) -> Finding:
        """Return the finding on outputs and cotangents beside those of one device."""
        biggest = max(map(size_of, (*expected[1], *self.gs)), default=0.0)
        arguments = [f"output {i}" for i in range(len(self.gs))] + [f"cotangent of {n}" for n in self.subject.names]
        pairs = list(zip(*map(jax.tree.leaves, (result, expected)), strict=True))
        eps = max(self.subject.eps_elsewhere, *(float(jnp.finfo(o.dtype).eps) for _, o in pairs))
        coarse = float(np.sqrt(eps)) / HALF_THE_DIGITS
        gaps = [relative_gap(r, o, biggest * _NOISE / HALF_THE_DIGITS) / coarse for r, o in pairs]
        gap, argument, i = max(zip(gaps, arguments, range(len(gaps)), strict=True))
        ratio = gap / HALF_THE_DIGITS
        count = len(self.devices)
        if ratio > 1:
            r, o = pairs[i]
            multiplied = any(relative_gap(r, (o * f).astype(r.dtype)) < 1e-5 for f in (float(count), 1 / count))
            message = f"{name}: on {count} devices {gap * coarse:.1e} of its size from what it is on one"
            return failed("wrong_value", message, argument, ratio, trap="double-psum" if multiplied else "")
        return passed(f"{name}: the same on {count} devices, data along {self.data.described}", ratio=ratio)

    def sent(self, texts: Mapping[str, str]) -> Iterator[Finding]:
        """Yield a finding for each strategy that sends data, compared with autodiff, or one that none does."""
        suspects = [name for name in self.strategies if _sent(texts.get(name, ""), self.data)]
        if texts and not suspects:
            yield passed("no array with the data in it is sent between devices")
        for name in suspects:
            ours = self.sent_by(name, self.ours)
            if not ours:  # another strategy of the same program sends it
                continue
            level, but = "fail", "autodiff sends none"
            if self.subject.undifferentiable is not None:
                level, but = "note", "there is no autodiff to compare with"
            for of, f in () if level == "note" else self.autodiff.items():
                if self.refused(name, f):
                    level, but = "note", f"autodiff of {of} is refused"
                elif theirs := self.sent_by(name, f):
                    level, but = "note", f"so does autodiff of {of}, {_listed(theirs)}"
            data = {"sent": [[op, list(shape)] for op, shape in ours]}
            message = f"{name}: sends data between devices, {_listed(ours)}; {but}"
            if level == "fail" and self.subject.communication:
                yield noted(f"{message}. communication=False claims none", code="communication", data=data)
            else:
                yield finding(level, "communication", message, data=data)

    def sent_by(self, name: str, f: Callable[..., Leaves]) -> Sent:
        """Return the data that a strategy, compiled alone, sends."""
        return _sent(self.run([name], f)[name][1], self.data)

    def pull(self, f: Callable[..., Leaves], arrays: Sequence[Any], gs: Leaves) -> tuple[Leaves, Leaves]:
        """Return a function's outputs, and the cotangents of the differentiated arrays."""
        moving = self.data.differentiated
        ys, back = jax.vjp(lambda *xs: f(*combine(arrays, moving, xs)), *(arrays[i] for i in moving))
        return ys, back(tuple(gs))

    def by_compiler(self, f: Callable[..., Leaves]) -> Program:
        """Return the plain pullback, its results placed as the arguments are."""
        wanted = self.specs[1], tuple(self.specs[0][i] for i in self.data.differentiated)

        def run(arrays: tuple[Any, ...], gs: Leaves) -> Any:
            found = self.pull(f, arrays, gs)
            mesh = jax.sharding.get_abstract_mesh()
            if mesh.empty or AxisType.Auto not in mesh.axis_types:
                return found
            return jax.tree.map(lax.with_sharding_constraint, found, wanted)

        return run

    def part_of(self, f: Callable[..., Leaves]) -> Callable[..., Leaves]:
        """Return the function of a device's part: outputs that are means of parts are scaled to be sums."""
        kinds, count = self.data.outputs, len(self.devices)
        return lambda *arrays: tuple(
            y / count if kind == MEAN else y for y, kind in zip(f(*arrays), kinds, strict=True)
        )

    def of_summed(self, f: Callable[[Any], Any], ys: Leaves) -> Leaves:
        """Return outputs, f applied to those that are sums over the data."""
        return tuple(f(y) if kind in (SUM, MEAN) else y for y, kind in zip(ys, self.data.outputs, strict=True))

    def inside(self, f: Callable[..., Leaves], checked: bool) -> Program:
        """Return a data-parallel step: each device differentiates its part, and sums the gradients of weights."""
        axes = [self.data.axes[i] for i in self.data.differentiated]

        def step(arrays: tuple[Any, ...], gs: Leaves) -> Any:
            if checked:  # an output of one part varies, so its cotangent must
                gs = self.of_summed(lambda g: lax.pcast(g, AXIS, to="varying"), gs)
            ys, dxs = self.pull(self.part_of(f), arrays, gs)
            if not checked:
                dxs = tuple(lax.psum(dx, AXIS) if axis is None else dx for dx, axis in zip(dxs, axes, strict=True))
            return self.of_summed(_psum, ys), dxs

        out_specs = self.specs[1], tuple(map(_spec, axes))
        return jax.shard_map(step, in_specs=self.specs, out_specs=out_specs, check_vma=checked)

    def outside(self, f: Callable[..., Leaves], checked: bool) -> Program:
        """Return the pullback of the function run on parts."""
        part, (in_specs, out_specs) = self.part_of(f), self.specs
        whole = lambda *given: self.of_summed(_psum, part(*given))  # noqa: E731
        mapped = jax.shard_map(whole, in_specs=in_specs, out_specs=out_specs, check_vma=checked)
        return lambda arrays, gs: self.pull(mapped, arrays, gs)


_KINDS = (AxisType.Auto, AxisType.Explicit)
_psum = partial(lax.psum, axis_name=AXIS)


def _by_jit(kind: AxisType) -> str:
    return f"jit, {kind.name} axes"


def _spec(axis: Any) -> P:
    return P(*([None] * axis), AXIS) if isinstance(axis, int) else P()


def _sent(text: str, data: SplitCall) -> Sent:
    """Return the collective operations of a compiled program on arrays with the data in them, and their shapes.

    Under vmap a rule sums the gradient of weights for each example, which sends no data.
    """
    found = []
    for match in filter(None, map(_SENT.match, text.splitlines())):
        if data.mapped and match[2] in _SUMS:
            continue
        shapes = re.findall(r"\[([\d,]*)\]", match[1])
        sizes = [tuple(int(n) for n in shape.split(",") if n) for shape in shapes]
        found += [(match[2], size) for size in sizes if np.prod(size) and np.prod(size) % data.block == 0]
    return list(dict.fromkeys(found))


def _listed(sent: Sent) -> str:
    shown = ", ".join(f"{op} of {'x'.join(map(str, shape))}" for op, shape in sent[:3])
    return shown + (f" and {len(sent) - 3} more" if len(sent) > 3 else "")
