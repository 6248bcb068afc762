"""Ways of sharing a call out on the devices of this process, what each comes to and what it sends.

`jax.jit` where the compiler partitions by itself (a mesh of Auto axes) and where the types say how (Explicit axes), and
`jax.shard_map` with check_vma on and off, where each device runs the function on its part. There the gradient is taken
inside, as in a data-parallel training step, and outside. With check_vma off the step sums the gradients of weights over
devices, with it on the rule must, as JAX requires: a sum too many, or one of something else, shows. Where JAX refuses
to trace the rule because a sum or a sharding is missing, nothing wrong comes out, and nothing is shown.

What crosses devices is read from the compiled programs. Each device has a prime number of places of the data that
divides no other size, so an array whose size it divides has the data in it; none such may be sent, unless autodiff
sends some too.
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
from vjplib.verification.call import CallUnderTest, Leaves, combine
from vjplib.verification.claims.sharding.data_axis import MEAN, SUM, Shared, shared
from vjplib.verification.report import Finding, describe_error, failed, finding, passed, skipped
from vjplib.verification.tolerance import HALF_THE_DIGITS, relative_gap, size_of

AXIS = "data"  # the name of the mesh's axis
MOST_DEVICES = 4
_NOISE = 1e3 * float(np.finfo(np.float64).eps)  # of the largest cotangent: a sum of other order, where terms cancel
# What JAX says where it refuses a backward for its sharding, and what to do.
_REFUSALS = {
    "{V:": (
        "sum it over the axes along which it varies and its argument does not, by jax.lax.psum over "
        "jax.typeof(cotangent).manual_axis_type.varying - jax.typeof(argument).manual_axis_type.varying"
    ),
    "out_sharding": "give the product over the data out_sharding=jax.typeof(argument).sharding",
    "bwd rule": "give it its argument's sharding, by jax.sharding.reshard(cotangent, jax.typeof(argument).sharding)",
}
_SENT = re.compile(
    r"^\s*(?:ROOT )?\S+ = (.*?) ((?:ragged-)?all-to-all|all-gather|all-reduce|reduce-scatter|collective-permute"
    r"|collective-broadcast)(?:-start)?\("
)
_SUMS = ("all-reduce", "reduce-scatter")

Program = Callable[[tuple[Any, ...], Leaves], Any]


def here(subject: CallUnderTest, agreed: bool = False) -> Iterator[Finding]:
    """Yields the findings on the devices of this process.

    Args:
        subject: what to examine.
        agreed: whether the function equals its oracle in a process of one device.
    """
    devices = jax.devices()[:MOST_DEVICES]
    for dtype, context in ((np.float64, x64), (np.float32, nullcontext)):
        with context():
            data = shared(subject, len(devices), dtype)
            if data is not None:
                yield from _Ways(subject, data, devices).findings(agreed)
                return
    message = "no data axis found: the function of a part of the arguments is nowhere a part of the function"
    yield skipped(message)


class _Way(NamedTuple):
    """A way of sharing out: its name, the kind of mesh, and what it makes of a function of the arrays."""

    name: str
    kind: AxisType
    program: Callable[[Callable[..., Leaves]], Program]


class _Ways:
    """All ways of sharing out one call."""

    def __init__(self, subject: CallUnderTest, data: Shared, devices: Sequence[Any]) -> None:
        self.subject, self.data, self.devices = subject, data, devices
        self.ours = data.of(subject.fn)
        self.autodiff = {"the function itself": strip_custom_rules(self.ours)}
        if subject.reference is not None:
            self.autodiff = {"the reference": data.of(subject.reference), **self.autodiff}
        rng = np.random.default_rng((subject.seed, 7))
        ys = jax.eval_shape(self.ours, *data.arrays)
        self.gs = tuple(rng.standard_normal(y.shape).astype(y.dtype) for y in ys)
        self.ways = [
            _Way("jit, Auto axes", AxisType.Auto, self.by_compiler),
            _Way("jit, Explicit axes", AxisType.Explicit, self.by_compiler),
            *(
                _Way(f"shard_map, check_vma={checked}, gradient {side}", AxisType.Auto, partial(make, checked=checked))
                for checked in (True, False)
                for side, make in (("inside", self.inside), ("outside", self.outside))
            ),
        ]

    def findings(self, agreed: bool) -> Iterator[Finding]:
        """Yields what was found of each way, then what is sent."""
        expected = self.alone(self.ours)
        if agreed and self.subject.undifferentiable is None:
            name = "one device of a process that has several"
            yield self.compared(name, expected, self.alone(next(iter(self.autodiff.values()))))
        runs: dict[str, Any] = {}
        texts: dict[str, str] = {}
        for kind in (AxisType.Auto, AxisType.Explicit):
            traced: list[_Way] = []
            for way in (way for way in self.ways if way.kind == kind):
                error = self.refused(way, self.ours)
                if error is None:
                    traced.append(way)
                else:
                    yield self.refusal(way, error)
            try:
                results, text = self.run(kind, traced, self.ours)
                runs |= results
                texts |= {way.name: text for way in traced}
            except Exception:  # one of them: which is found by running each alone
                for way in traced:
                    try:
                        results, texts[way.name] = self.run(kind, [way], self.ours)
                        runs |= results
                    except Exception as error:  # what a rule raises is a finding about it
                        yield self.refusal(way, error)
        for name, result in runs.items():
            yield self.compared(name, result, expected)
        yield from self.sent(texts)

    def alone(self, f: Callable[..., Leaves]) -> Any:
        """Returns outputs and cotangents on one device."""
        run = jax.jit(self.by_compiler(f), compiler_options=fast_compile_options())
        return jax.tree.map(np.asarray, run(self.data.arrays, self.gs))

    def placed(self, kind: AxisType) -> tuple[Any, Any]:
        """Returns a mesh, and the arrays and cotangents on it."""
        mesh = jax.make_mesh((len(self.devices),), (AXIS,), axis_types=(kind,), devices=self.devices)
        specs = self.specs()
        return mesh, jax.tree.map(
            lambda a, spec: jax.device_put(a, NamedSharding(mesh, spec)), (self.data.arrays, self.gs), specs
        )

    def specs(self) -> tuple[tuple[P, ...], tuple[P, ...]]:
        """Returns how arrays and outputs are shared out."""
        return tuple(map(_spec, self.data.axes)), tuple(map(_spec, self.data.outputs))

    def run(self, kind: AxisType, ways: Sequence[_Way], f: Callable[..., Leaves]) -> tuple[dict[str, Any], str]:
        """Returns the results of some ways, compiled as one program, and its text."""
        if not ways:
            return {}, ""
        mesh, given = self.placed(kind)
        with jax.set_mesh(mesh):
            programs = {way.name: way.program(f) for way in ways}
            jitted = jax.jit(
                lambda arrays, gs: {name: run(arrays, gs) for name, run in programs.items()},
                compiler_options=fast_compile_options(),
            )
            ready = jitted.lower(*given).compile()
            return jax.tree.map(np.asarray, ready(*given)), ready.as_text() or ""

    def refused(self, way: _Way, f: Callable[..., Leaves]) -> Exception | None:
        """Returns what JAX raises when it traces a way."""
        mesh, given = self.placed(way.kind)
        try:
            with jax.set_mesh(mesh):
                jax.eval_shape(way.program(f), *given)
        except Exception as error:  # JAX has no one type for it
            return error
        return None

    def refusal(self, way: _Way, error: Exception) -> Finding:
        """Returns a failure, or what it comes to where JAX refuses the rule or autodiff for their sharding."""
        remedy = next((remedy for sign, remedy in _REFUSALS.items() if sign in str(error)), "")
        level, but = "fail", "autodiff does not"
        refused = [name for name, f in self.autodiff.items() if self.refused(way, f) is not None]
        if self.subject.undifferentiable is not None:
            level, but = "skipped", "there is no autodiff to compare with"
        elif refused:
            level, but = "note", f"so does autodiff of {refused[0]}"
        elif remedy or type(error).__name__ == "ShardingTypeError":
            level, but = (
                "skipped",
                f"nothing can be shown there; autodiff is not refused{remedy and '. To have it: '}{remedy}",
            )
        return finding(level, "raises", f"{way.name}: raises {describe_error(error)}; {but}")

    def compared(self, name: str, result: Any, expected: Any) -> Finding:
        """Returns whether a way gives what one device gives."""
        (ys, dxs), (true_ys, true_dxs) = result, expected
        biggest = max(map(size_of, (*true_dxs, *self.gs)), default=0.0)
        rows = [
            *((f"output {i}", y, o) for i, (y, o) in enumerate(zip(ys, true_ys, strict=True))),
            *((f"cotangent of {n}", r, o) for n, r, o in zip(self.subject.names, dxs, true_dxs, strict=True)),
        ]
        eps = max(self.subject.eps, *(float(jnp.finfo(a.dtype).eps) for a in (*true_ys, *true_dxs)))
        coarse = float(np.sqrt(eps)) / HALF_THE_DIGITS
        gaps = [(relative_gap(r, o, biggest * _NOISE / HALF_THE_DIGITS) / coarse, argument) for argument, r, o in rows]
        gap, argument = max(gaps)
        ratio = gap / HALF_THE_DIGITS
        if ratio > 1:
            message = f"{name}: on {len(self.devices)} devices {gap * coarse:.1e} of its size from what it is on one"
            trap = "double-psum" if self.multiplied(*next((r, o) for a, r, o in rows if a == argument)) else ""
            return failed("wrong_value", message, argument, ratio, trap=trap)
        message = f"{name}: the same on {len(self.devices)} devices, data along {self.data.described}"
        return passed(message, ratio=ratio)

    def multiplied(self, result: np.ndarray, expected: np.ndarray) -> bool:
        """Returns whether an array is as many times what it should be as there are devices, or that part of it."""
        factor = float(len(self.devices))
        return any(relative_gap(result, (expected * f).astype(result.dtype)) < 1e-5 for f in (factor, 1 / factor))

    def sent(self, texts: Mapping[str, str]) -> Iterator[Finding]:
        """Yields what arrays with the data in them the programs send, compared with autodiff's."""
        suspects = [way for way in self.ways if self.sends(texts.get(way.name, ""))]
        if texts and not suspects:
            message = "no array with the data in it is sent between devices"
            yield passed(message)
        for way in suspects:
            ours = self.sends(self.run(way.kind, [way], self.ours)[1])
            if not ours:  # it was another way of the same program
                continue
            level, but = "fail", "autodiff sends none"
            if self.subject.undifferentiable is not None:
                level, but = "note", "there is no autodiff to compare with"
            for name, f in () if level == "note" else self.autodiff.items():
                if self.refused(way, f) is not None:
                    level, but = "note", f"autodiff of {name} is refused"
                elif theirs := self.sends(self.run(way.kind, [way], f)[1]):
                    level, but = "note", f"so does autodiff of {name}, {_listed(theirs)}"
            data = {"sent": [[op, list(shape)] for op, shape in ours]}
            message = f"{way.name}: sends data between devices, {_listed(ours)}; {but}"
            yield finding(level, "communication", message, data=data)

    def sends(self, text: str) -> list[tuple[str, tuple[int, ...]]]:
        """Returns the collective operations of a compiled program on arrays with the data in them, and their shapes.

        Under vmap a rule sums the gradient of weights for each example, which is then no sending of data.
        """
        found = []
        for match in filter(None, map(_SENT.match, text.splitlines())):
            if self.data.mapped and match[2] in _SUMS:
                continue
            shapes = re.findall(r"\[([\d,]*)\]", match[1])
            sizes = [tuple(int(n) for n in shape.split(",") if n) for shape in shapes]
            found += [(match[2], size) for size in sizes if np.prod(size) and np.prod(size) % self.data.block == 0]
        return list(dict.fromkeys(found))

    def pull(self, f: Callable[..., Leaves], arrays: Sequence[Any], gs: Leaves) -> tuple[Leaves, Leaves]:
        """Returns a function's outputs, and the cotangents of what is differentiated."""
        moving = self.data.differentiated
        ys, back = jax.vjp(lambda *xs: f(*combine(arrays, moving, xs)), *(arrays[i] for i in moving))
        return ys, back(tuple(gs))

    def by_compiler(self, f: Callable[..., Leaves]) -> Program:
        """Returns the plain pullback, its results kept as the arguments are."""
        arrays, outputs = self.specs()
        wanted = outputs, tuple(arrays[i] for i in self.data.differentiated)

        def run(arrays: tuple[Any, ...], gs: Leaves) -> Any:
            found = self.pull(f, arrays, gs)
            mesh = jax.sharding.get_abstract_mesh()
            if mesh.empty or AxisType.Auto not in mesh.axis_types:
                return found
            return jax.tree.map(lax.with_sharding_constraint, found, wanted)

        return run

    def partly(self, f: Callable[..., Leaves]) -> Callable[..., Leaves]:
        """Returns what a device makes of its part: outputs that are means of parts are scaled to be sums."""
        kinds, count = self.data.outputs, len(self.devices)

        def run(*arrays: Any) -> Leaves:
            return tuple(y / count if kind == MEAN else y for y, kind in zip(f(*arrays), kinds, strict=True))

        return run

    def whole(self, ys: Leaves) -> Leaves:
        """Returns outputs summed over devices where the data is summed over."""
        pairs = zip(ys, self.data.outputs, strict=True)
        return tuple(lax.psum(y, AXIS) if kind in (SUM, MEAN) else y for y, kind in pairs)

    def inside(self, f: Callable[..., Leaves], checked: bool) -> Program:
        """Returns a data-parallel step: each device differentiates its part, and sums the gradients of weights."""
        arrays, outputs = self.specs()
        kept = [self.data.axes[i] for i in self.data.differentiated]

        def step(arrays: tuple[Any, ...], gs: Leaves) -> Any:
            if checked:  # an output of one part varies, so its cotangent must
                pairs = zip(gs, self.data.outputs, strict=True)
                gs = tuple(lax.pcast(g, AXIS, to="varying") if kind in (SUM, MEAN) else g for g, kind in pairs)
            ys, dxs = self.pull(self.partly(f), arrays, gs)
            if not checked:
                dxs = tuple(lax.psum(dx, AXIS) if axis is None else dx for dx, axis in zip(dxs, kept, strict=True))
            return self.whole(ys), dxs

        out_specs = outputs, tuple(map(_spec, kept))
        return jax.shard_map(step, in_specs=(arrays, outputs), out_specs=out_specs, check_vma=checked)

    def outside(self, f: Callable[..., Leaves], checked: bool) -> Program:
        """Returns the pullback of the function run on parts."""
        arrays, outputs = self.specs()
        part = self.partly(f)
        mapped = jax.shard_map(
            lambda *given: self.whole(part(*given)), in_specs=arrays, out_specs=outputs, check_vma=checked
        )
        return lambda arrays, gs: self.pull(mapped, arrays, gs)


def _spec(axis: Any) -> P:
    return P(*([None] * axis), AXIS) if isinstance(axis, int) else P()


def _listed(sent: Sequence[tuple[str, tuple[int, ...]]]) -> str:
    shown = ", ".join(f"{op} of {'x'.join(map(str, shape))}" for op, shape in sent[:3])
    return shown + (f" and {len(sent) - 3} more" if len(sent) > 3 else "")
