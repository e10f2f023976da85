"""Recipes as a JSON Schema, for editors and for programs that write recipes."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

from fxprune.recipe.recipe import Recipe
from fxprune.recipe.rule import DEFAULTS, METHODS, SCORES, how_fault, misfit

Schema = dict[str, Any]

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
    _hold_together(schema["$defs"]["Rule"])
    head = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "fxprune recipe",
    }
    return head | schema


def _hold_together(rule: Schema) -> None:
    """Add which keys of a rule go together."""
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
