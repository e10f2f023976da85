"""Means weighted by a softmax: what is the same in all rows is the mean, too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch.fx.node import Node

from fxprune import ops
from fxprune.factors import Axis, Value, unknown
from fxprune.flow import Flow

__all__ = ["mixed", "sums_to_one"]

_SAME = frozenset(
    (
        "to",
        "_to_copy",
        "clone",
        "contiguous",
        "type_as",
        "view",
        "reshape",
        "expand",
        "_unsafe_view",
    )
)


def sums_to_one(flow: Flow, node: Any) -> bool:
    """Tell whether rows are the weights of a softmax, in eval mode, behind views of whole rows."""
    last = flow.shape(node)
    while isinstance(node, Node) and node.op == "call_function":
        name, shape = ops.canonical_name(node.target), flow.shape(node)
        if not shape or not last or shape[-1] != last[-1]:
            return False
        if name in ("softmax", "_softmax"):
            return int(ops.argument(node, "dim")) % len(shape) == len(shape) - 1
        drops = name == "dropout" and flow.number(ops.argument(node, "train")) is False
        if name not in _SAME and not drops:
            return False
        node = node.args[0]
    return False


def mixed(axes: Sequence[Axis], value: Value) -> Value:
    """Return means over the last but one axis of a value.

    Args:
        axes: those of the result.
        value: what is averaged.
    """
    first = value.first_factor(len(value.axes) - 2)
    rows = len(value.axes[-2])
    lead, last = value.const.shape[:first], value.const.shape[first + rows :]
    batch = [factor.size for axis in axes[:-2] for factor in axis]
    if any(size > 1 for size in value.const.shape[first : first + rows]):
        return unknown(axes)
    if any(size > 1 for size in lead):  # for each head its own: only where these are the same
        own = [factor.size for axis in value.axes[:-2] for factor in axis]
        if own != batch[len(batch) - len(own) :]:
            return unknown(axes)
    else:
        lead = ()
    sizes = [*[1] * (len(batch) - len(lead)), *lead, *[1] * len(axes[-2]), *last]
    return Value(tuple(axes), value.const.reshape(sizes))
