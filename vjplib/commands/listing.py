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

    from vjplib.reports.tables import grid
    from vjplib.rule import rules

    table = grid("", ("rule", "reason, and gains that vjplib bench --reasons measures", "bytes kept", "source"))
    for rule in rules():
        names = tuple(rule.cases[0].dims)
        sizes = dict(zip(names, symbolic_shape(", ".join(names)), strict=True))
        kept = str(rule.residual_bytes(**sizes)) if rule.residual_bytes else ""
        table.add_row(rule.name, "\n".join((rule.reason, *(f"- {text}" for text in rule.claimed()))), kept, rule.source)
    Console(highlight=False).print(table)
    return 0
