"""Transfer rules of reductions and softmax."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch.fx.node import Node

from fxprune import ops
from fxprune.factors import Array, Axis, Factor, Value, unknown
from fxprune.flow import Flow, transfer
from fxprune.pattern import Refusal

from .flow_pointwise import binary


@transfer(
    "mean sum amax amin var std logsumexp linalg_vector_norm norm prod all any nansum argmax argmin"
)
def reduced(flow: Flow, node: Node) -> Value | Refusal:
    """Channels of the axes that are joined stay, those of others pass."""
    value = flow.value(node.args[0])
    gone = _joined(flow, node, len(value.axes))
    if flow.shape(node) is None:
        return Refusal("it has several outputs", node)
    for at in gone:
        flow.pin(value.axes[at], "all channels are joined", node)
    keep = bool(flow.argument(node, "keepdim", False))
    axes: list[Axis] = []
    sizes: list[int] = []
    settled = True
    for at, axis in enumerate(value.axes):
        first = value.first_factor(at)
        shape = value.const.shape[first : first + len(axis)]
        if at not in gone:
            axes.append(axis)
            sizes += shape
            continue
        settled = settled and all(size == 1 for size in shape)
        if keep:
            axes.append((Factor(1),))
            sizes.append(1)
    if not settled:
        return unknown(axes)
    return Value(tuple(axes), _after(node, value.const.reshape(sizes)))


def _joined(flow: Flow, node: Node, rank: int) -> set[int]:
    dims: Any = flow.argument(node, "dim", None)
    if dims is None or dims == []:
        return set(range(rank))
    given = dims if isinstance(dims, (list, tuple)) else [dims]
    return {int(dim) % max(rank, 1) for dim in given}


def _after(node: Node, const: Array) -> Array:
    name = ops.canonical_name(node.target)
    if name in ("mean", "amax", "amin"):
        return const
    found = np.full_like(const, np.nan)
    if name == "sum":
        found[const == 0] = 0.0
    return found


@transfer("max min")
def extreme(flow: Flow, node: Node) -> Value | tuple[Value, ...] | Refusal | None:
    """The largest entry of all, or along an axis, with its place; of two tensors, the larger."""
    if len(node.all_input_nodes) != 1 or (len(node.args) > 1 and not isinstance(node.args[1], int)):
        return binary(flow, node)
    value = flow.value(node.all_input_nodes[0])
    if len(node.args) == 1 and not node.kwargs:
        flow.pin_value(value, "all channels are joined", node)
        return unknown(())
    at = int(flow.argument(node, "dim")) % max(len(value.axes), 1)
    flow.pin(value.axes[at], "all channels are joined", node)
    keep: tuple[Axis, ...] = ((Factor(1),),) if flow.argument(node, "keepdim", False) else ()
    found = unknown((*value.axes[:at], *keep, *value.axes[at + 1 :]))
    return found, found


@transfer("softmax _softmax log_softmax _log_softmax cumsum cumprod logcumsumexp softmin")
def along_an_axis(flow: Flow, node: Node) -> Value | Refusal:
    """Along its axis all entries count; others pass."""
    value = flow.value(node.args[0])
    if not value.axes or flow.shape(node) is None:
        return Refusal("its input is no tensor with axes", node)
    dim = int(flow.argument(node, "dim")) % len(value.axes)
    flow.pin(value.axes[dim], f"{ops.canonical_name(node.target)} runs over all channels", node)
    return unknown(value.axes)


@transfer("tril triu")
def triangular(flow: Flow, node: Node) -> Value | Refusal:
    """Along the last two axes it counts which entries are 0; others pass."""
    value = flow.value(node.args[0])
    for axis in value.axes[-2:]:
        flow.pin(axis, "its triangle counts all channels", node)
    return unknown(value.axes)


@transfer("diff")
def stepped(flow: Flow, node: Node) -> Value | Refusal:
    """Along its axis each entry is held to the next; others pass."""
    value, shape = flow.value(node.args[0]), flow.shape(node)
    if not value.axes or shape is None or len(node.all_input_nodes) > 1:
        return Refusal("it is handed several tensors", node)
    at = int(flow.argument(node, "dim", -1)) % len(value.axes)
    flow.pin(value.axes[at], "all channels are joined", node)
    return unknown((*value.axes[:at], (Factor(shape[at]),), *value.axes[at + 1 :]))


@transfer("sort topk kthvalue median mode cummax cummin")
def ordered(flow: Flow, node: Node) -> tuple[Value, ...] | Refusal:
    """Entries of an axis by their size, and where they are; other axes pass."""
    value, shapes = flow.value(node.args[0]), [flow.shape(user) for user in node.users]
    shape = next((shape for shape in shapes if shape is not None), None)
    dim = flow.argument(node, "dim", -1)
    if shape is None or len(shape) != len(value.axes) or not isinstance(dim, int):
        return Refusal("its outputs have no noted shape", node)
    at = dim % len(shape)
    flow.pin(value.axes[at], f"{ops.canonical_name(node.target)} runs over all channels", node)
    found = unknown((*value.axes[:at], (Factor(shape[at]),), *value.axes[at + 1 :]))
    return found, found
