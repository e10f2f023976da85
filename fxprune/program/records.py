"""What rules, passes and shrinks did, for reports, plans and files; pydantic writes it as JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Annotated, Any, ClassVar, TypeVar

import torch
from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationInfo,
)


@dataclass(frozen=True)
class ParamSite:
    """A parameter, and where the graphs use it.

    Args:
        name: its first name.
        aliases: all its names, the first included.
        modules: class names of the modules that hold it.
        uses: (operator, argument role) of each use.
        shape: its shape.
        dtype: its dtype.
    """

    name: str
    aliases: tuple[str, ...]
    modules: tuple[str, ...]
    uses: tuple[tuple[str, str], ...]
    shape: torch.Size
    dtype: torch.dtype

    @property
    def numel(self) -> int:
        """Number of entries."""
        return self.shape.numel()


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
    """What one rule did to one parameter, or to one layer of coupled channels."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    name: Text  # of a layer, that of the first of its makers
    # Of a layer, all parameters that make its channels.
    makers: Many[Text] = field(default=(), kw_only=True)
    units: Count | None = None  # how many it had: entries, or channels
    alive: Count | None = None  # of these, before
    pruned: Count | None = None  # of these, by the rule; None where a given mask decided
    # New ones in its mask; plans alone count them.
    zeros: Count | None = field(default=None, kw_only=True)
    # The largest pruned score; None where nothing was ranked or pruned.
    threshold: Number | None = None
    tied: Count = 0  # units at the threshold
    quota: Count = 0  # how many of these went
    # Whether `alive` and `pruned` hold for every run, not for one random draw.
    exact: bool = field(default=True, kw_only=True)
    zeros_exact: bool = field(default=True, kw_only=True)  # the same of `zeros`


@dataclass(frozen=True)
class RuleRecord:
    """What one rule did, or the rules of one group."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    rule: Annotated[Text, Field(alias="name")]  # a plan's file calls it so
    method: Text  # in the words of the recipe
    amount: Count | Annotated[float, Field(ge=0.0, le=1.0)] | None  # share or count
    scope: Text  # "local" or "global"
    parameters: Many[ParamRecord]  # those that it selects, in parameter order
    refused: Many[tuple[Text, Text]] = ()  # (parameter, reason) of what the rule did not select
    seconds: Mapping[str, float] = field(default_factory=dict[str, float])  # wall time by pass
    edits: Count = 0  # as the Rewriter counted them
    layers: Many[ParamRecord] = ()  # of a rule over coupled channels
    # Whether torch's global generator draws, so that each run prunes others; only plans tell.
    drawn: bool = False
    exact: bool = True  # whether the sum of what was pruned holds for every run

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
    """What a pass that a recipe named did."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    name: Text
    args: Mapping[str, Any]  # options as the recipe gave them
    promise: Text  # "same": outputs were checked to be equal bit for bit; "changes"
    edits: Count
    refused: Many[Text]  # by its rules, with the node that was in the way
    seconds: float  # wall time


def _check_kept(kept: tuple[int, ...], info: ValidationInfo) -> tuple[int, ...]:
    """Check the channels of an AxisMap that a file gives."""
    ascending = all(a < b for a, b in pairwise(kept))
    if not ascending or (kept and kept[-1] >= info.data.get("before", 0)):
        tensor = str(info.data.get("tensor"))[:100]
        raise ValueError(f"the channels kept of {tensor!a} are in disorder")
    return kept


@dataclass(frozen=True)
class AxisMap:
    """Which channels of one axis of one tensor stayed.

    Example:
        >>> AxisMap("conv1.weight", 0, 4, (0, 3)).renamed
        {0: 0, 3: 1}
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    tensor: str  # the parameter's first name, without a mask's suffix; or a buffer's
    axis: Count
    before: Count  # its size
    # The old indices that stayed, in order: the channel `kept[i]` became `i`.
    kept: Annotated[Many[Count], AfterValidator(_check_kept)]

    @property
    def after(self) -> int:
        """The size after."""
        return len(self.kept)

    @property
    def renamed(self) -> dict[int, int]:
        """The new index of each channel that stayed, by its old one."""
        return {old: new for new, old in enumerate(self.kept)}


@dataclass(frozen=True)
class Stay:
    """Why some channels of one axis of one tensor stayed.

    Example:
        >>> print(Stay("fc.weight", 0, 10, "it is an output of the program", "output", "net.py:9"))
        10 of axis 0 of fc.weight: it is an output of the program (node output, net.py:9)
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    tensor: str  # see AxisMap
    axis: Count
    count: Count  # of channels
    reason: str  # one clause
    node: str | None = None  # that needs them, if one does
    line: str | None = None  # of the user's code, as "net.py:12"

    def __str__(self) -> str:
        where = _where(self.node, self.line)
        return f"{self.count} of axis {self.axis} of {self.tensor}: {self.reason}{where}"


@dataclass(frozen=True)
class Blocked:
    """An operator that channels were not followed through."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    node: str
    reason: str  # one clause
    line: str | None = None  # of the user's code
    graph: str = "both"  # its mode

    def __str__(self) -> str:
        return f"{self.reason}{_where(self.node, self.line)}"


@dataclass(frozen=True)
class Footprint:
    """How large a Program is and what a forward of one example costs, in eval mode."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    parameters: Count  # entries of all of them, each counted once
    flops: Count  # see `fxprune.channels.cost`
    activations: Count  # entries of the outputs of convolutions, linear layers and products
    layers: Mapping[str, Count] = field(default_factory=dict[str, int])  # operations by node
    unknown: Many[str] = ()  # nodes that are not counted, since shapes are not noted


@dataclass(frozen=True)
class ShrinkRecord:
    """What one shrink did."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    # One for each axis that lost channels, in the order of the Program's tensors.
    maps: Many[AxisMap] = ()
    stays: Many[Stay] = ()  # why channels of axes that could lose some stayed
    blocked: Many[Blocked] = ()  # operators that channels were not followed through
    added: Many[str] = ()  # biases that were made to take over constants
    absorbed: Many[str] = ()  # biases that took over constants, those of `added` too
    removed: Many[str] = ()  # tensors that nothing reads any more
    folded: Many[str] = ()  # nodes whose value was constant, and that a constant stands for
    notes: Many[str] = ()  # as where train mode differs
    round_to: Count = 1  # channel counts are multiples of it where they can be
    checked: str = ""  # what was compared and how much it differs, or why nothing was
    seconds: Mapping[str, float] = field(default_factory=dict[str, float])  # wall time by step
    again: bool = False  # whether more could go in another round
    before: Footprint | None = None
    after: Footprint | None = None


def joined_record(records: Sequence[ShrinkRecord]) -> ShrinkRecord:
    """Return what several rounds did, each on what the one before it left, as if it were one."""
    maps: dict[tuple[str, int], AxisMap] = {}
    seconds: dict[str, float] = {}
    for record in records:
        for each in record.maps:
            key = (each.tensor, each.axis)
            first = maps.get(key)
            kept = each.kept if first is None else tuple(first.kept[at] for at in each.kept)
            before = each.before if first is None else first.before
            maps[key] = AxisMap(each.tensor, each.axis, before, kept)
        for name, spent in record.seconds.items():
            seconds[name] = seconds.get(name, 0.0) + spent
    lists = {
        name: tuple(dict.fromkeys(part for record in records for part in getattr(record, name)))
        for name in ("added", "absorbed", "removed", "folded", "notes")
    }
    return replace(records[-1], maps=tuple(maps.values()), seconds=seconds, again=False, **lists)


def _where(node: str | None, line: str | None) -> str:
    if node is None:
        return ""
    return f" (node {node}{'' if line is None else f', {line}'})"
