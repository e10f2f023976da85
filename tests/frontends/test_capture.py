"""Capture: the source stays as it is, and the Program computes what it computes."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.program import parameters
from tests.models.zoo import ZOO
from tests.tools.capture_helpers import check_forwards, check_same, masked, net, run, state_of

X = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))


# The source


@pytest.mark.parametrize(
    "name", ["residual_cnn", "stochastic_depth", "frozen_bn", "lstm", "buffers"]
)
def test_the_source_is_untouched(name: str) -> None:
    model, args, kwargs = ZOO[name]()
    model.eval()
    next(iter(model.children())).train()
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
        return self.bn(x) if x.sum() > 0 else x

    # Its batch statistics have no parameters, so that there is no region to capture.
    model = net(forward, bn=nn.BatchNorm1d(3, affine=False)).eval()
    before, generator = state_of(model), torch.get_rng_state()
    with pytest.raises(fxprune.FxpruneError):
        fxprune.capture(model, (X,))
    assert torch.equal(torch.get_rng_state(), generator)
    check_same(state_of(model), before)
    assert not any(m.training for m in model.modules())


def test_a_generator_that_forward_makes_is_refused() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        order = torch.randperm(3, generator=torch.Generator().manual_seed(0))
        return self.fc(x[:, order])

    with pytest.raises(fxprune.FxpruneError, match="makes a Generator of its own"):
        fxprune.capture(net(forward, fc=nn.Linear(3, 2)), (X,))


@pytest.mark.smoke
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
    assert list(parameters.masks(program)) == ["0.weight"]
