"""Argument types, targets, progress bars and files, for all commands."""

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sized
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, Protocol, TypeVar

from rich.console import Console

from vjplib.rule import Rule, find, rules
from vjplib.verification.registry import resolve

T = TypeVar("T")


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        """Exit with status 2."""
        self.exit(2, f"{self.prog}: {message}\n")


class Command(Protocol):
    """Add a command: its name, the function that runs it and returns the exit status, and its help."""

    def __call__(self, name: str, run: Callable[[argparse.Namespace], int], does: str) -> argparse.ArgumentParser:
        """Return the command's parser; `parsed.error(message)` exits with status 2."""
        ...


def add_targets(parser: argparse.ArgumentParser) -> None:
    """Add the targets, which name rules, and --json."""
    parser.add_argument(
        "targets", nargs="*", metavar="RULE", help="a rule's name, package.module or package.module:name (default: all)"
    )
    parser.add_argument("--json", type=json_path, metavar="FILE", help="also write the results to this file")


def add_effort(parser: argparse.ArgumentParser, quick: str, deep: str) -> Any:
    """Add --quick and --deep, which exclude each other, with their help; return their group."""
    effort = parser.add_mutually_exclusive_group()
    for name, does in (("quick", quick), ("deep", deep)):
        effort.add_argument(f"--{name}", dest="effort", action="store_const", const=name, help=does)
    return effort


def add_jobs(parser: argparse.ArgumentParser) -> None:
    """Add --jobs."""
    parser.add_argument(
        "--jobs",
        type=seed,
        default=min(2, os.cpu_count() or 1),
        metavar="N",
        help="worker processes (default 2); 0 runs everything in this process, for a debugger",
    )


def claims(text: str) -> tuple[str, ...]:
    """Return the names of the claims in a list such as "value,V5"."""
    try:
        return tuple(claim.name for claim in resolve(text.split(",")) or ())
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error).removeprefix("claims ")) from error


def seed(text: str) -> int:
    """Return a seed, an integer of at least 0."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"must be an integer of at least 0, got {text}")
    return int(text)


def seconds(text: str) -> float:
    """Return a positive number of seconds."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < 1e9:
        raise argparse.ArgumentTypeError(f"must be a positive number of seconds, below 1e9, got {text}")
    return number


def count(text: str) -> int:
    """Return an integer of at least 1."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"must be an integer of at least 1, got {text}")
    return int(text)


def json_path(text: str) -> Path:
    """Return the path of a file that can be written."""
    path = Path(text)
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"must lie in a folder that exists, got {text}")
    if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        raise argparse.ArgumentTypeError(f"must be a file that can be written, got {text}")
    return path


def must_differ(parsed: argparse.Namespace, *options: str) -> None:
    """Refuse one file for two options: the second would overwrite the first's."""
    taken: dict[Path, str] = {}
    for option in options:
        if path := getattr(parsed, option):
            other = taken.setdefault(path.resolve(), option)
            if other != option:
                parsed.error(f"--{other} and --{option} must be different files, got {path} for both")


class RuleTarget(NamedTuple):
    """Where a record is found: a worker process looks it up there.

    Args:
        name: the record's.
        target: the command-line target that names it, None for the whole library.
        number: which of the target's records it is.
    """

    name: str
    target: str | None
    number: int

    def rule(self) -> Rule:
        """Return the record."""
        return (rules() if self.target is None else find(self.target))[self.number]


def places_of(parsed: argparse.Namespace) -> list[RuleTarget]:
    """Return where the records that the targets name are found, each once; the library's where none is named."""
    if os.getcwd() not in sys.path:  # as `python -m vjplib` has it
        sys.path.insert(0, os.getcwd())
    found: dict[int, RuleTarget] = {}
    for target in parsed.targets:
        try:
            for i, rule in enumerate(find(target)):
                found.setdefault(id(rule), RuleTarget(rule.name, target, i))
        except ValueError as error:
            parsed.error(str(error))
        except (Exception, SystemExit) as error:  # whatever the user's module raises while it is imported
            parsed.error(f"{target} cannot be imported: {type(error).__name__}: {error}")
    return list(found.values()) or [RuleTarget(rule.name, None, i) for i, rule in enumerate(rules())]


def rules_of(parsed: argparse.Namespace) -> tuple[Rule, ...]:
    """Return the records that the targets name, each once; all of the library's where none is named."""
    return tuple(place.rule() for place in places_of(parsed))


def progress(items: Iterable[T], console: Console, name: Callable[[T], str], total: int | None = None) -> Iterator[T]:
    """Yield the items, with a progress bar that names the current one if this is a terminal.

    Args:
        items: the items.
        console: the terminal.
        name: takes an item; returns its name.
        total: the number of items; None for their length.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=len(items) if isinstance(items, Sized) else total)
        for item in items:
            bar.update(task, description=name(item))
            yield item
            bar.advance(task)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write JSON to a file."""
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
