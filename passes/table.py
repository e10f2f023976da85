"""The passes of this distribution by name; the entry point `fxprune.passes` leads here."""

from __future__ import annotations

__all__ = ["PASSES"]

PASSES: dict[str, str] = {
    "adopt": "fxprune.passes.adopt:AdoptMasks",
    "channels": "fxprune.passes.channels:FindChannels",
    "check": "fxprune.passes.check:CheckScores",
    "cut": "fxprune.passes.cut:CutUnits",
    "finalize": "fxprune.passes.finalize:FoldMasks",
    "given": "fxprune.passes.given:TakeMasks",
    "magnitude": "fxprune.passes.magnitude:ScoreMagnitude",
    "mask": "fxprune.passes.mask:InsertMasks",
    "method": "fxprune.passes.method:ComputeMasks",
    "norm": "fxprune.passes.norm:ScoreNorm",
    "random": "fxprune.passes.random:ScoreRandom",
    "rank": "fxprune.passes.rank:Rank",
    "select": "fxprune.passes.select:SelectParameters",
    "shrink": "fxprune.passes.shrink:CutChannels",
    "unmask": "fxprune.passes.unmask:UnmaskParameters",
}
