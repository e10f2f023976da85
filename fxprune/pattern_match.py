"""Find where a pattern fits: at one node, or in a whole graph."""

from __future__ import annotations

from collections.abc import Iterator

from torch import fx
from torch.fx.node import Node

from fxprune import ops
from fxprune.pattern_parts import Call, Either, Match, Pattern, Refusal
from fxprune.pattern_search import Search
from fxprune.program import Program

__all__ = ["candidates", "match", "matches", "root_ops"]


def match(pattern: Pattern, node: Node, program: Program) -> Match | Refusal:
    """Fit a pattern to the expression that ends in `node`.

    Orders and alternatives are tried as they are written: the first that fits counts.

    Args:
        pattern: what `parse` gives.
        node: the node of the outermost operator, or the read of a parameter.
        program: where parameters are looked up.

    Returns:
        The bindings, or what did not fit in the attempt that went deepest.
    """
    return Search(program).first(pattern, node)


def matches(pattern: Pattern, graph: fx.Graph, program: Program) -> Iterator[Match]:
    """Yield the match that ends in each node of a graph, in the graph's order.

    A node is tried when the match before it has been dealt with, so that the graph may be edited
    meanwhile: nodes that were erased are left out, nodes that were made are not tried.

    Args:
        pattern: what `parse` gives.
        graph: of the Program.
        program: where parameters are looked up.
    """
    search = Search(program)
    for node in candidates(pattern, graph):
        # Erasing a node unlinks it; it must not be read any more.
        if not getattr(node, "_erased", False):
            found = search.first(pattern, node)
            if isinstance(found, Match):
                yield found


def candidates(pattern: Pattern, graph: fx.Graph) -> list[Node]:
    """Return the nodes of a graph that a match can end in, by their operators alone."""
    wanted = root_ops(pattern)
    if wanted is None:
        return list(graph.nodes)
    calls = (node for node in graph.nodes if node.op == "call_function")
    return [node for node in calls if ops.canonical_name(node.target) in wanted]


def root_ops(pattern: Pattern) -> frozenset[str] | None:
    """Return the operators that a match can end in; None where any node will do."""
    if isinstance(pattern, Call):
        return None if "_" in pattern.ops else frozenset(pattern.ops)
    if not isinstance(pattern, Either):
        return None
    found: frozenset[str] = frozenset()
    for option in pattern.options:
        wanted = root_ops(option)
        if wanted is None:
            return None
        found |= wanted
    return found
