"""Operands that meet index by index: their axes are tied, their constants spread.

Sinks: where an operator sums over channels, and what it takes to cut one of them there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch.fx.node import Node

from fxprune.channels.atoms import Read
from fxprune.channels.axes import Flat
from fxprune.channels.flow import Flow
from fxprune.channels.values import Array, Axis, Factor, Ids, Value, sizes_of
from fxprune.channels.weights import Weights
from fxprune.rewrite import Refusal


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


@dataclass(frozen=True)
class Sink:
    """A sum over channels with stored weights, of which some channels are constants but 0.

    Args:
        node: the operator.
        role: which of its arguments is the bias.
        key: the parameter that the bias is, or beside which one is made.
        given: what each output gets from each of the channels, float64, (outputs, channels).
        const: the constants of these channels, shape (channels,).
        atoms: the atoms of these channels.
        rows: the outputs, as an axis of the weight.
    """

    node: Node
    role: str
    key: str
    given: torch.Tensor
    const: Array
    atoms: Ids
    rows: Axis


def meet(
    flow: Flow,
    node: Node,
    channels: Flat,
    weights: Weights,
    rows: Ids | None = None,
    *,
    absorbs: bool = False,
) -> None:
    """Let the channels stay that a sink cannot do without.

    A channel that nothing reads must be finite: zero times infinity is not zero.

    Args:
        flow: whose atoms they are.
        node: the sink.
        channels: its input axis.
        weights: of shape (outputs, channels, ...).
        rows: the atoms of the outputs, where these may go.
        absorbs: whether the sink's bias can take over a constant other than 0.
    """
    if channels.atoms is None:
        return
    harmful = np.isnan(channels.spread) if absorbs else ~(channels.spread == 0)
    flow.atoms.met(channels.atoms)
    if harmful.any():
        flow.atoms.reads.append(Read(channels.atoms, harmful, rows, weights, node))


def sums_of(weight: torch.Tensor, channels: npt.NDArray[np.int64]) -> torch.Tensor:
    """Return what a channel that is 1 everywhere gives to each output, float64.

    Args:
        weight: shape (outputs, channels, ...), summed over what follows.
        channels: which, as indices.
    """
    columns = weight.index_select(1, torch.from_numpy(channels).to(weight.device))
    wide = columns.detach().to("cpu", torch.float64)
    return wide.reshape(weight.shape[0], len(channels), -1).sum(-1)


def row_constants(
    weight: torch.Tensor, weights: Weights, const: Array, bias: Array | None, *, absorbs: bool
) -> Array:
    """Return what each output is everywhere, NaN where it is not known.

    Args:
        weight: shape (outputs, channels, ...), summed over what follows.
        weights: the same.
        const: of the channels, shape (channels,).
        bias: shape (outputs,); None for none.
        absorbs: whether constants other than 0 give constants.
    """
    total = np.zeros(weight.shape[0]) if bias is None else bias.astype(np.float64)
    live = np.isnan(const) if absorbs else ~(const == 0)
    known = ~weights.readers(live)
    given = np.flatnonzero(~live & (const != 0))
    if len(given):
        total = total + (sums_of(weight, given) @ torch.from_numpy(const[given])).numpy()
    return np.where(known, total, np.nan)
