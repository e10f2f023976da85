"""Models that torch.nn.utils.prune masked and reads wrongly: what they become, and the notes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import prune as torch_prune

import fxprune
from tests.models.zoo import ZOO
from tests.tools.capture_helpers import check_same, net, oracle_of, run

X = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))


def test_a_stale_out_proj_reads_its_mask_and_says_so() -> None:
    model, args, _ = ZOO["attention"]()
    attention: Any = model.get_submodule("attention")
    torch_prune.l1_unstructured(attention.out_proj, "weight", 0.3)
    with torch.no_grad():
        attention.out_proj.weight_orig.mul_(2)
    program = fxprune.capture(model, args)
    assert list(program.state_dict()) == list(model.state_dict())
    dense, _, _ = ZOO["attention"]()
    with torch.no_grad():
        out_proj: Any = dense.get_submodule("attention.out_proj")
        out_proj.weight.copy_(attention.out_proj.weight_orig * attention.out_proj.weight_mask)
    check_same(program.eval()(*args), dense.eval()(*args))
    assert not torch.equal(model.eval()(*args), dense(*args))
    assert len(program.notes) == 1
    assert program.notes[0].startswith("attention.out_proj.weight is read by another module")
    assert "may change the function" in program.notes[0]


def test_a_weight_read_by_a_parent_is_masked_and_noted() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        return F.linear(x, self.l.weight)

    model = net(forward, l=nn.Linear(3, 2))
    torch_prune.l1_unstructured(model.get_submodule("l"), "weight", 0.5)
    program = fxprune.capture(model, (X,))
    assert len(program.notes) == 1
    assert program.notes[0].startswith("l.weight is read by another module")


@pytest.mark.parametrize("alias", ["emb", "out"])
def test_a_tied_weight_that_is_half_pruned_is_masked_whole_and_noted(alias: str) -> None:
    model, args, _ = ZOO["tied_embedding"]()
    source, _, _ = ZOO["tied_embedding"]()
    torch_prune.l1_unstructured(model.get_submodule(alias), "weight", 0.3)
    mask = model.get_buffer(f"{alias}.weight_mask")
    program = fxprune.capture(model, args)
    assert len(program.notes) == 1
    assert program.notes[0].startswith(f"{alias}.weight is tied: its mask acts on all of")
    check_same(program.masks["emb.weight"], mask)
    assert program.masks["emb.weight"] is program.masks["out.weight"]
    oracle = oracle_of(source, {"emb.weight": mask})
    check_same(program.eval()(*args), oracle.forward(args, {}, train=False))
    assert not torch.equal(program(*args), model.eval()(*args))
    keys = ["emb.weight_orig", "emb.weight_mask", "hidden.weight", "hidden.bias"]
    assert list(program.state_dict()) == [*keys, "out.weight_orig", "out.weight_mask"]


def test_a_tied_weight_whose_aliases_have_one_mask_needs_no_note() -> None:
    model, args, _ = ZOO["tied_embedding"]()
    for alias in ("emb", "out"):
        torch_prune.l1_unstructured(model.get_submodule(alias), "weight", 0.3)
    program = fxprune.capture(model, args)
    assert program.notes == ()
    assert list(program.state_dict()) == list(model.state_dict())
    check_same(run(program, args), run(model, args))


def test_a_tied_weight_whose_aliases_have_two_masks_is_joined_or_refused() -> None:
    """One mask for all: either capture refuses, or it is the product of both and a note says so."""
    model, args, _ = ZOO["tied_embedding"]()
    torch.manual_seed(0)
    for alias in ("emb", "out"):
        torch_prune.random_unstructured(model.get_submodule(alias), "weight", 0.3)
    emb, out = (model.get_buffer(f"{alias}.weight_mask") for alias in ("emb", "out"))
    try:
        program = fxprune.capture(model, args)
    except fxprune.FxpruneError as error:
        assert "out.weight" in str(error)  # noqa: PT017 - either will do
        return
    check_same(program.masks["emb.weight"], emb * out)
    assert any("out.weight" in note for note in program.notes)


def test_a_hook_without_a_mask_is_refused() -> None:
    model = nn.Sequential(nn.Linear(3, 2))
    torch_prune.l1_unstructured(model[0], "weight", 0.3)
    model[0]._buffers["weight_mask"] = None
    with pytest.raises(fxprune.FxpruneError, match=r"'weight'.* no mask"):
        fxprune.capture(model, (X,))
