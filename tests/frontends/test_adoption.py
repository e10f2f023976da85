"""Models that torch.nn.utils.prune has masked: taken over with keys, order, bits and masks."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune as torch_prune
from torch.utils import _pytree as pytree

import fxprune
from fxprune import functional as fx_prune
from fxprune.testing.oracle import loss_of, step_by_step
from tests.models.zoo import ZOO
from tests.tools.capture_helpers import check_same, net, run, state_of

X = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
Prune = Callable[[nn.Module], None]


class EveryOther(torch_prune.BasePruningMethod):
    PRUNING_TYPE = "unstructured"

    def compute_mask(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, t: Tensor, default_mask: Tensor
    ) -> Tensor:
        mask = default_mask.clone()
        mask.view(-1)[::2] = 0
        return mask


def prune_lenet(m: Any) -> None:
    """Every method of torch's, several on one parameter (a PruningContainer)."""
    torch_prune.random_unstructured(m.conv1, "weight", 0.3)
    torch_prune.l1_unstructured(m.conv1, "bias", 3)
    torch_prune.ln_structured(m.conv1, "weight", 0.5, 2, 0)
    torch_prune.random_structured(m.conv2, "weight", 2, 1)
    pairs = [(m.fc1, "weight"), (m.fc2, "weight"), (m.conv2, "weight")]
    torch_prune.global_unstructured(pairs, torch_prune.L1Unstructured, amount=0.2)
    torch_prune.identity(m.fc3, "bias")
    torch_prune.custom_from_mask(m.fc3, "weight", torch.rand(10, 84) > 0.5)
    EveryOther.apply(m.fc2, "bias")


def prune_lstm(m: Any) -> None:
    torch_prune.l1_unstructured(m.rnn, "weight_ih_l0", 0.3)
    torch_prune.ln_structured(m.rnn, "weight_hh_l1_reverse", 0.3, 2, 0)
    torch_prune.l1_unstructured(m.rnn, "bias_hh_l1_reverse", 0.3)
    torch_prune.l1_unstructured(m.fc, "weight", 0.3)


def prune_gru(m: Any) -> None:
    torch_prune.l1_unstructured(m.rnn, "weight_ih_l0", 0.3)
    torch_prune.l1_unstructured(m.rnn, "weight_hh_l0", 0.3)
    torch_prune.random_unstructured(m.rnn, "weight_ih_l0", 0.3)


def prune_all(m: nn.Module) -> None:
    for module in [*m.modules()]:
        for name in [name for name, p in module._parameters.items() if p is not None]:
            torch_prune.l1_unstructured(module, name, 0.4)


PRUNED: dict[str, tuple[str, Prune]] = {
    "lenet": ("lenet", prune_lenet),
    "lstm": ("lstm", prune_lstm),
    "gru": ("gru", prune_gru),
    "attention in_proj": (
        "attention",
        lambda m: torch_prune.l1_unstructured(m.get_submodule("attention"), "in_proj_weight", 0.3),
    ),
    "residual": ("residual_cnn", prune_all),
    "called twice": ("called_twice", prune_all),
    "stochastic depth": ("stochastic_depth", prune_all),
    "aux head": ("aux_head", prune_all),
    "shared module": (
        "shared_module",
        lambda m: torch_prune.l1_unstructured(m.get_submodule("first"), "weight", 0.3),
    ),
    "unused": ("buffers", prune_all),
}


def hooked(name: str) -> tuple[nn.Module, Any, Any]:
    zoo, prune = PRUNED[name]
    model, args, kwargs = ZOO[zoo]()
    torch.manual_seed(0)
    prune(model)
    return model, args, kwargs


def removed(model: nn.Module) -> nn.Module:
    """Let torch fold every mask."""
    for module in model.modules():
        for hook in [*module._forward_pre_hooks.values()]:
            if isinstance(hook, torch_prune.BasePruningMethod):
                torch_prune.remove(module, hook._tensor_name)
    return model


def identities(module: nn.Module) -> dict[str, int]:
    """The attributes of a module, without the lists that torch renews when it copies an RNN."""
    return {k: id(v) for k, v in vars(module).items() if not k.startswith("_flat_weight")}


each_pruned = pytest.mark.parametrize("name", PRUNED)


@each_pruned
def test_an_adopted_model_is_the_hooked_one(name: str) -> None:
    model, args, kwargs = hooked(name)
    program = fxprune.capture(model, args, kwargs)
    assert program.notes == ()
    assert list(program.state_dict()) == list(model.state_dict())
    check_same(state_of(program), state_of(model))
    assert list(dict(program.named_parameters())) == list(dict(model.named_parameters()))
    for train in (True, False):
        check_same(run(program.train(train), args, kwargs), run(model.train(train), args, kwargs))
    check_same(state_of(program), state_of(model))


@each_pruned
def test_the_hooked_model_stays_hooked_and_whole(name: str) -> None:
    model, args, kwargs = hooked(name)
    before = state_of(model)
    hooks = [[*m._forward_pre_hooks.values()] for m in model.modules()]
    attributes = [identities(m) for m in model.modules()]
    fxprune.capture(model, args, kwargs)
    check_same(state_of(model), before)
    assert [[*m._forward_pre_hooks.values()] for m in model.modules()] == hooks
    assert [identities(m) for m in model.modules()] == attributes


@each_pruned
def test_an_adopted_model_trains_as_the_hooked_one(name: str) -> None:
    model, args, kwargs = hooked(name)
    program = fxprune.capture(model, args, kwargs).train()
    model.train()
    steps = [
        step_by_step(m, lambda m=m: m(*args, **kwargs), loss=loss_of, steps=2, lr=0.1, seed=3)
        for m in (program, model)
    ]
    # + 0.0 makes -0.0 a +0.0: torch multiplies once a call, so where a module is called twice, a
    # masked gradient is a sum of zeros there and a product here, which may differ in sign.
    check_same(*pytree.tree_map_only(Tensor, lambda gradient: gradient + 0.0, steps))
    check_same(state_of(program), state_of(model))


@each_pruned
def test_an_adopted_model_is_pruned_further_and_finalized(name: str) -> None:
    model, args, kwargs = hooked(name)
    program = fxprune.capture(model, args, kwargs)
    masks = list(program.masks)
    path, _, attribute = masks[0].rpartition(".")
    torch_prune.l1_unstructured(model.get_submodule(path), attribute, 0.5)
    fx_prune.l1_unstructured(program, masks[0], 0.5)
    check_same(state_of(program), state_of(model))
    final = fxprune.finalize(pickle.loads(pickle.dumps(program)))
    plain = removed(model)
    assert set(final.state_dict()) == set(plain.state_dict())
    check_same({k: final.state_dict()[k] for k in plain.state_dict()}, state_of(plain))
    check_same(run(final.eval(), args, kwargs), run(plain.eval(), args, kwargs))


def test_a_model_cannot_be_copied_right_after_pruning_but_captured() -> None:
    model, args, _ = hooked("lenet")
    with pytest.raises(RuntimeError, match="deepcopy"):
        copy.deepcopy(model)
    program = fxprune.capture(model, args)
    check_same(copy.deepcopy(program)(*args), model(*args))


def test_a_model_is_adopted_after_a_backward() -> None:
    model, args, _ = hooked("lenet")
    model(*args).sum().backward()
    program = fxprune.capture(model, args)
    check_same(program(*args), model(*args))


def test_a_mask_that_was_removed_is_no_mask() -> None:
    model, args, _ = ZOO["lenet"]()
    torch_prune.l1_unstructured(model.get_submodule("fc1"), "weight", 0.3)
    torch_prune.l1_unstructured(model.get_submodule("fc2"), "weight", 0.3)
    torch_prune.remove(model.get_submodule("fc1"), "weight")
    program = fxprune.capture(model, args)
    assert list(program.masks) == ["fc2.weight"]
    assert list(program.state_dict()) == list(model.state_dict())


def test_a_root_parameter_and_frozen_parameters() -> None:
    model = net(lambda self, x: x @ self.w, w=nn.Parameter(torch.randn(3, 3)))
    torch_prune.l1_unstructured(model, "w", 0.3)
    model.get_parameter("w_orig").requires_grad_(False)
    program = fxprune.capture(model, (X,))
    check_same(program(X), model(X))
    assert not program.parameter("w").requires_grad


def test_a_model_moved_after_pruning() -> None:
    """The plain attribute stays in the old dtype until the hook runs again."""
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    torch_prune.l1_unstructured(model[0], "weight", 0.3)
    model = model.to(torch.bfloat16)
    assert model[0].weight.dtype == torch.float32
    program = fxprune.capture(model, (X.bfloat16(),))
    check_same(program(X.bfloat16()), model(X.bfloat16()))


def test_a_saved_model_is_adopted() -> None:
    model, args, _ = hooked("lenet")
    again = pickle.loads(pickle.dumps(model))
    check_same(fxprune.capture(again, args)(*args), model(*args))


def test_what_torch_compiled_for_is_pruned_reads_true_then_false() -> None:
    model, args, _ = hooked("lenet")
    program = fxprune.capture(model, args)
    assert fxprune.is_pruned(model)
    assert fxprune.is_pruned(program)
    assert not fxprune.is_pruned(fxprune.finalize(program))
