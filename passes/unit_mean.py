"""Score units of coupled channels by another pass's scores of channels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from fxprune.coupling import Coupling
from fxprune.facts import Scores, ScoreSource
from fxprune.pipeline import Analysis, Facts
from fxprune.program import Program
from fxprune.unit_scores import CoupledScores, living_units, scores_of_units

__all__ = ["ScoreUnitMean"]


@dataclass(frozen=True)
class ScoreUnitMean(Analysis):
    """Score each unit by the mean of its channels' scores in the parameters that were scored."""

    name: ClassVar[str] = "unit_mean"
    needs: ClassVar = (Scores, Coupling)
    gives: ClassVar = (CoupledScores,)

    def run(self, program: Program, facts: Facts) -> CoupledScores:
        """Return a source for each layer."""
        coupling, scores = facts[Coupling], facts[Scores]
        total, count = np.zeros(coupling.units), np.zeros(coupling.units)
        for place in coupling.places:
            source = scores.sources.get(place.parameter)
            if source is None or place.dim != (scores.dim or 0):
                continue
            values, living = _all_of(source)
            there = (place.units >= 0) & living
            total += np.bincount(place.units[there], values[there], minlength=coupling.units)
            count += np.bincount(place.units[there], minlength=coupling.units)
        means = torch.from_numpy(total / np.maximum(count, 1))
        return scores_of_units(coupling, means, living_units(program, coupling))


def _all_of(source: ScoreSource) -> tuple[np.ndarray, np.ndarray]:
    """Return a score for each unit, 0 where it is not alive, and which are alive."""
    living = source.living(0, source.units)
    scores = source.chunk(0, source.units).detach().to("cpu", torch.float64)
    if living is None:
        return scores.numpy(), np.ones(source.units, dtype=np.bool_)
    spread = torch.zeros(source.units, dtype=torch.float64)
    spread[living.cpu()] = scores
    return spread.numpy(), living.cpu().numpy()
