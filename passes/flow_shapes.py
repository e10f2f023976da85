"""Transfer rules of operators that move entries: views, permutations, joins and parts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch.fx.node import Node

from fxprune import ops
from fxprune.factors import Array, Axis, Factor, Ids, Value, sizes_of, unknown
from fxprune.flow import Flow, transfer
from fxprune.passes.flow_pointwise import broadcast
from fxprune.pattern import Refusal
from fxprune.regroup import Choice, reshape


@transfer(
    "view | reshape | flatten | unflatten | _unsafe_view | view_as | reshape_as | squeeze | unsqueeze"
)
def viewed(flow: Flow, node: Node) -> Value | Refusal:
    """The same factors in other axes."""
    value, shape = flow.value(node.args[0]), flow.shape(node)
    if shape is None:
        shape = _shape_of_unsqueeze(flow, node, value)
    if shape is None:
        return Refusal("its output has no noted shape", node)
    found = reshape(flow.atoms, value, shape, lambda axis, count: _choice(flow, node, axis))
    if found is None:
        return Refusal("it takes channels apart in a way that cannot be followed", node)
    if ops.has_role(node, "size") or ops.has_role(node, "shape") or ops.has_role(node, "sizes"):
        flow.edits.append(lambda cut: cut.set_sizes(node, value, found))
    return found


def _shape_of_unsqueeze(flow: Flow, node: Node, value: Value) -> tuple[int, ...] | None:
    if ops.canonical_name(node.target) != "unsqueeze":
        return None
    at = int(flow.argument(node, "dim")) % (len(value.axes) + 1)
    return (*value.shape[:at], 1, *value.shape[at:])


def _choice(flow: Flow, node: Node, axis: int) -> Choice:
    """Choose which part of a split factor stays cuttable: the first that is not taken apart.

    (heads, size) keeps heads; (3, heads, size), of which the 3 are selected one by one, heads, too.
    """

    def choose(parts: tuple[int, ...]) -> int:
        for at in range(len(parts)):
            if parts[at] > 1 and not _is_taken_apart(flow, node, axis + at):
                return at
        return 0

    return choose


_MOVES = frozenset({"permute", "transpose", "unsqueeze", "squeeze", "contiguous", "clone"})
_PARTS = frozenset({"select", "unbind", "split", "chunk", "split_with_sizes", "getitem"})


def _is_taken_apart(flow: Flow, node: Node, axis: int) -> bool:
    """Tell whether an axis of a view is read index by index."""
    rank = len(flow.shape(node) or ())
    for user in node.users:
        if user.op != "call_function":
            continue
        name = ops.canonical_name(user.target)
        if name in _PARTS and ops.has_role(user, "dim"):
            if int(flow.argument(user, "dim")) % max(rank, 1) == axis:
                return True
        elif name in _MOVES:
            moved = _moved(flow, user, axis, rank)
            if moved is not None and _is_taken_apart(flow, user, moved):
                return True
    return False


def _moved(flow: Flow, node: Node, axis: int, rank: int) -> int | None:
    """Return where an axis is after a permutation, an unsqueeze or a squeeze."""
    name = ops.canonical_name(node.target)
    if name == "unsqueeze":
        at = int(flow.argument(node, "dim")) % (rank + 1)
        return axis + (axis >= at)
    if name == "squeeze":
        dims = node.args[1] if len(node.args) > 1 else None
        if dims is None:
            return None
        gone = {int(d) % rank for d in (dims if isinstance(dims, (list, tuple)) else (dims,))}
        return None if axis in gone else axis - sum(d < axis for d in gone)
    if name in ("contiguous", "clone"):
        return axis
    return _order(flow, node, rank).index(axis)


def _order(flow: Flow, node: Node, rank: int) -> list[int]:
    """Return which old axis each new one is."""
    name = ops.canonical_name(node.target)
    order = list(range(rank))
    if name == "permute":
        return [int(d) % rank for d in flow.argument(node, "dims")]
    if name == "t":
        return order[::-1]
    if name in ("numpy_T", "mT", "mH"):
        return order[::-1] if name == "numpy_T" else [*order[:-2], order[-1], order[-2]]
    if name in ("movedim", "moveaxis"):
        return _after_moves(flow, node, rank)
    a, b = (int(flow.argument(node, role)) % rank for role in ("dim0", "dim1"))
    order[a], order[b] = order[b], order[a]
    return order


def _after_moves(flow: Flow, node: Node, rank: int) -> list[int]:
    source, target = flow.argument(node, "source"), flow.argument(node, "destination")
    given = [source] if isinstance(source, int) else list(source)
    wanted = [target] if isinstance(target, int) else list(target)
    places = {int(w) % rank: int(g) % rank for g, w in zip(given, wanted, strict=True)}
    rest = iter([d for d in range(rank) if d not in places.values()])
    return [places[d] if d in places else next(rest) for d in range(rank)]


@transfer("permute | transpose | t | numpy_T | mT | movedim | moveaxis | swapaxes | swapdims")
def permuted(flow: Flow, node: Node) -> Value | Refusal:
    """The axes in another order."""
    value = flow.value(node.args[0])
    order = _order(flow, node, len(value.axes))
    starts = [value.first_factor(axis) for axis in range(len(value.axes))]
    dims = [starts[axis] + i for axis in order for i in range(len(value.axes[axis]))]
    return Value(tuple(value.axes[axis] for axis in order), value.const.transpose(dims))


@transfer("expand | expand_as | broadcast_to")
def expanded(flow: Flow, node: Node) -> Value | Refusal:
    """Axes of size 1 are repeated; what they repeat is the same everywhere."""
    value, shape = flow.value(node.args[0]), flow.shape(node)
    if shape is None:
        return Refusal("its output has no noted shape", node)
    missing = len(shape) - len(value.axes)
    axes: list[Axis] = []
    dims: list[int] = []
    for at, size in enumerate(shape):
        if at < missing or sizes_of(value.axes[at - missing]) != size:
            axes.append((Factor(size),))
            dims.append(1)
            continue
        first = value.first_factor(at - missing)
        axes.append(value.axes[at - missing])
        dims += value.const.shape[first : first + len(axes[-1])]
    found = Value(tuple(axes), value.const.reshape(dims))
    if ops.has_role(node, "size"):
        flow.edits.append(lambda cut: cut.set_sizes(node, value, found))
    return found


@transfer("cat | concat | concatenate")
def joined(flow: Flow, node: Node) -> Value | Refusal:
    """Channels one after the other; other axes are tied."""
    reads = [read for read in node.args[0] if isinstance(read, Node)]  # pyright: ignore
    values = [flow.value(read) for read in reads]
    values = [value for value in values if value.axes]
    if not values:
        return Refusal("it joins nothing that is known", node)
    rank = len(values[0].axes)
    dim = int(flow.argument(node, "dim", 0)) % rank
    parts = [flow.flat(value, dim, node) for value in values]
    ids: list[Ids] = []
    for part in parts:
        # What cannot be cut gets atoms of its own that stay.
        stays = part.atoms is None
        atoms = (
            flow.atoms.fresh(part.size) if part.atoms is None and part.size < 2**19 else part.atoms
        )
        if atoms is None:
            return Refusal("it joins along an axis of open size", node)
        if stays:
            flow.atoms.pin(atoms, "it is joined to what cannot be cut", node)
        ids.append(atoms)
    others = [_without(value, dim) for value in values]
    found = broadcast(flow, node, others)
    if isinstance(found, Refusal):
        return found
    axis: Axis = (Factor(sum(part.size for part in parts), np.concatenate(ids)),)
    const = np.concatenate([np.broadcast_to(part.const, (part.size,)) for part in parts])
    axes = (*found[0][:dim], axis, *found[0][dim:])
    sizes = [1] * sum(map(len, axes))
    sizes[sum(map(len, axes[:dim]))] = axis[0].size
    return Value(axes, const.reshape(sizes))


def _without(value: Value, dim: int) -> Value:
    return unknown([axis for at, axis in enumerate(value.axes) if at != dim])


def _replaced(value: Value, dim: int, axis: Axis, const: Array) -> Value:
    """Return a value with another axis, along which alone it is known."""
    axes = (*value.axes[:dim], axis, *value.axes[dim + 1 :])
    sizes = [1] * sum(map(len, axes))
    first = sum(map(len, axes[:dim]))
    sizes[first : first + len(axis)] = [factor.size for factor in axis]
    return Value(axes, np.broadcast_to(const, (sizes_of(axis),)).reshape(sizes))


def _taken(flow: Flow, node: Node, value: Value, dim: int, index: Any) -> Value:
    """Return the part of a value at some indices of an axis."""
    axis = value.axes[dim]
    if sizes_of(axis) >= 2**19 or not any(factor.atoms is not None for factor in axis):
        first = value.first_factor(dim)
        count = (
            len(range(*index.indices(sizes_of(axis)))) if isinstance(index, slice) else len(index)
        )
        plain = _const_at(value, first, len(axis), index)
        axes = (*value.axes[:dim], (Factor(count),), *value.axes[dim + 1 :])
        return Value(axes, plain)
    part = flow.flat(value, dim, node)
    atoms = None if part.atoms is None else part.atoms[index]
    const = np.broadcast_to(part.const, (part.size,))[index]
    return _replaced(value, dim, (Factor(len(const), atoms),), const)


def _const_at(value: Value, first: int, count: int, index: Any) -> Array:
    shape = value.const.shape
    if all(size == 1 for size in shape[first : first + count]):
        return value.const.reshape([*shape[:first], 1, *shape[first + count :]])
    sizes = [factor.size for factor in value.factors[first : first + count]]
    cells = np.broadcast_to(value.const, [*shape[:first], *sizes, *shape[first + count :]])
    merged = cells.reshape([*shape[:first], -1, *shape[first + count :]])
    return merged[(slice(None),) * first + (index,)]


@transfer("split | split_with_sizes | chunk | tensor_split | unsafe_split | unsafe_chunk")
def parted(flow: Flow, node: Node) -> tuple[Value, ...] | Refusal:
    """Runs of channels, each its own value."""
    value = flow.value(node.args[0])
    dim = int(flow.argument(node, "dim", 0)) % max(len(value.axes), 1)
    sizes = _part_sizes(flow, node, value.shape[dim])
    if sizes is None:
        return Refusal("its parts have no fixed sizes", node)
    bounds = np.cumsum([0, *sizes])
    pairs = list(zip(bounds[:-1], bounds[1:], strict=True))
    if any(factor.atoms is not None for factor in value.axes[dim]):
        whole = flow.flat(value, dim, node).atoms
        runs = [None if whole is None else whole[a:b] for a, b in pairs]
        flow.edits.append(lambda cut: cut.set_parts(node, dim, runs))
    return tuple(_taken(flow, node, value, dim, slice(int(a), int(b))) for a, b in pairs)


def _part_sizes(flow: Flow, node: Node, whole: int) -> list[int] | None:
    name = ops.canonical_name(node.target)
    given: Any = node.args[1]
    if isinstance(given, (list, tuple)):
        sizes = [size for size in given if isinstance(size, int)]
        return sizes if len(sizes) == len(given) and name != "tensor_split" else None
    if not isinstance(given, int) or name == "tensor_split" or whole >= 2**19:
        return None
    step = given if "split" in name else -(-whole // given)
    return [min(step, whole - start) for start in range(0, whole, step)]


@transfer("getitem")
def item(flow: Flow, node: Node) -> Value | Refusal:
    """One of several outputs."""
    found = flow.values.get(node.args[0])  # pyright: ignore[reportArgumentType]
    at = node.args[1]
    if (
        not isinstance(found, tuple)
        or not isinstance(at, int)
        or not -len(found) <= at < len(found)
    ):
        return Refusal("it takes one of outputs that are not followed", node)
    return found[at]


@transfer("slice")
def sliced(flow: Flow, node: Node) -> Value | Refusal:
    """A run of indices of one axis."""
    value, shape = flow.value(node.args[0]), flow.shape(node)
    dim = int(flow.argument(node, "dim", 0)) % max(len(value.axes), 1)
    bounds = [flow.argument(node, role) for role in ("start", "end", "step")]
    if not all(bound is None or isinstance(bound, int) for bound in bounds):
        if shape is None or any(factor.atoms is not None for factor in value.axes[dim]):
            return Refusal("its bounds are computed", node)
        axes = (*value.axes[:dim], (Factor(shape[dim]),), *value.axes[dim + 1 :])
        return Value(
            axes,
            _const_at(value, value.first_factor(dim), len(value.axes[dim]), slice(0, 1)) * np.nan,
        )
    index = slice(*bounds)
    tracked = any(factor.atoms is not None for factor in value.axes[dim])
    if tracked:
        whole = flow.flat(value, dim, node).atoms
        flow.edits.append(lambda cut: cut.set_slice(node, dim, whole, index))
    if not tracked and shape is not None:
        axes = (*value.axes[:dim], (Factor(shape[dim]),), *value.axes[dim + 1 :])
        if value.shape[dim] == shape[dim]:
            return value
        return Value(
            axes,
            _const_at(value, value.first_factor(dim), len(value.axes[dim]), slice(0, 1)) * np.nan,
        )
    return _taken(flow, node, value, dim, index)


@transfer("select")
def selected(flow: Flow, node: Node) -> Value | Refusal:
    """One index of an axis, which goes."""
    value = flow.value(node.args[0])
    dim = int(flow.argument(node, "dim", 0)) % max(len(value.axes), 1)
    at = flow.argument(node, "index")
    if not isinstance(at, int):
        return Refusal("its index is computed", node)
    axis = value.axes[dim]
    if any(factor.atoms is not None for factor in axis):
        whole = flow.flat(value, dim, node).atoms
        if whole is not None:
            flow.atoms.pin(whole[[at]], "one channel is selected", node)
            flow.edits.append(lambda cut: cut.set_index(node, whole, at))
    part = (
        _taken(flow, node, value, dim, slice(at, at + 1) if at != -1 else slice(-1, None))
        if sizes_of(axis) < 2**19
        else value
    )
    first = part.first_factor(dim)
    const = part.const if sizes_of(axis) < 2**19 else part.const * np.nan
    shape = [*const.shape[:first], *const.shape[first + len(part.axes[dim]) :]]
    const = (
        const.reshape(shape)
        if const.size == int(np.prod(shape))
        else np.full([1] * len(shape), np.nan)
    )
    return Value((*part.axes[:dim], *part.axes[dim + 1 :]), const)


@transfer("unbind")
def unbound(flow: Flow, node: Node) -> tuple[Value, ...] | Refusal:
    """Each index of an axis, which goes."""
    value = flow.value(node.args[0])
    dim = int(flow.argument(node, "dim", 0)) % max(len(value.axes), 1)
    axis = value.axes[dim]
    if any(factor.atoms is not None for factor in axis):
        flow.pin(axis, "its channels are read one by one", node)
    if sizes_of(axis) >= 2**10:
        return Refusal("it reads an axis of open size one by one", node)
    found: list[Value] = []
    for at in range(sizes_of(axis)):
        part = _taken(flow, node, value, dim, slice(at, at + 1))
        first = part.first_factor(dim)
        shape = [*part.const.shape[:first], *part.const.shape[first + 1 :]]
        found.append(Value((*part.axes[:dim], *part.axes[dim + 1 :]), part.const.reshape(shape)))
    return tuple(found)


@transfer("stack")
def stacked(flow: Flow, node: Node) -> Value | Refusal:
    """Values of one shape along an axis of their own."""
    reads = [read for read in node.args[0] if isinstance(read, Node)]  # pyright: ignore
    values = [flow.value(read) for read in reads]
    found = broadcast(flow, node, values)
    if isinstance(found, Refusal):
        return found
    axes, _ = found
    dim = int(flow.argument(node, "dim", 0)) % (len(axes) + 1)
    return unknown([*axes[:dim], (Factor(len(values)),), *axes[dim:]])


@transfer("flip")
def flipped(flow: Flow, node: Node) -> Value | Refusal:
    """The indices of some axes in the other order."""
    value = flow.value(node.args[0])
    for dim in flow.argument(node, "dims"):
        at = int(dim) % len(value.axes)
        if any(factor.atoms is not None for factor in value.axes[at]):
            value = _taken(flow, node, value, at, slice(None, None, -1))
    return value


@transfer("index_select")
def indexed(flow: Flow, node: Node) -> Value | Refusal:
    """Channels at constant indices."""
    value = flow.value(node.args[0])
    dim = int(flow.argument(node, "dim")) % len(value.axes)
    index = flow.concrete(flow.argument(node, "index"))
    return _at_indices(flow, node, value, dim, index, flow.argument(node, "index"))


@transfer("index")
def advanced(flow: Flow, node: Node) -> Value | Refusal:
    """Channels at a constant vector of indices of one axis."""
    value, where = flow.value(node.args[0]), list(node.args[1])  # pyright: ignore
    given = [at for at, part in enumerate(where) if part is not None]
    if len(given) != 1:
        return Refusal("it takes indices of more than one axis", node)
    index = flow.concrete(where[given[0]])
    return _at_indices(flow, node, value, given[0], index, where[given[0]])


def _at_indices(
    flow: Flow, node: Node, value: Value, dim: int, index: Any, read: Any
) -> Value | Refusal:
    if index is None or index.dim() != 1 or index.dtype.is_floating_point or index.numel() == 0:
        return Refusal("its indices are not a constant vector", node)
    places = index.cpu().numpy()
    if index.element_size() == 1:
        places = np.flatnonzero(places)
    whole = flow.flat(value, dim, node).atoms
    if whole is not None:
        flow.edits.append(lambda cut: cut.set_indices(node, read, whole, places))
    for axis in flow.value(read).axes:
        flow.pin(axis, "its indices are written anew", node)
    return _taken(flow, node, value, dim, places)


@transfer("pixel_shuffle | pixel_unshuffle | channel_shuffle")
def shuffled(flow: Flow, node: Node) -> Value | Refusal:
    """Places of an image become channels, or the other way round."""
    value, shape = flow.value(node.args[0]), flow.shape(node)
    if shape is None or ops.canonical_name(node.target) != "pixel_shuffle":
        return Refusal("it mixes channels and places", node)
    factor = int(flow.argument(node, "upscale_factor"))
    batch, height, width = value.axes[0], value.shape[2], value.shape[3]
    parts = (sizes_of(batch), shape[1], factor, factor, height, width)
    apart = reshape(flow.atoms, value, parts, lambda axis, count: lambda sizes: 0)
    if apart is None:
        return Refusal("its channels cannot be followed", node)
    dims = [0, 1, 4, 2, 5, 3]
    axes = tuple(apart.axes[d] for d in dims)
    if any(len(axis) != 1 for axis in axes[1:]):
        return Refusal("its channels cannot be followed", node)
    lead = len(axes[0])
    const = apart.const.transpose([*range(lead), *(lead - 1 + d for d in dims[1:])])
    return Value((axes[0], axes[1], (*axes[2], *axes[3]), (*axes[4], *axes[5])), const)


@transfer(
    "pad | constant_pad_nd | reflection_pad2d | replication_pad2d | reflection_pad1d | replication_pad1d"
)
def padded(flow: Flow, node: Node) -> Value | Refusal:
    """More places around the last axes."""
    value, shape = flow.value(node.args[0]), flow.shape(node)
    pads = [pad for pad in flow.argument(node, "pad", flow.argument(node, "padding", ()))]
    if shape is None or not all(isinstance(pad, int) for pad in pads):
        return Refusal("its padding is computed", node)
    rank = len(value.axes)
    fills = (
        ops.canonical_name(node.target) in ("pad", "constant_pad_nd")
        and flow.argument(node, "mode", "constant") == "constant"
    )
    fill = float(flow.argument(node, "value", 0) or 0)
    const = np.where(value.const == fill, fill, np.nan) if fills else value.const
    axes = list(value.axes)
    made = Value(tuple(axes), const)
    for at in range(len(pads) // 2):
        before, after = pads[2 * at], pads[2 * at + 1]
        dim = rank - 1 - at
        if before == 0 and after == 0:
            continue
        made = _padded_axis(
            flow, node, made, dim, (before, after), shape[dim], fill if fills else None
        )
        if isinstance(made, Refusal):
            return made
    return made


def _padded_axis(
    flow: Flow,
    node: Node,
    value: Value,
    dim: int,
    pads: tuple[int, int],
    size: int,
    fill: float | None,
) -> Any:
    axis = value.axes[dim]
    if not any(factor.atoms is not None for factor in axis):
        known = _const_at(value, value.first_factor(dim), len(axis), slice(0, 1))
        if any(
            n > 1
            for n in value.const.shape[
                value.first_factor(dim) : value.first_factor(dim) + len(axis)
            ]
        ):
            known = known * np.nan
        axes = (*value.axes[:dim], (Factor(size),), *value.axes[dim + 1 :])
        return Value(axes, known)
    if fill is None or min(pads) < 0:
        return Refusal("it pads channels by others", node)
    part = flow.flat(value, dim, node)
    if part.atoms is None:
        return Refusal("it pads channels that cannot be told apart", node)
    ends = [flow.atoms.fresh(pad) for pad in pads]
    for end in ends:
        flow.atoms.pin(end, "padding adds it", node)
    atoms = np.concatenate([ends[0], part.atoms, ends[1]])
    inside = np.broadcast_to(part.const, (part.size,))
    const = np.concatenate([np.full(pads[0], fill), inside, np.full(pads[1], fill)])
    return _replaced(value, dim, (Factor(len(atoms), atoms),), const)
