"""finalize: masks are multiplied into the parameters, whose names and order come back."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.utils.prune as torch_prune
from torch import nn

import fxprune
from fxprune import functional as prune
from fxprune.errors import MissingParameterError, NotPrunedError
from fxprune.passes.fold_masks import fold_mask
from fxprune.program.program import Program
from fxprune.rewrite.pattern import Refusal
from fxprune.rewrite.registry import create
from fxprune.rewrite.rewriter import Rewriter
from fxprune.testing.assert_pass import program_text as text
from fxprune.testing.assert_pass import snapshot
from fxprune.testing.comparing import difference, is_same
from tests.conftest import Golden
from tests.tools.helpers import both_texts, inputs, model, program, run

# A masked parameter of each model, and the edits that fold its mask: one of the tree, and four of
# each graph that reads it (the read renamed, its users, the product and the mask's read erased).
HITS: list[tuple[str, str, int]] = [
    ("mlp", "2.weight", 5),
    ("twice", "fc.weight", 5),
    ("tied", "out.weight", 5),
    ("modes", "body.weight", 9),
    ("modes", "aux.bias", 5),
]
each_hit = pytest.mark.parametrize(("name", "parameter", "edits"), HITS)


def masked(name: str, *parameters: str) -> Program:
    p = program(name)
    for parameter in parameters:
        prune.l1_unstructured(p, parameter, 0.5)
    return p


def folded(name: str, parameter: str) -> tuple[Program, Rewriter]:
    p = masked(name, parameter)
    rewriter = Rewriter(p, by="test")
    rewriter.drop_mask(parameter, p.value(parameter))
    rewriter.apply([fold_mask])
    rewriter.finish()
    return p, rewriter


# The rule: hits, refuses, once, and with equal outputs


@pytest.mark.smoke
@each_hit
def test_fold_mask_hits(name: str, parameter: str, edits: int, golden: Golden):
    before = text(masked(name, parameter))
    p, rewriter = folded(name, parameter)
    assert rewriter.edits == edits
    assert rewriter.refusals == []
    golden("finalize", f"{name}-{parameter}", both_texts(before, text(p)))


class Scaled(nn.Module):
    """Multiplies a parameter with another one."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.ones(3))
        self.scale = nn.Parameter(torch.ones(3) / 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * (self.w * self.scale)


def test_fold_mask_refuses():
    p = fxprune.capture(Scaled(), (torch.zeros(2, 3),))
    prune.identity(p, "w")
    before = snapshot(p)
    rewriter = Rewriter(p, by="test")
    rewriter.apply([fold_mask])
    nodes = {node.name: node for node in p.graph.nodes}
    assert rewriter.refusals == [
        Refusal("the parameter keeps its mask", nodes["mul_tensor"]),
        Refusal("the factor is not the parameter's mask", nodes["mul"]),
    ]
    assert rewriter.edits == 0
    assert snapshot(p) == before


@each_hit
def test_fold_mask_is_idempotent(name: str, parameter: str, edits: int):
    p, _ = folded(name, parameter)
    before = snapshot(p)
    rewriter = Rewriter(p, by="test")
    rewriter.apply([fold_mask])
    assert rewriter.edits == 0
    assert snapshot(p) == before
    # a mask's own order of keys is not the source's: the pass puts that back, once
    run(p, create("finalize"))
    assert run(p, create("finalize"))[1].edits == 0


@each_hit
def test_fold_mask_keeps_semantics(name: str, parameter: str, edits: int):
    before, (after, _) = masked(name, parameter), folded(name, parameter)
    for train in (True, False):
        assert is_same(after.train(train)(*inputs(name)), before.train(train)(*inputs(name)))


# The pass


def test_all_masks_of_a_model(golden: Golden):
    p = masked("conv", *program("conv").aliases)
    before = text(p)
    assert run(p, create("finalize"))[1].edits == 30
    golden("finalize", "conv", both_texts(before, text(p)))


@pytest.mark.parametrize("name", ["mlp", "conv", "tied", "modes"])
def test_everything_is_folded(name: str):
    p = masked(name, *program(name).aliases)
    values = {alias: p.value(alias) for alias in p.aliases}
    before = p(*inputs(name))
    run(p, create("finalize"))
    assert not p.masks
    assert list(p.state_dict()) == list(model(name).state_dict())
    assert is_same({alias: p.parameter(alias).detach() for alias in p.aliases}, values)
    assert is_same(p(*inputs(name)), before)


def test_named_masks_are_folded_and_the_others_stay():
    p = masked("mlp", "0.weight", "2.weight")
    run(p, create("finalize", names=("2.weight",)))
    assert list(p.masks) == ["0.weight"]
    keys = ["0.weight_orig", "0.bias", "0.weight_mask", "2.weight", "2.bias"]
    assert list(p.state_dict()) == keys


def test_an_alias_names_the_mask_of_all():
    p = masked("tied", "emb.weight")
    run(p, create("finalize", names=("out.weight", "emb.weight")))
    assert not p.masks
    assert p.parameter("emb.weight") is p.parameter("out.weight")


def test_keys_stay_where_torch_puts_them_unless_the_sources_order_is_wanted():
    p, source = masked("mlp", "0.weight"), model("mlp")
    torch_prune.l1_unstructured(source.get_submodule("0"), "weight", 0.5)
    torch_prune.remove(source.get_submodule("0"), "weight")
    run(p, create("finalize", source_order=False))
    assert list(p.state_dict()) == ["0.bias", "0.weight", "2.weight", "2.bias"]
    assert difference(dict(p.state_dict()), dict(source.state_dict())) is None


def test_only_masked_parameters_can_be_folded():
    p = masked("mlp", "0.weight")
    with pytest.raises(NotPrunedError, match=r"'2\.bias' has to be pruned .* masked are 0\.weight"):
        run(p, create("finalize", names=("0.weight", "2.bias")))
    with pytest.raises(MissingParameterError, match=r"did you mean '0\.weight'"):
        run(p, create("finalize", names=("0.weigth",)))
    assert list(p.masks) == ["0.weight"]


def test_a_plain_program_is_final_already():
    p = program("conv")
    before = snapshot(p)
    assert run(p, create("finalize"))[1].edits == 0
    assert snapshot(p) == before


AWKWARD = torch.tensor([[-1.0, math.inf, math.nan], [-0.0, 2.0, -3.0]])
MASK = torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.5, 1.0]])


@pytest.mark.parametrize("zeros", ["keep", "clean"])
def test_zeros_are_kept_or_clean(zeros: str):
    p = program("linear")
    p.parameter("weight").data.copy_(AWKWARD)
    prune.custom_from_mask(p, "weight", MASK)
    run(p, create("finalize", zeros=zeros))
    clean = torch.tensor([[0.0, 0.0, 0.0], [0.0, 1.0, -3.0]])
    expected = AWKWARD * MASK if zeros == "keep" else clean
    assert is_same(p.parameter("weight").detach(), expected)


def test_a_frozen_parameter_stays_frozen():
    p = program("mlp")
    p.parameter("0.weight").requires_grad_(False)
    prune.identity(p, "0.weight")
    final = fxprune.finalize(p)
    assert not final.parameter("0.weight").requires_grad
    assert final.parameter("2.weight").requires_grad


def test_a_model_that_writes_to_its_input_and_its_buffers_is_finalized():
    class Writes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(3, 3)
            self.register_buffer("count", torch.zeros(()))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            count = self.get_buffer("count").add_(1)
            return self.first(x.mul_(2.0)) * count

    program = fxprune.capture(Writes(), (torch.randn(2, 3),))
    rule = {"select": "*", "method": "l1_unstructured", "amount": 0.5}
    masked = fxprune.prune(program, {"rule": [rule]})
    final = fxprune.finalize(masked)
    assert all(each.get_buffer("count") == 0 for each in (program, masked, final))
    x = torch.randn(2, 3)
    assert torch.equal(final(x.clone()), masked(x.clone()))
