"""`Plan`: what a recipe would do to a model, as a table, as JSON and to hold a run to."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from rich.console import Group
from rich.text import Text

from fxprune import plan_files
from fxprune.errors import FormatError, PassError
from fxprune.facts import RuleRecord
from fxprune.plan_diff import PlanDiff, diff_plans, origin_changes
from fxprune.recipe import Recipe
from fxprune.report_rows import PlannedParameter, Totals
from fxprune.tables import plain_table, rich_table
from fxprune.writing import PathLike, write_text

__all__ = ["Plan", "recipe_of"]

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
        return diff_plans(self, other)

    def check_model(self, rows: Mapping[str, PlannedParameter]) -> None:
        """Check that a model is the one that was planned for.

        Args:
            rows: the model's parameters by name.

        Raises:
            PassError: its parameters or their values are others; lists the differences.
        """
        planned = {row.name: row for row in self.parameters}
        found = PlanDiff(tuple(origin_changes(planned, rows)))
        if found:
            raise PassError(f"the plan was made for another model; {_MEND}\n{found}")

    def check_outcome(self, other: Plan) -> None:
        """Check that a run did what was planned.

        Args:
            other: what it did.

        Raises:
            PassError: it did something else; lists the differences.
        """
        found = self.diff(other)
        if found:
            raise PassError(f"the outcome is not what was planned; {_MEND}\n{found}")

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
        text = plan_files.read(path)
        return cls.from_json(text, allow_imports=allow_imports, where=os.fspath(path))

    def to_json(self) -> str:
        """Return all of it as JSON with its keys in a fixed order; infinity and NaN are strings."""
        file = plan_files.PlanFile(
            format="fxprune plan",
            version=1,
            model=self.model,
            recipe=self.recipe.to_dict(),
            rules=self.rules,
            parameters=self.parameters,
            totals=self.totals,
            notes=self.notes,
        )
        return plan_files.dump(file)

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
        file, recipe = plan_files.parse(text, where, allow_imports=allow_imports)
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
    """Return the recipe that something stands for: that of a plan, or see `Recipe.of`.

    Raises:
        RecipeError: it is no recipe, or is at fault.
    """
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
