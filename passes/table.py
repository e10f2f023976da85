"""The passes of this distribution by name; the entry point `fxprune.passes` leads here."""

from __future__ import annotations

__all__ = ["PASSES"]

PASSES: dict[str, str] = {
    "adopt": "fxprune.passes.adopt:AdoptMasks",
    "channels": "fxprune.passes.channels:FindChannels",
    "check": "fxprune.passes.check:CheckScores",
    "couple": "fxprune.passes.couple:CoupleChannels",
    "cut": "fxprune.passes.cut:CutUnits",
    "cut_coupled": "fxprune.passes.cut_coupled:CutCoupled",
    "finalize": "fxprune.passes.finalize:FoldMasks",
    "fold-branches": "fxprune.passes.fold_branches:FoldBranches",
    "given": "fxprune.passes.given:TakeMasks",
    "magnitude": "fxprune.passes.magnitude:ScoreMagnitude",
    "mask": "fxprune.passes.mask:InsertMasks",
    "method": "fxprune.passes.method:ComputeMasks",
    "norm": "fxprune.passes.norm:ScoreNorm",
    "random": "fxprune.passes.random:ScoreRandom",
    "rank": "fxprune.passes.rank:Rank",
    "rank_units": "fxprune.passes.rank_units:RankUnits",
    "select": "fxprune.passes.select:SelectParameters",
    "shrink": "fxprune.passes.shrink:CutChannels",
    "unit_mean": "fxprune.passes.unit_mean:ScoreUnitMean",
    "unit_norm": "fxprune.passes.unit_norm:ScoreUnitNorm",
    "unit_random": "fxprune.passes.unit_random:ScoreUnitRandom",
    "unmask": "fxprune.passes.unmask:UnmaskParameters",
}
