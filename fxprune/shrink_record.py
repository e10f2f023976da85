"""What a shrink did to a Program: which channels stay where, what stayed and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fxprune.footprints import Footprint

__all__ = ["AxisMap", "Blocked", "ShrinkRecord", "Stay", "joined_record"]


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

    tensor: str
    axis: int
    before: int
    kept: tuple[int, ...]

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

    tensor: str
    axis: int
    count: int
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

    node: str
    reason: str
    line: str | None = None
    graph: str = "both"

    def __str__(self) -> str:
        return f"{self.reason}{_where(self.node, self.line)}"


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

    maps: tuple[AxisMap, ...] = ()
    stays: tuple[Stay, ...] = ()
    blocked: tuple[Blocked, ...] = ()
    added: tuple[str, ...] = ()
    absorbed: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    folded: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    round_to: int = 1
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
