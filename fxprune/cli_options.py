"""The arguments and options that commands share, and the model that they stand for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import torch
import typer

from fxprune.cli_inputs import draw_inputs
from fxprune.cli_models import Loaded, check_call, load_model, load_weights
from fxprune.cli_output import Progress

__all__ = [
    "BatchOption",
    "ImportsOption",
    "InputOptions",
    "JsonOption",
    "ModelArgument",
    "WeightsOption",
    "load",
]

ModelArgument = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="package.module:factory or file.py:factory; the factory takes nothing and returns the "
        "model, or (model, args, kwargs). Or a .fxp file that fxprune.save wrote, or a .pt2 "
        "file of torch.export's.",
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
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")]


def load(spec: str, inputs: Sequence[str], weights: Path | None, progress: Progress) -> Loaded:
    """Make the model with its weights and inputs, and run it once.

    Args:
        spec: MODEL, see `fxprune.cli_models.load_model`.
        inputs: each `--input`; none: the factory's own.
        weights: `--weights`.
        progress: told that loading begins.

    Raises:
        CommandError: one of these is at fault.
    """
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
