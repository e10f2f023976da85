"""Score channels by their Ln norm (torch.nn.utils.prune.LnStructured)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fxprune.program import ParamSite, Program, parameters_of
from fxprune.ranking import ChannelScores, Peers, channel_norms, whole
from fxprune.rewrite import (
    Analysis,
    Facts,
    Importance,
    Scores,
    Selection,
    check_channels,
    living_channels,
    masked_value,
)


@dataclass(frozen=True)
class ScoreNorm(Analysis):
    """Score each channel of the selected parameters by its norm.

    The order `n` is a number, inf, -inf, "fro" or "nuc"; a channel is a slice along `dim`.
    """

    name: ClassVar[str] = "norm"
    needs: ClassVar = (Selection, Importance)
    gives: ClassVar = (Scores,)

    n: float | str = 2
    dim: int = -1

    def run(self, program: Program, facts: Facts) -> Scores:
        """Return a source for each parameter."""
        importance, peers = facts[Importance], facts.get(Peers)

        def source(site: ParamSite) -> ChannelScores:
            check_channels(site, self.dim)
            tensor = masked_value(program, site, importance)
            mask = parameters_of(program)[site.name].mask
            if peers is not None:  # norms of parts would round differently from those of the whole
                mask = None if mask is None else whole(peers, mask, f"{site.name}_mask")
                tensor = whole(peers, tensor, site.name)
            kept = None if mask is None else living_channels(mask, self.dim)
            return ChannelScores(channel_norms(tensor, self.n, self.dim, kept), kept)

        sources = {site.name: source(site) for site in facts[Selection].sites}
        return Scores(sources, dim=self.dim, keep_first=True)
