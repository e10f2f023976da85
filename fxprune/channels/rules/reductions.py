"""Transfer rules of reductions, softmax and sorting: what runs over an axis."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from torch.fx.node import Node

from fxprune.channels import (
    Array,
    Axis,
    Factor,
    Flow,
    FollowError,
    Value,
    broadcast,
    transfer,
    unknown,
)
from fxprune.channels.rules.pointwise import binary
from fxprune.program import ops

_JOINED = "all channels are joined"


@transfer(
    "mean sum amax amin var std logsumexp linalg_vector_norm norm prod all any nansum argmax argmin"
)
def reduction(flow: Flow, node: Node) -> Value:
    """Channels of the axes that are joined stay unless they add nothing, those of others pass."""
    value = flow.value(node.args[0])
    gone = _joined_axes(flow, node, len(value.axes))
    if flow.shape(node) is None:
        raise FollowError("it has several outputs")
    for at in gone:
        if _adds_up(flow, node) and any(factor.atoms is not None for factor in value.axes[at]):
            _add_up(flow, node, value, at)
        else:
            flow.pin(value.axes[at], _JOINED, node)
    keep = bool(flow.argument(node, "keepdim", False))
    rest = [at for at in range(len(value.axes)) if keep or at not in gone]
    axes: list[Axis] = [(Factor(1),) if at in gone else value.axes[at] for at in rest]
    sizes = [size for at in rest for size in ((1,) if at in gone else value.dims(at))]
    if all(size == 1 for at in gone for size in value.dims(at)):
        return Value(tuple(axes), _reduce_constant(flow, node, value.const.reshape(sizes)))
    if not _adds_up(flow, node):
        return unknown(axes)
    dims = [value.first_factor(at) + i for at in gone for i in range(len(value.axes[at]))]
    zero = (value.const == 0).all(axis=tuple(dims)).reshape(sizes)
    return Value(tuple(axes), np.where(zero, 0.0, np.nan))


def _joined_axes(flow: Flow, node: Node, rank: int) -> set[int]:
    dims: Any = flow.argument(node, "dim", None)
    if dims is None or dims == []:
        return set(range(rank))
    given = dims if isinstance(dims, (list, tuple)) else [dims]
    return {int(dim) % max(rank, 1) for dim in given}


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


def _add_up(flow: Flow, node: Node, value: Value, axis: int) -> None:
    """Let the channels of an axis that are not 0 stay: they count in a sum over it."""
    part = flow.flat(value, axis, node)
    if part.atoms is not None:
        flow.atoms.visit(part.atoms)
        flow.atoms.pin(part.atoms[part.spread != 0], _JOINED, node)


def _reduce_constant(flow: Flow, node: Node, const: Array) -> Array:
    """Return what is made of channels that are all one constant."""
    if ops.canonical_name(node.target) in ("mean", "amax", "amin"):
        return const
    return np.where((const == 0) & _adds_up(flow, node), 0.0, np.nan)


@transfer("max min")
def extreme(flow: Flow, node: Node) -> Value | tuple[Value, ...] | None:
    """The largest entry of all, or along an axis, with its place; of two tensors, the larger."""
    if len(node.all_input_nodes) != 1 or (len(node.args) > 1 and not isinstance(node.args[1], int)):
        return binary(flow, node)
    value = flow.value(node.all_input_nodes[0])
    if len(node.args) == 1 and not node.kwargs:
        flow.pin_value(value, _JOINED, node)
        return unknown(())
    at = flow.dim(node, value)
    flow.pin(value.axes[at], _JOINED, node)
    keep: tuple[Axis, ...] = ((Factor(1),),) if flow.argument(node, "keepdim", False) else ()
    found = unknown(value.axes_with(at, *keep))
    return found, found


@transfer("softmax _softmax log_softmax _log_softmax cumsum cumprod logcumsumexp softmin")
def softmax(flow: Flow, node: Node) -> Value:
    """Along its axis all entries count; others pass."""
    value = flow.value(node.args[0])
    if not value.axes or flow.shape(node) is None:
        raise FollowError("its input is no tensor with axes")
    axis = value.axes[flow.dim(node, value)]
    flow.pin(axis, f"{ops.canonical_name(node.target)} runs over all channels", node)
    return unknown(value.axes)


@transfer("diff")
def diff(flow: Flow, node: Node) -> Value:
    """Along its axis each entry is held to the next; others pass."""
    value, shape = flow.value(node.args[0]), flow.shape(node)
    if not value.axes or shape is None or len(node.all_input_nodes) > 1:
        raise FollowError("it is handed several tensors")
    at = flow.dim(node, value, -1)
    flow.pin(value.axes[at], _JOINED, node)
    return unknown(value.axes_with(at, (Factor(shape[at]),)))


@transfer("cosine_similarity")
def cosine_similarity(flow: Flow, node: Node) -> Value:
    """An axis of two tensors is summed over: what is 0 in both adds nothing, others pass."""
    axes, (left, right) = broadcast(flow, node, [flow.value(arg) for arg in node.args[:2]])
    both = Value(axes, np.where((left == 0) & (right == 0), 0.0, np.nan))
    dim = flow.dim(node, both, 1)
    _add_up(flow, node, both, dim)
    return unknown(both.axes_with(dim))


@transfer("triu tril")
def triangle(flow: Flow, node: Node) -> Value:
    """Which entries of a matrix are kept goes by their places; what lies before passes."""
    value = flow.value(node.args[0])
    for axis in value.axes[-2:]:
        flow.pin(axis, "its entries are told apart by their places", node)
    return Value(value.axes, np.where(value.const == 0, 0.0, np.nan))


@transfer("sort topk kthvalue median mode cummax cummin")
def sort(flow: Flow, node: Node) -> tuple[Value, ...]:
    """Entries of an axis by their size, and where they are; other axes pass."""
    value, shapes = flow.value(node.args[0]), [flow.shape(user) for user in node.users]
    shape = next((shape for shape in shapes if shape is not None), None)
    dim = flow.argument(node, "dim", -1)
    if shape is None or len(shape) != len(value.axes) or not isinstance(dim, int):
        raise FollowError("its outputs have no noted shape")
    at = dim % len(shape)
    flow.pin(value.axes[at], f"{ops.canonical_name(node.target)} runs over all channels", node)
    found = unknown(value.axes_with(at, (Factor(shape[at]),)))
    return found, found
