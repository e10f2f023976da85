"""Transfer rules of reductions, softmax and products of two computed tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch.fx.node import Node

from fxprune import ops
from fxprune.factors import Array, Axis, Factor, Value, sizes_of, unknown
from fxprune.flow import Flow, transfer
from fxprune.passes.flow_pointwise import broadcast
from fxprune.pattern import Refusal


@transfer("mean | sum | amax | amin | var | std | logsumexp | max | min | prod")
def reduced(flow: Flow, node: Node) -> Value | Refusal:
    """Some axes are joined; their channels stay, those of other axes pass."""
    value = flow.value(node.args[0])
    rank = len(value.axes)
    dims: Any = flow.argument(node, "dim", None)
    if ops.canonical_name(node.target) in ("max", "min") and dims is not None:
        return Refusal("it also tells where the extreme is", node)
    given = (
        range(rank)
        if dims is None or dims == []
        else (dims if isinstance(dims, (list, tuple)) else [dims])
    )
    gone = {int(d) % max(rank, 1) for d in given}
    for at in gone:
        flow.pin(value.axes[at], "all channels are joined", node)
    keep = bool(flow.argument(node, "keepdim", False))
    axes: list[Axis] = []
    sizes: list[int] = []
    const, settled = value.const, True
    for at, axis in enumerate(value.axes):
        first = value.first_factor(at)
        shape = const.shape[first : first + len(axis)]
        if at not in gone:
            axes.append(axis)
            sizes += shape
            continue
        settled = settled and all(n == 1 for n in shape)
        if keep:
            axes.append((Factor(1),))
            sizes.append(1)
    if not settled:
        return unknown(axes)
    return Value(tuple(axes), _joined_const(node, const.reshape(sizes)))


def _joined_const(node: Node, const: Array) -> Array:
    name = ops.canonical_name(node.target)
    if name in ("mean", "amax", "amin"):
        return const
    if name == "sum":
        return np.where(const == 0, 0.0, np.nan)
    return const * np.nan


@transfer("softmax | _softmax | log_softmax | _log_softmax")
def softmax(flow: Flow, node: Node) -> Value | Refusal:
    """Along its axis all entries count."""
    value = flow.value(node.args[0])
    dim = int(flow.argument(node, "dim")) % len(value.axes)
    flow.pin(value.axes[dim], "a softmax counts all channels", node)
    return unknown(value.axes)


@transfer("matmul | bmm | mm")
def product(flow: Flow, node: Node) -> Value | Refusal:
    """The last axis of one and the last but one of the other are summed over."""
    left, right = flow.value(node.args[0]), flow.value(node.args[1])
    if len(left.axes) < 2 or len(right.axes) < 2:
        return Refusal("it multiplies a vector", node)
    if flow.tie(left.axes[-1], right.axes[-2], node) is None:
        return Refusal("its operands' axes are made of different parts", node)
    a = flow.flat(left, len(left.axes) - 1, node)
    b = flow.flat(right, len(right.axes) - 2, node)
    weight = flow.concrete(node.args[1])
    zero = (a.const == 0) | (b.const == 0)
    if weight is not None:
        places = tuple(d for d in range(weight.dim()) if d != weight.dim() - 2)
        zero = zero | ~weight.ne(0).any(dim=places).cpu().numpy()
    for part in (a, b):
        if part.atoms is not None:
            flow.atoms.pin(
                part.atoms[~np.broadcast_to(zero, (part.size,))],
                "a live channel is summed over",
                node,
            )
    batch = broadcast(flow, node, [unknown(left.axes[:-2]), unknown(right.axes[:-2])])
    if isinstance(batch, Refusal):
        return batch
    axes = (*batch[0], left.axes[-2], right.axes[-1])
    if bool(np.broadcast_to(zero, (a.size,)).all()):
        return Value(axes, np.zeros((1,) * sum(map(len, axes))))
    if _sums_to_one(node.args[0]):
        return _mixed(flow, node, axes, right)
    return unknown(axes)


def _sums_to_one(node: Any) -> bool:
    """Tell whether rows are the weights of a softmax, behind dropout and casts perhaps."""
    while isinstance(node, Node) and node.op == "call_function":
        name = ops.canonical_name(node.target)
        if name in ("softmax", "_softmax"):
            return ops.argument(node, "dim") == -1 or not isinstance(ops.argument(node, "dim"), int)
        if name not in (
            "dropout",
            "to",
            "_to_copy",
            "clone",
            "contiguous",
            "view",
            "expand",
            "reshape",
        ):
            return False
        node = node.args[0]
    return False


def _mixed(flow: Flow, node: Node, axes: Sequence[Axis], value: Value) -> Value:
    """Return means of rows: what is the same in all rows is the mean, too."""
    first = value.first_factor(len(value.axes) - 2)
    rows = len(value.axes[-2])
    const = value.const
    if any(n > 1 for n in const.shape[first : first + rows]):
        return unknown(axes)
    lead, last = const.shape[:first], const.shape[first + rows :]
    missing = sum(map(len, axes[:-2])) - len(lead)
    if missing < 0:
        return unknown(axes)
    sizes = [1] * missing + [*lead] + [1] * len(axes[-2]) + [*last]
    del flow, node
    return Value(tuple(axes), const.reshape(sizes))


@transfer("scaled_dot_product_attention")
def attention(flow: Flow, node: Node) -> Value | Refusal:
    """Heads pass; what is attended to is mixed place by place."""
    query, key, value = (flow.value(arg) for arg in node.args[:3])
    if bool(flow.argument(node, "enable_gqa", False)):
        return Refusal("its heads are shared", node)
    for part, name in ((query, "query"), (key, "key")):
        flow.pin(part.axes[-1], f"the size of a head's {name} sets its scale", node)
    if flow.tie(query.axes[-1], key.axes[-1], node) is None:
        return Refusal("its query and key are made of different parts", node)
    others = [unknown(part.axes[:-2]) for part in (query, key, value)]
    mask = flow.argument(node, "attn_mask")
    if isinstance(mask, Node) and len(flow.value(mask).axes) > 2:
        others.append(unknown(flow.value(mask).axes[:-2]))
    batch = broadcast(flow, node, others)
    if isinstance(batch, Refusal):
        return batch
    return _mixed(flow, node, (*batch[0], query.axes[-2], value.axes[-1]), value)
