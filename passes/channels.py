"""Find the channels that can be cut: dead ones, whose cut changes nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from fxprune.atoms import Atoms
from fxprune.factors import Value
from fxprune.flow import Flow
from fxprune.passes import (  # noqa: F401 - their rules join the table
    flow_layers,
    flow_norms,
    flow_pointwise,
    flow_reduce,
    flow_shapes,
)
from fxprune.pipeline import Analysis, Facts
from fxprune.program import Program
from fxprune.removal import Removal, removal_of

__all__ = ["Channels", "FindChannels"]


@dataclass(frozen=True)
class Channels:
    """The channels of a Program.

    Args:
        stored: the tensors that graphs read, as channels see them, by attribute name.
        flows: one a graph.
        removal: which channels go, and why others stay.
    """

    stored: dict[str, Value]
    flows: tuple[Flow, ...]
    removal: Removal


@dataclass(frozen=True)
class FindChannels(Analysis):
    """Follow all channels through all graphs.

    Args:
        round_to: what is left of an axis that loses channels is a multiple of this.
    """

    name: ClassVar[str] = "channels"
    gives: ClassVar = (Channels,)

    round_to: int = 1

    def run(self, program: Program, facts: Facts) -> Channels:
        """Return what can be cut."""
        atoms, stored = Atoms(), dict[str, Value]()
        flows = tuple(Flow(program, graph, atoms, stored) for graph in program.graphs.values())
        for flow in flows:
            flow.run()
        values: list[Value] = list(stored.values())
        for flow in flows:
            values += [part for found in flow.values.values() for part in _parts(found)]
        return Channels(stored, flows, removal_of(atoms, values, round_to=self.round_to))


def _parts(found: Any) -> tuple[Value, ...]:
    return found if isinstance(found, tuple) else (found,)
