"""From a recipe file to masks: groups, mask files, arguments, seeds and imports."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch.nn.utils import prune as torch_prune

import fxprune
from fxprune.errors import FormatError, RecipeError
from tests.tools.helpers import program


class EveryNth(torch_prune.BasePruningMethod):
    """Prune every n-th entry that is left."""

    PRUNING_TYPE = "unstructured"

    def __init__(self, n: int, first: int = 0) -> None:
        self.n, self.first = n, first

    def compute_mask(self, t: torch.Tensor, default_mask: torch.Tensor) -> Any:
        mask = default_mask.clone()
        mask.view(-1)[self.first :: self.n] = 0
        return mask


def write(folder: Path, *rules: str) -> Path:
    path = folder / "recipe.toml"
    path.write_text("\n".join(f"[[rule]]\n{rule}" for rule in rules), encoding="utf-8")
    return path


def pruned(masked: fxprune.Program) -> dict[str, int]:
    return {name: int((mask == 0).sum()) for name, mask in masked.masks.items()}


def test_a_group_is_one_budget_over_rules(tmp_path: Path):
    keys = 'method = "l1_unstructured"\nscope = "global"\ngroup = "all"\namount = 7'
    path = write(tmp_path, f'select = "0.weight"\n{keys}', f'select = "2.weight"\n{keys}')
    found = fxprune.prune(program("mlp"), path)
    together = write(tmp_path, 'select = "*.weight"\n' + keys.replace('group = "all"\n', ""))
    expected = fxprune.prune(program("mlp"), together)
    assert sum(pruned(found).values()) == 7
    assert all(torch.equal(found.masks[name], mask) for name, mask in expected.masks.items())


def test_a_mask_file_lies_beside_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    source = program("mlp")
    mask = (torch.rand_like(source.parameter("0.weight")) > 0.5).to(torch.int8)
    save_file({"0.weight": mask}, tmp_path / "masks.safetensors")
    rule = 'select = "0.weight"\nmethod = "custom_from_mask"\nmask = "masks.safetensors"'
    path = write(tmp_path, rule)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    masked = fxprune.prune(source, path)
    assert torch.equal(masked.masks["0.weight"], mask.to(torch.float32))
    (tmp_path / "masks.safetensors").unlink()
    with pytest.raises(FormatError, match=r"masks\.safetensors: this does not exist"):
        fxprune.prune(source, path)


def test_a_class_and_its_arguments_need_leave(tmp_path: Path):
    rule = (
        'select = "0.weight"\nmethod = "tests.recipe.test_recipe_to_masks:EveryNth"\n'
        "args = { n = 3, first = 1 }"
    )
    path = write(tmp_path, rule)
    with pytest.raises(RecipeError, match="runs code; if you trust it"):
        fxprune.prune(program("mlp"), path)
    masked = fxprune.prune(program("mlp"), path, allow_imports=True)
    gone = (masked.masks["0.weight"].view(-1) == 0).nonzero().flatten().tolist()
    assert gone == list(range(1, masked.masks["0.weight"].numel(), 3))


@pytest.mark.parametrize(
    "method", ["random_unstructured", 'random_structured"\ndim = 0\nname = "channels']
)
def test_a_seed_makes_a_draw_private_and_repeatable(tmp_path: Path, method: str):
    rule = f'select = "*.weight"\nmethod = "{method}"\namount = 0.5\nseed = '
    state = torch.get_rng_state()
    first, again, other = (
        fxprune.prune(program("mlp"), write(tmp_path, rule + seed)) for seed in ("5", "5", "6")
    )
    assert torch.equal(torch.get_rng_state(), state)
    same = [torch.equal(mask, again.masks[name]) for name, mask in first.masks.items()]
    changed = [not torch.equal(mask, other.masks[name]) for name, mask in first.masks.items()]
    assert all(same)
    assert any(changed)
