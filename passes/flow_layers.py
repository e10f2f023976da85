"""Transfer rules of layers with weights: linear, convolutions, embedding, recurrent layers."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.fx.node import Node

from fxprune import ops
from fxprune.factors import Array, Axis, Factor, Value, opaque, sizes_of, unknown
from fxprune.flow import Flow, transfer
from fxprune.pattern import Refusal
from fxprune.reads import parameter_of
from fxprune.regroup import split_factor
from fxprune.sinks import Sink, meet, row_constants

_CONVS = "conv1d | conv2d | conv3d"
_TRANSPOSED = "conv_transpose1d | conv_transpose2d | conv_transpose3d"


@transfer("linear")
def linear(flow: Flow, node: Node) -> Value | Refusal:
    """The last axis is summed over; rows of the weight are the outputs."""
    value, rows = flow.value(node.args[0]), flow.value(node.args[1])
    weight = flow.concrete(node.args[1])
    if weight is None or len(rows.axes) != 2:
        return Refusal("its weight is computed", node)
    if flow.tie(value.axes[-1], rows.axes[1], node) is None:
        return Refusal("its input is made of parts that its weight cannot have", node)
    read = weight.ne(0)
    own = _absorbs(flow, node)
    const = _sum_over(
        flow, node, value, len(value.axes) - 1, weight, read, rows.axes[0], absorbs=own
    )
    out = _with_bias(flow, node, rows.axes[0])
    return _outputs(value.axes[:-1], out, (), const)


@transfer(f"{_CONVS} | {_TRANSPOSED} | convolution")
def convolution(flow: Flow, node: Node) -> Value | Refusal:
    """Axis 1 is summed over, within groups."""
    value, rows = flow.value(node.args[0]), flow.value(node.args[1])
    weight = flow.concrete(node.args[1])
    if weight is None:
        return Refusal("its weight is computed", node)
    name = ops.canonical_name(node.target)
    transposed = "transpose" in name or bool(flow.argument(node, "transposed", False))
    groups = int(flow.argument(node, "groups", 1))
    if len(value.axes) != weight.dim():
        return Refusal("its input has no batch axis", node)
    uniform = not transposed and not _pads(flow, node)
    if groups > 1:
        return _grouped(flow, node, value, rows, weight, groups, transposed, uniform)
    inputs, outputs = (0, 1) if transposed else (1, 0)
    if flow.tie(value.axes[1], rows.axes[inputs], node) is None:
        return Refusal("its input is made of parts that its weight cannot have", node)
    turned = weight.transpose(0, 1) if transposed else weight
    read = _any_of_kernel(turned)
    for axis in rows.axes[2:]:
        flow.pin(axis, "the size of a kernel stays", node)
    absorbs = uniform and _absorbs(flow, node)
    const = _sum_over(flow, node, value, 1, turned, read, rows.axes[outputs], absorbs=absorbs)
    out = _with_bias(flow, node, rows.axes[outputs])
    return _outputs(value.axes[:1], out, _spatial(flow, node), const)


def _grouped(
    flow: Flow,
    node: Node,
    value: Value,
    rows: Value,
    weight: torch.Tensor,
    groups: int,
    transposed: bool,
    uniform: bool,
) -> Value | Refusal:
    channels = sizes_of(value.axes[1])
    depthwise = channels == groups
    entering = flow.flat(value, 1, node)
    if transposed or entering.atoms is None:
        flow.pin_value(value, "a grouped operator reads it", node)
        flow.pin_value(rows, "a grouped operator reads it", node)
        _with_bias(flow, node, rows.axes[1 if transposed else 0])
        shape = flow.shape(node)
        return Refusal("it has no noted shape", node) if shape is None else opaque(shape)
    for kernel in rows.axes[2:]:
        flow.pin(kernel, "the size of a kernel stays", node)
    per_in, per_out = channels // groups, weight.shape[0] // groups
    tracked = 0 if depthwise else 1
    out = split_factor(flow.atoms, rows.axes[0][0], (groups, per_out), tracked)
    into = split_factor(flow.atoms, entering.factor, (groups, per_in), tracked)
    if depthwise:
        flow.tie((into[0],), (out[0],), node)
        const = _depthwise(flow, node, entering.const, weight, uniform)
        flow.edits.append(lambda cut: cut.set_groups(node, entering.atoms))
    else:
        flow.tie((into[1],), rows.axes[1], node)
        const = _by_group(flow, node, entering.const, weight, groups, uniform)
    axis = tuple(factor for factor in out if factor.size > 1) or (Factor(1),)
    return _outputs(value.axes[:1], _with_bias(flow, node, axis), _spatial(flow, node), const)


def _depthwise(flow: Flow, node: Node, const: Array, weight: torch.Tensor, uniform: bool) -> Array:
    """Return the outputs' constants where each channel is read by its own rows alone."""
    outputs = weight.shape[0]
    each = np.repeat(np.broadcast_to(const, (_groups(flow, node),)), outputs // _groups(flow, node))
    sums = weight.detach().to("cpu", torch.float64).reshape(outputs, -1).sum(-1).numpy()
    empty = ~weight.ne(0).reshape(outputs, -1).any(-1).cpu().numpy()
    total = np.where(empty | (each == 0), 0.0, each * sums if uniform else np.nan)
    bias = _bias(flow, node)
    return total if bias is None else total + bias.to("cpu", torch.float64).numpy()


def _groups(flow: Flow, node: Node) -> int:
    return int(flow.argument(node, "groups", 1))


def _by_group(
    flow: Flow, node: Node, const: Array, weight: torch.Tensor, groups: int, uniform: bool
) -> Array:
    """Meet each group's channels, and return the outputs' constants."""
    per_in = weight.shape[1]
    spread = np.broadcast_to(const, (groups * per_in,)).reshape(groups, per_in)
    value = flow.value(node.args[0])
    entering = flow.flat(value, 1, node)
    read = _any_of_kernel(weight)
    rows = read.reshape(groups, -1, per_in)
    unread = ~rows.any(1).reshape(-1).cpu().numpy()
    # Of constants other than 0, each group's rows would take over their own: kept simple.
    meet(flow, node, entering, unread, absorbs=False)
    bias = _bias(flow, node)
    parts = weight.split(weight.shape[0] // groups)
    biases = [None] * groups if bias is None else bias.split(weight.shape[0] // groups)
    found = [
        row_constants(part, rows[g].cpu(), spread[g], biases[g], absorbs=uniform)
        for g, part in enumerate(parts)
    ]
    return np.concatenate(found)


def _sum_over(
    flow: Flow,
    node: Node,
    value: Value,
    axis: int,
    weight: torch.Tensor,
    read: torch.Tensor,
    rows: Axis,
    *,
    absorbs: bool,
) -> Array:
    """Meet the channels of an axis; return the outputs' constants."""
    entering = flow.flat(value, axis, node)
    read = read.cpu()
    meet(flow, node, entering, ~read.any(0).numpy(), absorbs=absorbs)
    const = np.broadcast_to(entering.const, (entering.size,))
    if absorbs and entering.atoms is not None and bool((np.nan_to_num(const) != 0).any()):
        sink = Sink(node, weight, const, entering.atoms, rows)
        flow.edits.append(lambda cut: cut.absorb(sink))
    return row_constants(weight, read, const, _bias(flow, node), absorbs=absorbs)


def _absorbs(flow: Flow, node: Node) -> bool:
    """Tell whether the bias can take something over: it is stored, and nobody else's."""
    bias = flow.argument(node, "bias")
    if bias is None:
        return (
            parameter_of(flow.program, node.args[1]) is not None
            and len(flow.value(node.args[1]).axes) > 0
        )
    return parameter_of(flow.program, bias) is not None and len(bias.users) == 1


def _bias(flow: Flow, node: Node) -> torch.Tensor | None:
    return flow.concrete(flow.argument(node, "bias"))


def _with_bias(flow: Flow, node: Node, axis: Axis) -> Axis:
    """Tie the bias to the outputs."""
    bias = flow.argument(node, "bias")
    if isinstance(bias, Node):
        return flow.tie(axis, flow.value(bias).axes[0], node) or axis
    return axis


def _outputs(before: tuple[Axis, ...], out: Axis, after: tuple[Axis, ...], const: Array) -> Value:
    """Return a value whose constants run along one of its axes."""
    sizes = [factor.size for factor in out]
    dims = [1] * sum(map(len, before)) + sizes + [1] * sum(map(len, after))
    return Value((*before, out, *after), const.reshape(dims))


def _any_of_kernel(weight: torch.Tensor) -> torch.Tensor:
    nonzero = weight.ne(0)
    return nonzero.reshape(*nonzero.shape[:2], -1).any(-1) if nonzero.dim() > 2 else nonzero


def _pads(flow: Flow, node: Node) -> bool:
    padding = flow.argument(node, "padding", 0)
    if isinstance(padding, str):
        return padding != "valid"
    return any(padding) if isinstance(padding, (list, tuple)) else bool(padding)


def _spatial(flow: Flow, node: Node) -> tuple[Axis, ...]:
    shape = flow.shape(node) or ()
    return tuple((Factor(size),) for size in shape[2:])


@transfer("embedding")
def embedding(flow: Flow, node: Node) -> Value | Refusal:
    """Rows are looked up; columns are the outputs."""
    table, index = flow.value(node.args[0]), flow.value(node.args[1])
    weight = flow.concrete(node.args[0])
    if weight is None:
        return Refusal("its table is computed", node)
    flow.pin(table.axes[0], "any row may be looked up", node)
    same = (weight == weight[:1]).all(0).cpu().numpy()
    const = np.where(same, weight[0].detach().to("cpu", torch.float64).numpy(), np.nan)
    return _outputs(index.axes, table.axes[1], (), const)


@transfer("lstm | gru | rnn_tanh | rnn_relu")
def recurrent(flow: Flow, node: Node) -> tuple[Value, ...] | Refusal:
    """Features of the input may go; hidden sizes stay."""
    params = flow.argument(node, "params")
    value, shape = flow.value(node.args[0]), flow.shape(node)
    if not isinstance(params, (list, tuple)):
        return Refusal("its parameters are no list", node)
    entering = flow.flat(value, len(value.axes) - 1, node) if value.axes else None
    for role, read in ops.roles(node):
        if read not in flow.values or role == "input":
            continue
        stored = flow.value(read)
        first = role == "weight_ih" and entering is not None and _first_layer(node, read, params)
        if not first:
            flow.pin_value(stored, "a recurrent layer keeps its size", node)
            continue
        flow.pin(stored.axes[0], "a recurrent layer keeps its size", node)
        flow.tie(value.axes[-1], stored.axes[1], node)
        weight = flow.concrete(read)
        unread = (
            np.zeros(entering.size, bool) if weight is None else ~weight.ne(0).any(0).cpu().numpy()
        )
        meet(flow, node, entering, unread, absorbs=False)
    del shape
    return _untracked_outputs(flow, node)


def _first_layer(node: Node, read: Node, params: Any) -> bool:
    directions = 2 if ops.argument(node, "bidirectional") else 1
    period = max(len(params) // (int(ops.argument(node, "num_layers")) * directions), 1)
    return any(part is read for part in params[: period * directions])


def _untracked_outputs(flow: Flow, node: Node) -> tuple[Value, ...]:
    """Return values of which nothing can be cut, from the shapes of the parts that are read."""
    found: dict[int, Value] = {}
    for user in node.users:
        shape = flow.shape(user)
        if ops.canonical_name(user.target) == "getitem" and shape is not None:
            found[int(user.args[1])] = opaque(shape)  # pyright: ignore[reportArgumentType]
    return tuple(found.get(i, unknown(())) for i in range(max(found, default=-1) + 1))
