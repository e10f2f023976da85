"""What rules and passes did, kept for reports, plans and files; pydantic writes it as JSON.

What a shrink did to a Program: which channels stay where, what stayed and why.
"""

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

    Args:
        tensor: the parameter's first name, without the suffix of a mask; or a buffer's name.
        axis: which axis, from 0.
        before: its size before.
        kept: the old indices that stayed, in order: the channel `kept[i]` became `i`.

    Example:
        >>> AxisMap("conv1.weight", 0, 4, (0, 3)).renamed
        {0: 0, 3: 1}
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    tensor: str
    axis: Count
    before: Count
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

    Args:
        tensor: see AxisMap.
        axis: which axis, from 0.
        count: how many channels.
        reason: one clause.
        node: the name of the node that needs them; None where no node does.
        line: where in the user's code that node comes from, as "net.py:12".

    Example:
        >>> print(Stay("fc.weight", 0, 10, "it is an output of the program", "output", "net.py:9"))
        10 of axis 0 of fc.weight: it is an output of the program (node output, net.py:9)
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    tensor: str
    axis: Count
    count: Count
    reason: str
    node: str | None = None
    line: str | None = None

    def __str__(self) -> str:
        where = _where(self.node, self.line)
        return f"{self.count} of axis {self.axis} of {self.tensor}: {self.reason}{where}"


@dataclass(frozen=True)
class Blocked:
    """An operator that channels were not followed through.

    Args:
        node: the node's name.
        reason: one clause.
        line: where in the user's code it comes from.
        graph: the mode of its graph.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    node: str
    reason: str
    line: str | None = None
    graph: str = "both"

    def __str__(self) -> str:
        return f"{self.reason}{_where(self.node, self.line)}"


@dataclass(frozen=True)
class Footprint:
    """How large a Program is and what a forward of one example costs, in eval mode.

    Args:
        parameters: entries of all parameters, each counted once.
        flops: floating-point operations, see `fxprune.flops`.
        activations: entries of the outputs of convolutions, linear layers and other products.
        layers: operations by node.
        unknown: nodes that are not counted, since shapes are not noted.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    parameters: Count
    flops: Count
    activations: Count
    layers: Mapping[str, Count] = field(default_factory=dict[str, int])
    unknown: Many[str] = ()


@dataclass(frozen=True)
class ShrinkRecord:
    """What one shrink did.

    Args:
        maps: one for each axis that lost channels, in the order of the Program's tensors.
        stays: why channels of axes that could lose some stayed.
        blocked: operators that channels were not followed through.
        added: biases that were made to take over constants, by name.
        absorbed: biases that took over constants, by name; those of `added`, too.
        removed: tensors that nothing reads any more and that were dropped, by name.
        folded: nodes whose value was constant, and that a constant stands for.
        notes: what to know beside, as where train mode differs.
        round_to: what channel counts are multiples of, where they could be.
        checked: what was compared, and how much it differs; or why nothing was.
        seconds: wall time by step.
        again: whether more could go when channels are found once more.
        before: how large the Program was, and what a forward cost.
        after: the same after the shrink.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    maps: Many[AxisMap] = ()
    stays: Many[Stay] = ()
    blocked: Many[Blocked] = ()
    added: Many[str] = ()
    absorbed: Many[str] = ()
    removed: Many[str] = ()
    folded: Many[str] = ()
    notes: Many[str] = ()
    round_to: Count = 1
    checked: str = ""
    seconds: Mapping[str, float] = field(default_factory=dict[str, float])
    again: bool = False
    before: Footprint | None = None
    after: Footprint | None = None


def joined_record(records: Sequence[ShrinkRecord]) -> ShrinkRecord:
    """Return what several rounds did as if it were one.

    Args:
        records: at least one; each round began where the one before it ended.
    """
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
