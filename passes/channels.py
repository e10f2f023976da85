"""Find the channels that can be cut: dead ones, whose cut changes nothing."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

import fxprune.channels.rules  # noqa: F401  # pyright: ignore[reportUnusedImport]
from fxprune.channels import Atoms, Flow, Removal, Sink, StoredValues, parts_of, removal_of
from fxprune.program import Aliases, Program
from fxprune.rewrite import Analysis, Facts


@dataclass(frozen=True)
class DeadChannels:
    """Which channels go, and why others stay; a flow a graph."""

    stored: StoredValues
    flows: tuple[Flow, ...]
    removal: Removal
    round_to: int = 1


@dataclass(frozen=True)
class FindChannels(Analysis):
    """Follow all channels through all graphs.

    What is left of an axis that loses channels is a multiple of `round_to`.
    """

    name: ClassVar[str] = "channels"
    gives: ClassVar = (DeadChannels,)

    round_to: int = 1

    def run(self, program: Program, facts: Facts) -> DeadChannels:
        """Return what can be cut."""
        atoms, stored, flows = follow_channels(program)
        _pin_differing(atoms, [sink for flow in flows for sink in flow.sinks])
        computed = [v for flow in flows for found in flow.values.values() for v in parts_of(found)]
        own = [value for _, value in stored]
        removal = removal_of(atoms, own, computed, round_to=self.round_to)
        return DeadChannels(stored, flows, removal, self.round_to)


def follow_channels(
    program: Program, kind: type[StoredValues] = StoredValues
) -> tuple[Atoms, StoredValues, tuple[Flow, ...]]:
    """Follow channels through all graphs of a Program, and pin those that something else reads.

    `kind` is what stored tensors are read as.
    """
    atoms = Atoms()
    aliases = {mode: Aliases(graph) for mode, graph in program.graphs.items()}
    stored = kind(program, atoms, aliases.values())
    flows = tuple(Flow(program, mode, atoms, stored, aliases[mode]) for mode in aliases)
    for flow in flows:
        flow.run()
    _pin_read_elsewhere(program, atoms, stored)
    return atoms, stored, flows


def _pin_read_elsewhere(program: Program, atoms: Atoms, stored: StoredValues) -> None:
    """Pin parameters that Python code, or a layer that stays a module, reads as well."""
    first = program.captured.first
    inside = {
        first[f"{node.target}.{name}"]
        for graph in program.graphs.values()
        for node in graph.nodes
        if node.op == "call_module"
        for name, _ in program.get_submodule(str(node.target)).named_parameters()
        if f"{node.target}.{name}" in first
    }
    for name, value in stored:
        reason = program.captured.refused.get(name)
        if reason is not None or name in inside:
            for factor in value.factors:
                atoms.pin(factor.atoms, reason or "a layer that stays a module reads it", None)


def _pin_differing(atoms: Atoms, sinks: Iterable[Sink]) -> None:
    """Pin constants that one bias cannot take over, as they differ between the modes."""
    seen: dict[str, Sink] = {}
    for sink in sinks:
        other = seen.setdefault(sink.key, sink)
        same = np.array_equal(sink.atoms, other.atoms) and np.array_equal(sink.const, other.const)
        if not same:
            for each in (sink, other):
                atoms.pin(each.atoms, "it is another constant in the other mode", each.node)
