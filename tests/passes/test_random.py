"""random: torch's own numbers, in its order, and none where nothing is pruned."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fxprune import functional as prune
from fxprune.errors import AmountError, DimError, PassError
from fxprune.program.program import Program
from fxprune.ranking.draws import Draw, generator_of
from fxprune.rewrite.facts import Scores, ScoreSource
from fxprune.rewrite.registry import create
from fxprune.testing.assert_pass import program_text as text
from fxprune.testing.comparing import is_same
from tests.conftest import Golden
from tests.tools.helpers import both_texts, program, run, selection

CPU = torch.device("cpu")


def scores(p: Program, *names: str, seed: int = 3, **options: Any) -> Scores:
    torch.manual_seed(seed)
    return run(p, create("random", **options), given=[selection(p, *names)])[0][Scores]


def all_of(source: ScoreSource) -> Tensor:
    return source.chunk(0, source.units)


def test_sources(golden: Golden):
    """Numbers are left out: they are torch's, which may change them."""
    p = prune.custom_from_mask(program("mlp"), "0.weight", torch.ones(4, 3).triu())
    found = scores(p, "0.weight", "2.weight", amount=0.5, dim=0)
    lines = [f"{k}: {s.alive} of {s.units} alive, {s.dtype}" for k, s in found.sources.items()]
    told = f"dim={found.dim} prune_all_ties={found.prune_all_ties}"
    golden("random", "channels", both_texts(text(p), "\n".join([*lines, told])))


def test_entries_get_a_number_each_parameter_after_parameter():
    p = prune.l1_unstructured(program("mlp"), "0.weight", 5)
    found = scores(p, "0.weight", "2.weight", amount=0.5)
    torch.manual_seed(3)
    first, second = torch.rand(7), torch.rand(8)
    # torch.nn.utils.prune prunes the largest numbers: the smallest of these
    assert is_same(all_of(found.sources["0.weight"]), -first)
    assert is_same(all_of(found.sources["2.weight"]), -second)
    assert is_same(torch.rand(1), torch.rand(1, generator=state_after(7 + 8)))


def state_after(count: int, seed: int = 3) -> torch.Generator:
    generator = torch.Generator().manual_seed(seed)
    torch.rand(count, generator=generator)
    return generator


def test_together_they_get_one_draw():
    p = program("mlp")
    found = scores(p, amount=0.5, scope="global")
    torch.manual_seed(3)
    numbers = torch.rand(26).split([12, 4, 8, 2])
    for source, expected in zip(found.sources.values(), numbers, strict=True):
        assert is_same(all_of(source), -expected)


def test_channels_get_a_number_of_single_precision():
    p = prune.ln_structured(program("mlp"), "0.weight", 1, 2, 0).double()
    found = scores(p, "0.weight", "2.weight", amount=1, dim=0)
    torch.manual_seed(3)
    first, second = torch.rand(3), torch.rand(2)
    assert is_same(all_of(found.sources["0.weight"]), first)
    assert is_same(all_of(found.sources["2.weight"]), second)
    assert (found.dim, found.prune_all_ties) == (0, True)


@pytest.mark.parametrize("options", [{}, {"scope": "global"}, {"dim": 0}])
def test_nothing_is_drawn_where_nothing_will_be_pruned(options: dict[str, Any]):
    for amount in (0, 0.0, 0.1):
        found = scores(program("mlp"), "2.weight", amount=amount / 10, **options)
        assert is_same(torch.get_rng_state(), torch.Generator().manual_seed(3).get_state())
        source = found.sources["2.weight"]
        assert all_of(source).shape == (source.units,)


@pytest.mark.parametrize("options", [{}, {"scope": "global"}, {"dim": 0}])
def test_a_seed_draws_from_a_generator_of_its_own(options: dict[str, Any]):
    p = program("mlp")
    names = ("0.weight", "2.weight")
    expected = scores(p, *names, amount=0.5, seed=11, **options)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    step = create("random", amount=0.5, seed=11, **options)
    found = run(p, step, given=[selection(p, *names)])[0][Scores]
    assert is_same(torch.get_rng_state(), state)
    for name in names:
        assert is_same(all_of(found.sources[name]), all_of(expected.sources[name]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_entries_are_drawn_in_the_parameters_dtype(dtype: torch.dtype):
    p = program("mlp").to(dtype)
    source = scores(p, "0.weight", amount=0.5).sources["0.weight"]
    torch.manual_seed(3)
    assert source.dtype is dtype
    assert is_same(all_of(source), -torch.rand(12, dtype=dtype))


def test_without_parameters_nothing_is_drawn():
    p = program("mlp")
    every: list[dict[str, Any]] = [{}, {"scope": "global"}, {"dim": 0}]
    for options in every:
        assert scores(p, "none", amount=3, **options).sources == {}
    assert is_same(torch.get_rng_state(), torch.Generator().manual_seed(3).get_state())


def test_amounts_and_dimensions_are_checked():
    p = program("mlp")
    with pytest.raises(AmountError, match=r"entries that are alive; give 2 or less for '2\.bias'"):
        scores(p, "2.bias", amount=3)
    with pytest.raises(AmountError, match="more than the 2 channels that are alive"):
        scores(p, "2.weight", amount=3, dim=0)
    with pytest.raises(PassError, match="channels need two dimensions"):
        scores(p, "2.bias", amount=1, dim=0)
    with pytest.raises(DimError, match="dim=2 does not exist"):
        scores(p, "2.weight", amount=1, dim=2)


# Draws


@given(st.integers(0, 40), st.lists(st.integers(0, 40), max_size=6), st.sampled_from([7, 8]))
def test_a_draw_reads_the_same_whatever_the_parts(count: int, cuts: list[int], bits: int):
    dtype = torch.float32 if bits == 7 else torch.bfloat16
    generator = torch.Generator().manual_seed(1)
    draw = Draw(count, dtype, generator)
    whole = torch.rand(count, dtype=dtype, generator=torch.Generator().manual_seed(1))
    places = sorted({0, count, *(cut for cut in cuts if cut <= count)})
    pairs = list(itertools.pairwise(places))
    for order in (pairs, pairs[::-1], pairs):
        for start, stop in order:
            assert is_same(draw.read(start, stop), whole[start:stop])
    after = torch.Generator().manual_seed(1)
    torch.rand(count, dtype=dtype, generator=after)
    assert is_same(generator.get_state(), after.get_state())


def test_torchs_own_generator_is_taken_without_a_seed():
    assert generator_of(CPU, None) is torch.default_generator
    assert generator_of(CPU, 4).initial_seed() == 4
    with pytest.raises(PassError, match="no random generator on meta; give the rule a seed"):
        generator_of(torch.device("meta"), None)
