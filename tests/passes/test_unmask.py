"""unmask: masks go, and the original weights, as training left them, act again."""

from __future__ import annotations

import pytest
import torch

import fxprune
from fxprune import functional as prune
from fxprune.errors import NotPrunedError
from fxprune.program.program import Program
from fxprune.rewrite.registry import create
from fxprune.testing.assert_pass import program_text as text
from fxprune.testing.assert_pass import snapshot
from fxprune.testing.comparing import is_same
from tests.conftest import Golden
from tests.tools.helpers import both_texts, inputs, model, program, run, source_of

# The edits for all masks: one of the tree for each, and four of each graph that reads it.
EDITS = [("mlp", 20), ("tied", 5), ("modes", 46)]


def masked(name: str) -> Program:
    p = program(name)
    for parameter in p.aliases:
        prune.l1_unstructured(p, parameter, 0.5)
    return p


@pytest.mark.parametrize(("name", "edits"), EDITS)
def test_everything_is_unmasked(name: str, edits: int, golden: Golden):
    p = masked(name)
    before = text(p)
    _, trace = run(p, create("unmask"))
    assert trace.edits == edits
    golden("unmask", name, both_texts(before, text(p)))
    assert is_same(dict(p.state_dict()), dict(model(name).state_dict()))
    for train in (True, False):
        assert is_same(p.train(train)(*inputs(name)), model(name).train(train)(*inputs(name)))


@pytest.mark.parametrize("name", ["mlp", "tied", "modes"])
def test_a_second_run_edits_nothing(name: str):
    p = masked(name)
    run(p, create("unmask"))
    before = snapshot(p)
    assert run(p, create("unmask"))[1].edits == 0
    assert snapshot(p) == before


def test_named_masks_go_and_the_others_stay():
    p = masked("mlp")
    kept = p.masks["2.weight"].clone()
    run(p, create("unmask", names=("0.weight", "2.bias")))
    assert list(p.masks) == ["0.bias", "2.weight"]
    assert is_same(p.masks["2.weight"], kept)


def test_an_alias_names_the_mask_of_all():
    p = masked("tied")
    run(p, create("unmask", names=("out.weight",)))
    assert not p.masks
    assert text(p) == text(source_of("tied"))


def test_the_parameters_are_the_same_objects():
    p = masked("mlp")
    parameter = p.parameter("0.weight")
    with torch.no_grad():
        parameter.add_(1)
    run(p, create("unmask"))
    assert p.parameter("0.weight") is parameter
    assert is_same(p.parameter("0.weight").detach(), model("mlp").get_parameter("0.weight") + 1)


def test_only_masked_parameters_can_be_unmasked():
    p = prune.identity(program("mlp"), "0.weight")
    before = snapshot(p)
    with pytest.raises(NotPrunedError, match=r"'2\.bias' has to be pruned"):
        fxprune.unmask(p, "2.bias", inplace=True)
    assert snapshot(p) == before


def test_the_records_forget_what_was_unmasked():
    p = masked("mlp")
    plain = fxprune.unmask(p, "0.weight")
    left = [parameter.name for record in plain.records for parameter in record.parameters]
    assert left == ["0.bias", "2.weight", "2.bias"]
    assert len(p.records) == 4


def test_unmasking_copies_unless_told():
    p = masked("mlp")
    before = snapshot(p)
    plain = fxprune.unmask(p)
    assert not plain.masks
    assert snapshot(p) == before
    assert fxprune.unmask(p, inplace=True) is p
    assert not p.masks
