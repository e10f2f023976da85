"""Hypothesis strategies: small graphs of torch's operators, and patterns that nearly fit them.

A graph is drawn as a list of steps and then built. A pattern is read off the graph, from a node
downwards, with names, marks, alternatives and mistakes thrown in.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from hypothesis import strategies as st
from torch import fx
from torch.fx.node import Node

from fxprune.rewrite.pattern import Anything, Call, Constant, Either, Listed, Name, Pattern

aten = torch.ops.aten
UNARY = (aten.relu.default, aten.relu_.default, aten.gelu.default, aten.neg.default)
BINARY = (aten.add.Tensor, aten.mul.Tensor, aten.sub.Tensor, aten.maximum.default)
# What a masked 0.weight and a plain rest of the Program "mlp" are stored as.
READS = ("0.weight_orig", "2.weight", "2.weight", "0.weight_mask", "0.bias")
KINDS = (
    *("unary", "unary", "binary", "binary", "binary", "scalar"),
    *("product", "linear", "weights", "cat", "flatten", "pool"),
)
ROLES = ("self", "other", "alpha", "weight", "bias", "tensors", "dim", "approximate", "stride")
OPS = ("relu", "gelu", "neg", "add", "mul", "sub", "maximum", "linear", "cat", "flatten", "_")
NAMES = ("x", "y", "W", "V")
RARELY = st.sampled_from([False] * 7 + [True])
ONCE_IN_THREE = st.sampled_from([False, False, True])


@dataclass(frozen=True)
class Step:
    """One node: a kind, which of its operators, and which earlier nodes it reads."""

    kind: str
    which: int
    reads: tuple[int, ...]
    number: int


@dataclass(frozen=True)
class GraphSpec:
    """A graph as data."""

    steps: tuple[Step, ...]


def graphs(most: int = 6) -> st.SearchStrategy[GraphSpec]:
    step = st.builds(
        Step,
        st.sampled_from(KINDS),
        st.integers(0, 3),
        st.tuples(*[st.integers(0, 3)] * 3),
        st.integers(0, 2),
    )
    return st.builds(GraphSpec, st.lists(step, min_size=1, max_size=most).map(tuple))


def build_graph(spec: GraphSpec) -> fx.Graph:
    """Build the graph; nodes are read counting back from the newest one."""
    graph = fx.Graph()
    made: list[Node] = [graph.placeholder("a"), graph.placeholder("b")]
    reads = [graph.create_node("get_attr", target) for target in READS]
    for step in spec.steps:
        operands = [made[-1 - i % len(made)] for i in step.reads]
        made.append(_made(graph, step, operands, reads))
    graph.output(made[-1])
    return graph


def _made(graph: fx.Graph, step: Step, operands: list[Node], reads: list[Node]) -> Node:
    a, b, c = operands
    call, w = graph.call_function, reads[step.which]
    if step.kind == "unary":
        target = UNARY[step.which]
        known: dict[str, Any] = {"approximate": "tanh"} if step.which == 2 and step.number else {}
        return call(target, (a,), known)
    if step.kind == "binary":
        known: dict[str, Any] = {"alpha": 2} if step.which == 0 and step.number == 2 else {}
        return call(BINARY[step.which], (a, w if step.number == 1 else b), known)
    if step.kind == "scalar":
        return call(BINARY[step.which], (a, step.number))
    if step.kind == "weights":
        return call(BINARY[step.number], (w, reads[step.reads[0]]))
    if step.kind == "product":
        return call(aten.mul.Tensor, (reads[0], reads[3]))
    if step.kind == "linear":
        return call(aten.linear.default, (a, w, reads[4]) if step.number else (a, w))
    if step.kind == "cat":
        return call(aten.cat.default, ([a, b, c][: step.number + 1], step.which))
    if step.kind == "flatten":
        return call(aten.flatten.using_ints, (a, step.number)[: 1 + step.which % 2])
    return call(aten.max_pool2d.default, (a, [2, 2], [1 + step.number, 2]))


@st.composite
def patterns(draw: st.DrawFn, graph: fx.Graph) -> tuple[Pattern, Node]:
    """A pattern, and the node of the graph that it was read off."""
    calls = [node for node in graph.nodes if node.op == "call_function"]
    node = draw(st.sampled_from(calls[-4:]))
    return draw(_likely(node, 3)), node


@st.composite
def _likely(draw: st.DrawFn, value: Any, depth: int) -> Pattern:
    """A pattern that likely fits a value."""
    is_call = isinstance(value, Node) and value.op == "call_function"
    if is_call and depth > 0 and (depth == 3 or not draw(ONCE_IN_THREE)):
        call = draw(_call(value, depth))
        return draw(_either(call)) if draw(RARELY) else call
    if isinstance(value, list | tuple) and not draw(ONCE_IN_THREE):
        return draw(_listed(list(value), depth))
    if not isinstance(value, Node) and draw(st.booleans()):
        same = 2 if isinstance(value, list | tuple) else value
        return Constant(draw(st.sampled_from([same, same, same, 1, True, 1.0, None])))
    is_read = isinstance(value, Node) and value.op == "get_attr"
    names = ("W", "W", "V", "x") if is_read else ("x", "x", "y", "W")
    return draw(st.sampled_from([Anything(), *map(Name, names)]))


@st.composite
def _call(draw: st.DrawFn, node: Node, depth: int) -> Call:
    args = [draw(_likely(arg, depth - 1)) for arg in node.args]
    if draw(ONCE_IN_THREE):
        args = args[: draw(st.integers(0, len(args)))]
    if len(args) > 1 and draw(ONCE_IN_THREE):
        args = [args[1], args[0], *args[2:]]
    if draw(RARELY):
        args.append(draw(st.sampled_from([Anything(), Constant(None), Name("x")])))
    keywords: list[tuple[str, Pattern]] = []
    named = [arg.name for arg in node.target._schema.arguments]  # type: ignore[union-attr]
    if draw(ONCE_IN_THREE):
        role = draw(st.sampled_from([*named, *named, *ROLES]))
        keywords.append((role, draw(_keyword(node, named, role, depth))))
    op = str(node.target.__name__).split(".")[0].removesuffix("_")  # type: ignore[union-attr]
    if draw(RARELY):
        op = draw(st.sampled_from(OPS))
    elif draw(RARELY):
        pair = [op, draw(st.sampled_from([o for o in OPS if o not in ("_", op)]))]
        op = "|".join(draw(st.permutations(pair)))
    return Call(op, tuple(args), tuple(keywords), draw(st.booleans()))


@st.composite
def _keyword(draw: st.DrawFn, node: Node, named: list[str], role: str, depth: int) -> Pattern:
    at = named.index(role) if role in named else -1
    if 0 <= at < len(node.args):
        return draw(_likely(node.args[at], depth - 1))
    if at >= 0:
        default = node.target._schema.arguments[at].default_value  # type: ignore[union-attr]
        return draw(_likely(node.kwargs.get(role, default), depth - 1))
    return draw(st.sampled_from([Anything(), Constant(1), Name("x"), Name("y")]))


@st.composite
def _listed(draw: st.DrawFn, value: list[Any], depth: int) -> Listed:
    items = [draw(_likely(entry, depth - 1)) for entry in value]
    if not draw(st.booleans()):
        return Listed(tuple(items))
    start = draw(st.integers(0, len(items)))
    stop = draw(st.integers(start, len(items)))
    return Listed((*items[:start], *items[stop:]), start)


@st.composite
def _either(draw: st.DrawFn, call: Call) -> Pattern:
    """A call or something beside it."""
    other = draw(st.sampled_from([replace(call, op="neg"), replace(call, args=()), Name("W")]))
    return Either(tuple(draw(st.permutations([call, other]))))
