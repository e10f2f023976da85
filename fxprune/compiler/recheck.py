"""A certificate checked again, later and elsewhere: the recipe is run again on the same model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from fxprune.compiler.build import compile as build
from fxprune.compiler.run import capture, finalize
from fxprune.errors import CaptureError, FormatError, FxpruneError
from fxprune.program import EVAL, TRAIN, Program, fork, parameters
from fxprune.recipe import Recipe
from fxprune.support import parse_json, read_safely, read_small, same_bits
from fxprune.verification import (
    Certificate,
    Digests,
    Failure,
    graphs_digest,
    seal_of,
    state_digest,
    verify,
)


@dataclass(frozen=True)
class Rerun:
    """A certificate's recipe, run again: its Program, or None and why not; what differs."""

    program: Program | None
    note: str
    faults: tuple[str, ...] = ()


def _capture_alike(
    certificate: Mapping[str, Any], model: nn.Module, args: Any, kwargs: Any
) -> Program:
    """Capture the model that was compiled: with its batch open, or else closed, as it was then."""
    wanted = certificate["passes"][0].get("graph_before")
    try:
        dense = capture(model, args, kwargs)
    except CaptureError:
        return capture(model, args, kwargs, batch=None)
    if graphs_digest(dense) == wanted or isinstance(model, Program) or not (args or kwargs):
        return dense
    closed = capture(model, args, kwargs, batch=None)
    return closed if graphs_digest(closed) == wanted else dense


def _run_again(
    certificate: Mapping[str, Any], dense: Program, given: tuple[Any, Any] = ((), None)
) -> Rerun:
    """Run a certificate's recipe again on `dense`, with all checks, and compare each pass."""
    data = cast("Mapping[str, Any]", certificate["recipe"])
    needs = _missing(data)
    if needs:
        return Rerun(None, f"recipe: not run again: {needs}")
    try:
        recipe = Recipe.from_dict(data)
        drawing = [r.name for r in recipe.rules if r.score_name == "random" and r.seed is None]
        if drawing:
            return Rerun(None, f"recipe: not run again, as {drawing[0]!r} draws without a seed")
        found = build(dense, recipe, *given)
    except FxpruneError as error:
        note = f"the recipe cannot be run again: {str(error).splitlines()[0]}"
        return Rerun(None, note, (note,))
    absorbed = any(record.absorbed for record in found.program.captured.shrinks)
    faults = tuple(_differences(certificate, found.certificate, loose=absorbed))
    return Rerun(found.program, "recipe: run again", faults)


def _missing(data: Mapping[str, Any]) -> str | None:
    """Return what a recipe needs that no certificate has: files, or a user's own code."""
    rules: Any = data.get("rule")
    for rule in rules if isinstance(rules, list) else ():
        if isinstance(rule, dict) and rule.get("mask") is not None:
            return "its masks are in a file"
        if isinstance(rule, dict) and ":" in str(rule.get("method")):
            return "it imports a method, which is not done here"
    return None


def _differences(old: Mapping[str, Any], new: Certificate, *, loose: bool) -> Iterator[str]:
    """Yield what a certificate says and the recipe, run again, does not give.

    `loose`: a bias took over constants, whose sums another machine may round in another way.
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
            if _comparable(was.get(key)) != _comparable(value):
                yield f"the recipe, run again, gives {key} of the pass {now.name!r} otherwise"
        cut = cut or now.promise == "close"


def _comparable(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [text for text in cast("list[Any]", value) if not str(text).startswith(_LOOSE)]
    return value


_MOST_BYTES = 64 * 2**20
_LOOSE = "float64 outputs"  # of another machine they may differ by other roundings
_MASKED = ("_orig", "_mask")


def read_certificate(path: Path) -> Mapping[str, Any]:
    """Read a certificate.json, of which nothing is run; raise FormatError if it is not one."""
    raw = read_small(path, "certificate.json", _MOST_BYTES)
    with read_safely(path, str):
        data: object = parse_json(raw)
    found = cast("dict[str, Any]", data) if isinstance(data, dict) else {}
    passes: Any = found.get("passes")
    hashes = [
        step.get(key) if isinstance(step, dict) else None
        for step in (cast("list[Any]", passes) if isinstance(passes, list) else [])
        for key in ("weights_before", "weights_after")
    ]
    whole = hashes and all(isinstance(text, str) for text in hashes)
    whole = whole and {field.name for field in fields(Certificate)} <= set(found)
    if not whole or not isinstance(found.get("recipe"), dict):
        raise FormatError(
            f"{path}: this is no certificate of a compile, which has passes and a recipe"
        )
    return found


@dataclass(frozen=True)
class Basis:
    """What the artifacts of one compile are compared with."""

    certificate: Mapping[str, Any]
    dense: Program
    again: Rerun
    given: tuple[Any, Any]

    @classmethod
    def of(
        cls, certificate: Mapping[str, Any], model: nn.Module, args: Any = (), kwargs: Any = None
    ) -> Basis:
        """Capture the model and run the recipe again."""
        dense = _capture_alike(certificate, model, args, kwargs)
        again = _run_again(certificate, dense, (args, kwargs))
        return cls(certificate, dense, again, (args, kwargs) if args or kwargs else (None, None))

    def check(
        self,
        weights: Mapping[str, torch.Tensor],
        *,
        artifact: Program | None = None,
        exported: Program | None = None,
        trials: int = 3,
        seed: int = 0,
    ) -> Certificate:
        """Check an artifact from scratch; the certificate has what differs as failures.

        Compared are the hashes of graphs and weights with the certificate's; each weight with the
        model's, of which it may differ by zeros alone, and with the recipe run again; and, in both
        modes and on drawn inputs, what the artifact computes with what the model computes with its
        weights. Where channels were cut, they are cut again from the model, which is compared in
        float64, and the artifact is compared with that.

        `artifact` is the Program that was compiled, `exported` the graph of one mode of a .pt2
        file; without either, the weights alone are checked.
        """
        certificate, again = self.certificate, self.again.program
        texts = [*_hash_faults(certificate, weights, self.dense, artifact), *self.again.faults]
        cut = certificate["recipe"].get("shrink") is not None
        base = again if cut else self.dense
        note = self.again.note
        oracle = f"{note}; without that a shrunk artifact cannot be held to the model"
        if base is not None:
            oracle = _with_weights(base, weights)
        if isinstance(oracle, str):
            failures = tuple(_failure(text) for text in (*texts, oracle))
            return Certificate("same", 0.0, seed, 0, (), 0.0, failures)
        texts += () if cut else _value_faults(self.dense, weights)
        others = [] if again is None else [*_other_values(again, weights)]
        note += "" if again is None or others else ", equal weights"
        found = self._compare(artifact, exported, oracle, trials, seed)
        failures = (*(_failure(text) for text in (*texts, *others)), *found.failures)
        inputs = (*found.inputs, note)
        return replace(found, failures=failures, inputs=inputs, recipe=certificate["recipe"])

    def _compare(
        self,
        artifact: Program | None,
        exported: Program | None,
        oracle: Program,
        trials: int,
        seed: int,
    ) -> Certificate:
        """Compare an artifact, or the weights alone, with its oracle; a graph in its mode."""
        after = oracle if artifact is None else artifact
        found = verify(after, fork(oracle), *self.given, trials=trials, seed=seed)
        if exported is None:
            return found
        # The file has the graph of the mode that the model was in.
        modes = (TRAIN, EVAL) if oracle.training else (EVAL, TRAIN)
        tries = [
            verify(exported, oracle, *self.given, trials=trials, seed=seed, modes=(mode,))
            for mode in modes
        ]
        one = next((each for each in tries if each), tries[0])
        inputs = (*found.inputs, *(f"{text}, the graph in the file" for text in one.inputs))
        count, failures = found.trials + one.trials, (*found.failures, *one.failures)
        return replace(found, inputs=inputs, trials=count, failures=failures)


def _failure(text: str) -> Failure:
    return Failure("every", "the certificate", None, None, text)


def _hash_faults(
    certificate: Mapping[str, Any],
    weights: Mapping[str, torch.Tensor],
    dense: Program,
    artifact: Program | None,
) -> Iterator[str]:
    if certificate.get("ok") is not True or certificate.get("failures"):
        yield "it says itself that it does not hold"
    if certificate.get("digest") != seal_of(certificate):
        yield "it is not as compile wrote it"
    passes: Any = certificate["passes"]
    for before, after in pairwise(passes):
        for what in ("graph", "weights"):
            if before.get(f"{what}_after") != after.get(f"{what}_before"):
                yield f"the {what} after {before.get('name')!r} is not that of the next pass"
    if graphs_digest(dense) != passes[0].get("graph_before"):
        yield "the model's graphs are not those that were compiled"
    state = weights if artifact is None else artifact.state_dict()
    if state_digest(state) != passes[-1]["weights_after"]:
        yield "the weights are not those that were certified"
    if artifact is not None and graphs_digest(artifact) != passes[-1].get("graph_after"):
        yield "the graphs are not those that were certified"
    if Digests().state(dense) != passes[0]["weights_before"]:
        yield "the model's weights are not those that were compiled"


def _with_weights(dense: Program, weights: Mapping[str, torch.Tensor]) -> Program | str:
    """Return the model's Program with the artifact's values, masked ones multiplied out."""
    oracle = fork(dense)
    made = finalize(oracle) if dense.masks else oracle
    state = dict(made.state_dict())
    for name in made.captured.first:
        value = _value(weights, name)
        if value is None:
            return f"the artifact has no {name!r}"
        if value.shape != state[name].shape:
            return f"{name!r} is {list(value.shape)}, and {list(state[name].shape)} in the model"
        state[name] = value
    state.update((k, v) for k, v in weights.items() if k in state and k not in made.captured.first)
    fresh = {key: tensor.detach().clone() for key, tensor in state.items()}
    made.load_state_dict(fresh, assign=True)
    return made


def _value(weights: Mapping[str, torch.Tensor], name: str) -> torch.Tensor | None:
    orig, mask = (weights.get(f"{name}{suffix}") for suffix in _MASKED)
    if name in weights or orig is None or mask is None:
        return weights.get(name)
    return orig * mask


def _value_faults(dense: Program, weights: Mapping[str, torch.Tensor]) -> Iterator[str]:
    """Yield the parameters that hold other values than the model's and zeros."""
    for name in parameters.aliases(dense):
        value, own = _value(weights, name), parameters.value(dense, name)
        if value is None:
            continue
        # Masking an infinity gives NaN, as torch has it.
        lost = value.isnan() & ~own.isfinite()
        if not same_bits(torch.where((value == 0) | lost, value, own), value):
            yield f"{name!r} holds other values than the model's and zeros"

    masks = {f"{name}{suffix}" for name in dense.captured.first for suffix in _MASKED}
    for key, buffer in dense.state_dict().items():
        other = weights.get(key)
        if key in {*dense.captured.first, *masks} or other is None:
            continue
        if not same_bits(other, buffer):
            yield f"the buffer {key!r} is not the model's"


def _other_values(again: Program, weights: Mapping[str, torch.Tensor]) -> Iterator[str]:
    """Yield the parameters to which the recipe, run again, gives other values."""
    absorbed = {name for record in again.captured.shrinks for name in record.absorbed}
    for name in parameters.aliases(again):
        value, wanted = _value(weights, name), parameters.value(again, name)
        if value is None:
            continue
        if name in absorbed and value.shape == wanted.shape:
            # A sum of constants, which another machine may round in another way.
            loose = 8 * torch.finfo(wanted.dtype).eps
            same = torch.allclose(value, wanted, rtol=loose, atol=loose * float(wanted.abs().max()))
        else:
            same = same_bits(value, wanted)
        if not same:
            yield f"the recipe, run again, gives {name!r} other values"
