"""Cut dead channels out: fewer weights, the same function."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from fxprune.channels import Surgery, record_of_cut, train_notes
from fxprune.rewrite import Facts, Rewrite, Rewriter

from .channels import DeadChannels


@dataclass(frozen=True)
class CutChannels(Rewrite):
    """Cut the channels that were found dead."""

    name: ClassVar[str] = "shrink"
    effect: ClassVar[str] = "cuts"
    needs: ClassVar = (DeadChannels,)

    def run(self, rewriter: Rewriter, facts: Facts) -> None:
        """Cut them out of tensors and graphs, and keep a record of it."""
        channels = facts[DeadChannels]
        flows, removal = channels.flows, channels.removal
        record = record_of_cut(rewriter.program, channels.stored, flows, removal)
        surgery = Surgery(rewriter, removal)
        surgery.run(channels.stored, flows)
        rewriter.record_shrink(
            replace(
                record,
                round_to=channels.round_to,
                again=removal.again,
                added=tuple(surgery.added),
                absorbed=tuple(surgery.absorbed),
                notes=train_notes(flows, removal),
            )
        )
