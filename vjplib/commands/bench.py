"""vjplib bench: rules, networks and random convolutions timed; the convolutions are checked too."""

import argparse
from importlib.util import find_spec
from operator import attrgetter, itemgetter

from rich.console import Console

from vjplib.commands.common import Command, add_targets, count, progress, rules_of, seed, write_json


def add(command: Command) -> None:
    """Add the command."""
    bench = command("bench", _bench, "time rules against autodiff of the functions that users would otherwise call")
    add_targets(bench)
    bench.add_argument("--quick", action="store_true", help="few repetitions: enough to see a factor of two")
    bench.add_argument("--models", action="store_true", help="time training steps of flax networks instead of rules")
    bench.add_argument(
        "--sweep",
        type=count,
        metavar="N",
        help="check and time N random convolutions instead of rules; exit 1 if one is wrong, or slower than lax's",
    )
    bench.add_argument("--seed", type=seed, default=0, metavar="N", help="seed of the random convolutions (default 0)")
    bench.add_argument(
        "--torch", action="store_true", help="also time the equivalent PyTorch operation, if torch is installed"
    )


def _bench(parsed: argparse.Namespace) -> int:
    from vjplib.bench import rules as bench
    from vjplib.bench import tables, torch_ops
    from vjplib.verification.report import describe_error

    if parsed.torch:
        try:
            torch_ops.import_torch()
        except ImportError as error:
            parsed.error(str(error))
    if parsed.sweep:
        return _sweep(parsed)
    if parsed.models:
        return _bench_models(parsed)
    console = Console(highlight=False)
    seconds = _seconds(parsed)
    rows, growths, refused = [], [], []
    for rule in progress(rules_of(parsed), console, attrgetter("name")):
        try:
            of_rule = bench.bench_rule(rule, seconds=seconds)
            rows += torch_ops.with_torch(rule, of_rule, seconds=seconds) if parsed.torch else of_rule
            growths += bench.bench_growth(rule, seconds=seconds)
        except Exception as error:  # whatever a rule or a baseline raises; the other rules are timed
            refused.append(f"{rule.name} is not timed: {describe_error(error)}")
        if not rule.bench or not rule.baselines:
            refused.append(f"{rule.name} is not timed: its record must give bench and baselines")
    if parsed.json:
        write_json(parsed.json, bench.to_dict(rows, growths) | {"refused": refused})
    for table in tables.of_rules(rows, growths):
        console.print(table)
    for line in bench.remarks(rows):
        console.print(line, markup=False, soft_wrap=True)
    for line in refused:
        console.print(line, markup=False, soft_wrap=True, style="bold red")
    return 1 if refused else 0


def _bench_models(parsed: argparse.Namespace) -> int:
    if parsed.targets:
        parsed.error(f"--models times networks and takes no rule, got {' '.join(parsed.targets)}")
    if find_spec("flax") is None:
        parsed.error("flax must be installed to train its networks: pip install 'vjplib[models]'")
    from vjplib.bench import networks, tables, training_steps
    from vjplib.verification.report import describe_error

    console = Console(highlight=False)
    steps, refused = [], []
    for name, model in progress(tuple(networks.MODELS.items()), console, itemgetter(0)):
        try:
            steps.append(training_steps.bench_model(name, model, seconds=_seconds(parsed), torch=parsed.torch))
        except Exception as error:  # the other networks are timed
            refused.append(f"{name} is not timed: {describe_error(error)}")
    if parsed.json:
        write_json(parsed.json, training_steps.to_dict(steps) | {"refused": refused})
    for table in tables.of_steps(steps):
        console.print(table)
    for line in refused:
        console.print(line, markup=False, soft_wrap=True, style="bold red")
    return 1 if refused else 0


def _sweep(parsed: argparse.Namespace) -> int:
    if parsed.targets or parsed.models:
        parsed.error("--sweep checks and times random convolutions and takes neither a rule nor --models")
    from vjplib.bench import sweep, tables

    console = Console(highlight=False)
    trials = sweep.sweep(parsed.sweep, seed=parsed.seed, seconds=_seconds(parsed) / 10)
    done = []
    for number in progress(range(parsed.sweep), console, lambda number: f"convolution {number + 1}"):
        del number
        done.append(next(trials))
    if parsed.json:
        write_json(parsed.json, sweep.to_dict(done))
    for table in tables.of_sweep(done):
        console.print(table)
    for line in sweep.remarks(done):
        console.print(line, markup=False, soft_wrap=True)
    return 1 if any(trial.slow or trial.wrong for trial in done) else 0


def _seconds(parsed: argparse.Namespace) -> float:
    """Return how long to time each program."""
    return 0.1 if parsed.quick else 1.5
