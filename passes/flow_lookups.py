"""Transfer rules of entries that are looked up along an axis, each by an index of its own."""

from __future__ import annotations

from torch.fx.node import Node

from fxprune.factors import Axis, Value, sizes_of, unknown
from fxprune.flow import Flow, transfer
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
