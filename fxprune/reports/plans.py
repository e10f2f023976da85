"""`Plan`: what a recipe would do to a model, as a table and as JSON, and what differs in another.

A file of a plan is read within bounds and checked; nothing in it is run.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError
from rich.console import Group
from rich.table import Table
from rich.text import Text

from fxprune.errors import FormatError, PassError, RecipeError
from fxprune.program import STRICT, Count, RuleRecord
from fxprune.recipe import Recipe
from fxprune.reports.rows import PlannedParameter, Totals
from fxprune.support import PathLike, parse_json, read_text, write_text
from fxprune.words import plain, plain_table, rich_table

_RULES = ("rule", "parameter", "units", "alive", "pruned", "threshold", "zeros")
_PARAMETERS = ("parameter", "zeros", "kept", "share", "bytes", "mask bytes", "final bytes")
_RIGHT = frozenset({*_RULES[2:], *_PARAMETERS[1:]})
_MEND = "make the plan again, or prune by its recipe alone"


@dataclass(frozen=True)
class Plan(Totals):
    """What a recipe would do to a model; `print` it, save it, diff it, and prune by it later.

    In tables, ~ marks numbers that depend on a random draw.

    Args:
        parameters: what would come of each parameter, in parameter order.
        recipe: the recipe; paths in it are absolute.
        model: the class name of the model.
        rules: what each rule would do, in order.
        notes: what the numbers do not say.
    """

    parameters: tuple[PlannedParameter, ...]
    recipe: Recipe
    model: str
    rules: tuple[RuleRecord, ...]
    notes: tuple[str, ...] = ()

    @property
    def final_bytes(self) -> int:
        """The size of all parameters after finalize, when the masks are gone."""
        return sum(row.final_bytes for row in self.parameters)

    @property
    def exact(self) -> bool:
        """Whether all zeros hold for every run; otherwise some are those of one random draw."""
        return all(row.exact for row in self.parameters)

    @property
    def totals(self) -> dict[str, int | bool]:
        """The sums over all parameters, by name."""
        keys = ("zeros", "total", "bytes", "mask_bytes", "final_bytes", "exact")
        return {key: getattr(self, key) for key in keys}

    def diff(self, other: Plan) -> PlanDiff:
        """Return what differs from this plan to another one; true where anything does.

        Args:
            other: what is called "after" in the result.
        """
        return PlanDiff(
            (
                *_recipe_changes(self, other),
                *_rule_changes(self, other),
                *_parameter_changes(self, other),
                *_total_changes(self, other),
            )
        )

    def check_model(self, rows: Mapping[str, PlannedParameter]) -> None:
        """Raise PassError if a model's parameters or their values are not those planned for."""
        planned = {row.name: row for row in self.parameters}
        if diff := PlanDiff(tuple(_origin_changes(planned, rows))):
            raise PassError(f"the plan was made for another model; {_MEND}\n{diff}")

    def check_outcome(self, other: Plan) -> None:
        """Raise PassError, which lists the differences, if a run did what was not planned."""
        if diff := self.diff(other):
            raise PassError(f"the outcome is not what was planned; {_MEND}\n{diff}")

    def save(self, path: PathLike) -> None:
        """Write it as JSON, whole or not at all.

        Args:
            path: the file; an earlier one is replaced.

        Raises:
            FormatError: it cannot be written there.
        """
        write_text(path, self.to_json() + "\n")

    @classmethod
    def load(cls, path: PathLike, *, allow_imports: bool = False) -> Plan:
        """Read a plan that `save` wrote.

        Args:
            path: the file.
            allow_imports: whether its recipe may name a class to import; nothing is imported here.

        Raises:
            FormatError: it cannot be read, is no plan, or is damaged.
            RecipeError: its recipe names a class to import, and that is not allowed.
        """
        text = read_text(Path(path), "plan", _MOST_BYTES)
        return cls.from_json(text, allow_imports=allow_imports, where=os.fspath(path))

    def to_json(self) -> str:
        """Return all of it as JSON with its keys in a fixed order; infinity and NaN are strings."""
        file = PlanFile(
            format="fxprune plan",
            version=1,
            model=self.model,
            recipe=self.recipe.to_dict(),
            rules=self.rules,
            parameters=self.parameters,
            totals=self.totals,
            notes=self.notes,
        )
        data = _ADAPTER.dump_python(file, by_alias=True, exclude=_OF_REPORTS)
        return json.dumps(data, indent=2, allow_nan=False)

    @classmethod
    def from_json(cls, text: str, *, allow_imports: bool = False, where: str = "plan") -> Plan:
        """Read a plan that `to_json` gave.

        Args:
            text: the JSON.
            allow_imports: see `load`.
            where: what error messages call it.

        Raises:
            FormatError: it is no plan, or is damaged.
            RecipeError: its recipe names a class to import, and that is not allowed.
        """
        where = plain(where)
        file = _parse(text, where)
        try:
            recipe = Recipe.from_dict(
                file.recipe, allow_imports=True, gives_masks=True, where=where
            )
        except RecipeError as error:
            raise FormatError(f"{error}; {_AGAIN}") from None
        if faults := [*_duplicates(file), *_mismatches(file, recipe)]:
            raise FormatError(f"{where}: {plain(faults[0])}; {_AGAIN}")
        if not allow_imports:
            Recipe.from_dict(file.recipe, gives_masks=True, where=where)
        plan = cls(file.parameters, recipe, file.model, file.rules, file.notes)
        if plan.totals != file.totals:
            raise FormatError(f"{where}: the totals are not the sums of the rows; make it again")
        return plan

    def table(self) -> Group:
        """Return it as tables for a rich console: the rules, then the parameters, then notes."""
        rules = rich_table(_RULES, list(_rule_cells(self)), _RIGHT)
        parameters = rich_table(_PARAMETERS, list(_parameter_cells(self)), _RIGHT, footer=True)
        return Group(rules, "", parameters, *map(Text, self._remarks()))

    def __str__(self) -> str:
        rules = plain_table(_RULES, list(_rule_cells(self)), _RIGHT)
        parameters = plain_table(_PARAMETERS, list(_parameter_cells(self)), _RIGHT)
        return "\n".join((rules, "", parameters, *self._remarks()))

    def _remarks(self) -> Iterator[str]:
        yield from (f"note: {note}" for note in self.notes)
        drawn = ", ".join(rule.name for rule in self.rules if rule.drawn)
        if drawn:
            yield f"note: drawn without a seed: {drawn}; numbers after ~ are those of one draw"


def recipe_of(
    recipe: Plan | Recipe | Mapping[str, Any] | PathLike, *, allow_imports: bool = False
) -> Recipe:
    """Return the recipe that something stands for: that of a plan, or see `Recipe.of`."""
    if isinstance(recipe, Plan):
        return recipe.recipe
    return Recipe.of(recipe, allow_imports=allow_imports)


def _rule_cells(plan: Plan) -> Iterator[tuple[str, ...]]:
    for rule in plan.rules:
        for cut in rule.parameters:
            mark = "" if cut.exact else "~"
            threshold = "" if cut.threshold is None else f"{mark}{cut.threshold:.3g}"
            counts = (_number(n or 0, exact=cut.exact) for n in (cut.alive, cut.pruned))
            zeros = _number(cut.zeros or 0, exact=cut.zeros_exact)
            yield (rule.name, cut.name, f"{cut.units or 0:,}", *counts, threshold, zeros)
        if not rule.parameters:
            yield (rule.name, "nothing", *[""] * 5)
        elif len(rule.parameters) > 1:
            yield _sums(rule)


def _sums(rule: RuleRecord) -> tuple[str, ...]:
    counts = (_number(n, exact=rule.exact) for n in (rule.alive, rule.pruned))
    exact = all(cut.zeros_exact for cut in rule.parameters)
    zeros = _number(rule.zeros, exact=exact or (rule.exact and rule.zeros == rule.pruned))
    return (rule.name, "all", f"{rule.units:,}", *counts, "", zeros)


def _parameter_cells(plan: Plan) -> Iterator[tuple[str, ...]]:
    for row in plan.parameters:
        sizes = (f"{n:,}" for n in (row.bytes, row.mask_bytes, row.final_bytes))
        yield (row.name, *_zeros(row.zeros, row.numel, exact=row.exact), *sizes)
    sizes = (f"{n:,}" for n in (plan.bytes, plan.mask_bytes, plan.final_bytes))
    yield ("total", *_zeros(plan.zeros, plan.total, exact=plan.exact), *sizes)


def _zeros(zeros: int, total: int, *, exact: bool) -> tuple[str, str, str]:
    share = f"{zeros / total if total else 0.0:.2%}"
    kept = _number(total - zeros, exact=exact)
    return _number(zeros, exact=exact), kept, share if exact else f"~{share}"


def _number(value: int, *, exact: bool) -> str:
    return f"{value:,}" if exact else f"~{value:,}"


_HEADER = ("rule", "parameter", "what", "before", "after")
_ADDED, _REMOVED = "added", "removed"
_ORIGIN = ("aliases", "shape", "dtype", "weights")  # what the model gives
_OUTCOME = ("rules", "zeros", "bytes", "mask_bytes", "final_bytes", "mask")
_LONG = 40


@dataclass(frozen=True)
class Change:
    """One difference, of a rule, of a parameter, or of neither in particular."""

    what: str  # "added", "removed", a key of the rule in the recipe, or a figure
    before: Any = None
    after: Any = None
    rule: str | None = None
    parameter: str | None = None

    @property
    def data(self) -> dict[str, Any]:
        """All of it, its place first, as JSON can hold it."""
        return {"rule": self.rule, "parameter": self.parameter, **asdict(self)}


@dataclass(frozen=True)
class PlanDiff:
    """What differs between two plans; true where anything does.

    Figures that depend on a random draw are not compared.
    """

    changes: tuple[Change, ...] = ()  # of recipe, rules, parameters and totals, in that order

    def __bool__(self) -> bool:
        return bool(self.changes)

    @property
    def rules_added(self) -> tuple[str, ...]:
        """Names of the rules that only the second plan has."""
        return self._rules(_ADDED)

    @property
    def rules_removed(self) -> tuple[str, ...]:
        """Names of the rules that only the first plan has."""
        return self._rules(_REMOVED)

    @property
    def parameters_added(self) -> tuple[str, ...]:
        """Names of the parameters that only the second plan's model has."""
        return self._parameters(_ADDED)

    @property
    def parameters_removed(self) -> tuple[str, ...]:
        """Names of the parameters that only the first plan's model has."""
        return self._parameters(_REMOVED)

    def to_json(self) -> str:
        """Return all of it as JSON with its keys in a fixed order."""
        data = {"differs": bool(self), "changes": [change.data for change in self.changes]}
        return json.dumps(data, indent=2, allow_nan=False)

    def table(self) -> Table:
        """Return it as a table for a rich console."""
        return rich_table(_HEADER, self._cells())

    def __str__(self) -> str:
        return plain_table(_HEADER, self._cells()) if self else "the plans are equal"

    def _rules(self, what: str) -> tuple[str, ...]:
        changes = (c for c in self.changes if c.what == what and c.parameter is None)
        return tuple(c.rule for c in changes if c.rule is not None)

    def _parameters(self, what: str) -> tuple[str, ...]:
        changes = (c for c in self.changes if c.what == what and c.rule is None)
        return tuple(c.parameter for c in changes if c.parameter is not None)

    def _cells(self) -> list[tuple[str, ...]]:
        return [
            (c.rule or "", c.parameter or "", c.what, _cell(c.before), _cell(c.after))
            for c in self.changes
        ]


def _origin_changes(
    before: Mapping[str, PlannedParameter], after: Mapping[str, PlannedParameter]
) -> Iterator[Change]:
    """Yield in what two models differ, parameters and weights."""
    yield from _membership(before, after, key="parameter")
    for name in (name for name in before if name in after):
        yield from _fields(before[name], after[name], _ORIGIN, parameter=name)


def _recipe_changes(before: Plan, after: Plan) -> Iterator[Change]:
    old, new = before.recipe.to_dict(), after.recipe.to_dict()
    for key in dict.fromkeys((*old, *new)):
        if key != "rule" and old.get(key) != new.get(key):
            yield Change(key, old.get(key), new.get(key))
    rules = [_rule_data(plan, data) for plan, data in ((before, old), (after, new))]
    yield from _membership(*rules, key="rule")
    before_order, after_order = (
        [n for n in side if n in rules[0] and n in rules[1]] for side in rules
    )
    if before_order != after_order:
        yield Change("order of rules", before_order, after_order)
    for name in before_order:
        old, new = rules[0][name], rules[1][name]
        for key in dict.fromkeys((*old, *new)):
            if not _same(old.get(key), new.get(key)):
                yield Change(key, old.get(key), new.get(key), rule=name)


def _rule_data(plan: Plan, data: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    names = (str(rule.name) for rule in plan.recipe.rules)
    return {
        name: {key: value for key, value in rule.items() if key != "name"}
        for name, rule in zip(names, data["rule"], strict=True)
    }


def _rule_changes(before: Plan, after: Plan) -> Iterator[Change]:
    old, new = ({rule.name: rule for rule in plan.rules} for plan in (before, after))
    for name in (name for name in old if name in new):
        yield from _cut_changes(old[name], new[name])


def _cut_changes(before: RuleRecord, after: RuleRecord) -> Iterator[Change]:
    old, new = ({cut.name: cut for cut in rule.parameters} for rule in (before, after))
    yield from _membership(old, new, key="parameter", rule=before.name)
    exact = before.exact and after.exact
    yield from _fields(
        before, after, ("drawn", "pruned") if exact else ("drawn",), rule=before.name
    )
    for name in (name for name in old if name in new):
        pair = old[name], new[name]
        counts = ("alive", "pruned") if all(cut.exact for cut in pair) else ()
        zeros = ("zeros",) if all(cut.zeros_exact for cut in pair) else ()
        keys = ("units", *counts, *zeros)
        yield from _fields(*pair, keys, rule=before.name, parameter=name)


def _parameter_changes(before: Plan, after: Plan) -> Iterator[Change]:
    old, new = ({row.name: row for row in plan.parameters} for plan in (before, after))
    yield from _origin_changes(old, new)
    for name in (name for name in old if name in new):
        exact = old[name].exact and new[name].exact
        keys = [key for key in _OUTCOME if exact or key not in ("zeros", "mask")]
        yield from _fields(old[name], new[name], keys, parameter=name)


def _total_changes(before: Plan, after: Plan) -> Iterator[Change]:
    old, new = before.totals, after.totals
    compared = [key for key in old if key not in ("zeros", "exact")]
    if old["exact"] and new["exact"]:
        compared.insert(0, "zeros")
    for key in compared:
        if old[key] != new[key]:
            yield Change(f"total {key}", old[key], new[key])


def _membership(
    before: Mapping[str, Any], after: Mapping[str, Any], *, key: str, **place: str
) -> Iterator[Change]:
    for name in before:
        if name not in after:
            yield Change(_REMOVED, **{key: name, **place})
    for name in after:
        if name not in before:
            yield Change(_ADDED, **{key: name, **place})


def _fields(before: Any, after: Any, keys: Any, **place: str) -> Iterator[Change]:
    for key in keys:
        old, new = getattr(before, key), getattr(after, key)
        if old != new:
            yield Change(key, old, new, **place)


def _same(a: Any, b: Any) -> bool:
    """Tell whether two values of a recipe are equal: a count of 1 is not a share of 1.0."""
    return type(a) is type(b) and a == b


def _cell(value: Any) -> str:
    if value is None:
        return ""
    text = f"{value:,}" if type(value) is int else value
    text = plain(text if isinstance(text, str) else json.dumps(value))
    return text if len(text) <= _LONG else f"{text[:12]}..."


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


def _parse(text: str, where: str) -> PlanFile:
    if len(text) > _MOST_BYTES:
        raise FormatError(f"{where}: larger than {_MOST_BYTES:,} bytes, which no plan is")
    try:
        parse_json(text)  # pydantic's own parser takes NaN, and the last of a key's values
        return _ADAPTER.validate_json(text)
    except ValidationError as error:
        raise FormatError(f"{where}: {_fault(error)}; {_AGAIN}") from None
    except FormatError as error:
        raise FormatError(f"{where}: this is no plan: {plain(str(error))}; {_AGAIN}") from None


def _fault(error: ValidationError) -> str:
    """Say in one line what is wrong first, and where."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    place = plain(".".join(map(str, first["loc"])))[:200]
    text = plain(first["msg"])[:200]
    return f"this is no plan of fxprune: {place}: {text}" if place else f"this is no plan: {text}"


def _duplicates(file: PlanFile) -> Iterable[str]:
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


def _mismatches(file: PlanFile, recipe: Recipe) -> Iterable[str]:
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
