"""Transfer rules of operators that take parts of an axis: splits, slices, indices."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
from torch.fx.node import Node

from fxprune import ops
from fxprune.factors import Array, Axis, Factor, Value, sizes_of, with_axis
from fxprune.flow import Flow, transfer
from fxprune.pattern import Refusal
from fxprune.sizes import OPEN

_MANY = 1024


@transfer(
    "split split_with_sizes chunk unsafe_split unsafe_split_with_sizes unsafe_chunk tensor_split"
)
def parted(flow: Flow, node: Node) -> tuple[Value, ...] | Refusal:
    """Runs of channels, each its own value."""
    value = flow.value(node.args[0])
    dim = int(flow.argument(node, "dim", 0)) % max(len(value.axes), 1)
    sizes = _part_sizes(flow, node, value.shape[dim])
    if sizes is None:
        return Refusal("its parts have no fixed sizes", node)
    bounds = np.cumsum([0, *sizes]).tolist()
    pairs = list(pairwise(bounds))
    whole = flow.flat(value, dim, node).atoms
    if whole is not None:
        runs = [whole[a:b] for a, b in pairs]
        flow.edits.append(lambda cut: cut.set_parts(node, dim, runs))
    return tuple(taken(flow, node, value, dim, slice(a, b)) for a, b in pairs)


def _part_sizes(flow: Flow, node: Node, whole: int) -> list[int] | None:
    given: Any = node.args[1]
    if ops.canonical_name(node.target) == "tensor_split":
        return _between(given, whole)
    if isinstance(given, (list, tuple)):
        sizes = [size for size in given if isinstance(size, int)]
        return sizes if len(sizes) == len(given) and sum(sizes) == whole else None
    if not isinstance(given, int) or whole >= OPEN:
        return None
    step = given if "split" in ops.canonical_name(node.target) else -(-whole // given)
    return [min(step, whole - start) for start in range(0, whole, step)]


def _between(given: Any, whole: int) -> list[int] | None:
    """Return sizes of parts by their number, the first ones larger, or by where they begin."""
    if whole >= OPEN:
        return None
    if isinstance(given, int):
        return [len(part) for part in np.array_split(np.arange(whole), given)]
    if not isinstance(given, (list, tuple)) or not all(isinstance(at, int) for at in given):
        return None
    sizes = [len(part) for part in np.split(np.arange(whole), list(given))]
    return sizes if sum(sizes) == whole and min(sizes) > 0 else None


@transfer("getitem")
def item(flow: Flow, node: Node) -> Value | Refusal:
    """One of several outputs."""
    source, at = node.args[0], node.args[1]
    found = flow.values.get(source) if isinstance(source, Node) else None
    if not isinstance(found, tuple) or not isinstance(at, int):
        return Refusal("it takes one of outputs that are not followed", node)
    if not -len(found) <= at < len(found):
        return Refusal("it takes one of outputs that are not followed", node)
    return found[at]


@transfer("slice narrow")
def sliced(flow: Flow, node: Node) -> Value | Refusal:
    """A run of indices of one axis."""
    value, shape = flow.value(node.args[0]), flow.shape(node)
    dim = int(flow.argument(node, "dim", 0)) % max(len(value.axes), 1)
    if shape is None:
        return Refusal("its output has no noted shape", node)
    if not any(factor.atoms is not None for factor in value.axes[dim]):
        if value.shape[dim] == shape[dim]:
            return value
        return with_axis_unknown(value, dim, (Factor(shape[dim]),))
    index, whole = _run(flow, node, value.shape[dim]), flow.flat(value, dim, node).atoms
    if whole is None or index is None:
        flow.pin(value.axes[dim], "its bounds are computed", node)
        return with_axis_unknown(value, dim, (Factor(shape[dim]),))
    flow.atoms.met(whole)
    flow.edits.append(lambda cut: cut.set_slice(node, dim, whole, index))
    return taken(flow, node, value, dim, index)


def _run(flow: Flow, node: Node, size: int) -> slice | None:
    """Return which indices a slice takes; None where they are computed."""
    if ops.canonical_name(node.target) == "slice":
        bounds = [flow.argument(node, role) for role in ("start", "end", "step")]
        return slice(*bounds) if all(b is None or isinstance(b, int) for b in bounds) else None
    start, length = flow.argument(node, "start"), flow.argument(node, "length")
    if not isinstance(start, int) or not isinstance(length, int):
        return None
    return slice(start % max(size, 1), start % max(size, 1) + length)


@transfer("select")
def selected(flow: Flow, node: Node) -> Value | Refusal:
    """One index of an axis, which goes."""
    value, at = flow.value(node.args[0]), flow.argument(node, "index")
    dim = int(flow.argument(node, "dim", 0)) % max(len(value.axes), 1)
    if not isinstance(at, int) or not value.axes:
        return Refusal("its index is computed", node)
    whole = flow.flat(value, dim, node).atoms
    if whole is not None:
        flow.atoms.met(whole)
        flow.atoms.pin(whole[[at]], "one channel is selected", node)
        flow.edits.append(lambda cut: cut.set_index(node, whole, at))
    return _at(flow, node, value, dim, at)


@transfer("unbind")
def unbound(flow: Flow, node: Node) -> tuple[Value, ...] | Refusal:
    """Each index of an axis, which goes."""
    value = flow.value(node.args[0])
    dim = int(flow.argument(node, "dim", 0)) % max(len(value.axes), 1)
    if not value.axes or value.shape[dim] > _MANY:
        return Refusal("it reads an axis of open size one by one", node)
    flow.pin(value.axes[dim], "its channels are read one by one", node)
    return tuple(_at(flow, node, value, dim, at) for at in range(value.shape[dim]))


@transfer("flip fliplr flipud")
def flipped(flow: Flow, node: Node) -> Value | Refusal:
    """The indices of some axes in the other order."""
    value = flow.value(node.args[0])
    fixed = {"fliplr": [1], "flipud": [0]}.get(ops.canonical_name(node.target))
    for dim in fixed or flow.argument(node, "dims"):
        at = int(dim) % len(value.axes)
        value = taken(flow, node, value, at, slice(None, None, -1))
    return value


@transfer("roll")
def rolled(flow: Flow, node: Node) -> Value | Refusal:
    """The indices of some axes, turned round: by how many depends on how many there are."""
    value = flow.value(node.args[0])
    dims: Any = flow.argument(node, "dims")
    given = list(range(len(value.axes))) if not dims else [int(d) % len(value.axes) for d in dims]
    for at in given:
        flow.pin(value.axes[at], "it is rolled", node)
        value = with_axis_unknown(value, at, value.axes[at])
    return value


def taken(flow: Flow, node: Node, value: Value, dim: int, index: Any) -> Value:
    """Return the part of a value at some indices of an axis.

    Args:
        flow: whose value it is.
        node: for whom.
        value: the value.
        dim: which axis.
        index: a slice, or an array of indices.
    """
    axis = value.axes[dim]
    if not any(factor.atoms is not None for factor in axis):
        size = sizes_of(axis)
        count = len(range(*index.indices(size))) if isinstance(index, slice) else len(index)
        return Value(_with(value, dim, (Factor(count),)), _const_at(value, dim, index))
    part = flow.flat(value, dim, node)
    if part.atoms is None:
        return with_axis_unknown(value, dim, (Factor(sizes_of(axis)),))
    return with_axis(
        value, dim, (Factor(part.atoms[index].size, part.atoms[index]),), part.spread[index]
    )


def _with(value: Value, dim: int, axis: Axis) -> tuple[Axis, ...]:
    return (*value.axes[:dim], axis, *value.axes[dim + 1 :])


def _const_at(value: Value, dim: int, index: Any) -> Array:
    """Return const at some indices of an axis, which becomes one factor."""
    first, count = value.first_factor(dim), len(value.axes[dim])
    before, own, after = np.split(np.array(value.const.shape, dtype=int), [first, first + count])
    if (own == 1).all():
        return value.const.reshape([*before, 1, *after])
    sizes = [factor.size for factor in value.axes[dim]]
    cells = np.broadcast_to(value.const, [*before, *sizes, *after])
    return cells.reshape([*before, -1, *after])[(slice(None),) * first + (index,)]


def with_axis_unknown(value: Value, dim: int, axis: Axis) -> Value:
    """Return a value with another axis that nothing may be cut of; where it varied, unknown."""
    first = value.first_factor(dim)
    shape = value.const.shape
    varied = any(size > 1 for size in shape[first : first + len(value.axes[dim])])
    axes = _with(value, dim, axis)
    if varied:
        return Value(axes, np.full([1] * sum(map(len, axes)), np.nan))
    sizes = [*shape[:first], *[1] * len(axis), *shape[first + len(value.axes[dim]) :]]
    return Value(axes, value.const.reshape(sizes))


def _at(flow: Flow, node: Node, value: Value, dim: int, at: int) -> Value:
    """Return a value at one index of an axis, without that axis."""
    end = at + 1 if at != -1 else None
    part = taken(flow, node, value, dim, slice(at, end))
    first = part.first_factor(dim)
    shape = part.const.shape
    sizes = [*shape[:first], *shape[first + len(part.axes[dim]) :]]
    return Value((*part.axes[:dim], *part.axes[dim + 1 :]), part.const.reshape(sizes))
