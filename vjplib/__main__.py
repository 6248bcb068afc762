"""The command line: list, verify, bench and figures. No command loads more than it needs; help starts no backend."""

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from operator import attrgetter, itemgetter
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from rich.console import Console

from vjplib import Report, Rule, __version__
from vjplib.verification import CLAIMS

T = TypeVar("T")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns the exit status: 0 if all is well, 1 if a claim fails.

    Args:
        arguments: the words after `vjplib`; None for those of this process.

    Raises:
        SystemExit: with status 2, after one line of text, if the arguments make no sense; with 0 after help or version.

    Example:
        >>> main(["verify", "tanh", "--quick", "--claims", "V1,V7"])
        ────...
               V1   V7     s
        ────...
        tanh   ok   ok   ...
        ────...
        V1 contract, V7 residuals
        1 of 1 rules verified
        0
    """
    parsed = _parser().parse_args(arguments)
    try:
        return parsed.run(parsed)
    except KeyboardInterrupt:
        return 130  # what a shell reports of a process that was interrupted


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Exits with one line in place of the whole usage."""
        self.exit(2, f"{self.prog}: {message}\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="vjplib", description="JAX layers whose backward rules are derived by hand and proved right by machine."
    )
    parser.add_argument("--version", action="version", version=f"vjplib {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def command(name: str, run: Callable[[argparse.Namespace], int], does: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=does, description=does)
        added.set_defaults(run=run, error=added.error)
        return added

    command("list", _list, "print every rule of the library, why it exists and where its mathematics is found")

    verify = command("verify", _verify, "prove rules right; exit 0 only if every claim of every rule holds")
    _add_targets(verify)
    effort = verify.add_mutually_exclusive_group()
    for name, does in (
        ("quick", "leave out half precision, runs without jit, and compiling at larger sizes"),
        ("deep", "examine every claim at every case, and each case at 20 random sizes"),
    ):
        effort.add_argument(f"--{name}", dest="effort", action="store_const", const=name, help=does)
    verify.add_argument("--claims", type=_claims, metavar="V1,V2", help=f"examine these alone, of {', '.join(CLAIMS)}")
    verify.add_argument("--seed", type=_seed, default=0, metavar="N", help="seed of all random numbers (default 0)")

    bench = command("bench", _bench, "time rules beside autodiff of what users would otherwise call")
    _add_targets(bench)
    bench.add_argument("--quick", action="store_true", help="few repetitions: enough to see a factor of two")
    bench.add_argument("--models", action="store_true", help="time training steps of flax networks in place of rules")
    bench.add_argument(
        "--sweep",
        type=_count,
        metavar="N",
        help="time N random convolutions in place of rules; exit 1 if lax is faster at one",
    )
    bench.add_argument("--seed", type=_seed, default=0, metavar="N", help="seed of the random convolutions (default 0)")
    bench.add_argument("--torch", action="store_true", help="time PyTorch too, where it has the same; installed by you")

    figures = command("figures", _figures, "draw the lecture's figures from running code")
    figures.add_argument("directory", metavar="DIR", help="where the PNG files go; made if it does not exist")
    return parser


def _add_targets(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "targets", nargs="*", metavar="RULE", help="a rule's name, package.module or package.module:name (default: all)"
    )
    parser.add_argument("--json", type=_json_path, metavar="FILE", help="write the results to this file too")


def _claims(text: str) -> tuple[str, ...]:
    claims = tuple(text.upper().split(","))
    if unknown := [c for c in claims if c not in CLAIMS]:
        raise argparse.ArgumentTypeError(f"must be among {', '.join(CLAIMS)}, got {', '.join(unknown)}")
    return claims


def _seed(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"must be an integer of at least 0, got {text}")
    return int(text)


def _count(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"must be an integer of at least 1, got {text}")
    return int(text)


def _json_path(text: str) -> Path:
    path = Path(text)
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"must lie in a folder that exists, got {text}")
    if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        raise argparse.ArgumentTypeError(f"must be a file that can be written, got {text}")
    return path


# --------------------------------------------------------------------------------------------------------- the commands


def _list(parsed: argparse.Namespace) -> int:
    del parsed
    from jax.export import symbolic_shape
    from rich import box
    from rich.table import Table

    from vjplib.catalog import rules

    table = Table(box=box.HORIZONTALS, padding=(0, 1, 0, 0), pad_edge=False)
    for heading in ("rule", "reason", "bytes kept", "source"):
        table.add_column(heading, overflow="fold")
    for rule in rules():
        names = tuple(rule.cases[0].dims)
        sizes = dict(zip(names, symbolic_shape(", ".join(names)), strict=True))
        table.add_row(rule.name, rule.reason, str(rule.residuals(**sizes)) if rule.residuals else "", rule.source)
    Console(highlight=False).print(table)
    return 0


def _verify(parsed: argparse.Namespace) -> int:
    from vjplib.bench import environment
    from vjplib.verification.report import remarks, table

    console = Console(highlight=False)
    effort = parsed.effort or "standard"
    found = _rules(parsed)
    reports = [
        _report(rule, effort, parsed.claims, parsed.seed) for rule in _progress(found, console, attrgetter("name"))
    ]
    if parsed.json:
        content = {"environment": environment(), "effort": effort, "seed": parsed.seed}
        _write(parsed.json, content | {"ok": all(r.ok for r in reports), "reports": [r.to_dict() for r in reports]})
    console.print(table(reports))
    for level in ("fail", "skipped", "note"):
        for line in remarks(reports, (level,)):
            console.print(line, markup=False, soft_wrap=True, style="bold red" if level == "fail" else "dim")
    for report in reports:
        if not report.ok and not report.failures:
            console.print(f"{report.name}: no claim was decided, so nothing is proved", markup=False, style="bold red")
    console.print(f"{sum(r.ok for r in reports)} of {len(reports)} rules verified")
    return 0 if all(r.ok for r in reports) else 1


def _report(rule: Rule, effort: Any, claims: tuple[str, ...] | None, seed: int) -> Report:
    from vjplib import Finding, verify_rule
    from vjplib.verification.report import said

    try:
        return verify_rule(rule, effort=effort, claims=claims, seed=seed)
    except Exception as error:  # a record that cannot be read fails, and the rules after it are examined all the same
        return Report(rule.name, (Finding("V1", "fail", f"the record cannot be used: {said(error)}"),))


def _bench(parsed: argparse.Namespace) -> int:
    from vjplib import bench, peers
    from vjplib.verification.report import said

    if parsed.torch:
        try:
            peers.import_torch()
        except ImportError as error:
            parsed.error(str(error))
    if parsed.sweep:
        return _sweep(parsed)
    if parsed.models:
        return _bench_models(parsed)
    console = Console(highlight=False)
    seconds = _seconds(parsed)
    rows, growths, refused = [], [], []
    for rule in _progress(_rules(parsed), console, attrgetter("name")):
        try:
            of_rule = bench.bench_rule(rule, seconds=seconds)
            rows += peers.with_torch(rule, of_rule, seconds=seconds) if parsed.torch else of_rule
            growths += bench.bench_growth(rule, seconds=seconds)
        except Exception as error:  # what a rule or a baseline raises is told, and the others are timed all the same
            refused.append(f"{rule.name} is not timed: {said(error)}")
        if not rule.bench or not rule.baselines:
            refused.append(f"{rule.name} is not timed: its record must give bench and baselines")
    if parsed.json:
        _write(parsed.json, bench.to_dict(rows, growths) | {"refused": refused})
    for table in bench.tables(rows, growths):
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
    from vjplib import bench_models, models
    from vjplib.verification.report import said

    console = Console(highlight=False)
    steps, refused = [], []
    for name, model in _progress(tuple(models.MODELS.items()), console, itemgetter(0)):
        try:
            steps.append(bench_models.bench_model(name, model, seconds=_seconds(parsed), torch=parsed.torch))
        except Exception as error:  # the other networks are timed all the same
            refused.append(f"{name} is not timed: {said(error)}")
    if parsed.json:
        _write(parsed.json, bench_models.to_dict(steps) | {"refused": refused})
    for table in bench_models.tables(steps):
        console.print(table)
    for line in refused:
        console.print(line, markup=False, soft_wrap=True, style="bold red")
    return 1 if refused else 0


def _sweep(parsed: argparse.Namespace) -> int:
    if parsed.targets or parsed.models:
        parsed.error("--sweep times random convolutions and takes neither a rule nor --models")
    from vjplib import sweep

    console = Console(highlight=False)
    trials = sweep.sweep(parsed.sweep, seed=parsed.seed, seconds=_seconds(parsed) / 10)
    done = []
    for number in _progress(range(parsed.sweep), console, lambda number: f"convolution {number + 1}"):
        del number
        done.append(next(trials))
    if parsed.json:
        _write(parsed.json, sweep.to_dict(done))
    for table in sweep.tables(done):
        console.print(table)
    return 1 if any(trial.slow for trial in done) else 0


def _seconds(parsed: argparse.Namespace) -> float:
    """Returns how long each program is timed."""
    return 0.1 if parsed.quick else 1.5


def _figures(parsed: argparse.Namespace) -> int:
    from vjplib.figures import draw_all

    try:
        print(*draw_all(parsed.directory), sep="\n")
    except (ImportError, OSError) as error:  # an extra that is not installed, a folder that cannot be made
        parsed.error(str(error))
    return 0


# --------------------------------------------------------------------------------------------- what they have in common


def _rules(parsed: argparse.Namespace) -> tuple[Rule, ...]:
    """Returns the records that the targets name, each once; all of the library's where none is named."""
    from vjplib.catalog import find, rules

    if os.getcwd() not in sys.path:  # as `python -m vjplib` has it
        sys.path.insert(0, os.getcwd())
    found: dict[int, Rule] = {}
    for target in parsed.targets:
        try:
            found |= {id(rule): rule for rule in find(target)}
        except ValueError as error:
            parsed.error(str(error))
        except Exception as error:  # whatever the user's module raises while it is imported
            parsed.error(f"{target} cannot be imported: {type(error).__name__}: {error}")
    return tuple(found.values()) or rules()


def _progress(items: Sequence[T], console: Console, name: Callable[[T], str]) -> Iterator[T]:
    """Yields the items, with a bar that names the one at work, if this is a terminal."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=len(items))
        for item in items:
            progress.update(task, description=name(item))
            yield item
            progress.advance(task)


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
