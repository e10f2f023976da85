"""`fxprune checkpoint`: what it prints, and how it refuses bad input."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from fxprune.cli.app import app

RECIPE = """
[[rule]]
name = "half"
select = { param = "weight" }
method = "l1_unstructured"
amount = 0.5
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    save_file(
        {"fc.weight": torch.arange(4.0), "fc.bias": torch.ones(2)}, tmp_path / "in.safetensors"
    )
    (tmp_path / "recipe.toml").write_text(RECIPE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*args: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["checkpoint", *args])
    return result.exit_code, result.stdout, result.stderr


ARGS = ("in.safetensors", "--recipe", "recipe.toml", "--out", "out.safetensors")


@pytest.mark.smoke
@pytest.mark.usefixtures("folder")
def test_it_prints_what_each_rule_did():
    code, stdout, stderr = run(*ARGS)
    size = Path("in.safetensors").stat().st_size
    assert (code, stderr) == (0, "")
    assert stdout == (
        "rule  method           tensors  alive  pruned\n"
        "half  l1_unstructured        1      4       2\n\n"
        "1 of 2 tensors were pruned\n\n"
        f"wrote out.safetensors ({size} bytes)\n"
    )
    assert load_file("out.safetensors")["fc.weight"].tolist() == [0, 0, 2, 3]


@pytest.mark.usefixtures("folder")
def test_json_goes_alone_to_stdout():
    code, stdout, _ = run(*ARGS, "--json")
    data = json.loads(stdout)
    assert code == 0
    assert data["files"] == ["out.safetensors"]
    assert data["rules"][0]["parameters"][0]["pruned"] == 2


def test_bad_input_is_one_message_and_exit_code_2(folder: Path):
    before = sorted(path.name for path in folder.iterdir())
    (folder / "in.safetensors").write_bytes(b"PK")
    for args, text in (
        (ARGS, "in.safetensors: this is no whole safetensors checkpoint"),
        (("none.safetensors", *ARGS[1:]), "none.safetensors: this does not exist"),
        ((*ARGS[:2], "none.toml", *ARGS[3:]), "none.toml"),
    ):
        code, stdout, stderr = run(*args)
        assert (code, stdout) == (2, "")
        assert stderr.startswith("Error: ")
        assert text in stderr
        assert "Traceback" not in stderr
    assert sorted(path.name for path in folder.iterdir()) == before


def test_a_rule_that_needs_a_graph_says_so(folder: Path):
    (folder / "recipe.toml").write_text(RECIPE.replace('param = "weight"', 'op = "linear"'))
    code, _, stderr = run(*ARGS)
    assert code == 2
    assert "rule 'half': select.op needs the model's graph, and a checkpoint has none" in stderr
