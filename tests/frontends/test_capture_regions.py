"""Regions of another grad mode inside forward: seen by rules, masked, and left as they were."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxprune
from tests.tools.capture_helpers import check_forwards, check_same, masked, net, run, written

X = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))


def half_frozen(self: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        x = torch.tanh(self.frozen(x))
    return self.head(x)


def grad_inside(self: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        y = self.frozen(x)
        with torch.enable_grad():
            z = self.head(y)
        y = y * 2
    return z + y.sum(1, keepdim=True)


def shared_weight(self: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        y = self.frozen(x)
    return self.head(self.frozen(y))


def made(forward: Any) -> nn.Module:
    torch.manual_seed(0)
    return net(forward, frozen=nn.Linear(3, 3), head=nn.Linear(3, 2))


def gradients(model: nn.Module) -> dict[str, Tensor | None]:
    model.zero_grad()
    run(model, (X,)).square().sum().backward()
    return {name.removesuffix("_orig"): p.grad for name, p in model.named_parameters()}


each_forward = pytest.mark.parametrize("forward", [half_frozen, grad_inside, shared_weight])


@each_forward
def test_a_region_without_gradients(forward: Any) -> None:
    model = made(forward)
    program = fxprune.capture(model, (X,))
    for ours in (program, copy.deepcopy(program), pickle.loads(pickle.dumps(program))):
        check_forwards(ours, copy.deepcopy(model), (X,))
        check_same(gradients(ours), gradients(copy.deepcopy(model)))


@each_forward
def test_weights_inside_a_region_are_selected_and_masked(forward: Any) -> None:
    model = made(forward)
    program = masked(model, (X,), op="linear", param="weight")
    assert list(program.masks) == ["frozen.weight", "head.weight"]
    dense = written(model, program.masks)
    check_same(program(X), dense(X))
    theirs = gradients(dense)
    for name, gradient in gradients(program).items():
        expected = theirs[name]
        if expected is not None and name in program.masks:
            expected = expected * program.masks[name]
        check_same(gradient, expected, name)
    final = fxprune.finalize(program)
    check_same(final(X), dense(X))


@pytest.mark.parametrize("enabled", [True, False])
def test_the_grad_mode_is_as_before_after_a_run_and_after_an_error(enabled: bool) -> None:
    program = fxprune.capture(made(grad_inside), (X,))
    with torch.set_grad_enabled(enabled):
        out = program(X)
        assert out.requires_grad is enabled or not enabled
        assert torch.is_grad_enabled() is enabled
        with pytest.raises(RuntimeError, match="dtype"):
            program(X.double())
        assert torch.is_grad_enabled() is enabled


def test_a_program_under_no_grad_and_inference_mode() -> None:
    model = made(half_frozen)
    program = fxprune.capture(model, (X,))
    with torch.no_grad():
        assert not program(X).requires_grad
    with torch.inference_mode():
        check_same(program(X), model(X))


def test_a_model_of_one_region() -> None:
    """A decorated forward: the whole graph is the region."""
    inner = made(half_frozen)
    model = net(torch.no_grad()(lambda self, x: self.inner(x)), inner=inner)
    program = fxprune.capture(model, (X,))
    check_forwards(program, copy.deepcopy(model), (X,))
    assert not program(X).requires_grad
    assert list(masked(program).masks) == ["inner.frozen.weight", "inner.head.weight"]


def test_an_autocast_region() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            x = self.frozen(x)
        return self.head(x.float())

    model = made(forward)
    program = fxprune.capture(model, (X,))
    for ours in (program, copy.deepcopy(program), pickle.loads(pickle.dumps(program))):
        check_forwards(ours, copy.deepcopy(model), (X,))
    pruned = masked(program)
    check_same(pruned(X), written(model, pruned.masks)(X))


def test_a_program_under_autocast() -> None:
    model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
    program = masked(model, (X,))
    dense = written(model, program.masks)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        check_same(program(X), dense(X))
