"""Transfer rules of attention: heads pass, and what is attended to is mixed place by place.

A softmax makes means: what is the same in all rows is the mean, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch.fx.node import Node

from fxprune.channels import (
    Axis,
    Flow,
    FollowError,
    Value,
    axis_size,
    broadcast,
    transfer,
    unknown,
    widen,
)
from fxprune.program import ops


@transfer("scaled_dot_product_attention")
def attention(flow: Flow, node: Node) -> Value:
    """Heads go together in queries, keys and values; their inner size, and so the scale, stays."""
    query, key, value = (flow.value(arg) for arg in node.args[:3])
    if min(len(query.axes), len(key.axes), len(value.axes)) < 2:
        raise FollowError("it reads no matrices")
    for axis in (query.axes[-1], key.axes[-1]):
        flow.pin(axis, "the size of a head sets its scale", node)
    for axis in (key.axes[-2], value.axes[-2]):
        flow.pin(axis, "it runs over all places", node)
    if flow.number(flow.argument(node, "enable_gqa", False)) is not False:
        key, value = (_repeat_heads(flow, part, query) for part in (key, value))
    others = [unknown(part.axes[:-2]) for part in (query, key, value)]
    mask = flow.argument(node, "attn_mask")
    if isinstance(mask, Node):
        if mask not in flow.values:
            raise FollowError("its mask is no tensor")
        given = flow.value(mask)
        others.append(unknown(given.axes[:-2]))
        for axis in given.axes[-2:]:
            flow.pin(axis, "it runs over all places", node)
    batch, _ = broadcast(flow, node, others)
    axes = (*batch, query.axes[-2], value.axes[-1])
    dropout = flow.number(flow.argument(node, "dropout_p", 0.0))
    return mean_of(axes, value) if dropout == 0 else unknown(axes)


def _repeat_heads(flow: Flow, part: Value, query: Value) -> Value:
    """Return keys or values of which each head serves several of the queries'."""
    if len(part.axes) < 3 or len(query.axes) < 3:
        return part
    times, rest = divmod(axis_size(query.axes[-3]), axis_size(part.axes[-3]))
    if rest or times == 1:
        return part
    heads: Axis = (*part.axes[-3], *flow.copies(times))
    place = part.first_factor(len(part.axes) - 3) + len(part.axes[-3])
    return Value((*part.axes[:-3], heads, *part.axes[-2:]), widen(part.const, place))


_SAME = frozenset(
    (
        *("to", "_to_copy", "clone", "contiguous", "type_as"),
        *("view", "reshape", "expand", "_unsafe_view"),
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


def mean_of(axes: Sequence[Axis], value: Value) -> Value:
    """Return means over the last but one axis of a value, with the axes of the result."""
    rows = len(value.axes) - 2
    first = value.first_factor(rows)
    lead, last = value.const.shape[:first], value.dims(rows + 1)
    batch = [factor.size for axis in axes[:-2] for factor in axis]
    if any(size > 1 for size in value.dims(rows)):
        return unknown(axes)
    if any(size > 1 for size in lead):  # for each head its own: only where these are the same
        own = [factor.size for axis in value.axes[:-2] for factor in axis]
        if own != batch[len(batch) - len(own) :]:
            return unknown(axes)
    else:
        lead = ()
    sizes = [*[1] * (len(batch) - len(lead)), *lead, *[1] * len(axes[-2]), *last]
    return Value(tuple(axes), value.const.reshape(sizes))
