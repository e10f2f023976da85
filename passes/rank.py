"""Rank scores: which units go, in each parameter alone or over all of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fxprune.facts import Cut, Ranking, Scores
from fxprune.peers import Peers
from fxprune.pipeline import Analysis, Facts
from fxprune.program import Program
from fxprune.ranking import check_amount, count_of, counting, cut_group
from fxprune.ranks import rank_over

__all__ = ["Rank"]


@dataclass(frozen=True)
class Rank(Analysis):
    """Find the cut that prunes the smallest scores.

    Args:
        amount: share of the living units (float) or count (int).
        scope: "local": of each parameter; "global": of all parameters together.
        ties: "index" or "torch", see `fxprune.facts.Ranking`.
    """

    name: ClassVar[str] = "rank"
    needs: ClassVar = (Scores,)
    gives: ClassVar = (Ranking,)

    amount: float | int
    scope: str = "local"
    ties: str = "index"

    def run(self, program: Program, facts: Facts) -> Ranking:
        """Return a cut for each parameter.

        Raises:
            AmountError: the amount is out of range, or more than is alive.
        """
        check_amount(self.amount)
        scores = facts[Scores]
        what = "entries" if scores.dim is None else "channels"
        groups = [(name,) for name in scores.sources]
        if self.scope == "global" and groups:
            groups = [tuple(scores.sources)]
        peers = facts.get(Peers)
        if peers is not None:
            return rank_over(peers, program, scores, groups, self.amount, self.ties)
        all_ties = scores.prune_all_ties and self.ties == "torch"
        cuts: dict[str, Cut] = {}
        for group in groups:
            sources = {name: scores.sources[name] for name in group}
            alive = sum(source.alive for source in sources.values())
            with counting(group):
                k = count_of(self.amount, alive, what)
            cuts |= cut_group(sources, k, all_ties=all_ties)
        return Ranking(cuts, tuple(groups), self.ties)
