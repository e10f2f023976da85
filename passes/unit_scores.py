"""Score units of coupled channels by norms of their slices, by scores of channels, or at random."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch

from fxprune.channels import (
    Bools,
    CoupledScores,
    Coupling,
    UnitPlace,
    costs_of,
    living_units,
    scores_of_units,
)
from fxprune.errors import PassError
from fxprune.program import Program, parameter, sites_of
from fxprune.ranking import generator_of, slice_sums
from fxprune.rewrite import (
    Analysis,
    Facts,
    Importance,
    Scores,
    ScoreSource,
    Selection,
    masked_value,
)


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
            np.add.at(total, place.units[there], values[there])
            np.add.at(count, place.units[there], 1.0)
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


Numbers = npt.NDArray[np.float64]
_JOINS: dict[float, np.ufunc] = {math.inf: np.maximum, -math.inf: np.minimum}


@dataclass(frozen=True)
class ScoreUnitNorm(Analysis):
    """Score each unit by the Ln norm of all its slices, laid end to end.

    The slices are those of every parameter at the unit's channels, in each dimension where they
    lie: rows of the layers that make them, columns of those that read them, entries of biases and
    norms. Of a layer some of whose parameters have importance scores, only these count.

    `normalize` is "none"; "size" for the norm of a mean entry, (sum / entries) to the power 1/n; or
    "flops" for the norm divided by the operations that the unit costs.
    """

    name: ClassVar[str] = "unit_norm"
    needs: ClassVar = (Selection, Coupling, Importance)
    gives: ClassVar = (CoupledScores,)

    n: float | str = 2
    normalize: str = "none"

    def run(self, program: Program, facts: Facts) -> CoupledScores:
        """Return a source for each layer."""
        coupling, importance = facts[Coupling], facts[Importance]
        order = _order(self.n)
        total, entries = _totals(program, coupling, importance, order)
        if self.normalize == "size" and math.isfinite(order):
            total /= np.maximum(entries, 1)
        if order != 0 and math.isfinite(order):
            total = total ** (1 / order)
        if self.normalize == "flops":
            total /= np.maximum(_flops(program, coupling), 1)
        return scores_of_units(coupling, torch.from_numpy(total), living_units(program, coupling))


def _order(n: float | str) -> float:
    if n == "nuc":
        raise PassError("n = 'nuc' is a norm of matrices, and units are no matrices; give a number")
    return 2.0 if n == "fro" else float(n)


def _totals(
    program: Program, coupling: Coupling, importance: Importance, order: float
) -> tuple[Numbers, Numbers]:
    """Return each unit's sum of |x|^n over its slices, or their extreme, and how many x there are.

    An entry in two slices of one unit counts twice.
    """
    sites = {site.name: site for site in sites_of(program)}
    scored = importance.tensors.keys()
    given = {n for n in coupling.by_parameter if not scored.isdisjoint(sites[n].aliases)}
    preferred = np.zeros(coupling.units, dtype=np.bool_)
    for place in coupling.places:
        if place.parameter in given:
            preferred[place.units[place.units >= 0]] = True
    start, join = (-order if math.isinf(order) else 0.0), _JOINS.get(order, np.add)
    total, entries = np.full(coupling.units, start), np.zeros(coupling.units)
    for name, places in coupling.by_parameter.items():
        tensor = masked_value(program, sites[name], importance)
        sums = slice_sums(tensor, [place.dim for place in places], order)
        for place in places:
            takes = _counts_at(place, preferred, in_given=name in given)
            join.at(total, place.units[takes], sums[place.dim][takes])
            np.add.at(entries, place.units[takes], float(place.slice))
    return total, entries


def _counts_at(place: UnitPlace, preferred: Bools, *, in_given: bool) -> Bools:
    """Return at which indices of a place a slice counts for its unit."""
    there = place.units >= 0
    return there if in_given else there & ~preferred[place.units]


def _flops(program: Program, coupling: Coupling) -> Numbers:
    """Return the operations that each unit costs: those of each entry of its slices, together."""
    costs = costs_of(program)
    if costs.unknown:
        raise PassError(
            f"normalize = 'flops' needs the cost of {costs.unknown[0]}, whose shape is not known; "
            "take normalize = 'size'"
        )
    each: dict[str, float] = {}
    for row in costs.rows:
        for name in row.parameters:
            if parameter(program, name).dim() > 1 or len(row.parameters) == 1:
                count = parameter(program, name).numel()
                each[name] = each.get(name, 0.0) + row.flops / max(count, 1)
    found = np.zeros(coupling.units)
    for place in coupling.places:
        there = place.units[place.units >= 0]
        np.add.at(found, there, place.slice * each.get(place.parameter, 0.0))
    return found


@dataclass(frozen=True)
class ScoreUnitRandom(Analysis):
    """Draw a score for each unit, layer by layer."""

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
