"""Gradients of sharded convolutions on four forced devices: their errors, and what crosses devices."""

import re

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import vjplib

CHANNELS_LAST = ("NHWC", "HWIO", "NHWC")
DEFAULTS = {"window_strides": (1, 1), "padding": "SAME", "dimension_numbers": CHANNELS_LAST}
X = (8, 32, 32, 32)  # large enough that grouped gradients are sums, not blocks, which slice channels
CALLS = {
    "depthwise": ((3, 3, 1, 32), {"feature_group_count": 32}),
    "depthwise strided": ((3, 3, 1, 32), {"feature_group_count": 32, "window_strides": (2, 2)}),
    "grouped": ((3, 3, 4, 32), {"feature_group_count": 8}),
    "transposed": ((4, 4, 32, 8), {"lhs_dilation": (2, 2), "padding": ((2, 2), (2, 2))}),
    "1x1": ((1, 1, 32, 16), {}),
    "patches": ((4, 4, 32, 16), {"window_strides": (4, 4), "padding": "VALID"}),
}


def program(convolution, arguments):
    given = DEFAULTS | arguments
    return jax.grad(loss(convolution, given), (0, 1))


def of_one_device(x, k, arguments):
    return jax.jit(program(lax.conv_general_dilated, arguments))(x, k)


def loss(convolution, given):
    return lambda x, k: jnp.sum(jnp.sin(convolution(x, k, **given)))


def error(ours, theirs):
    pairs = zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True)
    return max(float(jnp.max(jnp.abs(a - b)) / jnp.max(jnp.abs(b))) for a, b in pairs)


def compiled(mesh, x, k, x_spec, k_spec, arguments, expected):
    with jax.set_mesh(mesh):
        shards = jax.device_put(x, NamedSharding(mesh, x_spec)), jax.device_put(k, NamedSharding(mesh, k_spec))
        ready = jax.jit(program(vjplib.conv_general_dilated, arguments)).lower(*shards).compile()
        ours = jax.tree.map(np.asarray, ready(*shards))
    return {"error": error(ours, expected), "moved": moved(ready.as_text() or "")}


def moved(text):
    """Return the shapes of what a compiled program sends from device to device, except sums."""
    shapes = re.findall(r"= \S*?f64\[([\d,]*)\]\S* (?:all-gather|all-to-all|collective-permute)\w*\(", text)
    return [[int(n) for n in shape.split(",") if n] for shape in shapes]


def measure():
    """Return the error of each gradient against one device's, and the shapes of what crosses devices, by name."""
    rng = np.random.default_rng(0)
    results = {}
    for name, (kernel, arguments) in CALLS.items():
        x, k = (rng.standard_normal(shape) for shape in (X, kernel))
        expected = of_one_device(x, k, arguments)
        across = P(None, None, None, "d") if "feature_group_count" in arguments else P(None, None, "d")
        for axis in (AxisType.Auto, AxisType.Explicit):
            mesh = jax.make_mesh((4,), ("d",), axis_types=(axis,))
            results[f"{name}, batch, {axis.name}"] = compiled(mesh, x, k, P("d"), P(), arguments, expected)
            results[f"{name}, space, {axis.name}"] = compiled(mesh, x, k, P(None, "d"), P(), arguments, expected)
        mesh = jax.make_mesh((4,), ("d",), axis_types=(AxisType.Auto,))
        results[f"{name}, channels, Auto"] = compiled(mesh, x, k, P(None, None, None, "d"), across, arguments, expected)
        for checked in (True, False):
            part = loss(vjplib.conv_general_dilated, DEFAULTS | arguments)
            mapped = jax.shard_map(
                lambda x, k, part=part: lax.psum(part(x, k), "d"),
                mesh=mesh,
                in_specs=(P("d"), P()),
                out_specs=P(),
                check_vma=checked,
            )
            ours = jax.jit(jax.grad(mapped, (0, 1)))(x, k)
            results[f"{name}, shard_map, check_vma={checked}"] = {"error": error(ours, expected), "moved": []}
    results["blocks of groups, channels, shard_map"] = groups_apart(rng)
    x, k = rng.standard_normal((8, 4, 4, 32)), rng.standard_normal((5, 5, 1, 32))
    mesh = jax.make_mesh((4,), ("d",), axis_types=(AxisType.Auto,))
    arguments = {"feature_group_count": 32}
    results["few places, batch"] = compiled(mesh, x, k, P("d"), P(), arguments, of_one_device(x, k, arguments))
    return results | patches(rng)


def patches(rng):
    """Return what crosses devices in the gradient of patches, overlapping and not, whose batch is sharded."""
    x, results = rng.standard_normal((8, 6, 6, 4)), {}
    for strides in ((1, 1), (2, 2)):

        def loss(f, x, strides=strides):
            return jnp.sum(jnp.sin(f(x, (2, 2), strides, "SAME", dimension_numbers=CHANNELS_LAST)))

        theirs = jax.jit(jax.grad(lambda x, loss=loss: loss(lax.conv_general_dilated_patches, x)))(x)
        ours = lambda x, loss=loss: loss(vjplib.conv_general_dilated_patches, x)  # noqa: E731
        for axis in (AxisType.Auto, AxisType.Explicit):
            mesh = jax.make_mesh((4,), ("d",), axis_types=(axis,))
            with jax.set_mesh(mesh):
                shards = jax.device_put(x, NamedSharding(mesh, P("d")))
                ready = jax.jit(jax.grad(ours)).lower(shards).compile()
                apart = error(np.asarray(ready(shards)), theirs)
            results[f"patches, {strides}, {axis.name}"] = {"error": apart, "moved": moved(ready.as_text() or "")}
        mesh = jax.make_mesh((4,), ("d",), axis_types=(AxisType.Auto,))
        for checked in (True, False):
            mapped = jax.shard_map(
                lambda x, ours=ours: lax.psum(ours(x), "d"),
                mesh=mesh,
                in_specs=P("d"),
                out_specs=P(),
                check_vma=checked,
            )
            apart = error(jax.jit(jax.grad(mapped))(x), theirs)
            results[f"patches, {strides}, shard_map, check_vma={checked}"] = {"error": apart, "moved": []}
    return results


def groups_apart(rng):
    """Return the collectives of a grouped convolution whose groups are split over the devices."""
    x, k = rng.standard_normal(X), rng.standard_normal((3, 3, 8, 32))
    mesh = jax.make_mesh((4,), ("d",), axis_types=(AxisType.Auto,))
    specs = P(None, None, None, "d")

    def convolution(x, k, feature_group_count, **given):
        part = lambda x, k: vjplib.conv_general_dilated(x, k, feature_group_count=feature_group_count // 4, **given)  # noqa: E731
        return jax.shard_map(part, mesh=mesh, in_specs=(specs, specs), out_specs=specs)(x, k)

    arguments = {"feature_group_count": 4}
    expected = of_one_device(x, k, arguments)
    ready = (
        jax.jit(program(convolution, arguments)).lower(*jax.device_put((x, k), NamedSharding(mesh, specs))).compile()
    )
    ours = jax.tree.map(np.asarray, ready(*jax.device_put((x, k), NamedSharding(mesh, specs))))
    return {"error": error(ours, expected), "moved": moved(ready.as_text() or "")}
