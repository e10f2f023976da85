"""unit_norm, unit_random, unit_mean: a score for each unit of coupled channels."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import fxprune
from fxprune.channels.coupling import CoupledScores, Coupling
from fxprune.errors import PassError, ShapeError
from fxprune.program.program import Program
from fxprune.rewrite.facts import Importance, Scores
from fxprune.rewrite.registry import create
from tests.models.coupled_nets import captured, coupled
from tests.tools.helpers import run, selection

MAKERS = ("stem.weight", "conv1.weight", "conv2.weight")
INSIDE = (("conv1.weight", 0), ("bn1.weight", 0), ("bn1.bias", 0), ("conv2.weight", 1))


def scores(
    p: Program, *steps: Any, importance: dict[str, Tensor] | None = None, names: Any = MAKERS
) -> CoupledScores:
    given = [selection(p, *names), Importance(importance or {})]
    return run(p, create("couple", rule="r"), *steps, given=given)[0][CoupledScores]


def values(found: CoupledScores, name: str) -> Tensor:
    source = found.sources[name]
    return source.chunk(0, source.units)


@pytest.mark.parametrize("n", [0, 1, 2, 2.5, "fro", -1, math.inf, -math.inf])
def test_norms_are_over_all_slices(n: Any):
    p = captured("residual")
    found = values(scores(p, create("unit_norm", n=n)), "conv1.weight")
    order = 2.0 if n == "fro" else float(n)
    for channel in range(12):
        parts = [p.value(name).select(dim, channel).flatten() for name, dim in INSIDE]
        expected = torch.linalg.vector_norm(torch.cat(parts), order)
        # The sum is taken slice by slice.
        torch.testing.assert_close(found[channel], expected, rtol=1e-12, atol=0)


def test_sizes_are_divided_by_the_number_of_entries():
    p = captured("residual")
    whole = values(scores(p, create("unit_norm", n=1)), "conv1.weight")
    mean = values(scores(p, create("unit_norm", n=1, normalize="size")), "conv1.weight")
    torch.testing.assert_close(mean * (8 * 9 + 1 + 1 + 8 * 9), whole, rtol=1e-12, atol=0)


def test_importance_of_some_parameters_stands_for_the_layer():
    p = captured("residual")
    given = {"bn1.weight": torch.arange(12.0, dtype=torch.float64)}
    found = scores(p, create("unit_norm", n=2), importance=given)
    assert torch.equal(values(found, "conv1.weight"), given["bn1.weight"])
    plain = scores(p, create("unit_norm", n=2))
    assert torch.equal(values(found, "stem.weight"), values(plain, "stem.weight"))
    with pytest.raises(ShapeError, match=r"bn1\.weight"):
        scores(p, create("unit_norm", n=2), importance={"bn1.weight": torch.ones(3)})


def test_the_nuclear_norm_is_refused():
    with pytest.raises(PassError, match="units are no matrices"):
        scores(captured("residual"), create("unit_norm", n="nuc"))


def test_flops_need_noted_shapes():
    p = captured("residual")
    for graph in p.graphs.values():
        for node in graph.nodes:
            if node.name == "linear":
                node.meta.pop("fxprune.value")
    with pytest.raises(PassError, match="linear"):
        scores(p, create("unit_norm", n=2, normalize="flops"))


def test_units_whose_every_slice_is_masked_are_dead():
    masked = fxprune.prune(captured("residual"), coupled(amount=3))
    source = scores(masked, create("unit_norm", n=2)).sources["conv1.weight"]
    living = source.living(0, 12)
    assert living is not None
    assert (source.units, source.alive) == (12, 9)
    assert torch.equal(living, masked.masks["bn1.bias"] == 1)
    assert len(source.chunk(0, 12)) == 9
    rule = {"select": "conv1.weight", "method": "ln_structured", "n": 2, "dim": 0, "amount": 3}
    rows = fxprune.prune(captured("residual"), {"rule": [rule]})
    assert scores(rows, create("unit_norm", n=2)).sources["conv1.weight"].alive == 12


def test_random_scores_come_from_the_seed_or_the_global_generator():
    p = captured("residual")
    first = scores(p, create("unit_random", seed=1))
    assert torch.equal(
        values(first, "stem.weight"), torch.rand(20, generator=torch.manual_seed(1))[:8]
    )
    torch.manual_seed(5)
    drawn = scores(p, create("unit_random"))
    torch.manual_seed(5)
    assert torch.equal(values(drawn, "conv1.weight"), torch.rand(20)[8:])


def test_other_scores_are_means_over_what_makes_the_channels():
    p = captured("residual")
    found = scores(p, create("norm", n=2, dim=0), create("unit_mean"))
    stem, conv2 = (p.value(name).flatten(1).norm(dim=1) for name in ("stem.weight", "conv2.weight"))
    torch.testing.assert_close(values(found, "stem.weight"), (stem + conv2) / 2)


def test_scores_of_the_program_are_left_as_they_were():
    p = captured("residual")
    facts, _ = run(
        p,
        create("couple", rule="r"),
        create("norm", n=2, dim=0),
        create("unit_mean"),
        given=[selection(p, *MAKERS), Importance()],
    )
    assert set(facts[Scores].sources) == set(MAKERS)
    assert list(facts[CoupledScores].sources) == [layer.name for layer in facts[Coupling].layers]
