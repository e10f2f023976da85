"""Transfer rules of attention: heads pass, and what is attended to is mixed place by place."""

from __future__ import annotations

from torch.fx.node import Node

from fxprune.broadcasting import broadcast
from fxprune.factors import Axis, Value, sizes_of, unknown
from fxprune.flow import Flow, transfer
from fxprune.pattern import Refusal

from .flow_mixing import mixed


@transfer("scaled_dot_product_attention")
def attention(flow: Flow, node: Node) -> Value | Refusal:
    """Heads go together in queries, keys and values; their inner size, and so the scale, stays."""
    query, key, value = (flow.value(arg) for arg in node.args[:3])
    if min(len(query.axes), len(key.axes), len(value.axes)) < 2:
        return Refusal("it reads no matrices", node)
    for axis in (query.axes[-1], key.axes[-1]):
        flow.pin(axis, "the size of a head sets its scale", node)
    for axis in (key.axes[-2], value.axes[-2]):
        flow.pin(axis, "it runs over all places", node)
    if flow.number(flow.argument(node, "enable_gqa", False)) is not False:
        key, value = (_repeated(flow, part, query) for part in (key, value))
    others = [unknown(part.axes[:-2]) for part in (query, key, value)]
    mask = flow.argument(node, "attn_mask")
    if isinstance(mask, Node):
        if mask not in flow.values:
            return Refusal("its mask is no tensor", node)
        given = flow.value(mask)
        others.append(unknown(given.axes[:-2]))
        for axis in given.axes[-2:]:
            flow.pin(axis, "it runs over all places", node)
    batch = broadcast(flow, node, others)
    if isinstance(batch, Refusal):
        return batch
    axes = (*batch[0], query.axes[-2], value.axes[-1])
    dropped = flow.number(flow.argument(node, "dropout_p", 0.0))
    return mixed(axes, value) if dropped == 0 else unknown(axes)


def _repeated(flow: Flow, part: Value, query: Value) -> Value:
    """Return keys or values of which each head serves several of the queries'."""
    if len(part.axes) < 3 or len(query.axes) < 3:
        return part
    times, rest = divmod(sizes_of(query.axes[-3]), sizes_of(part.axes[-3]))
    if rest or times == 1:
        return part
    heads: Axis = (*part.axes[-3], *flow.copies(times))
    place = part.first_factor(len(part.axes) - 3) + len(part.axes[-3])
    axes = (*part.axes[:-3], heads, *part.axes[-2:])
    shape = part.const.shape
    return Value(axes, part.const.reshape([*shape[:place], 1, *shape[place:]]))
