"""cut_coupled: masks that cover every slice of the units that go."""

from __future__ import annotations

from typing import Any

import torch

import fxprune
from fxprune.program.program import Program
from fxprune.rewrite.facts import Importance, NewMasks
from fxprune.rewrite.registry import create
from tests.models.coupled_nets import captured
from tests.tools.helpers import run, selection


def masks(p: Program, *names: str, **limits: Any) -> dict[str, torch.Tensor]:
    steps = [
        create("couple", rule="r"),
        create("unit_norm", n=2),
        create("rank_units", **{"amount": 0.5, **limits}),
        create("cut_coupled"),
    ]
    found = run(p, *steps, given=[selection(p, *names), Importance()])[0][NewMasks]
    made = dict(found.make())
    assert tuple(made) == found.names
    return made


def test_rows_and_columns_are_masked_together():
    made = masks(captured("residual"), "conv1.weight")
    assert list(made) == ["conv1.weight", "bn1.weight", "bn1.bias", "conv2.weight"]
    kept = made["bn1.weight"]
    assert int(kept.sum()) == 6
    assert torch.equal(made["bn1.bias"], kept)
    assert torch.equal(made["conv1.weight"], kept.view(-1, 1, 1, 1).expand(12, 8, 3, 3))
    assert torch.equal(made["conv2.weight"], kept.view(1, -1, 1, 1).expand(8, 12, 3, 3))


def test_heads_are_masked_in_query_key_value_and_projection():
    made = masks(captured("attention"), "qkv.weight")
    heads = made["proj.weight"].view(32, 4, 8).amin((0, 2))
    assert torch.equal(made["proj.weight"], heads.repeat_interleave(8).expand(32, 32))
    rows = heads.repeat_interleave(8).repeat(3)
    assert torch.equal(made["qkv.weight"], rows.view(-1, 1).expand(96, 32))
    assert torch.equal(made["qkv.bias"], rows)


def test_what_earlier_masks_held_stays_held():
    rule = {"select": "conv1.weight", "method": "l1_unstructured", "amount": 0.5}
    p = fxprune.prune(captured("residual"), {"rule": [rule]})
    made = masks(p, "conv1.weight")
    assert bool((made["conv1.weight"] <= p.masks["conv1.weight"]).all())


def test_makers_are_masked_though_nothing_goes():
    made = masks(captured("residual"), "conv1.weight", amount=0)
    assert list(made) == ["conv1.weight"]
    assert bool(made["conv1.weight"].all())


def test_masks_have_the_parameters_dtype():
    p = captured("residual").to(torch.bfloat16)
    assert {mask.dtype for mask in masks(p, "conv1.weight").values()} == {torch.bfloat16}
