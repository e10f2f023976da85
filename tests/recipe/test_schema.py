"""The JSON Schema of recipes takes what the parser takes, and nothing else."""

from __future__ import annotations

import copy
import json
import math
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from fxprune.errors import RecipeError
from fxprune.recipe.recipe import Export, Finalize, PassCall, Recipe, Shrink
from fxprune.recipe.rule import METHODS, SCORES, Rule
from fxprune.recipe.schema import json_schema
from fxprune.recipe.select import Select
from tests.recipe.test_recipe import GOOD, recipes

SCHEMA = json_schema()
VALIDATOR = Draft202012Validator(SCHEMA)


def parses(data: Any) -> bool:
    try:
        Recipe.from_dict(data, allow_imports=True)
    except RecipeError:
        return False
    return True


def validates(data: Any) -> bool:
    return VALIDATOR.is_valid(data)


def test_the_schema_is_a_schema_and_json():
    Draft202012Validator.check_schema(SCHEMA)
    assert json.loads(json.dumps(SCHEMA, allow_nan=False)) == SCHEMA
    assert SCHEMA["$schema"] == "https://json-schema.org/draft/2020-12/schema"


@pytest.mark.parametrize("table", [Recipe, Rule, Select, PassCall, Finalize, Export, Shrink])
def test_every_key_is_described(table: Any):
    schema = SCHEMA if table is Recipe else SCHEMA["$defs"][table.__name__]
    names = {field.alias or name for name, field in table.model_fields.items()}
    assert schema["properties"].keys() == names
    assert schema["additionalProperties"] is False
    for key in schema["properties"].values():
        assert key["description"].endswith((".", "`."))
        assert "title" not in key


PASSES = [{"name": "adopt"}, {"name": "finalize", "args": {"zeros": "clean"}}]
MATCHES = [
    {"match": "relu(conv2d(_, W))", "prune": "W"},
    {"match": "linear(_, W, B)", "prune": ["W", "B"]},
]


@st.composite
def whole_recipes(draw: st.DrawFn) -> dict[str, Any]:
    """Recipes with every key: those of `recipes`, patterns, groups, passes and versions."""
    data = draw(recipes())
    for rule in data["rule"]:
        if draw(st.booleans()):
            del rule["select"]
            rule |= draw(st.sampled_from(MATCHES))
        if rule.get("scope") == "global" and draw(st.booleans()):
            rule["group"] = f"group {draw(st.integers(0, 10**9))}"
    if draw(st.booleans()):
        data["pass"] = draw(st.lists(st.sampled_from(PASSES), min_size=1, max_size=3))
    return data


def toml(value: Any) -> str:
    """A value as TOML writes it on a line."""
    if isinstance(value, dict):
        return (
            "{" + ", ".join(f"{toml(str(key))} = {toml(item)}" for key, item in value.items()) + "}"
        )
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    if isinstance(value, float):
        return repr(value) if "e" in repr(value) or "." in repr(value) else f"{value}"
    if isinstance(value, str):
        return json.dumps(value).replace("\x7f", "\\u007f")
    return json.dumps(value)


def has_null(value: Any) -> bool:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return value is None or any(map(has_null, inner))


def is_writable(value: Any) -> bool:
    """Whether TOML can hold it: it has no null, and whole numbers of 64 bits at most."""
    text = json.dumps(value)
    return not has_null(value) and "\\ud" not in text


@given(data=whole_recipes())
def test_valid_recipes_validate_and_come_back(data: dict[str, Any]):
    assert [error.message for error in VALIDATOR.iter_errors(data)] == []
    recipe = Recipe.from_dict(data, allow_imports=True)
    back = recipe.to_dict()
    assert validates(back)
    assert Recipe.from_dict(json.loads(json.dumps(back)), allow_imports=True) == recipe


@given(data=whole_recipes().filter(is_writable))
def test_recipes_come_back_from_toml(data: dict[str, Any]):
    recipe = Recipe.from_dict(data, allow_imports=True)
    text = "\n".join(f"{toml(key)} = {toml(value)}" for key, value in recipe.to_dict().items())
    assert Recipe.from_dict(tomllib.loads(text), allow_imports=True) == recipe


BAD_RULE_VALUES: dict[str, list[Any]] = {
    "name": ["", 3, "a\tb", "a\n", None],
    "select": [3, [], "", True, [3], {"opp": "a"}, {"op": []}, {"op": 3}, {"param": ""}, None],
    "match": ["", 3, []],
    "prune": ["", 3, [], [3]],
    "method": ["l1", 3, "", "a b:C", None],
    "amount": [1.5, -1, "0.5", True, 2**70, [], None],
    "n": ["two", [], True, 2],
    "dim": ["0", 0.5, 2**70, True, 0],
    "mask": ["a.pt", "", 3, "a.safetensors"],
    "scope": ["globl", 3, None],
    "group": ["", 3, "a\nb", "group"],
    "optional": ["yes", 1, None],
    "ties": ["indx", 3, None],
    "coupled": ["yes", 1, None, True],
    "min_keep": [0, "1", 0.5, True, None, 2],
    "max_share": [1.5, -0.5, "1", None, 0.5],
    "round_to": [0, "8", 0.5, True, None, 8],
    "normalize": ["area", 3, None, "none"],
    "seed": [-1, 2**64, "1", 0.5, 0],
    "args": [3, [], {"a": 1}, None],
    "score": ["", 3, "norm"],
    "granularity": ["row", 3, "element"],
    "colour": ["red"],
}
BAD_SELECT_VALUES: dict[str, list[Any]] = {
    **{key: ["", [], 3, [""], None] for key in ("op", "role", "module", "path", "regex", "param")},
    "min_numel": [-1, "1", 0.5, 2**63],
    "ndim": [-1, "2", [], [-1], 0.5, None],
    "dtype": ["flot32", [], ["float32", "x"], 3],
    "colour": ["red"],
}
BAD_VALUES: dict[str, list[Any]] = {
    "version": [2, "1", True, 0.5, None],
    "rule": [[], {}, [3], "a", None],
    "pass": [[], [3], [{}], [{"name": 3}], [{"name": ""}], [{"name": "adopt", "arg": {}}], None],
    "finalize": [{"zeros": "kep"}, {"zero": "keep"}, 3, []],
    "export": [{"formats": []}, {"formats": ["pt3"]}, {"formats": ["pt2", "pt2"]}, {"a": 1}, "pt2"],
    "rules": [[GOOD]],
}


def bad_recipes() -> list[tuple[str, dict[str, Any]]]:
    good: dict[str, Any] = {"rule": [GOOD]}
    found = [(key, {**good, key: value}) for key, values in BAD_VALUES.items() for value in values]
    for key, values in BAD_RULE_VALUES.items():
        found += [(key, {"rule": [{**GOOD, key: value}]}) for value in values]
    for key, values in BAD_SELECT_VALUES.items():
        found += [(key, {"rule": [{**GOOD, "select": {key: value}}]}) for value in values]
    return found


@pytest.mark.smoke
def test_faults_neither_parse_nor_validate():
    assert [(key, data) for key, data in bad_recipes() if parses(data) or validates(data)] == []


VALUES: dict[str, list[Any]] = {
    "select": ["*", None],
    "match": ["relu(conv2d(_, W))", None],
    "prune": ["W", None],
    "method": [*METHODS, "own.methods:Own", None],
    "score": [*SCORES, None],
    "granularity": ["element", "channel", None],
    "amount": [0.5, 3, None],
    "n": [2, "inf", "-inf", "fro", math.inf, None],
    "dim": [0, -1, None],
    "mask": ["a.safetensors", None],
    "scope": ["local", "global"],
    "group": ["a", None],
    "seed": [0, None],
    "args": [{}, {"a": 1}],
    "coupled": [True, False],
    "min_keep": [1, 2],
    "max_share": [1.0, 0.5],
    "round_to": [1, 8],
    "normalize": ["size", "flops"],
    "ties": ["index", "torch"],
}
COUPLED: dict[str, list[Any]] = {
    "dim": [0, 1, None],
    "scope": ["local", "global"],
    "group": ["a", None],
    **{key: VALUES[key] for key in ("min_keep", "max_share", "round_to", "normalize", "ties")},
}


@given(
    table=st.fixed_dictionaries(
        {"method": st.sampled_from(["ln_structured", "random_structured", "l1_unstructured"])},
        optional={key: st.sampled_from(values) for key, values in COUPLED.items()},
    )
)
def test_parser_and_schema_agree_on_coupled_rules(table: dict[str, Any]):
    n = {"n": 2} if table["method"] == "ln_structured" else {}
    data = {"rule": [{"select": "*", "amount": 0.5, "coupled": True, **n, **table}]}
    assert parses(copy.deepcopy(data)) == validates(data)


@given(
    table=st.fixed_dictionaries(
        {}, optional={key: st.sampled_from(values) for key, values in VALUES.items()}
    )
)
def test_parser_and_schema_agree_on_which_keys_go_together(table: dict[str, Any]):
    data = {"rule": [table]}
    assert parses(copy.deepcopy(data)) == validates(data)


def test_parser_and_schema_agree_on_each_key_of_a_method():
    drawn = [
        {"rule": [{"select": "*", "method": method, **keys}]}
        for method, ranks in METHODS.items()
        for key in ("amount", "args", "dim", "mask", "n", "scope", "seed")
        for keys in keys_with_and_without(method, ranks, key)
    ]
    assert [data for data in drawn if parses(copy.deepcopy(data)) != validates(data)] == []


def keys_with_and_without(method: str, ranks: Any, key: str) -> Iterator[dict[str, Any]]:
    """Give a method what it needs, with values of a key and without it."""
    needed = {"amount": 0.5} if ranks[0] else {}
    needed |= {"n": 2} if ranks[0] == "norm" else {}
    needed |= {"mask": "a.safetensors"} if method == "custom_from_mask" else {}
    for extra in (
        {},
        {key: VALUES[key][-2]},
        {key: "global" if key == "scope" else VALUES[key][0]},
    ):
        yield needed | extra
        yield {k: v for k, v in (needed | extra).items() if k != key}


def test_a_score_of_another_distribution_validates_without_it():
    rule = {"select": "*", "score": "taylor", "granularity": "element", "amount": 0.5}
    assert validates({"rule": [{**rule, "args": {"a": 1}}]})
    assert not validates({"rule": [{**rule, "seed": 1}]})
    assert not parses({"rule": [rule]})


def test_the_examples_and_the_readme_validate():
    root = Path(__file__).parents[2]
    files = sorted(root.glob("examples/**/*.toml"))
    recipes = [path for path in files if path.name != "pyproject.toml"]
    assert len(recipes) >= 2
    for path in recipes:
        assert validates(tomllib.loads(path.read_text(encoding="utf-8"))), path
