"""Tensors of a graph that share memory, and operators that write to it."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

from torch import fx
from torch._ops import OpOverload
from torch.fx.node import Node

from fxprune import ops

__all__ = ["Aliases", "detaches", "shared", "written"]

# What their schemas do not say: without training a dropout returns its input, and so on.
_MAY_RETURN = frozenset(
    [
        "dropout",
        "alpha_dropout",
        "feature_dropout",
        "feature_alpha_dropout",
        "dropout1d",
        "dropout2d",
        "dropout3d",
        "getitem",
        "rrelu",
        "identity",
        "type_as",
        "atleast_1d",
        "atleast_2d",
        "atleast_3d",
    ]
)


def written(node: Node) -> Node | None:
    """Return the node whose tensor an operator writes to; None where it writes to none."""
    if isinstance(node.target, OpOverload):
        role = _written_role(node.target)
        found = None if role is None else ops.argument(node, role)
        return found if isinstance(found, Node) else None
    name = str(getattr(node.target, "__name__", ""))
    in_place = name in ("iadd", "isub", "imul", "itruediv", "ipow", "imatmul", "setitem")
    first = node.args[0] if node.args else None
    return first if in_place and isinstance(first, Node) else None


def detaches(node: Node) -> bool:
    """Tell whether an operator writes to no number of a tensor, though its schema says so."""
    return node.op == "call_function" and ops.canonical_name(node.target) == "detach"


@cache
def _written_role(target: OpOverload) -> str | None:
    """Return the name of the first argument that an operator writes to."""
    for argument in target._schema.arguments:
        if argument.alias_info is not None and argument.alias_info.is_write:
            return argument.name
    return None


@cache
def _returns_view(target: OpOverload) -> bool:
    """Tell whether what an operator returns may share the memory of its first argument."""
    arguments = target._schema.arguments
    return bool(arguments) and arguments[0].alias_info is not None


class Aliases:
    """Which nodes of a graph share memory.

    Args:
        graph: the graph.

    Attributes:
        place: of each node in the graph.
        mutated: names of stored tensors that the graph writes to.
        overwritten: nodes whose numbers it writes to.
    """

    def __init__(self, graph: fx.Graph) -> None:
        self.place = {node: at for at, node in enumerate(graph.nodes)}
        self._root: dict[Node, Node] = {}
        self._members: dict[Node, list[Node]] = {}
        self.mutated: set[str] = set()
        roots: set[Node] = set()
        for node in graph.nodes:
            into, source = written(node), shared(node)
            root = node if source is None else self._root.get(source, source)
            self._root[node] = root
            self._members.setdefault(root, []).append(node)
            if into is not None and not detaches(node):
                roots.add(root)
            if into is not None and root.op == "get_attr":
                self.mutated.add(str(root.target))
        self.overwritten = {node for root in roots for node in self._members[root]}

    def stale(self, node: Node) -> list[Node]:
        """Return the nodes that share what an operator writes to, where one is read afterwards.

        Reads of the operator's own result are right: they are known to see what was written.
        """
        into = written(node)
        if into is None:
            return []
        others = [other for other in self._sharing(node) if other is not node]
        here = self.place[node]
        later = any(
            self.place[user] > here
            for other in others
            if self.place[other] < here
            for user in other.users
        )
        before = [other for other in others if self.place[other] < here]
        return before if later or self._root[node].op == "get_attr" else []

    def _sharing(self, node: Node) -> Iterator[Node]:
        yield from self._members[self._root[node]]


def shared(node: Node) -> Node | None:
    """Return the node whose memory a node's tensor may be: it writes there, or is a view of it."""
    into = written(node)
    if into is not None:
        return into
    if node.op != "call_function" or not node.args or not isinstance(node.args[0], Node):
        return None
    if ops.canonical_name(node.target) in _MAY_RETURN:
        return node.args[0]
    shares = isinstance(node.target, OpOverload) and _returns_view(node.target)
    return node.args[0] if shares else None
