"""norm: the Ln norm of each living channel, bit for bit torch's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from fxprune import functional as prune
from fxprune.errors import DimError, NormError, PassError, ShapeError
from fxprune.program.program import Program
from fxprune.rewrite.facts import Importance, Scores
from fxprune.rewrite.registry import create
from fxprune.testing.assert_pass import program_text as text
from fxprune.testing.comparing import is_same
from tests.conftest import Golden
from tests.tools.helpers import both_texts, facts_text, program, run, selection


def scores(
    p: Program, *names: str, n: Any = 2, dim: int = 0, given: dict[str, Tensor] | None = None
) -> Scores:
    facts = [selection(p, *names), Importance(given or {})]
    return run(p, create("norm", n=n, dim=dim), given=facts)[0][Scores]


def test_scores(golden: Golden):
    p = prune.custom_from_mask(program("mlp"), "0.weight", torch.ones(4, 3).triu())
    found = scores(p, "0.weight", "2.weight", n=1)
    golden("norm", "masked", both_texts(text(p), facts_text(found)))


@pytest.mark.parametrize("dim", [0, 1, 2, 3, -1, -4])
@pytest.mark.parametrize("n", [0, 1, 2, -1, 2.5, float("inf"), float("-inf")])
def test_the_score_of_a_channel_is_the_norm_that_torch_gives(n: Any, dim: int):
    p = program("conv")
    weight = p.parameter("0.weight").detach()
    found = scores(p, "0.weight", n=n, dim=dim)
    source = found.sources["0.weight"]
    others = [d for d in range(4) if d != dim % 4]
    assert is_same(source.chunk(0, source.units), torch.norm(weight, p=n, dim=others))
    assert (source.units, source.alive) == (weight.shape[dim], weight.shape[dim])
    assert (found.dim, found.keep_first, source.dtype) == (dim, True, torch.float32)


def test_dead_channels_have_no_score():
    p = prune.ln_structured(program("conv"), "0.weight", 2, 2, 0)
    source = scores(p, "0.weight", n=1).sources["0.weight"]
    kept = p.masks["0.weight"].flatten(1).any(1)
    value = p.value("0.weight")
    assert (source.units, source.alive) == (4, 2)
    assert is_same(source.living(0, 4), kept)
    assert is_same(source.chunk(0, 4), torch.norm(value[kept], p=1, dim=(1, 2, 3)))
    assert torch.cat([source.chunk(i, i + 1) for i in range(4)]).tolist() == (
        source.chunk(0, 4).tolist()
    )


def test_norms_are_of_what_the_mask_leaves():
    p = prune.l1_unstructured(program("mlp"), "0.weight", 6)
    source = scores(p, "0.weight", n=1, dim=1).sources["0.weight"]
    assert is_same(source.chunk(0, 3), p.value("0.weight").norm(p=1, dim=[0]))


def test_importance_scores_are_normed_in_place_of_values():
    p, given = program("mlp"), torch.arange(12.0).view(4, 3)
    source = scores(p, "0.weight", given={"0.weight": given}).sources["0.weight"]
    assert is_same(source.chunk(0, 4), given.norm(p=2, dim=[1]))
    with pytest.raises(ShapeError):
        scores(p, "0.weight", given={"0.weight": torch.ones(4)})


def test_a_vector_has_no_channels():
    with pytest.raises(PassError, match=r"'0\.bias' has shape \(4,\): channels need two dim"):
        scores(program("mlp"))
    with pytest.raises(DimError, match=r"dim=2 does not exist in '0\.weight'"):
        scores(program("mlp"), "0.weight", dim=2)


def test_a_norm_that_torch_cannot_take_is_named():
    with pytest.raises(NormError, match=r"n='nuc' cannot be taken over dimensions \[1, 2, 3\]"):
        scores(program("conv"), "0.weight", n="nuc")
