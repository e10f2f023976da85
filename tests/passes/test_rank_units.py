"""rank_units: how many units of each layer go, within its limits."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fxprune.channels.coupling import CoupledLayer, CoupledScores, Coupling, scores_of_units
from fxprune.errors import AmountError
from fxprune.rewrite.facts import Ranking
from fxprune.rewrite.passes import Facts
from fxprune.rewrite.registry import create
from tests.tools.helpers import program


def facts(scores: list[list[float]], living: list[list[bool]], widths: Any = (1,)) -> Facts:
    layers: list[CoupledLayer] = []
    for at, part in enumerate(scores):
        start = layers[-1].stop if layers else 0
        layers.append(CoupledLayer(f"w{at}", (f"w{at}",), start, len(part), widths))
    coupling = Coupling(tuple(layers), ())
    flat = torch.tensor([score for part in scores for score in part])
    alive = torch.tensor([each for part in living for each in part])
    return Facts([coupling, scores_of_units(coupling, flat, alive)])


def counts(found: Facts, **options: Any) -> list[int]:
    ranking: Ranking = create("rank_units", **options).run(program("mlp"), found)
    assert ranking.groups == tuple((name,) for name in found[CoupledScores].sources)
    return [cut.count for cut in ranking.cuts.values()]


def all_alive(scores: list[list[float]]) -> list[list[bool]]:
    return [[True] * len(part) for part in scores]


SCORES = [[5.0, 1.0, 4.0, 2.0], [0.5, 3.0, 0.1, 0.2, 9.0, 0.3]]


def test_local_and_global_counts():
    found = facts(SCORES, all_alive(SCORES))
    assert counts(found, amount=0.5) == [2, 3]
    assert counts(found, amount=3) == [3, 3]
    assert counts(found, amount=0.5, scope="global") == [1, 4]


def test_the_cut_prunes_the_smallest():
    ranking = create("rank_units", amount=0.5).run(program("mlp"), facts(SCORES, all_alive(SCORES)))
    assert [cut.threshold for cut in ranking.cuts.values()] == [2.0, pytest.approx(0.3)]
    assert ranking.ties == "index"


def test_only_the_living_count():
    living = [[True, False, False, True], [True] * 6]
    assert counts(facts(SCORES, living), amount=0.5) == [1, 3]
    assert counts(facts(SCORES, living), amount=0.5, max_share=0.5) == [0, 3]


def test_limits_hold_in_each_layer():
    found = facts(SCORES, all_alive(SCORES))
    assert counts(found, amount=1.0) == [3, 5]
    assert counts(found, amount=1.0, min_keep=5) == [0, 1]
    assert counts(found, amount=1.0, max_share=0.5) == [2, 3]


def test_a_global_amount_beyond_the_limits_is_refused():
    found = facts(SCORES, all_alive(SCORES))
    with pytest.raises(AmountError, match=r"asks for 9 of 10 channels, but .* leave 8; lower"):
        counts(found, amount=9, scope="global")
    with pytest.raises(AmountError, match="more than the 4 channels"):
        counts(found, amount=5)


@pytest.mark.parametrize(("widths", "kept"), [((1,), 4), ((1, 3), 4), ((2,), 2), ((8, 24), 1)])
def test_multiples_count_channels_not_units(widths: tuple[int, ...], kept: int):
    scores = [[float(i) for i in range(8)]]
    found = facts(scores, all_alive(scores), widths)
    assert counts(found, amount=7, round_to=4) == [8 - kept]


@given(data=st.data(), scope=st.sampled_from(["local", "global"]))
def test_counts_keep_every_limit(data: st.DataObject, scope: str):
    sizes = data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=4))
    scores = [
        data.draw(st.lists(st.integers(0, 3).map(float), min_size=n, max_size=n)) for n in sizes
    ]
    living = [data.draw(st.lists(st.booleans(), min_size=n, max_size=n)) for n in sizes]
    options = {
        "amount": data.draw(st.floats(0, 1)),
        "min_keep": data.draw(st.integers(1, 3)),
        "max_share": data.draw(st.sampled_from([0.25, 0.5, 1.0])),
        "round_to": data.draw(st.integers(1, 4)),
    }
    try:
        found = counts(facts(scores, living), scope=scope, **options)
    except AmountError:
        assert scope == "global"
        return
    for count, alive, size in zip(found, map(sum, living), sizes, strict=True):
        assert count == 0 or alive - count >= options["min_keep"]
        assert count == 0 or (size - alive + count) <= options["max_share"] * size + 1e-9
        assert count == 0 or (alive - count) % options["round_to"] == 0
        assert 0 <= count <= alive


@given(data=st.data())
def test_without_limits_global_ranks_all_as_one(data: st.DataObject):
    sizes = data.draw(st.lists(st.integers(2, 6), min_size=1, max_size=3))
    values = data.draw(st.permutations(range(sum(sizes))))
    bounds = np.cumsum([0, *sizes])
    scores = [[float(v) for v in values[a:b]] for a, b in pairwise(bounds)]
    amount = data.draw(st.integers(0, sum(sizes) - len(sizes)))
    found = counts(facts(scores, all_alive(scores)), amount=amount, scope="global")
    assert sum(found) == amount
    taken = sorted(v for part, k in zip(scores, found, strict=True) for v in sorted(part)[:k])
    open_to = sorted(v for part in scores for v in sorted(part)[:-1])
    assert taken == open_to[:amount]
