"""The commands that need no model: passes and schema."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from fxprune.catalog import NO_DEFAULT, Listed, described, listed
from fxprune.cli_options import JsonOption
from fxprune.cli_output import Page, reported
from fxprune.registry import names
from fxprune.schema import json_schema
from fxprune.writing import write_text

__all__ = ["passes_command", "schema_command"]


def _completed(incomplete: str) -> list[str]:
    return [name for name in names() if name.startswith(incomplete)]


NamesArgument = Annotated[
    list[str] | None,
    typer.Argument(metavar="[NAME]...", help="Show these alone.", autocompletion=_completed),
]
OutOption = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Write it there; stdout by default.")
]


def passes_command(chosen: NamesArgument = None, as_json: JsonOption = False) -> None:
    """Print the passes and scores of all installed distributions."""
    page = Page()
    with reported():
        found, broken = (tuple(map(described, chosen)), ()) if chosen else listed()
    if as_json:
        page.json(json.dumps({"passes": list(map(_data, found)), "broken": broken}, indent=2))
        return
    header = ("name", "kind", "needs", "gives", "options", "from")
    page.table(header, [_cells(each) for each in found])
    for fault in broken:
        page.text(f"note: {fault}")


def schema_command(out: OutOption = None) -> None:
    """Print or write the JSON Schema of recipe files."""
    text = json.dumps(json_schema(), indent=2)
    with reported():
        if out is not None:
            write_text(out, f"{text}\n")
    if out is None:
        Page().json(text)


def _data(each: Listed) -> dict[str, Any]:
    """Return a pass as JSON can hold it."""
    options = [
        {
            "name": name,
            "default": None if default is NO_DEFAULT else _plain(default),
            "required": default is NO_DEFAULT,
        }
        for name, default in each.options.items()
    ]
    return {
        "name": each.name,
        "kind": each.kind,
        "summary": each.summary,
        "needs": list(each.needs),
        "gives": list(each.gives),
        "promise": each.promise,
        "options": options,
        "distribution": each.distribution,
    }


def _plain(value: Any) -> Any:
    try:
        return json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError):
        return repr(value)


def _cells(each: Listed) -> tuple[str, ...]:
    options = (
        name if default is NO_DEFAULT else f"{name}={json.dumps(_plain(default))}"
        for name, default in each.options.items()
    )
    return (
        each.name,
        each.kind,
        _joined(each.needs),
        _joined(each.gives),
        _joined(options),
        each.distribution,
    )


def _joined(words: Iterable[str]) -> str:
    return ", ".join(words)
