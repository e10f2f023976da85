"""What a Program knows beside its tensors and graphs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from fxprune.program.inputs import InputSpec, Nesting
from fxprune.program.records import PassRecord, RuleRecord, ShrinkRecord


@dataclass
class Captured:
    """What a Program knows beside its tensors and graphs."""

    inputs: InputSpec
    outputs: dict[str, Nesting]  # how the outputs are nested, by mode
    # The first name of each parameter, by any of its names, in the source's order.
    first: dict[str, str]
    kind: str  # the class name of the source
    # By mode, the training flags that the source's own `train(mode)` sets otherwise.
    frozen: dict[bool, dict[str, bool]]
    deciders: tuple[str, ...] = ()  # submodules whose training flags choose the graph
    records: tuple[RuleRecord, ...] = ()
    passes: tuple[PassRecord, ...] = ()
    shrinks: tuple[ShrinkRecord, ...] = ()
    notes: tuple[str, ...] = ()  # what a reader of the report must know
    # Why no mask can stand for a parameter in the graphs, by its first name.
    refused: Mapping[str, str] = field(default_factory=dict[str, str])
    # (old, new) Parameters of a fork, until it is committed.
    replaced: list[tuple[nn.Parameter, nn.Parameter]] = field(
        default_factory=list[tuple[nn.Parameter, nn.Parameter]]
    )

    def __deepcopy__(self, memo: dict[int, Any]) -> Captured:
        # All that it holds is replaced, never changed, but for the pairs of a fork.
        return replace(self, replaced=[])


class CapturedModule(nn.Module):
    """A module with what its capture noted: the base of Program, for code below it."""

    captured: Captured
