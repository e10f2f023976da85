"""Sinks: where an operator sums over channels, and what it takes to cut one of them there."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch.fx.node import Node

from fxprune.factors import Array, Axis, Ids
from fxprune.flow import Flat, Flow

__all__ = ["Sink", "meet", "row_constants"]

Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Sink:
    """A sum over channels with stored weights.

    Args:
        node: the operator.
        weights: summed over the kernel, float64, shape (outputs, channels).
        const: the constant of each channel, shape (channels,); NaN where it is not known.
        atoms: the atom of each channel.
        rows: the outputs, as an axis of the weight.
    """

    node: Node
    weights: torch.Tensor
    const: Array
    atoms: Ids
    rows: Axis


def meet(flow: Flow, node: Node, channels: Flat, unread: Bools, *, absorbs: bool) -> None:
    """Pin the channels that a sink cannot do without.

    Args:
        flow: whose atoms they are.
        node: the sink.
        channels: its input axis.
        unread: which channels have only zero weights, shape (size,).
        absorbs: whether the sink's bias can take over a constant other than 0.
    """
    if channels.atoms is None:
        return
    const = np.broadcast_to(channels.const, unread.shape)
    harmless = unread | (~np.isnan(const) if absorbs else const == 0)
    flow.atoms.pin(channels.atoms[~harmless], "a live channel is read with weights", node)


def row_constants(
    weight: torch.Tensor,
    read: torch.Tensor,
    const: Array,
    bias: torch.Tensor | None,
    *,
    absorbs: bool,
) -> Array:
    """Return what each output is everywhere, NaN where it is not known.

    Args:
        weight: shape (outputs, channels, ...), summed over what follows.
        read: which weights are not all zero, bool, shape (outputs, channels).
        const: of the channels, shape (channels,) or (1,).
        bias: shape (outputs,); None for none.
        absorbs: whether constants other than 0 give constants.
    """
    outputs, channels = read.shape
    spread = np.broadcast_to(const, (channels,))
    live = torch.from_numpy(np.isnan(spread) if absorbs else ~(spread == 0))
    known = ~read[:, live].any(dim=1) if bool(live.any()) else torch.ones(outputs, dtype=torch.bool)
    total = torch.zeros(outputs, dtype=torch.float64)
    if bias is not None:
        total += bias.detach().to("cpu", torch.float64)
    given = np.nan_to_num(spread) * ~live.numpy()
    there = np.flatnonzero(given)
    if len(there):
        columns = weight[:, torch.from_numpy(there)].detach().to("cpu", torch.float64)
        sums = columns.reshape(outputs, len(there), -1).sum(-1)
        total += sums @ torch.from_numpy(given[there])
    total[~known] = torch.nan
    return total.numpy()
