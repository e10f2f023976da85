"""The passes of this distribution by name; the entry point `fxprune.passes` leads here."""

from __future__ import annotations

PASSES: dict[str, str] = {
    "adopt": "fxprune.passes.adopt:AdoptMasks",
    "channels": "fxprune.passes.channels:FindChannels",
    "check": "fxprune.passes.check:CheckScores",
    "couple": "fxprune.passes.couple:CoupleChannels",
    "cut": "fxprune.passes.cut:CutUnits",
    "cut_coupled": "fxprune.passes.cut:CutCoupled",
    "finalize": "fxprune.passes.fold_masks:FoldMasks",
    "fold-branches": "fxprune.passes.fold_branches:FoldBranches",
    "given": "fxprune.passes.given:TakeMasks",
    "magnitude": "fxprune.passes.magnitude:ScoreMagnitude",
    "mask": "fxprune.passes.mask:InsertMasks",
    "method": "fxprune.passes.method:ComputeMasks",
    "norm": "fxprune.passes.norm:ScoreNorm",
    "random": "fxprune.passes.random:ScoreRandom",
    "rank": "fxprune.passes.rank:Rank",
    "rank_units": "fxprune.passes.rank:RankUnits",
    "select": "fxprune.passes.select:SelectParameters",
    "shrink": "fxprune.passes.cut_channels:CutChannels",
    "unit_mean": "fxprune.passes.unit_scores:ScoreUnitMean",
    "unit_norm": "fxprune.passes.unit_scores:ScoreUnitNorm",
    "unit_random": "fxprune.passes.unit_scores:ScoreUnitRandom",
    "unmask": "fxprune.passes.fold_masks:UnmaskParameters",
}
