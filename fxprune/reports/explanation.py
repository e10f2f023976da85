"""`Explanation`: what each rule does to each parameter, as a table and as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass

from rich.console import Group
from rich.text import Text

from fxprune.errors import MissingParameterError
from fxprune.program import parameters
from fxprune.words import plain_table, rich_table

_HEADER = ("parameter", "rule", "does", "what")


@dataclass(frozen=True)
class RuleExplanation:
    """What one rule does to one parameter, and why."""

    rule: str
    method: str
    amount: float | int | None
    scope: str
    group: str | None
    held: int  # how many of its conditions hold, before the first that fails
    matched: bool = False
    reason: str | None = None  # the condition that fails, or why nothing is pruned all the same
    node: str | None = None  # the node that is in the way
    line: str | None = None  # of the model's code that the node comes from, as "net.py:12"
    units: str | None = None  # "entries" or "channels"; None where it is not taken
    alive: int | None = None  # when the rule's turn comes
    pruned: int | None = None  # of the group, where it has one

    def __str__(self) -> str:
        places = [f"node {self.node}" if self.node else "", self.line or ""]
        place = ", ".join(filter(None, places))
        if not self.matched:
            return f"{self.reason} ({place})" if place else str(self.reason)
        budget = f"{self.scope}, group {self.group}" if self.group else self.scope
        amount = "" if self.amount is None else f", amount {self.amount}"
        start = f"{self.method}, {budget}{amount}"
        if self.reason is not None:
            return f"{start}: {'prunes nothing: ' if self.units else ''}{self.reason}"
        return f"{start}: prunes {self.pruned:,} of {self.alive:,} living {self.units}"


@dataclass(frozen=True)
class ParameterExplanation:
    """One parameter, and what each rule does to it."""

    name: str
    aliases: tuple[str, ...]  # the first name included
    shape: tuple[int, ...]
    uses: tuple[tuple[str, str], ...]  # (operator, argument role) of each
    rules: tuple[RuleExplanation, ...]  # in the recipe's order

    @property
    def matched(self) -> tuple[RuleExplanation, ...]:
        """The rows of the rules that take it."""
        return tuple(row for row in self.rules if row.matched)

    @property
    def pruned(self) -> bool:
        """Whether any rule prunes some of it."""
        return any(row.pruned for row in self.rules)


@dataclass(frozen=True)
class Explanation:
    """What each rule does to each parameter, and why; `print` it, or take it as JSON."""

    parameters: tuple[ParameterExplanation, ...]
    # (rule, message) of each rule that fails as a whole, as one that selects nothing.
    faults: tuple[tuple[str, str], ...] = ()

    def __getitem__(self, name: str) -> ParameterExplanation:
        """Return the explanation of a parameter, by any of its names."""
        for row in self.parameters:
            if name in row.aliases:
                return row
        known = parameters.quote([row.name for row in self.parameters])
        raise MissingParameterError(f"{name!r} is not explained here; there are {known}")

    def to_json(self) -> str:
        """Return all of it as JSON with its keys in a fixed order."""
        data = {
            "parameters": [asdict(row) for row in self.parameters],
            "faults": [{"rule": rule, "message": message} for rule, message in self.faults],
        }
        return json.dumps(data, indent=2, allow_nan=False)

    def table(self) -> Group:
        """Return it as a table for a rich console, followed by the faults."""
        return Group(rich_table(_HEADER, list(self._cells())), *map(Text, self._faults()))

    def __str__(self) -> str:
        return "\n".join((plain_table(_HEADER, list(self._cells())), *self._faults()))

    def _faults(self) -> tuple[str, ...]:
        return ("", *(f"fails: {text}" for _, text in self.faults)) if self.faults else ()

    def _cells(self) -> Iterator[tuple[str, ...]]:
        for row in self.parameters:
            for rule in row.rules:
                yield (row.name, rule.rule, "takes" if rule.matched else "leaves", str(rule))
