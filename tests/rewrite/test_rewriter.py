"""The Rewriter: every edit is counted and stamped, and nothing else edits."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.fx.node import Node

from fxprune.errors import InvariantError, MissingParameterError, ShapeError
from fxprune.program import parameters
from fxprune.program.program import Program
from fxprune.rewrite.pattern import Refusal
from fxprune.rewrite.rewriter import Rewriter, RewriteRule, rule
from fxprune.testing.assert_pass import program_text as text
from tests.tools.helpers import model, program

aten = torch.ops.aten


def node(program: Program, name: str) -> Node:
    return next(n for graph in program.graphs.values() for n in graph.nodes if n.name == name)


class Doubled(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + x


@rule("relu(x)", name="double-relu")
def double_relu(rw: Rewriter, node: Node, x: Node) -> Node | Refusal:
    """Replace relu(x) by relu(x + x), once."""
    if "fxprune.by" in x.meta:
        return Refusal("it is doubled already", node)
    total = rw.call(aten.add.Tensor, (x, x), before=node)
    rw.set_argument(node, 0, total)
    return node


@rule("linear(x, W)", name="refuse")
def refuse(rw: Rewriter, node: Node, x: Node, W: Node) -> Node | Refusal:  # noqa: N803
    """Refuse all."""
    return Refusal("linear layers stay", node)


# Rules


@pytest.mark.smoke
def test_a_rule_is_applied_where_its_pattern_fits():
    p = program("mlp")
    rewriter = Rewriter(p, by="test")
    rewriter.apply([double_relu])
    assert rewriter.edits == 2
    assert rewriter.refusals == []
    assert node(p, "add_tensor").meta["fxprune.by"] == "double-relu"
    assert "fxprune.by" not in node(p, "relu").meta


def test_what_a_rule_refuses_is_kept_and_edits_nothing():
    p = program("mlp")
    before = text(p)
    rewriter = Rewriter(p, by="test")
    rewriter.apply([refuse])
    assert rewriter.refusals == [
        Refusal("linear layers stay", node(p, "linear")),
        Refusal("linear layers stay", node(p, "linear_1")),
    ]
    assert rewriter.edits == 0
    assert text(p) == before


def test_a_rule_sees_every_graph():
    p = program("modes")
    rewriter = Rewriter(p, by="test")
    rewriter.apply([double_relu])
    assert rewriter.edits == 4
    assert text(p).count("# double-relu") == 2


def test_rules_are_tried_in_order_and_each_node_once():
    seen: list[tuple[str, str]] = []

    def watch(name: str) -> RewriteRule:
        def rewrite(rw: Rewriter, node: Node, x: Node) -> Node | Refusal:
            seen.append((name, node.name))
            return rw.call(aten.relu.default, (x,), before=node)

        return RewriteRule(name, double_relu.pattern, rewrite)

    Rewriter(program("mlp"), by="test").apply([watch("a"), watch("b")])
    # the second rule sees what the first one made
    assert seen == [("a", "relu"), ("b", "relu_default"), ("b", "relu")]


def test_a_node_that_a_rule_erased_is_not_tried():
    tried: list[str] = []

    @rule("linear(x, W)", name="drop-next")
    def drop_next(rw: Rewriter, node: Node, x: Node, W: Node) -> Node | Refusal:  # noqa: N803
        tried.append(node.name)
        if node.name == "linear_1":
            return Refusal("it should be gone", node)
        last = next(n for n in node.graph.nodes if n.name == "linear_1")
        rw.replace_uses(last, node)
        rw.erase(last)
        return node

    rewriter = Rewriter(program("mlp"), by="test")
    rewriter.apply([drop_next])
    assert tried == ["linear"]
    assert rewriter.edits == 2


def test_the_rewriter_edits_in_its_own_name_again_after_a_rule():
    p = program("mlp")
    rewriter = Rewriter(p, by="the-pass")
    rewriter.apply([double_relu])
    made = rewriter.read("0.weight", before=node(p, "relu"))
    assert made.meta["fxprune.by"] == "the-pass"


# Graph edits


def test_every_edit_of_a_graph_is_counted():
    p = program("mlp")
    rewriter = Rewriter(p, by="test")
    relu, linear = node(p, "relu"), node(p, "linear")
    read = rewriter.read("0.bias", before=relu)
    assert (read.op, read.target, read.meta["fxprune.by"]) == ("get_attr", "0.bias", "test")
    total = rewriter.call(aten.add.Tensor, (linear, read), before=relu)
    assert total.meta["fxprune.by"] == "test"
    rewriter.set_argument(relu, 0, total)
    rewriter.set_keyword(total, "alpha", 2)
    assert total.kwargs == {"alpha": 2}
    rewriter.retarget(read, "2.bias")
    assert rewriter.edits == 5
    rewriter.replace_uses(total, linear)
    rewriter.erase(total)
    rewriter.erase(read)
    assert rewriter.edits == 8
    assert text(p) == text(program("mlp"))


def test_uses_are_replaced_but_for_the_new_nodes_own():
    p = program("twice")
    rewriter = Rewriter(p, by="test")
    weight = node(p, "fc_weight")
    product = rewriter.call(aten.neg.default, (weight,), before=node(p, "linear"))
    rewriter.replace_uses(weight, product)
    assert list(weight.users) == [product]
    assert [user.name for user in product.users] == ["linear", "linear_1"]


def test_finish_compiles_the_edited_graphs():
    p = program("mlp")
    x = torch.randn(3, 3)
    rewriter = Rewriter(p, by="test")
    rewriter.apply([double_relu])
    assert torch.equal(p(x), program("mlp")(x))
    rewriter.finish()
    first, relu, last = model("mlp").children()
    assert torch.equal(p(x), nn.Sequential(first, Doubled(), relu, last)(x))


def test_finish_without_edits_does_nothing(monkeypatch: pytest.MonkeyPatch):
    p = program("mlp")

    def fail(self: Program) -> None:
        raise AssertionError("compiled")

    monkeypatch.setattr(Program, "recompile", fail)
    Rewriter(p, by="test").finish()


def test_a_graph_that_is_not_well_formed_is_an_error_that_names_the_pass():
    p = program("mlp")
    rewriter = Rewriter(p, by="careless")
    rewriter.set_argument(node(p, "linear"), 0, node(p, "relu"))
    with pytest.raises(InvariantError, match=r"careless left a graph that is not well-formed.*"):
        rewriter.finish()


def test_a_read_of_what_is_not_there_is_not_well_formed():
    p = program("mlp")
    rewriter = Rewriter(p, by="careless")
    rewriter.retarget(node(p, "_0_weight"), "0.weigth")
    with pytest.raises(InvariantError, match=r"careless.*0\.weigth"):
        rewriter.finish()


# Tree edits


def keys(p: Program) -> list[str]:
    return list(p.state_dict())


def test_a_mask_makes_a_parameter_a_masked_one():
    p = program("mlp")
    weight = p.parameter("0.weight")
    mask = torch.tensor([[1, 0, 1], [0, 1, 1], [1, 1, 1], [0, 0, 0]])
    rewriter = Rewriter(p, by="test")
    rewriter.add_mask("0.weight", mask)
    assert rewriter.edits == 1
    assert keys(p) == ["0.bias", "0.weight_orig", "0.weight_mask", "2.weight", "2.bias"]
    assert p.parameter("0.weight") is weight
    assert p.masks["0.weight"].dtype is torch.float32
    assert torch.equal(p.masks["0.weight"], mask.float())
    assert torch.equal(p.get_submodule("0").weight, weight * mask)  # pyright: ignore
    rewriter.add_mask("0.weight", torch.ones(4, 3))
    assert rewriter.edits == 2
    assert p.masks["0.weight"].all()
    assert p.parameter("0.weight") is weight


def test_every_alias_of_a_parameter_gets_the_same_mask():
    p = program("tied")
    weight = p.parameter("emb.weight")
    rewriter = Rewriter(p, by="test")
    rewriter.add_mask("out.weight", torch.eye(4, 3))
    assert rewriter.edits == 1
    assert keys(p) == ["emb.weight_orig", "emb.weight_mask", "out.weight_orig", "out.weight_mask"]
    assert p.masks["emb.weight"] is p.masks["out.weight"]
    assert p.parameter("emb.weight") is p.parameter("out.weight") is weight


def test_a_mask_of_another_shape_is_refused():
    p = program("mlp")
    rewriter = Rewriter(p, by="test")
    with pytest.raises(ShapeError, match=r"mask of '0\.weight' has shape \(3,\), .* \(4, 3\)"):
        rewriter.add_mask("0.weight", torch.ones(3))
    assert rewriter.edits == 0
    assert not p.masks


def test_a_parameter_that_is_not_there_is_refused():
    with pytest.raises(MissingParameterError, match=r"did you mean '0\.weight'"):
        Rewriter(program("mlp"), by="test").add_mask("0.weigth", torch.ones(4, 3))


def test_dropping_a_mask_gives_the_parameter_back():
    p = program("mlp")
    weight = p.parameter("0.weight")
    rewriter = Rewriter(p, by="test")
    rewriter.add_mask("0.weight", torch.zeros(4, 3))
    rewriter.drop_mask("0.weight")
    assert rewriter.edits == 2
    assert keys(p) == ["0.bias", "0.weight", "2.weight", "2.bias"]
    assert p.parameter("0.weight") is weight
    assert p.captured.replaced == []
    rewriter.restore_order()
    assert rewriter.edits == 3
    assert keys(p) == keys(program("mlp"))
    rewriter.restore_order()
    assert rewriter.edits == 3


def test_new_values_come_as_another_parameter_that_is_noted():
    p = program("tied")
    weight = p.parameter("emb.weight").requires_grad_(False)
    rewriter = Rewriter(p, by="test")
    rewriter.add_mask("emb.weight", torch.zeros(4, 3))
    rewriter.drop_mask("out.weight", torch.full((4, 3), 2.0))
    new = p.parameter("emb.weight")
    assert p.parameter("out.weight") is new
    assert not new.requires_grad
    assert torch.equal(new, torch.full((4, 3), 2.0))
    assert p.captured.replaced == [(weight, new)]
    assert not weight.eq(2.0).all()


def test_adopting_renames_the_stored_parameter():
    p = program("mlp")
    owner = p.get_submodule("0")
    owner._parameters["weight_orig"] = owner._parameters.pop("weight")
    owner.register_buffer("weight_mask", torch.ones(4, 3, dtype=torch.bool))
    names = {"0.weight_orig": "0.weight_orig", "0.bias": "0.bias"}
    p.captured.first = {**names, "2.weight": "2.weight", "2.bias": "2.bias"}
    rewriter = Rewriter(p, by="test")
    rewriter.adopt("0.weight")
    assert rewriter.edits == 1
    assert list(p.captured.first) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert parameters.masks(p)["0.weight"].dtype is torch.float32
    rewriter.adopt("0.weight")
    assert rewriter.edits == 1
