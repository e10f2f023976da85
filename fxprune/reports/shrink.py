"""What shrinks did, for people and as JSON: sizes, costs, widths, and what stayed and why."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from fxprune.channels import Latency
from fxprune.program import AxisMap, Program, ShrinkRecord, parameters, raw_parameter
from fxprune.recipe import Reading, readers_of
from fxprune.words import plain_table

_HEADER = ("layer", "shape", "becomes", "FLOPs", "become")
_RIGHT = frozenset({"FLOPs", "become"})
_SHOWN = 12


@dataclass(frozen=True)
class LayerWidths:
    """A parameter that a shrink cut."""

    name: str
    before: tuple[int, ...]  # its shape
    after: tuple[int, ...]
    flops_before: int | None = None  # of the nodes that read it; None where they are not counted
    flops_after: int | None = None


@dataclass(frozen=True)
class ShrinkReport:
    """What one shrink did to a Program; `print` it, or take it as data."""

    record: ShrinkRecord
    layers: tuple[LayerWidths, ...]
    latency: tuple[Latency, ...] = ()

    def to_data(self) -> dict[str, Any]:
        """Return it as JSON can hold it."""
        return {
            **asdict(self.record),
            "layers": [asdict(layer) for layer in self.layers],
            "latency": [asdict(each) for each in self.latency],
        }

    def __str__(self) -> str:
        return "\n".join([*self._totals(), *self._widths(), *self._stays()])

    def _totals(self) -> Iterator[str]:
        before, after = self.record.before, self.record.after
        if before is None or after is None:
            return
        for what in ("parameters", "flops", "activations"):
            old, new = getattr(before, what), getattr(after, what)
            name = "FLOPs of one example" if what == "flops" else what
            share = f" ({new / old:.1%})" if old else ""
            yield f"{name}: {old:,} -> {new:,}{share}"
        yield from (f"latency, {each}" for each in self.latency)

    def _widths(self) -> Iterator[str]:
        if not self.layers:
            yield "nothing could be cut"
            return
        rows = [
            (
                layer.name,
                _shape(layer.before),
                _shape(layer.after),
                "" if layer.flops_before is None else f"{layer.flops_before:,}",
                "" if layer.flops_after is None else f"{layer.flops_after:,}",
            )
            for layer in self.layers
            if len(layer.before) > 1
        ]
        yield plain_table(_HEADER, rows, _RIGHT)

    def _stays(self) -> Iterator[str]:
        """Yield why channels stayed, each reason once, those of most channels first."""
        reasons: dict[str, tuple[int, list[str]]] = {}
        for stay in self.record.stays:
            if stay.axis > 1:  # the size of a kernel
                continue
            place = ", ".join(filter(None, (stay.node, stay.line)))
            reason = f"{stay.reason} ({place})" if place else stay.reason
            count, names = reasons.get(reason, (0, []))
            reasons[reason] = (count + stay.count, [*names, stay.tensor])
        ordered = sorted(reasons.items(), key=lambda item: -item[1][0])
        for reason, (count, names) in ordered[:_SHOWN]:
            shown = parameters.quote(list(dict.fromkeys(names)))
            channels = "channel" if count == 1 else "channels"
            yield f"stays: {count:,} {channels} of {shown}: {reason}"
        if len(ordered) > _SHOWN:
            yield f"stays: {len(ordered) - _SHOWN} more reasons are in the JSON"
        yield from (f"not followed: {blocked}" for blocked in self.record.blocked)
        yield from (f"bias added: {name}" for name in self.record.added)
        yield from (f"note: {note}" for note in self.record.notes)
        if self.record.checked:
            yield f"checked: {self.record.checked}"


def _shape(sizes: tuple[int, ...]) -> str:
    return "x".join(map(str, sizes)) or "scalar"


def shrink_reports(program: Program, latency: tuple[Latency, ...] = ()) -> tuple[ShrinkReport, ...]:
    """Return a report for each shrink of a Program, oldest first; `latency` is of the last one."""
    reports: list[ShrinkReport] = []
    shapes = {name: _shape_of(program, name) for name in parameters.aliases(program)}
    readers = readers_of(program)
    for record in reversed(program.captured.shrinks):
        before = {**shapes, **dict(_shapes_before(record, shapes))}
        layers = tuple(
            _layer(name, before[name], shapes[name], record, readers)
            for name in shapes
            if before[name] != shapes[name]
        )
        reports.append(ShrinkReport(record, layers, () if reports else latency))
        shapes = before
    return tuple(reversed(reports))


def _shape_of(program: Program, name: str) -> tuple[int, ...]:
    parameter = raw_parameter(*parameters.owner(program, name))
    return () if parameter is None else tuple(parameter.shape)


def _shapes_before(
    record: ShrinkRecord, shapes: Mapping[str, tuple[int, ...]]
) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield the shape of each parameter before a shrink."""
    cut: dict[str, list[AxisMap]] = {}
    for found in record.maps:
        cut.setdefault(found.tensor, []).append(found)
    for name, maps in cut.items():
        if name in shapes and len(shapes[name]) > max(found.axis for found in maps):
            sizes = list(shapes[name])
            for found in maps:
                sizes[found.axis] = found.before
            yield name, tuple(sizes)


def _layer(
    name: str,
    before: tuple[int, ...],
    after: tuple[int, ...],
    record: ShrinkRecord,
    readers: Mapping[str, list[Reading]],
) -> LayerWidths:
    nodes = [reading.user.name for reading in readers.get(name, [])]
    costs = [
        None
        if footprint is None
        else [footprint.layers[node] for node in nodes if node in footprint.layers]
        for footprint in (record.before, record.after)
    ]
    flops = [sum(found) if found else None for found in costs]
    return LayerWidths(name, before, after, *flops)
