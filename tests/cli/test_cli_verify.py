"""The command verify, and saved Programs as MODEL of every command."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import fxprune
from fxprune.files.fxp import load, save
from tests.tools.commands import refused, run

FACTORIES = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1 = nn.Linear(6, 5)
        self.norm = nn.BatchNorm1d(5)
        self.fc2 = nn.Linear(5, 2)

    def forward(self, x):
        return self.fc2(torch.relu(self.norm(self.fc1(x))))

def make():
    return Net(), (torch.ones(4, 6),)

def bare():
    return Net()

def other():
    net = Net()
    with torch.no_grad():
        net.fc2.bias[1] += 1.0
    return net
"""
RECIPE = """
version = 1
[[rule]]
select = "*.weight"
method = "l1_unstructured"
amount = 0.5
[finalize]
[export]
formats = ["fxp", "safetensors"]
"""


@pytest.fixture(autouse=True)
def folder(workplace: Path) -> Path:
    (workplace / "nets.py").write_text(FACTORIES)
    (workplace / "recipe.toml").write_text(RECIPE)
    return workplace


def saved(name: str = "net.fxp") -> Path:
    result = run("compile", "nets.py:make", "--recipe", "recipe.toml", "--out", "out")
    assert result.exit_code == 0, result.output
    program = load("out/model.fxp")
    return save(program, name)


def test_equal_models_are_verified() -> None:
    result = run("verify", "nets.py:make", "nets.py:make")
    assert result.exit_code == 0, result.output
    assert result.stdout == "same: kept on 2 of 2 trials, largest difference 0\n"


def test_a_difference_is_told_and_exits_with_1() -> None:
    result = run("verify", "nets.py:other", "nets.py:make")
    assert result.exit_code == 1
    assert "kept on 0 of 2 trials, largest difference 1" in result.stdout
    assert "eval mode, the given input: output differs by up to 1" in result.stdout


def test_a_saved_program_is_held_to_another_on_drawn_inputs() -> None:
    saved("a.fxp")
    saved("b.fxp")
    result = run("verify", "a.fxp", "b.fxp", "--trials", "2", "--seed", "7")
    assert result.exit_code == 0, result.output
    assert "kept on 4 of 4 trials" in result.stdout
    dense = fxprune.capture(load("a.fxp"))
    with torch.no_grad():
        dense.parameter("fc2.bias").add_(1.0)
    save(dense, "c.fxp")
    result = run("verify", "c.fxp", "--against", "a.fxp", "--json")
    assert result.exit_code == 1
    certificate = json.loads(result.stdout)
    assert not certificate["ok"]
    assert certificate["failures"][0]["node"] == "fc2_bias"


def test_close_holds_where_same_does_not() -> None:
    program = load(saved()).double()
    save(program, "a.fxp")
    with torch.no_grad():
        program.parameter("fc2.weight").mul_(1 + 1e-15)
    save(program, "b.fxp")
    assert run("verify", "b.fxp", "a.fxp").exit_code == 1
    assert run("verify", "b.fxp", "a.fxp", "--promise", "close").exit_code == 0


def test_a_folder_that_compile_wrote_is_verified() -> None:
    saved()
    result = run("verify", "out", "net.fxp")
    assert result.exit_code == 0, result.output
    os.remove("out/model.fxp")
    result = run("verify", "out", "net.fxp")
    assert result.exit_code == 0, result.output
    os.remove("out/model.safetensors")
    result = run("verify", "out", "net.fxp")
    assert result.exit_code == 2
    assert "there is no model.fxp or model.safetensors" in result.stderr


def test_against_says_whether_a_certificate_was_checked() -> None:
    saved()
    held = run("verify", "out", "--against", "nets.py:make")
    assert held.exit_code == 0, held.output
    assert held.stdout.splitlines()[-1] == "out/certificate.json: checked from scratch"
    os.remove("out/certificate.json")
    compared = run("verify", "out", "--against", "nets.py:make", "--trials", "1")
    assert compared.stdout.splitlines()[-1].startswith("no certificate.json lies beside it")


def test_weights_are_loaded_into_the_other_model() -> None:
    torch.manual_seed(0)
    namespace: dict[str, object] = {}
    exec(FACTORIES, namespace)
    net = namespace["Net"]()  # pyright: ignore
    save_file(net.state_dict(), "same.safetensors")
    with torch.no_grad():
        net.fc1.bias[0] += 1.0
    torch.save(net.state_dict(), "other.pt")
    assert run("verify", "same.safetensors", "nets.py:make").exit_code == 0
    assert run("verify", "other.pt", "nets.py:make").exit_code == 1
    options = ("--weights", "other.pt")
    assert run("verify", "other.pt", "nets.py:make", *options).exit_code == 0


def test_an_input_is_given_where_the_factories_have_none() -> None:
    result = run("verify", "nets.py:bare", "nets.py:bare", "--input", "3,6")
    assert result.exit_code == 0, result.output
    result = run("verify", "nets.py:bare", "nets.py:bare")
    assert result.exit_code == 2


FAULTS = {
    "no other": (["nets.py:make"], "give either BEFORE or --against"),
    "two others": (["nets.py:make", "nets.py:make", "--against", "nets.py:make"], "give either"),
    "no such factory": (["nets.py:nothing", "nets.py:make"], "there is no 'nothing'"),
    "no such file": (["missing.fxp", "nets.py:make"], "missing.fxp: this does not exist"),
    "a damaged file": (["broken.fxp", "nets.py:make"], "broken.fxp: this .fxp file is damaged"),
    "an unknown promise": (["nets.py:make", "nets.py:make", "--promise", "x"], "promise='x'"),
    "fewer than no trials": (["nets.py:make", "nets.py:make", "--trials", "-1"], "trials=-1"),
    "an input that does not fit": (["nets.py:make", "nets.py:make", "--input", "3,7"], "float32"),
    "weights that do not fit": (["few.safetensors", "nets.py:make"], "these weights do not fit"),
}


@pytest.mark.parametrize("case", FAULTS)
def test_faults_of_the_input_exit_with_2(case: str, folder: Path) -> None:
    arguments, message = FAULTS[case]
    (folder / "broken.fxp").write_bytes(b"broken" * 9)
    save_file({"fc1.weight": torch.ones(2)}, folder / "few.safetensors")
    before = sorted(os.listdir(folder))
    assert message in refused(run("verify", *arguments))
    assert sorted(os.listdir(folder)) == before


def test_a_saved_program_is_a_model_of_every_command() -> None:
    saved()
    result = run("inspect", "net.fxp")
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("Net: 6 parameters")
    command = ("compile", "net.fxp", "--recipe", "recipe.toml", "--out", "again")
    result = run(*command)
    assert result.exit_code == 0, result.output
    assert Path("again/model.fxp").exists()
    assert load("again/model.fxp").captured.records[-1].parameters
