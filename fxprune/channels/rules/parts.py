"""Transfer rules of operators that take parts of an axis: splits, slices, indices.

Transfer rules of operators that put tensors beside each other, or numbers around one.

Transfer rules of operators that look entries up, or put them, at indices.

Transfer rules of shuffles: places become channels, channels places, or change theirs.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch.fx.node import Node

from fxprune.channels import (
    OPEN,
    Array,
    Axis,
    Factor,
    Flat,
    Flow,
    Ids,
    Value,
    broadcast,
    sizes_of,
    split_factor,
    transfer,
    unknown,
    with_axis,
)
from fxprune.program import VALUE, ops
from fxprune.rewrite import Refusal

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


@transfer("cat concat concatenate hstack")
def joined(flow: Flow, node: Node) -> Value | Refusal:
    """Channels one after the other; other axes are tied."""
    reads: list[Any] = list(node.args[0])  # pyright: ignore[reportArgumentType]
    values = [flow.value(read) for read in reads]
    if any(read not in flow.values for read in reads) or not all(value.axes for value in values):
        return Refusal("it joins what is no tensor", node)
    beside = int(ops.canonical_name(node.target) == "hstack" and len(values[0].axes) > 1)
    dim = int(flow.argument(node, "dim", beside)) % len(values[0].axes)
    others = broadcast(flow, node, [_without_axis(value, dim) for value in values])
    if isinstance(others, Refusal):
        return others
    parts = [flow.flat(value, dim, node) for value in values]
    axes = [*others[0][:dim], (), *others[0][dim:]]
    shape = flow.shape(node)
    if all(part.atoms is None for part in parts) or any(part.size >= OPEN for part in parts):
        if shape is None:
            return Refusal("it joins along an axis of open size", node)
        for value in values:
            flow.pin(value.axes[dim], "it is joined to what cannot be cut", node)
        axes[dim] = (Factor(shape[dim]),)
        return unknown(axes)
    ids = np.concatenate([_atoms(flow, node, part) for part in parts])
    const = np.concatenate([part.spread for part in parts])
    axes[dim] = (Factor(len(ids), ids),)
    return with_axis(unknown(axes), dim, axes[dim], const)


def _atoms(flow: Flow, node: Node, part: Flat) -> Ids:
    """Return an atom an index; what cannot be cut gets atoms that stay."""
    if part.atoms is not None:
        return part.atoms
    atoms = flow.atoms.fresh(part.size)
    flow.atoms.pin(atoms, "it cannot be cut", node)
    return atoms


def _without_axis(value: Value, dim: int) -> Value:
    return unknown([axis for at, axis in enumerate(value.axes) if at != dim])


@transfer("stack")
def stacked(flow: Flow, node: Node) -> Value | Refusal:
    """Tensors of one shape along an axis of their own."""
    reads: list[Any] = list(node.args[0])  # pyright: ignore[reportArgumentType]
    if any(read not in flow.values for read in reads):
        return Refusal("it joins what is no tensor", node)
    found = broadcast(flow, node, [flow.value(read) for read in reads])
    if isinstance(found, Refusal):
        return found
    axes, consts = found
    dim = int(flow.argument(node, "dim", 0)) % (len(axes) + 1)
    place = sum(map(len, axes[:dim]))
    const = np.stack(np.broadcast_arrays(*consts), place)
    first = const.take([0], place)
    same = np.array_equal(np.broadcast_to(first, const.shape), const, equal_nan=True)
    return Value((*axes[:dim], (Factor(len(reads)),), *axes[dim:]), first if same else const)


@transfer(
    "pad constant_pad_nd reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d "
    "replication_pad2d replication_pad3d"
)
def padded(flow: Flow, node: Node) -> Value | Refusal:
    """More places around the last axes; a constant stays one where it is padded with itself."""
    value, shape = flow.value(node.args[0]), flow.shape(node)
    pads: Any = flow.argument(node, "pad", flow.argument(node, "padding"))
    if shape is None or not all(isinstance(pad, int) for pad in pads):
        return Refusal("its padding is computed", node)
    plain = ops.canonical_name(node.target) in ("pad", "constant_pad_nd")
    fills = plain and flow.argument(node, "mode", "constant") == "constant"
    given = flow.argument(node, "value", None)
    fill = float(given) if isinstance(given, (int, float)) else 0.0
    if fills and (given is None or isinstance(given, (int, float))):
        value = Value(value.axes, np.where(value.const == fill, fill, np.nan))
    elif fills:
        value = unknown(value.axes)
    for at in range(len(pads) // 2):
        dim, ends = len(value.axes) - 1 - at, (pads[2 * at], pads[2 * at + 1])
        if ends != (0, 0):
            value = _padded_axis(flow, node, value, dim, ends, shape[dim], fill if fills else None)
    return value


def _padded_axis(
    flow: Flow,
    node: Node,
    value: Value,
    dim: int,
    ends: tuple[int, int],
    size: int,
    fill: float | None,
) -> Value:
    axis: Axis = (Factor(size),)
    whole = flow.flat(value, dim, node)
    if whole.atoms is None or fill is None or min(ends) < 0:
        flow.pin(value.axes[dim], "it is padded by others", node)
        return with_axis_unknown(value, dim, axis)
    added = [flow.atoms.fresh(end) for end in ends]
    for atoms in added:
        flow.atoms.pin(atoms, "padding adds it", node)
    ids = np.concatenate([added[0], whole.atoms, added[1]])
    const = np.concatenate([np.full(ends[0], fill), whole.spread, np.full(ends[1], fill)])
    return with_axis(value, dim, (Factor(len(ids), ids),), const)


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


@transfer("pixel_shuffle")
def spread_out(flow: Flow, node: Node) -> Value | Refusal:
    """Of every r * r channels one image r times as large in each direction."""
    value, shape = flow.value(node.args[0]), flow.shape(node)
    if shape is None or len(value.axes) != 4:
        return Refusal("its input is no batch of images", node)
    each = int(flow.argument(node, "upscale_factor")) ** 2
    entering = flow.flat(value, 1, node)
    channels = split_factor(flow.atoms, entering.factor, (entering.size // each, each), 0)[0]
    rows = entering.spread.reshape(-1, each)
    const = np.where((rows == rows[:, :1]).all(1), rows[:, 0], np.nan)
    return _image(flow, node, value, (channels,), shape, const)


@transfer("pixel_unshuffle")
def shuffle(flow: Flow, node: Node) -> Value | Refusal:
    """Of each channel r * r smaller ones, which go together."""
    value, shape = flow.value(node.args[0]), flow.shape(node)
    if shape is None or len(value.axes) != 4:
        return Refusal("its input is no batch of images", node)
    each = int(flow.argument(node, "downscale_factor")) ** 2
    entering = flow.flat(value, 1, node)
    const = np.repeat(entering.spread, each)
    return _image(flow, node, value, (entering.factor, Factor(each)), shape, const)


def _image(
    flow: Flow,
    node: Node,
    value: Value,
    axis: tuple[Factor, ...],
    shape: tuple[int, ...],
    const: np.ndarray,
) -> Value:
    for place in value.axes[2:]:
        flow.pin(place, "places become channels, or the other way round", node)
    axes = (value.axes[0], axis, (Factor(shape[2]),), (Factor(shape[3]),))
    return with_axis(unknown(axes), 1, axis, const)


@transfer("channel_shuffle native_channel_shuffle")
def interleaved(flow: Flow, node: Node) -> Value | Refusal:
    """Channels of groups, one of each after the other; the same place goes from all groups."""
    value = flow.value(node.args[0])
    groups = int(flow.argument(node, "groups"))
    if len(value.axes) < 2:
        return Refusal("its input has no channels", node)
    entering = flow.flat(value, 1, node)
    parts = (groups, entering.size // groups)
    each = split_factor(flow.atoms, entering.factor, parts, 1)[1]
    const = entering.spread.reshape(parts).T.reshape(-1)
    return with_axis(unknown(value.axes), 1, (each, Factor(groups)), const)
