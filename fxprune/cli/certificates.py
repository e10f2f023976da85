"""The command verify: compare a model with another one, or files with their certificate."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import typer

from fxprune.cli.models import Loaded, load_model, load_weights, prepare_model
from fxprune.cli.output import Page, Progress
from fxprune.cli.request import CommandError, Request
from fxprune.compiler import Basis, capture, read_certificate
from fxprune.files import load as read_program
from fxprune.files import load_pt2, read_weights
from fxprune.program import copy_model
from fxprune.verification import Certificate, verify

_WEIGHTS = (".safetensors", ".pt", ".pth", ".bin")
# What a folder of `fxprune compile` may hold that can be read back, the whole Program first.
_ARTIFACTS = ("model.fxp", "model.pt2", "model.safetensors")


def verify_model(
    page: Page,
    request: Request,
    after: str,
    *,
    is_source: bool,
    promise: str,
    trials: int,
    seed: int,
) -> None:
    """Print the certificate; exit with 1 where the models differ.

    `is_source` says that AFTER was compiled from the request's model.
    """
    with Progress() as progress:
        theirs = prepare_model(request, progress)
        beside = _certificate(after) if is_source else None
        if beside is not None:
            progress("verify")
            certificate = _recheck(after, theirs, promise, trials, seed)
            note = f"{beside}: checked from scratch"
        else:
            ours = _load_after(after, theirs)
            progress("verify")
            given = next((x for x in (theirs, ours) if x.args or x.kwargs), Loaded(ours.model))
            certificate = verify(
                ours.model,
                theirs.model,
                given.args or None,
                given.kwargs or None,
                promise=promise,
                trials=trials,
                seed=seed,
            )
            note = "no certificate.json lies beside it: outputs were compared, and nothing else"
    page.text(certificate.to_json() if request.as_json else str(certificate))
    if is_source and not request.as_json:
        page.text(note)
    if not certificate:
        raise typer.Exit(1)


def _certificate(spec: str) -> Path | None:
    """Return the certificate of what a compile wrote: in the folder, or beside the file."""
    path = Path(spec)
    folder = path if path.is_dir() else path.parent
    found = folder / "certificate.json"
    return found if path.exists() and found.is_file() else None


def _recheck(spec: str, theirs: Loaded, promise: str, trials: int, seed: int) -> Certificate:
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


def _load_after(spec: str, before: Loaded) -> Loaded:
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
