"""What a shrink did to a Program: which channels stay where, what stayed and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Annotated, ClassVar

from pydantic import AfterValidator, ConfigDict, ValidationInfo

from fxprune.rule_records import STRICT, Count, Many

__all__ = ["AxisMap", "Blocked", "Footprint", "ShrinkRecord", "Stay", "joined_record"]


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
