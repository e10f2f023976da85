"""The command line: compile and demo; the other commands are in files of their own.

The command that prunes a checkpoint on disk.

The commands that need no model: passes and schema.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from fxprune.checkpoint import prune_checkpoint
from fxprune.cli.certificates import verify_command
from fxprune.cli.demo import run_demo
from fxprune.cli.inspect import inspect_command
from fxprune.cli.models import (
    BatchOption,
    ImportsOption,
    InputOptions,
    JsonOption,
    ModelArgument,
    WeightsOption,
    importing_from_here,
    parse_batch,
    prepare_model,
)
from fxprune.cli.output import Page, Progress, reported
from fxprune.cli.plans import PlanOption, RecipeOption, explain_command, plan_command, rules_for
from fxprune.compiler import Result, compile
from fxprune.errors import InvariantError
from fxprune.recipe import json_schema
from fxprune.rewrite import NO_DEFAULT, Listed, described, listed, names
from fxprune.support import check_folder, write_text
from fxprune.words import plain


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


app = typer.Typer(
    name="fxprune",
    help="Prune PyTorch models by rewriting their graphs, as a recipe says.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def main() -> None:
    """Run the command line."""
    app()


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"fxprune {metadata.version('fxprune')}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version.", callback=_print_version, is_eager=True
        ),
    ] = False,
) -> None:
    """Take the options that stand before a command."""


@app.command("compile", help="Prune, check and export a model.")
def compile_command(
    model: ModelArgument,
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="Where model files, report and certificate go.")
    ],
    recipe: RecipeOption = None,
    plan: PlanOption = None,
    inputs: InputOptions = None,
    weights: WeightsOption = None,
    batch: BatchOption = "0",
    allow_imports: ImportsOption = False,
    as_json: JsonOption = False,
) -> None:
    """Compile a model and print what came of it."""
    page = Page()
    with reported(), importing_from_here():
        # What can be at fault without the model comes first: a model may take long to load.
        rules = rules_for(recipe, plan, allow_imports=allow_imports)
        dim = parse_batch(batch)
        check_folder(out)
        with Progress() as progress:
            loaded = prepare_model(model, inputs or (), weights, progress)
            result = compile(
                loaded.model,
                rules,
                loaded.args,
                loaded.kwargs,
                batch=dim,
                out=out,
                allow_imports=allow_imports,
                on_pass=progress,
            )
    if as_json:
        page.json(_as_json(result, progress.seconds))
    else:
        _print_result(page, result, progress.seconds)


app.command("inspect", help="Show what a recipe can select, and prunes.")(inspect_command)
app.command("explain", help="Tell for each parameter which rules take it, and why others do not.")(
    explain_command
)
app.command("plan", help="Tell what a recipe would prune, or what differs between two plans.")(
    plan_command
)


app.command("passes", help="List the passes and scores of all installed distributions.")(
    passes_command
)
app.command("schema", help="Print the JSON Schema of recipe files.")(schema_command)
app.command("verify", help="Hold a model to another one, on given and on drawn inputs.")(
    verify_command
)


@app.command("demo", help="Train, prune and check a small CNN.")
def demo_command(
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write the recipe's files there.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Run the demonstration; exit with 1 where its check fails."""
    progress = Progress()
    page = Page(progress, quiet=as_json)
    with reported(), progress:
        if out is not None:
            check_folder(out)
        outcome = run_demo(page, progress, out)
        if as_json:
            page.json(outcome.to_json())
        if not outcome:
            raise InvariantError("the masks or the outputs differ from torch.nn.utils.prune's")


app.command("checkpoint", help="Prune a checkpoint on disk, whatever its size.")(checkpoint_command)


def _as_json(result: Result, seconds: dict[str, float]) -> str:
    data = {
        "report": json.loads(result.report.to_json()),
        "certificate": json.loads(result.certificate.to_json()),
        "seconds": seconds,
        "files": [str(path) for path in result.files],
    }
    return json.dumps(data, indent=2, allow_nan=False)


def _print_result(page: Page, result: Result, seconds: dict[str, float]) -> None:
    page.report(result.report)
    page.text(f"\ncertificate: {result.certificate}\n")
    page.times(seconds)
    page.files(result.files)
    if all(path.suffix == ".json" for path in result.files):
        page.text("no model was written: the recipe has no [export]")
