"""vjplib figures: the lecture's figures."""

import argparse

from vjplib.commands.common import Command


def add(command: Command) -> None:
    """Adds the command."""
    figures = command("figures", _figures, "draw the lecture's figures from running code")
    figures.add_argument("directory", metavar="DIR", help="where the PNG files go; made if it does not exist")


def _figures(parsed: argparse.Namespace) -> int:
    from vjplib.lecture.figures import draw_all

    try:
        print(*draw_all(parsed.directory), sep="\n")
    except (ImportError, OSError) as error:  # an extra that is not installed, a folder that cannot be made
        parsed.error(str(error))
    return 0
