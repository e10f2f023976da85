"""From rules to stages: which passes a rule becomes, and where a group is ranked."""

from __future__ import annotations

from typing import Any

import pytest

import fxprune
from fxprune.compiler.pipeline import Stage, stage_of, stages_of
from fxprune.passes.random import ScoreRandom
from fxprune.passes.rank import Rank
from fxprune.recipe.recipe import Recipe
from fxprune.recipe.rule import Rule
from fxprune.rewrite.facts import GivenMasks, Importance, Methods
from tests.tools.helpers import program


def rule(**keys: Any) -> Rule:
    return Rule(**{"name": "rule-1", "select": "*", **keys})


def passes(stage: Stage) -> list[str]:
    return [step.name for step in stage.pipeline.passes]


RULES: list[tuple[dict[str, Any], list[str]]] = [
    ({"method": "identity"}, ["given"]),
    ({"method": "custom_from_mask"}, ["given"]),
    ({"method": "l1_unstructured", "amount": 1}, ["magnitude", "rank", "cut"]),
    ({"method": "random_unstructured", "amount": 1}, ["random", "rank", "cut"]),
    ({"method": "ln_structured", "amount": 1, "n": 2, "dim": 0}, ["norm", "rank", "cut"]),
    ({"method": "random_structured", "amount": 1, "dim": 0}, ["random", "rank", "cut"]),
    ({"method": "my.module:Class"}, ["method"]),
]


@pytest.mark.parametrize(("keys", "between"), RULES, ids=[keys["method"] for keys, _ in RULES])
def test_a_rule_becomes_passes(keys: dict[str, Any], between: list[str]):
    stage = stage_of((rule(**keys),))
    assert passes(stage) == ["select", *between, "mask"]
    stage.pipeline.check([Importance, GivenMasks, Methods])


def test_a_rules_options_are_those_of_its_passes():
    made = rule(method="random_structured", amount=0.25, dim=1, seed=5, ties="torch")
    _, score, rank, *_ = stage_of((made,)).pipeline.passes
    assert score == ScoreRandom(amount=0.25, scope="local", dim=1, seed=5)
    assert rank == Rank(amount=0.25, scope="local", ties="torch")


def test_names_take_the_place_of_a_selection():
    stage = stage_of((rule(method="identity"),), names=("b", "a"), rejoin=True)
    steps: list[Any] = list(stage.pipeline.passes)
    assert steps[0].names == ("b", "a")
    assert steps[-1].rejoin


GROUP = {"method": "l1_unstructured", "amount": 0.5, "scope": "global", "group": "g"}
RECIPE: dict[str, Any] = {
    "rule": [
        {"name": "a", "select": "0.bias", "method": "identity"},
        {"name": "b", "select": "0.weight", **GROUP},
        {"name": "c", "select": "2.bias", "method": "identity"},
        {"name": "d", "select": "2.weight", **GROUP, "optional": True},
    ]
}


def test_a_group_is_one_stage_at_the_place_of_its_first_rule():
    stages = stages_of(Recipe.from_dict(RECIPE))
    assert [stage.name for stage in stages] == ["a", "b+d", "c"]
    assert [len(stage.rules) for stage in stages] == [1, 2, 1]
    select: Any = stages[1].pipeline.passes[0]
    assert [part.path for part in select.selects] == [("0.weight",), ("2.weight",)]
    assert not select.optional


def test_a_group_shares_one_budget():
    masked = fxprune.prune(program("mlp"), RECIPE)
    together = fxprune.prune(
        program("mlp"),
        {"rule": [{"select": "*.weight", **GROUP, "group": None}]},
    )
    assert int(sum((mask == 0).sum() for mask in masked.masks.values())) == 10
    for name in ("0.weight", "2.weight"):
        assert masked.masks[name].equal(together.masks[name])
    records = {record.rule: record for record in masked.records}
    assert [p.name for p in records["b+d"].parameters] == ["0.weight", "2.weight"]
