"""Pruning a checkpoint on disk: the same tensors, bit for bit, as pruning a model in memory."""

from __future__ import annotations

import copy
import functools
import itertools
import json
import math
import tempfile
from collections.abc import Generator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from hypothesis import HealthCheck, example, given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import fxprune
from fxprune.checkpoint import scores, source
from fxprune.checkpoint.checkpoint import prune_checkpoint
from fxprune.errors import AmountError, PassError, RecipeError, SelectError
from fxprune.ranking import digits, kth
from fxprune.ranking.units import channel_norms
from fxprune.support.equality import same_bits
from tests.tools.profiles import examples

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
                owner = owner.get_submodule(part)
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
    with patch("fxprune.verification.proof.check_same"):  # its outputs here are sums with NaN
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
def sized(chunk: int, piece: int, *, small: int = 0, block: int = 800) -> Generator[None]:
    """Cut everything into small pieces, so that small tensors take the ways of large ones."""
    with ExitStack() as stack:
        for place, name, value in (
            (digits, "CHUNK", chunk),
            (source, "PIECE", 128 * piece),
            (source, "SPAN", 256 * piece),
            (scores, "MOST", block),
            (kth, "SMALL", small),
            (kth, "_SAMPLE", 8),
            (kth, "_MOST_SAMPLE", 16),
            (kth, "_MOST_INSIDE", 2),
            (kth, "_SLACK", 1),
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
        "rule": st.lists(
            rules.map(lambda rule: {**rule, "optional": True}), min_size=1, max_size=3
        ),
        "finalize": st.sampled_from([{}, {"zeros": "clean"}]),
    }
)


def outcome(call: Any) -> Any:
    """What a call returns, or the kind of its error and the beginning of its text."""
    try:
        return call()
    except fxprune.FxpruneError as error:
        return type(error), str(error)[:30]


ODD = Drawn(((9, 9), (3, 5)), (torch.bfloat16,), "odd", 2, 0)
NORM = {"select": {"param": "weight", "ndim": 2}, "method": "ln_structured", "n": 2, "dim": 0}
L1 = {"select": "*.weight", "method": "l1_unstructured", "scope": "global"}


@examples(40, 200, suppress_health_check=[HealthCheck.too_slow])
@given(drawn, recipes, st.integers(1, 50), st.integers(1, 4), st.sampled_from([0, 40]))
@example(ODD, {"rule": [{**L1, "amount": 1.0}]}, 7, 1, 0)
@example(ODD, {"rule": [{**L1, "amount": 0.4}, {**NORM, "amount": 0.5}]}, 7, 1, 0)
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


@given(
    st.tuples(st.integers(2, 40), st.integers(1, 40), st.integers(1, 5)),
    st.sampled_from(DTYPES),
    st.sampled_from([0, 1, -1]),
    st.sampled_from([1, 2, 3, math.inf, -math.inf]),
    st.integers(0, 2**16),
)
def test_norms_in_blocks_are_those_of_the_whole(
    shape: tuple[int, ...], dtype: torch.dtype, dim: int, n: float, seed: int
):
    tensor = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)
    whole = channel_norms(tensor, n, dim)
    count = shape[dim]
    bounds = [at * count // max(count // 2, 1) for at in range(max(count // 2, 1) + 1)]
    blocks = [tensor.narrow(dim, a, b - a).clone() for a, b in itertools.pairwise(bounds)]
    assert same_bits(torch.cat([channel_norms(block, n, dim) for block in blocks]), whole)


def test_a_mask_file_with_other_numbers_than_0_and_1_goes_with_cuts(tmp_path: Path):
    case = Drawn(((9, 9), (30,)), (torch.bfloat16, torch.float32), "some odd", 2, 3)
    source = write(tmp_path, case.tensors())
    tensors = read(source)
    values = torch.tensor([0.0, 1.0, 1.0, 0.5, -2.0, math.nan, -0.0])
    floats = {name: t for name, t in tensors.items() if t.is_floating_point()}
    masks = {k: values[torch.arange(t.numel()) % 7].view(t.shape) for k, t in floats.items()}
    save_file(masks, tmp_path / "masks.safetensors")
    given = {"select": "*", "method": "custom_from_mask", "mask": f"{tmp_path}/masks.safetensors"}
    cut = {**L1, "amount": 0.3}
    for rules in ([given], [cut, given, cut], [given, {**NORM, "amount": 0.4}, cut]):
        wanted = in_memory(tensors, {"rule": rules, "finalize": {}})
        with sized(5, 1):
            assert_same(pruned(source, {"rule": rules}, tmp_path), wanted)


def test_rules_of_a_group_share_a_budget_over_dtypes(tmp_path: Path):
    case = Drawn(((40,), (50,), (60,)), tuple(DTYPES[1:]), "few", 2, 5)
    source = write(tmp_path, case.tensors())
    one = {**L1, "group": "all", "amount": 0.5}
    rules = [{**one, "select": "*.0.weight"}, {**one, "select": ["*.1.weight", "*.2.weight"]}]
    wanted = in_memory(read(source), {"rule": rules})
    with sized(5, 1):
        assert_same(pruned(source, {"rule": rules}, tmp_path), wanted)


def test_random_rules_without_a_seed_draw_from_torchs_generator(tmp_path: Path):
    source = write(tmp_path, Drawn(((9, 9), (5, 5)), (torch.float32,), "normal", 1, 0).tensors())
    methods = ({"method": "random_unstructured"}, {"method": "random_structured", "dim": 1})
    rules = [{"select": "*.weight", "amount": 0.3, **method} for method in methods]
    torch.manual_seed(1)
    wanted = in_memory(read(source), {"rule": rules})
    torch.manual_seed(1)
    with sized(5, 1):
        assert_same(pruned(source, {"rule": rules}, tmp_path), wanted)


@pytest.mark.parametrize("seed", range(20))
def test_a_second_rule_ranks_what_a_random_one_left(tmp_path: Path, seed: int):
    case = Drawn(((60,), (50,)), (torch.bfloat16, torch.float32), "normal", 1, seed)
    source = write(tmp_path, case.tensors())
    random = {"select": "*.weight", "method": "random_unstructured", "amount": 0.5, "seed": seed}
    rules = [random, {**L1, "amount": 0.5}]
    wanted = in_memory(read(source), {"rule": rules})
    with sized(5, 1):
        assert_same(pruned(source, {"rule": rules}, tmp_path), wanted)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_real_sizes_take_the_bracket_and_the_threads(tmp_path: Path, dtype: torch.dtype):
    values = torch.randn(1_600_000, generator=torch.Generator().manual_seed(0))
    values[::100_000] = math.nan
    source = write(tmp_path, [{"a": values[:7].to(dtype), "b": values[7:].to(dtype)}])
    rules = [{**L1, "select": "*", "amount": amount} for amount in (0.5, 0.2)]
    wanted = in_memory(read(source), {"rule": rules})
    assert_same(pruned(source, {"rule": rules}, tmp_path), wanted)


def test_headers_metadata_and_layout_stay(tmp_path: Path):
    shards = Drawn(((5, 5), (3,), (4, 4)), tuple(DTYPES), "normal", 3, 0).tensors()
    source = write(tmp_path, shards)
    (tmp_path / "config.json").write_text("{}")
    report = prune_checkpoint(source, {"rule": [{**L1, "amount": 0.5}]}, tmp_path / "out")
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == sorted(path.name for path in report.files)
    assert "config.json" not in names
    for name in names:
        old, new = (tmp_path / name).read_bytes(), (tmp_path / "out" / name).read_bytes()
        end = len(old) if name.endswith(".json") else 8 + int.from_bytes(old[:8], "little")
        assert (len(new), new[:end]) == (len(old), old[:end])


def test_the_report_counts_what_each_rule_did(tmp_path: Path):
    source = write(tmp_path, [{"a.weight": torch.arange(8.0), "b.bias": torch.ones(3)}])
    rules = [{**L1, "amount": 0.5}, {**L1, "amount": 2}]
    report = prune_checkpoint(source, {"rule": rules, "export": {}}, tmp_path / "o.safetensors")
    first, second = (rule.parameters[0] for rule in report.rules)
    assert (first.alive, first.pruned, first.threshold) == (8, 4, 3.0)
    assert (second.alive, second.pruned, second.threshold) == (4, 2, 5.0)
    assert report.rules[0].refused == (("b.bias", "its name does not match path '*.weight'"),)
    assert str(report) == (
        "rule    method           tensors  alive  pruned\n"
        "rule-1  l1_unstructured        1      8       4\n"
        "rule-2  l1_unstructured        1      4       2\n\n"
        "1 of 2 tensors were pruned\n"
        "note: [export] was left out: a checkpoint is written in the layout in which it was read"
    )
    assert json.loads(report.to_json())["pruned"] == 1


def test_ties_that_torch_chose_are_counted_where_they_went(tmp_path: Path):
    generator = torch.Generator().manual_seed(1)
    shapes = {"a": (30, 20), "b": (20, 10)}
    tensors = {k: torch.randint(1, 5, s, generator=generator).float() for k, s in shapes.items()}
    source = write(tmp_path, [tensors])
    rules = [{**L1, "select": "*", "amount": 0.4, "ties": "torch"}]
    report = prune_checkpoint(source, {"rule": rules}, tmp_path / "o.safetensors")
    before, after = read(source), read(tmp_path / "o.safetensors")
    rows = report.rules[0].parameters
    assert any(0 < row.quota < row.tied for row in rows)
    for row in rows:
        gone = after[row.name] == 0
        went = gone & (before[row.name].abs() == row.threshold)
        assert (row.pruned, row.quota) == (int(gone.sum()), int(went.sum()))


def test_progress_is_told_in_bytes(tmp_path: Path):
    source = write(tmp_path, [{"a": torch.arange(4000.0)}])
    told: list[tuple[str, int, int]] = []
    rule = {"select": "a", "method": "l1_unstructured", "amount": 0.5}
    prune_checkpoint(
        source, {"rule": [rule]}, tmp_path / "o.safetensors", on_progress=lambda *x: told.append(x)
    )
    size = source.stat().st_size
    assert told[0] == ("rule-1", 0, 16000)
    assert told[-1] == ("write", size, size)


@pytest.mark.parametrize(
    ("rule", "kind", "text"),
    [
        ({"select": {"op": "linear"}}, RecipeError, "select.op needs the model's graph"),
        (
            {"select": {"module": "X", "role": "w"}},
            RecipeError,
            "select.role and select.module need",
        ),
        (
            {"method": "ln_structured", "n": 2, "dim": 0, "scope": "local", "coupled": True},
            RecipeError,
            "coupled needs the model's graph",
        ),
        ({"method": "package.module:Class"}, RecipeError, "gets whole tensors"),
        ({"amount": 100}, AmountError, "more than the 12 entries that are alive"),
        ({"select": "a.weigth"}, SelectError, "did you mean 'a.weight'"),
        ({"select": {"dtype": "int64"}}, SelectError, "steps0: its dtype is int64"),
        (
            {"method": "custom_from_mask", "amount": None, "scope": "local"},
            RecipeError,
            "mask is missing",
        ),
        (
            {"method": "custom_from_mask", "amount": None, "scope": "local", "mask": "nni.pt"},
            RecipeError,
            "mask = 'nni.pt' is not read for a checkpoint",
        ),
        (
            {"select": "steps0", "method": "ln_structured", "n": 1, "scope": "local"},
            SelectError,
            "of a checkpoint float16, bfloat16, float32, float64 are pruned",
        ),
        ({"select": "v", "method": "random_structured", "scope": "local"}, PassError, "channels"),
    ],
)
def test_what_cannot_be_done_is_refused_before_anything_is_written(
    tmp_path: Path, rule: dict[str, Any], kind: type[Exception], text: str
):
    tensors = {"a.weight": torch.ones(3, 4), "v": torch.ones(3), "steps0": torch.ones(1).long()}
    source = write(tmp_path, [tensors])
    made = {key: value for key, value in {**L1, "amount": 0.5, **rule}.items() if value is not None}
    recipe = fxprune.Recipe(rules=[fxprune.Rule(**made)])
    with pytest.raises(kind, match=text.replace("[", "\\[")):
        prune_checkpoint(source, recipe, tmp_path / "out.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == [source.name]


def test_a_rule_that_selects_nothing_names_the_nearest_tensor(tmp_path: Path):
    tensors = {"a.weight": torch.ones(3, 4), "b.bias": torch.ones(3), "s": torch.ones(1).long()}
    source = write(tmp_path, [tensors])
    rule = {**L1, "select": {"path": "b.*", "param": "wieght"}, "amount": 0.5, "name": "r"}
    with pytest.raises(SelectError) as raised:
        prune_checkpoint(source, {"rule": [rule]}, tmp_path / "out.safetensors")
    assert str(raised.value) == (
        "rule 'r' selects nothing (param 'wieght' does not occur in the checkpoint; did you mean "
        "'weight'?); change its select, or say optional = true\n"
        "  nearest is b.bias: its attribute is bias, not wieght\n"
        "  s: its dtype is int64; of a checkpoint float16, bfloat16, float32, float64 are pruned\n"
        "  a.weight: its name does not match path 'b.*'"
    )


def test_torchs_ties_among_more_scores_than_fit_are_refused(tmp_path: Path):
    source = write(tmp_path, [{"a.weight": torch.ones(40)}])
    rule = {**L1, "amount": 0.5, "ties": "torch"}
    with (
        patch("fxprune.checkpoint.rules.MOST_REPLAYED", 39),
        pytest.raises(PassError, match="say ties = 'index'"),
    ):
        prune_checkpoint(source, {"rule": [rule]}, tmp_path / "out.safetensors")


def test_channels_too_large_for_memory_are_refused(tmp_path: Path):
    source = write(tmp_path, [{"a.weight": torch.ones(4, 100)}])
    with sized(5, 1, block=400), pytest.raises(PassError, match="take an unstructured method"):
        prune_checkpoint(source, {"rule": [{**NORM, "amount": 0.5}]}, tmp_path / "o.safetensors")
