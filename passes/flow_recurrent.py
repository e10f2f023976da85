"""Transfer rules of recurrent layers: features of the input may go, hidden sizes stay."""

from __future__ import annotations

from typing import Any

from torch.fx.node import Node

from fxprune import ops
from fxprune.factors import Value, opaque, unknown
from fxprune.flow import Flow, transfer
from fxprune.pattern import Refusal
from fxprune.sinks import meet
from fxprune.weights import Weights

_STAYS = "a recurrent layer keeps its size"


@transfer("lstm | gru | rnn_tanh | rnn_relu")
def recurrent(flow: Flow, node: Node) -> tuple[Value, ...] | Refusal:
    """Features of the input meet the first layer's weights."""
    params = flow.argument(node, "params")
    value = flow.value(node.args[0])
    if not isinstance(params, (list, tuple)) or not ops.has_role(node, "input") or not value.axes:
        return Refusal("it reads a packed sequence", node)
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
        flow.tie(value.axes[-1], stored.axes[1], node)
        meet(flow, node, entering, Weights(weight))
    if any(flow.concrete(read) is None for read in first):
        flow.pin(value.axes[-1], "a weight that reads it is computed", node)
    return _outputs(flow, node)


@transfer("lstm_cell | gru_cell | rnn_tanh_cell | rnn_relu_cell")
def cell(flow: Flow, node: Node) -> tuple[Value, ...] | Value | Refusal:
    """Features of the input meet the weights; states keep their size."""
    value, read = flow.value(node.args[0]), flow.argument(node, "w_ih")
    rows, weight = flow.value(read), flow.concrete(read)
    if weight is None or len(value.axes) != 2 or len(rows.axes) != 2:
        return Refusal("its weight is computed", node)
    if flow.tie(value.axes[1], rows.axes[1], node) is None:
        return Refusal("its input is made of parts that its weight cannot have", node)
    for other in node.all_input_nodes:
        if other not in (node.args[0], read):
            flow.pin_value(flow.value(other), _STAYS, node)
    flow.pin(value.axes[0], _STAYS, node)
    flow.pin(rows.axes[0], _STAYS, node)
    meet(flow, node, flow.flat(value, 1, node), Weights(weight))
    shape = flow.shape(node)
    return _outputs(flow, node) if shape is None else opaque(shape)


def _first_layer(node: Node, params: Any) -> list[Node]:
    """Return the weights that read the input, one a direction."""
    directions = 2 if ops.argument(node, "bidirectional") else 1
    period = max(len(params) // (int(ops.argument(node, "num_layers")) * directions), 1)
    return [params[period * direction] for direction in range(directions)]


def _outputs(flow: Flow, node: Node) -> tuple[Value, ...]:
    """Return values of which nothing can be cut, from the shapes of the parts that are read."""
    found: dict[int, Value] = {}
    for user in node.users:
        shape = flow.shape(user)
        if ops.canonical_name(user.target) == "getitem" and shape is not None:
            found[int(user.args[1])] = opaque(shape)  # pyright: ignore[reportArgumentType]
    return tuple(found.get(at, unknown(())) for at in range(max(found, default=-1) + 1))
