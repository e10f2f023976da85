"""Score units of coupled channels at random."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from fxprune.coupling import Coupling
from fxprune.draws import generator_of
from fxprune.pipeline import Analysis, Facts
from fxprune.program import Program
from fxprune.unit_scores import CoupledScores, living_units, scores_of_units

__all__ = ["ScoreUnitRandom"]


@dataclass(frozen=True)
class ScoreUnitRandom(Analysis):
    """Draw a score for each unit, layer by layer.

    Args:
        seed: seed of a private generator; torch's own one when None.
    """

    name: ClassVar[str] = "unit_random"
    needs: ClassVar = (Coupling,)
    gives: ClassVar = (CoupledScores,)

    seed: int | None = None

    def run(self, program: Program, facts: Facts) -> CoupledScores:
        """Return a source for each layer."""
        coupling = facts[Coupling]
        generator = generator_of(torch.device("cpu"), self.seed)
        drawn = torch.rand(coupling.units, generator=generator)
        return scores_of_units(coupling, drawn, living_units(program, coupling))
