"""Tensors of a graph that share memory, and operators that write to it."""

from __future__ import annotations

from collections.abc import Iterator

from torch import fx
from torch._ops import OpOverload
from torch.fx.node import Node

from fxprune import ops

__all__ = ["Aliases", "written"]

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
        for argument in node.target._schema.arguments:
            info = argument.alias_info
            if info is not None and info.is_write:
                found = ops.argument(node, argument.name)
                return found if isinstance(found, Node) else None
        return None
    name = str(getattr(node.target, "__name__", ""))
    in_place = name in ("iadd", "isub", "imul", "itruediv", "ipow", "imatmul", "setitem")
    first = node.args[0] if node.args else None
    return first if in_place and isinstance(first, Node) else None


class Aliases:
    """Which nodes of a graph share memory.

    Args:
        graph: the graph.

    Attributes:
        place: of each node in the graph.
        mutated: names of stored tensors that the graph writes to.
    """

    def __init__(self, graph: fx.Graph) -> None:
        self.place = {node: at for at, node in enumerate(graph.nodes)}
        self._root: dict[Node, Node] = {}
        self._members: dict[Node, list[Node]] = {}
        self.mutated: set[str] = set()
        for node in graph.nodes:
            into = written(node)
            source = into if into is not None else _viewed(node)
            root = node if source is None else self._root.get(source, source)
            self._root[node] = root
            self._members.setdefault(root, []).append(node)
            if into is not None and root.op == "get_attr":
                self.mutated.add(str(root.target))

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


def _viewed(node: Node) -> Node | None:
    """Return the node whose memory a node's tensor may be."""
    if node.op != "call_function" or not node.args or not isinstance(node.args[0], Node):
        return None
    if ops.canonical_name(node.target) in _MAY_RETURN:
        return node.args[0]
    if not isinstance(node.target, OpOverload):
        return None
    arguments = node.target._schema.arguments
    shares = bool(arguments) and arguments[0].alias_info is not None
    return node.args[0] if shares else None
