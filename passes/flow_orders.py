"""Where axes go in permutations, and whether a view's axis is read index by index afterwards."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch.fx.node import Node

from fxprune import ops
from fxprune.flow import Flow

__all__ = ["order_of", "swapped", "taken_apart"]

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
