"""The cut itself: tensors lose channels, arguments that count them change, and a record says it."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch.fx.node import Node

from fxprune.channels.atoms import KERNEL
from fxprune.channels.flow import Flow
from fxprune.channels.meeting import Sink
from fxprune.channels.removal import Removal
from fxprune.channels.values import Axis, Factor, Ids, Value, axis_size
from fxprune.program import (
    VALUE,
    AxisMap,
    Blocked,
    Program,
    ShrinkRecord,
    Stay,
    ops,
    parameters,
    source_line,
)
from fxprune.rewrite import Rewriter

_SELECT = torch.ops.aten.index_select.default


class Surgery:
    """Cuts channels out of one Program by the edits of a Rewriter."""

    def __init__(self, rewriter: Rewriter, removal: Removal) -> None:
        self.rewriter, self.removal = rewriter, removal
        self.absorbed: dict[str, None] = {}  # names of biases that took over constants
        self.added: dict[str, None] = {}  # those of them that were made for it

    def run(self, stored: Iterable[tuple[str, Value]], flows: Iterable[Flow]) -> None:
        """Change the graphs' arguments, then the tensors that they read."""
        if not self.removal.gone.any():
            return
        for flow in flows:
            for node, value in flow.values.items():
                if isinstance(value, Value):
                    self._note_shape(node, value)
            for edit in flow.edits:
                edit(self)
        for name, value in stored:
            self._cut_tensor(name, value)

    # Sizes

    def size(self, axis: Axis) -> int:
        """Return an axis's size after the cut."""
        return math.prod(self._count(factor) for factor in axis)

    def is_cut(self, axis: Axis) -> bool:
        """Tell whether an axis loses channels."""
        return any(self.removal.touches(factor.atoms) for factor in axis)

    def index(self, axis: Axis) -> torch.Tensor:
        """Return the indices of an axis that stay."""
        kept = np.ones([factor.size for factor in axis], dtype=np.bool_)
        for at, factor in enumerate(axis):
            if factor.atoms is not None:
                shape = [1] * len(axis)
                shape[at] = -1
                kept &= self.removal.kept(factor.atoms).reshape(shape)
        return torch.from_numpy(np.flatnonzero(kept))

    def _count(self, factor: Factor) -> int:
        return factor.size if factor.atoms is None else int(self.removal.kept(factor.atoms).sum())

    def _ratio(self, axis: Axis) -> tuple[int, int]:
        """Return by which counts an axis's size is to be divided and multiplied."""
        tracked = [factor for factor in axis if factor.atoms is not None]
        return math.prod(f.size for f in tracked), math.prod(map(self._count, tracked))

    def _cut_tensor(self, name: str, value: Value) -> None:
        dims = [dim for dim, axis in enumerate(value.axes) if self.is_cut(axis)]
        if not dims:
            return
        tensor = self.rewriter.stored(name).detach()
        for dim in dims:
            tensor = tensor.index_select(dim, self.index(value.axes[dim]).to(tensor.device))
        self.rewriter.resize(name, tensor)

    def _note_shape(self, node: Node, value: Value) -> None:
        noted = node.meta.get(VALUE)
        if noted is None or len(noted[0]) != len(value.axes):
            return
        cut = [self.is_cut(axis) for axis in value.axes]
        if any(cut):
            triples = zip(noted[0], value.axes, cut, strict=True)
            sizes = tuple(self._noted_size(size, axis) if c else size for size, axis, c in triples)
            self.rewriter.note(node, VALUE, (sizes, noted[1]))

    def _noted_size(self, size: int | str, axis: Axis) -> int | str:
        """Return the noted size of an axis after the cut; symbols stay symbols."""
        if isinstance(size, int):
            return self.size(axis)
        parts = [part.strip() for part in size.split("*")]
        before, after = self._ratio(axis)
        count = math.prod(int(part) for part in parts if part.isdigit()) // before * after
        symbols = [part for part in parts if not part.isdigit()]
        return "*".join([*symbols, *([str(count)] if count != 1 else [])])

    # What transfer rules ask for

    def set_role(self, node: Node, role: str, value: Any) -> None:
        """Change an argument, by its role."""
        names = [argument.name for argument in ops.schema_arguments(node.target)]
        if names.index(role) < len(node.args):
            self.rewriter.set_argument(node, names.index(role), value)
        else:
            self.rewriter.set_keyword(node, role, value)

    def set_count(self, node: Node, role: str, atoms: Ids | None) -> None:
        """Give an operator the number of atoms that are left."""
        if atoms is not None and self.removal.touches(atoms):
            self.set_role(node, role, int(self.removal.kept(atoms).sum()))

    def set_sizes(self, node: Node, role: str, axes: Iterable[Axis]) -> None:
        """Change the sizes that an argument names of axes of the result, as a view's."""
        given = list(ops.argument(node, role))
        changed = [
            self._size_argument(node, size, axis) if self.is_cut(axis) else size
            for size, axis in zip(given, axes, strict=True)
        ]
        if changed != given:
            self.set_role(node, role, changed)

    def _size_argument(self, node: Node, size: Any, axis: Axis) -> Any:
        if isinstance(size, int):
            return size if size < 0 else self.size(axis)
        before, after = self._ratio(axis)
        each = self.rewriter.call(operator.floordiv, (size, before), before=node)
        return self.rewriter.call(operator.mul, (each, after), before=node)

    def set_entry(self, node: Node, role: str, at: int, axis: Axis) -> None:
        """Change one entry of an argument that is a list of counts."""
        if self.is_cut(axis):
            given = list(ops.argument(node, role))
            self.set_role(node, role, [*given[:at], self.size(axis), *given[at + 1 :]])

    def set_size(self, node: Node, role: str, axis: Axis) -> None:
        """Give an operator an axis's size."""
        if self.is_cut(axis):
            self.set_role(node, role, self.size(axis))

    def keep_count(self, node: Node, axis: Axis) -> None:
        """Let a size that a graph reads be what it was before channels of the axis went."""
        if not self.is_cut(axis):
            return
        before, after = self._ratio(axis)
        last = node.next
        each = self.rewriter.call(operator.floordiv, (node, after), before=last)
        whole = self.rewriter.call(operator.mul, (each, before), before=last)
        self.rewriter.replace_uses(node, whole)
        self.rewriter.set_argument(each, 0, node)

    def set_parts(self, node: Node, dim: int, runs: list[Ids]) -> None:
        """Split by sizes where parts lose channels."""
        if any(self.removal.touches(run) for run in runs):
            sizes = [int(self.removal.kept(run).sum()) for run in runs]
            self._replace(node, torch.ops.aten.split_with_sizes.default, (sizes, dim))

    def set_slice(self, node: Node, dim: int, whole: Ids, index: slice) -> None:
        """Move the bounds of a slice."""
        if not self.removal.touches(whole):
            return
        new = self._new_places(whole, np.arange(len(whole))[index])
        if index.step in (None, 1):
            start, end = (int(new[0]), int(new[-1]) + 1) if len(new) else (0, 0)
            self.set_role(node, "start", start)
            counts = ops.has_role(node, "length")
            self.set_role(node, *(("length", end - start) if counts else ("end", end)))
            return
        read = self._constant(node, new)
        self._replace(node, _SELECT, (dim, read))

    def set_index(self, node: Node, whole: Ids, at: int) -> None:
        """Move the one index that is selected."""
        if self.removal.touches(whole):
            kept = self.removal.kept(whole)
            self.set_role(node, "index", int(kept[: at % len(whole)].sum()))

    def set_indices(self, node: Node, read: Node, whole: Ids, places: Any) -> None:
        """Write a constant vector of indices anew."""
        if self.removal.touches(whole):
            fresh = self._constant(node, self._new_places(whole, places % len(whole)))
            self.rewriter.replace_argument(node, read, fresh)
            self._drop(read)

    def take(self, node: Node, axis: Axis) -> None:
        """Take of the one axis that an operator makes the channels that stay."""
        if not self.is_cut(axis):
            return
        read = self._constant(node, self.index(axis).numpy())
        taken = self.rewriter.call(_SELECT, (node, 0, read), before=node.next)
        self.rewriter.note_all(taken, node)
        if VALUE in node.meta:  # it goes on making all of them
            self.rewriter.note(node, VALUE, ((axis_size(axis),), node.meta[VALUE][1]))
        self.rewriter.replace_uses(node, taken)

    def set_squeeze(self, node: Node, dims: list[int], axes: Iterable[Axis]) -> None:
        """Name the axes that go, where others may be left with one channel."""
        if any(self.is_cut(axis) for axis in axes):
            self._replace(node, torch.ops.aten.squeeze.dims, (dims,))

    def absorb(self, sink: Sink) -> None:
        """Add to a bias what constant channels gave before they went."""
        const = np.where(self.removal.kept(sink.atoms), 0.0, sink.const)
        if not const.any():
            return
        delta = sink.given @ torch.from_numpy(const)
        had = ops.argument(sink.node, sink.role) is not None
        if not had:
            self.rewriter.add_bias(sink.node, sink.key, delta[self.index(sink.rows)])
            self.added[sink.key] = None
        elif sink.key not in self.absorbed:  # else it was, in the graph of the other mode
            self.rewriter.add_to_bias(sink.node, sink.role, delta)
        self.absorbed[sink.key] = None

    def _drop(self, node: Node) -> None:
        """Erase what computed a constant that nothing reads any more."""
        if node.users or node.op not in ("call_function", "get_attr"):
            return
        reads = list(node.all_input_nodes)
        self.rewriter.erase(node)
        for read in reads:
            self._drop(read)

    def _new_places(self, whole: Ids, places: Any) -> Any:
        """Return the new indices of those channels at old ones that stay."""
        kept = self.removal.kept(whole)
        return (np.cumsum(kept) - 1)[places[kept[places]]]

    def _constant(self, node: Node, places: Any) -> Node:
        name = self.rewriter.add_constant(f"{node.name}_channels", torch.from_numpy(places))
        return self.rewriter.read(name, before=node)

    def _replace(self, node: Node, target: Any, args: tuple[Any, ...]) -> None:
        """Call another operator on the same input, in a node's place."""
        made = self.rewriter.call(target, (node.args[0], *args), before=node)
        self.rewriter.note_all(made, node)
        self.rewriter.replace_uses(node, made)
        self.rewriter.erase(node)


def record_of_cut(
    program: Program,
    stored: Iterable[tuple[str, Value]],
    flows: Iterable[Flow],
    removal: Removal,
) -> ShrinkRecord:
    """Return what will be cut and what stays, before it is done."""
    masks = {f"{name}_mask" for name in parameters.masks(program)}
    own = [(name, value) for name, value in stored if name not in masks]
    maps = [
        AxisMap(name, axis, len(ids), tuple(np.flatnonzero(removal.kept(ids)).tolist()))
        for name, value in own
        for axis, ids in _axes(value)
        if removal.touches(ids)
    ]
    nodes = {pin.node for pin in removal.pins if pin.reason != KERNEL}
    lines = {node: source_line(node) for node in nodes}
    stays = [
        Stay(name, axis, count, pin.reason, pin.node and pin.node.name, lines[pin.node])
        for name, value in own
        for axis, ids in _axes(value)
        for pin, count in removal.reasons(ids)
        if pin.reason != KERNEL
    ]
    blocked = [
        Blocked(node.name, reason, source_line(node), flow.mode)
        for flow in flows
        for node, reason in flow.unknown
    ]
    return ShrinkRecord(tuple(maps), tuple(stays), tuple(blocked))


def train_notes(flows: Iterable[Flow], removal: Removal) -> tuple[str, ...]:
    """Return a note for each node behind which channels that go are others in train mode."""
    nodes = {node: None for flow in flows for node, ids in flow.shifts if removal.touches(ids)}
    return tuple(dict.fromkeys(map(shift_note, nodes)))


def shift_note(node: Node) -> str:
    """Return what to know of a node behind which constants are others in train mode."""
    return (
        "in train mode channels that went are not the constants that they are in eval mode: "
        f"{node.name} makes others of them ({source_line(node) or 'no source line'})"
    )


def _axes(value: Value) -> Iterator[tuple[int, Ids]]:
    for axis, factors in enumerate(value.axes):
        if factors[0].atoms is not None:
            yield axis, factors[0].atoms
