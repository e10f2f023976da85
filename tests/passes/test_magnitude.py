"""magnitude: |t| of each living entry."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune import functional as prune
from fxprune.errors import ShapeError
from fxprune.program.program import Program
from fxprune.rewrite.facts import Importance, Scores, ScoreSource
from fxprune.rewrite.registry import create
from fxprune.testing.assert_pass import program_text as text
from fxprune.testing.comparing import is_same
from tests.conftest import Golden
from tests.tools.helpers import both_texts, facts_text, program, run, selection


def scores(p: Program, *names: str, given: dict[str, Tensor] | None = None) -> Scores:
    facts = [selection(p, *names), Importance(given or {})]
    return run(p, create("magnitude"), given=facts)[0][Scores]


def all_of(source: ScoreSource) -> Tensor:
    return source.chunk(0, source.units)


def test_scores(golden: Golden):
    p = prune.custom_from_mask(program("linear"), "weight", torch.eye(2, 3))
    golden("magnitude", "masked", both_texts(text(p), facts_text(scores(p))))


def test_scores_are_magnitudes_of_living_entries():
    p = program("mlp")
    weight = p.parameter("0.weight").detach()
    source = scores(p).sources["0.weight"]
    assert (source.units, source.alive, source.dtype) == (12, 12, torch.float32)
    assert is_same(all_of(source), weight.abs().flatten())
    assert source.living(0, 12) is None
    prune.l1_unstructured(p, "0.weight", 5)
    kept = p.masks["0.weight"].bool()
    source = scores(p).sources["0.weight"]
    assert (source.units, source.alive) == (12, 7)
    assert is_same(all_of(source), weight[kept].abs())
    assert is_same(source.living(0, 12), kept.flatten())


def test_entries_that_a_mask_scales_are_not_alive():
    p = prune.custom_from_mask(program("linear"), "bias", torch.tensor([0.5, 1.0]))
    assert scores(p, "bias").sources["bias"].alive == 1


def test_importance_scores_are_ranked_by_magnitude_in_place_of_values():
    p = program("linear")
    given = torch.tensor([-3.0, 2.0])
    found = scores(p, given={"bias": given})
    assert all_of(found.sources["bias"]).tolist() == [3.0, 2.0]
    assert is_same(all_of(found.sources["weight"]), p.parameter("weight").detach().abs().flatten())
    with pytest.raises(ShapeError, match="importance scores of 'bias'"):
        scores(p, given={"bias": torch.ones(3)})


def test_complex_entries_have_real_scores():
    class Rotate(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.phase = nn.Parameter(torch.tensor([3 + 4j, 1j]))

        def forward(self, x: Tensor) -> Tensor:
            return torch.view_as_real(x * self.phase)

    p = fxprune.capture(Rotate(), (torch.zeros(3, 2),))
    source = scores(p).sources["phase"]
    assert source.dtype is torch.float32
    assert all_of(source).tolist() == [5.0, 1.0]
