"""Capture: the source stays as it is, and the Program has its tensors, tree, aliases and forward."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxprune
from fxprune import tensors
from fxprune.graphs import graph_text
from fxprune.shell import kind_of
from tests.capture_helpers import check_forwards, check_same, masked, net, run, state_of
from tests.zoo import ZOO

X = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))


def products(program: fxprune.Program) -> int:
    return graph_text(program.graph).count("aten.mul.Tensor")


# The source


@pytest.mark.parametrize("name", ["residual_cnn", "stochastic_depth", "frozen_bn", "lstm", "buffers"])
def test_the_source_is_untouched(name: str) -> None:
    model, args, kwargs = ZOO[name]()
    model.eval()
    list(model.children())[0].train()
    calls: list[str] = []
    model.register_forward_pre_hook(lambda *_: calls.append("ran"))
    before, flags = state_of(model), [m.training for m in model.modules()]
    objects = [id(p) for p in (*model.parameters(), *model.buffers())]
    attributes = [set(vars(m)) for m in model.modules()]
    generator = torch.get_rng_state()

    program = fxprune.capture(model, args, kwargs)

    assert torch.equal(torch.get_rng_state(), generator)
    check_same(state_of(model), before)
    assert [m.training for m in model.modules()] == flags
    assert [id(p) for p in (*model.parameters(), *model.buffers())] == objects
    assert [set(vars(m)) for m in model.modules()] == attributes
    assert len(model._forward_pre_hooks) == 1
    calls.clear()
    assert [m.training for m in program.modules()] == flags
    shared = {t.data_ptr() for t in state_of(program).values()}
    assert shared.isdisjoint(t.data_ptr() for t in model.state_dict().values())


def test_a_capture_that_fails_leaves_the_source_untouched() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.bn(x) if x.sum() > 0 else self.l(x)

    model = net(forward, l=nn.Linear(3, 3), bn=nn.BatchNorm1d(3)).eval()
    before, generator = state_of(model), torch.get_rng_state()
    with pytest.raises(fxprune.FxpruneError):
        fxprune.capture(model, (X,))
    assert torch.equal(torch.get_rng_state(), generator)
    check_same(state_of(model), before)
    assert not any(m.training for m in model.modules())


def test_training_the_program_leaves_the_source_and_its_example_alone() -> None:
    model, x = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(3, 2)), X.clone()
    before = state_of(model)
    program = fxprune.capture(model, (x,))
    check_same(x, X)
    program(X.clone()).sum().backward()
    torch.optim.SGD(program.parameters(), lr=1.0).step()
    check_same(state_of(model), before)
    assert all(p.grad is None for p in model.parameters())


def test_a_program_is_captured_as_a_copy_of_itself() -> None:
    program = masked(nn.Linear(3, 2), (X,))
    again = fxprune.capture(program)
    assert again is not program
    check_same(again(X), program(X))
    assert list(again.masks) == ["weight"]


# The tree


class Everything(nn.Module):
    """Parameters at the root, in lists and dicts; buffers of both kinds; modules without tensors."""

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
    model, _, _ = ZOO["residual_cnn"]()
    program = fxprune.capture(*ZOO["residual_cnn"]())
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
    assert [p.requires_grad for p in final.parameters()] == [p.requires_grad for p in model.parameters()]


# Aliases


def test_tied_parameters_stay_one_object() -> None:
    model, args, _ = ZOO["tied_embedding"]()
    program = fxprune.capture(model, args)
    assert program.aliases["emb.weight"] == ("emb.weight", "out.weight")
    for ours in (program, copy.deepcopy(program), pickle.loads(pickle.dumps(program)), masked(program)):
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
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Sequential(nn.Linear(3, 3), nn.Sequential(nn.Linear(3, 3)))
            self.weight = self.inner[0].weight
            self.inner[1][0].weight = self.weight

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(self.inner(x), self.weight) + self.inner(x)

    model = Tied()
    program = fxprune.capture(model, (X,))
    assert program.aliases["weight"] == ("weight", "inner.0.weight", "inner.1.0.weight")
    check_forwards(program, copy.deepcopy(model), (X,))
    pruned = masked(program)
    assert list(pruned.masks) == ["weight"]
    assert products(pruned) == 1
    dense = copy.deepcopy(model)
    with torch.no_grad():
        dense.weight.mul_(pruned.masks["weight"])
    check_same(pruned(X), dense(X))
    check_same(fxprune.finalize(pruned)(X), dense(X))


# Forward


def test_a_tensor_made_in_forward_is_a_constant() -> None:
    model = net(lambda self, x: self.l(x) + torch.tensor([1.0, 2.0]), l=nn.Linear(3, 2))
    program = fxprune.capture(model, (X,))
    check_forwards(program, copy.deepcopy(model), (X,))


def test_tensors_in_place_and_views() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        y = self.l(x)
        y.relu_()
        y[:, 0] += 1
        z = y.T
        z.mul_(2)
        return y + z.T

    model = net(forward, l=nn.Linear(3, 2))
    check_forwards(fxprune.capture(model, (X,)), copy.deepcopy(model), (X,))


def test_a_buffer_that_forward_writes() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        self.count.add_(1)
        self.total = self.total + x.sum(0)
        return self.l(x) * self.count

    model = net(forward, l=nn.Linear(3, 2))
    model.register_buffer("count", torch.zeros(()))
    model.register_buffer("total", torch.zeros(3))
    check_forwards(fxprune.capture(model, (X,)), copy.deepcopy(model), (X,))


@pytest.mark.parametrize(
    "wrap", [nn.utils.parametrizations.weight_norm, nn.utils.parametrizations.spectral_norm]
)
def test_parametrized_weights(wrap: Any) -> None:
    torch.manual_seed(0)
    model = wrap(nn.Linear(3, 2)).eval()
    program = fxprune.capture(model, (X,)).eval()
    check_same(program(X), model(X))
    assert list(program.state_dict()) == list(model.state_dict())


def test_a_program_compiles_before_its_first_run() -> None:
    model = nn.Linear(3, 2)
    program = fxprune.capture(model, (X,))
    torch._dynamo.reset()
    check_same(torch.compile(program, fullgraph=True, backend="eager")(X), model(X))


@pytest.mark.parametrize("nest", [lambda y: y, lambda y: {"out": (y,)}], ids=["tensor", "dict"])
def test_an_exported_program_nests_its_outputs_as_the_source(nest: Any) -> None:
    model = net(lambda self, x: nest(self.l(x)), l=nn.Linear(3, 2))
    program = fxprune.capture(model, (X,))
    exported = torch.export.export(program, (X,), strict=False)
    check_same(exported.module()(X), model(X))


def test_a_program_in_a_larger_module() -> None:
    """As a layer of another module a Program is trained, copied and captured with it."""
    outer = nn.Sequential(masked(nn.Linear(3, 3), (X,)), nn.ReLU(), nn.Linear(3, 2))
    again = copy.deepcopy(outer)
    check_same(run(again, (X,)), run(outer, (X,)))
    program = fxprune.capture(outer, (X,))
    check_same(program(X), outer(X))
    assert list(program.state_dict()) == list(outer.state_dict())
    assert list(tensors.masks(program)) == ["0.weight"]
