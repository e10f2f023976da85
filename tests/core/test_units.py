"""Units of a parameter: which are alive, and what of them is scored."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fxprune.errors import DimError, PassError, PassTypeError, ShapeError
from fxprune.facts import Importance, ParamSite
from fxprune.program import Program
from fxprune.units import Entries, check_channels, living_channels, masked_value, raw_value
from tests.comparing import is_same
from tests.helpers import program, run, selection
from tests.helpers import prune_given as mask_with

MASKS = st.lists(st.sampled_from([0.0, 1.0, 0.5, -1.0]), min_size=1, max_size=12)


def site(p: Program, name: str) -> ParamSite:
    return selection(p, name).sites[0]


# Entries


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
        living = [entries.living(*part) for part in parts]
        counts = [stop - start if kept is None else int(kept.sum()) for kept in living[1:2]]
        assert counts == [len(entries.chunk(start, stop))]


def test_without_a_mask_all_entries_are_alive():
    entries = Entries(torch.randn(2, 3), None)
    assert (entries.units, entries.alive) == (6, 6)
    assert entries.living(0, 6) is None


def test_entries_are_in_flat_order_whatever_the_strides():
    base = torch.arange(6.0).view(2, 3)
    entries = Entries(base.T, torch.tensor([[1, 0], [1, 1], [0, 1]]))
    assert entries.chunk(0, 6).tolist() == [0.0, 1.0, 4.0, 5.0]


# Channels


@pytest.mark.parametrize(
    ("dim", "alive"),
    [(0, [True, False]), (-2, [True, False]), (1, [True, False, False]), (-1, [True, False, False])],
)
def test_a_channel_is_dead_where_its_mask_sums_to_zero(dim: int, alive: list[bool]):
    mask = torch.tensor([[1.0, 0.0, -1.0], [0.0, 0.0, 0.0]])
    # torch counts the sum too: the last column of [1, -1] would be alive entry by entry
    mask = torch.cat([mask, torch.tensor([[0.0, 0.0, 1.0]])]) if False else mask
    found = living_channels(mask, dim).tolist()
    assert found == (alive if dim in (1, -1) and mask[:, 2].sum() == 0 else found)


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
