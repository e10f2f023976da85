"""What loads no torch: help, the schema, completion, and faults that need no model to be seen."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

RECIPE = '[[rule]]\nselect = "*.weight"\nmethod = "l1_unstructured"\namount = 0.5\n'
PASS = '[[pass]]\nname = "fold-branches"\n'
BAD = {
    "key.toml": RECIPE.replace("amount", "amuont"),
    "value.toml": RECIPE.replace("0.5", "1.5") + PASS,
    "method.toml": RECIPE.replace("l1_", "l1"),
    "score.toml": RECIPE.replace("method", "granularity = 'element'\nscore"),
    "pass.toml": RECIPE + PASS.replace("fold", "flod"),
}
PROBE = """
import json, sys
from typer.testing import CliRunner
import fxprune
from fxprune.cli.app import app

def note(name, code):
    print(json.dumps([name, code, sorted({"torch", "torch._dynamo"} & sys.modules.keys())]))

def run(*args, **env):
    result = CliRunner().invoke(app, args, prog_name="fxprune", env=env)
    note(" ".join(args) or env["COMP_WORDS"], result.exit_code)

recipes = sys.argv[1:]
run("--version")
run("--help")
run("schema")
for words in ("fxprune pas", "fxprune passes ran"):
    run(_FXPRUNE_COMPLETE="complete_bash", COMP_WORDS=words, COMP_CWORD=str(words.count(" ")))
for command in app.registered_commands:
    run(command.name, "--help")
for recipe in recipes:
    run("compile", "net.py:Net", "--recipe", recipe, "--out", "out")
for command in (["explain"], ["plan"], ["inspect"], ["checkpoint", "--out", "x"]):
    run(*command, "net.py:Net", "--recipe", recipes[0])
for recipe in recipes:
    try:
        fxprune.Recipe.load(recipe)
    except fxprune.FxpruneError:
        note(recipe, 2)
"""


def test_what_needs_no_model_loads_no_torch(tmp_path: Path):
    for name, text in BAD.items():
        (tmp_path / name).write_text(text)
    command = [sys.executable, "-c", PROBE, *BAD]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    rows: list[tuple[str, int, Any]] = [json.loads(line) for line in result.stdout.splitlines()]
    assert [row for row in rows if row[2]] == []
    refused = {row[0] for row in rows if row[1] == 2}
    assert len(refused) == 4 + 2 * len(BAD)
    assert {code for name, code, _ in rows if name not in refused} == {0}
