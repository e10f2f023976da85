"""The commands plan and explain: what a recipe would do, and why."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import typer

from fxprune.cli.models import capture_model
from fxprune.cli.output import Page, Progress
from fxprune.cli.request import Request
from fxprune.compiler import explain, plan
from fxprune.recipe import Recipe
from fxprune.reports import Explanation, Plan, PlanDiff


def explain_model(page: Page, request: Request, rules: Recipe, parameters: Sequence[str]) -> None:
    """Print which rules take which parameters, and why the others do not."""
    with Progress() as progress:
        program = capture_model(request, progress)
        progress("explain")
        explanation = explain(program, rules, *parameters)
    _print(page, request, explanation)


def plan_model(
    page: Page, request: Request, rules: Recipe, out: Path | None, against: Path | None
) -> None:
    """Print what a recipe would do, or what differs from a saved plan; save it."""
    older = None if against is None else Plan.load(against, allow_imports=True)
    with Progress() as progress:
        program = capture_model(request, progress)
        progress("plan")
        made = plan(program, rules)
    if out is not None:
        made.save(out)
    shown = made if older is None else older.diff(made)
    _print(page, request, shown)
    if out is not None and not request.as_json:
        page.files([out])
    _exit_if_different(shown)


def diff_plans(page: Page, request: Request, paths: tuple[Path, Path]) -> None:
    """Print what differs between two saved plans."""
    # Nothing is imported by reading a plan.
    before, after = (Plan.load(path, allow_imports=True) for path in paths)
    shown = before.diff(after)
    _print(page, request, shown)
    _exit_if_different(shown)


def _print(page: Page, request: Request, shown: Explanation | Plan | PlanDiff) -> None:
    if request.as_json:
        page.text(shown.to_json())
    elif isinstance(shown, PlanDiff) and not shown:
        page.text(str(shown))
    else:
        page.show(shown.table(), str(shown))


def _exit_if_different(shown: Plan | PlanDiff) -> None:
    if isinstance(shown, PlanDiff) and shown:
        raise typer.Exit(1)
