"""A distribution of its own adds a score and a pass, as installed: a recipe uses them by name."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fxprune.passes.table import PASSES

pytestmark = pytest.mark.thorough  # each command is a process of its own

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "third_party"
NET = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1 = nn.Linear(8, 16)
        self.fc2 = nn.Linear(16, 4)
        with torch.no_grad():
            self.fc2.weight.mul_(1e-3)

    def forward(self, x):
        return self.fc2(torch.relu(torch.relu(self.fc1(x))))
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where pip put the distribution, built from a copy so that the checkout stays clean."""
    base = tmp_path_factory.mktemp("third-party")
    ignored = shutil.ignore_patterns("__pycache__", "build", "*.egg-info")
    shutil.copytree(EXAMPLE, base / "source", ignore=ignored)
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--no-compile"]
    target = base / "installed"
    command = [sys.executable, "-m", "pip", "install", *options, "--target", target]
    subprocess.run([*command, base / "source"], check=True)
    return target


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a model and the example's recipe."""
    (tmp_path / "net.py").write_text(NET)
    shutil.copy(EXAMPLE / "recipe.toml", tmp_path)
    return tmp_path


def fxprune(folder: Path, installed: Path | None, *args: str) -> subprocess.CompletedProcess[str]:
    """Run the command line with or without the distribution."""
    path = {"PYTHONPATH": str(installed)} if installed else {}
    return subprocess.run(
        [sys.executable, "-m", "fxprune", *args],
        cwd=folder,
        env={**os.environ, "NO_COLOR": "1", "COLUMNS": "200", **path},
        capture_output=True,
        text=True,
        check=False,
    )


def compiled(folder: Path, installed: Path | None) -> subprocess.CompletedProcess[str]:
    model = ("net.py:Net", "--input", "2,8")
    return fxprune(
        folder, installed, "compile", *model, "--recipe", "recipe.toml", "--out", "out", "--json"
    )


def test_a_recipe_uses_both_by_name(installed: Path, folder: Path):
    result = compiled(folder, installed)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["certificate"]["ok"]
    assert [rule["method"] for rule in found["report"]["rules"]] == ["relative/element"]
    (done,) = found["report"]["passes"]
    assert done.pop("seconds") > 0
    assert done == {
        "name": "drop-repeats",
        "args": {"ops": ["relu"]},
        "promise": "same",
        "edits": 2,
        "refused": ["what it reads is no relu (node relu)"],
    }


def test_the_score_ranks_in_proportion(installed: Path, folder: Path):
    assert compiled(folder, installed).returncode == 0
    weights = load_file(folder / "out" / "model.safetensors")
    zeros = {name: int((weights[f"{name}.weight"] == 0).sum()) for name in ("fc1", "fc2")}
    assert sum(zeros.values()) == (8 * 16 + 16 * 4) // 2
    # By plain magnitude all weights of fc2, which are a thousand times smaller, would go first.
    assert 16 < zeros["fc2"] < 48
    kept = weights["fc2.weight"][weights["fc2.weight"] != 0].abs()
    assert torch.all(kept > 0)


def test_the_passes_are_listed_with_their_distribution(installed: Path, folder: Path):
    result = fxprune(folder, installed, "passes", "--json")
    assert result.returncode == 0, result.stderr
    rows = {row["name"]: row for row in json.loads(result.stdout)["passes"]}
    score, rewrite = rows["relative"], rows["drop-repeats"]
    assert (score["kind"], score["distribution"]) == ("score", "fxprune-example")
    assert score["options"] == [{"name": "to", "default": "mean", "required": False}]
    assert (rewrite["kind"], rewrite["promise"]) == ("rewrite", "same")
    assert rows["magnitude"]["distribution"] == "fxprune"


def test_without_the_distribution_the_recipe_says_what_to_install(folder: Path):
    result = compiled(folder, None)
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr == (
        "Error: recipe.toml: [[rule]] 1 \"weights\": score = 'relative' is not known; known: "
        "'magnitude', 'norm', 'random'; install the distribution that brings it\n"
        "recipe.toml: [[pass]] 1: there is no pass 'drop-repeats'; install the distribution that "
        f"brings it; known: {', '.join(map(repr, sorted(PASSES)))}\n"
    )
    assert not (folder / "out").exists()


FAULTS = [
    ("drop-repeats", "drop-repeat", "there is no pass 'drop-repeat'; did you mean 'drop-repeats'?"),
    ('to = "mean"', 'to = "median"', "relative: to = 'median' is unknown; give 'mean' or 'max'"),
    ('to = "mean"', "too = 1", "which the pass 'relative' does not take; did you mean 'to'?"),
    ('"relative"', '"relativ"', "score = 'relativ' is not known; did you mean 'relative'?"),
    ('"relative"', '"drop-repeats"', "is a pass, but no score (it gives nothing); give one of"),
    ('"element"', '"channel"', "score = 'relative' ranks elements; give granularity = 'element'"),
    ("[finalize]", '[[pass]]\nname = "relative"', "the pass 'relative' needs Selection, which no"),
]
PROBE = """
import json, sys, torch, fxprune
program = fxprune.capture(torch.nn.Linear(2, 2), (torch.ones(1, 2),))
for path in sys.argv[1:]:
    try:
        fxprune.prune(program, path)
    except fxprune.FxpruneError as error:
        print(json.dumps(str(error)))
"""


def test_faults_are_told(installed: Path, folder: Path):
    text = (folder / "recipe.toml").read_text()
    paths = [folder / f"{at}.toml" for at in range(len(FAULTS))]
    for path, (before, after, _) in zip(paths, FAULTS, strict=True):
        path.write_text(text.replace(before, after))
    result = subprocess.run(
        [sys.executable, "-c", PROBE, *map(str, paths)],
        env={**os.environ, "PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        check=True,
    )
    told = [json.loads(line) for line in result.stdout.splitlines()]
    assert len(told) == len(FAULTS)
    assert [m for m, (*_, expected) in zip(told, FAULTS, strict=True) if expected not in m] == []
