"""given: the caller's masks, or masks of ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from fxprune import functional as prune
from fxprune.errors import FormatError, MissingParameterError, PassError, PassTypeError, ShapeError
from fxprune.files.masks import read_masks
from fxprune.program.program import Program
from fxprune.rewrite.facts import GivenMasks, NewMasks
from fxprune.rewrite.registry import create
from fxprune.testing.assert_pass import program_text as text
from fxprune.testing.comparing import is_same
from tests.conftest import Golden
from tests.tools.helpers import both_texts, facts_text, program, run, selection

MASK = torch.tensor([[1.0, 0.0, 1.0], [0.5, 1.0, 0.0]])


def taken(p: Program, given: dict[str, Any], *names: str, **options: Any) -> NewMasks:
    facts = [selection(p, *names), GivenMasks(given)]
    return run(p, create("given", **options), given=facts)[0][NewMasks]


@pytest.mark.parametrize("ones", [False, True])
def test_masks(ones: bool, golden: Golden):
    p = prune.custom_from_mask(program("linear"), "weight", torch.ones(2, 3).triu())
    found = taken(p, {"weight": MASK, "bias": torch.tensor([0, 1])}, ones=ones)
    golden("given", "ones" if ones else "joined", both_texts(text(p), facts_text(found)))


def test_a_given_mask_is_joined_with_the_one_that_is_there():
    p = program("linear")
    assert is_same(dict(taken(p, {"weight": MASK}, "weight").make()), {"weight": MASK})
    prune.custom_from_mask(p, "weight", MASK)
    again = dict(taken(p, {"weight": MASK}, "weight").make())
    assert is_same(again, {"weight": MASK * MASK})
    assert is_same(p.masks["weight"], MASK)


@pytest.mark.parametrize("name", ["emb.weight", "out.weight"])
def test_a_mask_is_found_by_any_name(name: str):
    mask = torch.eye(4, 3)
    found = taken(program("tied"), {name: mask, "other": torch.ones(1)})
    assert is_same(dict(found.make()), {"emb.weight": mask})


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float64])
def test_a_mask_takes_the_parameters_dtype(dtype: torch.dtype):
    mask = torch.eye(2, 3).to(dtype)
    made = dict(taken(program("linear"), {"weight": mask}, "weight").make())["weight"]
    assert is_same(made, torch.eye(2, 3))
    half = program("linear").bfloat16()
    made = dict(taken(half, {"weight": mask}, "weight").make())["weight"]
    assert made.dtype is torch.bfloat16


def test_ones_need_no_given_mask_and_keep_what_is_there():
    p = prune.custom_from_mask(program("linear"), "weight", MASK)
    made = dict(taken(p, {}, ones=True).make())
    assert is_same(made, {"weight": MASK, "bias": torch.ones(2)})
    assert made["weight"] is not p.masks["weight"]


def test_what_does_not_fit_is_refused_before_any_mask_is_made():
    p = program("linear")
    with pytest.raises(PassError, match=r"there is no mask for 'bias'; there are \['weight'\]"):
        taken(p, {"weight": MASK})
    with pytest.raises(ShapeError) as caught:
        taken(p, {"weight": torch.ones(3)}, "weight")
    assert str(caught.value) == "the mask of 'weight' has shape (3,), the parameter (2, 3)"
    with pytest.raises(PassTypeError, match="the mask of 'weight' is no tensor"):
        taken(p, {"weight": [[1, 0, 1], [0, 1, 0]]}, "weight")


# Masks in a file


def test_masks_are_read_from_a_file(tmp_path: Path):
    path = tmp_path / "masks.safetensors"
    save_file({"weight": MASK}, path)
    p = program("linear")
    found = taken(p, {"weight": torch.zeros(2, 3)}, "weight", file=str(path))
    assert is_same(dict(found.make()), {"weight": MASK})
    with pytest.raises(PassError) as caught:
        taken(p, {}, file=str(path))
    assert "there is no mask for 'bias' in" in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_mask_in_a_file_that_is_of_no_parameter_is_refused(tmp_path: Path):
    path = tmp_path / "masks.safetensors"
    saved: dict[str, Tensor] = {"weight": MASK, "wieght": MASK.clone()}
    save_file(saved, path)
    with pytest.raises(MissingParameterError) as caught:
        taken(program("linear"), {}, "weight", file=str(path))
    expected = f"{path}: the program has no parameter 'wieght'; did you mean 'weight'?"
    assert str(caught.value) == expected


@pytest.mark.parametrize("content", [None, b"", b"{}", b"\x80\x04pickle", b"\xff" * 64])
def test_a_file_that_holds_no_masks_is_refused(content: bytes | None, tmp_path: Path):
    path = tmp_path / "masks.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(FormatError) as caught:
        read_masks(path)
    assert str(caught.value).startswith(f"{path}: this ")


def test_a_folder_is_no_file_of_masks(tmp_path: Path):
    folder = tmp_path / "masks.pt"
    folder.mkdir()
    with pytest.raises(FormatError, match="this is not a file"):
        read_masks(folder)
