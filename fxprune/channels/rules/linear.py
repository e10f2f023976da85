"""Transfer rules of linear, bilinear, embedding and recurrent layers, and what they share.

Inputs meet the weights, outputs get constants. Of recurrent layers, features of the input may go,
hidden sizes stay.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.fx.node import Node

from fxprune.channels import (
    Array,
    Axis,
    Factor,
    Flat,
    Flow,
    FollowError,
    Sink,
    Value,
    Weights,
    axis_size,
    consume,
    known_along,
    nonzero,
    opaque,
    row_constants,
    sums_of,
    tie_axes,
    transfer,
    unknown,
)
from fxprune.program import ops, parameter_of
from fxprune.rewrite import bias_name

MISFIT = "its input is made of parts that its weight cannot have"
_COMPUTED = "its weight is computed"


@transfer("linear")
def linear(flow: Flow, node: Node) -> Value:
    """The last axis is summed over; rows of the weight are the outputs."""
    layer = WeightedSum(flow, node)
    value, rows = flow.value(node.args[0]), flow.value(layer.weight)
    weight = flow.concrete(layer.weight)
    if weight is None or len(rows.axes) != 2 or not value.axes:
        raise FollowError(_COMPUTED)
    flow.tie(value.axes[-1], rows.axes[1], node, MISFIT)
    entering = flow.flat(value, len(value.axes) - 1, node)
    const = layer.sum_over(entering, weight, rows.axes[0], absorbs=True)
    return outputs(value.axes[:-1], layer.with_bias(rows.axes[0]), (), const)


@transfer("addmm")
def addmm(flow: Flow, node: Node) -> Value:
    """A bias and a product with a stored matrix, whose columns are the outputs."""
    scales = [flow.argument(node, role) for role in ("beta", "alpha")]
    layer = WeightedSum(flow, node, weight="mat2", bias="self")
    value, columns = flow.value(node.args[1]), flow.value(layer.weight)
    weight = flow.concrete(layer.weight)
    if weight is None or len(value.axes) != 2 or scales != [1, 1]:
        raise FollowError("its weight is computed, or its terms are scaled")
    if len(flow.value(layer.bias).axes) != 1:
        raise FollowError("its bias is no vector")
    flow.tie(value.axes[1], columns.axes[0], node, MISFIT)
    const = layer.sum_over(flow.flat(value, 1, node), weight.t(), columns.axes[1], absorbs=True)
    return outputs(value.axes[:1], layer.with_bias(columns.axes[1]), (), const)


@transfer("bilinear")
def bilinear(flow: Flow, node: Node) -> Value:
    """The last axes of two inputs are summed over; rows of the weight are the outputs."""
    layer = WeightedSum(flow, node)
    rows, weight = flow.value(layer.weight), flow.concrete(layer.weight)
    values = [flow.value(arg) for arg in node.args[:2]]
    if weight is None or any(not value.axes for value in values):
        raise FollowError(_COMPUTED)
    zero = False
    for at, value in enumerate(values, 1):
        flow.tie(value.axes[-1], rows.axes[at], node, MISFIT)
        entering = flow.flat(value, len(value.axes) - 1, node)
        consume(flow, node, entering, Weights(weight.movedim(at, 1)), rows.axes[0][0].atoms)
        zero = zero or bool((entering.spread == 0).all())
    out = layer.with_bias(rows.axes[0])
    unread = ~nonzero(weight).any(axis=(1, 2))
    const = layer.plus_bias(np.where(unread | zero, 0.0, np.nan))
    lead = values[0].axes[:-1]
    for axis in (*lead, *values[1].axes[:-1]):
        flow.pin(axis, "a product of two inputs shares it", node)
    return outputs(lead, out, (), const)


@transfer("embedding")
def embedding(flow: Flow, node: Node) -> Value:
    """Rows are looked up; columns are the outputs."""
    table, index = flow.value(node.args[0]), flow.value(node.args[1])
    if len(table.axes) != 2:
        raise FollowError("its table is no matrix")
    flow.pin(table.axes[0], "any row may be looked up", node)
    weight = flow.concrete(node.args[0])
    if weight is None:
        return unknown((*index.axes, table.axes[1]))
    same = (weight == weight[:1]).cpu().numpy().all(0)
    const = np.where(same, numbers(weight)[0], np.nan)
    return outputs(index.axes, table.axes[1], (), const)


@transfer("embedding_bag")
def embedding_bag(flow: Flow, node: Node) -> tuple[Value, ...]:
    """Rows are looked up and joined; columns are the outputs, 0 where all rows are."""
    table, weight = flow.value(node.args[0]), flow.concrete(node.args[0])
    shapes = {user.args[1]: flow.shape(user) for user in node.users if len(user.args) > 1}
    shape = shapes.get(0)
    if len(table.axes) != 2 or shape is None or len(shape) != 2:
        raise FollowError("its output has no noted shape")
    flow.pin(table.axes[0], "any row may be looked up", node)
    zero = np.full(1, False) if weight is None else ~nonzero(weight).any(0)
    const = np.where(zero, 0.0, np.nan)
    first = outputs(((Factor(shape[0]),),), table.axes[1], (), const)
    others = [opaque(shapes.get(at) or ()) for at in (1, 2, 3)]
    return first, *others


_MOST = 2**18  # entries of a stored operand that are looked at


class WeightedSum:
    """A node that sums over channels with stored weights, and adds a bias, by their roles there."""

    def __init__(self, flow: Flow, node: Node, weight: str = "weight", bias: str = "bias") -> None:
        self.flow, self.node, self.role = flow, node, bias
        self.weight: Any = flow.argument(node, weight)
        self.bias: Any = flow.argument(node, bias)

    def sum_over(self, entering: Flat, weight: torch.Tensor, rows: Axis, *, absorbs: bool) -> Array:
        """Consume the channels of an axis; return the outputs' constants.

        The weight has shape (outputs, channels, ...), and `rows` is its axis of outputs; with
        `absorbs` a constant channel gives the same everywhere: nothing is padded.
        """
        read = Weights(weight)
        key = self._absorber() if absorbs else None
        outs = rows[0].atoms if len(rows) == 1 else None
        consume(self.flow, self.node, entering, read, outs, absorbs=key is not None)
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
        axes = self.flow.value(self.bias).axes
        both = tie_axes(self.flow.atoms, axis, axes[0], self.node) if len(axes) == 1 else None
        return both or axis

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
    each = np.broadcast_to(const, (axis_size(out),))
    return known_along((*before, out, *after), len(before), each)


def with_numbers(flow: Flow, operand: object, *, floating: bool = False) -> Value:
    """Return the value of an operand, with its numbers where it is stored, as a table is."""
    value = flow.value(operand)
    stored = flow.concrete(operand) if isinstance(operand, Node) and not value.is_known() else None
    if stored is None or stored.numel() > _MOST or (floating and not stored.is_floating_point()):
        return value
    return Value(value.axes, numbers(stored).reshape([factor.size for factor in value.factors]))


def numbers(tensor: torch.Tensor) -> Array:
    """Return a stored tensor in float64."""
    return tensor.detach().to("cpu", torch.float64).numpy()


_STAYS = "a recurrent layer keeps its size"


@transfer("lstm | gru | rnn_tanh | rnn_relu")
def recurrent(flow: Flow, node: Node) -> tuple[Value, ...]:
    """Features of the input meet the first layer's weights."""
    params = flow.argument(node, "params")
    value = flow.value(node.args[0])
    if not isinstance(params, (list, tuple)) or not ops.has_role(node, "input") or not value.axes:
        raise FollowError("it reads a packed sequence")
    for axis in value.axes[:-1]:
        flow.pin(axis, _STAYS, node)
    entering = flow.flat(value, len(value.axes) - 1, node)
    first = _first_layer(node, params)
    for role, read in ops.roles(node):
        if role == "input" or read not in flow.values:
            continue
        stored = flow.value(read)
        weight = flow.concrete(read)
        if role != "weight_ih" or read not in first or weight is None:
            flow.pin_value(stored, _STAYS, node)
            continue
        flow.pin(stored.axes[0], _STAYS, node)
        tie_axes(flow.atoms, value.axes[-1], stored.axes[1], node)
        consume(flow, node, entering, Weights(weight))
    if any(flow.concrete(read) is None for read in first):
        flow.pin(value.axes[-1], "a weight that reads it is computed", node)
    return _opaque_parts(flow, node)


@transfer("lstm_cell | gru_cell | rnn_tanh_cell | rnn_relu_cell")
def recurrent_cell(flow: Flow, node: Node) -> tuple[Value, ...] | Value:
    """Features of the input meet the weights; states keep their size."""
    value, read = flow.value(node.args[0]), flow.argument(node, "w_ih")
    rows, weight = flow.value(read), flow.concrete(read)
    if weight is None or len(value.axes) != 2 or len(rows.axes) != 2:
        raise FollowError(_COMPUTED)
    flow.tie(value.axes[1], rows.axes[1], node, MISFIT)
    for other in node.all_input_nodes:
        if other not in (node.args[0], read):
            flow.pin_value(flow.value(other), _STAYS, node)
    flow.pin(value.axes[0], _STAYS, node)
    flow.pin(rows.axes[0], _STAYS, node)
    consume(flow, node, flow.flat(value, 1, node), Weights(weight))
    shape = flow.shape(node)
    return _opaque_parts(flow, node) if shape is None else opaque(shape)


def _first_layer(node: Node, params: Any) -> list[Node]:
    """Return the weights that read the input, one a direction."""
    directions = 2 if ops.argument(node, "bidirectional") else 1
    period = max(len(params) // (int(ops.argument(node, "num_layers")) * directions), 1)
    return [params[period * direction] for direction in range(directions)]


def _opaque_parts(flow: Flow, node: Node) -> tuple[Value, ...]:
    """Return values of which nothing can be cut, from the shapes of the parts that are read."""
    found: dict[int, Value] = {}
    for user in node.users:
        shape = flow.shape(user)
        if ops.canonical_name(user.target) == "getitem" and shape is not None:
            found[int(user.args[1])] = opaque(shape)  # pyright: ignore[reportArgumentType]
    return tuple(found.get(at, unknown(())) for at in range(max(found, default=-1) + 1))
