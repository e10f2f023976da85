"""What can go wrong where several processes prune together (test_ranks.py)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import distributed as dist
from torch import nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.nn.utils.prune import L1Unstructured

import fxprune
from fxprune.program.parameters import parameter
from fxprune.program.program import Program
from tests.tools.ranks_cases import LAYOUTS, line, local, rule, spread, square

Cut = Callable[[Program, int], Any]
Attempt = Callable[[Program, int], Any]

GLOBAL = rule("l1_unstructured", scope="global")


class OwnL1(L1Unstructured):
    pass


def prune(program: Program, *rules: Any, **more: Any) -> Program:
    more = {"process_group": dist.group.WORLD, "inplace": True} | more
    return fxprune.prune(program, {"rule": list(rules or (GLOBAL,))}, **more)


def one(rank: int, text: str) -> Callable[[str], None]:
    """Return what raises before the cut, on one process alone."""

    def on_pass(step: str) -> None:
        if rank == 1 and step.endswith("cut"):
            raise RuntimeError(text)

    return on_pass


def differing(layout: str) -> Cut:
    """Return what spreads a Program, and then changes one entry on one process."""

    def cut(program: Program, world: int) -> None:
        LAYOUTS[layout](program, world)
        if dist.get_rank() == 1:
            local(parameter(program, "again.weight")).view(-1)[1] += 1

    return cut


def summed(program: Program, world: int) -> None:
    value = parameter(program, "again.weight").detach()
    dtensor = DTensor.from_local(value, line(world), [Partial()], run_check=False)
    program.get_submodule("again").weight = nn.Parameter(dtensor)


def ragged(program: Program, world: int) -> None:
    """Cut a weight of 12 rows into parts that torch would not cut."""
    value = parameter(program, "again.weight").detach()
    part = value[:5] if dist.get_rank() == 0 else value[5:]
    shape, stride = value.shape, value.stride()
    dtensor = DTensor.from_local(
        part.contiguous(), line(world), [Shard(0)], run_check=False, shape=shape, stride=stride
    )
    program.get_submodule("again").weight = nn.Parameter(dtensor)


def in_part(program: Program, world: int) -> None:
    fully_shard(program.get_submodule("again"), mesh=line(world))


def in_bfloat16(program: Program, world: int) -> None:
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16)
    skip = {parameter(program, "scale")}
    fully_shard(program, mesh=line(world), mp_policy=policy, ignored_params=skip)


def on_top(program: Program, world: int) -> None:
    mesh = square(world)
    spread(program, mesh["columns"], lambda *_: [Replicate()], skip=("scale",))
    fully_shard(program, mesh=mesh["rows"], ignored_params={parameter(program, "scale")})


def too_many(program: Program, rank: int) -> None:
    prune(program, rule("l1_unstructured", 10_000, scope="global"))


def pruned_alone(program: Program, rank: int) -> Program:
    return fxprune.prune(program, {"rule": [GLOBAL]}, inplace=True)


def with_masks(program: Program, rank: int) -> None:
    """Prune after one process alone has pruned."""
    work = fxprune.prune(program, {"rule": [GLOBAL]}) if rank == 1 else program
    prune(work)


def other_masks(program: Program, rank: int) -> None:
    given = fxprune.Rule(name="given", select="out.weight", method="custom_from_mask")
    masks = {"out.weight": torch.full((4, 12), float(rank))}
    group = dist.group.WORLD
    recipe = fxprune.Recipe(rules=[given])
    fxprune.prune(program, recipe, masks=masks, process_group=group, inplace=True)


rows, whole, fsdp = LAYOUTS["rows"], LAYOUTS["whole"], LAYOUTS["fully_shard"]

FAULTS: dict[str, tuple[Cut, Attempt]] = {
    "one raises": (fsdp, lambda p, rank: prune(p, on_pass=one(rank, "no space left"))),
    "one raises, whole": (whole, lambda p, rank: prune(p, on_pass=one(rank, "no space left"))),
    "bad recipe on one": (
        rows,
        lambda p, rank: prune(p, GLOBAL | ({"amount": 7.0} if rank else {})),
    ),
    "other recipe": (rows, lambda p, rank: prune(p, GLOBAL | {"amount": 10 + rank})),
    "other masks": (whole, with_masks),
    "too many": (rows, too_many),
    "other given masks": (rows, other_masks),
    "other replicas": (differing("whole"), lambda p, rank: prune(p)),
    "other copies": (differing("replicated"), lambda p, rank: prune(p)),
    "no group": (rows, pruned_alone),
    "no group, fully_shard": (fsdp, pruned_alone),
    "not a group": (rows, lambda p, rank: prune(p, process_group="world")),
    "half a group": (rows, lambda p, rank: prune(p, process_group=halves()[rank])),
    "torch's ties": (rows, lambda p, rank: prune(p, GLOBAL | {"ties": "torch"})),
    "own method": (
        rows,
        lambda p, rank: prune(p, rule("tests.tools.ranks_faults:OwnL1"), allow_imports=True),
    ),
    "copy": (fsdp, lambda p, rank: prune(p, inplace=False)),
    "copy, finalize": (fsdp, lambda p, rank: fxprune.finalize(p)),
    "in part": (in_part, lambda p, rank: prune(p)),
    "in part, alone": (in_part, lambda p, rank: fxprune.finalize(p, inplace=True)),
    "on top": (on_top, lambda p, rank: prune(p)),
    "bfloat16": (in_bfloat16, lambda p, rank: prune(p)),
    "pending sum": (summed, lambda p, rank: prune(p)),
    "ragged": (ragged, lambda p, rank: prune(p)),
    "capture": (whole, lambda p, rank: captured_late()),
    "capture, fully_shard": (whole, lambda p, rank: captured_late(fully=True)),
}


def halves() -> list[Any]:
    return [dist.new_group([rank]) for rank in range(dist.get_world_size())]


def captured_late(*, fully: bool = False) -> None:
    model = nn.Linear(4, 4)
    mesh = line(dist.get_world_size())
    if fully:
        fully_shard(model, mesh=mesh)
    else:
        model.weight = nn.Parameter(distribute_tensor(model.weight, mesh, [Shard(0)]))
    fxprune.capture(model, (torch.zeros(2, 4),))
