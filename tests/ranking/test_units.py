"""Units of a parameter: which are alive, and what of them is scored."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fxprune import functional as prune
from fxprune.errors import DimError, PassError, PassTypeError, ShapeError
from fxprune.program.program import Program
from fxprune.program.records import ParamSite
from fxprune.rewrite.facts import Importance
from fxprune.rewrite.units import Entries, check_channels, living_channels, masked_value, raw_value
from fxprune.testing.comparing import is_same
from tests.tools.helpers import program, selection

Value = Callable[[Program, ParamSite, Importance], torch.Tensor]
MASKS = st.lists(st.sampled_from([0.0, 1.0, 0.5, -1.0]), min_size=1, max_size=12)


def site(p: Program, name: str) -> ParamSite:
    return selection(p, name).sites[0]


# Entries


@pytest.mark.smoke
@given(MASKS)
def test_living_entries_are_those_whose_mask_is_one(mask: list[float]):
    values = torch.arange(float(len(mask)))
    entries = Entries(values, torch.tensor(mask))
    kept = [i for i, m in enumerate(mask) if m == 1.0]
    assert entries.units == len(mask)
    assert entries.alive == len(kept)
    assert entries.chunk(0, entries.units).tolist() == kept


@given(MASKS, st.integers(0, 12), st.integers(0, 12))
def test_chunks_are_parts_of_the_whole(mask: list[float], a: int, b: int):
    size = len(mask)
    start, stop = sorted((min(a, size), min(b, size)))
    for entries in (
        Entries(torch.arange(float(size)), torch.tensor(mask)),
        Entries(torch.arange(float(size)), None),
    ):
        parts = [(0, start), (start, stop), (stop, size)]
        chunks = torch.cat([entries.chunk(*part) for part in parts])
        assert torch.equal(chunks, entries.chunk(0, size))
        living = entries.living(start, stop)
        count = stop - start if living is None else int(living.sum())
        assert len(entries.chunk(start, stop)) == count


def test_without_a_mask_all_entries_are_alive():
    entries = Entries(torch.randn(2, 3), None)
    assert (entries.units, entries.alive) == (6, 6)
    assert entries.living(0, 6) is None


def test_entries_are_in_flat_order_whatever_the_strides():
    base = torch.arange(6.0).view(2, 3)
    entries = Entries(base.T, torch.tensor([[1, 0], [1, 1], [0, 1]]))
    assert entries.chunk(0, 6).tolist() == [0.0, 1.0, 4.0, 5.0]


# Channels


def test_a_channel_is_dead_where_its_mask_sums_to_zero():
    mask = torch.tensor([[1.0, -1.0, 0.0], [0.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
    assert living_channels(mask, 0).tolist() == [False, False, True]
    assert living_channels(mask, -1).tolist() == [True, True, False]


@pytest.mark.parametrize("dim", [0, 1, 2, -1])
def test_living_channels_are_those_that_torch_slices(dim: int):
    generator = torch.Generator().manual_seed(dim + 1)
    mask = (torch.rand(3, 4, 2, generator=generator) > 0.8).float()
    # as in torch.nn.utils.prune.PruningContainer.compute_mask
    keep = mask.sum(dim=[d for d in range(3) if d != dim % 3]) != 0
    assert torch.equal(living_channels(mask, dim), keep)


def test_channels_need_two_dimensions():
    p = program("linear")
    with pytest.raises(PassError, match=r"'bias' has shape \(2,\): channels need two dimensions"):
        check_channels(site(p, "bias"), 0)
    check_channels(site(p, "weight"), 1)
    check_channels(site(p, "weight"), -2)


@pytest.mark.parametrize("dim", [2, -3])
def test_a_dimension_must_exist(dim: int):
    with pytest.raises(DimError, match=rf"dim={dim} does not exist in 'weight' of shape \(2, 3\)"):
        check_channels(site(program("linear"), "weight"), dim)


# What is scored

MASK = torch.tensor([[1.0, 0.0, 0.5], [1.0, 1.0, 0.0]])


def test_entries_are_scored_raw_and_channels_masked():
    p = program("linear")
    weight = p.parameter("weight").detach()
    assert is_same(masked_value(p, site(p, "weight"), Importance()), weight)
    prune.custom_from_mask(p, "weight", MASK)
    assert is_same(raw_value(p, site(p, "weight"), Importance()), weight)
    assert is_same(masked_value(p, site(p, "weight"), Importance()), weight * MASK)
    assert not raw_value(p, site(p, "weight"), Importance()).requires_grad


@pytest.mark.parametrize("value", [raw_value, masked_value])
@pytest.mark.parametrize("name", ["emb.weight", "out.weight"])
def test_importance_scores_take_the_place_of_values_by_any_name(value: Value, name: str):
    p = program("tied")
    scores = torch.randn(4, 3, requires_grad=True)
    found = value(p, site(p, "emb.weight"), Importance({name: scores, "other": torch.ones(1)}))
    assert is_same(found, scores.detach())
    assert not found.requires_grad


@pytest.mark.parametrize("value", [raw_value, masked_value])
def test_scores_of_another_shape_are_refused(value: Value):
    p = program("linear")
    with pytest.raises(ShapeError) as caught:
        value(p, site(p, "weight"), Importance({"weight": torch.ones(6)}))
    assert str(caught.value) == (
        "the importance scores of 'weight' have shape (6,), the parameter (2, 3); give one score "
        "an entry"
    )


@pytest.mark.parametrize("value", [raw_value, masked_value])
def test_scores_that_are_no_tensor_are_refused(value: Value):
    p = program("linear")
    given: Any = {"weight": [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]}
    with pytest.raises(PassTypeError, match="importance scores of 'weight' are not a tensor"):
        value(p, site(p, "weight"), Importance(given))
    for odd in (torch.ones(2, 3, dtype=torch.bool), torch.eye(2, 3).to_sparse()):
        with pytest.raises(PassTypeError, match="which cannot be ranked; give floats or whole"):
            value(p, site(p, "weight"), Importance({"weight": odd}))
