"""What a shrink is going to do, as a record: index maps, and why channels stay."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
from torch.fx.node import Node

from fxprune import tensors
from fxprune.atoms import KERNEL
from fxprune.factors import Ids, Value
from fxprune.flow import Flow
from fxprune.program import Program
from fxprune.removal import Removal
from fxprune.shrink_record import AxisMap, Blocked, ShrinkRecord, Stay
from fxprune.tracing import source_line

__all__ = ["record_of_cut", "shift_note", "train_notes"]


def record_of_cut(
    program: Program,
    stored: Iterable[tuple[str, Value]],
    flows: Iterable[Flow],
    removal: Removal,
) -> ShrinkRecord:
    """Return what will be cut and what stays, before it is done.

    Args:
        program: what is cut.
        stored: the tensors that graphs read, as channels see them, by name.
        flows: one a graph.
        removal: which channels go.
    """
    masks = {f"{name}_mask" for name in tensors.masks(program)}
    own = [(name, value) for name, value in stored if name not in masks]
    maps = [
        AxisMap(name, axis, len(ids), tuple(np.flatnonzero(removal.kept(ids)).tolist()))
        for name, value in own
        for axis, ids in _axes(value)
        if removal.touches(ids)
    ]
    nodes = {pin.node for pin in removal.pins if pin.reason != KERNEL}
    lines = {node: source_line(node) for node in nodes}
    stays = [
        Stay(name, axis, count, pin.reason, pin.node and pin.node.name, lines[pin.node])
        for name, value in own
        for axis, ids in _axes(value)
        for pin, count in removal.reasons(ids)
        if pin.reason != KERNEL
    ]
    blocked = [
        Blocked(node.name, reason, source_line(node), flow.mode)
        for flow in flows
        for node, reason in flow.unknown
    ]
    return ShrinkRecord(tuple(maps), tuple(stays), tuple(blocked))


def train_notes(flows: Iterable[Flow], removal: Removal) -> tuple[str, ...]:
    """Return a note for each node behind which channels that go are others in train mode."""
    nodes = {node: None for flow in flows for node, ids in flow.shifts if removal.touches(ids)}
    return tuple(dict.fromkeys(map(shift_note, nodes)))


def shift_note(node: Node) -> str:
    """Return what to know of a node behind which constants are others in train mode."""
    return (
        "in train mode channels that went are not the constants that they are in eval mode: "
        f"{node.name} makes others of them ({source_line(node) or 'no source line'})"
    )


def _axes(value: Value) -> Iterator[tuple[int, Ids]]:
    for axis, factors in enumerate(value.axes):
        if factors[0].atoms is not None:
            yield axis, factors[0].atoms
