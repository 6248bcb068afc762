"""Processes of their own for rules under examination: what kills one, or never ends, is a finding and not the end.

A process has four devices, made of the processor's cores, so that sharding can be examined; and on Linux no more memory
than is free, so that asking for more raises an error instead of waking the system's killer.
"""

import gc
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple

from vjplib.compat import with_collective_timeout
from vjplib.verification import isolation
from vjplib.verification.registry import CLAIMS, order
from vjplib.verification.report import Finding, Report, describe_error, failed

DEVICES = 4
MOST_PARTS = 4  # that one record's claims are shared out to: each compiles what the others do too
GRACE = 60.0  # seconds beside those that the claims may take


class Task(NamedTuple):
    """A record to examine: the command-line target that names it, None for the whole library, and which of those.

    Claims are those to examine, None for the ones of the options.
    """

    name: str
    target: str | None
    number: int
    claims: tuple[str, ...] | None = None


def shared_out(task: Task, effort: str, claims: Sequence[str], parts: int) -> list[Task]:
    """Returns a task as several, each with some of the claims, that take about as long.

    Args:
        task: the record to examine.
        effort: "quick", "standard" or "deep".
        claims: all that are to be examined of it.
        parts: how many tasks there may be.

    Example:
        >>> parts = shared_out(Task("tanh", "tanh", 0), "quick", tuple(CLAIMS)[:5], 2)
        >>> [part.claims for part in parts]
        [('contract', 'transforms'), ('value', 'linearity', 'second_order')]
    """
    takes = {claim.name: claim.cost[effort != "quick"] for claim in CLAIMS.values()}
    groups: list[list[str]] = [[] for _ in range(max(1, min(parts, MOST_PARTS, len(claims))))]
    for claim in sorted(claims, key=lambda c: -takes.get(c, 1)):
        min(groups, key=lambda group: sum(takes.get(c, 1) for c in group)).append(claim)
    ordered = [tuple(sorted(group, key=order)) for group in groups]
    return [task._replace(claims=group) for group in ordered] if len(ordered) > 1 else [task]


def joined(reports: Sequence[Report]) -> Report:
    """Returns the reports on parts of one record's claims as one; what several tell alike stands once.

    Example:
        >>> died = Finding("contract", "fail", "the process died")
        >>> joined([Report("f", (died, Finding("value", "pass", "right"))), Report("f", (died,))]).findings
        (Finding(claim='contract', ...), Finding(claim='value', ...))
    """
    if len(reports) == 1:
        return reports[0]
    findings: list[Finding] = []
    for report in reports:
        told = set(map(_what, findings))
        findings += [f for f in report.findings if _what(f) not in told]
    ordered = sorted(findings, key=lambda f: order(f.claim))
    return Report(reports[0].name, tuple(ordered), max(report.seconds for report in reports))


def _what(finding: Finding) -> Any:
    """Return the deduplication key of a finding: what a rule prints counts once, whatever its first line."""
    return finding.code if finding.code == "prints" else finding


class _Worker:
    """A process at work on one task at a time."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.beaten = context.Value("d", 0.0, lock=False)  # when the last job of the task began
        work = (theirs, self.beaten, sys.path)
        self.process = context.Process(target=_work, args=work, daemon=True, name="vjplib worker")
        self.process.start()
        theirs.close()
        self.task: int | None = None

    def stop(self) -> None:
        self.pipe.close()
        self.process.kill()
        self.process.join()


def reports(tasks: Sequence[Task], options: Mapping[str, Any], processes: int) -> Iterator[tuple[int, Report]]:
    """Yields the number and the report of each task, as they end.

    Args:
        tasks: the records to examine.
        options: those of `verify_rule`, `time_limit` among them.
        processes: how many are at work at a time.
    """
    patience = 2 * options["time_limit"] + GRACE  # from one job to the next
    waiting = list(range(len(tasks)))[::-1]
    workers = [_Worker() for _ in range(min(processes, len(tasks)))]
    try:
        while waiting or any(w.task is not None for w in workers):
            for w in workers:
                if w.task is None and waiting:
                    w.task, w.beaten.value = waiting.pop(), time.time()
                    with suppress(OSError):  # a worker that died meanwhile is met below
                        w.pipe.send((tasks[w.task], dict(options)))
            busy = {w.pipe: w for w in workers if w.task is not None}
            first = min(w.beaten.value for w in busy.values())
            ready = wait(list(busy), timeout=max(0.0, first + patience - time.time()))
            for pipe in ready:
                assert isinstance(pipe, Connection)
                w = busy[pipe]
                number, report, whole = w.task, *_received(w, tasks)
                assert number is not None
                w.task = None
                if not whole:
                    w.stop()
                    workers[workers.index(w)] = _Worker()
                yield number, report
            for w in [w for w in busy.values() if w.task is not None and time.time() > w.beaten.value + patience]:
                number = w.task
                assert number is not None
                w.stop()
                workers[workers.index(w)] = _Worker()
                message = f"did not end within {patience:g} s, and did not let itself be stopped"
                yield number, Report(tasks[number].name, (failed("timeout", message, claim="contract"),), patience)
    finally:
        for w in workers:
            w.stop()


def _received(w: _Worker, tasks: Sequence[Task]) -> tuple[Report, bool]:
    """Returns a worker's report, and whether the worker can go on."""
    try:
        return w.pipe.recv()
    except (EOFError, ConnectionError):
        w.process.join()
        code = w.process.exitcode or 0
        ended = signal.Signals(-code).name if code < 0 else f"exit status {code}"
        message = f"the process that examined it died by {ended}"
        if ended == "SIGKILL":
            message += ", as the system does where memory runs out"
        assert w.task is not None
        return Report(tasks[w.task].name, (failed("died", message, claim="contract"),)), False


def _work(pipe: Connection, beaten: Any, path: list[str]) -> None:
    """Examines what comes through the pipe until it is closed."""

    def heart() -> None:
        beaten.value = time.time()

    isolation.heartbeat = heart
    sys.path[:] = path
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent's to answer
    import jax

    os.environ["XLA_FLAGS"] = with_collective_timeout(os.environ.get("XLA_FLAGS", ""))
    jax.config.update("jax_num_cpu_devices", DEVICES)
    _limit_memory()
    gc.freeze()  # what is imported stays; looking through it time and again takes a tenth of the examination
    gc.set_threshold(100_000, 20)
    while True:
        try:
            task, options = pipe.recv()
        except (EOFError, ConnectionError):
            break
        report = examined(task, options)
        whole = not any(f.code == "timeout" for f in report.failures)
        with suppress(OSError, ValueError):  # a rule may have closed it
            sys.stdout.flush()
        pipe.send((report, whole))
        if not whole:
            break
    os._exit(0)  # threads that never end must not keep the process


def examined(task: Task, options: Mapping[str, Any]) -> Report:
    """Returns the report of a task, in this process."""
    from vjplib.rule import find, rules
    from vjplib.verification.api import verify_part

    try:
        rule = (rules() if task.target is None else find(task.target))[task.number]
        others = {name: value for name, value in options.items() if name != "claims"}
        return verify_part(rule, task.claims or options["claims"], options["claims"], **others)
    except Exception as error:  # a record that cannot be read fails, and the rules after it are examined all the same
        message = f"the record cannot be used: {describe_error(error)}"
        return Report(task.name, (failed("unusable_record", message, claim="contract"),))


def _limit_memory() -> None:
    """Lets this process have what it has and the memory that is free, and no more."""
    if sys.platform != "linux":
        return
    import resource

    import jax

    if jax.default_backend() != "cpu":  # GPUs are mapped into more addresses than there is memory
        return
    with open("/proc/self/statm", encoding="ascii") as lines:
        mapped = int(lines.read().split()[0]) * resource.getpagesize()
    with open("/proc/meminfo", encoding="ascii") as lines:
        free = next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    resource.setrlimit(resource.RLIMIT_AS, (mapped + free, resource.getrlimit(resource.RLIMIT_AS)[1]))
