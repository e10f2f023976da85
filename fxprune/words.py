"""Tables: aligned columns for a file or a pipe, and the same for a terminal."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

__all__ = ["plain_table", "rich_table"]


def plain_table(
    header: tuple[str, ...], rows: list[tuple[str, ...]], right: frozenset[str] = frozenset()
) -> str:
    """Return rows as aligned columns of plain text.

    Args:
        header: the columns' titles.
        rows: cells, one a title.
        right: the titles of columns to align at the right.

    Example:
        >>> print(plain_table(("name", "n"), [("a", "10"), ("bc", "9")], frozenset("n")))
        name   n
        a     10
        bc     9
    """
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = [
        "  ".join(
            cell.rjust(width) if title in right else cell.ljust(width)
            for cell, title, width in zip(row, header, widths, strict=True)
        )
        for row in (header, *rows)
    ]
    return "\n".join(line.rstrip() for line in lines)


def rich_table(
    header: tuple[str, ...],
    rows: list[tuple[str, ...]],
    right: frozenset[str] = frozenset(),
    *,
    footer: bool = False,
) -> Table:
    """Return rows as a table for a rich console; see `plain_table`.

    Args:
        header: the columns' titles.
        rows: cells, one a title.
        right: the titles of columns to align at the right.
        footer: whether the last row is a total.
    """
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    for at, title in enumerate(header):
        side = "right" if title in right else "left"
        table.add_column(title, justify=side, overflow="fold", no_wrap=at > 0)
    for at, row in enumerate(rows, 1):
        style = "bold" if footer and at == len(rows) else None
        table.add_row(*map(Text, row), style=style)
    return table
