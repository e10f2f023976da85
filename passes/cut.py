"""Turn a ranking into masks, of entries, channels or coupled channels, one parameter at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch

from fxprune.channels import CoupledScores, Coupling
from fxprune.program import Handle, Program, parameters_of
from fxprune.ranking import Peers, PrunedChunks, pruned_mask, pruned_of_group
from fxprune.rewrite import Analysis, Facts, NewMasks, Ranking, Scores, ScoreSource


@dataclass(frozen=True)
class CutUnits(Analysis):
    """Make masks that are zero where the ranking prunes, and as before elsewhere."""

    name: ClassVar[str] = "cut"
    needs: ClassVar = (Scores, Ranking)
    gives: ClassVar = (NewMasks,)

    def run(self, program: Program, facts: Facts) -> NewMasks:
        """Return masks that are made when they are read."""
        scores, ranking, peers = facts[Scores], facts[Ranking], facts.get(Peers)

        def make() -> Iterator[tuple[str, torch.Tensor]]:
            for group in ranking.groups:
                for name, pruned in pruned_of_group(scores, ranking, group):
                    source = scores.sources[name]
                    held = parameters_of(program)[name]
                    if peers is not None and held.is_spread:
                        yield name, _of_spread(peers, held, source, pruned, scores.dim)
                    elif scores.dim is None:
                        yield name, _of_entries(held, source, pruned)
                    else:
                        yield name, _of_channels(held, source, pruned, scores.dim)

        return NewMasks(tuple(scores.sources), make)


def _of_entries(held: Handle, source: ScoreSource, pruned: PrunedChunks) -> torch.Tensor:
    parameter, old = held.stored, held.mask
    # Without a memory format: masks are contiguous, as torch's are.
    mask = torch.empty(parameter.shape, dtype=parameter.dtype, device=parameter.device)
    flat = mask.view(-1)
    before = None if old is None else old.detach().reshape(-1)
    for start, stop, gone in pruned:
        part, living = flat[start:stop], source.living(start, stop)
        if living is None or before is None:
            torch.logical_not(gone, out=part)
            continue
        part.copy_(before[start:stop])
        part[torch.zeros_like(living).masked_scatter_(living, gone)] = 0
    return mask


def _of_spread(
    peers: Peers, held: Handle, source: ScoreSource, pruned: PrunedChunks, dim: int | None
) -> torch.Tensor:
    shape = held.stored.shape
    gone = _pruned(source, pruned)
    if dim is not None:
        lines = [-1 if d == dim % len(shape) else 1 for d in range(len(shape))]
        gone = gone.view(lines).expand(shape)
    elif not source.part:
        gone = gone.view(shape)
    return pruned_mask(peers, held, gone, part=source.part)


def _pruned(source: ScoreSource, pruned: PrunedChunks) -> torch.Tensor:
    """Return which of all units are pruned, bool."""
    found = torch.zeros(source.units, dtype=torch.bool, device=source.chunk(0, 0).device)
    for start, stop, gone in pruned:
        living = source.living(start, stop)
        if living is not None:
            gone = torch.zeros_like(living).masked_scatter_(living, gone.to(living.device))
        found[start:stop] = gone
    return found


def _of_channels(held: Handle, source: ScoreSource, pruned: PrunedChunks, dim: int) -> torch.Tensor:
    mask = held.copy_mask()
    shape = [1] * mask.dim()
    shape[dim] = -1
    return mask.mul_(_pruned(source, pruned).logical_not().to(mask).view(shape))


@dataclass(frozen=True)
class CutCoupled(Analysis):
    """Make masks that are zero in every slice of the units that go, and as before elsewhere."""

    name: ClassVar[str] = "cut_coupled"
    needs: ClassVar = (Coupling, CoupledScores, Ranking)
    gives: ClassVar = (NewMasks,)

    def run(self, program: Program, facts: Facts) -> NewMasks:
        """Return masks that are made when they are read."""
        coupling = facts[Coupling]
        gone = _pruned_units(coupling, facts[CoupledScores], facts[Ranking])
        makers = {name for layer in coupling.layers for name in layer.makers}
        names = tuple(
            name
            for name, places in coupling.by_parameter.items()
            if name in makers or any(bool(coupling.spread(p, gone).any()) for p in places)
        )

        def make() -> Iterator[tuple[str, torch.Tensor]]:
            for name in names:
                yield name, _mask(parameters_of(program)[name], coupling, gone)

        return NewMasks(names, make)


def _pruned_units(coupling: Coupling, scores: CoupledScores, ranking: Ranking) -> torch.Tensor:
    """Return which units go now, over all layers."""
    gone = torch.zeros(coupling.units, dtype=torch.bool)
    for layer in coupling.layers:
        ((_, chunks),) = pruned_of_group(Scores(scores.sources), ranking, (layer.name,))
        pruned = torch.cat([part for _, _, part in chunks])
        living = scores.sources[layer.name].living(0, layer.units)
        part = gone[layer.start : layer.stop]
        part[slice(None) if living is None else living] = pruned
    return gone


def _mask(held: Handle, coupling: Coupling, gone: torch.Tensor) -> torch.Tensor:
    mask = held.copy_mask()
    for place in coupling.by_parameter[held.name]:
        index = coupling.spread(place, gone).nonzero().flatten()
        mask.index_fill_(place.dim, index.to(mask.device), 0)
    return mask
