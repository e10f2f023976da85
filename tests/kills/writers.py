"""What is written, and what tells that it is whole and which of two versions it is."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import torch
from onnx import numpy_helper
from torch import nn

import fxprune
from fxprune.compiler.dry_run import plan
from fxprune.files.masks import read_masks, write_masks
from fxprune.files.pt2 import load_pt2
from fxprune.files.writers import read_weights
from fxprune.recipe.schema import json_schema
from fxprune.support.writing import write_text

SCALES = (1.0, 2.0)


@dataclass(frozen=True)
class Version:
    """One of the two things that a target may hold.

    Args:
        number: 0 or 1.
        program: masked.
        model: what the program was captured from.
    """

    number: int
    program: fxprune.Program
    model: nn.Module


@dataclass(frozen=True)
class Writer:
    """A way to write a target.

    Args:
        target: its name.
        write: writes a version there.
        read: returns the number of the version that is there; raises where it is not whole.
    """

    target: str
    write: Callable[[Version, Path], Any]
    read: Callable[[Path], int]


def versions() -> tuple[Version, Version]:
    """Two Programs that differ in every weight, and in how much of each is pruned."""
    first, second = (_version(number) for number in (0, 1))
    return first, second


def _version(number: int) -> Version:
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64))
    for parameter in model.parameters():
        parameter.data = torch.linspace(1, 2, parameter.numel()).view(parameter.shape)
        parameter.data *= SCALES[number]
    program = fxprune.capture(model, (torch.zeros(2, 64),))
    return Version(number, fxprune.prune(program, _recipe(number)), model)


def _recipe(number: int) -> dict[str, Any]:
    rule = {"select": "*.weight", "method": "l1_unstructured", "amount": 10 + number}
    return {"rule": [rule], "export": {"formats": ["fxp", "safetensors"]}}


def _number(values: list[Any]) -> int:
    """The version that all values name."""
    assert values
    assert len(set(values)) == 1, f"torn: {values}"
    return SCALES.index(values[0]) if isinstance(values[0], float) else values[0] - 10


def _of_state(state: dict[str, Any]) -> int:
    sums = []
    for key, value in state.items():
        if key.endswith(("_orig", "bias")):
            scale = float(value.detach().flatten()[0])
            whole = torch.linspace(1, 2, value.numel()).view(value.shape) * scale
            assert torch.equal(value.detach(), whole), f"torn: {key}"
            sums.append(scale)
    return _number(sums)


def _of_masks(masks: dict[str, torch.Tensor]) -> int:
    return _number([int((mask == 0).sum()) for mask in masks.values()])


def _of_onnx(path: Path) -> int:
    model = onnx.load(path)
    onnx.checker.check_model(model)
    arrays = [numpy_helper.to_array(item) for item in model.graph.initializer]
    return _number([float(array.flatten()[-1]) / 2 for array in arrays if array.size > 60])


def _of_source(path: Path) -> int:
    spec: Any = importlib.util.spec_from_file_location("written", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return _of_state(module.load().state_dict())


def _of_plan(path: Path) -> int:
    text = path.read_text(encoding="utf-8")
    return _number([rule.amount for rule in fxprune.Plan.load(path).recipe.rules]) if text else -1


def _of_folder(path: Path) -> int:
    names = {each.name for each in path.iterdir()}
    assert {"model.fxp", "model.safetensors", "report.json", "certificate.json"} <= names
    assert (path / "kept.txt").read_text(encoding="utf-8") == "mine"
    report = json.loads((path / "report.json").read_text(encoding="utf-8"))
    json.loads((path / "certificate.json").read_text(encoding="utf-8"))
    found = [_of_state(dict(fxprune.load(path / "model.fxp").state_dict()))]
    found.append(_of_state(read_weights(path / "model.safetensors")))
    zeros = {row["zeros"] for row in report["parameters"] if "weight" in row["name"]}
    assert len(zeros) == 1
    found.append(zeros.pop() - 10)
    assert len(set(found)) == 1, f"torn: {found}"
    return found[0]


def _write_text(version: Version, path: Path) -> None:
    text = json.dumps(json_schema(), indent=2) + "\n"
    write_text(path, f"{version.number}{text}")


def _of_text(path: Path) -> int:
    text = path.read_text(encoding="utf-8")
    whole = hashlib.sha256((json.dumps(json_schema(), indent=2) + "\n").encode()).digest()
    assert hashlib.sha256(text[1:].encode()).digest() == whole, "torn"
    return int(text[0])


def _compiled(version: Version, path: Path) -> None:
    fxprune.compile(version.model, _recipe(version.number), (torch.zeros(2, 64),), out=path)


def _exported(version: Version, path: Path) -> None:
    fxprune.export(version.program, path)


def _pruned_checkpoint(version: Version, path: Path) -> None:
    source = path.parent.parent / f"source{version.number}.safetensors"
    if not source.exists():
        fxprune.export(fxprune.unmask(version.program), source)
    fxprune.prune_checkpoint(source, {"rule": _recipe(version.number)["rule"]}, path)


def _of_checkpoint(path: Path) -> int:
    state = read_weights(path)
    zeros = [int((x == 0).sum()) for key, x in state.items() if key.endswith("weight")]
    found = _of_state(state)  # by the biases
    assert _number(zeros) == found, f"torn: {zeros}"
    return found


WRITERS = (
    Writer("net.fxp", lambda v, p: fxprune.save(v.program, p),
           lambda p: _of_state(dict(fxprune.load(p).state_dict()))),
    Writer("net.pt2", _exported, lambda p: _of_state(dict(load_pt2(p).state_dict))),
    Writer("net.safetensors", _exported, lambda p: _of_state(read_weights(p))),
    Writer("net.onnx", _exported, _of_onnx),
    Writer("net.py", _exported, _of_source),
    Writer("checkpoint.safetensors", _pruned_checkpoint, _of_checkpoint),
    Writer("plan.json", lambda v, p: plan(fxprune.unmask(v.program), _recipe(v.number)).save(p),
           _of_plan),
    Writer("masks.pt", lambda v, p: write_masks(v.program, p), lambda p: _of_masks(read_masks(p))),
    Writer("nni.pt", lambda v, p: write_masks(v.program, p, format="nni"),
           lambda p: _of_masks(read_masks(p))),
    Writer("masks.safetensors", lambda v, p: write_masks(v.program, p),
           lambda p: _of_masks(read_masks(p))),
    Writer("schema.json", _write_text, _of_text),
    Writer("out", _compiled, _of_folder),
)  # fmt: skip
