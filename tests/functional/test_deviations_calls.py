"""The rows of `test_deviations.DEVIATIONS` that tell of pruning calls; see there."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune as torch_prune

import fxprune
from fxprune import functional as fx_prune
from fxprune.program.encoding import graph_text
from tests.tools.capture_helpers import check_same, net, state_of

X = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))


def linear() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(3, 2)


def test_failed_call() -> None:
    model = linear()
    program = fxprune.capture(model, (X,))
    with pytest.raises(ValueError, match="amount=99"):
        torch_prune.l1_unstructured(model, "weight", 99)
    assert list(model.state_dict()) == ["bias", "weight"]
    torch_prune.l1_unstructured(model, "weight", 2)
    with pytest.raises(ValueError, match="amount=99"):
        torch_prune.l1_unstructured(model, "weight", 99)
    assert "weight_mask" in model.state_dict()
    assert not torch_prune.is_pruned(model)

    for amount in (99, 2, 99):
        state, text, records = state_of(program), graph_text(program.graph), program.records
        if amount == 2:
            fx_prune.l1_unstructured(program, "weight", amount)
            continue
        with pytest.raises(ValueError, match="99"):
            fx_prune.l1_unstructured(program, "weight", amount)
        assert list(program.state_dict()) == list(state)
        check_same(state_of(program), state)
        assert graph_text(program.graph) == text
        assert program.records == records
    assert fxprune.is_pruned(program)


def test_mask_dtype() -> None:
    class Positive:
        PRUNING_TYPE = "global"

        def compute_mask(self, t: Tensor, default_mask: Tensor) -> Tensor:
            return t > 0

    theirs, ours = (
        type("Positive", (Positive, library.BasePruningMethod), {})
        for library in (torch_prune, fx_prune)
    )
    model = linear()
    program = fxprune.capture(model, (X,))
    theirs.apply(model, "weight")
    ours.apply(program, "weight")
    assert model.weight_mask.dtype == torch.bool
    assert program.masks["weight"].dtype == torch.float32
    check_same(program(X), model(X))
    program.load_state_dict(model.state_dict(), strict=True)


def test_own_names() -> None:
    model = net(lambda self, x: x @ self.weight + self.weight_mask)
    model.register_parameter("weight", nn.Parameter(torch.randn(3, 3)))
    model.register_buffer("weight_mask", torch.full((3,), 7.0))
    program = fxprune.capture(model, (X,))
    before = program(X)
    torch_prune.l1_unstructured(model, "weight", 0.5)
    assert model.get_buffer("weight_mask").shape == (3, 3)
    with pytest.raises(fxprune.FxpruneError, match="weight_mask"):
        fx_prune.l1_unstructured(program, "weight", 0.5)
    check_same(program(X), before)


def test_duplicates() -> None:
    model = nn.Linear(4, 4)
    program = fxprune.capture(model, (torch.zeros(2, 4),))
    torch_prune.global_unstructured([(model, "weight")] * 2, torch_prune.L1Unstructured, amount=8)
    fx_prune.global_unstructured([(program, "weight")] * 2, fx_prune.L1Unstructured, amount=8)
    assert int((model.get_buffer("weight_mask") == 0).sum()) == 4
    assert int((program.masks["weight"] == 0).sum()) == 8


def test_generators() -> None:
    model = linear()
    program = fxprune.capture(model, (X,))
    with pytest.raises(ValueError, match="non-empty"):
        torch_prune.global_unstructured(
            ((model, name) for name in ("weight", "bias")), torch_prune.L1Unstructured, amount=3
        )
    fx_prune.global_unstructured(
        ((program, name) for name in ("weight", "bias")), fx_prune.L1Unstructured, amount=3
    )
    assert sum(int((mask == 0).sum()) for mask in program.masks.values()) == 3


def test_channels_last() -> None:
    torch.manual_seed(0)
    plain, images = nn.Conv2d(3, 4, 3), torch.randn(2, 3, 5, 5)
    model: Any = copy.deepcopy(plain)
    model = model.to(memory_format=torch.channels_last)
    program = fxprune.capture(model, (images,))
    for method in ("l1_unstructured", "random_unstructured"):
        with pytest.raises(RuntimeError, match="view size is not compatible"):
            getattr(torch_prune, method)(copy.deepcopy(model), "weight", 0.3)
        torch.manual_seed(1)
        getattr(torch_prune, method)(plain, "weight", 0.3)
        torch.manual_seed(1)
        getattr(fx_prune, method)(program, "weight", 0.3)
        check_same(program.masks["weight"], plain.weight_mask)
    assert program.parameter("weight").is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("amount", [True, False])
def test_bool_amounts(amount: bool) -> None:
    model = linear()
    program = fxprune.capture(model, (X,))
    if amount:
        with pytest.raises(TypeError, match="topk"):
            torch_prune.l1_unstructured(model, "weight", amount)
    else:
        torch_prune.l1_unstructured(model, "weight", amount)
        assert bool(model.get_buffer("weight_mask").all())
    with pytest.raises(TypeError, match="amount"):
        fx_prune.l1_unstructured(program, "weight", amount)


def test_ties() -> None:
    model = nn.Linear(10, 10)
    nn.init.ones_(model.weight)
    program = fxprune.capture(model, (torch.zeros(2, 10),))
    torch_prune.l1_unstructured(model, "weight", 30)
    first = torch.ones(100)
    first[:30] = 0
    assert not torch.equal(model.get_buffer("weight_mask").flatten(), first)
    rule = {"select": "weight", "method": "l1_unstructured", "amount": 30}
    masked = fxprune.prune(program, {"rule": [rule]})
    check_same(masked.masks["weight"].flatten(), first)
    fx_prune.l1_unstructured(program, "weight", 30)
    check_same(program.masks["weight"], model.weight_mask)
