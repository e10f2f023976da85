"""Transfer rules of linear, bilinear and embedding layers."""

from __future__ import annotations

import numpy as np
from torch.fx.node import Node

from fxprune.factors import Factor, Value, opaque, unknown
from fxprune.flow import Flow, transfer
from fxprune.pattern import Refusal
from fxprune.sinks import meet
from fxprune.weights import Weights, nonzero

from .flow_sums import Layer, numbers, outputs


@transfer("linear")
def linear(flow: Flow, node: Node) -> Value | Refusal:
    """The last axis is summed over; rows of the weight are the outputs."""
    layer = Layer(flow, node)
    value, rows = flow.value(node.args[0]), flow.value(layer.weight)
    weight = flow.concrete(layer.weight)
    if weight is None or len(rows.axes) != 2 or not value.axes:
        return Refusal("its weight is computed", node)
    if flow.tie(value.axes[-1], rows.axes[1], node) is None:
        return Refusal("its input is made of parts that its weight cannot have", node)
    entering = flow.flat(value, len(value.axes) - 1, node)
    const = layer.sum_over(entering, weight, rows.axes[0], absorbs=True)
    return outputs(value.axes[:-1], layer.with_bias(rows.axes[0]), (), const)


@transfer("addmm")
def addmm(flow: Flow, node: Node) -> Value | Refusal:
    """A bias and a product with a stored matrix, whose columns are the outputs."""
    scaled = [flow.argument(node, role) for role in ("beta", "alpha")]
    layer = Layer(flow, node, weight="mat2", bias="self")
    value, columns = flow.value(node.args[1]), flow.value(layer.weight)
    weight = flow.concrete(layer.weight)
    if weight is None or len(value.axes) != 2 or scaled != [1, 1]:
        return Refusal("its weight is computed, or its terms are scaled", node)
    if len(flow.value(layer.bias).axes) != 1:
        return Refusal("its bias is no vector", node)
    if flow.tie(value.axes[1], columns.axes[0], node) is None:
        return Refusal("its input is made of parts that its weight cannot have", node)
    const = layer.sum_over(flow.flat(value, 1, node), weight.t(), columns.axes[1], absorbs=True)
    return outputs(value.axes[:1], layer.with_bias(columns.axes[1]), (), const)


@transfer("bilinear")
def bilinear(flow: Flow, node: Node) -> Value | Refusal:
    """The last axes of two inputs are summed over; rows of the weight are the outputs."""
    layer = Layer(flow, node)
    rows, weight = flow.value(layer.weight), flow.concrete(layer.weight)
    values = [flow.value(arg) for arg in node.args[:2]]
    if weight is None or any(not value.axes for value in values):
        return Refusal("its weight is computed", node)
    zero = False
    for at, value in enumerate(values, 1):
        if flow.tie(value.axes[-1], rows.axes[at], node) is None:
            return Refusal("its input is made of parts that its weight cannot have", node)
        entering = flow.flat(value, len(value.axes) - 1, node)
        meet(flow, node, entering, Weights(weight.movedim(at, 1)), rows.axes[0][0].atoms)
        zero = zero or bool((entering.spread == 0).all())
    out = layer.with_bias(rows.axes[0])
    unread = ~nonzero(weight).any(axis=(1, 2))
    const = layer.plus_bias(np.where(unread | zero, 0.0, np.nan))
    lead = values[0].axes[:-1]
    for axis in (*lead, *values[1].axes[:-1]):
        flow.pin(axis, "a product of two inputs shares it", node)
    return outputs(lead, out, (), const)


@transfer("embedding")
def embedding(flow: Flow, node: Node) -> Value | Refusal:
    """Rows are looked up; columns are the outputs."""
    table, index = flow.value(node.args[0]), flow.value(node.args[1])
    if len(table.axes) != 2:
        return Refusal("its table is no matrix", node)
    flow.pin(table.axes[0], "any row may be looked up", node)
    weight = flow.concrete(node.args[0])
    if weight is None:
        return unknown((*index.axes, table.axes[1]))
    same = (weight == weight[:1]).cpu().numpy().all(0)
    const = np.where(same, numbers(weight)[0], np.nan)
    return outputs(index.axes, table.axes[1], (), const)


@transfer("embedding_bag")
def bag(flow: Flow, node: Node) -> tuple[Value, ...] | Refusal:
    """Rows are looked up and joined; columns are the outputs, 0 where all rows are."""
    table, weight = flow.value(node.args[0]), flow.concrete(node.args[0])
    shapes = {user.args[1]: flow.shape(user) for user in node.users if len(user.args) > 1}
    shape = shapes.get(0)
    if len(table.axes) != 2 or shape is None or len(shape) != 2:
        return Refusal("its output has no noted shape", node)
    flow.pin(table.axes[0], "any row may be looked up", node)
    zero = np.full(1, False) if weight is None else ~nonzero(weight).any(0)
    const = np.where(zero, 0.0, np.nan)
    first = outputs(((Factor(shape[0]),),), table.axes[1], (), const)
    others = [opaque(shapes.get(at) or ()) for at in (1, 2, 3)]
    return first, *others
