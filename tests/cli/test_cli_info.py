"""The command line beside models: passes, schema, version, completion, JSON and exit codes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import click
import pytest
import torch
import typer
from jsonschema import Draft202012Validator

from fxprune.cli.app import app
from fxprune.cli.models import draw_inputs
from fxprune.recipe.schema import json_schema
from fxprune.rewrite.registry import names
from tests.tools.commands import refused, run
from tests.tools.foreign import installed

NET = """
import torch
from torch import nn

print("a chatty file")


def net():
    return nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)), (torch.ones(2, 4),)
"""
RECIPE = """
[[rule]]
select = "*.weight"
method = "l1_unstructured"
amount = 0.5
"""


@pytest.fixture(autouse=True)
def folder(workplace: Path) -> Path:
    """A folder with a model, a recipe and a recipe at fault."""
    Path("net.py").write_text(NET)
    Path("recipe.toml").write_text(RECIPE)
    Path("bad.toml").write_text(RECIPE.replace("amount", "amuont"))
    return workplace


# passes and schema


def test_passes_are_a_table():
    result = run("passes")
    assert result.exit_code == 0
    head, *rows = result.stdout.splitlines()
    assert head.split() == ["name", "kind", "needs", "gives", "options", "from"]
    assert [row.split()[0] for row in rows] == list(names())
    (rank,) = (row for row in rows if row.startswith("rank "))
    assert 'amount, scope="local", ties="index"' in rank
    assert rank.split()[-1] == "fxprune"


def test_passes_as_json_have_every_field():
    found = json.loads(run("passes", "--json").stdout)
    assert found.keys() == {"passes", "broken"}
    rows = {row["name"]: row for row in found["passes"]}
    assert list(rows) == list(names())
    assert rows["norm"] == {
        "name": "norm",
        "kind": "score",
        "summary": "Score each channel of the selected parameters by its norm.",
        "needs": ["Selection", "Importance"],
        "gives": ["Scores"],
        "promise": None,
        "options": [
            {"name": "n", "default": 2, "required": False},
            {"name": "dim", "default": -1, "required": False},
        ],
        "distribution": "fxprune",
    }
    assert rows["rank"]["options"][0] == {"name": "amount", "default": None, "required": True}
    assert rows["finalize"]["kind"] == "rewrite"
    assert rows["finalize"]["promise"] == "changes"


def test_passes_may_be_named():
    found = json.loads(run("passes", "rank", "cut", "--json").stdout)
    assert [row["name"] for row in found["passes"]] == ["rank", "cut"]
    result = run("passes", "rnak")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == "Error: there is no pass 'rnak'; did you mean 'rank'?\n"


def test_a_pass_that_cannot_be_imported_is_a_note(monkeypatch: pytest.MonkeyPatch):
    with installed(monkeypatch):
        shown, data = run("passes"), json.loads(run("passes", "--json").stdout)
    note = "the pass 'gone' cannot be imported from tests.tools.foreign:Gone"
    assert shown.exit_code == 0
    assert f"note: {note}" in shown.stdout
    assert "peak" in shown.stdout
    assert data["broken"][0].startswith(note)


def test_the_schema_is_printed_or_written(folder: Path):
    printed = run("schema")
    assert printed.exit_code == 0
    assert json.loads(printed.stdout) == json_schema()
    Draft202012Validator.check_schema(json.loads(printed.stdout))
    written = run("schema", "--out", "schema.json")
    assert (written.exit_code, written.stdout) == (0, "")
    assert (folder / "schema.json").read_text() == printed.stdout


def test_a_schema_that_cannot_be_written_leaves_nothing(folder: Path):
    before = sorted(os.listdir())
    result = run("schema", "--out", "nowhere/schema.json")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("Error: nowhere/schema.json: ")
    assert sorted(os.listdir()) == before


# Every command


COMMANDS = sorted(typer.main.get_command(app).commands)  # pyright: ignore
MODEL = ("net.py:net",)
GOOD: dict[str, tuple[str, ...]] = {
    "compile": (*MODEL, "--recipe", "recipe.toml", "--out", "out"),
    "demo": (),
    "explain": (*MODEL, "--recipe", "recipe.toml"),
    "inspect": (*MODEL, "--recipe", "recipe.toml"),
    "passes": (),
    "plan": (*MODEL, "--recipe", "recipe.toml"),
    "verify": (*MODEL, *MODEL),
}
BAD: dict[str, list[tuple[str, ...]]] = {
    "compile": [
        (*MODEL, "--recipe", "bad.toml", "--out", "out"),
        (*MODEL, "--recipe", "gone.toml", "--out", "out"),
        (*MODEL, "--recipe", "recipe.toml", "--out", "net.py"),
        ("net.py:nott", "--recipe", "recipe.toml", "--out", "out"),
        (*MODEL, "--recipe", "recipe.toml", "--out", "out", "--input", "2,x"),
        (*MODEL, "--recipe", "recipe.toml", "--out", "out", "--input", "2,5"),
        (*MODEL, "--recipe", "recipe.toml", "--out", "out", "--weights", "gone.pt"),
        (*MODEL, "--recipe", "recipe.toml", "--out", "out", "--batch", "x"),
    ],
    "demo": [("--out", "net.py")],
    "explain": [(*MODEL, "--recipe", "bad.toml"), ("net.py:nott", "--recipe", "recipe.toml")],
    "inspect": [(*MODEL, "--recipe", "bad.toml"), ("net.py",), (*MODEL, "--weights", "net.py")],
    "passes": [("nope",)],
    "plan": [(*MODEL, "--recipe", "bad.toml"), ("gone.py:net", "--recipe", "recipe.toml")],
    "schema": [("--out", "gone/schema.json")],
    "verify": [("net.py:nott", *MODEL), (*MODEL, "gone.fxp")],
}


def test_every_command_is_here():
    elsewhere = {"checkpoint"}  # takes no model: tests/checkpoint/test_checkpoint_cli.py
    assert set(COMMANDS) - elsewhere == GOOD.keys() | {"schema"} == set(BAD)


@pytest.mark.parametrize("command", GOOD)
def test_every_command_prints_json_and_nothing_else(command: str):
    result = run(command, *GOOD[command], "--json")
    assert result.exit_code == 0, result.stderr
    assert isinstance(json.loads(result.stdout), dict | list)
    assert "a chatty file" not in result.stdout


@pytest.mark.parametrize(
    ("command", "args"), [(command, args) for command in BAD for args in BAD[command]]
)
@pytest.mark.parametrize("json_too", [(), ("--json",)])
def test_what_is_at_fault_exits_with_2(command: str, args: tuple[str, ...], json_too: tuple[str]):
    before = sorted(os.listdir())
    refused(run(command, *args, *(() if command == "schema" else json_too)))
    assert sorted(os.listdir()) == before


def test_a_demo_whose_check_fails_prints_json_and_exits_with_1(monkeypatch: pytest.MonkeyPatch):
    class Failed:
        def __bool__(self) -> bool:
            return False

        def to_json(self) -> str:
            return '{"ok": false}'

    monkeypatch.setattr("fxprune.cli.demo.run_demo", lambda *args: Failed())
    result = run("demo", "--json")
    assert (result.exit_code, result.stdout) == (1, '{"ok": false}\n')


def test_inspect_tells_the_same_in_json():
    found = json.loads(run("inspect", *GOOD["inspect"], "--json").stdout)
    assert found["kind"] == "Sequential"
    assert found["inputs"] == ["input: float32[batch, 4]"]
    assert list(found["graphs"]) == ["train and eval"]
    assert [p["name"] for p in found["parameters"]] == [
        f"{layer}.{name}" for layer in (0, 2) for name in ("weight", "bias")
    ]
    assert found["parameters"][0]["uses"] == [{"op": "linear", "role": "weight"}]
    assert found["report"]["zeros"] == 9
    without = json.loads(run("inspect", *MODEL, "--json").stdout)
    assert without["report"] is None


# The program itself


def test_the_version_is_that_of_the_distribution():
    result = run("--version")
    assert (result.exit_code, result.stdout) == (0, f"fxprune {metadata.version('fxprune')}\n")


def test_the_module_is_the_command():
    command = [sys.executable, "-m", "fxprune", "--version"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stdout == run("--version").stdout


@pytest.mark.parametrize(
    ("words", "expected"),
    [("fxprune pas", {"passes"}), ("fxprune passes ran", {"random", "rank", "rank_units"})],
)
def test_the_shell_completes_commands_and_names(words: str, expected: set[str]):
    env = {
        "_FXPRUNE_COMPLETE": "complete_bash",
        "COMP_WORDS": words,
        "COMP_CWORD": str(words.count(" ")),
    }
    result = run(env=env, prog_name="fxprune")
    assert set(result.stdout.split()) == expected


def test_completion_can_be_installed():
    result = run("--help")
    assert result.exit_code == 0
    assert "--install-completion" in click.unstyle(result.stdout)


def test_the_widest_range_of_a_float_is_drawn():
    top = torch.finfo(torch.float64).max
    ((drawn,), _) = draw_inputs([f"float64:99:-{top!r}..{top!r}"])
    assert torch.isfinite(drawn).all()
    assert drawn.min() < 0 < drawn.max()
