"""What a pass says that it will do to a Program, and what is found to be otherwise."""

from __future__ import annotations

from dataclasses import dataclass

from fxprune.shrink_record import AxisMap

__all__ = ["EDITS", "Announced", "Fault"]

EDITS = ("masks", "folds", "unmasks", "adopts", "cuts", "constants", "anything")


@dataclass(frozen=True)
class Fault:
    """One thing that a pass did and did not say, or the other way round.

    Args:
        text: what is wrong.
        node: the node at which it shows; None where it is not in a graph.
    """

    text: str
    node: str | None = None

    def __str__(self) -> str:
        return self.text if self.node is None else f"node {self.node}: {self.text}"


@dataclass(frozen=True)
class Announced:
    """What a pass said it would do.

    Args:
        edits: "masks": give parameters masks, and change nothing else; "folds": multiply masks
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

    edits: str
    names: tuple[str, ...] = ()
    zeros: str = "keep"
    ordered: bool = True
    cuts: tuple[AxisMap, ...] = ()
    added: tuple[str, ...] = ()
    absorbed: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
