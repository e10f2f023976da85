"""Cut dead channels out: fewer weights, the same function."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fxprune.passes.channels import Channels
from fxprune.pipeline import Facts, Rewrite
from fxprune.rewriter import Rewriter
from fxprune.surgery import Surgery

__all__ = ["CutChannels"]


@dataclass(frozen=True)
class CutChannels(Rewrite):
    """Cut the channels that were found dead."""

    name: ClassVar[str] = "shrink"
    needs: ClassVar = (Channels,)

    def run(self, rewriter: Rewriter, facts: Facts) -> None:
        """Cut them out of tensors and graphs."""
        channels = facts[Channels]
        Surgery(rewriter, channels.removal).run(channels.stored, channels.flows)
