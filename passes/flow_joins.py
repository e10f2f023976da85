"""Transfer rules of operators that put tensors beside each other, or numbers around one."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch.fx.node import Node

from fxprune import ops
from fxprune.axes import Flat
from fxprune.broadcasting import broadcast
from fxprune.factors import Axis, Factor, Ids, Value, unknown, with_axis
from fxprune.flow import Flow, transfer
from fxprune.pattern import Refusal
from fxprune.sizes import OPEN

from .flow_parts import with_axis_unknown


@transfer("cat concat concatenate hstack")
def joined(flow: Flow, node: Node) -> Value | Refusal:
    """Channels one after the other; other axes are tied."""
    reads: list[Any] = list(node.args[0])  # pyright: ignore[reportArgumentType]
    values = [flow.value(read) for read in reads]
    if any(read not in flow.values for read in reads) or not all(value.axes for value in values):
        return Refusal("it joins what is no tensor", node)
    beside = int(ops.canonical_name(node.target) == "hstack" and len(values[0].axes) > 1)
    dim = int(flow.argument(node, "dim", beside)) % len(values[0].axes)
    others = broadcast(flow, node, [_without(value, dim) for value in values])
    if isinstance(others, Refusal):
        return others
    parts = [flow.flat(value, dim, node) for value in values]
    axes = [*others[0][:dim], (), *others[0][dim:]]
    shape = flow.shape(node)
    if all(part.atoms is None for part in parts) or any(part.size >= OPEN for part in parts):
        if shape is None:
            return Refusal("it joins along an axis of open size", node)
        for value in values:
            flow.pin(value.axes[dim], "it is joined to what cannot be cut", node)
        axes[dim] = (Factor(shape[dim]),)
        return unknown(axes)
    ids = np.concatenate([_atoms(flow, node, part) for part in parts])
    const = np.concatenate([part.spread for part in parts])
    axes[dim] = (Factor(len(ids), ids),)
    return with_axis(unknown(axes), dim, axes[dim], const)


def _atoms(flow: Flow, node: Node, part: Flat) -> Ids:
    """Return an atom an index; what cannot be cut gets atoms that stay."""
    if part.atoms is not None:
        return part.atoms
    atoms = flow.atoms.fresh(part.size)
    flow.atoms.pin(atoms, "it cannot be cut", node)
    return atoms


def _without(value: Value, dim: int) -> Value:
    return unknown([axis for at, axis in enumerate(value.axes) if at != dim])


@transfer("stack")
def stacked(flow: Flow, node: Node) -> Value | Refusal:
    """Tensors of one shape along an axis of their own."""
    reads: list[Any] = list(node.args[0])  # pyright: ignore[reportArgumentType]
    if any(read not in flow.values for read in reads):
        return Refusal("it joins what is no tensor", node)
    found = broadcast(flow, node, [flow.value(read) for read in reads])
    if isinstance(found, Refusal):
        return found
    axes, consts = found
    dim = int(flow.argument(node, "dim", 0)) % (len(axes) + 1)
    place = sum(map(len, axes[:dim]))
    const = np.stack(np.broadcast_arrays(*consts), place)
    first = const.take([0], place)
    same = np.array_equal(np.broadcast_to(first, const.shape), const, equal_nan=True)
    return Value((*axes[:dim], (Factor(len(reads)),), *axes[dim:]), first if same else const)


@transfer(
    "pad constant_pad_nd reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d "
    "replication_pad2d replication_pad3d"
)
def padded(flow: Flow, node: Node) -> Value | Refusal:
    """More places around the last axes; a constant stays one where it is padded with itself."""
    value, shape = flow.value(node.args[0]), flow.shape(node)
    pads: Any = flow.argument(node, "pad", flow.argument(node, "padding"))
    if shape is None or not all(isinstance(pad, int) for pad in pads):
        return Refusal("its padding is computed", node)
    plain = ops.canonical_name(node.target) in ("pad", "constant_pad_nd")
    fills = plain and flow.argument(node, "mode", "constant") == "constant"
    given = flow.argument(node, "value", None)
    fill = float(given) if isinstance(given, (int, float)) else 0.0
    if fills and (given is None or isinstance(given, (int, float))):
        value = Value(value.axes, np.where(value.const == fill, fill, np.nan))
    elif fills:
        value = unknown(value.axes)
    for at in range(len(pads) // 2):
        dim, ends = len(value.axes) - 1 - at, (pads[2 * at], pads[2 * at + 1])
        if ends != (0, 0):
            value = _padded_axis(flow, node, value, dim, ends, shape[dim], fill if fills else None)
    return value


def _padded_axis(
    flow: Flow,
    node: Node,
    value: Value,
    dim: int,
    ends: tuple[int, int],
    size: int,
    fill: float | None,
) -> Value:
    axis: Axis = (Factor(size),)
    whole = flow.flat(value, dim, node)
    if whole.atoms is None or fill is None or min(ends) < 0:
        flow.pin(value.axes[dim], "it is padded by others", node)
        return with_axis_unknown(value, dim, axis)
    added = [flow.atoms.fresh(end) for end in ends]
    for atoms in added:
        flow.atoms.pin(atoms, "padding adds it", node)
    ids = np.concatenate([added[0], whole.atoms, added[1]])
    const = np.concatenate([np.full(ends[0], fill), whole.spread, np.full(ends[1], fill)])
    return with_axis(value, dim, (Factor(len(ids), ids),), const)
