"""The commands: what each can be given, and what is checked before torch is loaded."""

from __future__ import annotations

import json
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fxprune.cli.output import Bar, Page, Progress, reported
from fxprune.cli.request import (
    RECIPE,
    CommandError,
    InputOptions,
    JsonOption,
    Request,
    WeightsOption,
    importing_from_here,
    on_model,
)
from fxprune.errors import InvariantError
from fxprune.recipe import Recipe, json_schema
from fxprune.rewrite import NO_DEFAULT, PassInfo, describe, list_passes, names
from fxprune.support import check_file, check_folder, write_text

if TYPE_CHECKING:  # it loads torch
    from fxprune.reports import Plan

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


# Commands on a model. A model may take long to load: what can be at fault without it comes first.

PlanOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="A plan of `fxprune plan --out`, in the place of a recipe; held to."
    ),
]


@app.command("compile", help="Prune, check and export a model.")
@on_model
def compile_command(
    page: Page,
    request: Request,
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="Where model files, report and certificate go.")
    ],
    recipe: Annotated[Path | None, RECIPE] = None,
    plan: PlanOption = None,
) -> None:
    """Compile a model and print what came of it."""
    rules = _rules(recipe, plan, allow_imports=request.allow_imports)
    check_folder(out)
    from fxprune.cli.compiling import compile_model

    compile_model(page, request, rules, out)


def _rules(recipe: Path | None, plan: Path | None, *, allow_imports: bool) -> Recipe | Plan:
    """Read what `--recipe` or `--plan` names."""
    if (recipe is None) == (plan is None):
        raise CommandError("give either --recipe FILE or --plan FILE")
    if plan is None:
        return Recipe.load(str(recipe), allow_imports=allow_imports)
    from fxprune.reports import Plan

    return Plan.load(plan, allow_imports=allow_imports)


@app.command("inspect", help="Show what a recipe can select, and prunes.")
@on_model
def inspect_command(
    page: Page,
    request: Request,
    recipe: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Mask by this recipe; nothing is written.")
    ] = None,
    picture: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Draw the channel groups: a .dot file, or .svg with matplotlib."
        ),
    ] = None,
) -> None:
    """Print what fxprune sees of a model."""
    rules = None if recipe is None else Recipe.load(recipe, allow_imports=request.allow_imports)
    from fxprune.cli.inspect import inspect_model

    inspect_model(page, request, rules, recipe, picture)


@app.command("explain", help="Tell for each parameter which rules take it, and why others do not.")
@on_model
def explain_command(
    page: Page,
    request: Request,
    recipe: Annotated[Path, RECIPE],
    parameters: Annotated[
        list[str] | None,
        typer.Argument(metavar="PARAMETER", help="By any name; default: all."),
    ] = None,
) -> None:
    """Print which rules take which parameters, and why the others do not."""
    rules = Recipe.load(recipe, allow_imports=request.allow_imports)
    from fxprune.cli.plans import explain_model

    explain_model(page, request, rules, parameters or ())


PlannedArgument = Annotated[
    str | None, typer.Argument(metavar="MODEL", help="As for compile; not with --diff.")
]
SavedOption = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Save the plan, for compile --plan.")
]
AgainstPlanOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Print what differs from this saved plan; exit with 1 where anything does.",
    ),
]
DiffOption = Annotated[
    tuple[Path, Path] | None,
    typer.Option(
        metavar="FILE FILE",
        help="Print what differs between two saved plans, without a model; exit with 1 where "
        "anything does.",
    ),
]


@app.command("plan", help="Tell what a recipe would prune, or what differs between two plans.")
@on_model
def plan_command(
    page: Page,
    request: Request,
    model: PlannedArgument = None,
    recipe: Annotated[Path | None, RECIPE] = None,
    out: SavedOption = None,
    against: AgainstPlanOption = None,
    diff: DiffOption = None,
) -> None:
    """Print what a recipe would do, or what differs between two plans."""
    if diff is not None:
        if any((model, recipe, request.inputs, request.weights, out, against)):
            raise CommandError("--diff takes two saved plans and nothing else but --json")
        from fxprune.cli.plans import diff_plans

        diff_plans(page, request, diff)
        return
    if model is None or recipe is None:
        missing = "a MODEL" if model is None else "--recipe FILE"
        raise CommandError(f"plan needs {missing}; or give --diff and two saved plans")
    if out is not None:
        check_file(out)
    rules = Recipe.load(recipe, allow_imports=request.allow_imports)
    from fxprune.cli.plans import plan_model

    plan_model(page, request, rules, out, against)


AfterArgument = Annotated[
    str,
    typer.Argument(
        metavar="AFTER",
        help="A MODEL, as for compile; a weights file, to be loaded into BEFORE's model; or a "
        "folder that compile wrote.",
    ),
]
BeforeArgument = Annotated[
    str | None, typer.Argument(metavar="BEFORE", help="What AFTER is held to: a MODEL.")
]
AgainstOption = Annotated[
    str | None,
    typer.Option(
        metavar="MODEL",
        help="What AFTER was compiled from: checks the certificate that lies beside it from "
        "scratch. Without a certificate, the same as BEFORE.",
    ),
]
PromiseOption = Annotated[
    str,
    typer.Option(
        metavar="same|close",
        help="same: outputs equal bit for bit; close: those of float64 copies within rounding.",
    ),
]


@app.command("verify", help="Hold a model to another one, on given and on drawn inputs.")
def verify_command(
    after: AfterArgument,
    before: BeforeArgument = None,
    against: AgainstOption = None,
    inputs: InputOptions = None,
    weights: WeightsOption = None,
    promise: PromiseOption = "same",
    trials: Annotated[int, typer.Option(help="Inputs to draw for each mode.")] = 3,
    seed: Annotated[int, typer.Option(help="Of the inputs and of what the models draw.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Print the certificate; exit with 1 where the models differ."""
    page = Page()
    with reported(), importing_from_here():
        if (before is None) == (against is None):
            raise CommandError("give either BEFORE or --against MODEL, to hold AFTER to")
        from fxprune.cli.certificates import verify_model

        request = Request(before or against or "", inputs, weights, as_json=as_json)
        is_source = against is not None
        verify_model(
            page, request, after, is_source=is_source, promise=promise, trials=trials, seed=seed
        )


# Other commands


@app.command("checkpoint", help="Prune a checkpoint on disk, whatever its size.")
def checkpoint_command(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="IN", help="A .safetensors file, or a .safetensors.index.json with its shards."
        ),
    ],
    recipe: Annotated[Path, RECIPE],
    out: Annotated[
        Path,
        typer.Option(metavar="OUT", help="The file to write; for an index, the folder."),
    ],
    as_json: JsonOption = False,
) -> None:
    """Prune a checkpoint and print what each rule did."""
    page = Page()
    with reported(), Bar() as bar:
        # An imported method is refused for what it is, not for being imported.
        rules = Recipe.load(recipe, allow_imports=True)
        from fxprune.checkpoint import prune_checkpoint

        report = prune_checkpoint(source, rules, out, on_progress=bar)
    if as_json:
        page.text(report.to_json())
        return
    page.text(str(report))
    page.files(report.files)


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
        from fxprune.cli.demo import run_demo

        outcome = run_demo(page, progress, out)
        if as_json:
            page.json(outcome.to_json())
        if not outcome:
            raise InvariantError("the masks or the outputs differ from torch.nn.utils.prune's")


def _complete(incomplete: str) -> list[str]:
    return [name for name in names() if name.startswith(incomplete)]


NamesArgument = Annotated[
    list[str] | None,
    typer.Argument(metavar="[NAME]...", help="Show these alone.", autocompletion=_complete),
]


@app.command("passes", help="List the passes and scores of all installed distributions.")
def passes_command(chosen: NamesArgument = None, as_json: JsonOption = False) -> None:
    """Print the passes and scores of all installed distributions."""
    page = Page()
    with reported():
        found, broken = (tuple(map(describe, chosen)), ()) if chosen else list_passes()
    if as_json:
        page.json(json.dumps({"passes": list(map(_as_data, found)), "broken": broken}, indent=2))
        return
    header = ("name", "kind", "needs", "gives", "options", "from")
    page.table(header, [_as_cells(info) for info in found])
    for fault in broken:
        page.text(f"note: {fault}")


def _as_data(info: PassInfo) -> dict[str, Any]:
    options = [
        {
            "name": name,
            "default": None if default is NO_DEFAULT else _plain(default),
            "required": default is NO_DEFAULT,
        }
        for name, default in info.options.items()
    ]
    return {**vars(info), "options": options}


def _plain(value: Any) -> Any:
    """Return a value as JSON can hold it."""
    try:
        return json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError):
        return repr(value)


def _as_cells(info: PassInfo) -> tuple[str, ...]:
    options = (
        name if default is NO_DEFAULT else f"{name}={json.dumps(_plain(default))}"
        for name, default in info.options.items()
    )
    lists = map(", ".join, (info.needs, info.gives, options))
    return (info.name, info.kind, *lists, info.distribution)


OutOption = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Write it there; stdout by default.")
]


@app.command("schema", help="Print the JSON Schema of recipe files.")
def schema_command(out: OutOption = None) -> None:
    """Print or write the JSON Schema of recipe files."""
    text = json.dumps(json_schema(), indent=2)
    with reported():
        if out is not None:
            write_text(out, f"{text}\n")
    if out is None:
        Page().json(text)
