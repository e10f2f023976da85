"""The dataflow view: every node and tensor is there, and who feeds whom."""

from __future__ import annotations

from typing import Any

import networkx as nx
import pytest
import torch
from torch import Tensor, fx, nn

import fxprune
from fxprune.errors import MissingParameterError, PassError, PassTypeError
from fxprune.program.dataflow import (
    Vertex,
    alias_groups,
    ancestors,
    dataflow,
    descendants,
    fed_by,
    feeds,
    reachable,
)
from tests.models.zoo import QUICK, ZOO
from tests.tools.capture_helpers import program_of
from tests.tools.profiles import thorough_but

RULE = {"select": {"ndim": [2, 3, 4, 5]}, "method": "l1_unstructured", "amount": 0.5}


@pytest.mark.parametrize("name", thorough_but(QUICK, ZOO))
def test_each_node_tensor_and_argument_is_in_the_view(name: str) -> None:
    dense = program_of(name)
    for program in (dense, fxprune.prune(dense, {"rule": [RULE]})):
        for mode, graph in program.graphs.items():
            check_view(program, dataflow(program, mode), graph)


def check_view(program: fxprune.Program, view: Any, graph: fx.Graph) -> None:
    assert {v.name for v in view if v.kind == "node"} == {node.name for node in graph.nodes}
    assert [v.name for v in view if v.kind == "parameter"] == list(program.aliases)
    assert {v.name for v in view if v.kind == "buffer"} >= set(dict(program.named_buffers()))
    forward = [(a, b) for a, b, data in view.edges(data=True) if "write" not in data]
    assert nx.is_directed_acyclic_graph(nx.DiGraph(forward))
    for node in graph.nodes:
        taken = {(a.name, b.name) for a, b in forward if b == Vertex("node", node.name)}
        assert {(source.name, node.name) for source in node.all_input_nodes} <= taken


def test_the_view_is_frozen() -> None:
    view = dataflow(program_of("lenet"))
    with pytest.raises(nx.NetworkXError):
        view.add_node(Vertex("node", "more"))


def test_a_mask_changes_nothing_in_what_a_parameter_feeds() -> None:
    program = program_of("attention")
    masked = fxprune.prune(program, {"rule": [RULE]})
    for name in program.aliases:
        assert feeds(program, name) == feeds(masked, name)
        assert reachable(masked, name, "output") == reachable(program, name, "output")
    mask = feeds(masked, Vertex("buffer", "attention.out_proj.weight_mask"))
    assert [(use.op, use.role) for use in mask] == [("mul", "other")]


def test_tied_parameters_are_one() -> None:
    program = program_of("tied_embedding")
    assert alias_groups(program) == (("emb.weight", "out.weight"),)
    assert feeds(program, "out.weight") == feeds(program, "emb.weight")
    uses = {(use.op, use.role) for use in feeds(program, "out.weight")}
    assert uses == {("embedding", "weight"), ("linear", "weight")}
    assert alias_groups(program_of("lenet")) == ()


def test_a_module_called_twice_feeds_two_nodes() -> None:
    program = program_of("called_twice")
    used = [use for name in program.aliases for use in feeds(program, name)]
    assert (
        max(sum(use.source == source for use in used) for source in {u.source for u in used}) == 2
    )


def test_fed_by_names_the_tensors_and_nodes_that_a_node_takes() -> None:
    program = fxprune.prune(program_of("lenet"), {"rule": [RULE]})
    (use,) = feeds(program, "conv2.weight")
    taken = {use.role: use.source for use in fed_by(program, use.target)}
    assert taken["weight"] == Vertex("parameter", "conv2.weight")
    assert taken["bias"] == Vertex("parameter", "conv2.bias")
    assert taken["input"].kind == "node"
    assert fed_by(program, "output")[0].role == "output"
    assert fed_by(program, "conv1.weight") == ()


def test_reachability_follows_the_layers() -> None:
    program = program_of("lenet")
    assert reachable(program, "conv1.weight", "output")
    (second,) = feeds(program, "conv2.weight")
    assert reachable(program, "conv1.bias", second.target)
    assert not reachable(program, "fc3.weight", second.target)
    assert second.target in descendants(program, "conv1.weight")
    assert Vertex("parameter", "conv1.weight") in ancestors(program, second.target)
    assert Vertex("parameter", "fc1.weight") not in ancestors(program, second.target)


def test_each_mode_has_its_view() -> None:
    program = program_of("aux_head")
    name = next(name for name in program.aliases if name.startswith("aux."))
    assert feeds(program, name, "train")
    assert not feeds(program, name, "eval")
    assert feeds(program.eval(), name) == ()
    assert feeds(program.train(), name) == feeds(program, name, "train")
    with pytest.raises(PassError, match="mode='both': the program has a graph for train and eval"):
        dataflow(program, "both")
    lenet = program_of("lenet")
    assert feeds(lenet, "conv1.weight", "train") == feeds(lenet, "conv1.weight")


class InPlace(nn.Module):
    """Writes into a view of its hidden layer, and returns the hidden layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 4)
        self.second = nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x)
        hidden.view(-1).add_(self.second(x).view(-1))
        return hidden


def test_what_is_written_in_place_reaches_what_reads_it() -> None:
    program = fxprune.capture(InPlace(), (torch.randn(2, 3),))
    assert reachable(program, "second.weight", "output")
    assert not reachable(program, "second.weight", "x")
    assert all(use.op != "view" for use in feeds(program, "second.weight"))


def test_what_does_not_exist_is_refused_with_the_nearest_name() -> None:
    program = program_of("lenet")
    with pytest.raises(MissingParameterError, match=r"'conv1.wieght'; did you mean 'conv1.weight'"):
        feeds(program, "conv1.wieght")
    with pytest.raises(PassTypeError, match="dataflow takes a Program, not Linear"):
        dataflow(nn.Linear(2, 2))  # pyright: ignore[reportArgumentType]
    with pytest.raises(PassTypeError):
        alias_groups(nn.Linear(2, 2))  # pyright: ignore[reportArgumentType]
