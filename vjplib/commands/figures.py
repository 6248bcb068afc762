"""vjplib figures: the lecture's figures."""

import argparse

from vjplib.commands.common import Command


def add(command: Command) -> None:
    """Add the command."""
    figures = command("figures", _figures, "draw the lecture's figures; every number in them is computed")
    figures.add_argument("directory", metavar="DIR", help="folder for the PNG files; made if it does not exist")


def _figures(parsed: argparse.Namespace) -> int:
    from vjplib.lecture.figures import draw_all

    try:
        print(*draw_all(parsed.directory), sep="\n")
    except (ImportError, OSError) as error:  # matplotlib is not installed, or the folder cannot be made
        parsed.error(str(error))
    return 0
