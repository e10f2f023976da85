"""The command compile: what it prints."""

from __future__ import annotations

import json
from pathlib import Path

from fxprune.cli.models import prepare_model
from fxprune.cli.output import Page, Progress
from fxprune.cli.request import Request, parse_batch
from fxprune.compiler import Result, compile
from fxprune.recipe import Recipe
from fxprune.reports import Plan


def compile_model(page: Page, request: Request, rules: Recipe | Plan, out: Path) -> None:
    """Compile a model and print what came of it."""
    with Progress() as progress:
        loaded = prepare_model(request, progress)
        result = compile(
            loaded.model,
            rules,
            loaded.args,
            loaded.kwargs,
            batch=parse_batch(request.batch),
            out=out,
            allow_imports=request.allow_imports,
            on_pass=progress,
        )
    if request.as_json:
        page.json(_as_json(result, progress.seconds))
    else:
        _print_result(page, result, progress.seconds)


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
