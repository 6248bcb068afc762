"""Tables for a terminal, all in one style."""

from collections.abc import Iterable

from rich import box
from rich.table import Column, Table


def grid(title: str, texts: Iterable[str], numbers: Iterable[str] = ()) -> Table:
    """Return a table without rows: columns of text that may be folded, then columns of numbers."""
    columns = [Column(name, overflow="fold") for name in texts]
    columns += [Column(name, justify="right", no_wrap=True) for name in numbers]
    style = {"title_justify": "left", "box": box.HORIZONTALS, "padding": (0, 1, 0, 0), "pad_edge": False}
    return Table(*columns, title=title, **style)
