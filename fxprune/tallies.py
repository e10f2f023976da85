"""What a group of processes holds of some parameters: each entry is counted by one of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from fxprune import shards
from fxprune.digits import sortable
from fxprune.errors import PeerError
from fxprune.facts import ScoreSource
from fxprune.peers import Peers
from fxprune.program import Program
from fxprune.scan import CHUNK, chunks_of
from fxprune.tensors import parameters_of

__all__ = ["Tally", "check_parts", "checksum", "digest", "layouts", "tally"]

_NOBODY = 2**62
_ODD = -7046029254386353131  # 2**64 over the golden ratio, as a signed number


@dataclass(frozen=True)
class Tally:
    """What the processes hold.

    Args:
        counted: names of the parameters whose part in this process is counted in this process.
        units: how many units each parameter has, over all processes.
        alive: how many of these are alive.
    """

    counted: frozenset[str]
    units: Mapping[str, int]
    alive: Mapping[str, int]


def layouts(program: Program) -> str:
    """Return in words what a Program holds and how it is spread, the same on each process."""
    return "\n".join(
        f"{name} {held.aliases} {tuple(held.stored.shape)} {held.stored.dtype} "
        f"{held.mask is not None} {_layout(held.stored)}"
        for name, held in parameters_of(program).items()
    )


def check_parts(program: Program) -> None:
    """Check that it can be told which entries of each parameter this process holds.

    Raises:
        PassError: a parameter is a pending sum, or no part of one is a box.
    """
    for name, held in parameters_of(program).items():
        if held.is_spread:
            shards.placing().coordinates(held.stored, name)


def _layout(tensor: torch.Tensor) -> str:
    return shards.placing().layout_of(tensor) if shards.is_sharded(tensor) else "whole"


def tally(peers: Peers, program: Program, sources: Mapping[str, ScoreSource]) -> Tally:
    """Find out who counts what, and check that what several processes hold is the same.

    Sends 48 bytes a parameter.

    Raises:
        PeerError: entries of a parameter are held by none of the processes, or replicas differ.
    """
    held = {n: parameters_of(program)[n].stored for n, source in sources.items() if source.part}
    units = {n: held[n].numel() if n in held else source.units for n, source in sources.items()}
    counted = _counted(peers, sources, held)
    rows: list[tuple[int, ...]] = []
    for name, source in sources.items():
        alone = name in held and not _has_replicas(peers, held[name])
        row = (source.units, source.alive, 0 if alone else checksum(source))
        rows.append((source.units, row[2], *(row if name in counted else (0, 0, 0))))
    table = torch.tensor(rows, dtype=torch.int64).reshape(-1, 5)
    totals = peers.sum(table, "comparing replicas")
    for (name, size), total in zip(units.items(), totals, strict=True):
        _check(name, size, total)
    return Tally(counted, units, dict(zip(sources, totals[:, 3].tolist(), strict=True)))


def _counted(
    peers: Peers, sources: Mapping[str, ScoreSource], held: Mapping[str, Any]
) -> frozenset[str]:
    """Return the names that this process counts: whole ones in the first process alone.

    Meshes that are parts of a larger one hold the same: that of the lowest rank counts.
    """
    lowest = [shards.placing().lowest_rank(t) if _holds(t) else _NOBODY for t in held.values()]
    least = peers.least(torch.tensor(lowest, dtype=torch.int64), "finding who holds what")
    first = dict(
        zip(held, (torch.tensor(lowest, dtype=torch.int64) == least).tolist(), strict=True)
    )
    return frozenset(
        name
        for name in sources
        if (
            first[name] and shards.placing().is_first_replica(held[name])
            if name in held
            else peers.rank == 0
        )
    )


def _holds(tensor: Any) -> bool:
    return tensor.device_mesh.get_coordinate() is not None


def _has_replicas(peers: Peers, tensor: Any) -> bool:
    """Tell whether several processes may hold the same part; the same answer on all of them."""
    split = zip(tensor.device_mesh.shape, tensor.placements, strict=True)
    repeated = any(size > 1 and placement.is_replicate() for size, placement in split)
    return repeated or tensor.device_mesh.size() != peers.size


def _check(name: str, size: int, total: torch.Tensor) -> None:
    """Check what the processes hold and count of one parameter.

    Args:
        name: the parameter.
        size: how many units it has.
        total: the sums of (units held, checksums, units counted, units alive, checksums counted).
    """
    held, sums, counted, _, once = total.tolist()
    if counted != size or (size and held % size):
        raise PeerError(
            f"the processes of the group hold {held} units of {name!r} and count {counted} of its "
            f"{size}; give prune a process group of all that hold a part of it, and of no others"
        )
    copies = torch.tensor(held // size if size else 0)
    if int(copies * torch.tensor(once)) != sums:
        raise PeerError(
            f"processes that should hold the same entries or masks of {name!r} do not; broadcast "
            "it, or load the same checkpoint everywhere"
        )


def checksum(source: ScoreSource) -> int:
    """Return a number, from -2**63, that hardly ever is the same for other scores."""
    found = torch.zeros((), dtype=torch.int64)
    for start, stop in chunks_of(source):
        living = source.living(start, stop)
        found = _stirred(found, sortable(source.chunk(start, stop)).to(torch.int64))
        if living is not None:
            found = _stirred(found, living.to(torch.int64))
    return int(found)


def digest(tensor: torch.Tensor) -> int:
    """Return a number, from -2**63, that hardly ever is the same for other tensors; 0 if spread."""
    if shards.is_sharded(tensor):
        return 0
    found = torch.zeros((), dtype=torch.int64)
    for piece in tensor.detach().reshape(-1).split(CHUNK):
        found = _stirred(found, piece.contiguous().view(torch.uint8).to(torch.int64))
    return int(found)


def _stirred(found: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    places = torch.arange(1, len(values) + 1, device=values.device)
    # Odd multipliers that differ from place to place; all products are modulo 2**64.
    mixed = (values ^ (values >> 29)) * (places * _ODD | 1)
    mixed = (mixed ^ (mixed >> 32)) * _ODD
    return (found * _ODD) ^ mixed.sum().cpu()
