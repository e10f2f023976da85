"""Masks in other tools' files: read as the tools write them, written as they read them."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.ao.pruning._experimental.pruner.saliency_pruner import SaliencyPruner
from torch.ao.pruning.sparsifier.weight_norm_sparsifier import WeightNormSparsifier
from torch.nn.utils import parametrize
from torch.nn.utils import prune as torch_prune

import fxprune
from fxprune.errors import (
    FormatError,
    MissingParameterError,
    NotPrunedError,
    PassTypeError,
    SelectError,
    ShapeError,
)
from fxprune.files.masks import FORMATS, fit_masks, format_of, read_masks, write_masks
from fxprune.testing.comparing import is_same
from tests.models import store
from tests.models.zoo import ZOO
from tests.tools.profiles import examples, thorough_but

X = torch.arange(32.0).reshape(4, 8) / 32


def net() -> Any:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Sequential(nn.Linear(6, 4)))


class Mask(nn.Module):
    """A parametrization that keeps its mask in the state dict."""

    mask: Tensor

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.mask


def masked(amount: float = 0.5, select: Any = "*") -> fxprune.Program:
    rule = {"select": select, "method": "l1_unstructured", "amount": amount}
    return fxprune.prune(store.capture(net(), (X,)), {"rule": [rule]})


def by_rule(path: Path, select: Any = "*.weight") -> fxprune.Program:
    rule = {"select": select, "method": "custom_from_mask", "mask": str(path)}
    return fxprune.prune(store.capture(net(), (X,)), {"rule": [rule]})


# What the tools themselves write


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_state_dicts_of_torchs_prune_are_read(suffix: str, tmp_path: Path) -> None:
    model = net()
    torch_prune.l1_unstructured(model[0], "weight", 0.5)
    torch_prune.random_unstructured(model[2][0], "weight", 3)
    path = tmp_path / f"pruned{suffix}"
    write: Any = save_file if suffix == ".safetensors" else torch.save
    write(model.state_dict(), path)
    masks = read_masks(path)
    expected = {"0.weight": model[0].weight_mask, "2.0.weight": model[2][0].weight_mask}
    assert is_same(masks, expected)
    assert is_same(by_rule(path)(X), model(X))


def test_masks_of_torchs_prune_without_their_weights_are_read(tmp_path: Path) -> None:
    mask = torch.ones(6, 8).triu()
    torch.save({"0.weight_mask": mask}, tmp_path / "masks.pt")
    assert is_same(read_masks(tmp_path / "masks.pt"), {"0.weight": mask})


def test_the_state_of_a_sparsifier_of_torch_ao_is_read(tmp_path: Path) -> None:
    model = net()
    sparsifier = WeightNormSparsifier(sparsity_level=0.5, sparse_block_shape=(1, 4))
    sparsifier.prepare(model, [{"tensor_fqn": "0.weight"}, {"tensor_fqn": "2.0.weight"}])
    sparsifier.step()
    torch.save(sparsifier.state_dict(), tmp_path / "sparse.pt")
    masks = read_masks(tmp_path / "sparse.pt")
    assert is_same(masks["0.weight"], model[0].parametrizations["weight"][0].mask)
    assert 0 < int((masks["0.weight"] == 0).sum()) < 48
    assert is_same(by_rule(tmp_path / "sparse.pt")(X), model(X))


def test_rows_that_torch_ao_prunes_become_whole_masks(tmp_path: Path) -> None:
    model = net()
    pruner = SaliencyPruner({"sparsity_level": 0.5})
    pruner.prepare(model, [{"tensor_fqn": "0.weight"}])
    pruner.enable_mask_update = True
    pruner.step()
    torch.save(pruner.state_dict(), tmp_path / "rows.pt")
    rows = read_masks(tmp_path / "rows.pt")["0.weight"]
    assert is_same(rows, model[0].parametrizations["weight"][0].mask)
    assert int(rows.sum()) == 3
    program = by_rule(tmp_path / "rows.pt", "0.weight")
    assert is_same(program.masks["0.weight"], rows.float().view(6, 1).expand(6, 8).contiguous())
    assert is_same(program.get_parameter("0.weight_orig") * rows.view(6, 1), model[0].weight)


def test_several_parametrizations_act_one_after_another(tmp_path: Path) -> None:
    model, first, second = net(), torch.ones(6, 8).triu(), torch.ones(6, 8).tril()
    for mask in (first, second):
        parametrize.register_parametrization(model[0], "weight", Mask(mask))
    torch.save(model.state_dict(), tmp_path / "two.pt")
    assert is_same(read_masks(tmp_path / "two.pt"), {"0.weight": first * second})
    assert is_same(by_rule(tmp_path / "two.pt", "0.weight")(X), model(X))


@pytest.mark.parametrize("third", [False, True])
def test_masks_of_nni_are_read(third: bool, tmp_path: Path) -> None:
    mask = torch.ones(6, 8).triu()
    targets: dict[str, Any] = {"weight": mask, "bias": torch.ones(6)}
    if third:  # NNI 3 names every target, and has None where one is not masked
        targets |= {"_input_0": None}
    torch.save({"0": targets}, tmp_path / "nni.pth")
    assert is_same(read_masks(tmp_path / "nni.pth"), {"0.weight": mask, "0.bias": torch.ones(6)})


@pytest.mark.parametrize("prefix", ["__", ""])
def test_buffers_of_asp_are_read(prefix: str, tmp_path: Path) -> None:
    mask = torch.tensor([True, True, False, False] * 12).view(6, 8)
    state = {**net().state_dict(), f"0.{prefix}weight_mma_mask": mask}
    torch.save(state, tmp_path / "asp.pt")
    assert is_same(read_masks(tmp_path / "asp.pt"), {"0.weight": mask})
    with torch.no_grad():
        model = net()
        model[0].weight.mul_(mask)
    assert is_same(by_rule(tmp_path / "asp.pt", "0.weight")(X), model(X))


# Round trips


@cache
def pruned(name: str) -> fxprune.Program:
    model, args, kwargs = ZOO[name]()
    rule = {"select": "*", "method": "random_unstructured", "amount": 0.3, "seed": 1}
    return fxprune.prune(store.capture(model, args, kwargs), {"rule": [rule]})


@pytest.mark.parametrize("suffix", thorough_but([".safetensors"], [".pt", ".safetensors"]))
@pytest.mark.parametrize("kind", FORMATS)
def test_masks_come_back(kind: str, suffix: str, tmp_path: Path) -> None:
    if kind in ("nni", "sparsifier") and suffix == ".safetensors":
        return
    for name in ("lenet", "tied_embedding", "attention", "lstm"):
        program = pruned(name)
        before = {key: value.clone() for key, value in program.state_dict().items()}
        path = write_masks(program, tmp_path / f"{name}{suffix}", format=kind)
        found = fit_masks(program, read_masks(path))
        assert list(found) == list(program.masks)
        assert all(is_same(found[key].float(), mask) for key, mask in program.masks.items())
        assert is_same(dict(program.state_dict()), before)


SHAPES = st.lists(st.integers(0, 3), min_size=0, max_size=3)
NAMES = st.text("ab.", min_size=1, max_size=6).filter(lambda text: "" not in text.split("."))


@st.composite
def mask_tables(draw: Callable[..., Any]) -> dict[str, Tensor]:
    dtype = draw(st.sampled_from([torch.bool, torch.float32, torch.bfloat16, torch.int8]))
    names = draw(st.lists(NAMES, min_size=1, max_size=4, unique=True))
    seed = draw(st.integers(0, 2**32))
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randint(0, 2, tuple(draw(SHAPES)), generator=generator).to(dtype)
        for name in names
    }


TO_FILE: dict[str, Callable[[dict[str, Tensor]], dict[str, Any]]] = {
    "plain": dict,
    "torch": lambda masks: {
        key: value
        for name, mask in masks.items()
        for key, value in ((f"{name}_orig", mask * 2), (f"{name}_mask", mask))
    },
    "parametrize": lambda masks: {
        f"{path}{dot}parametrizations.{name}.0.mask": mask
        for key, mask in masks.items()
        for path, dot, name in [key.rpartition(".")]
    },
    "asp": lambda masks: {
        f"{path}{dot}__{name}_mma_mask": mask
        for key, mask in masks.items()
        for path, dot, name in [key.rpartition(".")]
    },
    "sparsifier": lambda masks: {
        "state": {name: {"mask": mask} for name, mask in masks.items()},
        "groups": [{"tensor_fqn": name, "sparsity_level": 0.5} for name in masks],
    },
    "nni": lambda masks: {
        path: {
            key.rpartition(".")[2]: mask
            for key, mask in masks.items()
            if key.rpartition(".")[0] == path
        }
        for path in {key.rpartition(".")[0] for key in masks}
    },
}


@pytest.mark.parametrize("kind", FORMATS)
@examples(20, 100)
@given(masks=mask_tables())
def test_any_masks_in_any_format_are_recognised_and_read(
    kind: str, masks: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("masks") / "masks.pt"
    content = TO_FILE[kind](masks)
    assert format_of(content) == kind
    torch.save(content, path)
    assert is_same(dict(sorted(read_masks(path).items())), dict(sorted(masks.items())))


# The other tools take what is written


def test_written_state_dicts_load_strictly_into_the_tools_own_models(tmp_path: Path) -> None:
    program = masked(select="*.weight")
    model = net()
    for layer in (model[0], model[2][0]):
        torch_prune.identity(layer, "weight")
    model.load_state_dict(torch.load(write_masks(program, tmp_path / "a.pt", format="torch")))
    assert is_same(model(X), program(X))

    sparse = net()
    sparsifier = WeightNormSparsifier()
    sparsifier.prepare(sparse, [{"tensor_fqn": name} for name in ("0.weight", "2.0.weight")])
    path = write_masks(program, tmp_path / "b.pt", format="sparsifier")
    sparsifier.load_state_dict(torch.load(path))
    assert is_same(sparse(X), program(X))

    other = net()
    for layer in (other[0], other[2][0]):
        ones = torch.ones_like(layer.weight)
        parametrize.register_parametrization(layer, "weight", Mask(ones))
    path = write_masks(program, tmp_path / "b.safetensors", format="parametrize")
    other.load_state_dict(load_file(path))
    assert is_same(other(X), program(X))

    asp = net()
    for layer in (asp[0], asp[2][0]):
        layer.register_buffer("__weight_mma_mask", torch.ones_like(layer.weight).bool())
    asp.load_state_dict(torch.load(write_masks(program, tmp_path / "c.pt", format="asp")))
    assert is_same(asp(X), program(X))
    nni = torch.load(write_masks(program, tmp_path / "d.pt", format="nni"))
    assert {path: list(targets) for path, targets in nni.items()} == {
        "0": ["weight"],
        "2.0": ["weight"],
    }


# What does not fit


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"0.weight": torch.tensor([0.5])}, "other entries than 0 and 1; are these weights?"),
        ({"0.weight": torch.tensor([float("nan")])}, "entries that are not finite"),
        ({"0.weight": torch.zeros(2, dtype=torch.complex64)}, "is a torch.complex64 tensor"),
        ({"0.weight": torch.eye(2).to_sparse()}, "in torch.sparse_coo"),
        ({"0.weight": torch.ones(2, device="meta")}, "on the meta device"),
        ({"0.weight": [1, 0]}, "'0.weight' is a list, not a mask"),
        ({"0": {"weight": "x"}}, "'weight' is a str, not a mask"),
        ({"0": {"_output_": torch.ones(2)}}, "masks '_output_', which is no parameter"),
        ({"0": {"weight": torch.ones(2)}, "1": 3}, "'1' has no masks by target"),
        ({}, "there is no mask in this file"),
        ([1], "this holds a list, not masks by name"),
    ],
)
def test_what_is_no_mask_is_refused(content: Any, message: str, tmp_path: Path) -> None:
    path = tmp_path / "masks.pt"
    torch.save(content, path)
    with pytest.raises(FormatError) as caught:
        read_masks(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)


def test_other_values_are_factors_where_they_are_asked_for(tmp_path: Path) -> None:
    mask = torch.tensor([0.5, -2.0])
    torch.save({"bias": mask}, tmp_path / "soft.pt")
    assert is_same(read_masks(tmp_path / "soft.pt", binary=False), {"bias": mask})


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_names_of_wrapped_models_fit(prefix: str) -> None:
    program = store.capture(nn.Sequential(nn.Linear(3, 2)), (torch.zeros(4, 3),))
    assert list(fit_masks(program, {f"{prefix}0.weight": torch.ones(2, 3)})) == ["0.weight"]
    with pytest.raises(MissingParameterError, match=r"'modul\.0\.weight'"):
        fit_masks(program, {"modul.0.weight": torch.ones(2, 3)})


def test_masks_that_fit_no_parameter_are_refused() -> None:
    program = masked()
    with pytest.raises(MissingParameterError, match=r"'0.wieght'; did you mean '0.weight'"):
        fit_masks(program, {"0.wieght": torch.ones(6, 8)})
    with pytest.raises(ShapeError, match=r"has shape \(8, 6\), the parameter \(6, 8\)"):
        fit_masks(program, {"0.weight": torch.ones(8, 6)})
    model, args, kwargs = ZOO["tied_embedding"]()
    tied = store.capture(model, args, kwargs)
    first, *others = next(
        [name for name in tied.captured.first if tied.captured.first[name] == head]
        for head in tied.captured.first.values()
        if list(tied.captured.first.values()).count(head) > 1
    )
    ones = torch.ones_like(tied.get_parameter(first))
    assert list(fit_masks(tied, {others[0]: ones, first: ones.clone()})) == [first]
    with pytest.raises(SelectError, match="are one parameter, but their masks differ"):
        fit_masks(tied, {first: ones, others[0]: torch.zeros_like(ones)})


def test_a_pickle_with_code_in_it_is_not_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "ran"),)

    for content in (Evil(), {"0.weight": Evil()}, {"0": {"weight": Evil()}}):
        torch.save(content, tmp_path / "evil.pt")
        with pytest.raises(FormatError, match="nothing in it was run"):
            read_masks(tmp_path / "evil.pt")
        with pytest.raises(FormatError, match="nothing in it was run"):
            by_rule(tmp_path / "evil.pt")
    assert not (tmp_path / "ran").exists()


def test_what_cannot_be_written_is_refused_and_nothing_is_left(tmp_path: Path) -> None:
    program = masked()
    with pytest.raises(FormatError, match="format='nnni' is not known; did you mean 'nni'"):
        write_masks(program, tmp_path / "a.pt", format="nnni")
    with pytest.raises(FormatError, match=r"nni masks are written to \.pt, \.pth, \.bin files"):
        write_masks(program, tmp_path / "a.safetensors", format="nni")
    with pytest.raises(FormatError, match=r"plain masks are written to \.safetensors, \.pt"):
        write_masks(program, tmp_path / "a.npz")
    with pytest.raises(NotPrunedError, match="the program has no mask to write"):
        write_masks(fxprune.unmask(program), tmp_path / "a.pt")
    with pytest.raises(PassTypeError, match=r"not Sequential; call fxprune\.capture first"):
        write_masks(net(), tmp_path / "a.pt")  # pyright: ignore[reportArgumentType]
    assert os.listdir(tmp_path) == []
