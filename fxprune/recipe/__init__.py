"""Recipes: rules as data, read strictly, and the parameters that they select.

- `faults`: Messages for faults of a recipe: where each is, and what to do.
- `nni`: NNI's config_list as a recipe: what `Recipe.from_nni` does.
- `recipe`: `Recipe`, from TOML, JSON, a dict or Python; and its tables beside the rules.
- `rule`: `Rule`: what to prune, how, and how much of it.
- `schema`: Recipes as a JSON Schema, for editors and for programs that write recipes.
- `select`: The base of a recipe's tables, and `Select`: by which keys a rule takes parameters.
- `selecting`: Which parameters a rule takes, by `select` or by `match`, and why not the others.
"""

# pyright: reportUnusedImport=false
from __future__ import annotations

from typing import TYPE_CHECKING

from fxprune.support import lazy_names

if TYPE_CHECKING:
    from fxprune.recipe.recipe import Finalize, PassCall, Recipe
    from fxprune.recipe.rule import LIMITS, Rule, is_foreign
    from fxprune.recipe.schema import json_schema
    from fxprune.recipe.select import Select
    from fxprune.recipe.selecting import (
        Choice,
        Reading,
        Verdict,
        choice_of,
        hold_to,
        readers_of,
        select_any,
        tell_nothing,
        verdicts,
    )

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "recipe": "Finalize PassCall Recipe",
        "rule": "LIMITS Rule is_foreign",
        "schema": "json_schema",
        "select": "Select",
        "selecting": (
            "Choice Reading Verdict choice_of hold_to readers_of select_any tell_nothing verdicts"
        ),
    },
)
