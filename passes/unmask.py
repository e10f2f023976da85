"""Drop masks: the original weights act again."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from fxprune.facts import RuleRecord
from fxprune.pipeline import Facts, Rewrite
from fxprune.rewriter import Rewriter

from .finalize import fold_mask, masked_names

__all__ = ["UnmaskParameters"]


@dataclass(frozen=True)
class UnmaskParameters(Rewrite):
    """Drop masks; the parameters are what they were, or what training made of them.

    Args:
        names: the parameters; all masked ones when empty.
    """

    name: ClassVar[str] = "unmask"
    effect: ClassVar[str] = "unmasks"

    names: tuple[str, ...] = ()

    def run(self, rewriter: Rewriter, facts: Facts) -> None:
        """Drop the masks, and what the records say of these parameters.

        Raises:
            NotPrunedError: a named parameter has no mask.
        """
        program = rewriter.program
        names = masked_names(program, self.names)
        for name in names:
            rewriter.drop_mask(name)
        program.captured.records = tuple(_without(r, names) for r in program.captured.records)
        rewriter.apply([fold_mask])
        rewriter.restore_order()


def _without(record: RuleRecord, names: tuple[str, ...]) -> RuleRecord:
    kept = tuple(p for p in record.parameters if p.name not in names)
    return replace(record, parameters=kept)
