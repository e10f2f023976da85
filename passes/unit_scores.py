"""Score units of coupled channels by the norm over all their slices."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch

from fxprune.coupling import Coupling, Place
from fxprune.errors import PassError
from fxprune.facts import Importance, ParamSite, Selection
from fxprune.flops import costs_of
from fxprune.pipeline import Analysis, Facts
from fxprune.program import Program
from fxprune.sites import sites_of
from fxprune.slice_sums import slice_sums
from fxprune.tensors import parameter
from fxprune.unit_scores import CoupledScores, living_units, scores_of_units
from fxprune.units import masked_value

__all__ = ["ScoreUnitNorm"]

Numbers = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
_JOINS: dict[float, np.ufunc] = {math.inf: np.maximum, -math.inf: np.minimum}


@dataclass(frozen=True)
class ScoreUnitNorm(Analysis):
    """Score each unit by the Ln norm of all its slices, laid end to end.

    The slices are those of every parameter at the unit's channels, in each dimension where they
    lie: rows of the layers that make them, columns of those that read them, entries of biases and
    norms. Of a layer some of whose parameters have importance scores, only these count.

    Args:
        n: order of the norm: a number, inf, -inf, or "fro" for 2.
        normalize: "none" takes the norm itself; "size" that of a mean entry, (sum / entries) to
            the power 1/n; "flops" the norm divided by the operations that the unit costs.
    """

    name: ClassVar[str] = "unit_norm"
    needs: ClassVar = (Selection, Coupling, Importance)
    gives: ClassVar = (CoupledScores,)

    n: float | str = 2
    normalize: str = "none"

    def run(self, program: Program, facts: Facts) -> CoupledScores:
        """Return a source for each layer.

        Raises:
            PassError: the norm is none of vectors, or what units cost is not known.
            ShapeError: importance scores do not fit.
        """
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
    given = {name for name in coupling.by_parameter if _is_given(sites[name], importance)}
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
            takes = _taken(place, preferred, in_given=name in given)
            join.at(total, place.units[takes], sums[place.dim][takes])
            np.add.at(entries, place.units[takes], float(place.slice))
    return total, entries


def _is_given(site: ParamSite, importance: Importance) -> bool:
    return any(alias in importance.tensors for alias in site.aliases)


def _taken(place: Place, preferred: Bools, *, in_given: bool) -> Bools:
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
