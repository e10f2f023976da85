"""What rules and passes did, kept for reports, plans and files; pydantic writes it as JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import BeforeValidator, ConfigDict, Field, PlainSerializer

__all__ = [
    "STRICT",
    "Count",
    "Many",
    "Number",
    "ParamRecord",
    "PassRecord",
    "RuleRecord",
    "Text",
]

# How records are read from a file: no unknown keys, and no conversions but those written here.
STRICT = ConfigDict(extra="forbid", strict=True, validate_by_name=True)

_Item = TypeVar("_Item")


def _from_text(value: Any) -> Any:
    """Return the number that JSON cannot hold and a file has as text."""
    text = value["float"] if isinstance(value, dict) and set(value) == {"float"} else value
    return float(text) if text in ("inf", "-inf", "nan") else value


def _as_text(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)


Count = Annotated[int, Field(ge=0, lt=2**63)]
Text = Annotated[str, Field(max_length=100_000)]
Number = Annotated[
    float, BeforeValidator(_from_text), PlainSerializer(_as_text, return_type=float | str)
]
# A hostile file has millions of faults; the first few of them will do.
Many = Annotated[tuple[_Item, ...], Field(fail_fast=True)]


@dataclass(frozen=True)
class ParamRecord:
    """What one rule did to one parameter, or to one layer of coupled channels.

    Args:
        name: the parameter's first name; of a layer, that of the first parameter that makes its
            channels.
        makers: of a layer, all parameters that make its channels.
        units: how many units it had: entries, or channels.
        alive: how many of these were alive before.
        pruned: how many of these the rule pruned; None where a given mask decided.
        zeros: how many entries of its mask became zero by that; only plans count them.
        threshold: the largest pruned score; None where nothing was ranked or pruned.
        tied: how many units were at the threshold.
        quota: how many of these went.
        exact: whether `alive` and `pruned` hold for every run; otherwise they are those of one
            random draw.
        zeros_exact: whether `zeros` does.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    name: Text
    makers: Many[Text] = field(default=(), kw_only=True)
    units: Count | None = None
    alive: Count | None = None
    pruned: Count | None = None
    zeros: Count | None = field(default=None, kw_only=True)
    threshold: Number | None = None
    tied: Count = 0
    quota: Count = 0
    exact: bool = field(default=True, kw_only=True)
    zeros_exact: bool = field(default=True, kw_only=True)


@dataclass(frozen=True)
class RuleRecord:
    """What one rule did, or the rules of one group.

    Args:
        rule: the rule's name; those of a group joined by "+".
        method: its method, in the words of the recipe.
        amount: share or count, as asked.
        scope: "local" or "global".
        parameters: one record for each parameter that it selects, in parameter order.
        refused: (parameter, reason) of what the rule did not select.
        seconds: wall time by pass.
        edits: how many edits the Rewriter counted.
        layers: of a rule over coupled channels, one record a layer.
        drawn: whether it draws from torch's global generator, so that each run prunes others;
            only plans tell.
        exact: whether the number pruned, summed over its parameters, holds for every run.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    rule: Annotated[Text, Field(alias="name")]  # a plan's file calls it so
    method: Text
    amount: Count | Annotated[float, Field(ge=0.0, le=1.0)] | None
    scope: Text
    parameters: Many[ParamRecord]
    refused: Many[tuple[Text, Text]] = ()
    seconds: Mapping[str, float] = field(default_factory=dict[str, float])
    edits: Count = 0
    layers: Many[ParamRecord] = ()
    drawn: bool = False
    exact: bool = True

    @property
    def name(self) -> str:
        """The rule's name."""
        return self.rule

    @property
    def units(self) -> int:
        """How many units its parameters had."""
        return sum(row.units or 0 for row in self.parameters)

    @property
    def alive(self) -> int:
        """How many of these were alive when its turn came."""
        return sum(row.alive or 0 for row in self.parameters)

    @property
    def pruned(self) -> int:
        """How many of these it pruned."""
        return sum(row.pruned or 0 for row in self.parameters)

    @property
    def zeros(self) -> int:
        """How many entries of masks became zero by that, where they were counted."""
        return sum(row.zeros or 0 for row in self.parameters)


@dataclass(frozen=True)
class PassRecord:
    """What a pass that a recipe named did, kept for the report.

    Args:
        name: the pass's name.
        args: its options, as the recipe gave them.
        promise: "same": outputs were checked to be equal bit for bit; "changes".
        edits: how many edits the Rewriter counted.
        refused: what its rules refused, with the node that was in the way.
        seconds: wall time.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    name: Text
    args: Mapping[str, Any]
    promise: Text
    edits: Count
    refused: Many[Text]
    seconds: float
