"""Where axes go in permutations, and whether a view's axis is read index by index afterwards."""

from __future__ import annotations

from torch.fx.node import Node

from fxprune import ops
from fxprune.flow import Flow

__all__ = ["order_of", "swapped", "taken_apart"]

_MOVES = frozenset(["permute", "transpose", "unsqueeze", "squeeze", "contiguous", "clone"])
_PARTS = frozenset(["select", "unbind", "split", "chunk", "split_with_sizes"])


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


def taken_apart(flow: Flow, node: Node, axis: int) -> bool:
    """Tell whether an axis of a node is read index by index, directly or after a permutation."""
    rank = len(flow.shape(node) or ())
    for user in node.users:
        if user.op != "call_function" or rank == 0:
            continue
        name = ops.canonical_name(user.target)
        if name in _PARTS and ops.has_role(user, "dim"):
            if int(flow.argument(user, "dim")) % rank == axis:
                return True
        elif name in _MOVES and user.args[0] is node:
            moved = _moved(flow, user, axis, rank)
            if moved is not None and taken_apart(flow, user, moved):
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
        gone = {int(d) % rank for d in (dims if isinstance(dims, (list, tuple)) else (dims,))}
        return None if axis in gone else axis - sum(dim < axis for dim in gone)
    if name in ("contiguous", "clone"):
        return axis
    return order_of(flow, node, rank).index(axis)
