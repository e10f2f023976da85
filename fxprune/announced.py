"""Declared effects of passes, and violations."""

from __future__ import annotations

from dataclasses import dataclass

from fxprune.shrink_record import AxisMap

__all__ = ["EFFECTS", "Effect", "Fault"]

EFFECTS = ("masks", "folds", "unmasks", "adopts", "cuts", "constants", "anything")


@dataclass(frozen=True)
class Fault:
    """A violation; `node` is where it shows, None where that is not in a graph."""

    text: str
    node: str | None = None

    def __str__(self) -> str:
        return self.text if self.node is None else f"node {self.node}: {self.text}"


@dataclass(frozen=True)
class Effect:
    """What a pass declares that it does to a Program.

    Args:
        kind: "masks": give parameters masks, and change nothing else; "folds": multiply masks
            into their parameters; "unmasks": drop masks; "adopts": take products that the graph
            has for masked parameters; "cuts": cut channels out of tensors, and tell the operators
            that count them; "constants": let constants stand for branches; "anything".
        names: the parameters concerned; empty for all that are masked (not for "masks").
        zeros: "clean": a fold leaves +0.0 wherever the mask is 0.
        ordered: whether parameters stand in the source's order afterwards.
        cuts: which channels stay, by tensor and axis.
        added: biases that are made to take over constants.
        absorbed: biases that take over constants.
        removed: tensors that nothing reads any more.
    """

    kind: str
    names: tuple[str, ...] = ()
    zeros: str = "keep"
    ordered: bool = True
    cuts: tuple[AxisMap, ...] = ()
    added: tuple[str, ...] = ()
    absorbed: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()

    @property
    def shrinks(self) -> bool:
        """Whether channels or branches go, so that constants may come."""
        return self.kind in ("cuts", "constants")
