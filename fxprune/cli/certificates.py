"""The command verify: hold a model to another one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from fxprune.cli.models import (
    CommandError,
    InputOptions,
    JsonOption,
    Loaded,
    WeightsOption,
    importing_from_here,
    load_model,
    load_weights,
    prepare_model,
)
from fxprune.cli.output import Page, Progress, reported
from fxprune.compiler import Basis, capture, read_certificate
from fxprune.files import load as read_program
from fxprune.files import load_pt2, read_weights
from fxprune.program import copy_model
from fxprune.verification import Certificate, verify

_WEIGHTS = (".safetensors", ".pt", ".pth", ".bin")
# What a folder of `fxprune compile` may hold that can be read back, the whole Program first.
_ARTIFACTS = ("model.fxp", "model.pt2", "model.safetensors")

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
        with Progress() as progress:
            theirs = prepare_model(before or against or "", inputs or (), weights, progress)
            beside = None if against is None else _certificate(after)
            if beside is not None:
                progress("verify")
                certificate = _rechecked(after, theirs, promise, trials, seed)
                _print(page, certificate, as_json=as_json, note=f"{beside}: checked from scratch")
                return
            ours = _after(after, theirs)
            progress("verify")
            given = next((x for x in (theirs, ours) if x.args or x.kwargs), None)
            certificate = verify(
                ours.model,
                theirs.model,
                None if given is None else given.args,
                None if given is None else given.kwargs,
                promise=promise,
                trials=trials,
                seed=seed,
            )
    none = "no certificate.json lies beside it: outputs were compared, and nothing else"
    _print(page, certificate, as_json=as_json, note=none if against is not None else "")


def _print(page: Page, certificate: Certificate, *, as_json: bool, note: str = "") -> None:
    page.text(certificate.to_json() if as_json else str(certificate))
    if note and not as_json:
        page.text(note)
    if not certificate:
        raise typer.Exit(1)


def _certificate(spec: str) -> Path | None:
    """Return the certificate of what a compile wrote: in the folder, or beside the file."""
    path = Path(spec)
    folder = path if path.is_dir() else path.parent
    found = folder / "certificate.json"
    return found if path.exists() and found.is_file() else None


def _rechecked(spec: str, theirs: Loaded, promise: str, trials: int, seed: int) -> Certificate:
    path, certificate = Path(spec), _certificate(spec)
    if promise != "same":
        raise CommandError("--promise goes with BEFORE; a certificate says itself what it promises")
    paths = _artifacts(path) if path.is_dir() else (path,)
    for each in paths:
        if each.suffix.lower() not in (".fxp", ".pt2", *_WEIGHTS):
            raise CommandError(
                f"{each}: a {each.suffix} file cannot be held to a certificate; give the folder, "
                "or a .fxp, .pt2 or .safetensors file"
            )
    read = read_certificate(certificate or path)
    basis = Basis.of(read, theirs.model, theirs.args, theirs.kwargs)
    found = [basis.check(**_content(each), trials=trials, seed=seed) for each in paths]
    failures = (failure for each in found for failure in each.failures)
    return replace(found[0], failures=tuple(dict.fromkeys(failures)))


def _content(path: Path) -> dict[str, Any]:
    """Return what an artifact holds, as `Basis.check` takes it."""
    suffix = path.suffix.lower()
    if suffix == ".fxp":
        program = read_program(path)
        return {"weights": program.state_dict(), "artifact": program}
    if suffix == ".pt2":
        exported = load_pt2(path)
        return {"weights": dict(exported.state_dict), "exported": capture(exported)}
    return {"weights": read_weights(path)}


def _after(spec: str, before: Loaded) -> Loaded:
    """Return the model that is held to another, which may be made of that one's code."""
    path = Path(spec)
    if path.is_dir():
        path = _artifacts(path)[0]
    if path.suffix.lower() in _WEIGHTS:
        made = Loaded(copy_model(before.model), before.args, before.kwargs)
        load_weights(made, path)
        return made
    # As for BEFORE: weights that a factory draws are the same every time.
    torch.manual_seed(0)
    return load_model(str(path) if Path(spec).is_dir() else spec)


def _artifacts(folder: Path) -> tuple[Path, ...]:
    """Return what can be read back of what a compile wrote into a folder, the whole first."""
    found = tuple(folder / name for name in _ARTIFACTS if (folder / name).is_file())
    if not found:
        raise CommandError(
            f"{folder}: there is no model.fxp or model.safetensors, nor a model.pt2, in this "
            'folder; compile with [export] formats = ["fxp"]'
        )
    return found
