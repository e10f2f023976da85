"""cut: from a ranking to masks, in which earlier masks stay."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fxprune import functional as prune
from fxprune.program.program import Program
from fxprune.rewrite.facts import Cut, NewMasks, Ranking, Scores, ScoreSource
from fxprune.rewrite.registry import create
from fxprune.testing.assert_pass import program_text as text
from fxprune.testing.comparing import is_same
from tests.conftest import Golden
from tests.tools.helpers import Values, both_texts, facts_text, program, run, selection


def masks(p: Program, scores: Scores, ranking: Ranking) -> NewMasks:
    return run(p, create("cut"), given=[scores, ranking])[0][NewMasks]


def one(p: Program, cut: Cut, values: Tensor, kept: Tensor | None = None, dim: int | None = None):
    """Cut `0.weight` of the mlp, shape (4, 3)."""
    sources: dict[str, ScoreSource] = {"0.weight": Values(values, kept)}
    ranking = Ranking({"0.weight": cut}, (("0.weight",),), "index")
    return dict(masks(p, Scores(sources, dim=dim), ranking).make())["0.weight"]


@pytest.mark.parametrize(
    ("case", "score", "names"),
    [("entries", "magnitude", ("weight", "bias")), ("channels", "norm", ("weight",))],
)
def test_masks(case: str, score: str, names: tuple[str, ...], golden: Golden):
    p = prune.custom_from_mask(program("linear"), "weight", torch.ones(2, 3).triu())
    options = {"dim": 1} if score == "norm" else {}
    steps = create(score, **options), create("rank", amount=1), create("cut")
    found = run(p, *steps, given=[selection(p, *names)])[0][NewMasks]
    golden("cut", case, both_texts(text(p), facts_text(found)))


def test_entries_under_the_threshold_go_and_some_of_those_at_it():
    values = torch.tensor([1.0, 2.0, 2.0, 3.0, 2.0, 0.0, 9.0, 9.0, 9.0, 9.0, 9.0, 9.0])
    mask = one(program("mlp"), Cut(2.0, 4, tied=3, quota=2), values)
    assert mask.tolist() == [[0, 0, 0], [1, 1, 0], [1, 1, 1], [1, 1, 1]]
    assert (mask.dtype, mask.requires_grad) == (torch.float32, False)


def test_channels_go_whole():
    mask = one(program("mlp"), Cut(2.0, 1, tied=1, quota=1), torch.tensor([5.0, 2.0, 3.0]), dim=-1)
    assert mask.tolist() == [[1, 0, 1]] * 4


def test_without_a_threshold_nothing_goes():
    mask = one(program("mlp"), Cut(None, 0), torch.zeros(12))
    assert is_same(mask, torch.ones(4, 3))


def test_what_earlier_masks_hold_stays():
    p = program("mlp")
    old = torch.tensor([[1.0, 0.0, 0.5], [1.0, 1.0, 1.0], [0.0, 1.0, 1.0], [1.0, 1.0, 1.0]])
    prune.custom_from_mask(p, "0.weight", old)
    values = torch.arange(12.0)
    mask = one(p, Cut(4.0, 3, tied=1, quota=1), values, (old == 1).flatten())
    assert mask.tolist() == [[0, 0, 0.5], [0, 0, 1], [0, 1, 1], [1, 1, 1]]
    assert is_same(p.masks["0.weight"], old)


def test_dead_channels_stay_dead():
    p = prune.ln_structured(program("mlp"), "0.weight", 1, 2, 0)
    kept = p.masks["0.weight"].any(1)
    mask = one(p, Cut(0.0, 1, tied=1, quota=1), torch.arange(4.0), kept, dim=0)
    living = kept.nonzero().flatten().tolist()
    assert mask.any(1).nonzero().flatten().tolist() == [i for i in living if i != 0]


def test_masks_have_the_parameters_dtype_and_are_contiguous():
    p = program("mlp").bfloat16()
    weight = p.parameter("0.weight")
    weight.data = weight.data.T.contiguous().T
    mask = one(p, Cut(2.0, 3, tied=1, quota=1), torch.arange(12.0))
    assert mask.dtype is torch.bfloat16
    assert mask.is_contiguous()


def test_masks_are_made_when_they_are_read_and_again_each_time():
    p = program("mlp")
    sources: dict[str, ScoreSource] = {
        "0.weight": Values(torch.arange(12.0)),
        "2.bias": Values(torch.arange(2.0)),
    }
    ranking = Ranking(
        {"0.weight": Cut(0.0, 1, 1, 1), "2.bias": Cut(0.0, 1, 1, 1)},
        (("0.weight", "2.bias"),),
        "index",
    )
    found = masks(p, Scores(sources), ranking)
    assert found.names == ("0.weight", "2.bias")
    first, again = dict(found.make()), dict(found.make())
    assert list(first) == ["0.weight", "2.bias"]
    assert is_same(first, again)
    assert all(first[name] is not again[name] for name in first)
