"""Sharding: with the data on several devices and the weights on each, the pullback is what it is on one.

The ways of sharing out are compared with the call on one device, in float64 where the function runs in it. Where this
process has a single device, another process is started that makes four of the processor's cores.
"""

import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from importlib import import_module
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vjplib.compat import CustomVJP, custom_vjp_of, programs, unclose, with_collective_timeout, x64
from vjplib.verification.call import CallUnderTest
from vjplib.verification.claim import Claim
from vjplib.verification.claims.sharding.strategies import MOST_DEVICES, here
from vjplib.verification.report import Finding, describe_error, failed, skipped
from vjplib.verification.tolerance import relative_gap

SECONDS = 100  # for a process with devices of its own


def check(subject: CallUnderTest) -> Iterator[Finding]:
    """Yields a finding for each way of sharing out, and for what is sent; on four devices, or as many as there are.

    Where this process has a single one, another is started that makes four of the processor's cores. The function must
    get there: by its module and name, or by cloudpickle.
    """
    if _calls_back(subject):  # the process would end: devices wait for one another, and one for Python
        message = "the function calls back to Python, which devices of one process cannot wait for: not examined"
        yield skipped(message)
    elif any(jnp.issubdtype(jnp.result_type(a), jax.dtypes.extended) for a in jax.tree.leaves(subject.args)):
        message = "an argument is a typed key of random numbers, which is not shared out: not examined"
        yield skipped(message)
    elif len(jax.devices()) > 1:
        yield from here(subject)
    else:
        yield from elsewhere(subject)


def _calls_back(subject: CallUnderTest) -> bool:
    leaves = subject.leaves(np.float32)
    try:
        program = jax.make_jaxpr(subject.pull(subject.call))(leaves, subject.cotangents(leaves))
    except Exception:  # which is found again below
        return False
    return _holds_callback(program)


def _holds_callback(program: Any) -> bool:
    jaxpr, _ = unclose(program)
    return any(
        "callback" in eqn.primitive.name or any(_holds_callback(inner) for _, inner, _ in programs(eqn.params))
        for eqn in jaxpr.eqns
    )


class _Named(NamedTuple):
    """A function by where it is found, for another process to import."""

    module: str
    name: str

    def found(self) -> Any:
        """Returns the function."""
        thing: Any = import_module(self.module)
        for part in self.name.split("."):
            thing = getattr(thing, part)
        return thing


class _Recorded(NamedTuple):
    """A `CallUnderTest.resize` that knows the answers it will be asked for."""

    answers: Mapping[tuple[str, int], Any]

    def __call__(self, sizes: Mapping[str, int]) -> Any:
        """Returns the shapes at another size of one dimension."""
        ((name, n),) = sizes.items()
        return self.answers[name, n]


def _portable(f: Any) -> Any:
    """Returns a function by name where it can be imported, else itself."""
    module, name = getattr(f, "__module__", None), getattr(f, "__qualname__", getattr(f, "__name__", None))
    if not isinstance(module, str) or not isinstance(name, str) or module == "__main__":
        return f
    try:
        return _Named(module, name) if _Named(module, name).found() is f else f
    except Exception:  # whatever importing raises
        return f


def _remade(parts: CustomVJP) -> Any:
    """Returns a custom_vjp made of its parts."""
    made = jax.custom_vjp(parts.primal, nondiff_argnums=tuple(sorted(parts.static)))
    made.defvjp(parts.fwd, parts.bwd, symbolic_zeros=parts.symbolic_zeros)
    return made


def _pickled(thing: Any) -> bytes:
    """Returns a pickle, by cloudpickle if it is installed, and of each custom_vjp by what it is made of."""
    pickler: Any = import_module("cloudpickle").Pickler if find_spec("cloudpickle") else pickle.Pickler

    class Pickler(pickler):
        def reducer_override(self, thing: Any) -> Any:
            parts = custom_vjp_of(thing)
            if parts is not None:
                named = _portable(thing)
                return (_Named.found, (named,)) if isinstance(named, _Named) else (_remade, (parts,))
            return super().reducer_override(thing) if hasattr(pickler, "reducer_override") else NotImplemented

    file = BytesIO()
    Pickler(file).dump(thing)
    return file.getvalue()


def elsewhere(subject: CallUnderTest) -> Iterator[Finding]:
    """Yields the findings from a process of its own, with devices made of the processor's cores."""
    steps = {(name, n + 1): subject.resize({name: n + 1}) for name, n in subject.sizes.items() if subject.resize}
    host = jax.tree.map(lambda a: np.asarray(a) if isinstance(a, jax.Array) else a, (subject.args, subject.kwargs))
    away = replace(
        subject,
        fn=_portable(subject.fn),
        reference=_portable(subject.reference),
        compared=None,
        args=host[0],
        kwargs=host[1],
        resize=_Recorded(steps),
    )
    try:
        sent = _pickled((away, _agrees(subject)))
    except Exception as error:  # pickle has no one type for it
        remedy = "" if find_spec("cloudpickle") else "; install cloudpickle, or put it where it can be imported"
        message = (
            f"one device here, and the function cannot be sent to a process with more: {describe_error(error)}{remedy}"
        )
        yield skipped(message)
        return
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={MOST_DEVICES}"
    flags = with_collective_timeout(flags.strip())
    paths = os.pathsep.join(path or os.getcwd() for path in sys.path)
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": paths}
    program = f"from {__name__} import answer; answer()"
    with tempfile.TemporaryDirectory() as folder:
        given, found = Path(folder, "given"), Path(folder, "found")
        given.write_bytes(sent)
        command = [sys.executable, "-c", program, str(given), str(found)]
        try:
            done = subprocess.run(
                command, env=environment, capture_output=True, text=True, timeout=SECONDS, check=False
            )
        except subprocess.TimeoutExpired:
            message = f"on {MOST_DEVICES} devices it does not end within {SECONDS} s"
            yield failed("raises", message)
            return
        if not found.exists():
            last = (done.stderr.strip().splitlines() or [""])[-1]
            message = f"the process with {MOST_DEVICES} devices ended with code {done.returncode}: {last}"
            yield failed("raises", message)
            return
        yield from pickle.loads(found.read_bytes())


def _agrees(subject: CallUnderTest) -> bool:
    """Returns whether the function equals its oracle here, so that a difference elsewhere comes of the devices."""
    if subject.undifferentiable is not None:
        return False
    try:
        with x64():
            leaves = subject.leaves(np.float64)
            found = jax.tree.map(np.asarray, subject.answers(leaves, subject.cotangents(leaves)))
    except Exception:  # which the claim on values reports
        return False
    pairs = zip((*found.ys, *found.dxs), (*found.true_ys, *found.true_dxs), strict=True)
    return all(gap <= subject.digits(gap) for gap in (relative_gap(r, o) for r, o in pairs))


def answer() -> None:
    """Examines the subject in the file named first on the command line, and writes the findings to the second."""
    given, found = map(Path, sys.argv[1:3])
    away, agreed = pickle.loads(given.read_bytes())
    fn, reference = (f.found() if isinstance(f, _Named) else f for f in (away.fn, away.reference))
    try:
        findings = list(here(replace(away, fn=fn, reference=reference), agreed))
    except Exception as error:  # any error that a rule raises is a finding about that rule
        findings = [failed("raises", f"raises {describe_error(error)}")]
    found.write_bytes(pickle.dumps(findings))


CLAIM = Claim("sharding", check, alias="V6", needs_oracle=False, cost=(1, 22))
