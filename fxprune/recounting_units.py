"""Checks masks of coupled channels against their scores and limits: a unit goes whole, or stays.

Uses the facts that the passes gave, and none of their code.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from fxprune.announced import Fault
from fxprune.bits import same_bits
from fxprune.coupling import Coupling, Layer, Place
from fxprune.facts import Ranking
from fxprune.recipe import Rule
from fxprune.recounting import Masked, rounded
from fxprune.unit_scores import CoupledScores

__all__ = ["recount_units"]


def recount_units(
    rule: Rule,
    coupling: Coupling,
    scores: CoupledScores,
    ranking: Ranking,
    masked: Mapping[str, Masked],
    *,
    plain: bool,
) -> Iterator[Fault]:
    """Yield what is wrong with the masks of one rule over coupled channels.

    Args:
        rule: what was asked.
        coupling: the layers and where their units lie.
        scores: of their living units.
        ranking: how many units of each layer go.
        masked: all parameters in which units lie, before and after, by first name.
        plain: whether the parameters' own values were scored, and nothing in their place.
    """
    units = _Units(rule, coupling, scores, ranking, masked)
    wrong = [*units.living_faults()] or [*units.count_faults()]
    yield from wrong
    if wrong:
        return
    if plain and rule.score_name == "norm" and rule.n in (1, 2, math.inf):
        yield from units.norm_faults()
    yield from units.mask_faults()


@dataclass(frozen=True)
class _Units:
    """The units of one rule."""

    rule: Rule
    coupling: Coupling
    scores: CoupledScores
    ranking: Ranking
    masked: Mapping[str, Masked]

    def living(self) -> torch.Tensor:
        """Return which units a mask held anything of before the rule."""
        found = torch.zeros(self.coupling.units + 1, dtype=torch.bool)
        for place in self.coupling.places:
            alive = (_slices(self.masked[place.parameter].before, place) != 0).any(1).cpu()
            found[torch.from_numpy(place.units)[alive]] = True
        return found[:-1]

    def living_faults(self) -> Iterator[Fault]:
        living = self.living()
        for layer in self.coupling.layers:
            source, own = self.scores.sources[layer.name], living[layer.start : layer.stop]
            told = source.living(0, layer.units)
            same = bool(own.all()) if told is None else torch.equal(told.cpu(), own)
            if not same or source.chunk(0, layer.units).numel() != int(own.sum()):
                yield Fault(f"the layer {layer.name!r} has other living channels than are scored")

    # How many

    def count_faults(self) -> Iterator[Fault]:
        layers = self.coupling.layers
        for layer, wanted in zip(layers, self._counts(layers), strict=True):
            step = math.lcm(
                *(self.rule.round_to // math.gcd(self.rule.round_to, w) for w in layer.widths)
            )
            alive = self.scores.sources[layer.name].alive
            while wanted > 0 and (alive - wanted) % step:
                wanted -= 1
            count = self.ranking.cuts[layer.name].count
            if count != wanted:
                yield Fault(
                    f"{count} of the {alive} living channels of {layer.name!r} rank, and amount = "
                    f"{self.rule.amount} with its limits is {wanted}"
                )

    def _most(self, layer: Layer) -> int:
        alive = self.scores.sources[layer.name].alive
        # A share of a third of 3 is 1, though the product is a little less.
        share = math.floor(self.rule.max_share * layer.units + 1e-9) - (layer.units - alive)
        return max(0, min(alive - self.rule.min_keep, share))

    def _counts(self, layers: Sequence[Layer]) -> list[int]:
        alive = [self.scores.sources[layer.name].alive for layer in layers]
        if self.rule.scope == "local":
            return [
                min(rounded(self.rule.amount, n), self._most(layer))
                for layer, n in zip(layers, alive, strict=True)
            ]
        open_to: list[tuple[float, int]] = []
        for at, layer in enumerate(layers):
            scores = self._ordered(layer)[0][: self._most(layer)]
            open_to += [(score, at) for score in scores.tolist()]
        open_to.sort(key=lambda pair: (math.isnan(pair[0]), pair[0], pair[1]))
        first = [at for _, at in open_to[: rounded(self.rule.amount, sum(alive))]]
        return [first.count(at) for at in range(len(layers))]

    def _ordered(self, layer: Layer) -> tuple[torch.Tensor, torch.Tensor]:
        """Return a layer's scores in order, and the places of these among its living units."""
        scores = self.scores.sources[layer.name].chunk(0, layer.units)
        ordered = torch.sort(scores, stable=True)
        return ordered.values, ordered.indices.cpu()

    # Which

    def gone(self) -> torch.Tensor:
        """Return which units are to go: those that score least, the first of equals."""
        living, gone = self.living(), torch.zeros(self.coupling.units, dtype=torch.bool)
        for layer in self.coupling.layers:
            order = self._ordered(layer)[1][: self.ranking.cuts[layer.name].count]
            alive = living[layer.start : layer.stop].nonzero().flatten()
            gone[layer.start + alive[order]] = True
        return gone

    def mask_faults(self) -> Iterator[Fault]:
        gone = torch.cat([self.gone(), torch.zeros(1, dtype=torch.bool)])
        for name, places in self.coupling.by_parameter.items():
            part = self.masked[name]
            wanted = part.before.detach().clone()
            for place in places:
                index = gone[torch.from_numpy(place.units)].nonzero().flatten()
                wanted.index_fill_(place.dim, index.to(wanted.device), 0)
            if not same_bits(part.new, wanted):
                yield Fault(f"the mask of {name!r} does not zero the slices of what goes alone")

    # Norms

    def norm_faults(self) -> Iterator[Fault]:
        if self.rule.normalize == "flops":
            return
        wanted, living = self._norms(), self.living()
        for layer in self.coupling.layers:
            own = wanted[layer.start : layer.stop][living[layer.start : layer.stop].numpy()]
            scores = self.scores.sources[layer.name].chunk(0, layer.units).double().cpu().numpy()
            # Sums of float64 in another order.
            if not np.allclose(scores, own, rtol=1e-9, atol=1e-30, equal_nan=True):
                yield Fault(f"the scores of {layer.name!r} are not the norms of its channels")

    def _norms(self) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
        n = self.rule.n
        total, entries = (np.zeros(self.coupling.units) for _ in range(2))
        for place in self.coupling.places:
            rows = _slices(self.masked[place.parameter].value, place).double().abs()
            there = place.units >= 0
            units, rows = place.units[there], rows[torch.from_numpy(there).to(rows.device)]
            each = (rows.amax(1) if n == math.inf else (rows**n).sum(1)).cpu().numpy()  # pyright: ignore
            (np.maximum if n == math.inf else np.add).at(total, units, each)
            np.add.at(entries, units, rows.shape[1])
        if n == math.inf:
            return total
        if self.rule.normalize == "size":
            total = total / np.maximum(entries, 1)
        return np.sqrt(total) if n == 2 else total


def _slices(tensor: torch.Tensor, place: Place) -> torch.Tensor:
    """Return what a tensor holds at each index of a place, a row an index."""
    return tensor.detach().movedim(place.dim, 0).reshape(len(place.units), -1)
