"""Scores of coupled channels: a vector for each layer, and which of its units are alive."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from fxprune import tensors
from fxprune.coupling import Coupling
from fxprune.facts import ScoreSource
from fxprune.program import Program

__all__ = ["CoupledScores", "UnitScores", "living_units", "scores_of_units"]


@dataclass(frozen=True)
class CoupledScores:
    """A score source for each layer of coupled channels.

    Args:
        sources: by the layer's name, in parameter order.
    """

    sources: Mapping[str, ScoreSource]


class UnitScores(ScoreSource):
    """Scores of one layer's units.

    Args:
        scores: of all its units, alive or not.
        living: which are alive, of the same shape.
    """

    def __init__(self, scores: torch.Tensor, living: torch.Tensor) -> None:
        self._scores, self._living = scores, living
        self.units, self.alive = len(scores), int(living.sum())

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the scores."""
        return self._scores.dtype

    def living(self, start: int, stop: int) -> torch.Tensor | None:
        """Return which units are alive."""
        return None if self.alive == self.units else self._living[start:stop]

    def chunk(self, start: int, stop: int) -> torch.Tensor:
        """Return the scores of the living units among start..stop."""
        return self._scores[start:stop][self._living[start:stop]]


def scores_of_units(
    coupling: Coupling, scores: torch.Tensor, living: torch.Tensor
) -> CoupledScores:
    """Return a source for each layer.

    Args:
        coupling: the layers.
        scores: of all units of all layers.
        living: which units are alive.
    """
    return CoupledScores(
        {
            layer.name: UnitScores(
                scores[layer.start : layer.stop], living[layer.start : layer.stop]
            )
            for layer in coupling.layers
        }
    )


def living_units(program: Program, coupling: Coupling) -> torch.Tensor:
    """Return which units are alive: those of which a mask holds anything, in any slice."""
    masks = tensors.masks(program)
    living = torch.zeros(coupling.units + 1, dtype=torch.bool)
    for place in coupling.places:
        index = torch.from_numpy(place.units)
        if place.parameter in masks:
            slices = masks[place.parameter].movedim(place.dim, 0).reshape(len(index), -1)
            index = index[(slices != 0).any(dim=1).cpu()]
        living[index] = True
    return living[:-1]  # at -1 are the channels of no unit
