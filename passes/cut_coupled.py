"""Turn a ranking of coupled channels into masks that cover each unit's slices together."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch

from fxprune.coupling import Coupling
from fxprune.cutting import pruned_of_group
from fxprune.facts import NewMasks, Ranking, Scores
from fxprune.pipeline import Analysis, Facts
from fxprune.program import Program
from fxprune.tensors import Handle, parameters_of
from fxprune.unit_scores import CoupledScores

__all__ = ["CutCoupled"]


@dataclass(frozen=True)
class CutCoupled(Analysis):
    """Make masks that are zero in every slice of the units that go, and as before elsewhere."""

    name: ClassVar[str] = "cut_coupled"
    needs: ClassVar = (Coupling, CoupledScores, Ranking)
    gives: ClassVar = (NewMasks,)

    def run(self, program: Program, facts: Facts) -> NewMasks:
        """Return masks that are made when they are read."""
        coupling = facts[Coupling]
        gone = _gone(coupling, facts[CoupledScores], facts[Ranking])
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


def _gone(coupling: Coupling, scores: CoupledScores, ranking: Ranking) -> torch.Tensor:
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
