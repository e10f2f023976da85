"""Where products of tensors are 0: along what is 0 in one of them, wherever the others are."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fxprune.broadcasting import spread
from fxprune.factors import Array, Axis, Factor, Value
from fxprune.flow import Flow

from .flow_sums import with_numbers

__all__ = ["zeros_of"]


def zeros_of(
    flow: Flow,
    axes: Sequence[Axis],
    operands: Sequence[object],
    orders: Sequence[Sequence[int | None]],
) -> Array:
    """Return 0 where a product is, NaN elsewhere.

    Args:
        flow: whose nodes they are.
        axes: those of the product.
        operands: the nodes that are multiplied.
        orders: for each of them, which of its axes each of the product's last axes is; None for
            none of them. Axes that are not named are summed over.
    """
    zero = np.zeros((1,) * sum(map(len, axes)), dtype=np.bool_)
    for operand, order in zip(operands, orders, strict=True):
        zero = zero | (spread(_collapsed(with_numbers(flow, operand), order), axes) == 0)
    return np.where(zero, 0.0, np.nan)


def _collapsed(value: Value, order: Sequence[int | None]) -> Value:
    """Return a value with its axes in an order, 0 where it is along all of those that go."""
    dims = {
        at: range(value.first_factor(at), value.first_factor(at) + len(axis))
        for at, axis in enumerate(value.axes)
    }
    gone = [dim for at, own in dims.items() if at not in order for dim in own]
    zero = (value.const == 0).all(axis=tuple(gone), keepdims=True)
    kept = [dim for at in order if at is not None for dim in dims[at]]
    sizes = [
        size
        for at in order
        for size in ([1] if at is None else [zero.shape[dim] for dim in dims[at]])
    ]
    axes = tuple((Factor(1),) if at is None else value.axes[at] for at in order)
    ordered = zero.transpose([*kept, *gone]).reshape(sizes)
    return Value(axes, np.where(ordered, 0.0, np.nan))
