"""DistributedDataParallel: two gloo processes train a masked Program as one process does."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import fxprune
from fxprune.files.fxp import load, save
from fxprune.program.program import Program
from fxprune.testing.comparing import difference

pytestmark = pytest.mark.thorough

RANKS = 2
STEPS = 3
ROWS = 4  # for each rank
RATE = 0.5


class Net(nn.Module):
    """Convolution, batch norm, tied weights: what DDP has to keep in step."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3)
        self.norm = nn.BatchNorm2d(6)
        self.first = nn.Linear(6, 6)
        self.second = nn.Linear(6, 6)
        self.second.weight = self.first.weight
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.conv(x))).mean((2, 3))
        return self.head(torch.relu(self.second(torch.relu(self.first(x)))))


def batches(rank: int) -> Tensor:
    """The inputs that one rank sees, step by step."""
    generator = torch.Generator().manual_seed(rank)
    return torch.randn(STEPS, ROWS, 3, 6, 6, generator=generator)


def loss_of(output: Tensor) -> Tensor:
    return output.square().mean()


def train_rank(rank: int, folder: str) -> None:
    """Train on this rank's rows and write what came of it."""
    torch.set_num_threads(1)
    # Meets in a file, so that no port can be taken.
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=RANKS
    )
    try:
        program = load(f"{folder}/net.fxp").train()
        model = DistributedDataParallel(program)
        optimizer = torch.optim.SGD(program.parameters(), lr=RATE)
        for x in batches(rank):
            optimizer.zero_grad()
            loss_of(model(x)).backward()
            optimizer.step()
        save(program, f"{folder}/rank-{rank}.fxp")
    finally:
        dist.destroy_process_group()


def train_alone(program: Program) -> list[Program]:
    """Train in one process: each rank's gradients, then their mean, as DDP takes it."""
    programs = [copy.deepcopy(program).train() for _ in range(RANKS)]
    for step in range(STEPS):
        # DDP sends the first rank's buffers, batch statistics and masks, to all before each step.
        for name, buffer in programs[0].named_buffers():
            programs[1].get_buffer(name).copy_(buffer)
        for rank, ours in enumerate(programs):
            ours.zero_grad()
            loss_of(ours(batches(rank)[step])).backward()
        for one, two in zip(programs[0].parameters(), programs[1].parameters(), strict=True):
            assert one.grad is not None
            assert two.grad is not None
            mean = one.grad / RANKS + two.grad / RANKS
            for parameter in (one, two):
                with torch.no_grad():
                    parameter -= RATE * mean
    return programs


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Program, list[Any], list[Any]]:
    """The masked Program, what two processes made of it, and what one process did."""
    folder = tmp_path_factory.mktemp("ddp")
    torch.manual_seed(0)
    program = fxprune.capture(Net(), (batches(0)[0],))
    select = {"path": "*.weight", "ndim": [2, 4]}
    rule = {"select": select, "method": "l1_unstructured", "amount": 0.5}
    program = fxprune.prune(program, {"rule": [rule]})
    save(program, folder / "net.fxp")
    spawn: Any = vars(mp)["spawn"]
    spawn(train_rank, args=(str(folder),), nprocs=RANKS)
    return program, [load(folder / f"rank-{r}.fxp") for r in range(RANKS)], train_alone(program)


def test_two_processes_train_as_one_bit_for_bit(trained: Any) -> None:
    _, together, alone = trained
    for ours, theirs in zip(together, alone, strict=True):
        assert difference(dict(ours.state_dict()), dict(theirs.state_dict())) is None


def test_ranks_agree_and_weights_have_moved(trained: Any) -> None:
    program, together, _ = trained
    parameters = [dict(ours.named_parameters()) for ours in together]
    assert difference(parameters[0], parameters[1]) is None
    for name, parameter in program.named_parameters():
        if name == "conv.bias":
            continue  # batch norm takes it out again
        assert not torch.equal(parameter, parameters[0][name]), name


def test_masks_hold_on_every_rank(trained: Any) -> None:
    program, together, _ = trained
    for ours in together:
        assert difference(dict(ours.masks), dict(program.masks)) is None
        final = fxprune.finalize(ours)
        for name, mask in program.masks.items():
            assert torch.all(final.value(name)[mask == 0] == 0), name
            assert (mask == 0).any(), name


def test_the_programs_of_the_ranks_are_whole(trained: Any, tmp_path: Path) -> None:
    _, together, _ = trained
    x = batches(5)[0]
    want = together[0].eval()(x)
    assert torch.equal(load(save(together[0], tmp_path / "net.fxp")).eval()(x), want)
