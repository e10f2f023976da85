"""Rank scores: which units go, in each parameter alone or over all of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fxprune.facts import Ranking, Scores
from fxprune.peers import Peers
from fxprune.pipeline import Analysis, Facts
from fxprune.program import Program
from fxprune.ranking import rank_scores
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
        scores, peers = facts[Scores], facts.get(Peers)
        if peers is not None:
            return rank_over(peers, program, scores, self.amount, self.scope, self.ties)
        return rank_scores(scores, self.amount, self.scope, self.ties)
