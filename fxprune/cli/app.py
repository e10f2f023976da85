"""The command line: compile and demo; the other commands are in files of their own."""

from __future__ import annotations

import json
from importlib import metadata
from pathlib import Path
from typing import Annotated

import typer

from fxprune.build import Result, compile
from fxprune.cli_checkpoint import checkpoint_command
from fxprune.cli_info import passes_command, schema_command
from fxprune.cli_inputs import parse_batch
from fxprune.cli_inspect import inspect_command
from fxprune.cli_models import importing_from_here
from fxprune.cli_options import (
    BatchOption,
    ImportsOption,
    InputOptions,
    JsonOption,
    ModelArgument,
    WeightsOption,
    load,
)
from fxprune.cli_output import Page, Progress, reported
from fxprune.cli_plan import (
    PlanOption,
    RecipeOption,
    explain_command,
    plan_command,
    rules_for,
)
from fxprune.cli_verify import verify_command
from fxprune.demo import run_demo
from fxprune.errors import InvariantError
from fxprune.writing import check_folder

__all__ = ["app", "main"]

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
            loaded = load(model, inputs or (), weights, progress)
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
