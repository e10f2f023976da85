"""Transfer rules of entries that are looked up along an axis, each by an index of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.fx.node import Node

from fxprune.factors import Axis, Factor, Value, sizes_of, unknown
from fxprune.flow import Flow, transfer
from fxprune.importing import VALUE
from fxprune.pattern import Refusal


@transfer("gather")
def gathered(flow: Flow, node: Node) -> Value | Refusal:
    """Along its axis any entry may be looked up; along others tensor and indices go together."""
    value, where = flow.value(node.args[0]), flow.value(flow.argument(node, "index"))
    if not value.axes or len(value.axes) != len(where.axes):
        return Refusal("its axes are not those of its indices", node)
    at = int(flow.argument(node, "dim")) % len(value.axes)
    flow.pin(value.axes[at], "any of them may be looked up", node)
    axes: list[Axis] = []
    for other, (left, right) in enumerate(zip(value.axes, where.axes, strict=True)):
        if other == at:
            axes.append(right)
            continue
        if sizes_of(left) != sizes_of(right):
            for axis in (left, right):
                flow.pin(axis, "its indices are fewer", node)
            axes.append(right)
            continue
        tied = flow.tie(left, right, node)
        if tied is None:
            return Refusal("its operands' axes are made of different parts", node)
        axes.append(tied)
    return unknown(axes)


def looked_up(
    flow: Flow, node: Node, where: Sequence[Any], given: Sequence[int]
) -> Value | Refusal:
    """Return what indices that are computed take of some axes; channels of others pass.

    Args:
        flow: whose node it is.
        node: the operator.
        where: indices by axis, None where an axis is taken whole.
        given: the axes that have indices.
    """
    value, shape = flow.value(node.args[0]), flow.shape(node)
    reads = [where[at] for at in given]
    noted = [read.meta.get(VALUE) if isinstance(read, Node) else None for read in reads]
    if shape is None or any(n is None or n[1] in (torch.bool, torch.uint8) for n in noted):
        return Refusal("its indices are not known to be numbers", node)
    for at, read in zip(given, reads, strict=True):
        flow.pin(value.axes[at], "any of them may be looked up", node)
        flow.pin_value(flow.value(read), "they say what is looked up", node)
    rank = max(len(flow.value(read).axes) for read in reads)
    # Side by side they leave what they take where they were; else in front.
    side = given[-1] - given[0] == len(given) - 1
    first = given[0] if side else 0
    rest = [axis for at, axis in enumerate(value.axes) if at not in given]
    taken = [(Factor(size),) for size in shape[first : first + rank]]
    return unknown([*rest[:first], *taken, *rest[first:]])
