"""A pass that fails on purpose, after some of its edits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from fxprune.pipeline import Facts, Rewrite
from fxprune.rewriter import Rewriter

__all__ = ["Failing", "PlannedError"]


class PlannedError(Exception):
    """The failure that was planned."""


@dataclass(frozen=True)
class Failing(Rewrite):
    """Another pass, which fails just after an edit.

    Args:
        step: the pass.
        at: the number of the edit, from 1.
        given: facts that the pass needs.
    """

    name: ClassVar[str] = "failing"

    step: Rewrite
    at: int
    given: Facts

    def run(self, rewriter: Rewriter, facts: Facts) -> None:
        """Run the pass until it fails."""
        count = rewriter._count

        def counted(*args: Any) -> None:
            count(*args)
            if rewriter.edits >= self.at:
                raise PlannedError(f"after edit {self.at}")

        rewriter._count = counted
        self.step.run(rewriter, self.given)
