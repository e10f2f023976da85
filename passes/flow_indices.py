"""Transfer rules of operators that look entries up, or put them, at indices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.fx.node import Node

from fxprune.broadcasting import broadcast
from fxprune.factors import Array, Axis, Factor, Value, unknown
from fxprune.flow import Flow, transfer
from fxprune.importing import VALUE
from fxprune.pattern import Refusal

from .flow_parts import taken

_LOOKED_UP = "any of them may be looked up"
_MASKS = (torch.bool, torch.uint8)


@transfer("index_select")
def indexed(flow: Flow, node: Node) -> Value | Refusal:
    """Channels at indices of one axis."""
    dim = int(flow.argument(node, "dim")) % max(len(flow.value(node.args[0]).axes), 1)
    return _at_indices(flow, node, dim, flow.argument(node, "index"))


@transfer("index")
def advanced(flow: Flow, node: Node) -> Value | Refusal:
    """Channels at indices of some axes; constant ones of one axis are followed."""
    where: list[Any] = list(flow.argument(node, "indices"))
    given = [at for at, part in enumerate(where) if part is not None]
    if len(given) != 1:
        return _looked_up(flow, node, given, [where[at] for at in given])
    return _at_indices(flow, node, given[0], where[given[0]])


def _at_indices(flow: Flow, node: Node, dim: int, read: Any) -> Value | Refusal:
    value, index = flow.value(node.args[0]), flow.stored.constant(read)
    plain = index is not None and index.dim() == 1 and index.numel() > 0
    if index is None or not plain or index.dtype.is_floating_point or index.dtype.is_complex:
        return _looked_up(flow, node, [dim], [read])
    places = index.cpu().numpy()
    if index.dtype in _MASKS:
        places = np.flatnonzero(places)
    flow.pin_value(flow.value(read), "its indices are written anew", node)
    whole = flow.flat(value, dim, node).atoms
    if whole is not None:
        flow.atoms.met(whole)
        flow.edits.append(lambda cut: cut.set_indices(node, read, whole, places))
    return taken(flow, node, value, dim, places)


def _looked_up(
    flow: Flow, node: Node, dims: Sequence[int], reads: Sequence[Any]
) -> Value | Refusal:
    """Return what is found at any indices of some axes, which stay; others pass."""
    value, shape = flow.value(node.args[0]), flow.shape(node)
    if shape is None or not dims or any(_is_mask(flow, read) for read in reads):
        return Refusal("its indices are not known", node)
    for read in reads:
        flow.pin_value(flow.value(read), _LOOKED_UP, node)
    for dim in dims:
        flow.pin(value.axes[dim], _LOOKED_UP, node)
    rest = _without(value, dims)
    count = len(shape) - len(rest.axes)
    beside = list(dims) == list(range(dims[0], dims[-1] + 1))
    place = dims[0] if beside else 0
    made: list[Axis] = [(Factor(size),) for size in shape[place : place + count]]
    const = _widened(rest.const, rest.first_factor(place), count)
    return Value((*rest.axes[:place], *made, *rest.axes[place:]), const)


def _widened(const: Array, place: int, count: int) -> Array:
    """Return constants with new dimensions, along which they are the same."""
    return const.reshape([*const.shape[:place], *[1] * count, *const.shape[place:]])


def _is_mask(flow: Flow, read: Any) -> bool:
    """Tell whether indices are a mask, or may be one."""
    stored = flow.concrete(read)
    noted = (read.meta.get(VALUE) or (None, None))[1] if isinstance(read, Node) else None
    dtype = noted if stored is None else stored.dtype
    return dtype is None or dtype in _MASKS


def _without(value: Value, dims: Sequence[int]) -> Value:
    """Return a value without some axes: a number that is the same along them holds anywhere."""
    axes = tuple(axis for at, axis in enumerate(value.axes) if at not in dims)
    sizes: list[int] = []
    for at, axis in enumerate(value.axes):
        first = value.first_factor(at)
        own = value.const.shape[first : first + len(axis)]
        if at not in dims:
            sizes += own
        elif any(size > 1 for size in own):
            return unknown(axes)
    return Value(axes, value.const.reshape(sizes))


@transfer("gather")
def gathered(flow: Flow, node: Node) -> Value | Refusal:
    """Entries along one axis, at each index of the others its own."""
    value, index = flow.value(node.args[0]), flow.value(flow.argument(node, "index"))
    dim = int(flow.argument(node, "dim")) % max(len(value.axes), 1)
    others = _others(flow, node, dim, [value, index])
    if isinstance(others, Refusal):
        return others
    axes, (const, _) = others
    flow.pin(value.axes[dim], _LOOKED_UP, node)
    const = _widened(const, sum(map(len, axes[:dim])), len(index.axes[dim]))
    return Value((*axes[:dim], index.axes[dim], *axes[dim:]), const)


@transfer("scatter scatter_add scatter_reduce")
def scattered(flow: Flow, node: Node) -> Value | Refusal:
    """Entries are put anywhere along one axis; others pass."""
    reads = [read for read in node.all_input_nodes if not flow.is_number(read)]
    values = [flow.value(read) for read in reads]
    dim = int(flow.argument(node, "dim")) % max(len(values[0].axes), 1)
    others = _others(flow, node, dim, values)
    if isinstance(others, Refusal):
        return others
    for value in values:
        flow.pin(value.axes[dim], "entries are put anywhere along it", node)
    axes, consts = others
    found = unknown((*axes[:dim], values[0].axes[dim], *axes[dim:]))
    if len(consts) != 3:
        return found
    zero = (consts[0] == 0) & (consts[2] == 0)  # what is there, and what is put there
    const = np.where(zero, 0.0, np.nan)
    return Value(found.axes, _widened(const, found.first_factor(dim), len(found.axes[dim])))


def _others(flow: Flow, node: Node, dim: int, values: Sequence[Value]) -> Any:
    """Tie the axes but one of tensors; return them, and what each tensor is along them."""
    if any(len(value.axes) != len(values[0].axes) for value in values) or not values[0].axes:
        return Refusal("its operands have not the same axes", node)
    rest = [_without(value, [dim]) for value in values]
    if any(part.shape != rest[0].shape for part in rest):
        return Refusal("its indices do not cover all of its input", node)
    return broadcast(flow, node, rest)
