"""The tree of a Program: its tensors in their places, its aliases one object each."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxprune
from fxprune.program.encoding import graph_text
from fxprune.program.parameters import kind_of
from tests.models.zoo import ZOO
from tests.tools.capture_helpers import captured, check_forwards, check_same, masked, net

X = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))


def products(program: fxprune.Program) -> int:
    return graph_text(program.graph).count("aten.mul.Tensor")


# The tree


class Everything(nn.Module):
    """Parameters in every place, buffers of both kinds, modules without tensors."""

    late: Tensor
    cached: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.randn(3))
        self.register_buffer("late", torch.randn(3))
        self.register_buffer("cached", torch.randn(3), persistent=False)
        self.register_buffer("nothing", None)
        self.register_parameter("absent", None)
        self.empty = nn.ModuleDict({"a": nn.Sequential(), "b": nn.Identity()})
        self.many = nn.ParameterList([torch.randn(3), torch.randn(3, 3)])
        self.named = nn.ParameterDict({"w": torch.randn(3, 3), "unused": torch.randn(2)})
        self.layers = nn.ModuleList([nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3)])
        self.plain = torch.randn(3)
        self.pieces = [torch.randn(3), 2.0]
        self.optional: nn.Module | None = None
        self.register_module("none", None)

    def forward(self, x: Tensor) -> Tensor:
        x = x * self.scale + self.late + self.cached + self.plain + self.pieces[0]
        x = self.empty["a"](x) @ self.many[1] + self.many[0]
        for layer in self.layers:
            x = layer(x)
        return self.empty["b"](x) @ self.named["w"]


def test_every_kind_of_tensor_has_its_place() -> None:
    torch.manual_seed(0)
    model = Everything()
    program = fxprune.capture(model, (X,))
    check_forwards(program, copy.deepcopy(model), (X,))
    assert list(dict(program.named_parameters())) == list(dict(model.named_parameters()))
    assert set(dict(program.named_buffers())) >= set(dict(model.named_buffers()))
    named = dict(model.named_modules())
    assert {k: kind_of(m) for k, m in program.named_modules() if k in named and k} == {
        k: type(m).__name__ for k, m in named.items() if k
    }
    for ours in (copy.deepcopy(program), pickle.loads(pickle.dumps(program))):
        assert list(ours.state_dict()) == list(model.state_dict())
        assert "cached" not in ours.state_dict()
        check_same(ours(X), model(X))


def test_every_kind_of_parameter_is_masked() -> None:
    torch.manual_seed(0)
    model = Everything()
    program = masked(model, (X,), path="*")
    assert list(program.masks) == [name for name, _ in model.named_parameters()]
    dense = copy.deepcopy(model)
    with torch.no_grad():
        for name, mask in program.masks.items():
            dense.get_parameter(name).mul_(mask)
    check_same(program(X), dense(X))
    final = fxprune.finalize(program)
    assert list(final.state_dict()) == list(model.state_dict())
    check_same(final(X), dense(X))


def test_reads_of_the_tree_work_as_on_the_source() -> None:
    (source, _, _), captured_program = captured("residual_cnn")
    model: Any = source
    program: Any = captured_program
    check_same(program.get_submodule("block1.conv1").weight, model.block1.conv1.weight)
    check_same(program.block2.downsample.get_submodule("1").running_mean, torch.zeros(12))
    assert "BatchNorm2d" in repr(program)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = program.block1.nonsense
    assert not hasattr(program, "nonsense")


@pytest.mark.parametrize("requires_grad", [True, False])
def test_frozen_parameters_stay_frozen(requires_grad: bool) -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    model[0].requires_grad_(requires_grad)
    program = masked(model, (X,))
    assert program.parameter("0.weight").requires_grad is requires_grad
    program(X).sum().backward()
    assert (program.parameter("0.weight").grad is not None) is requires_grad
    assert program.parameter("1.weight").grad is not None
    final = fxprune.finalize(program)
    assert [p.requires_grad for p in final.parameters()] == [
        p.requires_grad for p in model.parameters()
    ]


# Aliases


def test_tied_parameters_stay_one_object() -> None:
    model, args, _ = ZOO["tied_embedding"]()
    program = fxprune.capture(model, args)
    assert program.aliases["emb.weight"] == ("emb.weight", "out.weight")
    for ours in (
        program,
        copy.deepcopy(program),
        pickle.loads(pickle.dumps(program)),
        masked(program),
    ):
        assert ours.parameter("emb.weight") is ours.parameter("out.weight")
        assert len(list(ours.parameters())) == len(list(model.parameters()))
    pruned = masked(program, path="out.weight")
    assert pruned.masks["emb.weight"] is pruned.masks["out.weight"]
    assert list(pruned.masks) == ["emb.weight"]
    assert products(pruned) == 1


def test_shared_modules_stay_one_object() -> None:
    model, args, _ = ZOO["shared_module"]()
    program = fxprune.capture(model, args)
    for ours in (program, copy.deepcopy(program), pickle.loads(pickle.dumps(program))):
        assert ours.get_submodule("first") is ours.get_submodule("second")
    pruned = masked(program, path="first.weight")
    assert products(pruned) == 1
    assert list(dict(pruned.named_parameters())) == [
        "first.bias",
        "first.weight_orig",
        "norm.weight",
        "norm.bias",
    ]


def test_a_parameter_tied_across_depths_and_calls() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        return F.linear(self.inner(x), self.weight) + self.inner(x)

    first, second = nn.Linear(3, 3), nn.Linear(3, 3)
    second.weight = first.weight
    inner = nn.Sequential(first, nn.Sequential(second))
    model = net(forward, inner=inner, weight=first.weight)
    program = fxprune.capture(model, (X,))
    assert program.aliases["weight"] == ("weight", "inner.0.weight", "inner.1.0.weight")
    check_forwards(program, copy.deepcopy(model), (X,))
    pruned = masked(program)
    assert list(pruned.masks) == ["weight"]
    assert products(pruned) == 1
    dense = copy.deepcopy(model)
    with torch.no_grad():
        dense.get_parameter("weight").mul_(pruned.masks["weight"])
    check_same(pruned(X), dense(X))
    check_same(fxprune.finalize(pruned)(X), dense(X))
