"""Turn a ranking into masks, one parameter at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch

from fxprune import tensors
from fxprune.cutting import Pruned, pruned_of_group
from fxprune.facts import NewMasks, Ranking, Scores, ScoreSource
from fxprune.pipeline import Analysis, Facts
from fxprune.program import Program

__all__ = ["CutUnits"]


@dataclass(frozen=True)
class CutUnits(Analysis):
    """Make masks that are zero where the ranking prunes, and as before elsewhere."""

    name: ClassVar[str] = "cut"
    needs: ClassVar = (Scores, Ranking)
    gives: ClassVar = (NewMasks,)

    def run(self, program: Program, facts: Facts) -> NewMasks:
        """Return masks that are made when they are read."""
        scores, ranking = facts[Scores], facts[Ranking]

        def make() -> Iterator[tuple[str, torch.Tensor]]:
            for group in ranking.groups:
                for name, pruned in pruned_of_group(scores, ranking, group):
                    source = scores.sources[name]
                    if scores.dim is None:
                        yield name, _of_entries(program, source, name, pruned)
                    else:
                        yield name, _of_channels(program, source, name, pruned, scores.dim)

        return NewMasks(tuple(scores.sources), make)


def _of_entries(program: Program, source: ScoreSource, name: str, pruned: Pruned) -> torch.Tensor:
    parameter, old = tensors.parameter(program, name), tensors.masks(program).get(name)
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


def _of_channels(
    program: Program, source: ScoreSource, name: str, pruned: Pruned, dim: int
) -> torch.Tensor:
    parameter, old = tensors.parameter(program, name), tensors.masks(program).get(name)
    kept = torch.ones(source.units, dtype=torch.bool, device=parameter.device)
    for start, stop, gone in pruned:
        living = source.living(start, stop)
        went = gone if living is None else torch.zeros_like(living).masked_scatter_(living, gone)
        kept[start:stop] = ~went.to(kept.device)
    shape = [1] * parameter.dim()
    shape[dim] = -1
    factor = kept.to(parameter.dtype).view(shape)
    if old is None:
        return factor.expand(parameter.shape).contiguous()
    return old.detach().clone(memory_format=torch.contiguous_format) * factor
