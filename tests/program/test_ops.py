"""Operator names and argument roles, of plain and of recurrent operators."""

from __future__ import annotations

import operator
from typing import Any

import pytest
import torch
from torch import fx, nn
from torch.fx.node import Node

import fxprune
from fxprune.program import ops
from tests.tools.helpers import source_of

aten = torch.ops.aten
NAMES: list[tuple[Any, str]] = [
    (aten.relu.default, "relu"),
    (aten.relu_.default, "relu"),
    (aten.add.Tensor, "add"),
    (aten.add_.Scalar, "add"),
    (aten._softmax.default, "_softmax"),
    (aten.__and__.Tensor, "__and__"),
    (aten.lstm.input, "lstm"),
    (torch.relu, "relu"),
    (operator.mul, "mul"),
    (len, "len"),
    ("conv1.weight", "conv1.weight"),
]


@pytest.mark.parametrize(("target", "name"), NAMES, ids=[str(name) for _, name in NAMES])
def test_a_name_has_no_namespace_no_overload_and_no_in_place_mark(target: Any, name: str):
    assert ops.canonical_name(target) == name


def call(target: Any, *args: Any, **kwargs: Any) -> Node:
    """Make a call of nodes x, w, b: a text stands for the node of that name."""
    graph = fx.Graph()
    made: dict[str, Node] = {}

    def node(arg: Any) -> Any:
        if isinstance(arg, str):
            return made.setdefault(arg, graph.placeholder(arg))
        return [node(part) for part in arg] if isinstance(arg, list) else arg

    placed = [node(arg) for arg in args]
    return graph.call_function(target, tuple(placed), {k: node(v) for k, v in kwargs.items()})


@pytest.mark.smoke
def test_a_schema_lists_its_arguments():
    names = [arg.name for arg in ops.schema_arguments(aten.linear.default)]
    assert names == ["input", "weight", "bias"]
    assert ops.schema_arguments(operator.mul) == ()
    assert ops.schema_arguments("weight") == ()


def test_an_argument_is_positional_or_keyword_or_the_default():
    node = call(aten.conv2d.default, "x", "w", groups=2)
    assert str(ops.argument(node, "weight")) == "w"
    assert ops.argument(node, "groups") == 2
    assert ops.argument(node, "bias") is None
    assert ops.argument(node, "stride") == [1, 1]
    assert ops.has_role(node, "padding")
    assert not ops.has_role(node, "momentum")


@pytest.mark.parametrize("target", [aten.relu.default, operator.mul])
def test_an_unknown_argument_is_a_key_error(target: Any):
    with pytest.raises(KeyError, match="momentum"):
        ops.argument(call(target, "x"), "momentum")


def roles(node: Node) -> list[tuple[str, str]]:
    return [(role, part.name) for role, part in ops.roles(node)]


def test_roles_come_from_the_schema():
    assert roles(call(aten.linear.default, "x", "w", "b")) == [
        ("input", "x"),
        ("weight", "w"),
        ("bias", "b"),
    ]
    assert roles(call(aten.conv2d.default, "x", weight="w")) == [("input", "x"), ("weight", "w")]


def test_a_node_in_a_list_has_the_lists_role_and_a_node_read_twice_both_roles():
    assert roles(call(aten.cat.default, ["x", "w"], 1)) == [("tensors", "x"), ("tensors", "w")]
    assert roles(call(aten.add.Tensor, "x", "x")) == [("self", "x"), ("other", "x")]


def test_without_a_schema_roles_are_numbered():
    assert roles(call(operator.mul, "x", 2)) == [("arg0", "x")]
    node = call(operator.mul, 2, b="x")
    assert roles(node) == [("b", "x")]


@pytest.mark.parametrize("name", ["mlp", "conv", "twice", "tied", "modes"])
def test_every_parameter_of_a_captured_model_has_its_role(name: str):
    program = source_of(name)
    found = {
        (role, str(part.target).rpartition(".")[2])
        for graph in program.graphs.values()
        for node in graph.nodes
        for role, part in ops.roles(node)
        if part.op == "get_attr" and part.target in program.captured.first
    }
    assert {role for role, attribute in found if role != attribute} == set()


# Recurrent layers: the role of each parameter starts its attribute's name


def recurrent(kind: Any, **options: Any) -> dict[str, str]:
    """The role of each parameter of a captured recurrent layer, by name."""
    layer = kind(3, 4, batch_first=True, **options)
    graph = fxprune.capture(layer, (torch.zeros(2, 3, 3),)).graph
    node = next(node for node in graph.nodes if ops.canonical_name(node.target) in ops.RECURRENT)
    names = dict(layer.named_parameters())
    return {str(part.target): role for role, part in ops.roles(node) if part.target in names}


RECURRENT: list[tuple[Any, dict[str, Any]]] = [
    (nn.RNN, {}),
    (nn.RNN, {"nonlinearity": "relu", "bias": False}),
    (nn.GRU, {"num_layers": 2, "bidirectional": True}),
    (nn.GRU, {"bias": False}),
    (nn.LSTM, {"bidirectional": True, "bias": False}),
    (nn.LSTM, {"proj_size": 2}),
    (nn.LSTM, {"proj_size": 2, "bias": False}),
    (nn.LSTM, {"proj_size": 2, "num_layers": 2, "bidirectional": True}),
    (nn.LSTM, {"proj_size": 2, "num_layers": 2, "bias": False}),
    (nn.LSTM, {"num_layers": 5}),
]


@pytest.mark.parametrize(("kind", "options"), RECURRENT)
def test_the_parameters_of_a_recurrent_layer_have_the_role_of_their_part(
    kind: Any, options: dict[str, Any]
):
    found = recurrent(kind, **options)
    assert found == {name: "_".join(name.split("_")[:2]) for name in found}
    assert len(found) == len(list(kind(3, 4, **options).parameters()))
