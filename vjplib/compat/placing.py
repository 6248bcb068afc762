"""How a program is compiled and partitioned: calls that are not inlined, mapped axes and mesh axes."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import jax
from jax._src.core import extend_axis_env_nd, trace_ctx
from jax._src.interpreters.batching import BatchTrace, BatchTracer
from jax.experimental.xla_metadata import set_xla_metadata
from jax.sharding import AxisType, auto_axes, get_abstract_mesh


def no_inline(f: Callable[..., Any], **jit_options: Any) -> Callable[..., Any]:
    """Return f jitted with these options, as a call that the CPU's compiler does not inline.

    XLA:CPU fuses shifted slices into their consumers and recomputes them there; a call that is not inlined is as fast
    as on its own, however its result is used. Only the CPU's compiler reads the attribute, so use this inside the CPU
    branch of `jax.lax.platform_dependent`.

    Example:
        >>> import jax.numpy as jnp
        >>> float(no_inline(jnp.sin)(0.0))
        0.0
    """
    jitted = jax.jit(f, **jit_options)

    def call(*args: Any, **kwargs: Any) -> Any:
        with set_xla_metadata(inlineable="false"):
            return jitted(*args, **kwargs)

    return call


def apart_on_cpu(f: Callable[..., Any]) -> Callable[..., Any]:
    """Return f, on CPU as a call that is not inlined: nothing in it is computed before all of its arguments are known.

    XLA:CPU computes what it can as soon as it can. What a backward computes again from its residuals would be computed
    in the forward, and held until the cotangent comes.

    Example:
        >>> import jax.numpy as jnp
        >>> float(apart_on_cpu(jnp.sin)(0.0))
        0.0
    """
    return lambda *args: jax.lax.platform_dependent(*args, cpu=no_inline(f), default=f)


def bound_axes(axes: Mapping[str, int]) -> AbstractContextManager[None]:
    """Context in which functions that name these axes can be traced, on one device's arrays.

    Example:
        >>> with bound_axes({"i": 4}):
        ...     print(jax.eval_shape(lambda x: jax.lax.psum(x, "i"), 1.0))
        ShapeDtypeStruct(shape=(), dtype=float32)
    """
    return extend_axis_env_nd(tuple(axes.items()))


def is_vmapped(x: Any) -> bool:
    """Return whether the innermost transformation is `jax.vmap` and maps over an axis of x.

    Example:
        >>> import jax.numpy as jnp
        >>> seen = []
        >>> _ = jax.vmap(lambda x, y: seen.append((is_vmapped(x), is_vmapped(y))), in_axes=(0, None))(jnp.ones(2), 1.0)
        >>> seen
        [(True, False)]
    """
    trace = trace_ctx.trace
    return isinstance(trace, BatchTrace) and isinstance(x, BatchTracer) and x._trace.tag is trace.tag


def auto_sharded(f: Callable[..., Any], result: jax.ShapeDtypeStruct) -> Callable[..., Any]:
    """Return f, partitioned by the compiler even under a mesh with explicit axes, to a result of that sharding.

    JAX refuses slices and reshapes of sharded dimensions under explicit axes, though they partition well.

    Example:
        >>> import jax.numpy as jnp
        >>> auto_sharded(jnp.sin, jax.ShapeDtypeStruct((), jnp.float32)) is jnp.sin
        True
    """
    if not any(kind == AxisType.Explicit for kind in get_abstract_mesh().axis_types):
        return f
    return auto_axes(f, out_sharding=result.sharding)


def psum_to_primal(cotangent: jax.Array, aval: Any) -> jax.Array:
    """Return a cotangent summed over the mesh axes of `jax.shard_map` along which it varies and its primal does not.

    Devices that share a value each hold a part of its cotangent. Outside shard_map, and inside with check_vma=False,
    this changes nothing. `aval` is the primal's abstract value, as `jax.typeof` gives it.

    Example:
        >>> float(psum_to_primal(jax.numpy.ones(()), jax.typeof(jax.numpy.zeros(()))))
        1.0
    """
    axes = jax.typeof(cotangent).manual_axis_type.varying - aval.manual_axis_type.varying
    return jax.lax.psum(cotangent, tuple(sorted(axes))) if axes else cotangent


def varying_like(x: jax.Array, *others: jax.Array | None) -> jax.Array:
    """Return x, in `jax.shard_map` varying over each mesh axis along which one of the others varies.

    A carry of `jax.lax.scan` must vary at the start as it does after a step.

    Example:
        >>> float(varying_like(jax.numpy.zeros(()), jax.numpy.ones(2)))
        0.0
    """
    axes = frozenset().union(*(jax.typeof(other).manual_axis_type.varying for other in others if other is not None))
    axes -= jax.typeof(x).manual_axis_type.varying
    return jax.lax.pcast(x, tuple(sorted(axes)), to="varying") if axes else x
