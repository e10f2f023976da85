"""`check_model`: models pass, and what fxprune or a model does wrong is told with its recipe."""

from __future__ import annotations

import copy
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.errors import FxpruneError, PassError
from fxprune.program.program import Program
from fxprune.recipe.recipe import Recipe
from fxprune.testing.comparing import DifferenceError
from fxprune.testing.model_checks import CHECKS, COUPLED, EXPORTS, check_model
from fxprune.testing.pass_checks import CheckCounts
from tests.frontends.test_hugging_face import MODELS as HUGGING_FACE
from tests.models.regional_nets import RootBranch
from tests.tools.helpers import Modes, inputs, model
from tests.tools.profiles import thorough_but

ALL = {"capture", "prune", "functional", "unchanged"} | {
    check.name for check in (*CHECKS, *COUPLED, *EXPORTS)
}


@pytest.mark.parametrize("name", thorough_but(["conv"], ["mlp", "conv", "modes", "twice"]))
def test_small_models_pass_every_check(name: str):
    found = check_model(model(name), inputs(name), max_examples=7)
    assert found.subject == type(model(name)).__name__
    # One layer that is called twice has no channels to cut.
    assert set(found.checks) == (ALL - {"shrink"} if name == "twice" else ALL)
    # Each of the five methods was drawn.
    assert found.checks["parity"] + sum(k.startswith("prune") for k in found.refused) >= 5


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["bert", "vit"])
def test_models_of_hugging_face_pass(name: str):
    factory, batch, _ = HUGGING_FACE[name]
    found = check_model(factory(), batch(4), max_examples=7)
    assert set(found.checks) >= ALL - {"shrink"}
    assert [why for why in found.refused if "channels" not in why] == []


def test_the_model_and_the_generator_are_left_alone():
    source = model("mlp")
    before, state = copy.deepcopy(source.state_dict()), torch.get_rng_state()
    check_model(source, inputs("mlp"), max_examples=1)
    assert all(torch.equal(value, before[key]) for key, value in source.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


def test_inputs_are_a_tensor_a_tuple_or_a_mapping():
    (x,) = inputs("linear")
    for given in (x, (x,), {"input": x}):
        assert check_model(model("linear"), given, max_examples=1).checks["capture"] == 1


def test_a_model_without_parameters_is_only_captured():
    found = check_model(nn.ReLU(), torch.randn(3, 2))
    assert found.checks == {"capture": 1, "unchanged": 1}


@pytest.mark.thorough
def test_fixed_shapes_are_fine():
    found = check_model(model("mlp"), inputs("mlp"), batch=None, max_examples=1)
    assert set(found.checks) == ALL


@pytest.mark.thorough
def test_what_fxprune_refuses_is_reported_and_no_failure():
    found = check_model(*regional(), max_examples=1)
    assert found.checks["parity"] > 0
    assert any(why.startswith("export: ") for why in found.refused)
    assert any(why.startswith("save: ") for why in found.refused)


def regional() -> tuple[nn.Module, Tensor]:
    """A model whose control flow depends on values."""
    torch.manual_seed(0)
    return RootBranch(), torch.randn(4, 3)


def test_a_model_that_cannot_be_captured_raises():
    class Never(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if float(x.sum()) > 0 else -x

    with pytest.raises(FxpruneError):
        check_model(Never(), torch.randn(3, 2))


# Faults


Edit = Callable[[Any], Any]


def after(function: Any, edit: Edit) -> Any:
    """The function, with an edit of the Program that it returns behind it."""

    def edited(*args: Any, **kwargs: Any) -> Any:
        found = function(*args, **kwargs)
        edit(found)
        return found

    return edited


def louder(program: Program) -> None:
    with torch.no_grad():
        program.parameter("2.bias").add_(1)


def forget(program: Program) -> None:
    program.masks["0.weight"].fill_(1)


FAULTS: dict[str, tuple[str, Edit, str]] = {
    "parity": ("fxprune.testing.parity.prune", forget, "masks"),
    "finalize": ("fxprune.testing.model_checks.finalize", louder, "'2.bias', entry (0,)"),
    "save": ("fxprune.testing.model_checks.load", louder, "'2.bias', entry (0,)"),
    "shrink": ("fxprune.testing.model_checks.shrink", louder, "differs by up to"),
    "export": ("fxprune.testing.model_checks.export", lambda path: path.unlink(), "No such file"),
    "weights": (
        "fxprune.testing.model_checks.read_weights",
        lambda weights: weights["0.weight"].add_(1),
        "'0.weight'",
    ),
    "source": ("runpy.run_path", lambda names: names.pop("load"), "load"),
}


@pytest.mark.parametrize("check", thorough_but(["finalize"], FAULTS))
def test_a_fault_of_fxprunes_is_told_with_the_simplest_recipe(
    monkeypatch: pytest.MonkeyPatch, check: str, tmp_path: Path
):
    monkeypatch.chdir(tmp_path)
    name, edit, told = FAULTS[check]
    module, _, function = name.rpartition(".")
    original = getattr(__import__(module, fromlist=[function]), function)
    if check == "parity":
        edit = lambda p: forget(p) if "0.weight" in p.masks else None  # noqa: E731
    monkeypatch.setattr(name, after(original, edit))
    with pytest.raises(DifferenceError) as caught:
        check_model(model("mlp"), inputs("mlp"), max_examples=50 if check == "parity" else 1)
    message = str(caught.value)
    assert message.startswith(f"the model fails the check {check!r}: ")
    assert told in message
    shown = message.partition("The simplest recipe that shows it:\n\n")[2]
    toml, _, script = shown.partition("\n\nprogram = ")
    assert len(Recipe.from_dict(tomllib.loads(toml)).rules) == 1
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    # Without the fault, what is printed runs.
    names = {"fxprune": fxprune, "torch": torch, "model": model("mlp"), "kwargs": {}}
    exec(f"import fxprune.testing\nprogram = {script}", {**names, "args": inputs("mlp")})


def test_a_capture_that_differs_is_told(monkeypatch: pytest.MonkeyPatch):
    capture = fxprune.capture
    monkeypatch.setattr("fxprune.testing.model_checks.capture", after(capture, louder))
    with pytest.raises(DifferenceError, match=r"the first parameter that differs is '2\.bias'"):
        check_model(model("mlp"), inputs("mlp"))


@pytest.mark.thorough
def test_a_wrong_functional_call_is_told_with_the_calls(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("fxprune.functional.identity", lambda module, name: module)
    for checks in ("CHECKS", "COUPLED", "EXPORTS"):
        monkeypatch.setattr(f"fxprune.testing.model_checks.{checks}", ())
    with pytest.raises(DifferenceError) as caught:
        check_model(model("linear"), inputs("linear"), max_examples=140)
    message = str(caught.value)
    assert message.startswith("the model fails the check 'functional': after call 1")
    assert "\ncalls = (Call('identity', ('weight',)),)\n" in message


def test_a_model_that_the_checks_change_is_told(monkeypatch: pytest.MonkeyPatch):
    source = Modes()

    def change(*_: Any) -> None:
        with torch.no_grad():
            source.head.bias.add_(1)

    monkeypatch.setattr("fxprune.testing.model_checks._check_drawn", change)
    with pytest.raises(DifferenceError, match=r"changed the model: 'head\.bias', entry \(0,\)"):
        check_model(source, torch.randn(4, 3))


@pytest.mark.thorough
def test_a_crash_is_a_failure_and_a_refusal_is_not(monkeypatch: pytest.MonkeyPatch):
    def crash(*_: Any) -> None:
        raise ZeroDivisionError("by accident")

    def refuse(*_: Any, **__: Any) -> None:
        raise PassError("it is not made for that\nmore")

    monkeypatch.setattr("fxprune.testing.model_checks.save", refuse)
    found = check_model(model("linear"), inputs("linear"), max_examples=1)
    assert found.refused["save: it is not made for that"] >= 1
    assert CheckCounts("x").result().cases == 0
    monkeypatch.setattr("fxprune.testing.model_checks.save", crash)
    with pytest.raises(DifferenceError, match="check 'save': ZeroDivisionError: by accident"):
        check_model(model("linear"), inputs("linear"), max_examples=1)
