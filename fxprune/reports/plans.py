"""What differs between two plans."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from rich.table import Table

from fxprune.facts import RuleRecord
from fxprune.recipe_errors import plain
from fxprune.report_rows import PlannedParameter
from fxprune.tables import plain_table, rich_table

if TYPE_CHECKING:
    from fxprune.plans import Plan

__all__ = ["Change", "PlanDiff", "diff_plans", "origin_changes"]

_HEADER = ("rule", "parameter", "what", "before", "after")
_ADDED, _REMOVED = "added", "removed"
_ORIGIN = ("aliases", "shape", "dtype", "weights")  # what the model gives
_OUTCOME = ("rules", "zeros", "bytes", "mask_bytes", "final_bytes", "mask")
_LONG = 40


@dataclass(frozen=True)
class Change:
    """One difference.

    Args:
        what: what differs: "added", "removed", a key of the rule in the recipe, or a figure.
        before: its value in the first plan.
        after: its value in the second plan.
        rule: the rule that it concerns; None for none in particular.
        parameter: the parameter that it concerns; None for none in particular.
    """

    what: str
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

    Args:
        changes: the differences: of recipe, rules, parameters and totals, in that order.
    """

    changes: tuple[Change, ...] = ()

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
        found = (c for c in self.changes if c.what == what and c.parameter is None)
        return tuple(c.rule for c in found if c.rule is not None)

    def _parameters(self, what: str) -> tuple[str, ...]:
        found = (c for c in self.changes if c.what == what and c.rule is None)
        return tuple(c.parameter for c in found if c.parameter is not None)

    def _cells(self) -> list[tuple[str, ...]]:
        return [
            (c.rule or "", c.parameter or "", c.what, _cell(c.before), _cell(c.after))
            for c in self.changes
        ]


def diff_plans(before: Plan, after: Plan) -> PlanDiff:
    """Return what differs between two plans; see `PlanDiff`."""
    changes = (
        *_recipe_changes(before, after),
        *_rule_changes(before, after),
        *_parameter_changes(before, after),
        *_total_changes(before, after),
    )
    return PlanDiff(changes)


def origin_changes(
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
    before_order, after_order = (_shared(side, *rules) for side in rules)
    if before_order != after_order:
        yield Change("order of rules", before_order, after_order)
    for name in before_order:
        old, new = rules[0][name], rules[1][name]
        for key in dict.fromkeys((*old, *new)):
            if not _same(old.get(key), new.get(key)):
                yield Change(key, old.get(key), new.get(key), rule=name)


def _shared(side: Mapping[str, Any], *sides: Mapping[str, Any]) -> list[str]:
    return [name for name in side if all(name in other for other in sides)]


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
    yield from origin_changes(old, new)
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
