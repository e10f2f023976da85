"""Weights that a model computes: weight norm, spectral norm, parametrizations of one's own."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

import fxprune
from tests.tools.capture_helpers import check_forwards, check_same, masked, net, run, written

X = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
OLD = "ignore:.*(weight_norm|spectral_norm).*:FutureWarning"


class Symmetric(nn.Module):
    """A matrix made of the upper triangle of another."""

    def forward(self, w: Tensor) -> Tensor:
        return w.triu() + w.triu(1).mT


class Scaled(nn.Module):
    """A matrix times a parameter of the parametrization itself."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.7))

    def forward(self, w: Tensor) -> Tensor:
        return w * self.scale


def symmetric(layer: nn.Module) -> nn.Module:
    return parametrize.register_parametrization(layer, "weight", Symmetric())


def twice(layer: nn.Module) -> nn.Module:
    return parametrize.register_parametrization(symmetric(layer), "weight", Scaled())


# What wraps a layer, and the stored parameters that masks are for.
WAYS: dict[str, tuple[Callable[[Any], nn.Module], tuple[str, ...]]] = {
    "weight norm": (
        parametrizations.weight_norm,
        ("parametrizations.weight.original0", "parametrizations.weight.original1"),
    ),
    "weight norm by hooks": (nn.utils.weight_norm, ("weight_g", "weight_v")),
    "spectral norm": (parametrizations.spectral_norm, ("parametrizations.weight.original",)),
    "spectral norm by hooks": (nn.utils.spectral_norm, ("weight_orig",)),
    "orthogonal": (parametrizations.orthogonal, ("parametrizations.weight.original",)),
    "symmetric": (symmetric, ("parametrizations.weight.original",)),
    "twice": (twice, ("parametrizations.weight.original", "parametrizations.weight.1.scale")),
}
each_way = pytest.mark.parametrize("name", WAYS)
pytestmark = pytest.mark.filterwarnings(OLD)


def made(name: str) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(WAYS[name][0](nn.Linear(6, 6)), nn.ReLU(), nn.Linear(6, 3))


def stored(name: str) -> list[str]:
    return [f"0.{attribute}" for attribute in WAYS[name][1]]


@each_way
def test_a_computed_weight_is_captured_with_what_it_is_computed_of(name: str) -> None:
    model = made(name)
    program = fxprune.capture(model, (X,))
    for ours in (program, copy.deepcopy(program), pickle.loads(pickle.dumps(program))):
        check_forwards(ours, made(name), (X,))
    assert set(stored(name)) <= set(program.aliases)


@each_way
def test_masks_are_for_the_stored_parameters(name: str) -> None:
    model = made(name).eval()
    program = masked(model, (X,), path=stored(name)).eval()
    assert list(program.masks) == sorted(stored(name), key=list(program.aliases).index)
    # A layer with hooks of weight norm cannot be copied.
    dense = made(name).eval()
    with torch.no_grad():
        for parameter, mask in program.masks.items():
            dense.get_parameter(parameter).mul_(mask)
    check_same(program(X), dense(X))
    final = fxprune.finalize(program)
    check_same(final(X), dense(X))
    again = made(name).eval()
    again.load_state_dict(final.state_dict(), strict=True)
    check_same(again(X), dense(X))
    assert list(final.state_dict()) == list(model.state_dict())


@each_way
def test_gradients_reach_the_stored_parameters(name: str) -> None:
    model = made(name)
    program = fxprune.capture(model, (X,))
    for side in (program, model):
        run(side, (X,)).square().sum().backward()
    check_same([p.grad for p in program.parameters()], [p.grad for p in model.parameters()])


@each_way
def test_a_masked_program_exports_and_compiles(name: str) -> None:
    program = masked(made(name), (X,), path=stored(name)).eval()
    expected = program(X)
    check_same(torch.export.export(program, (X,), strict=False).module()(X), expected)
    torch._dynamo.reset()
    check_same(torch.compile(program, fullgraph=True, backend="eager")(X), expected)


def test_a_parametrization_that_forward_computes_once() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        with parametrize.cached():
            return self.fc(self.fc(x))

    torch.manual_seed(0)
    model = net(forward, fc=symmetric(nn.Linear(6, 6)))
    program = masked(model, (X,), path="fc.parametrizations.weight.original")
    check_same(program(X), written(model, program.masks)(X))


def test_a_shared_parametrized_layer_has_one_mask() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(parametrizations.weight_norm(nn.Linear(6, 6)), nn.ReLU())
    model.append(model[0])
    program = masked(model, (X,), path="0.parametrizations.weight.original1")
    assert "2.parametrizations.weight.original1" in program.masks
    check_same(program(X), written(model, program.masks)(X))


def test_the_operator_that_computes_a_weight_is_its_use() -> None:
    program = fxprune.capture(made("weight norm"), (X,))
    rule = {"select": {"op": "_weight_norm", "role": "v"}, "method": "l1_unstructured"}
    pruned = fxprune.prune(program, {"rule": [{**rule, "amount": 0.5}]})
    assert list(pruned.masks) == ["0.parametrizations.weight.original1"]
