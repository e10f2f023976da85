"""The command line: compile, inspect, checkpoint, demo."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import torch
import typer

from fxprune import tensors
from fxprune.build import Result, compile
from fxprune.cli_checkpoint import checkpoint_command
from fxprune.cli_inputs import draw_inputs, parse_batch
from fxprune.cli_models import Loaded, check_call, importing_from_here, load_model, load_weights
from fxprune.cli_output import Page, Progress, reported
from fxprune.compiler import capture, prune
from fxprune.dataflow import alias_groups
from fxprune.demo import run_demo
from fxprune.errors import InvariantError
from fxprune.program import BOTH, Program
from fxprune.recipe import Recipe
from fxprune.reports import report
from fxprune.sites import sites_of
from fxprune.writing import check_folder

__all__ = ["app", "main"]

app = typer.Typer(
    name="fxprune",
    help="Prune PyTorch models by rewriting their graphs, as a recipe says.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

ModelArgument = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="package.module:factory or file.py:factory. The factory takes nothing and returns the "
        "model, or (model, args, kwargs).",
    ),
]
InputOptions = Annotated[
    list[str] | None,
    typer.Option(
        "--input",
        metavar="[NAME=][DTYPE:]SHAPE[:LOW..HIGH]",
        help="An example input, drawn at random, as 1,3,32,32 or input_ids=int64:1,24:0..999 (ends "
        "included). Once for each argument of forward.",
    ),
]
WeightsOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Weights for the model: .safetensors, or a state dict in .pt, .pth or .bin.",
    ),
]
BatchOption = Annotated[
    str, typer.Option(metavar="D|none", help="The inputs' batch dimension; none: fixed shapes.")
]
ImportsOption = Annotated[
    bool,
    typer.Option(
        "--allow-imports", help="Let the recipe import its own methods, and so run their code."
    ),
]


def main() -> None:
    """Run the command line."""
    app()


@app.command("compile", help="Prune, check and export a model.")
def compile_command(
    model: ModelArgument,
    recipe: Annotated[Path, typer.Option(metavar="FILE", help="A .toml or .json recipe.")],
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="Where model files, report and certificate go.")
    ],
    inputs: InputOptions = None,
    weights: WeightsOption = None,
    batch: BatchOption = "0",
    allow_imports: ImportsOption = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")] = False,
) -> None:
    """Compile a model and print what came of it."""
    page = Page()
    with reported(), importing_from_here():
        # What can be at fault without the model comes first: a model may take long to load.
        rules = Recipe.load(recipe, allow_imports=allow_imports)
        dim = parse_batch(batch)
        check_folder(out)
        with Progress() as progress:
            loaded = _load(model, inputs or (), weights, progress)
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
        page.text(_as_json(result, progress.seconds))
    else:
        _print_result(page, result, progress.seconds)


@app.command("inspect", help="Show what a recipe can select, and prunes.")
def inspect_command(
    model: ModelArgument,
    inputs: InputOptions = None,
    recipe: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Mask by this recipe; nothing is written.")
    ] = None,
    weights: WeightsOption = None,
    batch: BatchOption = "0",
    allow_imports: ImportsOption = False,
) -> None:
    """Print what fxprune sees of a model."""
    page = Page()
    masked: Program | None = None
    with reported(), importing_from_here():
        rules = None if recipe is None else Recipe.load(recipe, allow_imports=allow_imports)
        dim = parse_batch(batch)
        with Progress() as progress:
            loaded = _load(model, inputs or (), weights, progress)
            progress("capture")
            program = capture(loaded.model, loaded.args, loaded.kwargs, batch=dim)
            if rules is not None:
                masked = prune(program, rules, allow_imports=allow_imports, on_pass=progress)
    _print_program(page, program)
    if masked is not None:
        page.heading(f"{recipe}, masked but not written")
        page.report(report(masked))
        for name, reason in report(masked).refused:
            page.text(f"left {name}: {reason}")


@app.command("demo", help="Train, prune and check a small CNN.")
def demo_command(
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write the recipe's files there.")
    ] = None,
) -> None:
    """Run the demonstration; exit with 1 where its check fails."""
    progress = Progress()
    page = Page(progress)
    with reported(), progress:
        if not run_demo(page, progress, out):
            raise InvariantError("the masks or the outputs differ from torch.nn.utils.prune's")


app.command("checkpoint", help="Prune a checkpoint on disk, whatever its size.")(checkpoint_command)


def _load(spec: str, inputs: Sequence[str], weights: Path | None, progress: Progress) -> Loaded:
    """Make the model with its weights and inputs, and run it once."""
    progress("load")
    # Weights that a factory draws, and random methods without a seed, are the same every time.
    torch.manual_seed(0)
    loaded = load_model(spec)
    if weights is not None:
        load_weights(loaded, weights)
    if inputs:
        loaded = Loaded(loaded.model, *draw_inputs(inputs, loaded.device))
    check_call(loaded)
    return loaded


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


def _print_program(page: Page, program: Program) -> None:
    sites = sites_of(program)
    entries = sum(site.numel for site in sites)
    page.text(f"{program.captured.kind}: {len(sites)} parameters with {entries:,} entries")
    page.heading("inputs")
    for spec in program.captured.inputs.inputs:
        page.text(f"  {spec}")
    page.heading("graphs")
    for mode, graph in program.graphs.items():
        calls = sum(node.op == "call_function" for node in graph.nodes)
        page.text(f"  {'train and eval' if mode == BOTH else mode}: {calls} operators")
    if program.captured.deciders:
        page.text(f"  chosen by the training flags of {tensors.quoted(program.captured.deciders)}")
    page.heading("parameters")
    header = ("name", "shape", "dtype", "uses")
    rows = [
        (
            site.name,
            "x".join(map(str, site.shape)) or "scalar",
            str(site.dtype).removeprefix("torch."),
            ", ".join(f"{role} of {op}" for op, role in site.uses) or "nothing",
        )
        for site in sites
    ]
    page.table(header, rows)
    for names in alias_groups(program):
        page.text(f"tied: {' = '.join(names)}")
    for note in program.captured.notes:
        page.text(f"note: {note}")
