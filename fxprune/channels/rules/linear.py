"""What rules of layers share: inputs meet the weights, outputs get constants."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.fx.node import Node

from fxprune.axes import Flat
from fxprune.factors import Array, Axis, Value
from fxprune.flow import Flow
from fxprune.reads import parameter_of
from fxprune.resizing import bias_name
from fxprune.sinks import Sink, meet, row_constants, sums_of
from fxprune.weights import Weights

__all__ = ["Layer", "numbers", "outputs", "with_numbers"]

_MOST = 2**18  # entries of a stored operand that are looked at


class Layer:
    """A node that sums over channels with stored weights, and adds a bias.

    Args:
        flow: whose node it is.
        node: the node.
        weight: the name of the argument that is the weight.
        bias: the name of the argument that is the bias.
    """

    def __init__(self, flow: Flow, node: Node, weight: str = "weight", bias: str = "bias") -> None:
        self.flow, self.node, self.role = flow, node, bias
        self.weight: Any = flow.argument(node, weight)
        self.bias: Any = flow.argument(node, bias)

    def sum_over(self, entering: Flat, weight: torch.Tensor, rows: Axis, *, absorbs: bool) -> Array:
        """Meet the channels of an axis; return the outputs' constants.

        Args:
            entering: the channels.
            weight: shape (outputs, channels, ...).
            rows: the outputs, as an axis of the stored weight.
            absorbs: whether a constant channel gives the same everywhere: nothing is padded.
        """
        read = Weights(weight)
        key = self._absorber() if absorbs else None
        outs = rows[0].atoms if len(rows) == 1 else None
        meet(self.flow, self.node, entering, read, outs, absorbs=key is not None)
        if key is not None:
            self._remember(entering, weight, rows, key)
        const = row_constants(weight, read, entering.spread, self._numbers(), absorbs=absorbs)
        if self.flow.stored.odd:
            finite = weight.isfinite().reshape(weight.shape[0], -1).all(1).cpu().numpy()
            const = np.where(finite, const, np.nan)
        return const

    def with_bias(self, axis: Axis) -> Axis:
        """Tie the bias to the outputs."""
        if not isinstance(self.bias, Node):
            return axis
        value = self.flow.value(self.bias)
        return (
            axis if len(value.axes) != 1 else self.flow.tie(axis, value.axes[0], self.node) or axis
        )

    def plus_bias(self, const: Array) -> Array:
        """Return constants with the bias added."""
        bias = self._numbers()
        return const if bias is None else const + bias

    def _numbers(self) -> Array | None:
        if self.bias is None:
            return None
        found = self.flow.concrete(self.bias)
        return np.full(1, np.nan) if found is None else numbers(found)

    def _remember(self, entering: Flat, weight: torch.Tensor, rows: Axis, key: str) -> None:
        there = np.flatnonzero(~np.isnan(entering.spread) & (entering.spread != 0))
        if entering.atoms is None or not len(there):
            return
        const, ids = entering.spread[there], entering.atoms[there]
        sink = Sink(self.node, self.role, key, sums_of(weight, there), const, ids, rows)
        self.flow.sinks.append(sink)
        self.flow.edits.append(lambda cut: cut.absorb(sink))

    def _absorber(self) -> str | None:
        """Return the name of the bias that can take something over: stored, and nobody else's."""
        program = self.flow.program
        if self.bias is not None:
            name = parameter_of(program, self.bias)
            return name if name is not None and len(self.bias.users) == 1 else None
        name = parameter_of(program, self.weight)
        if name is None or len(self.weight.users) > 1:
            return None
        return bias_name(program, name)


def outputs(before: tuple[Axis, ...], out: Axis, after: tuple[Axis, ...], const: Array) -> Value:
    """Return a value whose constants run along one of its axes."""
    sizes = [factor.size for factor in out]
    dims = [1] * sum(map(len, before)) + sizes + [1] * sum(map(len, after))
    return Value(
        (*before, out, *after), np.broadcast_to(const, (int(np.prod(sizes)),)).reshape(dims)
    )


def with_numbers(flow: Flow, operand: object, *, floating: bool = False) -> Value:
    """Return the value of an operand, with its numbers where it is stored, as a table is.

    Args:
        flow: whose node it is.
        operand: the node.
        floating: whether numbers of floating dtypes alone are of use.
    """
    value = flow.value(operand)
    stored = flow.concrete(operand) if isinstance(operand, Node) and not value.known() else None
    if stored is None or stored.numel() > _MOST or (floating and not stored.is_floating_point()):
        return value
    return Value(value.axes, numbers(stored).reshape([factor.size for factor in value.factors]))


def numbers(tensor: torch.Tensor) -> Array:
    """Return a stored tensor in float64."""
    return tensor.detach().to("cpu", torch.float64).numpy()
