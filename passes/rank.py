"""Rank scores: which units go, in each parameter or layer alone, or over all of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from fxprune.channels import CoupledLayer, CoupledScores, Coupling
from fxprune.errors import AmountError
from fxprune.program import Program
from fxprune.ranking import (
    Peers,
    check_amount,
    count_of,
    cut_group,
    name_in_errors,
    rank_over,
    rank_scores,
)
from fxprune.rewrite import Analysis, Cut, Facts, Ranking, Scores, ScoreSource


@dataclass(frozen=True)
class Rank(Analysis):
    """Find the cut that prunes the smallest scores.

    `amount` is a share (float) or count (int) of what is alive; `ties` is "index" or "torch", see
    `fxprune.rewrite.facts.Ranking`.
    """

    name: ClassVar[str] = "rank"
    needs: ClassVar = (Scores,)
    gives: ClassVar = (Ranking,)

    amount: float | int
    scope: str = "local"
    ties: str = "index"

    def run(self, program: Program, facts: Facts) -> Ranking:
        """Return a cut for each parameter."""
        scores, peers = facts[Scores], facts.get(Peers)
        if peers is not None:
            return rank_over(peers, program, scores, self.amount, self.scope, self.ties)
        return rank_scores(scores, self.amount, self.scope, self.ties)


@dataclass(frozen=True)
class RankUnits(Analysis):
    """Find the cut that prunes the smallest scores; among equal ones, lower indices go first.

    In local scope a limit lets a layer lose less than the amount; in global scope other layers then
    lose more, and limits that leave less than the amount over all layers are an error. At least
    `min_keep` units of each layer stay alive, at most `max_share` of its units are pruned, by
    earlier rules too, and it keeps multiples of `round_to` channels, which holds back units in both
    scopes.
    """

    name: ClassVar[str] = "rank_units"
    needs: ClassVar = (CoupledScores, Coupling)
    gives: ClassVar = (Ranking,)

    amount: float | int
    scope: str = "local"
    min_keep: int = 1
    max_share: float = 1.0
    round_to: int = 1

    def run(self, program: Program, facts: Facts) -> Ranking:
        """Return a cut for each layer."""
        check_amount(self.amount)
        sources, layers = facts[CoupledScores].sources, facts[Coupling].layers
        caps = [self._most(layer, sources[layer.name]) for layer in layers]
        counts = self._together(layers, sources, caps)
        if self.scope == "local":
            counts = [
                min(self._count(layer, sources[layer.name]), cap)
                for layer, cap in zip(layers, caps, strict=True)
            ]
        cuts: dict[str, Cut] = {}
        for layer, count in zip(layers, counts, strict=True):
            source = {layer.name: sources[layer.name]}
            cuts |= cut_group(source, self._to_multiple(layer, sources, count), all_ties=False)
        return Ranking(cuts, tuple((layer.name,) for layer in layers), "index")

    def _count(self, layer: CoupledLayer, source: ScoreSource) -> int:
        with name_in_errors([layer.name]):
            return count_of(self.amount, source.alive, "channels")

    def _most(self, layer: CoupledLayer, source: ScoreSource) -> int:
        """Return how many units of a layer may go at most."""
        dead = source.units - source.alive
        # 1e-9: a share of a third of 3 is 1, though the product is a little less.
        by_share = math.floor(self.max_share * source.units + 1e-9) - dead
        return max(0, min(source.alive - self.min_keep, by_share))

    def _together(
        self,
        layers: Sequence[CoupledLayer],
        sources: Mapping[str, ScoreSource],
        caps: Sequence[int],
    ) -> list[int]:
        """Return how many units of each layer are among the smallest of all that may go."""
        if self.scope == "local":
            return []
        alive = sum(sources[layer.name].alive for layer in layers)
        k = count_of(self.amount, alive, "channels")
        if k > sum(caps):
            raise AmountError(
                f"amount={self.amount} asks for {k} of {alive} channels, but the limits of the "
                f"layers (min_keep={self.min_keep}, max_share={self.max_share}) leave {sum(caps)}; "
                "lower the amount or the limits"
            )
        ranked = [torch.sort(sources[layer.name].chunk(0, layer.units)).values for layer in layers]
        open_to = [values[:cap] for values, cap in zip(ranked, caps, strict=True)]
        if not open_to:
            return []
        order = torch.sort(torch.cat(open_to), stable=True).indices[:k]
        owners = torch.repeat_interleave(torch.arange(len(caps)), torch.tensor(caps))
        return torch.bincount(owners[order], minlength=len(caps)).tolist()

    def _to_multiple(
        self, layer: CoupledLayer, sources: Mapping[str, ScoreSource], count: int
    ) -> int:
        """Return how many units go so that multiples stay."""
        alive = sources[layer.name].alive
        kept = alive - count
        return max(0, count - (-kept % layer.step(self.round_to)))
