"""What test_ranks.py runs in each of several processes, started by torchrun.

    python -m torch.distributed.run --standalone --nproc-per-node N \
        -m tests.tools.ranks_worker MODE OUT

Each process writes what it found: `RANK.safetensors` with tensors, `RANK.json` with the rest.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch import distributed as dist

import fxprune
from tests.tools import ranks_faults
from tests.tools.ranks_cases import (
    LAYOUTS,
    RECIPES,
    Chain,
    X,
    along,
    line,
    made,
    masks_of,
    pruned,
    rule,
    snapshot,
    spread,
    trained,
    whole,
    wrapped,
)

Found = tuple[dict[str, Tensor], dict[str, Any]]

DTYPES = (torch.float16, torch.bfloat16, torch.float64)
SOME = ("global", "everything", "rounds", "random after", "norms after", "given")
FEW = ("various", "fully_shard")


def cases(world: int) -> list[tuple[str, str]]:
    """Return pairs of a layout and a recipe: two processes try all recipes on few layouts."""
    if world == 2:
        return [
            (layout, r) for layout in LAYOUTS for r in RECIPES if r in SOME[:2] or layout in FEW
        ]
    return [(layout, recipe) for layout in LAYOUTS for recipe in SOME]


def masks() -> Found:
    """Prune every layout by many recipes, in place and as a copy by turns."""
    tensors: dict[str, Tensor] = {}
    kept: dict[str, Any] = {}
    world = dist.get_world_size()
    for i, (layout, recipe) in enumerate(cases(world)):
        program = made()
        LAYOUTS[layout](program, world)
        inplace = "fully_shard" in layout or i % 2 == 0
        result = pruned(program, recipe, dist.group.WORLD, inplace=inplace)
        found = masks_of(result).items()
        tensors |= {f"{layout}/{recipe}/{name}": mask for name, mask in found}
        kept[f"{layout}/{recipe}"] = repr([record.parameters for record in result.records])
        assert (result is program) == inplace
    for dtype in DTYPES:
        for layout in ("columns", "fully_shard"):
            program = made().to(dtype)
            LAYOUTS[layout](program, world)
            found = masks_of(pruned(program, "everything", dist.group.WORLD, inplace=True))
            tensors |= {f"{layout}/{dtype}/{name}": mask for name, mask in found.items()}
    return tensors, kept


def training() -> Found:
    """Prune and spread, in either order, and take a step; then finalize or drop a mask."""
    tensors: dict[str, Tensor] = {}
    rest: dict[str, Any] = {}
    world, group = dist.get_world_size(), dist.group.WORLD
    for layout, cut in LAYOUTS.items():
        first = made(Chain)
        cut(first, world)
        held = list(map(id, first.parameters()))
        first = pruned(first, "rounds", group, inplace=True)
        told: dict[str, Any] = {"same objects": sorted(held) == sorted(map(id, first.parameters()))}
        tensors |= {f"{layout}/first/{key}": value for key, value in trained(first).items()}
        told["zeros"] = fxprune.report(first).zeros
        tensors[f"{layout}/masked"] = first(X).detach()  # FSDP2 leaves its parameters gathered
        final = fxprune.finalize(first, inplace="fully_shard" in layout)
        tensors[f"{layout}/final"] = final(X).detach()
        told |= {"keys": list(final.state_dict()), "pruned": fxprune.is_pruned(final)}

        last = pruned(made(Chain), "rounds", None, inplace=True)
        cut(last, world)
        tensors |= {f"{layout}/last/{key}": value for key, value in trained(last).items()}
        last.load_state_dict(last.state_dict())
        again = pruned(last, "local", group, inplace=True)
        told["read"] = whole(again.get_submodule("again").weight).shape
        dense = fxprune.unmask(again, "again.weight", inplace=True)
        clean = fxprune.finalize(dense, inplace=True, zeros="clean")
        tensors[f"{layout}/clean"] = clean(X).detach()
        rest[layout] = told
    return tensors, rest


def bytes_sent() -> Found:
    """Rank a million parameters, and count what is given to torch's collectives."""
    sent = [0]
    real = {name: getattr(dist, name) for name in ("all_reduce", "broadcast")}

    def counting(name: str) -> Callable[..., Any]:
        def send(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
            sent[0] += tensor.numel() * tensor.element_size()
            return real[name](tensor, *args, **kwargs)

        return send

    torch.manual_seed(0)
    model = nn.Sequential(*[nn.Linear(700, 700, bias=False) for _ in range(3)])
    program = fxprune.capture(model, (torch.zeros(2, 700),))
    spread(program, line(dist.get_world_size()), along(1))
    recipe = {"rule": [rule("l1_unstructured", scope="global", select="*")]}
    for name in real:
        setattr(dist, name, counting(name))
    result = fxprune.prune(program, recipe, process_group=dist.group.WORLD)
    return masks_of(result), {"sent": sent[0]}


def faults() -> Found:
    """Let many things go wrong on one process, or on all of them."""
    told: dict[str, Any] = {}
    for name, (cut, attempt) in ranks_faults.FAULTS.items():
        program = made(Chain)
        cut(program, dist.get_world_size())
        before = snapshot(program)
        try:
            attempt(program, dist.get_rank())
            told[name] = ["nothing", "", False]
        except (fxprune.FxpruneError, RuntimeError) as error:
            told[name] = [type(error).__name__, str(error), snapshot(program) == before]
    return {}, told


def one_leaves() -> Found:
    """Let one process end before it takes part, or stay away; the others have to notice."""
    program = made(Chain)
    wrapped(program, line(dist.get_world_size()))
    before, start = snapshot(program), time.monotonic()
    dist.barrier()
    if dist.get_rank() == 1:
        if MODE == "dies":
            os._exit(0)
        time.sleep(TIMEOUT[MODE] + 4)
        return {}, {}
    try:
        pruned(program, "global", dist.group.WORLD, inplace=True)
        return {}, {"error": "nothing"}
    except fxprune.FxpruneError as error:
        seconds = time.monotonic() - start
        return {}, {
            "error": type(error).__name__,
            "text": str(error),
            "seconds": seconds,
            "unchanged": snapshot(program) == before,
        }


MODES: dict[str, Callable[[], Found]] = {
    "masks": masks,
    "training": training,
    "bytes": bytes_sent,
    "faults": faults,
    "dies": one_leaves,
    "hangs": one_leaves,
}
TIMEOUT = {"dies": 30, "hangs": 3}
MODE = sys.argv[1] if len(sys.argv) > 1 else ""


def main(out: Path) -> None:
    dist.init_process_group("gloo", timeout=timedelta(seconds=TIMEOUT.get(MODE, 60)))
    rank = dist.get_rank()
    tensors, rest = MODES[MODE]()
    save_file({name: t.contiguous() for name, t in tensors.items()}, out / f"{rank}.safetensors")
    (out / f"{rank}.json").write_text(json.dumps(rest), encoding="utf-8")
    sys.stdout.flush()
    os._exit(0)  # a group that has lost a process cannot be taken down in order


if __name__ == "__main__":
    main(Path(sys.argv[2]))
