"""Plans as JSON: read within bounds and checked; nothing in a file is run."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError

from fxprune.errors import FormatError, RecipeError
from fxprune.facts import RuleRecord
from fxprune.reading import parse_json
from fxprune.recipe import Recipe
from fxprune.recipe_errors import plain
from fxprune.report_rows import PlannedParameter
from fxprune.rule_records import STRICT, Count
from fxprune.writing import PathLike

__all__ = ["PlanFile", "dump", "parse", "read"]

_MOST_BYTES = 2**26
_AGAIN = "make the plan again"


@dataclass(frozen=True)
class PlanFile:
    """What a file holds: a plan's fields, with the recipe as data, and its totals."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    format: Literal["fxprune plan"]
    version: Literal[1]
    model: str
    recipe: dict[str, Any]
    rules: tuple[RuleRecord, ...]
    parameters: tuple[PlannedParameter, ...]
    totals: dict[str, bool | Count]
    notes: tuple[str, ...]


_ADAPTER = TypeAdapter(PlanFile)
_OF_REPORTS: Any = {
    "rules": {
        "__all__": {
            "parameters": {"__all__": {"makers", "tied", "quota"}},
            **dict.fromkeys(("refused", "seconds", "edits", "layers"), True),
        }
    }
}


def dump(file: PlanFile) -> str:
    """Return a plan as JSON with its keys in a fixed order; infinity and NaN are strings."""
    data = _ADAPTER.dump_python(file, by_alias=True, exclude=_OF_REPORTS)
    return json.dumps(data, indent=2, allow_nan=False)


def read(path: PathLike) -> str:
    """Return the text of a plan's file.

    Raises:
        FormatError: it cannot be read, is too large, or is no UTF-8.
    """
    file, where = Path(path), plain(str(path))
    try:
        if not file.is_file():
            what = "is not a file" if file.exists() else "does not exist"
            raise FormatError(f"{where}: this {what}; give the path of a plan")
        with file.open("rb") as stream:
            raw = stream.read(_MOST_BYTES + 1)
        return raw.decode("utf-8")
    except OSError as error:
        raise FormatError(f"{where}: cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise FormatError(f"{where}: byte {error.start + 1} is not UTF-8; {_AGAIN}") from None


def parse(text: str, where: str, *, allow_imports: bool) -> tuple[PlanFile, Recipe]:
    """Read a plan from JSON.

    Args:
        text: the JSON.
        where: what error messages call it.
        allow_imports: whether its recipe may name a class to import; nothing is imported here.

    Raises:
        FormatError: it is no plan, or one that is damaged.
        RecipeError: its recipe names a class to import, and that is not allowed.
    """
    where = plain(where)
    if len(text) > _MOST_BYTES:
        raise FormatError(f"{where}: larger than {_MOST_BYTES:,} bytes, which no plan is")
    try:
        parse_json(text)  # pydantic's own parser takes NaN, and the last of a key's values
        file = _ADAPTER.validate_json(text)
    except ValidationError as error:
        raise FormatError(f"{where}: {_fault(error)}; {_AGAIN}") from None
    except FormatError as error:
        raise FormatError(f"{where}: {plain(str(error))}; {_AGAIN}") from None
    try:
        recipe = Recipe.from_dict(file.recipe, allow_imports=True, gives_masks=True, where=where)
    except RecipeError as error:
        raise FormatError(f"{error}; {_AGAIN}") from None
    faults = [*_twins(file), *_strangers(file, recipe)]
    if faults:
        raise FormatError(f"{where}: {plain(faults[0])}; {_AGAIN}")
    if not allow_imports:
        Recipe.from_dict(file.recipe, gives_masks=True, where=where)
    return file, recipe


def _fault(error: ValidationError) -> str:
    """Say in one line what is wrong first, and where."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    place = plain(".".join(map(str, first["loc"])))[:200]
    text = plain(first["msg"])[:200]
    return f"this is no plan of fxprune: {place}: {text}" if place else f"this is no plan: {text}"


def _twins(file: PlanFile) -> Iterable[str]:
    lists: Mapping[str, tuple[Any, ...]] = {
        "parameters": file.parameters,
        "rules": file.rules,
        **{f"rules: {rule.name}": rule.parameters for rule in file.rules},
    }
    for place, rows in lists.items():
        names = [row.name for row in rows]
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            yield f"{place}: {twice!r} stands there twice"


def _strangers(file: PlanFile, recipe: Recipe) -> Iterable[str]:
    """Yield what the rows lack, or name and nothing else in the file has."""
    for cut in (cut for rule in file.rules for cut in rule.parameters):
        if None in (cut.units, cut.alive, cut.pruned, cut.zeros):
            yield f"rules: {cut.name!r} has no counts"
    known = {row.name for row in file.parameters}
    names = {cut.name for rule in file.rules for cut in rule.parameters} - known
    yield from (f"a rule prunes {name!r}, which is not among the parameters" for name in names)
    groups: dict[str, list[str]] = {}
    for rule in recipe.rules:
        groups.setdefault(rule.group or f"\n{rule.name}", []).append(str(rule.name))
    missing = {rule.name for rule in file.rules} ^ {"+".join(group) for group in groups.values()}
    yield from (f"the rule {name!r} is not in both recipe and rules" for name in missing)
