"""Transfer rules of views and permutations: the same factors in other axes.

Where axes go in permutations, and whether a view's axis is read index by index afterwards.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch.fx.node import Node

from fxprune.channels import (
    OPEN,
    Axis,
    Choice,
    Factor,
    Flow,
    Value,
    broadcast,
    loosened,
    reshape,
    sizes_of,
    transfer,
    unknown,
)
from fxprune.program import ops
from fxprune.rewrite import Refusal

_APART = "it takes channels apart in a way that is not followed"


@transfer("view reshape flatten unflatten _unsafe_view view_as reshape_as unsqueeze ravel")
def viewed(flow: Flow, node: Node) -> Value | Refusal:
    """The same entries in other axes."""
    value, shape = flow.value(node.args[0]), _shape(flow, node)
    if shape is None:
        return Refusal("its output has no noted shape", node)
    if isinstance(flow.argument(node, "dtype"), type(None)) is False:
        return Refusal("it reads the bits in another dtype", node)
    found = reshape(flow.atoms, value, shape, lambda axis, count: _choice(flow, node, axis))
    if found is None:
        loose, lost = loosened(value, shape)
        flow.pin(tuple(lost), _APART, node)
        found = reshape(flow.atoms, loose, shape, lambda axis, count: _choice(flow, node, axis))
    if found is None:
        return Refusal(_APART, node)
    name = ops.canonical_name(node.target)
    role = next((r for r in ("size", "shape", "sizes") if ops.has_role(node, r)), None)
    if role is not None:
        start = int(flow.argument(node, "dim", 0)) % max(len(value.axes), 1)
        axes = found.axes[start:] if name == "unflatten" else found.axes
        count = len(flow.argument(node, role))
        flow.edits.append(lambda cut: cut.set_sizes(node, role, axes[:count]))
    return found


def _shape(flow: Flow, node: Node) -> tuple[int, ...] | None:
    if ops.canonical_name(node.target) != "unsqueeze":
        return flow.shape(node)
    shape = flow.value(node.args[0]).shape
    at = int(flow.argument(node, "dim")) % (len(shape) + 1)
    return (*shape[:at], 1, *shape[at:])


def _choice(flow: Flow, node: Node, axis: int) -> Choice:
    """Choose which part of a split factor stays cuttable: the first that is not taken apart.

    (heads, size) keeps heads; (3, heads, size), of which the 3 are selected one by one, heads, too;
    (groups, size) that are swapped, as channels are shuffled, keeps the size.
    """

    def choose(parts: tuple[int, ...]) -> int:
        if len(parts) == 2 and swapped(flow, node, axis):
            return 1
        for at in range(len(parts)):
            if parts[at] > 1 and not taken_apart(flow, node, axis + at):
                return at
        return 0

    return choose


@transfer("squeeze")
def squeezed(flow: Flow, node: Node) -> Value | Refusal:
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
        return Refusal("it drops axes that may have size 1", node)
    if dims is None and any(size >= OPEN for size in value.shape):
        # Of one example it drops the batch axis too, so the axes that go cannot be named.
        wide = [(f.atoms, node) for axis in axes for f in axis if f.atoms is not None]
        flow.atoms.wide.extend(wide)
    elif dims is None:
        flow.edits.append(lambda cut: cut.set_squeeze(node, gone, axes))
    for at in set(given) - set(gone):
        flow.pin(value.axes[at], "it would drop an axis with one channel left", node)
    wanted = tuple(sizes_of(axis) for axis in axes)
    found = reshape(flow.atoms, value, wanted, lambda axis, count: lambda parts: 0)
    return Refusal("its axes are not followed", node) if found is None else found


@transfer("permute transpose t numpy_T mT mH adjoint movedim moveaxis swapaxes swapdims")
def permuted(flow: Flow, node: Node) -> Value | Refusal:
    """The axes in another order."""
    value = flow.value(node.args[0])
    order = order_of(flow, node, len(value.axes))
    starts = [value.first_factor(axis) for axis in range(len(value.axes))]
    dims = [starts[axis] + i for axis in order for i in range(len(value.axes[axis]))]
    return Value(tuple(value.axes[axis] for axis in order), value.const.transpose(dims))


@transfer("expand_as")
def expanded_as(flow: Flow, node: Node) -> Value | Refusal:
    """Axes of size 1 are repeated as often as another tensor has channels there."""
    value, other = flow.value(node.args[0]), flow.value(node.args[1])
    found = broadcast(flow, node, [value, unknown(other.axes)])
    return found if isinstance(found, Refusal) else Value(found[0], found[1][0])


@transfer("expand broadcast_to")
def expanded(flow: Flow, node: Node) -> Value | Refusal:
    """Axes of size 1 are repeated."""
    value, shape = flow.value(node.args[0]), flow.shape(node)
    if shape is None:
        return Refusal("its output has no noted shape", node)
    missing = len(shape) - len(value.axes)
    axes: list[Axis] = []
    dims: list[int] = []
    for at, size in enumerate(shape):
        old = value.axes[at - missing] if at >= missing else ()
        if at < missing or sizes_of(old) != size:
            flow.pin(old, "one channel is repeated", node)
            axes.append(flow.copies(size))
            dims += [1] * len(axes[-1])
            continue
        first = value.first_factor(at - missing)
        axes.append(old)
        dims += value.const.shape[first : first + len(old)]
    found = Value(tuple(axes), value.const.reshape(dims))
    if ops.has_role(node, "size"):
        flow.edits.append(lambda cut: cut.set_sizes(node, "size", found.axes))
    return found


@transfer("repeat tile")
def repeated(flow: Flow, node: Node) -> Value | Refusal:
    """Whole axes again and again, behind each other."""
    value, shape = flow.value(node.args[0]), flow.shape(node)
    times: Any = flow.argument(node, "repeats", flow.argument(node, "dims"))
    if not isinstance(times, (list, tuple)) or len(times) < len(value.axes) or shape is None:
        return Refusal("its counts are computed", node)
    missing = len(times) - len(value.axes)
    axes: list[Axis] = []
    dims: list[int] = []
    for at, count in enumerate(times):
        old = value.axes[at - missing] if at >= missing else ()
        first = value.first_factor(at - missing) if old else 0
        own = value.const.shape[first : first + len(old)]
        axis = _repeated(flow, node, at, count, old)
        if sizes_of(axis) != shape[at]:  # a sum of symbols is one of its own
            return Refusal("its counts are computed", node)
        axes.append(axis)
        dims += [*[1] * (len(axis) - len(own)), *own]
    return Value(tuple(axes), value.const.reshape(dims))


def _repeated(flow: Flow, node: Node, at: int, count: Any, old: Axis) -> Axis:
    """Return an axis several times; of one channel, copies: as many as are needed."""
    shape = flow.shape(node) or ()
    if count == 1 and old:
        return old
    if sizes_of(old) != 1 or any(factor.atoms is not None for factor in old):
        times = count if isinstance(count, int) else shape[at] // sizes_of(old)
        return (Factor(times), *old)
    if not isinstance(count, int):
        return (Factor(shape[at]),)
    axis = flow.copies(count)
    role = "repeats" if ops.has_role(node, "repeats") else "dims"
    flow.edits.append(lambda cut: cut.set_entry(node, role, at, axis))
    return axis


@transfer("repeat_interleave")
def interleaved(flow: Flow, node: Node) -> Value | Refusal:
    """Each index of an axis several times."""
    value, times = flow.value(node.args[0]), flow.argument(node, "repeats")
    dim = flow.argument(node, "dim")
    if not isinstance(times, int) or not isinstance(dim, int) or not value.axes:
        return Refusal("its counts are computed", node)
    at = dim % len(value.axes)
    place = value.first_factor(at) + len(value.axes[at])
    axes = (*value.axes[:at], (*value.axes[at], Factor(times)), *value.axes[at + 1 :])
    if isinstance(flow.argument(node, "output_size"), int):
        flow.edits.append(lambda cut: cut.set_size(node, "output_size", axes[at]))
    shape = value.const.shape
    return Value(axes, value.const.reshape([*shape[:place], 1, *shape[place:]]))


_SAME = frozenset(["mul", "add", "sub", "div", "relu", "sigmoid", "silu", "gelu", "dropout"])
_VIEWS = frozenset(["view", "reshape", "_unsafe_view", "flatten", "unflatten"])
_MOVES = _VIEWS | {"permute", "transpose", "unsqueeze", "squeeze", "contiguous", "clone"}
_PARTS = frozenset(
    (
        *("select", "unbind", "split", "chunk", "split_with_sizes"),
        *("sum", "mean", "amax", "amin", "softmax", "_softmax", "log_softmax", "var", "std"),
    )
)


def order_of(flow: Flow, node: Node, rank: int) -> list[int]:
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
        return _after_moves(flow, node, rank)
    roles = ("axis0", "axis1") if name == "swapaxes" else ("dim0", "dim1")
    a, b = (int(flow.argument(node, role)) % rank for role in roles)
    order[a], order[b] = order[b], order[a]
    return order


def _after_moves(flow: Flow, node: Node, rank: int) -> list[int]:
    source, target = flow.argument(node, "source"), flow.argument(node, "destination")
    given = [source] if isinstance(source, int) else list(source)
    wanted = [target] if isinstance(target, int) else list(target)
    places = {int(w) % rank: int(g) % rank for g, w in zip(given, wanted, strict=True)}
    rest = iter([dim for dim in range(rank) if dim not in places.values()])
    return [places[dim] if dim in places else next(rest) for dim in range(rank)]


def taken_apart(flow: Flow, node: Node, axis: int, far: int = 2) -> bool:
    """Tell whether an axis is read index by index or joined, directly or after a permutation.

    Args:
        flow: whose node it is.
        node: the node.
        axis: which of its axes.
        far: behind how many operators that work entry by entry it is looked for.
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
            if taken_apart(flow, user, axis, far - 1):
                return True
        elif name in _MOVES and user.args[0] is node:
            moved = _moved(flow, user, axis, rank)
            if moved is not None and taken_apart(flow, user, moved, far):
                return True
    return False


def swapped(flow: Flow, node: Node, axis: int) -> bool:
    """Tell whether a node is read with an axis put right behind the one that follows it."""
    rank = len(flow.shape(node) or ())
    for user in node.users:
        moves = user.op == "call_function" and ops.canonical_name(user.target)
        if moves in ("permute", "transpose", "swapaxes", "movedim") and axis + 1 < rank:
            order = order_of(flow, user, rank)
            if order.index(axis) == order.index(axis + 1) + 1:
                return True
    return False


def _moved(flow: Flow, node: Node, axis: int, rank: int) -> int | None:
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
        return _viewed(flow.shape(node.args[0]) or (), flow.shape(node) or (), axis)
    return order_of(flow, node, rank).index(axis)


def _viewed(old: Sequence[int], new: Sequence[int], axis: int) -> int | None:
    """Return where an axis is in a view; None where it is split or joined to others there."""
    before = math.prod(old[:axis])
    same = [
        at for at, size in enumerate(new) if size == old[axis] and math.prod(new[:at]) == before
    ]
    return same[0] if same else None


def _dims(given: Any, rank: int) -> set[int]:
    """Return axes as a set, from 0; all of them where none is given."""
    if given is None:
        return set(range(rank))
    return {int(dim) % rank for dim in (given if isinstance(given, (list, tuple)) else (given,))}
