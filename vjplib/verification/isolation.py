"""Isolation: a function under test may raise, hang, print or change global state without ending the run.

Each check runs in its own thread, in the caller's JAX contexts, with a time limit. An exception stops a Python loop;
nothing stops compiled code, whose thread is left behind. Against crashes in C and lack of memory the command line runs
rules in worker processes.
"""

import ctypes
import inspect
import os
import random
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TextIO, TypeVar

import jax
import numpy as np

from vjplib.compat import custom_vjp_of, in_callers_context, settings
from vjplib.verification.report import Finding, describe_error, failed, noted

T = TypeVar("T")
CHECK = "vjplib check"  # the name of the threads
PRINTS = "prints while it is traced or run"
TIME_LIMIT = 120.0  # seconds that one claim at one call may take


def heartbeat() -> None:
    """Called whenever a job begins; a worker process replaces it, to show that it lives."""


class Abandoned(BaseException):
    """Raised inside a check that exceeds its time limit."""


def run_with_timeout(job: Callable[[], T], seconds: float) -> T | BaseException | None:
    """Return the result of a job, or the exception that it raises, or None after a timeout.

    The job runs in a thread with the caller's JAX contexts; if seconds are infinite, in this one.
    """
    result: list[Any] = []

    def run() -> None:
        try:
            result.append(job())
        except BaseException as error:  # SystemExit too: a rule must not end the run
            result.append(error)

    if not np.isfinite(seconds):
        run()
        if isinstance(result[0], KeyboardInterrupt):
            raise result[0]
        return result[0]
    heartbeat()
    thread = threading.Thread(target=in_callers_context(run), daemon=True, name=CHECK)
    thread.start()
    try:
        thread.join(min(seconds, threading.TIMEOUT_MAX))
    except BaseException:  # the user's interrupt, which only the main thread gets
        _stop(thread)
        raise
    if result:
        return result[0]
    _stop(thread)
    return None


def _stop(thread: threading.Thread) -> None:
    for _ in range(3):  # a rule may catch the first exception
        if thread.is_alive() and thread.ident is not None:
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(Abandoned))
            thread.join(0.2)


class _Overheard:
    """A stream that passes text on, and remembers its first line."""

    def __init__(self, stream: TextIO) -> None:
        self.stream, self.first = stream, ""

    def write(self, text: str) -> int:
        if not self.first.strip():
            self.first = text.strip().splitlines()[0] if text.strip() else ""
        return self.stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


@contextmanager
def detect_side_effects(functions: tuple[Callable[..., Any], ...], findings: list[Finding]) -> Iterator[None]:
    """At the end append a finding for each piece of global state that functions change, restored where possible.

    Compared are standard output, NumPy's and Python's random numbers, the settings of JAX, the environment, and the
    global variables of the modules that define the functions. Inside, JAX allows transfers between host and device and
    does not check for leaked tracers, whatever the user has set: the verifier itself makes such transfers and keeps
    such tracers.
    """
    heard = _Overheard(sys.stdout)
    spaces = {id(space): space for f in functions for space in _globals_of(f)}
    modules = [(s, dict(s), {name: _length(value) for name, value in s.items()}) for s in spaces.values()]
    numpy_state, python_state = np.random.get_state(legacy=False), random.getstate()  # noqa: NPY002
    environment, options, folder = dict(os.environ), settings(), os.getcwd()
    stdout, sys.stdout = sys.stdout, heard  # type: ignore[assignment]  # it passes the rest on
    try:
        with jax.transfer_guard("allow"), jax.check_tracer_leaks(False):
            yield
    finally:
        replaced, sys.stdout = sys.stdout is not heard, stdout
        if heard.first:
            findings.append(noted(f"{PRINTS}: {heard.first[:60]!r}", claim="contract", code="prints"))
        if replaced:
            findings.append(_changed("replaces sys.stdout"))
        if os.getcwd() != folder:
            os.chdir(folder)
            findings.append(_changed("changes the current folder"))
        if _as_text(np.random.get_state(legacy=False)) != _as_text(numpy_state):  # noqa: NPY002
            np.random.set_state(numpy_state)  # noqa: NPY002
            findings.append(_changed("draws from NumPy's global random numbers"))
        if random.getstate() != python_state:
            random.setstate(python_state)
            findings.append(_changed("draws from Python's global random numbers"))
        if changed := _differences(options, settings()):
            for name in changed:
                jax.config.update(name, options[name])
            findings.append(_changed(f"changes the settings of JAX: {', '.join(changed)}"))
        # JAX sets variables of Mosaic's when it is first asked for a kernel.
        environment |= {name: value for name, value in os.environ.items() if name.startswith("MOSAIC_")}
        if changed := _differences(environment, dict(os.environ)):
            os.environ.clear()
            os.environ.update(environment)
            findings.append(_changed(f"changes the environment: {', '.join(changed)}"))
        for space, variables, lengths in modules:
            changed = _differences(variables, dict(space))
            changed += [name for name, n in lengths.items() if name not in changed and _length(space[name]) != n]
            if changed:
                message = f"sets global variables of {space.get('__name__', 'its module')}: {', '.join(changed)}"
                findings.append(noted(message, claim="transforms", code="side_effect"))


def _length(value: Any) -> int | None:
    """Return the length of a list, a dict or a set, None for anything else."""
    return len(value) if isinstance(value, (list, dict, set)) else None


def _as_text(state: Any) -> str:
    return repr(jax.tree.map(lambda a: a.tobytes() if isinstance(a, np.ndarray) else a, state))


def _changed(message: str) -> Finding:
    message += ", so a traced call and a cached one differ; the change is undone"
    return failed("side_effect", message, claim="transforms")


def _differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Return the names whose value is another object now, or another text."""
    nothing = object()

    def same(a: Any, b: Any) -> bool:
        return a is b or (isinstance(a, str) and a == b)

    return [name for name in sorted({*before, *after}) if not same(before.get(name, nothing), after.get(name, nothing))]


def _globals_of(fn: Callable[..., Any]) -> Iterator[dict[str, Any]]:
    """Yield the global variables of the modules that define a function and the passes of its rule."""
    rule = custom_vjp_of(fn)
    for part in (rule.primal, rule.fwd, rule.bwd) if rule else (fn,):
        space = getattr(inspect.unwrap(part), "__globals__", None)
        if isinstance(space, dict) and not str(space.get("__name__", "")).startswith(("jax.", "numpy.")):
            yield space


def as_finding(outcome: BaseException | None, seconds: float) -> Finding:
    """Return the failure of a check that raised, or did not end (None)."""
    if outcome is None:
        return failed("timeout", f"did not end within {seconds:g} s")
    kind = describe_error(outcome) if isinstance(outcome, Exception) else f"{type(outcome).__name__}: {outcome}"
    return failed("raises", f"raises {kind}")
