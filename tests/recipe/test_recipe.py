"""Recipes: what is read, what is refused and in which words, and the way back to data."""

from __future__ import annotations

import copy
import json
import math
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fxprune.errors import RecipeError
from fxprune.recipe.recipe import Export, Finalize, Recipe
from fxprune.recipe.rule import METHODS, Rule
from fxprune.recipe.select import DTYPES, Select

GOOD_TOML = """
version = 1

[[rule]]
name   = "hidden"
select = { op = ["conv2d", "linear"], param = "weight", exclude = ["fc3.*"] }
method = "l1_unstructured"
scope  = "global"
amount = 0.2

[[rule]]
name   = "filters"
select = ["conv1.weight", "conv2.weight"]
method = "ln_structured"
n      = 2
dim    = 0
amount = 3

[finalize]
[export]
formats = ["pt2", "safetensors"]
"""
GOOD: dict[str, Any] = {"select": "*", "method": "l1_unstructured", "amount": 0.2}
SHARE_OR_COUNT = "give a share between 0.0 and 1.0 or a count of 0 or more"
NAMES = "give a name or a list of names"


def rule(**keys: Any) -> dict[str, Any]:
    """A good rule's table with some keys changed, or left out where they are None."""
    return {key: value for key, value in {**GOOD, **keys}.items() if value is not None}


def fault(data: Any, **options: Any) -> str:
    """The message with which the data is refused."""
    with pytest.raises(RecipeError) as error:
        Recipe.from_dict(data, where="recipe.toml", **options)
    return str(error.value)


def write(folder: Path, text: str | bytes, name: str = "recipe.toml") -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.mark.smoke
def test_toml_is_read(tmp_path: Path):
    recipe = Recipe.load(write(tmp_path, GOOD_TOML))
    hidden = Rule(
        name="hidden",
        select=Select(op=("conv2d", "linear"), param="weight", exclude="fc3.*"),
        method="l1_unstructured",
        scope="global",
        amount=0.2,
    )
    filters = Rule(
        name="filters",
        select=["conv1.weight", "conv2.weight"],
        method="ln_structured",
        n=2,
        dim=0,
        amount=3,
    )
    assert recipe == Recipe(rules=[hidden, filters], finalize=Finalize(), export=Export())
    assert recipe.version == 1
    assert type(recipe.rules[1].amount) is int


def test_json_and_toml_say_the_same(tmp_path: Path):
    recipe = Recipe.load(write(tmp_path, GOOD_TOML))
    text = json.dumps(recipe.to_dict())
    assert Recipe.load(write(tmp_path, text, "recipe.JSON")) == recipe


def test_a_byte_order_mark_is_no_fault(tmp_path: Path):
    assert Recipe.load(write(tmp_path, b"\xef\xbb\xbf" + GOOD_TOML.encode())).rules


def test_a_recipe_is_taken_in_any_form(tmp_path: Path):
    path = write(tmp_path, GOOD_TOML)
    recipe = Recipe.load(path)
    assert Recipe.of(recipe) is recipe
    assert Recipe.of(path) == Recipe.of(str(path)) == Recipe.of(recipe.to_dict()) == recipe
    with pytest.raises(RecipeError, match=r"^recipe: 3 is not a recipe; a recipe has \[\[rule\]\]"):
        Recipe.of(3)  # pyright: ignore[reportArgumentType]


def test_rules_without_a_name_are_named_by_position():
    recipe = Recipe.from_dict({"rule": [rule(), rule(name="b"), rule()]})
    assert [each.name for each in recipe.rules] == ["rule-1", "b", "rule-3"]


def test_an_empty_select_is_every_parameter():
    assert Recipe.from_dict({"rule": [rule(select={})]}).rules[0].select == Select()


@pytest.mark.parametrize(("method", "pair"), METHODS.items())
def test_a_method_is_short_for_a_score_and_a_granularity(method: str, pair: tuple[Any, Any]):
    keys: dict[str, Any] = {"amount": 0.5} if pair[0] else {}
    keys |= {"n": 1} if pair[0] == "norm" else {}
    made = Rule(select="*", method=method, **keys)
    assert (made.score_name, made.granularity_name) == pair
    assert made.dim == (-1 if pair[1] == "channel" else None)
    if pair[0]:
        spelt = Rule(select="*", score=pair[0], granularity=pair[1], **keys)
        assert (spelt.score_name, spelt.granularity_name, spelt.dim) == (*pair, made.dim)


def test_every_dtype_is_torchs():
    assert all(isinstance(getattr(torch, name), torch.dtype) for name in DTYPES)


@pytest.mark.parametrize(
    ("given", "stored"), [("inf", math.inf), ("-inf", -math.inf), ("nuc", "nuc"), (1.5, 1.5)]
)
def test_orders_of_the_norm(given: object, stored: object):
    made = Rule(select="*", method="ln_structured", amount=1, n=given)
    assert made.n == stored


def test_a_mask_lies_beside_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    text = '[[rule]]\nselect = "*"\nmethod = "custom_from_mask"\nmask = "masks/a.safetensors"'
    path = write(tmp_path, text)
    monkeypatch.chdir(tmp_path)
    expected = str(tmp_path / "masks" / "a.safetensors")
    assert Recipe.load(path).rules[0].mask == expected
    assert Recipe.load("recipe.toml").rules[0].mask == expected


def test_python_may_leave_the_mask_out_and_give_a_path():
    assert Rule(select="*", method="custom_from_mask").mask is None
    made = Rule(select="*", method="custom_from_mask", mask=Path("a.safetensors"))
    assert made.mask == "a.safetensors"


def test_a_class_needs_leave_in_data_but_not_in_python():
    table = {"select": "*", "method": "os.path:Thing", "args": {"depth": [1, {"a": None}]}}
    with pytest.raises(RecipeError) as error:
        Recipe.from_dict({"rule": [table]})
    assert str(error.value) == (
        "recipe: [[rule]] 1: method = 'os.path:Thing' runs code; if you trust it, "
        "allow it with Recipe.load(..., allow_imports=True) or --allow-imports"
    )
    read = Recipe.from_dict({"rule": [table]}, allow_imports=True).rules[0]
    made = Rule(name="rule-1", **table)
    assert read == made
    assert made.imported
    assert (made.score_name, made.granularity_name, made.dim) == (None, None, None)
    assert Rule(select="*", method="a:B", amount=1, scope="global", seed=0).amount == 1


def test_recipes_are_frozen_and_survive_copies():
    recipe = Recipe(rules=[Rule(**GOOD)])
    assert copy.deepcopy(recipe) == pickle.loads(pickle.dumps(recipe)) == recipe
    with pytest.raises(ValueError, match="frozen"):
        recipe.rules[0].amount = 0.5


def test_amounts_of_a_group_may_share_a_budget():
    keys = {"scope": "global", "group": "all"}
    short = rule(**keys)
    spelt = rule(**keys, method=None, score="magnitude", granularity="element")
    assert [each.group for each in Recipe.from_dict({"rule": [short, spelt]}).rules] == ["all"] * 2


def test_the_schema_is_json_and_takes_what_a_file_may_hold():
    schema = Recipe.model_json_schema()
    assert json.loads(json.dumps(schema, allow_nan=False)) == schema
    assert schema["properties"].keys() == {
        "version",
        "rule",
        "pass",
        "finalize",
        "shrink",
        "export",
    }
    path = schema["$defs"]["Select"]["properties"]["path"]
    assert [kind["type"] for kind in path["anyOf"]] == ["string", "array"]


WORDS = st.text(st.characters(exclude_categories=["C", "Zl", "Zp"]), min_size=1, max_size=8)
SEVERAL = WORDS | st.lists(WORDS, min_size=1, max_size=3)
SIZES = st.integers(0, 9) | st.lists(st.integers(0, 9), min_size=1, max_size=3)
AMOUNTS = st.floats(0.0, 1.0) | st.integers(0, 2**63 - 1)
SEEDS = st.integers(0, 2**64 - 1)
DATA = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)
NORMS = st.integers(-9, 9) | st.floats(allow_nan=False) | st.sampled_from(["fro", "nuc", "inf"])
SELECTS = st.fixed_dictionaries(
    {},
    optional={
        **dict.fromkeys(("op", "role", "module", "path", "param", "exclude"), SEVERAL),
        "regex": st.sampled_from(["conv[12]", ["a", r"fc\d+\.weight$"]]),
        "min_numel": st.integers(0, 2**63 - 1),
        "ndim": SIZES,
        "dtype": st.sampled_from(DTYPES) | st.lists(st.sampled_from(DTYPES), min_size=1),
    },
)
METHOD_KEYS: dict[str, dict[str, st.SearchStrategy[Any]]] = {
    "identity": {},
    "random_unstructured": {"amount": AMOUNTS, "seed": SEEDS},
    "l1_unstructured": {"amount": AMOUNTS, "scope": st.sampled_from(["local", "global"])},
    "random_structured": {"amount": AMOUNTS, "dim": st.integers(-4, 4)},
    "ln_structured": {"amount": AMOUNTS, "n": NORMS},
    "custom_from_mask": {"mask": st.just("masks/é.safetensors")},
    "own.methods:Own": {"args": st.dictionaries(st.text(max_size=5), DATA, max_size=3)},
}


@st.composite
def rules(draw: st.DrawFn, at: int) -> dict[str, Any]:
    method = draw(st.sampled_from(sorted(METHOD_KEYS)))
    table = draw(st.fixed_dictionaries({"select": SELECTS | SEVERAL, **METHOD_KEYS[method]}))
    pair = METHODS.get(method, (None, None))
    spelt = pair[0] is not None and draw(st.booleans())
    table |= dict(zip(("score", "granularity"), pair, strict=True)) if spelt else {"method": method}
    more = {"optional": st.booleans(), "ties": st.sampled_from(["index", "torch"])}
    more["name"] = WORDS.map(lambda name: f"{at}{name}")
    return table | draw(st.fixed_dictionaries({}, optional=more))


@st.composite
def recipes(draw: st.DrawFn) -> dict[str, Any]:
    count = draw(st.integers(1, 4))
    data: dict[str, Any] = {"rule": [draw(rules(at)) for at in range(count)]}
    known = st.sampled_from(["pt2", "safetensors", "onnx", "fxp"])
    formats = st.lists(known, min_size=1, unique=True)
    zeros = st.fixed_dictionaries({}, optional={"zeros": st.sampled_from(["keep", "clean"])})
    more = {
        "version": st.just(1),
        "finalize": zeros,
        "export": st.fixed_dictionaries({}, optional={"formats": formats}),
    }
    return data | draw(st.fixed_dictionaries({}, optional=more))


@given(data=recipes())
def test_a_recipe_comes_back_from_its_data(data: dict[str, Any]):
    recipe = Recipe.from_dict(data, allow_imports=True)
    text = json.dumps(recipe.to_dict(), allow_nan=False)
    back = Recipe.from_dict(json.loads(text), allow_imports=True)
    assert back == recipe
    # A count equals the share of the same value, so equality does not tell them apart.
    assert repr(back) == repr(recipe)
    assert back.to_dict() == recipe.to_dict()


def test_only_keys_that_differ_from_their_default_are_data():
    table = rule(method="ln_structured", n=math.inf, dim=-1, ties="index", optional=False)
    data = Recipe.from_dict({"version": 1, "rule": [table], "finalize": {"zeros": "keep"}})
    expected = {"select": {"path": ["*"]}, "method": "ln_structured", "amount": 0.2, "n": "inf"}
    assert data.to_dict() == {"rule": [expected], "finalize": {}}
