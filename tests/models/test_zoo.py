"""The zoo itself: each model runs in both modes, at several batches, the same for a seed."""

from __future__ import annotations

import pytest
import torch
from torch.utils import _pytree as pytree

from tests.models.zoo import ZOO
from tests.tools.batches import with_batch


def outputs(name: str, batch: int, train: bool) -> list[torch.Tensor]:
    model, args, kwargs = ZOO[name]()
    model.train(train)
    args, kwargs = with_batch(args, kwargs, batch)
    torch.manual_seed(0)
    return pytree.tree_leaves(model(*args, **kwargs))


@pytest.mark.parametrize("train", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("batch", [1, 4, 7])
@pytest.mark.parametrize("name", ZOO)
def test_runs_at_every_batch_the_same_each_time(name: str, batch: int, train: bool) -> None:
    first, second = outputs(name, batch, train), outputs(name, batch, train)
    assert first
    assert all(torch.isfinite(x).all() and batch in x.shape for x in first)
    assert all(torch.equal(x, y) for x, y in zip(first, second, strict=True))


@pytest.mark.parametrize("name", ZOO)
def test_examples_have_batch_four_and_leave_the_generator_alone(name: str) -> None:
    before = torch.get_rng_state()
    _, args, kwargs = ZOO[name](seed=3)
    assert torch.equal(before, torch.get_rng_state())
    assert all(x.shape[0] == 4 for x in pytree.tree_leaves((args, kwargs)))


def test_a_seed_chooses_the_weights() -> None:
    first, second = ZOO["lenet"](seed=0)[0], ZOO["lenet"](seed=1)[0]
    assert not torch.equal(next(first.parameters()), next(second.parameters()))


def test_with_batch_keeps_kind_and_range() -> None:
    args = (torch.randint(3, 9, (4, 100)), None, 2.5, torch.tensor(1.0))
    kwargs = {
        "mask": torch.zeros(4, 2, dtype=torch.bool),
        "x": torch.rand(4, 3, dtype=torch.float64),
    }
    (tokens, none, scale, constant), drawn = with_batch(args, kwargs, 7)
    assert tokens.shape == (7, 100)
    assert tokens.dtype is torch.int64
    assert (tokens.min() >= 3) & (tokens.max() <= 8)
    assert none is None
    assert scale == 2.5
    assert constant.ndim == 0
    assert drawn["mask"].dtype is torch.bool
    assert drawn["x"].dtype is torch.float64
    assert drawn["x"].shape == (7, 3)


def test_modes_differ_as_each_model_says() -> None:
    model, args, _ = ZOO["aux_head"]()
    assert isinstance(model.train()(*args), tuple)
    assert isinstance(model.eval()(*args), torch.Tensor)
    frozen, _, _ = ZOO["frozen_bn"]()
    assert not frozen.train().get_submodule("bn").training
    tied, _, _ = ZOO["tied_embedding"]()
    assert tied.get_parameter("out.weight") is tied.get_parameter("emb.weight")
