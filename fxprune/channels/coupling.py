"""Coupled channels: those that can only be cut together, in layers, and their scores."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import gcd, lcm

import numpy as np
import torch

from fxprune.channels.values import Ids, Value
from fxprune.program import Program, parameters
from fxprune.rewrite import Refusal, ScoreSource


@dataclass(frozen=True)
class UnitPlace:
    """A dimension of a parameter along which channels of units lie."""

    parameter: str
    dim: int
    units: Ids  # of each index, counted over all layers; -1 where it is no unit's
    slice: int  # entries of the parameter at each index


@dataclass(frozen=True)
class CoupledLayer:
    """Units that lie along the same dimensions of the same parameters."""

    name: str  # the first of its makers
    makers: tuple[str, ...]  # the parameters that make its channels, in the order of the graphs
    start: int  # the first of its units, counted over all layers
    units: int  # how many it has
    widths: tuple[int, ...]  # how many channels a unit has, along each dimension that it lies in

    @property
    def stop(self) -> int:
        """One after the last of its units."""
        return self.start + self.units

    def step(self, round_to: int) -> int:
        """Return how many units hold multiples of some number of channels, everywhere."""
        return lcm(*(round_to // gcd(round_to, width) for width in self.widths))


@dataclass(frozen=True)
class Coupling:
    """The layers that a rule takes, and where their units lie, in parameter order."""

    layers: tuple[CoupledLayer, ...]
    places: tuple[UnitPlace, ...]  # every dimension in which a unit lies
    refused: tuple[tuple[str, Refusal], ...] = ()  # what was selected and has no unit

    @property
    def units(self) -> int:
        """How many units all layers have."""
        return self.layers[-1].stop if self.layers else 0

    @cached_property
    def by_parameter(self) -> Mapping[str, tuple[UnitPlace, ...]]:
        """The places in each parameter, in parameter order."""
        found: dict[str, tuple[UnitPlace, ...]] = {}
        for place in self.places:
            found[place.parameter] = (*found.get(place.parameter, ()), place)
        return found

    def layers_of(self, place: UnitPlace) -> tuple[int, ...]:
        """Return which layers, by number, lie in a place."""
        starts = np.array([layer.start for layer in self.layers])
        units = np.unique(place.units[place.units >= 0])
        found = np.unique(np.searchsorted(starts, units, side="right") - 1)
        return tuple(found.tolist())

    def layers_in(self, parameter: str) -> set[int]:
        """Return which layers, by number, lie in a parameter."""
        return {at for place in self.by_parameter[parameter] for at in self.layers_of(place)}

    def spread(self, place: UnitPlace, units: torch.Tensor) -> torch.Tensor:
        """Return a value of each unit at each index of a place; zero, or False, at no unit's."""
        index = torch.from_numpy(place.units)
        padded = torch.cat([units, units.new_zeros(1)])
        return padded[index]  # -1 is the last


def places_of(value: Value) -> Iterator[tuple[int, Ids]]:
    """Yield (dimension, atom of each index) of a stored tensor, where its channels may be cut."""
    for dim, axis in enumerate(value.axes):
        if len(axis) == 1 and axis[0].atoms is not None:
            yield dim, axis[0].atoms


@dataclass(frozen=True)
class CoupledScores:
    """A score source for each layer of coupled channels, by its name, in parameter order."""

    sources: Mapping[str, ScoreSource]


class UnitScores(ScoreSource):
    """Scores of one layer's units, alive or not; `living` tells which are alive."""

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
    """Return a source for each layer, of the scores of all units and which are alive."""
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
    masks = parameters.masks(program)
    living = torch.zeros(coupling.units + 1, dtype=torch.bool)
    for place in coupling.places:
        index = torch.from_numpy(place.units)
        if place.parameter in masks:
            slices = masks[place.parameter].movedim(place.dim, 0).reshape(len(index), -1)
            index = index[(slices != 0).any(dim=1).cpu()]
        living[index] = True
    return living[:-1]  # at -1 are the channels of no unit
