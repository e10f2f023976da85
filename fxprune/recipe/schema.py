"""Recipes as a JSON Schema, for editors and for programs that write recipes."""

from __future__ import annotations

import inspect
import itertools
import re
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel

from fxprune.recipe.recipe import Export, Finalize, PassCall, Recipe
from fxprune.recipe.rule import DEFAULTS, METHODS, SCORES, Rule, how_fault, misfit
from fxprune.recipe.select import DTYPES, Select

Schema = dict[str, Any]

_TABLES: tuple[type[BaseModel], ...] = (Export, Finalize, PassCall, Rule, Select)
# What may not stand in a text on one line: \p{C}, \p{Zl} and \p{Zp} in words that every dialect of
# regular expressions has, for the characters that are assigned and occur.
_ODD = (
    r"[\u0000-\u001f\u007f-\u009f\u00ad\u200b-\u200f\u2028-\u202e\u2060-\u206f\ud800-\uf8ff\ufeff]"
)
_LINE: Schema = {"type": "string", "minLength": 1, "not": {"pattern": _ODD}}
_CLASS = r"^[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*$"
_MASK: Schema = {
    "pattern": r"^.+\.(safetensors|pt|pth|bin)$",
    "not": {"pattern": r"[\u0000-\u001f\u007f]"},
}
_NULL: Schema = {"type": "null"}
# A value that a key may have, to ask whether a method takes the key at all.
_SAMPLES: Mapping[str, Any] = {
    "amount": 1,
    "args": {"a": 1},
    "coupled": True,
    "dim": 0,
    "mask": "m.safetensors",
    "max_share": 0.5,
    "min_keep": 2,
    "n": 2,
    "normalize": "none",
    "round_to": 8,
    "scope": "global",
    "seed": 0,
}


def json_schema() -> Schema:
    """Return the JSON Schema (draft 2020-12) of recipe files, TOML read as JSON.

    It says of each key what it means, which values it takes and which keys go together. What needs
    a look elsewhere is left to `Recipe`: names in the registry, whether a regular expression or a
    pattern can be read, and what the rules of a recipe have in common. JSON Schema takes 1.0 for
    a whole number, a recipe does not.

    Example:
        >>> schema = json_schema()
        >>> schema["properties"]["rule"]["description"]
        'At least one Rule; the tables `[[rule]]` of a file.'
        >>> schema["$defs"]["Finalize"]["properties"]["zeros"]["enum"]
        ['keep', 'clean']
    """
    schema = Recipe.model_json_schema(by_alias=True)
    tables: Schema = schema["$defs"]
    _describe(schema, Recipe)
    for table in _TABLES:
        _describe(tables[table.__name__], table)
    _narrow_recipe(schema["properties"])
    tables["Export"]["properties"]["formats"] |= {"minItems": 1, "uniqueItems": True}
    _narrow_select(tables["Select"]["properties"])
    _narrow_rule(tables["Rule"])
    head = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "fxprune recipe",
    }
    return {**head, **{key: part for key, part in schema.items() if key != "title"}}


def _describe(schema: Schema, table: type[BaseModel]) -> None:
    """Put the docstring's words beside each key, in the place of generated titles."""
    doc = inspect.getdoc(table) or ""
    schema.pop("title", None)
    schema["description"] = doc.partition("\n")[0]
    texts = _arguments(doc)
    for name, field in table.model_fields.items():
        key = schema["properties"][field.alias or name]
        key.pop("title", None)
        if key.get("default", 0) is None:  # JSON's null is taken, but no one need write it
            del key["default"]
        key["description"] = texts[name]


def _arguments(doc: str) -> dict[str, str]:
    """Return the texts of a Google docstring's Args."""
    block = doc.partition("Args:\n")[2].partition("\n\n")[0]
    found = re.findall(r"^ {4}(\w+): (.*(?:\n {8}.*)*)", block, flags=re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in found}


def _narrow_recipe(keys: Schema) -> None:
    keys["version"] |= {"const": 1}
    keys["rule"] |= {"minItems": 1}
    keys["pass"] |= {"minItems": 1}
    del keys["pass"]["default"]


def _narrow_select(keys: Schema) -> None:
    for name, key in keys.items():
        if name == "min_numel":
            continue
        one: Schema = {"type": "string", "minLength": 1}
        if name == "ndim":
            one = {"type": "integer", "minimum": 0, "exclusiveMaximum": 2**63}
        if name == "dtype":
            one = {"enum": list(DTYPES)}
        keys[name] = {"description": key["description"], "anyOf": _one_or_more(one)}


def _one_or_more(one: Schema) -> list[Schema]:
    return [one, {"type": "array", "items": one, "minItems": 1}]


def _narrow_rule(rule: Schema) -> None:
    keys = rule["properties"]
    text: Schema = {"type": "string", "minLength": 1}
    kinds: dict[str, list[Schema]] = {
        "name": [_LINE],
        "select": [{"$ref": "#/$defs/Select"}, *_one_or_more(text), _NULL],
        "prune": [*_one_or_more(text), _NULL],
        "match": [text, _NULL],
        "method": [{"enum": list(METHODS)}, {"type": "string", "pattern": _CLASS}, _NULL],
        "score": [{"enum": list(SCORES)}, text, _NULL],
        "mask": [{"type": "string", **_MASK}, _NULL],
        "group": [_LINE, _NULL],
    }
    for name, kind in kinds.items():
        keys[name] = {"description": keys[name]["description"], "anyOf": kind}
    keys["n"]["anyOf"].append({"enum": ["inf", "-inf"]})
    rule.pop("required", None)
    rule["oneOf"] = [
        _only(["select"], ["match", "prune"]),
        _only(["match", "prune"], ["select"]),
    ]
    is_global = {**_given("scope"), **_values({"scope": {"const": "global"}})}
    rule["allOf"] = [
        {"oneOf": [_only(["method"], ["score", "granularity"]), _given("score", "granularity")]},
        {"if": _given("group"), "then": is_global},
        *_branches(),
    ]


def _given(*names: str) -> Schema:
    """The schema of tables that have these keys, and not as null."""
    return {"required": list(names), **_values({name: {"not": _NULL} for name in names})}


def _values(kinds: Mapping[str, Schema]) -> Schema:
    return {"properties": dict(kinds)}


def _only(names: list[str], without: list[str]) -> Schema:
    """The schema of tables that have some keys, and none of some others."""
    return {"allOf": [_given(*names), _values(dict.fromkeys(without, _NULL))]}


def _branches() -> Iterator[Schema]:
    """Yield, for each way to rank, which keys it needs and which do not go with it."""
    for method, ranks in METHODS.items():
        kind: Schema = {"const": method}
        yield {"if": _is({"method": kind}), "then": _fitting(method, ranks)}
    yield {
        "if": _is({"method": {"type": "string", "pattern": ":"}}),
        "then": _fitting("module:Class", (None, None)),
    }
    foreign: Schema = {"type": "string", "not": {"enum": list(SCORES)}}
    scores = {**{score: {"const": score} for score in SCORES}, "another": foreign}
    for (score, kind), granularity in itertools.product(scores.items(), ("element", "channel")):
        fits = _fitting(None, (score, granularity)) if _pairs(score, granularity) else False
        yield {"if": _is({"score": kind, "granularity": {"const": granularity}}), "then": fits}


def _is(kinds: Mapping[str, Schema]) -> Schema:
    return {"required": list(kinds), **_values(kinds)}


def _pairs(score: str, granularity: str) -> bool:
    return how_fault(None, score, granularity) == ""


def _fitting(method: str | None, ranks: tuple[Any, Any]) -> Schema:
    """The schema of the keys beside a method, as the parser itself judges them."""
    alone = _beside(method, ranks, coupled=False)
    if misfit("coupled", True, method, ranks, from_data=True):
        return alone
    together = _beside(method, ranks, coupled=True)
    return {"if": _is({"coupled": {"const": True}}), "then": together, "else": alone}


def _beside(method: str | None, ranks: tuple[Any, Any], *, coupled: bool) -> Schema:
    def fault(key: str, value: object) -> str:
        return misfit(key, value, method, ranks, from_data=True, coupled=coupled)

    needed = [key for key in _SAMPLES if fault(key, None)]
    barred = [key for key, sample in _SAMPLES.items() if fault(key, sample)]
    nothing: dict[str, Schema] = {
        key: {"const": default} for key, default in DEFAULTS.items() if key != "args"
    }
    nothing["args"] = {"maxProperties": 0}
    kinds = {key: nothing.get(key, _NULL) for key in barred}
    if coupled:
        kinds |= {"dim": {"enum": [0, None]}, "ties": {"const": "index"}}
    return {"allOf": [_given(*needed), _values(kinds)]}
