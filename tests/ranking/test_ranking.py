"""Exact selection of the k smallest scores, held to a stable sort and to torch's own functions."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor

from fxprune.ranking.kth import cut_group
from fxprune.ranking.masks import pruned_of_group
from fxprune.rewrite.facts import Cut, Ranking, Scores, ScoreSource
from tests.tools.helpers import Values

NAN, INF = math.nan, math.inf
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
# Few values, so that many are equal, and the awkward ones among them.
AWKWARD = st.sampled_from([0.0, -0.0, 0.5, -0.5, 1.0, 2.0, INF, -INF, NAN])
LEVELS = AWKWARD | st.floats(-2, 2, width=16)


@dataclass(frozen=True)
class Part:
    """Scores of one parameter, and which of its units are alive."""

    values: tuple[float, ...]
    kept: tuple[bool, ...] | None
    dtype: torch.dtype

    def source(self) -> Values:
        values = torch.tensor(self.values, dtype=self.dtype)
        return Values(values, None if self.kept is None else torch.tensor(self.kept).bool())


@st.composite
def parts(draw: st.DrawFn, dtypes: st.SearchStrategy[torch.dtype]) -> Part:
    values = draw(st.lists(LEVELS, max_size=12))
    kept = draw(st.none() | st.lists(st.booleans(), min_size=len(values), max_size=len(values)))
    return Part(tuple(values), None if kept is None else tuple(kept), draw(dtypes))


MIXED = st.lists(parts(st.sampled_from(DTYPES)), min_size=1, max_size=4)
UNIFORM = st.sampled_from(DTYPES).flatmap(
    lambda dtype: st.lists(parts(st.just(dtype)), min_size=1, max_size=4)
)
GROUPS = MIXED | UNIFORM
SHARES = st.floats(0, 1)


def sources_of(group: list[Part]) -> dict[str, ScoreSource]:
    return {f"p{i}": part.source() for i, part in enumerate(group)}


def joined(sources: dict[str, ScoreSource]) -> Tensor:
    """Join the living scores as torch.cat does."""
    return torch.cat([source.chunk(0, source.units) for source in sources.values()])


def stable_smallest(scores: Tensor, k: int) -> set[int]:
    """The first k of a stable sort with NaN last."""
    keys = [(math.isnan(x), x) for x in scores.double().tolist()]
    keys = [(is_nan, 0.0 if is_nan else x) for is_nan, x in keys]
    return set(sorted(range(len(keys)), key=lambda i: keys[i])[:k])


def pruned(
    sources: dict[str, ScoreSource],
    k: int,
    ties: str,
    *,
    keep_first: bool = False,
    all_ties: bool = False,
) -> tuple[Ranking, dict[str, Tensor], set[int]]:
    """Rank one group; return the ranking, what goes by name, and what goes in joined order."""
    scores = Scores(sources, keep_first=keep_first, prune_all_ties=all_ties)
    cuts = cut_group(sources, k, all_ties=all_ties and ties == "torch")
    ranking = Ranking(cuts, (tuple(sources),), ties)
    gone = {
        name: torch.cat([torch.zeros(0).bool(), *(part for _, _, part in chunks)])
        for name, chunks in pruned_of_group(scores, ranking, tuple(sources))
    }
    assert list(gone) == list(sources)
    flat = torch.cat(list(gone.values()))
    return ranking, gone, set(flat.nonzero().flatten().tolist())


def size_of(sources: dict[str, ScoreSource]) -> int:
    return sum(source.alive for source in sources.values())


# Ties by index


@pytest.mark.smoke
@given(GROUPS, SHARES)
@example([Part((1.0,) * 9, None, torch.bfloat16)], 0.5)
@example([Part((0.0, -0.0, 0.0), None, torch.float32)], 0.34)
@example([Part((NAN, 1.0), None, torch.float32), Part((NAN, INF), None, torch.float64)], 0.75)
def test_ties_by_index_are_the_first_of_a_stable_sort(group: list[Part], share: float):
    sources = sources_of(group)
    k = round(share * size_of(sources))
    _, _, found = pruned(sources, k, "index")
    assert found == stable_smallest(joined(sources), k)


@given(GROUPS, SHARES)
def test_cuts_tell_what_goes(group: list[Part], share: float):
    sources = sources_of(group)
    everything = joined(sources)
    k = round(share * size_of(sources))
    ranking, gone, _ = pruned(sources, k, "index")
    cuts = ranking.cuts
    assert sum(cut.count for cut in cuts.values()) == k
    assert {name: cut.count for name, cut in cuts.items()} == {
        name: int(part.sum()) for name, part in gone.items()
    }
    if k == 0:
        assert set(cuts.values()) == {Cut(threshold=None, count=0)}
        return
    level = torch.kthvalue(everything, k).values
    for name, cut in cuts.items():
        values = sources[name].chunk(0, sources[name].units)
        at = values.isnan() if level.isnan() else values.double() == level.double()
        assert cut.threshold is not None
        assert cut.threshold == float(level) or math.isnan(cut.threshold) == bool(level.isnan())
        assert cut.tied == int(at.sum())
        assert 0 <= cut.quota <= cut.tied
        assert cut.is_ambiguous == (0 < cut.quota < cut.tied)


@given(GROUPS, SHARES)
def test_quotas_are_used_up_in_parameter_order(group: list[Part], share: float):
    sources = sources_of(group)
    cuts = list(cut_group(sources, round(share * size_of(sources)), all_ties=False).values())
    spent = [cut.quota == cut.tied for cut in cuts]
    short = spent.index(False) if False in spent else len(cuts)
    assert all(cut.quota == 0 for cut in cuts[short + 1 :])


@given(st.lists(parts(st.just(torch.float32)), min_size=1, max_size=3), SHARES, st.integers(-8, 8))
def test_only_the_order_of_scores_matters(group: list[Part], share: float, power: int):
    sources = sources_of(group)
    k = round(share * size_of(sources))
    scaled: dict[str, ScoreSource] = {
        name: Values(source.chunk(0, source.units) * 2.0**power) for name, source in sources.items()
    }
    assert pruned(sources, k, "index")[2] == pruned(scaled, k, "index")[2]


@given(st.permutations(range(12)), st.integers(0, 12))
def test_the_order_of_parameters_matters_only_among_equals(order: list[int], k: int):
    values = torch.tensor(order, dtype=torch.float32)
    first: dict[str, ScoreSource] = {"a": Values(values[:5]), "b": Values(values[5:])}
    swapped: dict[str, ScoreSource] = {"b": first["b"], "a": first["a"]}
    one, other = pruned(first, k, "index")[1], pruned(swapped, k, "index")[1]
    assert all(torch.equal(one[name], other[name]) for name in first)


# Ties as torch has them


@given(GROUPS, SHARES)
@example([Part((1.0,) * 9, None, torch.float32)], 0.5)
@example([Part((NAN,) * 5, None, torch.float32)], 0.5)
def test_ties_of_torch_are_those_of_topk(group: list[Part], share: float):
    sources = sources_of(group)
    everything = joined(sources)
    k = round(share * len(everything))
    _, _, found = pruned(sources, k, "torch")
    assert found == set(torch.topk(everything, k, largest=False).indices.tolist())


@given(GROUPS, SHARES)
def test_where_the_largest_are_kept_ties_are_those_of_topk_of_them(group: list[Part], share: float):
    sources = sources_of(group)
    everything = joined(sources)
    keep = round(share * len(everything))
    _, _, found = pruned(sources, len(everything) - keep, "torch", keep_first=True)
    kept = set(torch.topk(everything, keep, largest=True).indices.tolist())
    assert found == set(range(len(everything))) - kept


@given(GROUPS, SHARES)
def test_both_kinds_of_ties_prune_equal_scores(group: list[Part], share: float):
    sources = sources_of(group)
    everything = joined(sources).double()
    k = round(share * len(everything))
    by_index, of_torch = (
        everything[sorted(pruned(sources, k, ties)[2])].sort().values for ties in ("index", "torch")
    )
    assert torch.equal(by_index.nan_to_num(9, 8, -8), of_torch.nan_to_num(9, 8, -8))


# The two algorithms of torch.topk: a heap where k * 64 <= n, else a partition.
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("k", [1, 15, 16, 500, 999])
@pytest.mark.parametrize("keep_first", [False, True])
def test_long_vectors_with_many_ties_too(dtype: torch.dtype, k: int, keep_first: bool):
    generator = torch.Generator().manual_seed(k)
    values = torch.randint(0, 40, (1000,), generator=generator).to(dtype)
    sources: dict[str, ScoreSource] = {"a": Values(values[:300]), "b": Values(values[300:])}
    _, _, found = pruned(sources, k, "torch", keep_first=keep_first)
    smallest = set(torch.topk(values, k, largest=False).indices.tolist())
    largest = set(torch.topk(values, 1000 - k, largest=True).indices.tolist())
    assert found == (set(range(1000)) - largest if keep_first else smallest)
    assert pruned(sources, k, "index")[2] == stable_smallest(values, k)


@given(st.lists(st.sampled_from([0.0, 0.25, 0.5, 0.75]), min_size=1, max_size=12), st.data())
def test_all_ties_go_where_torch_compares_with_the_threshold(
    values: list[float], data: st.DataObject
):
    k = data.draw(st.integers(1, len(values)))
    scores = torch.tensor(values)
    sources: dict[str, ScoreSource] = {"a": Values(scores)}
    ranking, gone, _ = pruned(sources, k, "torch", all_ties=True)
    level = torch.kthvalue(scores, k).values
    assert torch.equal(gone["a"], ~(scores > level))
    assert ranking.cuts["a"].count == int((scores <= level).sum())
    assert len(pruned(sources, k, "index", all_ties=True)[2]) == k


# Scores of other kinds


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8])
def test_whole_numbers_are_ranked_too(dtype: torch.dtype):
    sources: dict[str, ScoreSource] = {"a": Values(torch.tensor([3, 1, 2, 1], dtype=dtype))}
    assert pruned(sources, 2, "index")[2] == {1, 3}
    assert pruned(sources, 1, "index")[2] == {1}


def test_whole_numbers_that_no_float_tells_apart_are_ranked_too():
    sources: dict[str, ScoreSource] = {"a": Values(torch.tensor([4, 1, 3, 0, 2]) + 2**60)}
    assert pruned(sources, 3, "index")[2] == {1, 3, 4}


def test_whole_numbers_beside_narrow_floats_are_compared_as_torch_joins_them():
    scores = torch.arange(64) * 7 + 1001  # torch.cat rounds these to bfloat16
    weights = torch.full((64,), 0.5, dtype=torch.bfloat16)
    sources: dict[str, ScoreSource] = {"a": Values(scores), "b": Values(weights)}
    for k in range(64, 129):
        assert len(pruned(sources, k, "index")[2]) == k
        expected = torch.topk(torch.cat([scores, weights]), k, largest=False).indices.tolist()
        assert pruned(sources, k, "torch")[2] == set(expected)


def test_groups_may_be_empty():
    assert cut_group({}, 0, all_ties=False) == {}
    sources: dict[str, ScoreSource] = {"a": Values(torch.ones(0)), "b": Values(torch.ones(2))}
    assert pruned(sources, 1, "index")[2] == {0}


def test_replaying_torch_is_needed_only_where_ties_are_ambiguous():
    def replayed(values: list[float], k: int, ties: str) -> bool:
        ranking = pruned({"a": Values(torch.tensor(values))}, k, ties)[0]
        return ranking.is_replayed(("a",))

    assert replayed([1.0, 1.0, 2.0], 1, "torch")
    assert not replayed([1.0, 1.0, 2.0], 1, "index")
    assert not replayed([1.0, 1.0, 2.0], 2, "torch")
    assert not replayed([1.0, 1.0, 2.0], 0, "torch")
