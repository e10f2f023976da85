"""State dicts: from torch's hooked models and back, and torch's half-pruned aliases."""

from __future__ import annotations

import copy
from collections import OrderedDict
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune as torch_prune

import fxprune
from fxprune import functional as fx_prune
from fxprune.errors import StateError
from fxprune.program.program import Program
from tests.models import store
from tests.models.zoo import QUICK, ZOO
from tests.tools.capture_helpers import (
    captured,
    check_same,
    masked,
    oracle_of,
    run,
    state_of,
    written,
)
from tests.tools.profiles import thorough_but

# Models whose masks torch's keys can express.
MODELS = [name for name in ZOO if name != "tied_embedding"]
each_model = pytest.mark.parametrize("name", thorough_but(QUICK, MODELS))


def spoiled(model: Any) -> Any:
    """Change all that a state dict holds, so that loading must act."""
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.add_(1)
    return model


def tied() -> tuple[Program, nn.Module, tuple[Any, ...]]:
    model, args, _ = ZOO["tied_embedding"]()
    program = masked(model, args, path="emb.weight")
    return spoiled(copy.deepcopy(program)), written(model, program.masks), args


def half_pruned(alias: str) -> dict[str, Tensor]:
    """The state dict of a tied model that torch pruned under one name."""
    model, args, _ = ZOO["tied_embedding"]()
    mask = masked(model, args, path="emb.weight").masks["emb.weight"]
    torch_prune.custom_from_mask(model.get_submodule(alias), "weight", mask)
    return state_of(model)


# Both ways


@each_model
def test_checkpoints_of_masked_models_interchange(name: str) -> None:
    (model, args, kwargs), program = captured(name)
    program = masked(program)
    hooked = oracle_of(model, program.masks).hooked
    saved = state_of(hooked)
    assert list(program.state_dict()) == list(saved)

    ours = spoiled(copy.deepcopy(program))
    ours.load_state_dict(saved, strict=True)
    check_same(state_of(ours), saved)
    check_same(run(ours.eval(), args, kwargs), run(program.eval(), args, kwargs))

    spoiled(hooked).load_state_dict(ours.state_dict(), strict=True)
    check_same(state_of(hooked), saved)


@each_model
def test_checkpoints_of_plain_models_interchange(name: str) -> None:
    (model, args, kwargs), program = captured(name)
    program = masked(program)
    final = fxprune.finalize(program)
    source = copy.deepcopy(model)
    source.load_state_dict(final.state_dict(), strict=True)
    check_same(run(source.eval(), args, kwargs), run(program.eval(), args, kwargs))
    spoiled(final).load_state_dict(source.state_dict(), strict=True)
    check_same(run(final.eval(), args, kwargs), run(program.eval(), args, kwargs))


def test_a_checkpoint_of_the_same_tied_program() -> None:
    program, dense, args = tied()
    model, _, _ = ZOO["tied_embedding"]()
    saved = state_of(masked(model, args, path="emb.weight"))
    program.load_state_dict(saved, strict=True)
    check_same(state_of(program), saved)
    check_same(program(*args), dense(*args))
    assert program.parameter("emb.weight") is program.parameter("out.weight")


@pytest.mark.parametrize("assign", [True, False])
def test_aliases_stay_one_tensor_after_loading(assign: bool) -> None:
    program, dense, args = tied()
    model, _, _ = ZOO["tied_embedding"]()
    saved = masked(model, args, path="emb.weight").state_dict()
    program.load_state_dict(saved, strict=True, assign=assign)
    assert program.parameter("emb.weight") is program.parameter("out.weight")
    assert program.masks["emb.weight"] is program.masks["out.weight"]
    check_same(program(*args), dense(*args))
    program(*args).sum().backward()
    assert fxprune.finalize(program).parameter("emb.weight") is not None


# torch's half-pruned aliases


@pytest.mark.parametrize("moved", [torch.float64, torch.bfloat16, "meta"])
def test_aliases_stay_one_tensor_in_another_dtype_and_place(moved: Any) -> None:
    program, _, _ = tied()
    program.to(moved)
    emb, out = program.get_submodule("emb"), program.get_submodule("out")
    assert emb.weight_orig is out.weight_orig
    assert emb.weight_mask is out.weight_mask
    assert moved in (emb.weight_mask.dtype, emb.weight_mask.device.type)
    program.to_empty(device="cpu")
    assert emb.weight_orig is out.weight_orig
    assert emb.weight_mask is out.weight_mask


@pytest.mark.parametrize("alias", ["emb", "out"])
def test_half_pruned_aliases_are_accepted(alias: str) -> None:
    program, dense, args = tied()
    state = half_pruned(alias)
    before = dict(state)
    program.load_state_dict(state, strict=True)
    check_same(state, before)
    check_same(program(*args), dense(*args))
    assert program.parameter("emb.weight") is program.parameter("out.weight")


@pytest.mark.parametrize("kind", [dict, OrderedDict])
def test_aliases_that_were_saved_once_are_accepted(kind: Any) -> None:
    """safetensors keeps one name of a shared tensor."""
    program, dense, args = tied()
    state = kind(half_pruned("emb"))
    del state["out.weight"]
    program.load_state_dict(state, strict=True)
    check_same(program(*args), dense(*args))


def test_aliases_with_different_values_are_refused() -> None:
    program, _, _ = tied()
    before, state = state_of(program), half_pruned("emb")
    state["out.weight"] = state["out.weight"] + 1
    with pytest.raises(StateError, match=r"'emb\.weight_orig' and 'out\.weight' are one tied"):
        program.load_state_dict(state)
    check_same(state_of(program), before)


def test_aliases_with_different_masks_are_refused() -> None:
    program, _, _ = tied()
    before, state = state_of(program), {**half_pruned("out"), **half_pruned("emb")}
    state["out.weight_mask"] = 1 - state["out.weight_mask"]
    with pytest.raises(StateError, match="different masks"):
        program.load_state_dict(state)
    check_same(state_of(program), before)


def test_aliases_of_a_plain_program_with_different_values_are_refused() -> None:
    model, args, _ = ZOO["tied_embedding"]()
    program = store.capture(model, args)
    state = state_of(program)
    state["out.weight"] = state["out.weight"] + 1
    with pytest.raises(StateError, match=r"'emb\.weight' and 'out\.weight' are one tied"):
        program.load_state_dict(state)


# What does not fit


def test_a_masked_state_does_not_fit_a_plain_program() -> None:
    model, args, _ = ZOO["lenet"]()
    program = store.capture(model, args)
    state = state_of(masked(program))
    with pytest.raises(RuntimeError, match=r"Missing key.*fc1\.weight"):
        program.load_state_dict(state)
    with pytest.raises(RuntimeError, match=r"Missing key.*fc1\.weight_orig"):
        masked(program).load_state_dict(state_of(program))


def test_not_strict_loads_what_fits_and_tells_the_rest() -> None:
    model, args, _ = ZOO["lenet"]()
    program = masked(model, args)
    found = program.load_state_dict(
        {"fc3.bias": torch.ones(10), "more": torch.ones(1)}, strict=False
    )
    assert found.unexpected_keys == ["more"]
    assert "fc1.weight_orig" in found.missing_keys
    check_same(program.get_parameter("fc3.bias").data, torch.ones(10))


def test_an_optimizer_state_interchanges_with_the_hooked_model() -> None:
    model, args, _ = ZOO["lenet"]()
    hooked = copy.deepcopy(model)
    program = store.capture(model, args)
    torch_prune.l1_unstructured(hooked.get_submodule("fc1"), "weight", 0.3)
    fx_prune.l1_unstructured(program, "fc1.weight", 0.3)
    optimizers = [torch.optim.AdamW(m.parameters(), lr=0.01) for m in (hooked, program)]
    hooked(*args).square().sum().backward()
    optimizers[0].step()
    optimizers[1].load_state_dict(copy.deepcopy(optimizers[0].state_dict()))
    program.load_state_dict(hooked.state_dict())
    for m, optimizer in zip((hooked, program), optimizers, strict=True):
        m.zero_grad()
        m(*args).square().sum().backward()
        optimizer.step()
    check_same(state_of(program), state_of(hooked))
