"""The arguments and options that commands share; nothing here loads torch."""

from __future__ import annotations

import inspect
import os
import re
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from fxprune.cli.output import Page, reported
from fxprune.errors import FxpruneError

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
RECIPE: Any = typer.Option(metavar="FILE", help="A .toml or .json recipe.")


class CommandError(FxpruneError, ValueError):
    """What the command line was given is at fault."""


@dataclass(frozen=True)
class Request:
    """The model that a command is about, and the options that go with one."""

    model: ModelArgument
    inputs: InputOptions = None
    weights: WeightsOption = None
    batch: BatchOption = "0"
    allow_imports: ImportsOption = False
    as_json: JsonOption = False


def on_model(command: Callable[..., None]) -> Callable[..., None]:
    """Let a function of a Page and a Request be a command: it takes the Request's options.

    What the function declares itself, by the same name or another, is declared as it has it.
    """
    shared = inspect.signature(Request, eval_str=True).parameters
    own = dict(list(inspect.signature(command, eval_str=True).parameters.items())[2:])
    ordered = {"model": shared["model"], **own, **shared, **own}

    def run(**values: Any) -> None:
        page = Page()
        with reported(), importing_from_here():
            request = Request(**{name: values[name] for name in shared})
            parse_batch(request.batch)
            command(page, request, **{name: values[name] for name in own})

    wrapped: Any = run
    wrapped.__signature__ = inspect.Signature(
        [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in ordered.values()]
    )
    return run


def parse_batch(text: str) -> int | None:
    """Parse `--batch`: a dimension, or "none" for fixed shapes.

    Example:
        >>> parse_batch("0"), parse_batch("none")
        (0, None)
    """
    if text.lower() == "none":
        return None
    if not re.fullmatch("-?[0-9]{1,18}", text):
        raise CommandError(f"--batch {text}: give the number of a dimension, as 0, or none")
    return int(text)


@contextmanager
def importing_from_here() -> Generator[None]:
    """Import from the current folder first, as `python -m` does."""
    before = list(sys.path)
    sys.path.insert(0, os.getcwd())
    try:
        yield
    finally:
        sys.path[:] = before
