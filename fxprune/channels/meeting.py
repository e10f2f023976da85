"""Sinks: where an operator sums over channels, and what it takes to cut one of them there."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch.fx.node import Node

from fxprune.atoms import LIVE, Read
from fxprune.axes import Flat
from fxprune.factors import Array, Axis, Ids
from fxprune.flow import Flow
from fxprune.weights import Weights

__all__ = ["LIVE", "Sink", "meet", "row_constants", "sums_of"]


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
