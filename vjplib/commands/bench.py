"""vjplib bench: rules, networks and random convolutions timed; the convolutions and the rules' reasons are checked."""

import argparse
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from operator import attrgetter, itemgetter
from typing import Any

from rich.console import Console
from rich.table import Table

from vjplib.commands.common import Command, add_formats, add_targets, count, places_of, progress, seed, show, write_json
from vjplib.rule import Rule


def add(command: Command) -> None:
    """Add the command."""
    bench = command("bench", _bench, "time rules against autodiff of the functions that users would otherwise call")
    add_targets(bench)
    add_formats(bench, json="JSON")
    bench.add_argument("--quick", action="store_true", help="few repetitions: enough to see a factor of two")
    does = "time training steps of flax networks instead of rules, also with vjplib.keep_memory"
    bench.add_argument("--models", action="store_true", help=does)
    does = "measure the gains that the rules' records claim instead of timing all; exit 1 if one has gone"
    bench.add_argument("--reasons", action="store_true", help=does)
    does = "check and time N random convolutions instead of rules; exit 1 if one is wrong, or slower than lax's"
    bench.add_argument("--sweep", type=count, metavar="N", help=does)
    bench.add_argument("--seed", type=seed, default=0, metavar="N", help="seed of the random convolutions (default 0)")
    does = "also time the equivalent PyTorch operation, if torch is installed"
    bench.add_argument("--torch", action="store_true", help=does)


def _bench(parsed: argparse.Namespace) -> int:
    if parsed.reasons and (parsed.models or parsed.sweep or parsed.torch):
        parsed.error("--reasons measures the gains of rules and takes neither --models, --sweep nor --torch")
    if parsed.torch:
        from vjplib.bench.torch_ops import import_torch

        try:
            import_torch()
        except ImportError as error:
            parsed.error(str(error))
    seconds, console = 0.1 if parsed.quick else 1.5, Console(highlight=False)
    of = _sweep if parsed.sweep else _models if parsed.models else _reasons if parsed.reasons else _rules
    return of(parsed, seconds, console)


def _rules(parsed: argparse.Namespace, seconds: float, console: Console) -> int:
    from vjplib.bench import rules as bench
    from vjplib.bench import tables, torch_ops
    from vjplib.verification.report import describe_error

    rows, growths, refused = [], [], []
    for rule in _targets(parsed, console):
        try:
            of_rule = bench.bench_rule(rule, seconds=seconds)
            rows += torch_ops.with_torch(rule, of_rule, seconds=seconds) if parsed.torch else of_rule
            growths += bench.bench_growth(rule, seconds=seconds)
        except Exception as error:  # whatever a rule or a baseline raises; the other rules are timed
            refused.append(f"{rule.name} is not timed: {describe_error(error)}")
        if not rule.bench or not rule.baselines:
            refused.append(f"{rule.name} is not timed: its record must give bench and baselines")
    content = bench.to_dict(rows, growths) | {"refused": refused}
    return _show(parsed, console, content, tables.of_rules(rows, growths), bench.remarks(rows))


def _targets(parsed: argparse.Namespace, console: Console) -> Iterator[Rule]:
    """Yield the records that the targets name, with a progress bar."""
    found = [place.rule() for place in places_of(parsed.targets, parsed.error)]
    return progress(found, console, attrgetter("name"))


def _reasons(parsed: argparse.Namespace, seconds: float, console: Console) -> int:
    from vjplib.bench import reasons, tables
    from vjplib.verification.report import describe_error

    found, refused = [], []
    for rule in _targets(parsed, console):
        try:
            found += reasons.measure_reason(rule, seconds=seconds)
        except Exception as error:  # whatever a rule or a baseline raises; the other rules are measured
            refused.append(f"{rule.name} is not measured: {describe_error(error)}")
    content = reasons.to_dict(found) | {"refused": refused}
    status = _show(parsed, console, content, tables.of_reasons(found), reasons.remarks(found))
    return 1 if status or any(m.gone for m in found) else 0


def _models(parsed: argparse.Namespace, seconds: float, console: Console) -> int:
    if parsed.targets:
        parsed.error(f"--models times networks and takes no rule, got {' '.join(parsed.targets)}")
    if find_spec("flax") is None:
        parsed.error("flax must be installed to train its networks: pip install 'vjplib[models]'")
    from vjplib.bench import networks, tables, training_steps
    from vjplib.verification.report import describe_error

    steps, refused = [], []
    for name, model in progress(tuple(networks.MODELS.items()), console, itemgetter(0)):
        try:
            steps.append(training_steps.bench_model(name, model, seconds=seconds, torch=parsed.torch))
        except Exception as error:  # the other networks are timed
            refused.append(f"{name} is not timed: {describe_error(error)}")
    return _show(parsed, console, training_steps.to_dict(steps) | {"refused": refused}, tables.of_steps(steps), ())


def _sweep(parsed: argparse.Namespace, seconds: float, console: Console) -> int:
    if parsed.targets or parsed.models:
        parsed.error("--sweep checks and times random convolutions and takes neither a rule nor --models")
    from vjplib.bench import sweep, tables

    trials = sweep.sweep(parsed.sweep, seed=parsed.seed, seconds=seconds / 10)
    numbers = progress(range(parsed.sweep), console, lambda number: f"convolution {number + 1}")
    done = [next(trials) for _ in numbers]
    _show(parsed, console, sweep.to_dict(done), tables.of_sweep(done), sweep.remarks(done))
    return 1 if any(trial.slow or trial.wrong for trial in done) else 0


def _show(
    parsed: argparse.Namespace, console: Console, content: dict[str, Any], tables: Iterable[Table], lines: Iterable[str]
) -> int:
    """Write the JSON file, print the tables, the lines and what is refused, and return 1 if anything is refused."""
    if parsed.json:
        write_json(parsed.json, content)
    for table in tables:
        console.print(table)
    refused = content.get("refused", [])
    show(console, lines)
    show(console, refused, "bold red")
    return 1 if refused else 0
