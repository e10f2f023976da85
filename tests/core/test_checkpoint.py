"""Pruning a checkpoint on disk: the same tensors, bit for bit, as pruning a model in memory."""

from __future__ import annotations

import copy
import functools
import json
import math
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import fxprune
from fxprune import bracket, checkpoint_channels, checkpoint_io, ranking, scan
from fxprune.bits import same_bits
from fxprune.checkpoint import prune_checkpoint
from fxprune.errors import AmountError, PassError, RecipeError, SelectError

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


class Holder(nn.Module):
    """A module that has given parameters and reads each of them once."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        for name, tensor in tensors.items():
            path, _, attribute = name.rpartition(".")
            owner: nn.Module = self
            for part in path.split(".") if path else ():
                if part not in owner._modules:
                    owner.add_module(part, nn.Module())
                owner = owner._modules[part]
            owner.register_parameter(attribute, nn.Parameter(tensor.clone()))
        self.names = list(tensors)

    def forward(self, x: Tensor) -> Tensor:
        return x + sum(self.get_parameter(name).sum().to(x) for name in self.names)


@functools.cache
def captured(names: tuple[str, ...]) -> fxprune.Program:
    """A Program with such parameters, for others to be put in their place: capture takes long."""
    return fxprune.capture(Holder(dict.fromkeys(names, torch.zeros(1))), (torch.zeros(2),))


def in_memory(tensors: Mapping[str, Tensor], recipe: dict[str, Any]) -> dict[str, Tensor]:
    """What pruning and finalizing a model with these parameters makes of them."""
    floats = {name: t for name, t in tensors.items() if t.is_floating_point()}
    program = copy.deepcopy(captured(tuple(floats)))
    for name, tensor in floats.items():
        path, _, attribute = name.rpartition(".")
        program.get_submodule(path)._parameters[attribute] = nn.Parameter(tensor.clone())
    fxprune.prune(program, recipe, inplace=True)
    zeros = recipe.get("finalize", {}).get("zeros", "keep")
    with patch("fxprune.compiler.check_same"):  # its outputs here are sums with NaN
        fxprune.finalize(program, inplace=True, zeros=zeros)
    return {**tensors, **{name: program.get_parameter(name).detach() for name in floats}}


def write(folder: Path, shards: list[dict[str, Tensor]]) -> Path:
    """Write a file, or an index and its shards."""
    if len(shards) == 1:
        save_file(shards[0], folder / "model.safetensors", {"format": "pt"})
        return folder / "model.safetensors"
    places: dict[str, str] = {}
    for at, tensors in enumerate(shards, 1):
        name = f"model-{at:05}-of-{len(shards):05}.safetensors"
        save_file(tensors, folder / name, {"format": "pt", "shard": str(at)})
        places |= dict.fromkeys(tensors, name)
    total = sum(t.numel() * t.element_size() for shard in shards for t in shard.values())
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": places}))
    return index


def read(path: Path) -> dict[str, Tensor]:
    """All tensors, shards by name."""
    if path.suffix == ".safetensors":
        return load_file(path)
    names = sorted(set(json.loads(path.read_text())["weight_map"].values()))
    return {k: t for name in names for k, t in load_file(path.parent / name).items()}


def pruned(source: Path, recipe: Any, folder: Path) -> dict[str, Tensor]:
    out = folder / "out.safetensors" if source.suffix == ".safetensors" else folder / "out"
    prune_checkpoint(source, recipe, out)
    found = read(out if out.suffix else out / source.name)
    assert [path for path in folder.iterdir() if path.name.startswith(".")] == []
    return found


def assert_same(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    assert list(found) == list(wanted)
    assert [name for name in wanted if not same_bits(found[name], wanted[name])] == []


@contextmanager
def sized(chunk: int, piece: int, *, small: int = 0, block: int = 800) -> Iterator[None]:
    """Cut everything into small pieces, so that small tensors take the ways of large ones."""
    with ExitStack() as stack:
        for place, name, value in (
            (scan, "CHUNK", chunk),
            (checkpoint_io, "PIECE", 128 * piece),
            (checkpoint_io, "SPAN", 256 * piece),
            (checkpoint_channels, "MOST", block),
            (ranking, "SMALL", small),
            (bracket, "_SAMPLE", 8),
            (bracket, "_MOST_SAMPLE", 16),
            (bracket, "_MOST_INSIDE", 2),
            (bracket, "_SLACK", 1),
        ):
            stack.enter_context(patch.object(place, name, value))
        yield


def odd(x: Tensor, generator: torch.Generator) -> Tensor:
    values = torch.tensor([math.nan, math.inf, -math.inf, 0.0, -0.0, 1.0, -1.0, 1e-45])
    return values[torch.randint(len(values), x.shape, generator=generator)]


VALUES = {
    "normal": lambda x, _: x,
    "few": lambda x, _: (x * 2).round(),
    "equal": lambda x, _: torch.ones_like(x),
    "odd": odd,
    "mostly zero": lambda x, _: x.relu() * (x > 1),
    "some odd": lambda x, g: torch.where(torch.rand(x.shape, generator=g) < 0.1, odd(x, g), x),
}


@dataclass(frozen=True)
class Drawn:
    """A checkpoint.

    Args:
        shapes: of the tensors.
        dtypes: of the tensors, one after the other.
        kind: how values are distributed.
        shards: how many files.
        seed: of the values.
    """

    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[torch.dtype, ...]
    kind: str
    shards: int
    seed: int

    def tensors(self) -> list[dict[str, Tensor]]:
        """The tensors of each shard."""
        generator = torch.Generator().manual_seed(self.seed)
        shards: list[dict[str, Tensor]] = [{} for _ in range(self.shards)]
        for at, shape in enumerate(self.shapes):
            values = VALUES[self.kind](torch.randn(shape, generator=generator), generator)
            dtype = self.dtypes[at % len(self.dtypes)]
            shards[at % self.shards][f"layers.{at}.weight"] = values.to(dtype)
        for at, shard in enumerate(shards):
            shard[f"steps{at}"] = torch.arange(at + 1)
        return shards


AMOUNTS = st.floats(0, 1) | st.integers(0, 2)
SELECTS = [{"param": "weight"}, {"path": "*.0.weight"}, {"exclude": "*.1.*", "min_numel": 3}]
shapes = st.lists(st.integers(1, 7), min_size=1, max_size=3).map(tuple)
drawn = st.builds(
    Drawn,
    st.lists(shapes, min_size=2, max_size=4).map(tuple),
    st.lists(st.sampled_from(DTYPES), min_size=1, max_size=2).map(tuple),
    st.sampled_from(list(VALUES)),
    st.integers(1, 3),
    st.integers(0, 2**16),
)


def structured(**keys: Any) -> st.SearchStrategy[dict[str, Any]]:
    select = st.just({"param": "weight", "ndim": [2, 3]})
    options = {"dim": st.sampled_from([0, 1, -1]), "amount": st.floats(0, 1), "select": select}
    return st.fixed_dictionaries({**options, "ties": st.sampled_from(["index", "torch"]), **keys})


rules = st.one_of(
    st.fixed_dictionaries(
        {
            "method": st.just("l1_unstructured"),
            "select": st.sampled_from(SELECTS),
            "amount": AMOUNTS,
            "scope": st.sampled_from(["local", "global"]),
            "ties": st.sampled_from(["index", "torch"]),
        }
    ),
    st.fixed_dictionaries(
        {
            "method": st.just("random_unstructured"),
            "select": st.sampled_from(SELECTS),
            "amount": AMOUNTS,
            "scope": st.sampled_from(["local", "global"]),
            "seed": st.integers(0, 3),
        }
    ),
    structured(method=st.just("ln_structured"), n=st.sampled_from([1, 2, math.inf])),
    structured(method=st.just("random_structured"), seed=st.integers(0, 3)),
    st.fixed_dictionaries(
        {"method": st.just("identity"), "select": st.sampled_from(SELECTS)},
    ),
)
recipes = st.fixed_dictionaries(
    {
        "rule": st.lists(rules.map(lambda rule: {**rule, "optional": True}), min_size=1, max_size=3),
        "finalize": st.sampled_from([{}, {"zeros": "clean"}]),
    }
)


def outcome(call: Any) -> Any:
    """What a call returns, or the kind of its error and the beginning of its text."""
    try:
        return call()
    except fxprune.FxpruneError as error:
        return type(error), str(error)[:30]


@settings(max_examples=200, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(drawn, recipes, st.integers(1, 50), st.integers(1, 4), st.sampled_from([0, 40]))
def test_a_checkpoint_is_pruned_as_a_model_in_memory(
    case: Drawn, recipe: dict[str, Any], chunk: int, piece: int, small: int
):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = write(folder, case.tensors())
        tensors = read(source)
        wanted = outcome(lambda: in_memory(tensors, recipe))
        with sized(chunk, piece, small=small):
            found = outcome(lambda: pruned(source, recipe, folder))
        if isinstance(wanted, tuple):
            assert found == wanted
        else:
            assert_same(found, wanted)
        assert_same(read(source), tensors)
