"""Find the channels that a rule prunes together, in layers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from torch.fx.node import Node

from fxprune.channels import (
    Bools,
    CoupledLayer,
    Coupling,
    Flow,
    Ids,
    StoredValues,
    UnitPlace,
    Value,
    places_of,
)
from fxprune.errors import PassError
from fxprune.program import Program, downstream, node_graph, parameter_read, parameters, source_line
from fxprune.rewrite import Analysis, Facts, Refusal, Selection

from .channels import follow_channels

_SHOWN = 5
_NONE: Ids = np.empty(0, np.int64)


@dataclass(frozen=True)
class CoupleChannels(Analysis):
    """Find the layers whose channels the selected parameters make.

    Every parameter that can be masked is read as zeros, so that what stays pinned stays for reasons
    of structure, not for what lives: an output, an operator without a rule, a norm. With
    `optional`, no layer at all is fine.
    """

    name: ClassVar[str] = "couple"
    needs: ClassVar = (Selection,)
    gives: ClassVar = (Coupling,)

    rule: str = ""
    optional: bool = False

    def run(self, program: Program, facts: Facts) -> Coupling:
        """Return the layers, with everything that their channels touch."""
        selected = [site.name for site in facts[Selection].sites]
        found = _Finder(program).coupling(selected)
        if not found.layers and not (self.optional or not selected):
            raise PassError(self._nothing(found))
        return found

    def _nothing(self, found: Coupling) -> str:
        shown = [f"{name}: {refusal}" for name, refusal in found.refused[:_SHOWN]]
        if len(found.refused) > _SHOWN:
            shown.append(f"... and {len(found.refused) - _SHOWN} more")
        text = f"rule {self.rule!r} selects no channels that can be cut together"
        return "\n  ".join([f"{text}; change what it selects, or say optional = true", *shown])


class _Zeroed(StoredValues):
    """Stored tensors of which all that can be masked reads as zeros."""

    def _find(self, node: Node) -> Any:
        found = super()._find(node)
        if node.op != "get_attr" or found is None:
            return found
        name = parameter_read(self._program, node)
        if name is None or name in self._program.captured.refused:
            return found
        return found.new_zeros(()).expand(found.shape)


class _Finder:
    """Partitions the channels of one Program into units and layers."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.atoms, stored, self.flows = follow_channels(program, _Zeroed)
        self.labels = self.atoms.components()
        self._marks = np.zeros(self.atoms.count, dtype=np.bool_)  # clear between any two questions
        values = dict(stored)
        self.places = {
            name: list(places_of(values[name]))
            for name in parameters.aliases(program)
            if name in values
        }
        # Of each component: the number of the first pin that holds it, or how many pins there are.
        self.pinned = np.full(self.atoms.count, len(self.atoms.pins))
        for at in reversed(range(len(self.atoms.pins))):
            self.pinned[self.labels[self.atoms.pins[at].atoms]] = at
        self.free = self.pinned == len(self.atoms.pins)
        self.made = self._channels_made()

    def coupling(self, selected: Sequence[str]) -> Coupling:
        """Return the layers all of whose makers are selected."""
        chosen = set(selected)
        taken = [(makers, roots) for makers, roots in self._layers() if chosen.issuperset(makers)]
        unit_of = np.full(self.atoms.count, -1, dtype=np.int64)
        counts = np.cumsum([0, *(len(roots) for _, roots in taken)])
        for (_, roots), start, stop in zip(taken, counts[:-1], counts[1:], strict=True):
            unit_of[roots] = np.arange(start, stop)
        places = tuple(self._places_of_units(unit_of))
        widths = _widths(places, counts)
        layers: list[CoupledLayer] = []
        named = Counter[str]()
        for at, (makers, roots) in enumerate(taken):
            first = makers[0]
            named[first] += 1
            name = first if named[first] == 1 else f"{first}:{named[first]}"
            layers.append(CoupledLayer(name, makers, int(counts[at]), len(roots), widths[at]))
        return Coupling(tuple(layers), places, tuple(self._refusals(selected, unit_of, places)))

    def _channels_made(self) -> dict[str, Ids]:
        """Return the channels that each parameter makes: they leave an operator that it enters.

        A parameter that meets channels which are there already, as that of a norm does, makes none;
        nor does a table of which entries are read first, as of position biases, where others do.
        Channels that only ever meet themselves, as a hidden state, are made where they are met.
        """
        ranked: tuple[dict[str, list[Ids]], ...] = ({}, {}, {})
        leaves = np.zeros(self.atoms.count, dtype=np.bool_)
        for flow in self.flows:
            given = _computed_of_inputs(flow)
            for node, found in flow.values.items():
                if node.op == "call_function" and not flow.stored.is_stored(node):
                    out = self._components_of(found if isinstance(found, tuple) else (found,))
                    leaves[out] = True
                    for name, roots, met in self._channels_made_at(flow, node, leaves):
                        ranked[0 if node in given else 1].setdefault(name, []).append(roots)
                        ranked[2].setdefault(name, []).append(met)
                    leaves[out] = False
        return _made_first(ranked, self.atoms.count)

    def _channels_made_at(
        self, flow: Flow, node: Node, leaves: Bools
    ) -> Iterator[tuple[str, Ids, Ids]]:
        """Yield, for each parameter, what leaves that did not enter, and what entered, too."""
        given = [n for n in node.all_input_nodes if isinstance(flow.values.get(n), Value)]
        own = [(n, name) for n in given if (name := self._parameter(flow, n)) is not None]
        stored = {n for n, _ in own}
        entered = self._components_of(
            [flow.value(n) for n in given if n not in stored] if own else []
        )
        for read, name in own:
            if parameters.parameter(self.program, name).dim() > 1:
                roots = self._components_of([flow.value(read)])
                roots = roots[leaves[roots]]
                there = self._among(roots, entered)
                yield name, roots[~there], roots[there]

    def _parameter(self, flow: Flow, node: Node) -> str | None:
        """Return the parameter that a node reads, through its mask and views perhaps."""
        return None if flow.concrete(node) is None else _parameter_behind(self.program, node)

    def _components_of(self, values: Sequence[Value]) -> Ids:
        """Return the components of all channels of some values."""
        parts = [f.atoms for value in values for f in value.factors if f.atoms is not None]
        return self.labels[np.concatenate(parts)] if parts else _NONE

    def _among(self, roots: Ids, others: Ids) -> Bools:
        """Tell of each component whether it is among others."""
        self._marks[others] = True
        found = self._marks[roots]
        self._marks[others] = False
        return found

    def _kinds(self) -> Ids:
        """Return a number for each component: equal where they lie in the same dimensions."""
        kinds = np.zeros(self.atoms.count, dtype=np.int64)
        last = 0
        for places in self.places.values():
            for _, ids in places:
                roots = _distinct(self.labels[ids])
                old, index = np.unique(kinds[roots], return_inverse=True)
                kinds[roots] = last + 1 + index
                last += len(old)
        return kinds

    def _layers(self) -> Iterator[tuple[tuple[str, ...], Ids]]:
        """Yield (makers, components) of each layer that can be cut, in parameter order."""
        kinds = self._kinds()
        makers: dict[int, list[str]] = {}
        for name, roots in self.made.items():
            for kind in _distinct(kinds[roots]).tolist():
                makers.setdefault(kind, []).append(name)
        for name, places in self.places.items():
            for _, ids in places if name in self.made else ():
                roots = self.labels[ids]
                roots = roots[np.sort(np.unique(roots, return_index=True)[1])]  # as they occur
                roots = roots[self._among(roots, self.made[name]) & self.free[roots]]
                for kind in dict.fromkeys(kinds[roots].tolist()):
                    if kind in makers:  # each once
                        yield tuple(makers.pop(kind)), roots[kinds[roots] == kind]

    def _places_of_units(self, unit_of: Ids) -> Iterator[UnitPlace]:
        for name, places in self.places.items():
            shape = parameters.parameter(self.program, name).shape
            for dim, ids in places:
                units = unit_of[self.labels[ids]]
                if (units >= 0).any():
                    yield UnitPlace(name, dim, units, shape.numel() // shape[dim])

    # Why others stay

    def _refusals(
        self, selected: Sequence[str], unit_of: Ids, places: Sequence[UnitPlace]
    ) -> Iterator[tuple[str, Refusal]]:
        touched, chosen = {place.parameter for place in places}, set(selected)
        for name in selected:
            made = self.made.get(name)
            taken = name in touched if made is None else bool((unit_of[made] >= 0).any())
            if not taken:
                yield name, self._reason(name, chosen)

    def _reason(self, name: str, chosen: set[str]) -> Refusal:
        own = self.made.get(name)
        if own is None:
            there = [ids for _, ids in self.places.get(name, ())]
            stay = self._stay(self.labels[np.concatenate(there)]) if there else None
            return stay or Refusal("it makes no channels of its own", None)
        if not self.free[own].any() and (stay := self._stay(own)):
            return stay
        rest = {n: made for n, made in self.made.items() if n not in chosen}
        others = [n for n, made in rest.items() if self._among(own, made).any()]
        return Refusal(
            f"its channels are also those of {parameters.quote(others)}; select all of them", None
        )

    def _stay(self, roots: Ids) -> Refusal | None:
        """Return why some components stay; None where none of them is pinned."""
        at = int(self.pinned[roots].min(initial=len(self.atoms.pins)))
        if at == len(self.atoms.pins):
            return None
        pin = self.atoms.pins[at]
        line = source_line(pin.node)
        where = f" ({line})" if line else ""
        return Refusal(f"its channels stay: {pin.reason}{where}", pin.node)


def _made_first(ranked: Sequence[Mapping[str, Sequence[Ids]]], count: int) -> dict[str, Ids]:
    """Return which of `count` components parameters make; the first way to make one counts."""
    made: dict[str, Ids] = {}
    known = np.zeros(count, dtype=np.bool_)
    for found in ranked:
        joined = {name: _distinct(np.concatenate(parts)) for name, parts in found.items()}
        for name, roots in joined.items():
            if not known[roots].all():
                made[name] = np.union1d(made.get(name, _NONE), roots[~known[roots]])
        for roots in joined.values():
            known[roots] = True
    return made


def _distinct(ids: Ids) -> Ids:
    """Return each number once, in ascending order, as np.unique does in three times the time."""
    ordered = np.sort(ids)
    first = np.ones(len(ordered), dtype=np.bool_)
    np.not_equal(ordered[1:], ordered[:-1], out=first[1:])
    return ordered[first]


def _computed_of_inputs(flow: Flow) -> set[Node]:
    """Return the nodes whose tensors are computed of the inputs."""
    inputs = flow.graph.find_nodes(op="placeholder")
    return downstream(node_graph([*inputs, *flow.values]), inputs)


def _widths(places: Sequence[UnitPlace], counts: Ids) -> list[tuple[int, ...]]:
    """Return how many channels a unit of each layer has, along each dimension that it lies in."""
    found: list[set[int]] = [set() for _ in counts[1:]]
    for place in places:
        units = place.units[place.units >= 0]
        layer = np.searchsorted(counts, units, side="right") - 1
        for at, channels in zip(*np.unique(layer, return_counts=True), strict=True):
            found[at].add(int(channels) // int(counts[at + 1] - counts[at]))
    return [tuple(sorted(widths)) for widths in found]


def _parameter_behind(program: Program, node: Node) -> str | None:
    """Return the parameter that a node reads, through its mask and views perhaps."""
    name = parameter_read(program, node)
    if name is not None or node.op == "get_attr":
        return name
    found = (_parameter_behind(program, read) for read in node.all_input_nodes)
    return next((n for n in found if n is not None), None)
