"""Words for messages: values as recipes write them, hints, near names, dtypes and tables."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:  # it takes seconds to import
    import torch

LONGEST_SHOWN = 60
_HINTS = {
    "": "write each rule under its own [[rule]]",
    "amount": "give a share between 0.0 and 1.0 or a count of 0 or more",
    "args": "give a table of keyword arguments",
    "coupled": "write true or false",
    "dim": "give a whole number, as dim = 0",
    "export": "write [export]",
    "finalize": "write [finalize]",
    "formats": 'give a list, as formats = ["pt2", "safetensors"]',
    "group": "give a text on one line, of 200 characters at most",
    "mask": "give the path of a .safetensors, .pt, .pth or .bin file",
    "max_share": "give a share between 0.0 and 1.0",
    "match": 'write match = "relu(conv2d(_, W))"',
    "method": 'give a name, as method = "l1_unstructured"',
    "min_keep": "give a whole number of 1 or more",
    "min_numel": "give a whole number of 0 or more",
    "n": "give a number, 'fro', 'nuc', 'inf' or '-inf'",
    "name": "give a text on one line, of 200 characters at most",
    "ndim": "give a whole number of 0 or more, or a list of them",
    "optional": "write true or false",
    "pass": "write each pass under its own [[pass]]",
    "passes": "give a list of passes",
    "prune": 'give a capital name of match, or a list of them, as prune = "W"',
    "round_to": "give a whole number of 1 or more",
    "rule": "write each rule under its own [[rule]]",
    "rules": "give a list of rules",
    "seed": "give a whole number from 0 to 2**64 - 1",
    "select": 'write select = { path = "conv1.weight" }',
    "version": "write version = 1",
}


def show(value: object) -> str:
    """Return a value as a recipe writes it, on one line, shortened.

    Example:
        >>> show(True), show([1, 2]), show(None), show(0.5)
        ('true', '[...]', 'null', '0.5')
    """
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list | tuple):
        return "[...]" if value else "[]"
    if isinstance(value, Mapping):
        return "{...}"
    if isinstance(value, int) and value.bit_length() > 64:  # Python may refuse to print its digits
        return f"a number of {value.bit_length()} bits"
    if not isinstance(value, str | int | float):
        return f"<{type(value).__name__}>"
    return shorten(repr(value[: LONGEST_SHOWN + 1]) if isinstance(value, str) else repr(value))


def plain(text: str) -> str:
    r"""Return a text with its control characters escaped, so that a terminal prints it as it is.

    Example:
        >>> print(plain("a" + chr(27) + "[2J"))
        a\x1b[2J
    """
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def choices(value: object, known: Sequence[str]) -> str:
    """Return what to say of a name that is none of the known ones.

    Example:
        >>> choices("globl", ["local", "global"])
        "is not known; did you mean 'global'? Known: 'local', 'global'"
    """
    close = nearest(value, known) if isinstance(value, str) else None
    names = ", ".join(f"'{name}'" for name in known)
    if close:
        return f"is not known; did you mean '{close}'? Known: {names}"
    return f"is not known; known: {names}"


def hint(key: str) -> str:
    """Return what to give for a key."""
    return _HINTS.get(key, "give a name or a list of names")


def shorten(text: str) -> str:
    """Return a text of at most 60 characters, cut at its end."""
    return text if len(text) <= LONGEST_SHOWN else text[: LONGEST_SHOWN - 3] + "..."


def nearest(name: str, known: Iterable[str], *, cutoff: float = 0.6) -> str | None:
    """Return the known name that is most like another one; None where none is like it.

    Example:
        >>> nearest("wieght", ["bias", "weight"]), nearest("scale", ["bias", "weight"])
        ('weight', None)
    """
    found = difflib.get_close_matches(name, list(known), n=1, cutoff=cutoff)
    return found[0] if found else None


def did_you_mean(name: str, known: Iterable[str], otherwise: str = "") -> str:
    """Return the question whether the nearest known name is meant, or else another text.

    Example:
        >>> did_you_mean("wieght", ["bias", "weight"])
        "did you mean 'weight'?"
        >>> did_you_mean("scale", ["bias", "weight"], "there are bias, weight")
        'there are bias, weight'
    """
    near = nearest(name, known)
    return otherwise if near is None else f"did you mean {near!r}?"


def dtype_name(dtype: torch.dtype) -> str:
    """Return a dtype's name without torch's, as recipes and files have it."""
    return str(dtype).removeprefix("torch.")


def plain_table(
    header: tuple[str, ...], rows: list[tuple[str, ...]], right: frozenset[str] = frozenset()
) -> str:
    """Return rows as aligned columns of plain text, those with a title of `right` at the right.

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
    """Return rows as a table for a rich console; `footer`: the last row is a total."""
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    for at, title in enumerate(header):
        side = "right" if title in right else "left"
        table.add_column(title, justify=side, overflow="fold", no_wrap=at > 0)
    for at, row in enumerate(rows, 1):
        style = "bold" if footer and at == len(rows) else None
        table.add_row(*map(Text, row), style=style)
    return table
