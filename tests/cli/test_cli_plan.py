"""The commands explain and plan, and compile --plan."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from fxprune.compiler.dry_run import explain, plan
from fxprune.reports.plans import Plan
from tests.tools.commands import RECIPE, files, refused, run

NET = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 4, 3)
        self.fc = nn.Linear(4 * 4 * 4, 3)

    def forward(self, x):
        print("a chatty forward")
        return self.fc(torch.relu(self.conv1(x)).flatten(1))


class Wider(Net):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4 * 4 * 4, 5)


class Broken(nn.Module):
    def __init__(self):
        raise RuntimeError("this model must not be made")
"""
OWN = """
from torch.nn.utils.prune import BasePruningMethod


class First(BasePruningMethod):
    PRUNING_TYPE = "unstructured"

    def compute_mask(self, t, default_mask):
        mask = default_mask.clone()
        mask.view(-1)[0] = 0
        return mask
"""
INPUT = ("--input", "1,1,6,6")


@pytest.fixture(autouse=True)
def folder(workplace: Path) -> Path:
    """A folder with a model and recipes to work in."""
    Path("net.py").write_text(NET)
    Path("recipe.toml").write_text(RECIPE)
    Path("more.toml").write_text(RECIPE.replace("0.5", "0.75"))
    return workplace


def planned(*args: str, model: str = "net.py:Net", recipe: str = "recipe.toml") -> Any:
    return run("plan", model, "--recipe", recipe, *INPUT, *args)


def saved(name: str, **options: str) -> str:
    result = planned("--out", name, **options)
    assert result.exit_code == 0, result.stderr
    return name


def net() -> torch.nn.Module:
    """The model as the command line makes it."""
    scope: dict[str, Any] = {}
    exec(NET, scope)
    torch.manual_seed(0)
    return scope["Net"]()


EXAMPLE = (torch.ones(1, 1, 6, 6),)


# explain


def test_explain_prints_what_the_function_does() -> None:
    result = run("explain", "net.py:Net", "--recipe", "recipe.toml", *INPUT)
    assert result.exit_code == 0, result.stderr
    assert result.stdout == f"{explain(net(), 'recipe.toml', args=EXAMPLE)}\n"
    result = run("explain", "net.py:Net", "fc.bias", "--recipe", "recipe.toml", *INPUT)
    assert result.stdout.splitlines()[1:] == [
        "fc.bias    weights  leaves  its attribute is bias, not weight"
    ]


def test_explain_as_json() -> None:
    args = ("net.py:Net", "fc.weight", "conv1.bias", "--recipe", "recipe.toml", "--json")
    result = run("explain", *args, *INPUT)
    assert result.exit_code == 0, result.stderr
    rows = json.loads(result.stdout)["parameters"]
    assert [row["name"] for row in rows] == ["fc.weight", "conv1.bias"]
    assert [row["rules"][0]["matched"] for row in rows] == [True, False]


def test_explain_helps_where_a_rule_selects_nothing() -> None:
    Path("recipe.toml").write_text(RECIPE.replace('"weight"', '"wieght"'))
    result = run("explain", "net.py:Net", "--recipe", "recipe.toml", *INPUT)
    assert result.exit_code == 0, result.stderr
    assert "leaves  its attribute is weight, not wieght" in result.stdout
    assert "fails: rule 'weights' selects nothing" in result.stdout


BAD: dict[tuple[str, ...], list[str]] = {
    ("net.py:Net", "fc.wieght", "--recipe", "recipe.toml"): ["fc.wieght", "mean 'fc.weight'"],
    ("net.py:Net", "--recipe", "absent.toml"): ["absent.toml", "does not exist"],
    ("net.py:Nett", "--recipe", "recipe.toml"): ["no 'Nett'", "mean 'Net'"],
}


@pytest.mark.parametrize("args", BAD)
def test_explain_refuses_bad_input(args: tuple[str, ...]) -> None:
    message = refused(run("explain", *args, *INPUT))
    assert [text for text in BAD[args] if text not in message] == []


# plan


def test_plan_prints_what_the_function_does_and_writes_nothing(folder: Path) -> None:
    before = files(folder)
    result = planned()
    assert result.exit_code == 0, result.stderr
    assert result.stdout == f"{plan(net(), 'recipe.toml', args=EXAMPLE)}\n"
    assert files(folder) == before


def test_plan_saves_and_prints_json() -> None:
    result = planned("--out", "plan.json", "--json")
    assert result.exit_code == 0, result.stderr
    assert Path("plan.json").read_text() == result.stdout
    assert Plan.load("plan.json") == plan(net(), "recipe.toml", args=EXAMPLE)
    assert "wrote plan.json (" in planned("--out", "plan.json").stdout


def test_plans_of_two_runs_are_equal_even_where_rules_draw() -> None:
    Path("recipe.toml").write_text(RECIPE.replace("l1_", "random_"))
    saved("a.json")
    saved("b.json")
    assert Path("a.json").read_bytes() == Path("b.json").read_bytes()
    assert Plan.load("a.json").rules[0].drawn


def test_two_saved_plans_are_compared_without_a_model() -> None:
    saved("a.json")
    saved("b.json", recipe="more.toml")
    Path("net.py").unlink()
    result = run("plan", "--diff", "a.json", "b.json")
    assert result.exit_code == 1, result.output
    rows = [line.split() for line in result.stdout.splitlines()]
    assert rows[0] == ["rule", "parameter", "what", "before", "after"]
    assert ["weights", "amount", "0.5", "0.75"] in rows
    assert ["total", "zeros", "114", "171"] in rows
    result = run("plan", "--diff", "a.json", "a.json")
    assert (result.exit_code, result.stdout) == (0, "the plans are equal\n")


def test_a_diff_as_json() -> None:
    saved("a.json")
    saved("b.json", recipe="more.toml")
    result = run("plan", "--diff", "a.json", "b.json", "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["differs"]
    result = run("plan", "--diff", "b.json", "b.json", "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout) == {"differs": False, "changes": []}


def test_a_plan_is_compared_with_a_saved_one() -> None:
    saved("a.json")
    result = planned("--against", "a.json")
    assert (result.exit_code, result.stdout) == (0, "the plans are equal\n"), result.stderr
    result = planned("--against", "a.json", "--out", "b.json", recipe="more.toml")
    assert result.exit_code == 1
    assert "total zeros  114" in result.stdout
    assert run("plan", "--diff", "a.json", "b.json").exit_code == 1
    result = planned("--against", "a.json", model="net.py:Wider")
    assert result.exit_code == 1
    assert "[5, 64]" in result.stdout


def test_saved_plans_of_own_methods_are_compared_without_running_code() -> None:
    Path("own_of_cli_plan.py").write_text(OWN)
    Path("own.toml").write_text(
        '[[rule]]\nselect = "fc.weight"\nmethod = "own_of_cli_plan:First"\n'
    )
    message = refused(planned("--out", "a.json", recipe="own.toml"))
    assert "--allow-imports" in message
    result = planned("--out", "a.json", "--allow-imports", recipe="own.toml")
    assert result.exit_code == 0, result.stderr
    Path("own_of_cli_plan.py").unlink()
    assert run("plan", "--diff", "a.json", "a.json").exit_code == 0
    message = refused(run("compile", "net.py:Net", "--plan", "a.json", "--out", "o", *INPUT))
    assert "--allow-imports" in message


BAD_PLANS: dict[tuple[str, ...], list[str]] = {
    (): ["MODEL", "--diff"],
    ("net.py:Net",): ["--recipe", "--diff"],
    ("--diff", "absent.json", "a.json"): ["absent.json", "does not exist"],
    ("--diff", "a.json", "net.py"): ["net.py", "no plan"],
    ("--diff", "a.json", "."): ["is not a file"],
    ("net.py:Net", "--diff", "a.json", "a.json"): ["--diff", "nothing else"],
    ("--diff", "a.json", "a.json", "--recipe", "recipe.toml"): ["--diff", "nothing else"],
    ("net.py:Broken", "--recipe", "recipe.toml", "--out", "no/plan.json"): ["no does not exist"],
    ("net.py:Broken", "--recipe", "recipe.toml", "--out", "."): ["a folder"],
    ("net.py:Broken", "--recipe", "recipe.toml", "--against", "absent.json"): ["absent.json"],
    ("net.py:Broken", "--recipe", "recipe.toml", "--batch", "x"): ["--batch x"],
}


@pytest.mark.parametrize("args", BAD_PLANS)
def test_plan_refuses_bad_input_before_the_model_is_made(
    args: tuple[str, ...], folder: Path
) -> None:
    saved("a.json")
    before = files(folder)
    message = refused(run("plan", *args))
    assert [text for text in BAD_PLANS[args] if text not in message] == []
    assert files(folder) == before


# compile --plan


def compiled(*args: str, model: str = "net.py:Net") -> Any:
    return run("compile", model, "--out", "out", *args, *INPUT)


def test_a_plan_is_compiled_in_the_place_of_its_recipe() -> None:
    saved("plan.json")
    Path("recipe.toml").unlink()
    result = compiled("--plan", "plan.json")
    assert result.exit_code == 0, result.stderr
    state = load_file("out/model.safetensors")
    zeros = sum(int((value == 0).sum()) for value in state.values())
    assert zeros == Plan.load("plan.json").zeros == 114


@pytest.mark.parametrize("model", ["net.py:Wider", "net.py:Net"])
def test_a_model_that_has_changed_is_refused(model: str, folder: Path) -> None:
    saved("plan.json")
    weights = {key: value + 1 for key, value in net().state_dict().items()}
    save_file(weights, "weights.safetensors")
    before = files(folder)
    changed = ("--weights", "weights.safetensors") if model == "net.py:Net" else ()
    message = refused(compiled("--plan", "plan.json", *changed, model=model))
    assert "the plan was made for another model; make the plan again" in message
    assert "fc.weight" in message
    assert files(folder) == before


def test_weights_from_a_file_are_planned_and_compiled() -> None:
    weights = {key: value + 1 for key, value in net().state_dict().items()}
    save_file(weights, "weights.safetensors")
    options = ("--weights", "weights.safetensors")
    assert planned("--out", "plan.json", *options).exit_code == 0
    assert compiled("--plan", "plan.json", *options).exit_code == 0
    refused(compiled("--plan", "plan.json"))


def test_a_plan_that_was_edited_is_refused(folder: Path) -> None:
    saved("plan.json")
    text = Path("plan.json").read_text()
    Path("plan.json").write_text(text.replace('"amount": 0.5', '"amount": 0.75'))
    before = files(folder)
    message = refused(compiled("--plan", "plan.json"))
    assert "the outcome is not what was planned" in message
    assert "total zeros" in message
    assert files(folder) == before


def test_a_mask_file_lies_beside_the_recipe_not_the_plan(folder: Path) -> None:
    for name in ("recipes", "plans"):
        Path(name).mkdir()
    save_file({"fc.weight": torch.eye(64)[:3].contiguous()}, "recipes/masks.safetensors")
    Path("recipes/recipe.toml").write_text(
        '[[rule]]\nselect = "fc.weight"\nmethod = "custom_from_mask"\nmask = "masks.safetensors"\n'
        '[export]\nformats = ["safetensors"]\n'
    )
    saved("plans/plan.json", recipe="recipes/recipe.toml")
    os.chdir("plans")
    result = run("compile", "../net.py:Net", "--plan", "plan.json", "--out", "out", *INPUT)
    assert result.exit_code == 0, result.stderr
    assert torch.equal(load_file("out/model.safetensors")["fc.weight_mask"], torch.eye(64)[:3])


@pytest.mark.parametrize("args", [(), ("--recipe", "recipe.toml", "--plan", "plan.json")])
def test_compile_takes_a_recipe_or_a_plan(args: tuple[str, ...], folder: Path) -> None:
    saved("plan.json")
    message = refused(compiled(*args))
    assert "give either --recipe FILE or --plan FILE" in message
    assert "out" not in os.listdir()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"rule": []}', "\x00"])
def test_compile_refuses_what_is_no_plan(text: str) -> None:
    Path("plan.json").write_text(text)
    message = refused(compiled("--plan", "plan.json"))
    assert message.startswith("Error: plan.json: this is no plan")
