"""Operands that meet: index by index, or where an operator sums over channels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch.fx.node import Node

from fxprune.channels.atoms import WeightRead
from fxprune.channels.axes import Flat
from fxprune.channels.flow import Flow, FollowError
from fxprune.channels.values import Array, Axis, Factor, Ids, Value, axis_size
from fxprune.channels.weights import Weights


def broadcast(
    flow: Flow, node: Node, values: Sequence[Value]
) -> tuple[tuple[Axis, ...], list[Array]]:
    """Tie the axes of operands that meet; an axis of size 1 that serves many channels stays.

    Returns the axes of the result, and the operands' consts with one dimension for each factor.
    """
    rank = max(len(value.axes) for value in values)
    axes: list[Axis] = []
    for at in range(-rank, 0):
        met = [value.axes[at] for value in values if len(value.axes) >= -at]
        size = max(axis_size(axis) for axis in met)
        joint: Axis | None = None
        for axis in met:
            if axis_size(axis) == size:
                joint = axis if joint is None else flow.tie(joint, axis, node)
            elif axis_size(axis) == 1:
                flow.pin(axis, "one channel meets many", node)
            else:
                raise FollowError("its operands' sizes do not fit")
        axes.append(joint or (Factor(1),))
    return tuple(axes), [broadcast_const(value, axes) for value in values]


def broadcast_const(value: Value, axes: Sequence[Axis]) -> Array:
    """Return const with a dimension for each factor of the axes that the value is broadcast to.

    The value's axes are those of the result's end, or of size 1, in factors no finer.
    """
    dims: list[int] = []
    missing = len(axes) - len(value.axes)
    for at, axis in enumerate(axes):
        old = value.axes[at - missing] if at >= missing else ()
        if at < missing or axis_size(old) != axis_size(axis):
            dims += [1] * len(axis)
        else:
            dims += _split_dims(value.dims(at - missing), old, axis)
    return value.const.reshape(dims)


def _split_dims(shape: Sequence[int], old: Axis, new: Axis) -> list[int]:
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


@dataclass(frozen=True)
class Sink:
    """A sum over channels with stored weights, of which some channels are constants but 0."""

    node: Node
    role: str  # which argument of the node is the bias
    key: str  # the parameter that the bias is, or beside which one is made
    given: torch.Tensor  # what each output gets from each channel, float64, (outputs, channels)
    const: Array  # of the channels, shape (channels,)
    atoms: Ids  # of the channels
    rows: Axis  # the outputs, as an axis of the weight


def consume(
    flow: Flow,
    node: Node,
    channels: Flat,
    weights: Weights,
    rows: Ids | None = None,
    *,
    absorbs: bool = False,
) -> None:
    """Let the channels stay that a sink, with weights (outputs, channels, ...), cannot do without.

    `rows` are the atoms of the outputs, where these may go; with `absorbs` the sink's bias can take
    over a constant other than 0. A channel that nothing reads must be finite: zero times infinity
    is not zero.
    """
    if channels.atoms is None:
        return
    harmful = np.isnan(channels.spread) if absorbs else ~(channels.spread == 0)
    flow.atoms.visit(channels.atoms)
    if harmful.any():
        flow.atoms.reads.append(WeightRead(channels.atoms, harmful, rows, weights, node))


def sums_of(weight: torch.Tensor, channels: npt.NDArray[np.int64]) -> torch.Tensor:
    """Return what channels that are 1 everywhere give to each output, float64.

    The weight has shape (outputs, channels, ...) and is summed over what follows.
    """
    columns = weight.index_select(1, torch.from_numpy(channels).to(weight.device))
    wide = columns.detach().to("cpu", torch.float64)
    return wide.reshape(weight.shape[0], len(channels), -1).sum(-1)


def row_constants(
    weight: torch.Tensor, weights: Weights, const: Array, bias: Array | None, *, absorbs: bool
) -> Array:
    """Return what each output is everywhere, NaN where it is not known.

    The weight has shape (outputs, channels, ...) and is summed over what follows; with `absorbs`,
    constants other than 0 give constants.
    """
    total = np.zeros(weight.shape[0]) if bias is None else bias.astype(np.float64)
    live = np.isnan(const) if absorbs else ~(const == 0)
    known = ~weights.readers(live)
    given = np.flatnonzero(~live & (const != 0))
    if len(given):
        total = total + (sums_of(weight, given) @ torch.from_numpy(const[given])).numpy()
    return np.where(known, total, np.nan)
