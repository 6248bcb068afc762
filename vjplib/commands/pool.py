"""The pool of worker processes of `vjplib verify` and `vjplib power`: a job that kills its process ends only itself.

A worker has four devices, made of the processor's cores, so that sharding can be examined; and on Linux no more memory
than is free, so that asking for more raises an error before the system's out-of-memory killer acts.
"""

import gc
import math
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from typing import Any, Literal, NamedTuple

import jax

from vjplib.compat import with_collective_timeout
from vjplib.verification import isolation
from vjplib.verification.report import describe_error

DEVICES = 4
Job = Callable[[], Any]


class Lost(NamedTuple):
    """A job without a result.

    Args:
        code: "raises" for an exception, "died" where its process ended, "timeout" where it had to be killed.
        message: what happened, in a line.
        seconds: how long the job was waited for, where it was killed.
    """

    code: Literal["raises", "died", "timeout"]
    message: str
    seconds: float = 0.0


class _Worker:
    """A process at work on one job at a time."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.heartbeat = context.Value("d", 0.0, lock=False)  # the time at which it last showed that it lives
        work = (theirs, self.heartbeat, sys.path)
        self.process = context.Process(target=_work, args=work, daemon=True, name="vjplib worker")
        self.process.start()
        theirs.close()
        self.number: int | None = None  # of its job

    def start(self, number: int, job: Job) -> None:
        self.number, self.heartbeat.value = number, time.time()
        with suppress(OSError):  # a worker that has died meanwhile: `result` says so
            self.pipe.send(job)

    def result(self) -> Any:
        try:
            return self.pipe.recv()
        except (EOFError, ConnectionError):
            self.process.join()
        code = self.process.exitcode or 0
        ended = signal.Signals(-code).name if code < 0 else f"exit status {code}"
        memory = ", as the system does where memory runs out" if ended == "SIGKILL" else ""
        return Lost("died", f"the process that examined it died by {ended}{memory}")

    def stop(self) -> None:
        self.pipe.close()
        self.process.kill()
        self.process.join()


def run(
    jobs: Sequence[Job], processes: int, patience: float = math.inf, spent: Callable[[Any], bool] = lambda result: False
) -> Iterator[tuple[int, Any]]:
    """Run jobs and yield the number of each with its result, or with a `Lost`, as they end.

    Args:
        jobs: what to run; picklable, and so are the results.
        processes: how many to run at a time; 0 runs the jobs in this process, one after another.
        patience: seconds without a heartbeat (`isolation.heartbeat`) after which a worker is killed.
        spent: takes a result; says whether its worker must not run another job, because threads are left in it.

    Example:
        >>> from functools import partial
        >>> dict(run([partial(int, "3"), partial(int, "three")], processes=0))
        {0: 3, 1: Lost(code='raises', message="ValueError: invalid literal for int() with base 10: 'three'", ...)}
    """
    if processes == 0:
        yield from ((number, _attempt(job)) for number, job in enumerate(jobs))
        return
    waiting = list(range(len(jobs)))[::-1]
    workers = [_Worker() for _ in range(min(processes, len(jobs)))]
    try:
        while waiting or any(w.number is not None for w in workers):
            for w in workers:
                if w.number is None and waiting:
                    w.start(number := waiting.pop(), jobs[number])
            busy = {w.pipe: w for w in workers if w.number is not None}
            left = min(w.heartbeat.value for w in busy.values()) + patience - time.time()
            ready = wait(list(busy), timeout=max(0.0, left) if math.isfinite(left) else None)
            late = [pipe for pipe, w in busy.items() if time.time() > w.heartbeat.value + patience]
            for pipe in dict.fromkeys((*ready, *late)):
                assert isinstance(pipe, Connection)
                w = busy[pipe]
                message = f"did not end within {patience:g} s, and did not let itself be stopped"
                result = w.result() if pipe in ready else Lost("timeout", message, patience)
                number, w.number = w.number, None
                if spent(result) or (isinstance(result, Lost) and result.code != "raises"):
                    w.stop()
                    workers[workers.index(w)] = _Worker()
                assert number is not None
                yield number, result
    finally:
        for w in workers:
            w.stop()


def _attempt(job: Job) -> Any:
    try:
        return job()
    except Exception as error:  # the jobs after it are run all the same
        return Lost("raises", describe_error(error))


def _work(pipe: Connection, heartbeat: Any, path: list[str]) -> None:
    """Run the jobs that come through the pipe until it is closed."""

    def beat() -> None:
        heartbeat.value = time.time()

    isolation.heartbeat = beat
    sys.path[:] = path
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles it
    os.environ["XLA_FLAGS"] = with_collective_timeout(os.environ.get("XLA_FLAGS", ""))
    jax.config.update("jax_num_cpu_devices", DEVICES)
    _limit_memory()
    gc.freeze()  # what is imported stays; looking through it time and again takes a tenth of the examination
    gc.set_threshold(100_000, 20)
    while True:
        try:
            job = pipe.recv()
        except (EOFError, ConnectionError):
            break
        result = _attempt(job)
        with suppress(OSError, ValueError):  # a rule may have closed it
            sys.stdout.flush()
        pipe.send(result)
    os._exit(0)  # threads that never end must not keep the process


def _limit_memory() -> None:
    """Limit this process to the memory that it has and that is free."""
    if sys.platform != "linux" or jax.default_backend() != "cpu":  # GPUs are mapped into more addresses than memory
        return
    import resource

    with open("/proc/self/statm", encoding="ascii") as lines:
        mapped = int(lines.read().split()[0]) * resource.getpagesize()
    with open("/proc/meminfo", encoding="ascii") as lines:
        free = next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    resource.setrlimit(resource.RLIMIT_AS, (mapped + free, resource.getrlimit(resource.RLIMIT_AS)[1]))
