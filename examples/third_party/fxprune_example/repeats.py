"""A pass: an operator that changes nothing the second time is done once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch.fx.node import Node

from fxprune.rewrite import (
    Facts,
    PassError,
    Refusal,
    Rewrite,
    Rewriter,
    RewriteRule,
    canonical_name,
    rule,
)


def _rule_for(op: str) -> RewriteRule:
    @rule(f"{op}(y)", name=f"drop-repeated-{op}")
    def drop_repeat(rw: Rewriter, node: Node, y: Any) -> Node | Refusal:
        """Read y where it was read through the same operator again."""
        if not isinstance(y, Node) or canonical_name(y.target) != op:
            return Refusal(f"what it reads is no {op}", node)
        rw.replace_uses(node, y)
        rw.erase(node)
        return y

    return drop_repeat


RULES = {op: _rule_for(op) for op in ("abs", "ceil", "floor", "relu")}


@dataclass(frozen=True)
class DropRepeats(Rewrite):
    """Do an operator once where it is done twice in a row, as in relu(relu(x)).

    Args:
        ops: the operators to look for.
    """

    name: ClassVar[str] = "drop-repeats"
    promise: ClassVar[str] = "same"

    ops: Sequence[str] = tuple(RULES)

    def __post_init__(self) -> None:
        """Check the option, so that a recipe is refused when it is read.

        Raises:
            PassError: an operator is not known to change nothing the second time.
        """
        odd = [op for op in self.ops if op not in RULES]
        if odd:
            raise PassError(f"drop-repeats: {odd[0]!r} is unknown; there are {', '.join(RULES)}")

    def run(self, rewriter: Rewriter, facts: Facts) -> None:
        """Drop the repeats in every graph."""
        rewriter.apply([RULES[op] for op in self.ops])
