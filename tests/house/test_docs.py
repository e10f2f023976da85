"""README and CONTRIBUTING: their Python runs, their recipe loads, their first blocks are set up."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import fxprune
from tests.functional.test_deviations import DEVIATIONS

ROOT = Path(__file__).parents[2]


def blocks(page: str, language: str) -> list[str]:
    """Return the fenced blocks of a page, in order."""
    text = (ROOT / page).read_text()
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_python_blocks_run_in_order(page: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    found = blocks(page, "python")
    assert found
    # Dataclasses look their module up by name.
    namespace = {"__name__": "__main__"}
    for block in found:
        exec(compile(block, page, "exec"), namespace)


@pytest.mark.smoke
def test_the_recipe_of_readme_is_the_dict_of_readme(tmp_path: Path):
    path = tmp_path / "recipe.toml"
    path.write_text(blocks("README.md", "toml")[0])
    recipe = fxprune.Recipe.load(path)
    namespace: dict[str, dict[str, object]] = {}
    source = blocks("README.md", "python")[0]
    literal = re.search(r"^recipe = \{.*?^\}", source, flags=re.DOTALL | re.MULTILINE)
    assert literal
    exec(literal.group(), namespace)
    assert recipe.rules == fxprune.Recipe.from_dict(namespace["recipe"]).rules


def test_the_first_two_shell_blocks_are_the_demo_and_the_tests():
    demo, tests = blocks("README.md", "sh")[:2]
    assert demo.rstrip().endswith("fxprune demo")
    assert tests.rstrip().endswith("-m pytest")
    for block in (demo, tests):
        assert "-m venv" in block
        assert "-c constraints.txt" in block


def test_readme_lists_the_deviations_that_the_tests_show():
    table = (ROOT / "README.md").read_text().partition("## Deviations")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `([a-z-]+)` \| (.*) \| (.*) \|$", table, flags=re.MULTILINE)
    assert tuple(rows) == DEVIATIONS


def test_every_make_target_of_the_pages_exists():
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    for page in ("README.md", "CONTRIBUTING.md"):
        asked = re.findall(r"(?:^|`)make ([a-z-]+)", (ROOT / page).read_text(), flags=re.MULTILINE)
        assert set(asked) <= set(targets)
