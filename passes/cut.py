"""Turn a ranking into masks, one parameter at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch

from fxprune import tensors
from fxprune.facts import NewMasks, Ranking, Scores
from fxprune.pipeline import Analysis, Facts
from fxprune.program import Program
from fxprune.ranking import pruned_of_group

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
                    yield name, _mask(program, scores, name, pruned)

        return NewMasks(tuple(scores.sources), make)


def _mask(program: Program, scores: Scores, name: str, pruned: torch.Tensor) -> torch.Tensor:
    parameter = tensors.parameter(program, name)
    old = tensors.masks(program).get(name)
    source = scores.sources[name]
    # Without a memory format: masks are contiguous, as torch's are.
    mask = torch.ones(parameter.shape, dtype=parameter.dtype, device=parameter.device)
    if old is not None:
        mask = old.detach().clone(memory_format=torch.contiguous_format)
    living = source.living(0, source.units)
    gone = pruned if living is None else torch.zeros_like(living).masked_scatter_(living, pruned)
    if scores.dim is None:
        mask.view(-1)[gone] = 0
        return mask
    shape = [1] * mask.dim()
    shape[scores.dim] = -1
    return mask * (~gone).to(mask).view(shape)
