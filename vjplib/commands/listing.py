"""vjplib list: every rule of the library."""

import argparse

from rich.console import Console

from vjplib.commands.common import Command


def add(command: Command) -> None:
    """Add the command."""
    command("list", _list, "list every rule of the library, with its reason to exist and its source")


def _list(parsed: argparse.Namespace) -> int:
    del parsed
    from jax.export import symbolic_shape
    from rich import box
    from rich.table import Table

    from vjplib.rule import rules

    table = Table(box=box.HORIZONTALS, padding=(0, 1, 0, 0), pad_edge=False)
    for heading in ("rule", "reason", "bytes kept", "source"):
        table.add_column(heading, overflow="fold")
    for rule in rules():
        names = tuple(rule.cases[0].dims)
        sizes = dict(zip(names, symbolic_shape(", ".join(names)), strict=True))
        table.add_row(
            rule.name, rule.reason, str(rule.residual_bytes(**sizes)) if rule.residual_bytes else "", rule.source
        )
    Console(highlight=False).print(table)
    return 0
