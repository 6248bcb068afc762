"""Sharding: with the data split over several devices and the weights on each, the pullback is that of one device.

Each strategy of splitting is compared with the call on one device, in float64 where the function runs in it. If this
process has a single device, a process is started that makes four of the processor's cores.
"""

import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from io import BytesIO
from operator import attrgetter
from pathlib import Path
from types import FunctionType
from typing import Any

import jax

from vjplib.compat import CustomVJP, custom_vjp_of, equations, is_key, with_collective_timeout
from vjplib.verification.call import CallUnderTest, attempt
from vjplib.verification.claim import Claim
from vjplib.verification.claims.sharding.strategies import MOST_DEVICES, here
from vjplib.verification.claims.value import right
from vjplib.verification.report import Finding, describe_error, failed, skipped

SECONDS = 100  # for a process with devices of its own


def check(subject: CallUnderTest) -> Iterator[Finding]:
    """Yield a finding for each strategy, and for what is sent, on at most four devices.

    If a process has to be started, the function is sent there: by its module and name, or by cloudpickle.
    """
    if _calls_back(subject):  # the process would end: devices wait for one another, and one for Python
        yield skipped("the function calls back to Python, which devices of one process cannot wait for: not examined")
    elif any(map(is_key, jax.tree.leaves(subject.args))):
        yield skipped("an argument is a typed random key, which is not split over devices: not examined")
    elif subject.axes:
        yield skipped(f"the named axes ({', '.join(subject.axes)}) stand for devices: not split over others")
    elif len(jax.devices()) > 1:
        yield from here(subject)
    else:
        yield from elsewhere(subject)


def _calls_back(subject: CallUnderTest) -> bool:
    program, _ = subject.traced
    return not isinstance(program, str | None) and any("callback" in eqn.primitive.name for eqn in equations(program))


def _recorded(steps: Mapping[tuple[str, int], Any], sizes: Mapping[str, int]) -> Any:
    """Return the shapes at another size of one dimension, as `CallUnderTest.resize` does, from a table."""
    ((name, n),) = sizes.items()
    return steps[name, n]


def _found(module: str, name: str) -> Any:
    """Return what a module holds under a name, which may have dots."""
    return attrgetter(name)(import_module(module))


def _importable(thing: Any) -> tuple[str, str] | None:
    """Return the module and the name that another process can import something by, or None."""
    module, name = getattr(thing, "__module__", None), getattr(thing, "__qualname__", getattr(thing, "__name__", None))
    if not isinstance(module, str) or not isinstance(name, str) or module == "__main__":
        return None
    return (module, name) if attempt(lambda: _found(module, name)) is thing else None


def _remade(parts: CustomVJP) -> Any:
    """Return a custom_vjp made of its parts."""
    made = jax.custom_vjp(parts.primal, nondiff_argnums=tuple(sorted(parts.static)))
    made.defvjp(parts.fwd, parts.bwd, symbolic_zeros=parts.symbolic_zeros)
    return made


def _pickled(thing: Any) -> bytes:
    """Return a pickle, by cloudpickle if it is installed; a custom_vjp that cannot be imported is made of its parts."""
    pickler: Any = import_module("cloudpickle").Pickler if find_spec("cloudpickle") else pickle.Pickler

    class Pickler(pickler):
        def reducer_override(self, thing: Any) -> Any:
            if not isinstance(thing, (type, FunctionType)) and (named := _importable(thing)):
                return _found, named
            if parts := custom_vjp_of(thing):
                return _remade, (parts,)
            return super().reducer_override(thing) if hasattr(pickler, "reducer_override") else NotImplemented

    file = BytesIO()
    Pickler(file).dump(thing)
    return file.getvalue()


def elsewhere(subject: CallUnderTest) -> Iterator[Finding]:
    """Yield the findings from a process of its own, with devices made of the processor's cores."""
    steps = {(name, n + 1): subject.resize({name: n + 1}) for name, n in subject.sizes.items() if subject.resize}
    args, kwargs = jax.device_get((subject.args, dict(subject.kwargs)))
    away = replace(subject, compared=None, vary={}, args=args, kwargs=kwargs, resize=partial(_recorded, steps))
    # Where the function equals its oracle here, a difference elsewhere comes of the devices.
    agreed = subject.undifferentiable is None and attempt(lambda: right(subject)) is True
    sent = attempt(lambda: _pickled((away, agreed)))
    if isinstance(sent, Exception):
        remedy = "" if find_spec("cloudpickle") else "; install cloudpickle, or put it where it can be imported"
        message = "one device here, and the function cannot be sent to a process with more"
        yield skipped(f"{message}: {describe_error(sent)}{remedy}")
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
            yield failed("raises", f"on {MOST_DEVICES} devices it does not end within {SECONDS} s")
            return
        if found.exists():
            yield from pickle.loads(found.read_bytes())
            return
        last = (done.stderr.strip().splitlines() or [""])[-1]
        yield failed("raises", f"the process with {MOST_DEVICES} devices ended with code {done.returncode}: {last}")


def answer() -> None:
    """Examine the subject in the file named first on the command line, and write the findings to the second."""
    given, found = map(Path, sys.argv[1:3])
    away, agreed = pickle.loads(given.read_bytes())
    findings = attempt(lambda: list(here(away, agreed)))
    if isinstance(findings, Exception):  # an error that a rule raises is a finding about that rule
        findings = [failed("raises", f"raises {describe_error(findings)}")]
    found.write_bytes(pickle.dumps(findings))


CLAIM = Claim("sharding", check, alias="V6", needs_oracle=False, cost=(1, 22))
