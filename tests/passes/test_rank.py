"""rank: how many units go and where the cut is, of each parameter or of all together."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fxprune.errors import AmountError, AmountTypeError
from fxprune.rewrite.facts import Cut, Ranking, Scores, ScoreSource
from fxprune.rewrite.registry import create
from fxprune.testing.assert_pass import program_text as text
from tests.conftest import Golden
from tests.tools.helpers import Values, both_texts, facts_text, program, run, selection, source_of


def ranked(sources: dict[str, ScoreSource], facts: dict[str, Any] | None = None, **options: Any):
    scores = Scores(sources, **(facts or {}))
    return run(program("mlp"), create("rank", **options), given=[scores])[0][Ranking]


def two() -> dict[str, ScoreSource]:
    """Two parameters with ties between them, one entry of the second dead."""
    kept = torch.tensor([True, False, True, True])
    return {
        "a": Values(torch.tensor([3.0, 1.0, 2.0, 2.0])),
        "b": Values(torch.tensor([2.0, 0.0, 5.0, 2.0]), kept),
    }


@pytest.mark.smoke
@pytest.mark.parametrize("scope", ["local", "global"])
def test_ranking(scope: str, golden: Golden):
    p = program("mlp")
    given = [selection(p, "0.weight", "2.weight")]
    steps = create("magnitude"), create("rank", amount=0.5, scope=scope)
    found = run(p, *steps, given=given)[0][Ranking]
    golden("rank", scope, both_texts(text(source_of("mlp")), facts_text(found)))


def test_each_parameter_has_its_own_cut():
    found = ranked(two(), amount=0.5)
    assert found.groups == (("a",), ("b",))
    assert found.cuts == {"a": Cut(2.0, 2, tied=2, quota=1), "b": Cut(2.0, 2, tied=2, quota=2)}


def test_all_parameters_have_one_cut():
    found = ranked(two(), amount=0.5, scope="global")
    assert found.groups == (("a", "b"),)
    # round(0.5 * 7) is 4: 1.0 and three of the four 2.0, those of a first
    assert found.cuts == {"a": Cut(2.0, 3, tied=2, quota=2), "b": Cut(2.0, 1, tied=2, quota=1)}
    assert found.cuts["b"].is_ambiguous
    assert not found.cuts["a"].is_ambiguous


def test_the_rule_for_ties_is_handed_on():
    assert ranked(two(), amount=1).ties == "index"
    assert ranked(two(), amount=1, ties="torch").ties == "torch"


def test_every_tie_goes_where_torch_lets_it():
    facts = {"prune_all_ties": True}
    assert ranked(two(), facts, amount=2, ties="torch").cuts["a"] == Cut(2.0, 3, tied=2, quota=2)
    assert ranked(two(), facts, amount=2, ties="index").cuts["a"] == Cut(2.0, 2, tied=2, quota=1)


def test_nothing_goes_of_nothing():
    for scope in ("local", "global"):
        found = ranked(two(), amount=0, scope=scope)
        assert set(found.cuts.values()) == {Cut(None, 0)}
        assert ranked({}, amount=0.5, scope=scope).cuts == {}
        assert ranked({}, amount=3, scope=scope).cuts == {}


def test_amounts_are_checked():
    with pytest.raises(AmountError, match="the 3 entries that are alive; give 3 or less for 'b'"):
        ranked(two(), amount=4)
    with pytest.raises(AmountError, match="amount=8 is more than the 7 channels that are alive"):
        ranked(two(), {"dim": 0}, amount=8, scope="global")
    with pytest.raises(AmountError, match="amount=-1 is out of range"):
        ranked({}, amount=-1)
    with pytest.raises(AmountTypeError, match="amount='1' must be"):
        ranked(two(), amount="1")
