"""compile: from a model and a recipe to certified files, or to an error and no file."""

from __future__ import annotations

import copy
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.utils import prune as torch_prune

import fxprune
from fxprune.compiler import build
from fxprune.compiler.build import Result, compile
from fxprune.errors import AmountError, FormatError, InvariantError, RecipeError, SelectError
from fxprune.files import formats
from fxprune.program import parameters
from fxprune.program.program import Program
from fxprune.testing.comparing import difference, is_same
from fxprune.verification.certificate import Certificate, Failure
from fxprune.verification.comparison import verify
from tests.models.zoo import ZOO
from tests.tools.batches import with_batch
from tests.tools.profiles import thorough_but

RULE = {"select": {"ndim": [2, 3, 4, 5]}, "method": "l1_unstructured", "amount": 0.5}
MASK: dict[str, Any] = {"rule": [RULE]}
FINAL: dict[str, Any] = {**MASK, "finalize": {}}
CLEAN: dict[str, Any] = {**MASK, "finalize": {"zeros": "clean"}}
FILES: dict[str, Any] = {**FINAL, "export": {}}
MODELS = ["residual_cnn", "stochastic_depth", "aux_head", "lstm", "tied_embedding", "kwargs_dict"]


def compiled(name: str, recipe: Any, **options: Any) -> Result:
    model, args, kwargs = ZOO[name]()
    return compile(model, recipe, args, kwargs, **options)


@pytest.mark.smoke
def test_what_a_recipe_declares_is_what_the_steps_do() -> None:
    model, args, kwargs = ZOO["residual_cnn"]()
    masked = fxprune.prune(fxprune.capture(model, args, kwargs), MASK)
    assert is_same(compiled("residual_cnn", MASK).program.state_dict(), masked.state_dict())
    final = fxprune.finalize(masked)
    assert is_same(compiled("residual_cnn", FINAL).program.state_dict(), final.state_dict())


@pytest.mark.parametrize("recipe", [MASK, FINAL, CLEAN], ids=["mask", "keep", "clean"])
@pytest.mark.parametrize(
    "name", thorough_but(["residual_cnn", "aux_head", "tied_embedding"], MODELS)
)
def test_each_kind_of_recipe_is_certified(name: str, recipe: dict[str, Any]) -> None:
    model, _, _ = ZOO[name]()
    before = copy.deepcopy(model.state_dict())
    state = torch.get_rng_state()
    result = compiled(name, recipe)
    assert result.certificate.ok
    assert result.certificate.promise == "same"
    assert result.certificate.trials == 8
    assert result.certificate.inputs[0] == "eval: the given input"
    assert result.files == ()
    assert fxprune.is_pruned(result.program) == ("finalize" not in recipe)
    assert is_same(model.state_dict(), before)
    assert torch.equal(torch.get_rng_state(), state)


def test_clean_zeros_are_plus_zero_even_where_masking_gives_nan() -> None:
    model = nn.Linear(2, 2)
    model.weight.data = torch.tensor([[-1.0, torch.inf], [3.0, 4.0]])
    mask = torch.tensor([[0.0, 0.0], [1.0, 1.0]])
    rule = {"select": "weight", "method": "identity"}
    program = fxprune.capture(model, (torch.ones(3, 2),))
    masked = fxprune.prune(program, {"rule": [rule]})
    parameters.masks(masked)["weight"].copy_(mask)
    clean = compile(masked, {"rule": [rule], "finalize": {"zeros": "clean"}}).program
    assert is_same(clean.get_parameter("weight").detach(), torch.tensor([[0.0, 0.0], [3.0, 4.0]]))
    kept = compile(masked, {"rule": [rule], "finalize": {}}).program.get_parameter("weight")
    assert torch.signbit(kept[0, 0])
    assert torch.isnan(kept[0, 1])


def test_a_model_that_torch_pruned_is_compiled_further() -> None:
    model, args, _ = ZOO["lenet"]()
    torch_prune.l1_unstructured(model.get_submodule("fc1"), "weight", amount=0.5)
    rule = {"select": "fc2.weight", "method": "l1_unstructured", "amount": 0.5}
    result = compile(model, {"rule": [rule]}, args)
    assert set(result.program.masks) == {"fc1.weight", "fc2.weight"}
    torch_prune.l1_unstructured(model.get_submodule("fc2"), "weight", amount=0.5)
    assert is_same(result.program(*args), model(*args))


def test_a_program_is_compiled_without_an_example_and_not_changed() -> None:
    model, args, _ = ZOO["lenet"]()
    program = fxprune.capture(model, args)
    result = compile(program, FINAL)
    assert result.certificate.trials == 6
    assert is_same(program.state_dict(), model.state_dict())


def test_one_tensor_and_static_shapes_will_do() -> None:
    model, args, _ = ZOO["lenet"]()
    assert compile(model, FINAL, args[0], batch=None).certificate.ok


def test_every_step_is_told_before_it_runs(tmp_path: Path) -> None:
    steps: list[str] = []
    compiled("lenet", FILES, out=tmp_path / "out", on_pass=steps.append)
    assert steps[0] == "capture"
    assert "rule-1: select" in steps
    assert steps[steps.index("finalize") :] == [
        "finalize",
        "verify",
        "report",
        "export: model.pt2",
        "export: model.safetensors",
    ]


# Files


@pytest.mark.parametrize(
    "name", thorough_but(["aux_head"], ["lenet", "aux_head", "stochastic_depth"])
)
def test_the_files_hold_the_pruned_model(name: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    model, args, kwargs = ZOO[name]()
    result = compile(model.eval(), FILES, args, kwargs, out=out)
    names = ["model.pt2", "model.safetensors", "report.json", "certificate.json"]
    assert result.files == tuple(out / name for name in names)
    assert sorted(os.listdir(out)) == sorted(names)
    assert os.listdir(tmp_path) == ["out"]
    other, _, _ = ZOO[name](seed=1)
    other.load_state_dict(load_file(out / "model.safetensors"), strict=True)
    loaded = torch.export.load(out / "model.pt2").module()
    for batch in (1, 5):
        inputs, keywords = with_batch(args, kwargs, batch)
        wanted = result.program(*inputs, **keywords)
        assert difference(loaded(*inputs, **keywords), wanted) is None
        assert difference(other.eval()(*inputs, **keywords), wanted) is None
    certificate = json.loads((out / "certificate.json").read_text())
    assert certificate["ok"] is True
    assert (out / "certificate.json").read_text() == result.certificate.to_json()
    assert (out / "report.json").read_text() == result.report.to_json()


def test_the_formats_are_those_of_the_recipe(tmp_path: Path) -> None:
    both = ["certificate.json", "report.json"]
    compiled("lenet", FINAL, out=tmp_path / "none")
    assert sorted(os.listdir(tmp_path / "none")) == both
    recipe = {**MASK, "export": {"formats": ["onnx", "safetensors"]}}
    compiled("lenet", recipe, out=tmp_path / "some")
    assert sorted(os.listdir(tmp_path / "some")) == [
        "certificate.json",
        "model.onnx",
        "model.safetensors",
        "report.json",
    ]
    assert "conv1.weight_mask" in load_file(tmp_path / "some" / "model.safetensors")


def test_without_out_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    compiled("lenet", FILES)
    assert os.listdir(tmp_path) == []


def test_a_later_result_replaces_an_earlier_one_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    first = compiled("lenet", FILES, out=tmp_path)
    rule = {**RULE, "amount": 0.25}
    second = compiled("lenet", {**FILES, "rule": [rule]}, out=tmp_path)
    assert first.report != second.report
    assert (tmp_path / "report.json").read_text() == second.report.to_json()
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert len(os.listdir(tmp_path)) == 5


# What goes wrong leaves no file and no earlier result changed


def snapshot(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("there", [False, True])
@pytest.mark.parametrize("failing", [".pt2", ".safetensors"])
def test_a_writer_that_fails_leaves_the_earlier_result(
    failing: str, there: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    if there:
        compiled("lenet", FILES, out=out)
    before = snapshot(out) if there else {}

    def fail(program: Program, path: Path) -> None:
        raise ValueError("broken")

    monkeypatch.setitem(formats.WRITERS, failing, fail)  # pyright: ignore[reportArgumentType]
    with pytest.raises(FormatError, match="broken"):
        compiled("lenet", CLEAN | {"export": {}}, out=out)
    assert os.listdir(tmp_path) == (["out"] if there else [])
    assert (snapshot(out) if there else {}) == before


def test_a_broken_certificate_raises_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any, **kwargs: Any) -> Certificate:
        failure = Failure("eval", "the given input", "output", 0.5, "output differs by up to 0.5")
        return Certificate("same", 0.0, 0, 1, ("eval: the given input",), 0.5, (failure,))

    monkeypatch.setattr(build, "verify", refuse)
    with pytest.raises(InvariantError, match=r"(?s)breaks its promise.*differs by up to 0\.5"):
        compiled("lenet", FILES, out=tmp_path / "out")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("recipe", "step"), [(MASK, "prune"), (FINAL, "finalize"), (CLEAN, "finalize")]
)
def test_a_step_that_changes_a_weight_is_caught(
    recipe: dict[str, Any], step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest: Callable[..., Program] = getattr(build, step)

    def careless(*args: Any, **kwargs: Any) -> Program:
        program = honest(*args, **kwargs)
        with torch.no_grad():
            parameters.parameter(program, "fc3.bias")[0] += 0.5
        return program

    monkeypatch.setattr(build, step, careless)
    with pytest.raises(InvariantError, match=r"first node that differs is fc3_bias"):
        compiled("lenet", recipe)


def test_out_is_checked_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("mine")
    steps: list[str] = []
    with pytest.raises(FormatError, match="this is a file; give the path of a folder"):
        compiled("lenet", FILES, out=tmp_path / "file", on_pass=steps.append)
    with pytest.raises(FormatError, match="does not exist; make it first"):
        compiled("lenet", FILES, out=tmp_path / "no" / "out", on_pass=steps.append)
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    recipe = {**FINAL, "export": {"formats": ["onnx"]}}
    with pytest.raises(FormatError, match=r"pip install fxprune\[onnx\]"):
        compiled("lenet", recipe, out=tmp_path / "out", on_pass=steps.append)
    assert steps == []
    assert os.listdir(tmp_path) == ["file"]
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize(
    ("rule", "error"),
    [
        ({"select": "nothing.*"}, SelectError),
        ({"amount": 10**9, "select": "fc1.weight"}, AmountError),
        ({"method": "l2_unstructured"}, RecipeError),
        ({"method": "os:mkdir"}, RecipeError),
    ],
)
def test_faults_of_a_recipe_write_nothing(
    rule: dict[str, Any], error: type[Exception], tmp_path: Path
) -> None:
    with pytest.raises(error):
        compiled("lenet", {**FILES, "rule": [{**RULE, **rule}]}, out=tmp_path / "out")
    assert os.listdir(tmp_path) == []


def test_the_oracle_of_masks_is_the_dense_program_with_masked_values() -> None:
    model, args, _ = ZOO["tied_embedding"]()
    program = compiled("tied_embedding", MASK).program
    with torch.no_grad():
        for name, mask in program.masks.items():
            weight: Tensor = model.get_parameter(name)
            weight.copy_(weight * mask)
    assert verify(program, model, args).ok
