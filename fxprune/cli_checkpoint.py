"""The command that prunes a checkpoint on disk."""

from __future__ import annotations

import sys
from pathlib import Path
from types import TracebackType
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from fxprune.checkpoint import prune_checkpoint
from fxprune.cli_output import Page, reported
from fxprune.recipe_errors import plain

__all__ = ["checkpoint_command"]


class _Bar:
    """A bar on stderr for the step that runs; nothing where stderr is no terminal."""

    def __init__(self) -> None:
        columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn())
        console = Console(file=sys.stderr)
        hidden = not console.is_terminal
        self._bars = Bars(
            *columns, TimeRemainingColumn(), console=console, transient=True, disable=hidden
        )
        self._task = self._bars.add_task("", total=None)
        self._step = ""

    def __enter__(self) -> _Bar:
        self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bars.stop()

    def __call__(self, step: str, done: int, total: int) -> None:
        if step != self._step:
            self._step = step
            self._bars.reset(self._task, description=plain(step))
        self._bars.update(self._task, completed=done, total=total)


def checkpoint_command(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="IN", help="A .safetensors file, or a .safetensors.index.json with its shards."
        ),
    ],
    recipe: Annotated[Path, typer.Option(metavar="FILE", help="A .toml or .json recipe.")],
    out: Annotated[
        Path,
        typer.Option(metavar="OUT", help="The file to write; for an index, the folder."),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")] = False,
) -> None:
    """Prune a checkpoint and print what each rule did."""
    page = Page()
    with reported(), _Bar() as bar:
        report = prune_checkpoint(source, recipe, out, on_progress=bar)
    if as_json:
        page.text(report.to_json())
        return
    page.text(str(report))
    page.files(report.files)
