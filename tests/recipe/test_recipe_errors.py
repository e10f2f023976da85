"""What is refused in a recipe, and in which words; all of it at once, from data and Python."""

from __future__ import annotations

from typing import Any

import pytest

from fxprune.errors import RecipeError
from fxprune.recipe.recipe import Export, Finalize, Recipe
from fxprune.recipe.rule import Rule
from fxprune.recipe.select import Select
from tests.recipe.test_recipe import GOOD, NAMES, SHARE_OR_COUNT, fault, rule

RECIPE_FAULTS: list[tuple[Any, str]] = [
    ([], "[] is not a recipe; a recipe has [[rule]] tables"),
    ({}, "rule is missing; write each rule under its own [[rule]]"),
    ({"rule": []}, "rule = [] is empty; write each rule under its own [[rule]]"),
    ({"rule": GOOD}, "rule = {...} is not a list; write each rule under its own [[rule]]"),
    ({"rule": [3]}, "[[rule]] 1: 3 is not a table; write each rule under its own [[rule]]"),
    ({"rules": [GOOD]}, "unknown table or key 'rules'; did you mean 'rule'?"),
    ({"rule": [GOOD], "finalise": {}}, "unknown table or key 'finalise'; did you mean 'finalize'?"),
    (
        {"rule": [GOOD], "grow": {}},
        "unknown table or key 'grow'; known: version, rule, pass, finalize, shrink, export",
    ),
    ({"rule": [GOOD], 3: 4}, "key 3 is not a text; write it in quotes"),
    ({"rule": [GOOD], "version": 2}, "version = 2 is not known; write version = 1"),
    ({"rule": [GOOD], "version": True}, "version = true is not a whole number; write version = 1"),
    ({"rule": [GOOD], "finalize": True}, "finalize = true is not a table; write [finalize]"),
    (
        {"rule": [GOOD], "finalize": {"zeros": "clear"}},
        "[finalize]: zeros = 'clear' is not known; did you mean 'clean'? Known: 'keep', 'clean'",
    ),
    ({"rule": [GOOD], "export": {"path": "x"}}, "[export]: unknown key 'path'; known: formats"),
    (
        {"rule": [GOOD], "export": {"formats": ["onx"]}},
        "[export]: formats = 'onx' is not known; did you mean 'onnx'? "
        "Known: 'pt2', 'safetensors', 'onnx', 'fxp'",
    ),
    (
        {"rule": [GOOD], "export": {"formats": ["pt2", "onnx", "pt2"]}},
        "[export]: formats has 'pt2' twice; name each format once",
    ),
    (
        {"rule": [GOOD], "export": {"formats": []}},
        '[export]: formats = [] is empty; give a list, as formats = ["pt2", "safetensors"]',
    ),
    (
        {"rule": [GOOD], "export": {"formats": "pt2"}},
        "[export]: formats = 'pt2' is not a list; give a list, as "
        'formats = ["pt2", "safetensors"]',
    ),
    (
        {"rule": [GOOD, rule(name="rule-1")]},
        '[[rule]] 2 "rule-1": [[rule]] 1 has this name too; give it another',
    ),
]


@pytest.mark.parametrize(("data", "text"), RECIPE_FAULTS)
def test_faults_of_a_recipe(data: Any, text: str):
    assert fault(data) == f"recipe.toml: {text}"


@pytest.mark.parametrize(
    ("key", "keys"),
    [
        ("method", {"method": "random_unstructured"}),
        ("amount", {"amount": 0.3}),
        ("amount", {"amount": 1}),
        ("ties", {"ties": "torch"}),
    ],
)
def test_a_group_has_one_budget(key: str, keys: dict[str, Any]):
    first = rule(scope="global", group="all", amount=1.0)
    other = rule(scope="global", group="own", amount=0.9)
    text = (
        f'recipe.toml: [[rule]] 3 "rule-3": {key} differs from that of [[rule]] 1, which is in '
        "group 'all' too; make them equal or name another group"
    )
    assert fault({"rule": [first, other, {**first, **keys}]}) == text


def test_all_faults_are_told_together():
    data = {
        "rule": [rule(name="a", amout=0.1, amount=None, ties=3), rule(), rule(name="a", n=2)],
        "grow": {},
        "export": {"formats": ["x"]},
    }
    assert fault(data).split("\n") == [
        "recipe.toml: [[rule]] 1 \"a\": ties = 3 is not known; known: 'index', 'torch'",
        "recipe.toml: [[rule]] 1 \"a\": unknown key 'amout'; did you mean 'amount'?",
        "recipe.toml: [[rule]] 3 \"a\": n does not go with method = 'l1_unstructured'; "
        "leave it out: it is for the norm score, as in ln_structured",
        "recipe.toml: [export]: formats = 'x' is not known; known: 'pt2', 'safetensors', 'onnx', "
        "'fxp'",
        "recipe.toml: unknown table or key 'grow'; known: version, rule, pass, finalize, shrink, "
        "export",
        'recipe.toml: [[rule]] 3 "a": [[rule]] 1 has this name too; give it another',
    ]


def test_a_flood_of_faults_is_cut():
    lines = fault({"rule": [rule(amount=-1)] * 1000}).split("\n")
    assert len(lines) == 51
    assert lines[-1] == "recipe.toml: and more faults"


@pytest.mark.parametrize(
    ("build", "text"),
    [
        (lambda: Select(opp="a"), "Select: unknown key 'opp'; did you mean 'op'?"),
        (lambda: Select(path=()), f"Select: path = [] is empty; {NAMES}"),
        (lambda: Rule(**rule(amount=2.0)), f"Rule: amount = 2.0 is out of range; {SHARE_OR_COUNT}"),
        (
            lambda: Rule(select="*", method="a:B", args={"w": object()}),
            "Rule: args holds more than data; give texts, finite numbers, lists and tables",
        ),
        (
            lambda: Finalize(zeros="no"),
            "Finalize: zeros = 'no' is not known; known: 'keep', 'clean'",
        ),
        (
            lambda: Export(formats=["x"]),
            "Export: formats = 'x' is not known; known: 'pt2', 'safetensors', 'onnx', 'fxp'",
        ),
        (
            lambda: Recipe(rules=[rule(name="b", dim=0)]),
            "Recipe: [[rule]] 1 \"b\": dim does not go with method = 'l1_unstructured'; "
            "leave it out: it is for structured methods",
        ),
        (
            lambda: Recipe(rules=3),
            "Recipe: rules = 3 is not a list; give a list of rules",
        ),
    ],
)
def test_python_gets_the_same_words(build: Any, text: str):
    with pytest.raises(RecipeError) as error:
        build()
    assert str(error.value) == text
