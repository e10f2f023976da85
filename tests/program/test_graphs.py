"""Graphs as data and as text: there and back, equal for equal graphs."""

from __future__ import annotations

import operator
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import fx

from fxprune.errors import FormatError
from fxprune.program.encoding import copy_graph, decode_graph, encode_graph, fingerprint, graph_text
from fxprune.program.ops import canonical_name
from tests.tools.helpers import program, source_of

aten = torch.ops.aten


def small() -> fx.Graph:
    """A graph with many kinds of arguments and targets."""
    graph = fx.Graph()
    x = graph.placeholder("x")
    weight = graph.get_attr("weight")
    size = graph.call_function(aten.sym_size.int, (x, 0))
    rows = graph.call_function(operator.mul, (size, 2))
    joined = graph.call_function(aten.cat.default, ([x, x], 1))
    scaled = graph.call_function(aten.mul.Tensor, (joined, weight))
    filled = graph.call_function(aten.full.default, ([rows, 2], 0.5), {"dtype": torch.float32})
    filled.meta["fxprune.by"] = "a-rule"
    numbers = graph.call_function(torch.Tensor.numel, (scaled,))
    graph.output((scaled, [filled, numbers], None, "text"))
    return graph


def nested() -> fx.Graph:
    """Nodes inside slices and dicts, and in keywords."""
    graph = fx.Graph()
    x = graph.placeholder("x")
    size = graph.call_function(aten.sym_size.int, (x,), {"dim": 0})
    part = graph.call_function(operator.getitem, (x, (slice(None, size, 2), slice(0, 3))))
    graph.output({"y": (part, [size]), "none": None})
    return graph


TEXT = """\
%x = placeholder x
%weight = get_attr weight
%sym_size_int = aten.sym_size.int(%x, 0)
%mul = mul(%sym_size_int, 2)
%cat_default = aten.cat.default([%x, %x], 1)
%mul_tensor = aten.mul.Tensor(%cat_default, %weight)
%full_default = aten.full.default([%mul, 2], 0.5, dtype=torch.float32)  # a-rule
%numel = numel(%mul_tensor)
output (%mul_tensor, [%full_default, %numel], None, 'text')"""

MODELS = ["mlp", "conv", "twice", "tied", "modes"]


def everything(graph: fx.Graph) -> list[tuple[object, ...]]:
    return [(n.op, n.target, n.name, str(n.args), str(n.kwargs), n.meta) for n in graph.nodes]


@pytest.mark.smoke
def test_the_text_has_a_line_for_each_node():
    assert graph_text(small()) == TEXT


@pytest.mark.parametrize("make", [small, nested])
def test_a_graph_survives_being_data(make: Callable[[], fx.Graph]):
    graph = make()
    restored = decode_graph(encode_graph(graph))
    assert everything(restored) == everything(graph)
    assert everything(copy_graph(graph)) == everything(graph)
    restored.lint()


def test_restored_nodes_read_nodes_of_their_own_graph():
    restored = decode_graph(encode_graph(nested()))
    nodes = {node.name: node for node in restored.nodes}
    assert nodes["getitem"].all_input_nodes == [nodes["x"], nodes["sym_size_int"]]
    assert nodes["output"].all_input_nodes == [nodes["getitem"], nodes["sym_size_int"]]


def test_the_data_can_be_pickled():
    data = pickle.loads(pickle.dumps(encode_graph(small())))
    assert graph_text(decode_graph(data)) == TEXT


@pytest.mark.parametrize("name", MODELS)
def test_graphs_of_captured_models_survive(name: str):
    for graph in source_of(name).graphs.values():
        restored = decode_graph(encode_graph(graph))
        assert everything(restored) == everything(graph)
        assert everything(copy_graph(graph)) == everything(graph)


def test_a_restored_graph_computes_the_same():
    captured = program("conv").eval()
    graph = decode_graph(encode_graph(captured.graph))
    module = fx.GraphModule(captured, graph)
    x = torch.randn(3, 2, 4, 4)
    assert torch.equal(module(x)[0], captured(x))


def test_a_copy_shares_nothing_that_can_change():
    graph = small()
    copied = copy_graph(graph)
    last = next(node for node in copied.nodes if node.name == "full_default")
    last.meta["fxprune.by"] = "another"
    last.args = ([1, 1], 0.0)
    copied.erase_node(next(node for node in copied.nodes if node.op == "output"))
    assert graph_text(graph) == TEXT


def test_data_of_another_kind_is_refused():
    data = (("call_function", ("file", "x"), (), {}, "x", {}),)
    with pytest.raises(FormatError, match=r"unknown kind of target 'file'"):
        decode_graph(data)


# Fingerprints


def keep_all(node: fx.Node) -> bool:
    return False


def test_a_fingerprint_does_not_depend_on_names():
    graph, renamed = small(), copy_graph(small())
    for i, node in enumerate(renamed.nodes):
        node.name = f"node_{i}"
    assert fingerprint(graph, skip=keep_all) == fingerprint(renamed, skip=keep_all)


def test_a_fingerprint_tells_arguments_and_targets_apart():
    graph, other, third = small(), copy_graph(small()), copy_graph(small())
    next(node for node in other.nodes if node.name == "mul").args = (2, 2)
    next(node for node in third.nodes if node.name == "weight").target = "bias"
    assert fingerprint(graph, skip=keep_all) != fingerprint(other, skip=keep_all)
    assert fingerprint(graph, skip=keep_all) != fingerprint(third, skip=keep_all)


def test_a_fingerprint_skips_nodes_and_looks_through_others():
    graph, longer = fx.Graph(), fx.Graph()
    x = graph.placeholder("x")
    graph.output((graph.call_function(aten.relu.default, (x,)),))
    y = longer.placeholder("input")
    longer.get_attr("unused")
    same = longer.call_function(aten.alias.default, (y,))
    longer.output((longer.call_function(aten.relu.default, (same,)),))
    assert fingerprint(graph, skip=keep_all) == fingerprint(
        longer,
        skip=lambda node: node.op == "get_attr",
        transparent=lambda node: canonical_name(node.target) == "alias",
    )


def test_capturing_twice_gives_the_same_text():
    assert graph_text(program("conv").graph) == graph_text(source_of("conv").graph)
