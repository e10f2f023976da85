"""The commands plan and explain: what a recipe would do, and why."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fxprune.cli.models import (
    BatchOption,
    CommandError,
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
from fxprune.compiler import capture, explain, plan
from fxprune.program import Program
from fxprune.recipe import Recipe
from fxprune.reports import Plan, PlanDiff
from fxprune.support import check_file

RecipeOption = Annotated[Path | None, typer.Option(metavar="FILE", help="A .toml or .json recipe.")]
PlanOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="A plan of `fxprune plan --out`, in the place of a recipe; held to."
    ),
]

PlannedArgument = Annotated[
    str | None, typer.Argument(metavar="MODEL", help="As for compile; not with --diff.")
]
OutOption = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Save the plan, for compile --plan.")
]
AgainstOption = Annotated[
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


def rules_for(recipe: Path | None, planned: Path | None, *, allow_imports: bool) -> Recipe | Plan:
    """Read what `--recipe` or `--plan` names.

    Raises:
        CommandError: neither is given, or both are.
        RecipeError: the recipe is at fault.
        FormatError: the plan is damaged.
    """
    if (recipe is None) == (planned is None):
        raise CommandError("give either --recipe FILE or --plan FILE")
    if planned is not None:
        return Plan.load(planned, allow_imports=allow_imports)
    return Recipe.load(str(recipe), allow_imports=allow_imports)


def explain_command(
    model: ModelArgument,
    recipe: Annotated[Path, typer.Option(metavar="FILE", help="A .toml or .json recipe.")],
    parameters: Annotated[
        list[str] | None,
        typer.Argument(metavar="PARAMETER", help="By any name; default: all."),
    ] = None,
    inputs: InputOptions = None,
    weights: WeightsOption = None,
    batch: BatchOption = "0",
    allow_imports: ImportsOption = False,
    as_json: JsonOption = False,
) -> None:
    """Print which rules take which parameters, and why the others do not."""
    page = Page()
    with reported(), importing_from_here():
        rules = Recipe.load(recipe, allow_imports=allow_imports)
        dim = parse_batch(batch)
        with Progress() as progress:
            program = _captured(model, inputs, weights, dim, progress)
            progress("explain")
            found = explain(program, rules, *(parameters or ()))
    if as_json:
        page.text(found.to_json())
        return
    page.show(found.table(), str(found))


def plan_command(
    model: PlannedArgument = None,
    recipe: RecipeOption = None,
    inputs: InputOptions = None,
    weights: WeightsOption = None,
    batch: BatchOption = "0",
    out: OutOption = None,
    against: AgainstOption = None,
    diff: DiffOption = None,
    allow_imports: ImportsOption = False,
    as_json: JsonOption = False,
) -> None:
    """Print what a recipe would do, or what differs between two plans."""
    page = Page()
    with reported(), importing_from_here():
        if diff is not None:
            given = (model, recipe, inputs, weights, out, against)
            found: Plan | PlanDiff = _saved_diff(diff, alone=not any(given))
        else:
            rules = _checked(model, recipe, out, allow_imports=allow_imports)
            older = None if against is None else Plan.load(against, allow_imports=True)
            dim = parse_batch(batch)
            with Progress() as progress:
                program = _captured(str(model), inputs, weights, dim, progress)
                progress("plan")
                made = plan(program, rules)
            found = made if older is None else older.diff(made)
            if out is not None:
                made.save(out)
    _print(page, found, as_json=as_json)
    if out is not None and not as_json:
        page.files([out])
    if isinstance(found, PlanDiff) and found:
        raise typer.Exit(1)


def _captured(
    spec: str,
    inputs: list[str] | None,
    weights: Path | None,
    batch: int | None,
    progress: Progress,
) -> Program:
    loaded = prepare_model(spec, inputs or (), weights, progress)
    progress("capture")
    return capture(loaded.model, loaded.args, loaded.kwargs, batch=batch)


def _checked(
    model: str | None, recipe: Path | None, out: Path | None, *, allow_imports: bool
) -> Recipe:
    """Check, before the model is loaded, what a plan is made of and where it goes."""
    if model is None or recipe is None:
        missing = "a MODEL" if model is None else "--recipe FILE"
        raise CommandError(f"plan needs {missing}; or give --diff and two saved plans")
    if out is not None:
        check_file(out)
    return Recipe.load(recipe, allow_imports=allow_imports)


def _saved_diff(paths: tuple[Path, Path], *, alone: bool) -> PlanDiff:
    if not alone:
        raise CommandError("--diff takes two saved plans and nothing else but --json")
    # Nothing is imported by reading a plan.
    before, after = (Plan.load(path, allow_imports=True) for path in paths)
    return before.diff(after)


def _print(page: Page, found: Plan | PlanDiff, *, as_json: bool) -> None:
    if as_json:
        page.text(found.to_json())
    elif isinstance(found, PlanDiff):
        page.show(found.table() if found else str(found), str(found))
    else:
        page.show(found.table(), str(found))
