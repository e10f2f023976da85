"""Transfer rules of reductions and softmax."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from torch.fx.node import Node

from fxprune.channels import Array, Axis, Factor, Flow, Value, broadcast, transfer, unknown
from fxprune.channels.rules.pointwise import binary
from fxprune.program import ops
from fxprune.rewrite import Refusal


@transfer(
    "mean sum amax amin var std logsumexp linalg_vector_norm norm prod all any nansum argmax argmin"
)
def reduced(flow: Flow, node: Node) -> Value | Refusal:
    """Channels of the axes that are joined stay unless they add nothing, those of others pass."""
    value = flow.value(node.args[0])
    gone = _joined(flow, node, len(value.axes))
    if flow.shape(node) is None:
        return Refusal("it has several outputs", node)
    for at in gone:
        _join(flow, node, value, at)
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
    if settled:
        return Value(tuple(axes), _after(flow, node, value.const.reshape(sizes)))
    if not _adds_up(flow, node):
        return unknown(axes)
    dims = [value.first_factor(at) + i for at in gone for i in range(len(value.axes[at]))]
    zero = (value.const == 0).all(axis=tuple(dims)).reshape(sizes)
    return Value(tuple(axes), np.where(zero, 0.0, np.nan))


def _join(flow: Flow, node: Node, value: Value, axis: int) -> None:
    """Let the channels of an axis stay that count in what it is joined to: in a sum, 0 does not."""
    if not _adds_up(flow, node) or all(factor.atoms is None for factor in value.axes[axis]):
        flow.pin(value.axes[axis], "all channels are joined", node)
        return
    _add_up(flow, node, value, axis)


def _add_up(flow: Flow, node: Node, value: Value, axis: int) -> None:
    """Let the channels of an axis that are not 0 stay: they count in a sum over it."""
    part = flow.flat(value, axis, node)
    if part.atoms is not None:
        flow.atoms.met(part.atoms)
        flow.atoms.pin(part.atoms[part.spread != 0], "all channels are joined", node)


def _adds_up(flow: Flow, node: Node) -> bool:
    """Tell whether zeros may be left out: of a sum, or a norm of a positive order."""
    name = ops.canonical_name(node.target)
    if name == "linalg_vector_norm":
        order = flow.argument(node, "ord", 2)
    elif name == "norm":
        order = flow.argument(node, "p", 2)
    else:
        return name in ("sum", "nansum")
    order = 2 if order is None else order
    return isinstance(order, (int, float)) and 0 < order <= math.inf


def _joined(flow: Flow, node: Node, rank: int) -> set[int]:
    dims: Any = flow.argument(node, "dim", None)
    if dims is None or dims == []:
        return set(range(rank))
    given = dims if isinstance(dims, (list, tuple)) else [dims]
    return {int(dim) % max(rank, 1) for dim in given}


def _after(flow: Flow, node: Node, const: Array) -> Array:
    name = ops.canonical_name(node.target)
    if name in ("mean", "amax", "amin"):
        return const
    found = np.full_like(const, np.nan)
    if _adds_up(flow, node):
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


@transfer("diff")
def stepped(flow: Flow, node: Node) -> Value | Refusal:
    """Along its axis each entry is held to the next; others pass."""
    value, shape = flow.value(node.args[0]), flow.shape(node)
    if not value.axes or shape is None or len(node.all_input_nodes) > 1:
        return Refusal("it is handed several tensors", node)
    at = int(flow.argument(node, "dim", -1)) % len(value.axes)
    flow.pin(value.axes[at], "all channels are joined", node)
    return unknown((*value.axes[:at], (Factor(shape[at]),), *value.axes[at + 1 :]))


@transfer("cosine_similarity")
def alike(flow: Flow, node: Node) -> Value | Refusal:
    """An axis of two tensors is summed over: what is 0 in both adds nothing, others pass."""
    found = broadcast(flow, node, [flow.value(arg) for arg in node.args[:2]])
    if isinstance(found, Refusal):
        return found
    axes, consts = found
    dim = int(flow.argument(node, "dim", 1)) % max(len(axes), 1)
    shape = np.broadcast_shapes(*(const.shape for const in consts))
    zero = np.broadcast_to((consts[0] == 0) & (consts[1] == 0), shape)
    _add_up(flow, node, Value(axes, np.where(zero, 0.0, np.nan)), dim)
    return unknown([axis for at, axis in enumerate(axes) if at != dim])


@transfer("triu tril")
def triangle(flow: Flow, node: Node) -> Value | Refusal:
    """Which entries of a matrix are kept goes by their places; what lies before passes."""
    value = flow.value(node.args[0])
    for axis in value.axes[-2:]:
        flow.pin(axis, "its entries are told apart by their places", node)
    return Value(value.axes, np.where(value.const == 0, 0.0, np.nan))


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
