"""A rule's `match` and `prune`, as data and back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import fxprune
from fxprune.errors import RecipeError
from fxprune.recipe.recipe import Recipe
from fxprune.recipe.rule import Rule
from fxprune.recipe.selecting import Bound, choice_of
from tests.tools.helpers import source_of

TOML = '''
[[rule]]
name = "filters"
match = """
relu(            # what follows
  batch_norm(conv2d(_, W))
)"""
prune = "W"
method = "ln_structured"
n = 2
dim = 0
amount = 0.5
'''


def test_a_pattern_in_a_file_may_have_several_lines(tmp_path: Path):
    path = tmp_path / "recipe.toml"
    path.write_text(TOML, encoding="utf-8")
    masked = fxprune.prune(source_of("conv"), path)
    assert list(masked.masks) == ["0.weight"]


def test_a_fault_in_a_file_says_file_rule_key_and_place(tmp_path: Path):
    path = tmp_path / "recipe.toml"
    path.write_text(TOML.replace("W))", "W)).x"), encoding="utf-8")
    with pytest.raises(RecipeError) as caught:
        Recipe.load(path)
    assert str(caught.value).split("\n") == [
        f'{path}: [[rule]] 1 "filters": match: expected a name, a constant or operator(...) '
        "(line 2)",
        "    batch_norm(conv2d(_, W)).x",
        "    ^",
    ]


RULES: list[dict[str, Any]] = [
    {"match": "conv2d(_, W)"},
    {"match": "conv2d(_, W)", "prune": ["W"]},
    {"match": "linear(_, W, B)", "prune": ["B", "W"]},
]


@pytest.mark.parametrize("keys", RULES)
def test_a_rule_with_a_pattern_is_data_again(keys: dict[str, Any]):
    data = {"rule": [{**keys, "method": "identity"}]}
    recipe = Recipe.from_dict(data)
    assert recipe.to_dict() == data
    assert recipe.rules[0].select is None
    assert Recipe.from_dict(recipe.to_dict()) == recipe


def test_one_name_may_stand_for_a_list_or_for_itself():
    one, several = (Rule(match="f(W)", prune=p, method="identity") for p in ("W", ["W"]))
    assert one == several
    left_out = Rule(match="f(W, W)", method="identity")
    assert choice_of(left_out) == Bound("f(W, W)", ("W",))
    assert choice_of(Rule(match="f(W, B)", prune=["B", "B"], method="identity")).names == ("B",)  # pyright: ignore


def test_python_is_told_the_same():
    with pytest.raises(RecipeError) as caught:
        Rule(match="relu(", method="identity")
    assert str(caught.value) == "Rule: match: this is not an expression\n  relu(\n      ^"
