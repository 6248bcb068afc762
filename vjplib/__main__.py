"""The command line. No command loads more than it needs; help starts no backend."""

import argparse
import os
import sys
import threading
from collections.abc import Callable, Sequence
from typing import NoReturn

from vjplib import __version__
from vjplib.commands import COMMANDS
from vjplib.commands.common import Parser
from vjplib.verification.isolation import CHECK


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns the exit status: 0 if all is well, 1 if a claim fails.

    Args:
        arguments: the words after `vjplib`; None for those of this process.

    Raises:
        SystemExit: with status 2, after one line of text, if the arguments make no sense; with 0 after help or version.

    Example:
        >>> main(["verify", "tanh", "--quick", "--claims", "contract,residuals"])
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


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="vjplib", description="JAX layers whose backward rules are derived by hand and proved right by machine."
    )
    parser.add_argument("--version", action="version", version=f"vjplib {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def command(name: str, run: Callable[[argparse.Namespace], int], does: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=does, description=does)
        added.set_defaults(run=run, error=added.error)
        return added

    for module in COMMANDS:
        module.add(command)
    return parser


def run() -> NoReturn:
    """Runs the command of this process and ends that, even if compiled code that does not end was left behind."""
    status = main()
    if any(thread.name == CHECK for thread in threading.enumerate()):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


if __name__ == "__main__":
    run()
