"""Argument types, targets, progress bars and files, for all commands."""

import argparse
import difflib
import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, TypeVar

from rich.console import Console

from vjplib.rule import Rule, find, rules
from vjplib.verification.claim import EFFORTS
from vjplib.verification.registry import resolve

T = TypeVar("T")


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, without the usage, and name the nearest choice."""

    def error(self, message: str) -> NoReturn:
        """Exit with status 2."""
        if known := re.search(r"invalid choice: '(.*?)' \(choose from (.*)\)", message):
            given, choices = known[1], re.findall(r"[\w-]+", known[2])
            if near := difflib.get_close_matches(given, choices, 1):
                message = f"{message}; did you mean {near[0]!r}?"
        self.exit(2, f"{self.prog}: {message}\n")


Command = Callable[[str, Callable[[argparse.Namespace], int], str], argparse.ArgumentParser]
"""Adds a command by its name, the function that runs it and returns the exit status, and its help.

It returns the command's parser; `parsed.error(message)` of what the parser reads exits with status 2.
"""


def add_targets(parser: argparse.ArgumentParser, more: str = "") -> None:
    """Add the targets, which name rules, or `more`, which the help names too."""
    does = f"a rule's name, package.module or package.module:name{more} (default: all)"
    parser.add_argument("targets", nargs="*", metavar="RULE", help=does)


def add_formats(parser: argparse.ArgumentParser, **formats: str) -> None:
    """Add an option for each format that the results can be written in."""
    for name, does in formats.items():
        does = f"also write the results to this file, as {does}"
        parser.add_argument(f"--{name}", type=output_path, metavar="FILE", help=does)


def add_effort(parser: argparse.ArgumentParser, quick: str, deep: str) -> None:
    """Add --quick, --deep and --effort, which exclude one another."""
    effort = parser.add_mutually_exclusive_group()
    for name, does in (("quick", quick), ("deep", deep)):
        effort.add_argument(f"--{name}", dest="effort", action="store_const", const=name, help=does)
    effort.add_argument("--effort", choices=EFFORTS, help="the effort by name (default: standard)")


def add_jobs(parser: argparse.ArgumentParser) -> None:
    """Add --jobs."""
    parser.add_argument(
        "--jobs",
        type=_at_least(0),
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


def seconds(text: str) -> float:
    """Return a positive number of seconds."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < 1e9:
        raise argparse.ArgumentTypeError(f"must be a positive number of seconds, below 1e9, got {text}")
    return number


def _at_least(least: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"must be an integer of at least {least}, got {text}")
        return int(text)

    return read


seed, count = _at_least(0), _at_least(1)


def output_path(text: str) -> Path:
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


def import_from_here() -> None:
    """Let modules of the current directory be imported, as `python -m vjplib` has it."""
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())


def places_of(targets: Sequence[str], refuse: Callable[[str], Any]) -> list[RuleTarget]:
    """Return where the records that the targets name are found, each once; the library's where none is named."""
    import_from_here()
    found: dict[int, RuleTarget] = {}
    for target in targets:
        try:
            for i, rule in enumerate(find(target)):
                found.setdefault(id(rule), RuleTarget(rule.name, target, i))
        except ValueError as error:
            refuse(str(error))
        except (Exception, SystemExit) as error:  # whatever the user's module raises while it is imported
            refuse(f"{target} cannot be imported: {type(error).__name__}: {error}")
    return list(found.values()) or [RuleTarget(rule.name, None, i) for i, rule in enumerate(rules())]


def progress(items: Iterable[T], console: Console, name: Callable[[T], str], total: int | None = None) -> Iterator[T]:
    """Yield the items, with a progress bar that names the current one if this is a terminal.

    `total` is the number of items where they have no length.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=len(items) if isinstance(items, Sized) else total)
        for item in items:
            bar.update(task, description=name(item))
            yield item
            bar.advance(task)


def show(console: Console, lines: Iterable[str], style: str = "") -> None:
    """Print lines of text as they are: nothing in them is markup, and a terminal breaks them."""
    for line in lines:
        console.print(line, markup=False, soft_wrap=True, style=style)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write JSON to a file."""
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
