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
    """Run one command and return the exit status: 0 for success, 1 for a failure.

    Args:
        arguments: the command line after `vjplib`; None for that of this process.

    Raises:
        SystemExit: with status 2 and one line of text if the arguments are invalid; with 0 after help or version.

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
        return 130  # the exit status of an interrupted process


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="vjplib", description="JAX layers whose backward rules are derived by hand and proved right by machine."
    )
    parser.add_argument("--version", action="version", version=f"vjplib {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def command(name: str, run: Callable[[argparse.Namespace], int], does: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=does, description=does.replace("%%", "%"))
        added.set_defaults(run=run, error=added.error)
        return added

    for module in COMMANDS:
        module.add(command)
    return parser


def run() -> NoReturn:
    """Run the command of this process and end it, even if a thread is left in compiled code that does not end."""
    status = main()
    if any(thread.name == CHECK for thread in threading.enumerate()):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


if __name__ == "__main__":
    run()
