"""Operands that meet index by index: their axes are tied, their constants spread."""

from __future__ import annotations

from collections.abc import Sequence

from torch.fx.node import Node

from fxprune.factors import Array, Axis, Factor, Value, sizes_of
from fxprune.flow import Flow
from fxprune.pattern import Refusal

__all__ = ["broadcast", "spread"]


def broadcast(
    flow: Flow, node: Node, values: Sequence[Value]
) -> tuple[tuple[Axis, ...], list[Array]] | Refusal:
    """Tie the axes of operands that meet; an axis of size 1 that serves many channels stays.

    Returns:
        The axes of the result, and the operands' consts with one dimension for each of its factors.
    """
    rank = max(len(value.axes) for value in values)
    axes: list[Axis] = []
    for at in range(-rank, 0):
        met = [value.axes[at] for value in values if len(value.axes) >= -at]
        size = max(sizes_of(axis) for axis in met)
        joined: Axis | None = None
        for axis in met:
            if sizes_of(axis) != size:
                if sizes_of(axis) != 1:
                    return Refusal("its operands' sizes do not fit", node)
                flow.pin(axis, "one channel meets many", node)
                continue
            joined = axis if joined is None else flow.tie(joined, axis, node)
            if joined is None:
                return Refusal("its operands' axes are made of different parts", node)
        axes.append(joined or (Factor(1),))
    return tuple(axes), [spread(value, axes) for value in values]


def spread(value: Value, axes: Sequence[Axis]) -> Array:
    """Return const with a dimension for each factor of the axes that the value is broadcast to.

    Args:
        value: its axes are those of the result's end, or of size 1, in factors no finer.
        axes: the axes of the result.
    """
    dims: list[int] = []
    missing = len(axes) - len(value.axes)
    for at, axis in enumerate(axes):
        old = value.axes[at - missing] if at >= missing else ()
        if at < missing or sizes_of(old) != sizes_of(axis):
            dims += [1] * len(axis)
            continue
        first = value.first_factor(at - missing)
        dims += _refined(value.const.shape[first : first + len(old)], old, axis)
    return value.const.reshape(dims)


def _refined(shape: Sequence[int], old: Axis, new: Axis) -> list[int]:
    """Return const's dimensions after each factor of an axis was split into some of another."""
    if [factor.size for factor in old] == [factor.size for factor in new]:
        return list(shape)
    dims: list[int] = []
    parts = iter(factor.size for factor in new)
    for dim, factor in zip(shape, old, strict=True):
        product = 1
        while product < factor.size:
            size = next(parts)
            product *= size
            dims.append(size if dim > 1 else 1)
    return dims or [1] * len(new)
