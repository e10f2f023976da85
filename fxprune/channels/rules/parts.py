"""Transfer rules of operators that take an axis apart or put one together.

Splits, slices and indices take parts; cat, stack and pad put tensors or numbers beside each other;
shuffles make channels of places and places of channels.
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
    FollowError,
    Ids,
    Value,
    axis_size,
    broadcast,
    known_along,
    split_factor,
    transfer,
    unknown,
    widen,
)
from fxprune.program import VALUE, ops

_MANY = 1024


@transfer(
    "split split_with_sizes chunk unsafe_split unsafe_split_with_sizes unsafe_chunk tensor_split"
)
def split(flow: Flow, node: Node) -> tuple[Value, ...]:
    """Runs of channels, each its own value."""
    value = flow.value(node.args[0])
    dim = flow.dim(node, value, 0)
    sizes = _part_sizes(node, value.shape[dim])
    if sizes is None:
        raise FollowError("its parts have no fixed sizes")
    bounds = np.cumsum([0, *sizes]).tolist()
    pairs = list(pairwise(bounds))
    whole = flow.flat(value, dim, node).atoms
    if whole is not None:
        runs = [whole[a:b] for a, b in pairs]
        flow.edits.append(lambda cut: cut.set_parts(node, dim, runs))
    return tuple(take(flow, node, value, dim, slice(a, b)) for a, b in pairs)


def _part_sizes(node: Node, whole: int) -> list[int] | None:
    given: Any = node.args[1]
    if ops.canonical_name(node.target) == "tensor_split":
        return _sizes_between(given, whole)
    if isinstance(given, (list, tuple)):
        sizes = [size for size in given if isinstance(size, int)]
        return sizes if len(sizes) == len(given) and sum(sizes) == whole else None
    if not isinstance(given, int) or whole >= OPEN:
        return None
    step = given if "split" in ops.canonical_name(node.target) else -(-whole // given)
    return [min(step, whole - start) for start in range(0, whole, step)]


def _sizes_between(given: Any, whole: int) -> list[int] | None:
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
def getitem(flow: Flow, node: Node) -> Value:
    """One of several outputs."""
    source, at = node.args[0], node.args[1]
    found = flow.values.get(source) if isinstance(source, Node) else None
    if isinstance(found, tuple) and isinstance(at, int) and -len(found) <= at < len(found):
        return found[at]
    raise FollowError("it takes one of outputs that are not followed")


@transfer("slice narrow")
def slice_axis(flow: Flow, node: Node) -> Value:
    """A run of indices of one axis."""
    value, shape = flow.value(node.args[0]), flow.noted_shape(node)
    dim = flow.dim(node, value, 0)
    if not any(factor.atoms is not None for factor in value.axes[dim]):
        if value.shape[dim] == shape[dim]:
            return value
        return with_axis_unknown(value, dim, (Factor(shape[dim]),))
    index, whole = _run(flow, node, value.shape[dim]), flow.flat(value, dim, node).atoms
    if whole is None or index is None:
        flow.pin(value.axes[dim], "its bounds are computed", node)
        return with_axis_unknown(value, dim, (Factor(shape[dim]),))
    flow.atoms.visit(whole)
    flow.edits.append(lambda cut: cut.set_slice(node, dim, whole, index))
    return take(flow, node, value, dim, index)


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
def select(flow: Flow, node: Node) -> Value:
    """One index of an axis, which goes."""
    value, at = flow.value(node.args[0]), flow.argument(node, "index")
    dim = flow.dim(node, value, 0)
    if not isinstance(at, int) or not value.axes:
        raise FollowError("its index is computed")
    whole = flow.flat(value, dim, node).atoms
    if whole is not None:
        flow.atoms.visit(whole)
        flow.atoms.pin(whole[[at]], "one channel is selected", node)
        flow.edits.append(lambda cut: cut.set_index(node, whole, at))
    return _take_one(flow, node, value, dim, at)


@transfer("unbind")
def unbind(flow: Flow, node: Node) -> tuple[Value, ...]:
    """Each index of an axis, which goes."""
    value = flow.value(node.args[0])
    dim = flow.dim(node, value, 0)
    if not value.axes or value.shape[dim] > _MANY:
        raise FollowError("it reads an axis of open size one by one")
    flow.pin(value.axes[dim], "its channels are read one by one", node)
    return tuple(_take_one(flow, node, value, dim, at) for at in range(value.shape[dim]))


@transfer("flip fliplr flipud")
def flip(flow: Flow, node: Node) -> Value:
    """The indices of some axes in the other order."""
    value = flow.value(node.args[0])
    fixed = {"fliplr": [1], "flipud": [0]}.get(ops.canonical_name(node.target))
    for dim in fixed or flow.argument(node, "dims"):
        at = int(dim) % len(value.axes)
        value = take(flow, node, value, at, slice(None, None, -1))
    return value


@transfer("roll")
def roll(flow: Flow, node: Node) -> Value:
    """The indices of some axes, turned round: by how many depends on how many there are."""
    value = flow.value(node.args[0])
    dims: Any = flow.argument(node, "dims")
    given = list(range(len(value.axes))) if not dims else [int(d) % len(value.axes) for d in dims]
    for at in given:
        flow.pin(value.axes[at], "it is rolled", node)
        value = with_axis_unknown(value, at, value.axes[at])
    return value


def take(flow: Flow, node: Node, value: Value, dim: int, index: Any) -> Value:
    """Return the part of a value at some indices of an axis: a slice, or an array."""
    axis = value.axes[dim]
    if not any(factor.atoms is not None for factor in axis):
        size = axis_size(axis)
        count = len(range(*index.indices(size))) if isinstance(index, slice) else len(index)
        return Value(value.axes_with(dim, (Factor(count),)), _const_at(value, dim, index))
    part = flow.flat(value, dim, node)
    if part.atoms is None:
        return with_axis_unknown(value, dim, (Factor(axis_size(axis)),))
    ids = part.atoms[index]
    return known_along(value.axes_with(dim, (Factor(ids.size, ids),)), dim, part.spread[index])


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
    axes, own = value.axes_with(dim, axis), value.dims(dim)
    if any(size > 1 for size in own):
        return unknown(axes)
    first, shape = value.first_factor(dim), value.const.shape
    sizes = [*shape[:first], *[1] * len(axis), *shape[first + len(own) :]]
    return Value(axes, value.const.reshape(sizes))


def _take_one(flow: Flow, node: Node, value: Value, dim: int, at: int) -> Value:
    """Return a value at one index of an axis, without that axis."""
    end = at + 1 if at != -1 else None
    part = take(flow, node, value, dim, slice(at, end))
    first = part.first_factor(dim)
    gone = tuple(range(first, first + len(part.axes[dim])))
    return Value(part.axes_with(dim), part.const.squeeze(gone))


@transfer("cat concat concatenate hstack")
def cat(flow: Flow, node: Node) -> Value:
    """Channels one after the other; other axes are tied."""
    reads: list[Any] = list(node.args[0])  # pyright: ignore[reportArgumentType]
    values = [flow.value(read) for read in reads]
    if any(read not in flow.values for read in reads) or not all(value.axes for value in values):
        raise FollowError("it joins what is no tensor")
    second = ops.canonical_name(node.target) == "hstack" and len(values[0].axes) > 1
    dim = flow.dim(node, values[0], int(second))
    others, _ = broadcast(flow, node, [unknown(value.axes_with(dim)) for value in values])
    parts = [flow.flat(value, dim, node) for value in values]
    axes = [*others[:dim], (), *others[dim:]]
    shape = flow.shape(node)
    if all(part.atoms is None for part in parts) or any(part.size >= OPEN for part in parts):
        if shape is None:
            raise FollowError("it joins along an axis of open size")
        for value in values:
            flow.pin(value.axes[dim], "it is joined to what cannot be cut", node)
        axes[dim] = (Factor(shape[dim]),)
        return unknown(axes)
    ids = np.concatenate([_atoms(flow, node, part) for part in parts])
    const = np.concatenate([part.spread for part in parts])
    axes[dim] = (Factor(len(ids), ids),)
    return known_along(axes, dim, const)


def _atoms(flow: Flow, node: Node, part: Flat) -> Ids:
    """Return an atom an index; what cannot be cut gets atoms that stay."""
    if part.atoms is not None:
        return part.atoms
    atoms = flow.atoms.fresh(part.size)
    flow.atoms.pin(atoms, "it cannot be cut", node)
    return atoms


@transfer("stack")
def stack(flow: Flow, node: Node) -> Value:
    """Tensors of one shape along an axis of their own."""
    reads: list[Any] = list(node.args[0])  # pyright: ignore[reportArgumentType]
    if any(read not in flow.values for read in reads):
        raise FollowError("it joins what is no tensor")
    axes, consts = broadcast(flow, node, [flow.value(read) for read in reads])
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
def pad(flow: Flow, node: Node) -> Value:
    """More places around the last axes; a constant stays one where it is padded with itself."""
    value, shape = flow.value(node.args[0]), flow.shape(node)
    pads: Any = flow.argument(node, "pad", flow.argument(node, "padding"))
    if shape is None or not all(isinstance(pad, int) for pad in pads):
        raise FollowError("its padding is computed")
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
            by = fill if fills else None
            value = _pad_axis(flow, node, value, dim, ends, (Factor(shape[dim]),), by)
    return value


def _pad_axis(
    flow: Flow,
    node: Node,
    value: Value,
    dim: int,
    ends: tuple[int, int],
    axis: Axis,
    fill: float | None,
) -> Value:
    """Pad an axis, which becomes another one where it cannot be followed."""
    whole = flow.flat(value, dim, node)
    if whole.atoms is None or fill is None or min(ends) < 0:
        flow.pin(value.axes[dim], "it is padded by others", node)
        return with_axis_unknown(value, dim, axis)
    added = [flow.atoms.fresh(end) for end in ends]
    for atoms in added:
        flow.atoms.pin(atoms, "padding adds it", node)
    ids = np.concatenate([added[0], whole.atoms, added[1]])
    const = np.concatenate([np.full(ends[0], fill), whole.spread, np.full(ends[1], fill)])
    return known_along(value.axes_with(dim, (Factor(len(ids), ids),)), dim, const)


_LOOKED_UP = "any of them may be looked up"
_MASKS = (torch.bool, torch.uint8)


@transfer("index_select")
def index_select(flow: Flow, node: Node) -> Value:
    """Channels at indices of one axis."""
    dim = flow.dim(node, flow.value(node.args[0]))
    return _take_at_indices(flow, node, dim, flow.argument(node, "index"))


@transfer("index")
def index(flow: Flow, node: Node) -> Value:
    """Channels at indices of some axes; constant ones of one axis are followed."""
    where: list[Any] = list(flow.argument(node, "indices"))
    given = [at for at, part in enumerate(where) if part is not None]
    if len(given) != 1:
        return _look_up(flow, node, given, [where[at] for at in given])
    return _take_at_indices(flow, node, given[0], where[given[0]])


def _take_at_indices(flow: Flow, node: Node, dim: int, read: Any) -> Value:
    value, constant = flow.value(node.args[0]), flow.stored.constant(read)
    whole_numbers = constant is not None and not (
        constant.dtype.is_floating_point or constant.dtype.is_complex
    )
    if constant is None or not whole_numbers or constant.dim() != 1 or constant.numel() == 0:
        return _look_up(flow, node, [dim], [read])
    places = constant.cpu().numpy()
    if constant.dtype in _MASKS:
        places = np.flatnonzero(places)
    flow.pin_value(flow.value(read), "its indices are written anew", node)
    whole = flow.flat(value, dim, node).atoms
    if whole is not None:
        flow.atoms.visit(whole)
        flow.edits.append(lambda cut: cut.set_indices(node, read, whole, places))
    return take(flow, node, value, dim, places)


def _look_up(flow: Flow, node: Node, dims: Sequence[int], reads: Sequence[Any]) -> Value:
    """Return what is found at any indices of some axes, which stay; others pass."""
    value, shape = flow.value(node.args[0]), flow.shape(node)
    if shape is None or not dims or any(_is_mask(flow, read) for read in reads):
        raise FollowError("its indices are not known")
    for read in reads:
        flow.pin_value(flow.value(read), _LOOKED_UP, node)
    for dim in dims:
        flow.pin(value.axes[dim], _LOOKED_UP, node)
    rest = _without(value, dims)
    count = len(shape) - len(rest.axes)
    beside = list(dims) == list(range(dims[0], dims[-1] + 1))
    place = dims[0] if beside else 0
    new: list[Axis] = [(Factor(size),) for size in shape[place : place + count]]
    const = widen(rest.const, rest.first_factor(place), count)
    return Value((*rest.axes[:place], *new, *rest.axes[place:]), const)


def _is_mask(flow: Flow, read: Any) -> bool:
    """Tell whether indices are a mask, or may be one."""
    stored = flow.concrete(read)
    noted = (read.meta.get(VALUE) or (None, None))[1] if isinstance(read, Node) else None
    dtype = noted if stored is None else stored.dtype
    return dtype is None or dtype in _MASKS


def _without(value: Value, dims: Sequence[int]) -> Value:
    """Return a value without some axes: a number that is the same along them holds anywhere."""
    axes = tuple(axis for at, axis in enumerate(value.axes) if at not in dims)
    if any(size > 1 for dim in dims for size in value.dims(dim)):
        return unknown(axes)
    sizes = [size for at in range(len(value.axes)) if at not in dims for size in value.dims(at)]
    return Value(axes, value.const.reshape(sizes))


@transfer("gather")
def gather(flow: Flow, node: Node) -> Value:
    """Entries along one axis, at each index of the others its own."""
    value, places = flow.value(node.args[0]), flow.value(flow.argument(node, "index"))
    dim = flow.dim(node, value)
    axes, (const, _) = _tie_others(flow, node, dim, [value, places])
    flow.pin(value.axes[dim], _LOOKED_UP, node)
    const = widen(const, sum(map(len, axes[:dim])), len(places.axes[dim]))
    return Value((*axes[:dim], places.axes[dim], *axes[dim:]), const)


@transfer("scatter scatter_add scatter_reduce")
def scatter(flow: Flow, node: Node) -> Value:
    """Entries are put anywhere along one axis; others pass."""
    reads = [read for read in node.all_input_nodes if not flow.is_number(read)]
    values = [flow.value(read) for read in reads]
    dim = flow.dim(node, values[0])
    axes, consts = _tie_others(flow, node, dim, values)
    for value in values:
        flow.pin(value.axes[dim], "entries are put anywhere along it", node)
    found = unknown((*axes[:dim], values[0].axes[dim], *axes[dim:]))
    if len(consts) != 3:
        return found
    zero = (consts[0] == 0) & (consts[2] == 0)  # what is there, and what is put there
    const = np.where(zero, 0.0, np.nan)
    return Value(found.axes, widen(const, found.first_factor(dim), len(found.axes[dim])))


def _tie_others(
    flow: Flow, node: Node, dim: int, values: Sequence[Value]
) -> tuple[tuple[Axis, ...], list[Array]]:
    """Tie the axes but one of tensors; return them, and what each tensor is along them."""
    if any(len(value.axes) != len(values[0].axes) for value in values) or not values[0].axes:
        raise FollowError("its operands have not the same axes")
    rest = [_without(value, [dim]) for value in values]
    if any(part.shape != rest[0].shape for part in rest):
        raise FollowError("its indices do not cover all of its input")
    return broadcast(flow, node, rest)


@transfer("pixel_shuffle")
def pixel_shuffle(flow: Flow, node: Node) -> Value:
    """Of every r * r channels one image r times as large in each direction."""
    value, shape, each = _image_input(flow, node, "upscale_factor")
    entering = flow.flat(value, 1, node)
    channels = split_factor(flow.atoms, entering.factor, (entering.size // each, each), 0)[0]
    rows = entering.spread.reshape(-1, each)
    const = np.where((rows == rows[:, :1]).all(1), rows[:, 0], np.nan)
    pin_places(flow, node, value, _SHUFFLED)
    return image(value, (channels,), shape, const)


@transfer("pixel_unshuffle")
def pixel_unshuffle(flow: Flow, node: Node) -> Value:
    """Of each channel r * r smaller ones, which go together."""
    value, shape, each = _image_input(flow, node, "downscale_factor")
    entering = flow.flat(value, 1, node)
    pin_places(flow, node, value, _SHUFFLED)
    axis = (entering.factor, Factor(each))
    return image(value, axis, shape, np.repeat(entering.spread, each))


_SHUFFLED = "places become channels, or the other way round"


def _image_input(flow: Flow, node: Node, role: str) -> tuple[Value, tuple[int, ...], int]:
    """Return a batch of images, the result's shape, and how many places become one."""
    value, shape = flow.value(node.args[0]), flow.shape(node)
    if shape is None or len(value.axes) != 4:
        raise FollowError("its input is no batch of images")
    return value, shape, int(flow.argument(node, role)) ** 2


def pin_places(flow: Flow, node: Node, value: Value, reason: str = "places are joined") -> None:
    """Let all places of a batch of images stay."""
    for axis in value.axes[2:]:
        flow.pin(axis, reason, node)


def image(value: Value, axis: Axis, shape: Sequence[int], const: Array) -> Value:
    """Return a batch of images of other channels and places, known along its channels."""
    axes = (value.axes[0], axis, *((Factor(size),) for size in shape[2:]))
    return known_along(axes, 1, const)


@transfer("channel_shuffle native_channel_shuffle")
def channel_shuffle(flow: Flow, node: Node) -> Value:
    """Channels of groups, one of each after the other; the same place goes from all groups."""
    value = flow.value(node.args[0])
    groups = int(flow.argument(node, "groups"))
    if len(value.axes) < 2:
        raise FollowError("its input has no channels")
    entering = flow.flat(value, 1, node)
    parts = (groups, entering.size // groups)
    each = split_factor(flow.atoms, entering.factor, parts, 1)[1]
    const = entering.spread.reshape(parts).T.reshape(-1)
    return known_along(value.axes_with(1, (each, Factor(groups))), 1, const)
