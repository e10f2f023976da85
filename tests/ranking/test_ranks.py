"""Pruning over the processes of a group, started by torchrun: the masks of one process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import fxprune
from fxprune.errors import PassTypeError
from fxprune.program.parameters import masks
from tests.tools.profiles import thorough_but
from tests.tools.ranks_cases import (
    LAYOUTS,
    RECIPES,
    Chain,
    X,
    made,
    masks_of,
    pruned,
    rule,
    trained,
)
from tests.tools.ranks_worker import DTYPES, cases

ROOT = Path(__file__).parents[2]

Launch = Any

each_world = pytest.mark.parametrize("world", thorough_but([2], [1, 2, 4]))
spread_worlds = pytest.mark.parametrize("world", [2, pytest.param(4, marks=pytest.mark.thorough)])


@pytest.fixture(scope="session")
def launch(tmp_path_factory: pytest.TempPathFactory) -> Launch:
    """Return what runs a mode of the worker in several processes, once."""

    @lru_cache
    def run(mode: str, world: int) -> list[tuple[dict[str, Tensor], dict[str, Any]]]:
        out = tmp_path_factory.mktemp(f"{mode}-{world}")
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command += [
            "--nproc-per-node",
            str(world),
            "-m",
            "tests.tools.ranks_worker",
            mode,
            str(out),
        ]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240
        )
        assert done.returncode == 0, done.stderr[-4000:]
        ranks = [rank for rank in range(world) if (out / f"{rank}.json").exists()]
        return [
            (load_file(out / f"{rank}.safetensors"), json.loads((out / f"{rank}.json").read_text()))
            for rank in ranks
        ]

    return run


def part_of(found: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in found.items() if k.startswith(prefix)}


def differing(found: dict[str, Tensor], expected: dict[str, Tensor]) -> list[str]:
    """Return the names of tensors that are not equal bit for bit."""
    assert list(found) == sorted(expected)
    return [name for name in expected if not torch.equal(found[name], expected[name])]


# Masks


@each_world
def test_every_rank_ends_with_the_masks_of_one_process(world: int, launch: Launch):
    ranks = launch("masks", world)
    assert len(ranks) == world
    alone = {recipe: pruned(made(), recipe, None, inplace=True) for recipe in RECIPES}
    for layout, recipe in cases(world):
        expected = masks_of(alone[recipe])
        records = repr([record.parameters for record in alone[recipe].records])
        for tensors, kept in ranks:
            assert differing(part_of(tensors, f"{layout}/{recipe}/"), expected) == []
            assert kept[f"{layout}/{recipe}"] == records


@each_world
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_has_the_masks_of_one_process(dtype: torch.dtype, world: int, launch: Launch):
    expected = masks_of(pruned(made().to(dtype), "everything", None, inplace=True))
    for tensors, _ in launch("masks", world):
        for layout in ("columns", "fully_shard"):
            assert differing(part_of(tensors, f"{layout}/{dtype}/"), expected) == []


def test_the_recipes_end_in_the_midst_of_ties():
    """Otherwise no order among ties would be tested."""
    cut = pruned(made(), "global", None, inplace=True).records[0].parameters
    assert [row.name for row in cut if 0 < row.quota < row.tied] != []


@pytest.mark.thorough
@spread_worlds
def test_a_million_scores_are_ranked_within_64_kib(world: int, launch: Launch):
    torch.manual_seed(0)
    model = nn.Sequential(*[nn.Linear(700, 700, bias=False) for _ in range(3)])
    program = fxprune.capture(model, (torch.zeros(2, 700),))
    recipe = {"rule": [rule("l1_unstructured", scope="global", select="*")]}
    expected = masks_of(fxprune.prune(program, recipe, inplace=True))
    for tensors, told in launch("bytes", world):
        assert differing(tensors, expected) == []
        # Three histograms of 16 KiB, 48 + 16 bytes a parameter, 24 bytes a meeting.
        assert 3 * 2**14 < told["sent"] < 2**16


# Training and the way back


@spread_worlds
@pytest.mark.parametrize("order", thorough_but(["last"], ["first", "last"]))
def test_fully_sharded_programs_train_as_one_process_does(order: str, world: int, launch: Launch):
    """Bit for bit: FSDP2 gathers whole parameters, and means of 2 or 4 equal gradients are exact.

    `first`: wrapped, then pruned. `last`: pruned, then wrapped.
    """
    program = pruned(made(Chain), "rounds", None, inplace=True)
    expected = trained(program)
    assert not torch.equal(expected["before"], expected["after"])
    for tensors, _ in launch("training", world):
        for layout in ("whole", "replicated", "fully_shard", "fully_shard, copies"):
            assert differing(part_of(tensors, f"{layout}/{order}/"), expected) == []


@spread_worlds
@pytest.mark.parametrize("order", ["first", "last"])
def test_dtensor_programs_train_as_one_process_does(order: str, world: int, launch: Launch):
    expected = trained(pruned(made(Chain), "rounds", None, inplace=True))
    for tensors, _ in launch("training", world):
        for layout in LAYOUTS:
            found = part_of(tensors, f"{layout}/{order}/")
            assert set(found) == set(expected)
            for name, value in found.items():
                # Matrix products over parts are summed in another order: a few roundings.
                torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-6)


@spread_worlds
def test_spread_programs_finalize_unmask_and_report_as_one_process_does(world: int, launch: Launch):
    alone = pruned(made(Chain), "rounds", None, inplace=True)
    trained(alone)
    for tensors, rest in launch("training", world):
        assert set(rest) == set(LAYOUTS)
        for layout, told in rest.items():
            assert told == {
                "same objects": True,
                "zeros": fxprune.report(alone).zeros,
                "keys": list(made(Chain).state_dict()),
                "pruned": False,
                "read": [12, 12],
            }
            assert torch.equal(tensors[f"{layout}/final"], tensors[f"{layout}/masked"])


@spread_worlds
def test_another_round_on_a_spread_program_is_that_of_one_process(world: int, launch: Launch):
    program = pruned(made(Chain), "rounds", None, inplace=True)
    trained(program)
    program = pruned(program, "local", None, inplace=True)
    fxprune.unmask(program, "again.weight", inplace=True)
    expected = fxprune.finalize(program, zeros="clean")(X).detach()
    for tensors, _ in launch("training", world):
        assert torch.equal(tensors["fully_shard/clean"], expected)
        for layout in LAYOUTS:
            torch.testing.assert_close(tensors[f"{layout}/clean"], expected, rtol=1e-5, atol=1e-6)


# Faults

FAULTS = {
    "one raises": (
        ("PeerError", "rank 1 of the process group failed, and nothing was changed: RuntimeError"),
        ("RuntimeError", "no space left"),
    ),
    "one raises, whole": (
        ("PeerError", "rank 1 of the process group failed"),
        ("RuntimeError", "no space left"),
    ),
    "bad recipe on one": (
        ("PeerError", "RecipeError: recipe: [[rule]] 1: amount = 7.0 is out of range"),
        ("RecipeError", "amount = 7.0 is out of range"),
    ),
    "other recipe": ("PeerError", "the processes were given different recipes"),
    "other masks": ("PeerError", "the processes were given different programs"),
    "other given masks": ("PeerError", "given different masks or importance scores"),
    "too many": ("AmountError", "amount=10000 is more than the 1056 entries"),
    "other replicas": ("PeerError", "the same entries or masks of 'again.weight' do not"),
    "other copies": ("PeerError", "the same entries or masks of 'again.weight' do not"),
    "no group": ("PassError", "'scale' is spread over processes"),
    "no group, fully_shard": ("PassError", "'wide.weight' is spread over processes"),
    "not a group": ("PassTypeError", "process_group='world' is no process group"),
    "half a group": ("PeerError", "hold 432 units of 'wide.weight' and count 432 of its 864"),
    "torch's ties": ("PassError", "take ties = 'index'"),
    "own method": ("PassError", "a method of one's own sees whole parameters"),
    "copy": ("PassError", "say inplace=True"),
    "copy, finalize": ("PassError", "say inplace=True"),
    "in part": ("PassError", "fully_shard was called on 'again'"),
    "in part, alone": ("PassError", "call fully_shard on the Program itself alone"),
    "on top": ("PassError", "prune first, then call fully_shard"),
    "bfloat16": ("PassError", "casts parameters to torch.bfloat16"),
    "pending sum": ("PassError", "'again.weight' is a sum"),
    "ragged": ("PassError", "is not what (Shard(dim=0),) cuts out of (12, 12)"),
    "capture": ("CaptureError", "capture it first, then spread the Program"),
    "capture, fully_shard": ("CaptureError", "capture it first, then spread the Program"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_an_error_everywhere_and_changes_nothing(name: str, launch: Launch):
    first, second = [told for _, told in launch("faults", 2)]
    assert set(first) == set(FAULTS)
    expected = FAULTS[name]
    pair = expected if isinstance(expected[0], tuple) else (expected, expected)
    for (kind, text), (found, said, unchanged) in zip(
        pair, (first[name], second[name]), strict=True
    ):
        assert (found, unchanged) == (kind, True)
        assert text in said


@pytest.mark.parametrize(
    ("mode", "limit"), [("dies", 20.0), pytest.param("hangs", 10.0, marks=pytest.mark.thorough)]
)
def test_a_process_that_leaves_is_an_error_for_the_others(mode: str, limit: float, launch: Launch):
    told = launch(mode, 2)[0][1]
    assert told["error"] == "PeerError"
    assert "another process of the group has ended, or did not answer" in told["text"]
    assert told["text"].startswith("comparing what was given: ")
    assert told["unchanged"] is True
    assert told["seconds"] < limit


# One process


def test_without_torch_distributed_initialized_a_group_is_refused():
    program = fxprune.capture(nn.Linear(4, 2), (torch.zeros(2, 4),))
    with pytest.raises(PassTypeError, match="init_process_group"):
        fxprune.prune(program, {"rule": [rule("l1_unstructured")]}, process_group="world")
    assert list(masks(program)) == []
