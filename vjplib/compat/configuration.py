"""JAX's settings and XLA's flags, and the threads that they apply to."""

from collections.abc import Callable
from contextvars import copy_context
from functools import cache
from typing import Any, TypeVar

import jax
from jax._src import config, xla_bridge

T = TypeVar("T")


def x64() -> Any:
    """Return a context in which float64 stays float64, whatever the user's setting."""
    return jax.enable_x64(True)


@cache
def fast_compile_options() -> dict[str, Any] | None:
    """Return options of `jax.jit` that minimize the CPU's compile time, None on other platforms.

    The compiled program computes the same values more slowly: use them for programs that run a few times on small
    arrays. Only an outermost jit takes options.
    """
    if jax.default_backend() != "cpu":
        return None
    hasty = {"xla_backend_optimization_level": 0, "xla_cpu_parallel_codegen_split_count": 1}
    for options in (hasty | {"xla_cpu_use_fusion_emitters": False}, hasty):
        try:
            jax.jit(lambda: 1, compiler_options=options).lower().compile()
        except Exception:  # an option that this version does not know
            continue
        return options
    return None


def with_collective_timeout(flags: str) -> str:
    """Return XLA's flags with a long timeout for collectives.

    XLA aborts a process whose devices wait longer than 40 seconds for one another; forced devices of one busy processor
    may.

    Example:
        >>> with_collective_timeout("--xla_force_host_platform_device_count=4")
        '--xla_force_host_platform_device_count=4 --xla_cpu_collective_call_terminate_timeout_seconds=3600'
        >>> with_collective_timeout("--xla_cpu_collective_call_terminate_timeout_seconds=9")
        '--xla_cpu_collective_call_terminate_timeout_seconds=9'
    """
    name = "--xla_cpu_collective_call_terminate_timeout_seconds"
    return flags if name in flags else f"{flags} {name}=3600".strip()


def backends_started() -> bool:
    """Return whether JAX has started a backend, which the first array does.

    Example:
        >>> _ = jax.numpy.zeros(1)
        >>> backends_started()
        True
    """
    return xla_bridge.backends_are_initialized()


def in_callers_context(f: Callable[[], T]) -> Callable[[], T]:
    """Return f for another thread, to run in this thread's JAX contexts (x64, precision, mesh, ...).

    Example:
        >>> import threading
        >>> found = []
        >>> with x64():
        ...     thread = threading.Thread(target=in_callers_context(lambda: found.append(jax.numpy.zeros(1).dtype)))
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
    """Return every setting of `jax.config` by name, as it holds for all threads."""
    return {name: state.get_global() for name, state in config.config_states.items()}
