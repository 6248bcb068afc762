"""What the commands have in common: argument types, targets, progress and files."""

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sized
from pathlib import Path
from typing import Any, NoReturn, Protocol, TypeVar

from rich.console import Console

from vjplib.rule import Rule
from vjplib.verification.registry import resolve

T = TypeVar("T")


class Parser(argparse.ArgumentParser):
    """A parser that exits with one line in place of the whole usage."""

    def error(self, message: str) -> NoReturn:
        """Exits with status 2."""
        self.exit(2, f"{self.prog}: {message}\n")


class Command(Protocol):
    """Adds a command: its name, what runs it and returns the exit status, and what it does, in a line."""

    def __call__(self, name: str, run: Callable[[argparse.Namespace], int], does: str) -> argparse.ArgumentParser:
        """Returns the command's parser; `error` of the namespace that run is given exits with status 2."""
        ...


def add_targets(parser: argparse.ArgumentParser) -> None:
    """Adds the rules to work on, and --json."""
    parser.add_argument(
        "targets", nargs="*", metavar="RULE", help="a rule's name, package.module or package.module:name (default: all)"
    )
    parser.add_argument("--json", type=json_path, metavar="FILE", help="write the results to this file too")


def add_effort(parser: argparse.ArgumentParser, quick: str, deep: str) -> Any:
    """Adds --quick and --deep, of which one may be given, with what they do; returns their group."""
    effort = parser.add_mutually_exclusive_group()
    for name, does in (("quick", quick), ("deep", deep)):
        effort.add_argument(f"--{name}", dest="effort", action="store_const", const=name, help=does)
    return effort


def add_jobs(parser: argparse.ArgumentParser, each: str = "a rule in each") -> None:
    """Adds --jobs, how many processes are at work at a time; each says what one of them works on."""
    parser.add_argument(
        "--jobs",
        type=seed,
        default=min(2, os.cpu_count() or 1),
        metavar="N",
        help=f"processes at work at a time, {each} (default 2); 0 for this one alone, as for a debugger",
    )


def claims(text: str) -> tuple[str, ...]:
    """Return the names of the claims in a list such as "value,V5"."""
    try:
        return tuple(claim.name for claim in resolve(text.split(",")) or ())
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error).removeprefix("claims ")) from error


def seed(text: str) -> int:
    """Returns a seed, an integer of at least 0."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"must be an integer of at least 0, got {text}")
    return int(text)


def seconds(text: str) -> float:
    """Returns a positive number of seconds."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < 1e9:
        raise argparse.ArgumentTypeError(f"must be a positive number of seconds, below 1e9, got {text}")
    return number


def count(text: str) -> int:
    """Returns an integer of at least 1."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"must be an integer of at least 1, got {text}")
    return int(text)


def json_path(text: str) -> Path:
    """Returns the path of a file that can be written."""
    path = Path(text)
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"must lie in a folder that exists, got {text}")
    if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        raise argparse.ArgumentTypeError(f"must be a file that can be written, got {text}")
    return path


def must_differ(parsed: argparse.Namespace, *options: str) -> None:
    """Refuses a file that two options would write to, of which the second would overwrite the first's."""
    taken: dict[Path, str] = {}
    for option in options:
        if path := getattr(parsed, option):
            other = taken.setdefault(path.resolve(), option)
            if other != option:
                parsed.error(f"--{other} and --{option} must be different files, got {path} for both")


def rules_of(parsed: argparse.Namespace) -> tuple[Rule, ...]:
    """Returns the records that the targets name, each once; all of the library's where none is named."""
    return tuple(rule for rule, _, _ in places_of(parsed))


def places_of(parsed: argparse.Namespace) -> list[tuple[Rule, str | None, int]]:
    """Returns `rules_of`, each with the target that names it, None for the library, and its number among those."""
    from vjplib.rule import find, rules

    if os.getcwd() not in sys.path:  # as `python -m vjplib` has it
        sys.path.insert(0, os.getcwd())
    found: dict[int, tuple[Rule, str | None, int]] = {}
    for target in parsed.targets:
        try:
            for i, rule in enumerate(find(target)):
                found.setdefault(id(rule), (rule, target, i))
        except ValueError as error:
            parsed.error(str(error))
        except (Exception, SystemExit) as error:  # whatever the user's module raises while it is imported
            parsed.error(f"{target} cannot be imported: {type(error).__name__}: {error}")
    return list(found.values()) or [(rule, None, i) for i, rule in enumerate(rules())]


def progress(items: Iterable[T], console: Console, name: Callable[[T], str], total: int | None = None) -> Iterator[T]:
    """Yields the items, with a bar that names the last one come, if this is a terminal.

    Args:
        items: what to yield.
        console: where the bar is drawn.
        name: how an item is called.
        total: how many items there are; None for their length.
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
    """Writes JSON to a file."""
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
