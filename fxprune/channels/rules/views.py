"""Transfer rules of views and permutations: the same factors in other axes.

Where axes go, and whether a view's axis is read index by index afterwards, decide what stays
cuttable.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch.fx.node import Node

from fxprune.channels import (
    OPEN,
    Axis,
    Factor,
    Flow,
    FollowError,
    SplitChoice,
    Value,
    axis_size,
    broadcast,
    loosen,
    reshape,
    transfer,
    unknown,
    widen,
)
from fxprune.program import ops

_APART = "it takes channels apart in a way that is not followed"
_COMPUTED = "its counts are computed"


@transfer("view reshape flatten unflatten _unsafe_view view_as reshape_as unsqueeze ravel")
def view(flow: Flow, node: Node) -> Value:
    """The same entries in other axes."""
    value, shape = flow.value(node.args[0]), _shape(flow, node)
    if flow.argument(node, "dtype") is not None:
        raise FollowError("it reads the bits in another dtype")
    found = reshape(flow.atoms, value, shape, lambda axis, count: _choice(flow, node, axis))
    if found is None:
        loose, lost = loosen(value, shape)
        flow.pin(tuple(lost), _APART, node)
        found = reshape(flow.atoms, loose, shape, lambda axis, count: _choice(flow, node, axis))
    if found is None:
        raise FollowError(_APART)
    name = ops.canonical_name(node.target)
    role = next((r for r in ("size", "shape", "sizes") if ops.has_role(node, r)), None)
    if role is not None:
        start = int(flow.argument(node, "dim", 0)) % max(len(value.axes), 1)
        axes = found.axes[start:] if name == "unflatten" else found.axes
        count = len(flow.argument(node, role))
        flow.edits.append(lambda cut: cut.set_sizes(node, role, axes[:count]))
    return found


def _shape(flow: Flow, node: Node) -> tuple[int, ...]:
    if ops.canonical_name(node.target) != "unsqueeze":
        return flow.noted_shape(node)
    shape = flow.value(node.args[0]).shape
    at = int(flow.argument(node, "dim")) % (len(shape) + 1)
    return (*shape[:at], 1, *shape[at:])


def _choice(flow: Flow, node: Node, axis: int) -> SplitChoice:
    """Choose which part of a split factor stays cuttable: the first that is not taken apart.

    (heads, size) keeps heads; (3, heads, size), of which the 3 are selected one by one, heads, too;
    (groups, size) that are swapped, as channels are shuffled, keeps the size.
    """

    def choose(parts: tuple[int, ...]) -> int:
        if len(parts) == 2 and _swaps(flow, node, axis):
            return 1
        whole = (at for at, n in enumerate(parts) if n > 1 and not _splits(flow, node, axis + at))
        return next(whole, 0)

    return choose


@transfer("squeeze")
def squeeze(flow: Flow, node: Node) -> Value:
    """Axes of size 1 go; one that is cut to size 1 must not."""
    value, shape = flow.value(node.args[0]), flow.shape(node)
    dims: Any = flow.argument(node, "dim")
    rank = len(value.axes)
    if dims is None:
        given = [at for at in range(rank) if value.shape[at] == 1]
    else:
        listed: Sequence[int] = dims if isinstance(dims, (list, tuple)) else [dims]
        given = [dim % max(rank, 1) for dim in listed]
    gone = [at for at in given if rank and value.shape[at] == 1]
    axes = [axis for at, axis in enumerate(value.axes) if at not in gone]
    if shape is not None and len(shape) != len(axes):
        raise FollowError("it drops axes that may have size 1")
    if dims is None and any(size >= OPEN for size in value.shape):
        # Of one example it drops the batch axis too, so the axes that go cannot be named.
        wide = [(f.atoms, node) for axis in axes for f in axis if f.atoms is not None]
        flow.atoms.wide.extend(wide)
    elif dims is None:
        flow.edits.append(lambda cut: cut.set_squeeze(node, gone, axes))
    for at in set(given) - set(gone):
        flow.pin(value.axes[at], "it would drop an axis with one channel left", node)
    wanted = tuple(axis_size(axis) for axis in axes)
    found = reshape(flow.atoms, value, wanted, lambda axis, count: lambda parts: 0)
    if found is None:
        raise FollowError("its axes are not followed")
    return found


@transfer("permute transpose t numpy_T mT mH adjoint movedim moveaxis swapaxes swapdims")
def permute(flow: Flow, node: Node) -> Value:
    """The axes in another order."""
    value = flow.value(node.args[0])
    order = _order(flow, node, len(value.axes))
    starts = [value.first_factor(axis) for axis in range(len(value.axes))]
    dims = [starts[axis] + i for axis in order for i in range(len(value.axes[axis]))]
    return Value(tuple(value.axes[axis] for axis in order), value.const.transpose(dims))


@transfer("expand_as")
def expand_as(flow: Flow, node: Node) -> Value:
    """Axes of size 1 are repeated as often as another tensor has channels there."""
    value, other = flow.value(node.args[0]), flow.value(node.args[1])
    axes, (const, _) = broadcast(flow, node, [value, unknown(other.axes)])
    return Value(axes, const)


@transfer("expand broadcast_to")
def expand(flow: Flow, node: Node) -> Value:
    """Axes of size 1 are repeated."""
    value, shape = flow.value(node.args[0]), flow.noted_shape(node)
    missing = len(shape) - len(value.axes)
    axes: list[Axis] = []
    dims: list[int] = []
    for at, size in enumerate(shape):
        old = value.axes[at - missing] if at >= missing else ()
        if at < missing or axis_size(old) != size:
            flow.pin(old, "one channel is repeated", node)
            axes.append(flow.copies(size))
            dims += [1] * len(axes[-1])
        else:
            axes.append(old)
            dims += value.dims(at - missing)
    found = Value(tuple(axes), value.const.reshape(dims))
    if ops.has_role(node, "size"):
        flow.edits.append(lambda cut: cut.set_sizes(node, "size", found.axes))
    return found


@transfer("repeat tile")
def repeat(flow: Flow, node: Node) -> Value:
    """Whole axes again and again, behind each other."""
    value, shape = flow.value(node.args[0]), flow.shape(node)
    times: Any = flow.argument(node, "repeats", flow.argument(node, "dims"))
    if not isinstance(times, (list, tuple)) or len(times) < len(value.axes) or shape is None:
        raise FollowError(_COMPUTED)
    missing = len(times) - len(value.axes)
    axes: list[Axis] = []
    dims: list[int] = []
    for at, count in enumerate(times):
        old = value.axes[at - missing] if at >= missing else ()
        own = value.dims(at - missing) if old else ()
        axis = _repeat_axis(flow, node, at, count, old)
        if axis_size(axis) != shape[at]:  # a sum of symbols is one of its own
            raise FollowError(_COMPUTED)
        axes.append(axis)
        dims += [*[1] * (len(axis) - len(own)), *own]
    return Value(tuple(axes), value.const.reshape(dims))


def _repeat_axis(flow: Flow, node: Node, at: int, count: Any, old: Axis) -> Axis:
    """Return an axis several times; of one channel, copies: as many as are needed."""
    shape = flow.shape(node) or ()
    if count == 1 and old:
        return old
    if axis_size(old) != 1 or any(factor.atoms is not None for factor in old):
        times = count if isinstance(count, int) else shape[at] // axis_size(old)
        return (Factor(times), *old)
    if not isinstance(count, int):
        return (Factor(shape[at]),)
    axis = flow.copies(count)
    role = "repeats" if ops.has_role(node, "repeats") else "dims"
    flow.edits.append(lambda cut: cut.set_entry(node, role, at, axis))
    return axis


@transfer("repeat_interleave")
def repeat_interleave(flow: Flow, node: Node) -> Value:
    """Each index of an axis several times."""
    value, times = flow.value(node.args[0]), flow.argument(node, "repeats")
    dim = flow.argument(node, "dim")
    if not isinstance(times, int) or not isinstance(dim, int) or not value.axes:
        raise FollowError(_COMPUTED)
    at = dim % len(value.axes)
    place = value.first_factor(at) + len(value.axes[at])
    axes = value.axes_with(at, (*value.axes[at], Factor(times)))
    if isinstance(flow.argument(node, "output_size"), int):
        flow.edits.append(lambda cut: cut.set_size(node, "output_size", axes[at]))
    return Value(axes, widen(value.const, place))


_SAME = frozenset(["mul", "add", "sub", "div", "relu", "sigmoid", "silu", "gelu", "dropout"])
_VIEWS = frozenset(["view", "reshape", "_unsafe_view", "flatten", "unflatten"])
_MOVES = _VIEWS | {"permute", "transpose", "unsqueeze", "squeeze", "contiguous", "clone"}
_PARTS = frozenset(
    (
        *("select", "unbind", "split", "chunk", "split_with_sizes"),
        *("sum", "mean", "amax", "amin", "softmax", "_softmax", "log_softmax", "var", "std"),
    )
)


def _order(flow: Flow, node: Node, rank: int) -> list[int]:
    """Return which old axis each axis of a permutation is."""
    name = ops.canonical_name(node.target)
    order = list(range(rank))
    if name == "permute":
        return [int(dim) % rank for dim in flow.argument(node, "dims")]
    if name in ("t", "numpy_T"):
        return order[::-1]
    if name in ("mT", "mH", "adjoint"):
        return [*order[:-2], order[-1], order[-2]]
    if name in ("movedim", "moveaxis"):
        return _order_of_moves(flow, node, rank)
    roles = ("axis0", "axis1") if name == "swapaxes" else ("dim0", "dim1")
    a, b = (int(flow.argument(node, role)) % rank for role in roles)
    order[a], order[b] = order[b], order[a]
    return order


def _order_of_moves(flow: Flow, node: Node, rank: int) -> list[int]:
    source, target = flow.argument(node, "source"), flow.argument(node, "destination")
    given = [source] if isinstance(source, int) else list(source)
    wanted = [target] if isinstance(target, int) else list(target)
    places = {int(w) % rank: int(g) % rank for g, w in zip(given, wanted, strict=True)}
    rest = iter([dim for dim in range(rank) if dim not in places.values()])
    return [places[dim] if dim in places else next(rest) for dim in range(rank)]


def _splits(flow: Flow, node: Node, axis: int, far: int = 2) -> bool:
    """Tell whether an axis is read index by index or joined, directly or after a permutation.

    It is looked for behind `far` operators that work entry by entry.
    """
    rank = len(flow.shape(node) or ())
    for user in node.users:
        if user.op != "call_function" or rank == 0:
            continue
        name = ops.canonical_name(user.target)
        if name in _PARTS and ops.has_role(user, "dim"):
            if axis in _dims(flow.argument(user, "dim"), rank):
                return True
        elif name in _SAME and far and len(flow.shape(user) or ()) == rank:
            if _splits(flow, user, axis, far - 1):
                return True
        elif name in _MOVES and user.args[0] is node:
            there = _follow_axis(flow, user, axis, rank)
            if there is not None and _splits(flow, user, there, far):
                return True
    return False


def _swaps(flow: Flow, node: Node, axis: int) -> bool:
    """Tell whether a node is read with an axis put right behind the one that follows it."""
    rank = len(flow.shape(node) or ())
    for user in node.users:
        moves = user.op == "call_function" and ops.canonical_name(user.target)
        if moves in ("permute", "transpose", "swapaxes", "movedim") and axis + 1 < rank:
            order = _order(flow, user, rank)
            if order.index(axis) == order.index(axis + 1) + 1:
                return True
    return False


def _follow_axis(flow: Flow, node: Node, axis: int, rank: int) -> int | None:
    """Return where an axis is after a permutation, an unsqueeze or a squeeze."""
    name = ops.canonical_name(node.target)
    if name == "unsqueeze":
        return axis + (axis >= int(flow.argument(node, "dim")) % (rank + 1))
    if name == "squeeze":
        dims = flow.argument(node, "dim")
        if dims is None:
            return None
        gone = _dims(dims, rank)
        return None if axis in gone else axis - sum(dim < axis for dim in gone)
    if name in ("contiguous", "clone"):
        return axis
    if name in _VIEWS:
        return _axis_in_view(flow.shape(node.args[0]) or (), flow.shape(node) or (), axis)
    return _order(flow, node, rank).index(axis)


def _axis_in_view(old: Sequence[int], new: Sequence[int], axis: int) -> int | None:
    """Return where an axis is in a view; None where it is split or joined to others there."""
    before = math.prod(old[:axis])
    same = (at for at, n in enumerate(new) if n == old[axis] and math.prod(new[:at]) == before)
    return next(same, None)


def _dims(given: Any, rank: int) -> set[int]:
    """Return axes as a set, from 0; all of them where none is given."""
    if given is None:
        return set(range(rank))
    return {int(dim) % rank for dim in (given if isinstance(given, (list, tuple)) else (given,))}
