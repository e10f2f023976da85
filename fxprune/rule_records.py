"""What rules and passes did, kept for the report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fxprune.coupling import LayerRecord

__all__ = ["ParamRecord", "PassRecord", "RuleRecord"]


@dataclass(frozen=True)
class ParamRecord:
    """What one rule did to one parameter.

    Args:
        name: the parameter's first name.
        units: how many units it had: entries, or channels.
        alive: how many of these were alive before.
        pruned: how many of these the rule pruned; None where a given mask decided.
        threshold: the largest pruned score.
        tied: how many units were at the threshold.
        quota: how many of these went.
    """

    name: str
    units: int | None = None
    alive: int | None = None
    pruned: int | None = None
    threshold: float | None = None
    tied: int = 0
    quota: int = 0


@dataclass(frozen=True)
class RuleRecord:
    """What one rule did, kept for the report.

    Args:
        rule: the rule's name.
        method: its method, in the words of the recipe.
        amount: share or count, as asked.
        scope: "local" or "global".
        parameters: one record a parameter.
        refused: (parameter, reason) of what the rule did not select.
        seconds: wall time by pass.
        edits: how many edits the Rewriter counted.
        layers: of a rule over coupled channels, one record a layer.
    """

    rule: str
    method: str
    amount: float | int | None
    scope: str
    parameters: tuple[ParamRecord, ...]
    refused: tuple[tuple[str, str], ...]
    seconds: Mapping[str, float]
    edits: int
    layers: tuple[LayerRecord, ...] = ()


@dataclass(frozen=True)
class PassRecord:
    """What a pass that a recipe named did, kept for the report.

    Args:
        name: the pass's name.
        args: its options, as the recipe gave them.
        promise: "same": outputs were checked to be equal bit for bit; "changes".
        edits: how many edits the Rewriter counted.
        refused: what its rules refused, with the node that was in the way.
        seconds: wall time.
    """

    name: str
    args: Mapping[str, Any]
    promise: str
    edits: int
    refused: tuple[str, ...]
    seconds: float
