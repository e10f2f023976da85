"""A recipe of a certificate run again, and its passes held to what the certificate says of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, cast

from torch import nn

from fxprune.build import compile as build
from fxprune.certificate import Certificate
from fxprune.compiler import capture
from fxprune.digests import graphs_digest
from fxprune.errors import CaptureError, FxpruneError
from fxprune.program import Program
from fxprune.recipe import Recipe

__all__ = ["Again", "captured", "run_again"]


@dataclass(frozen=True)
class Again:
    """What a recipe gave when it was run again.

    Args:
        program: what it made; None where it was not run.
        told: that it was run, or why it was not.
        faults: what is otherwise than the certificate says.
    """

    program: Program | None
    told: str
    faults: tuple[str, ...] = ()


def captured(certificate: Mapping[str, Any], model: nn.Module, args: Any, kwargs: Any) -> Program:
    """Capture the model that was compiled: with its batch open, or else closed, as it was then.

    Raises:
        CaptureError: the model cannot be captured.
    """
    wanted = certificate["passes"][0].get("graph_before")
    try:
        dense = capture(model, args, kwargs)
    except CaptureError:
        return capture(model, args, kwargs, batch=None)
    if graphs_digest(dense) == wanted or isinstance(model, Program) or not (args or kwargs):
        return dense
    closed = capture(model, args, kwargs, batch=None)
    return closed if graphs_digest(closed) == wanted else dense


def run_again(
    certificate: Mapping[str, Any], dense: Program, given: tuple[Any, Any] = ((), None)
) -> Again:
    """Run the recipe again, with all checks, and hold what each pass did to the certificate.

    Args:
        certificate: of `read_certificate`.
        dense: the model that was compiled; not changed.
        given: args and kwargs to check on beside drawn ones.
    """
    data = cast("Mapping[str, Any]", certificate["recipe"])
    needs = _needed(data)
    if needs:
        return Again(None, f"recipe: not run again: {needs}")
    try:
        recipe = Recipe.from_dict(data)
        drawing = [r.name for r in recipe.rules if r.score_name == "random" and r.seed is None]
        if drawing:
            return Again(None, f"recipe: not run again, as {drawing[0]!r} draws without a seed")
        found = build(dense, recipe, *given)
    except FxpruneError as error:
        told = f"the recipe cannot be run again: {str(error).splitlines()[0]}"
        return Again(None, told, (told,))
    absorbed = any(record.absorbed for record in found.program.captured.shrinks)
    faults = tuple(_otherwise(certificate, found.certificate, loose=absorbed))
    return Again(found.program, "recipe: run again", faults)


def _needed(data: Mapping[str, Any]) -> str | None:
    """Return what a recipe needs that no certificate has: files, or a user's own code."""
    rules: Any = data.get("rule")
    for rule in rules if isinstance(rules, list) else ():
        if isinstance(rule, dict) and rule.get("mask") is not None:
            return "its masks are in a file"
        if isinstance(rule, dict) and ":" in str(rule.get("method")):
            return "it imports a method, which is not done here"
    return None


_LOOSE = "float64 outputs"  # of another machine they may differ by other roundings


def _otherwise(old: Mapping[str, Any], new: Certificate, *, loose: bool) -> Iterator[str]:
    """Yield what a certificate says that is not found again.

    Args:
        old: the certificate.
        new: that of the recipe run again.
        loose: whether a bias took over constants, whose sums another machine may round otherwise.
    """
    if (old.get("promise"), old.get("bound")) != (new.promise, new.bound):
        yield f"it promises {old.get('promise')!r}, and the recipe, run again, {new.promise!r}"
    passes: Any = old["passes"]
    if len(passes) != len(new.passes):
        yield f"it has {len(passes)} passes, and the recipe, run again, {len(new.passes)}"
        return
    cut = False
    for was, now in zip(passes, new.passes, strict=True):
        for key, value in asdict(now).items():
            if key in ("weights_before", "weights_after") and loose and (cut or "after" in key):
                continue
            if _kept(was.get(key)) != _kept(value):
                yield f"the recipe, run again, gives {key} of the pass {now.name!r} otherwise"
        cut = cut or now.promise == "close"


def _kept(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [text for text in cast("list[Any]", value) if not str(text).startswith(_LOOSE)]
    return value
