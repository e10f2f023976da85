"""The oracle itself: torch's hooked model, bit for bit, wherever torch's hooks act."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from hypothesis import given
from torch import nn
from torch.nn.utils import prune
from torch.utils import _pytree as pytree

from fxprune.testing.architecture import build
from fxprune.testing.calls import Call
from fxprune.testing.comparing import is_same
from fxprune.testing.oracle import Oracle
from tests.models.cases import Case, cases
from tests.models.zoo import ZOO


def prunings(oracle: Oracle, *, skip: str = "") -> list[Call]:
    """Half of each weight, then a third of what is left of all of them together."""
    names = list(dict.fromkeys(oracle.names.values()))
    names = [name for name in names if not (skip and skip in name)]
    each = [Call("random_unstructured", (name,), seed=i) for i, name in enumerate(names)]
    return [*each, Call("global_unstructured", tuple(names), amount=0.3)]


def pruned(name: str, *, skip: str = "") -> tuple[Oracle, tuple[Any, ...], dict[str, Any]]:
    model, args, kwargs = ZOO[name]()
    oracle = Oracle(model)
    for call in prunings(oracle, skip=skip):
        assert oracle.apply(call) is None
    return oracle, args, kwargs


@contextmanager
def kept_buffers(model: nn.Module) -> Generator[None]:
    """Put the values of a model's buffers back afterwards."""
    saved = [(b, b.clone()) for b in model.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in saved:
                buffer.copy_(value)


def both_ways(oracle: Oracle, args: Any, kwargs: Any, *, train: bool) -> tuple[Any, Any]:
    with kept_buffers(oracle.hooked):
        torch.manual_seed(0)
        hooked = oracle.hooked_forward(args, kwargs, train=train)
    torch.manual_seed(0)
    return oracle.forward(args, kwargs, train=train), hooked


ACTING = [name for name in ZOO if name != "tied_embedding"]


@pytest.mark.parametrize("train", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("name", ACTING)
def test_forward_is_the_hooked_model_where_hooks_act(name: str, train: bool) -> None:
    oracle, args, kwargs = pruned(name, skip="out_proj")
    assert oracle.hooks_act
    assert len(oracle.masks()) > 1
    dense, hooked = both_ways(oracle, args, kwargs, train=train)
    assert is_same(dense, hooked)


# A module called twice multiplies twice under hooks: a masked entry's zero gradient may then have
# the other sign, so these two are compared as values.
@pytest.mark.parametrize("name", [n for n in ACTING if n not in ("called_twice", "shared_module")])
def test_training_is_the_hooked_model_where_hooks_act(name: str) -> None:
    ours, args, kwargs = pruned(name, skip="out_proj")
    torchs, _, _ = pruned(name, skip="out_proj")
    gradients = ours.train(args, kwargs), torchs.train(args, kwargs, hooked=True)
    assert len(gradients[0]) == 3
    assert is_same(*gradients)
    assert list(ours.state_dict()) == list(torchs.state_dict())
    assert is_same(ours.state_dict(), torchs.state_dict())


@pytest.mark.parametrize("name", ["called_twice", "shared_module"])
def test_training_a_shared_module_is_the_hooked_model(name: str) -> None:
    ours, args, kwargs = pruned(name)
    torchs, _, _ = pruned(name)
    gradients = ours.train(args, kwargs), torchs.train(args, kwargs, hooked=True)
    assert gradients[0][0].keys() == gradients[1][0].keys()
    pairs = zip(*map(pytree.tree_leaves, gradients), strict=True)
    assert all(torch.equal(first, second) for first, second in pairs)


@given(cases())
def test_forward_is_the_hooked_model_on_any_case(case: Case) -> None:
    model, args, kwargs = build(case.arch)
    oracle = Oracle(model)
    for call in case.calls:
        oracle.apply(call)
    if not oracle.hooks_act:
        return
    for train in (True, False):
        assert is_same(*both_ways(oracle, args, kwargs, train=train))


@given(cases())
def test_a_refused_call_leaves_everything_as_it_was(case: Case) -> None:
    oracle = Oracle(build(case.arch).model)
    for call in case.calls:
        before = {k: v.clone() for k, v in oracle.state_dict().items()}
        kept = [dict(vars(module)) for module in oracle.hooked.modules()]
        hooks = [list(m._forward_pre_hooks.values()) for m in oracle.hooked.modules()]
        methods = [[len(getattr(hook, "_pruning_methods", ())) for hook in h] for h in hooks]
        if oracle.apply(call) is None:
            continue
        assert list(before) == list(oracle.state_dict())
        assert is_same(before, dict(oracle.state_dict()))
        now = [list(m._forward_pre_hooks.values()) for m in oracle.hooked.modules()]
        assert now == hooks
        assert methods == [[len(getattr(hook, "_pruning_methods", ())) for hook in h] for h in now]
        assert [v.keys() for v in kept] == [vars(m).keys() for m in oracle.hooked.modules()]


def test_a_refusal_is_undone_though_torch_leaves_half_a_pruning_behind() -> None:
    oracle = Oracle(ZOO["lenet"]()[0])
    assert oracle.apply(Call("identity", ("fc1.weight",))) is None
    too_many = Call("l1_unstructured", ("fc1.weight",), amount=10**9)
    assert isinstance(oracle.apply(too_many), ValueError)
    assert prune.is_pruned(oracle.hooked)
    assert oracle.apply(Call("l1_unstructured", ("fc1.weight",), amount=7)) is None
    assert int((oracle.masks()["fc1.weight"] == 0).sum()) == 7
    assert oracle.apply(Call("remove", ("fc1.weight",))) is None
    assert isinstance(oracle.apply(Call("remove", ("fc1.weight",))), ValueError)
    assert oracle.masks() == {}


def test_the_model_it_is_given_is_left_alone() -> None:
    model, args, _ = ZOO["lenet"]()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    oracle = Oracle(model)
    oracle.apply(Call("l1_unstructured", ("conv1.weight",)))
    oracle.train(args, {})
    assert is_same(before, dict(model.state_dict()))
    assert not prune.is_pruned(model)


def test_a_tied_weight_is_masked_under_each_name() -> None:
    model, args, kwargs = ZOO["tied_embedding"]()
    oracle = Oracle(model)
    assert oracle.hooks_act
    oracle.apply(Call("l1_unstructured", ("emb.weight",)))
    assert not oracle.hooks_act
    assert not oracle.keys_agree
    weights = oracle.weights()
    assert weights["out.weight"] is weights["emb.weight"]
    meant, hooked = both_ways(oracle, args, kwargs, train=False)
    assert not is_same(meant, hooked)
    with torch.no_grad():
        weight = model.get_parameter("emb.weight")
        weight.mul_(oracle.masks()["emb.weight"])
    assert is_same(meant, model.eval()(*args))


def test_a_mask_on_attentions_out_proj_acts() -> None:
    model, args, kwargs = ZOO["attention"]()
    oracle = Oracle(model)
    oracle.apply(Call("l1_unstructured", ("attention.out_proj.weight",), amount=0.9))
    assert oracle.keys_agree
    assert not oracle.hooks_act
    oracle.train(args, kwargs)
    meant, hooked = both_ways(oracle, args, kwargs, train=False)
    assert not is_same(meant, hooked)
    source = ZOO["attention"]()[0]
    source.load_state_dict(oracle.weights())
    assert is_same(meant, source.eval()(*args))
