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
    """What a Program knows beside its tensors and graphs.

    Args:
        inputs: names, shapes and dtypes of the arguments.
        outputs: how the outputs are nested, by mode.
        first: every parameter's name, aliases included, in the source's order, mapped to the
            first name of the same parameter.
        kind: the class name of the source.
        frozen: by mode, the training flags that the source's own `train(mode)` sets otherwise.
        deciders: the submodules whose training flags choose the graph, where there are two.
        records: what each pruning rule did.
        passes: what each pass that a recipe named did.
        shrinks: what each shrink did.
        notes: what a reader of the report must know, as where capture changes the source.
        refused: parameters, by first name, that no mask can stand for in the graphs, and why.
        replaced: (old, new) Parameter pairs of a fork, until it is committed.
    """

    inputs: InputSpec
    outputs: dict[str, Nesting]
    first: dict[str, str]
    kind: str
    frozen: dict[bool, dict[str, bool]]
    deciders: tuple[str, ...] = ()
    records: tuple[RuleRecord, ...] = ()
    passes: tuple[PassRecord, ...] = ()
    shrinks: tuple[ShrinkRecord, ...] = ()
    notes: tuple[str, ...] = ()
    refused: Mapping[str, str] = field(default_factory=dict[str, str])
    replaced: list[tuple[nn.Parameter, nn.Parameter]] = field(
        default_factory=list[tuple[nn.Parameter, nn.Parameter]]
    )

    def __deepcopy__(self, memo: dict[int, Any]) -> Captured:
        # All that it holds is replaced, never changed, but for the pairs of a fork.
        return replace(self, replaced=[])


class CapturedModule(nn.Module):
    """A module with what its capture noted: the base of Program, for code below it."""

    captured: Captured
