"""Transfer rules of what is no tensor, or owes nothing to the channels of its inputs."""

from __future__ import annotations

import math

import numpy as np
from torch.fx.node import Node

from fxprune import ops
from fxprune.factors import Axis, Factor, Value, opaque, unknown
from fxprune.flow import Flow, transfer
from fxprune.pattern import Refusal
from fxprune.program import TRAIN
from fxprune.sizes import OPEN


@transfer(
    "sym_size sym_numel sym_stride sym_float sym_max sym_min sym_sum floordiv truediv mod "
    "sym_not sym_ite sym_sqrt numel size"
)
def number(flow: Flow, node: Node) -> Refusal | None:
    """A number; one that counts channels must not change: what reads it is told otherwise."""
    for read in node.all_input_nodes:
        value = flow.value(read)
        dim = flow.argument(node, "dim")
        if isinstance(dim, int) and value.axes:
            axis = value.axes[dim % len(value.axes)]
            flow.edits.append(lambda cut, axis=axis: cut.keep_count(node, axis))
            met(flow, value)
        else:
            flow.pin_value(value, "they are counted", node)
    return None if flow.shape(node) is None else Refusal("it counts channels", node)


@transfer(
    "count_batch _set_grad_enabled is_grad_enabled enter_autocast exit_autocast _enter_autocast "
    "_exit_autocast device dtype"
)
def nothing(flow: Flow, node: Node) -> None:
    """No channels: batches are counted, a mode of torch is set."""
    for read in node.all_input_nodes:
        for axis in flow.value(read).axes:
            flow.pin(axis, "they are counted", node)


@transfer(
    "linspace eye tril_indices triu_indices rand randn scalar_tensor randint randperm "
    "new_empty new_tensor new_empty_strided empty"
)
def made(flow: Flow, node: Node) -> Value | Refusal:
    """A tensor of given sizes; of an input, the kind alone counts."""
    shape = flow.shape(node)
    if shape is None:
        return Refusal("its output has no noted shape", node)
    _meet_all(flow, node)
    return opaque(shape)


@transfer("zeros ones full new_zeros new_ones new_full")
def filled(flow: Flow, node: Node) -> Value | Refusal:
    """One number everywhere, as of a first hidden state: as many channels as are needed."""
    shape = flow.shape(node)
    if shape is None:
        return Refusal("its output has no noted shape", node)
    _meet_all(flow, node)
    axes = [flow.copies(size) for size in shape]
    flow.edits.append(lambda cut: cut.set_sizes(node, "size", axes))
    return Value(tuple(axes), np.full([1] * sum(map(len, axes)), _fill(node)))


@transfer("arange")
def counted(flow: Flow, node: Node) -> Value | Refusal:
    """Numbers in order, as the slopes of heads are made of: of them those that are needed."""
    shape = flow.shape(node)
    if shape is None:
        return Refusal("its output has no noted shape", node)
    size = shape[0]
    axis: Axis = (Factor(size, flow.fresh(size) if size < OPEN else None),)
    flow.edits.append(lambda cut: cut.take(node, axis))
    return unknown([axis])


@transfer("zeros_like ones_like full_like empty_like")
def shaped_like(flow: Flow, node: Node) -> Value | Refusal:
    """A tensor of its input's shape."""
    value = flow.value(node.args[0])
    if not value.axes:
        return Refusal("its input is no tensor", node)
    return Value(value.axes, np.full([1] * len(value.factors), _fill(node)))


def _fill(node: Node) -> float:
    """Return the number that a new tensor is filled with; NaN where it is not known."""
    name = ops.canonical_name(node.target)
    given = ops.argument(node, "fill_value") if ops.has_role(node, "fill_value") else None
    if isinstance(given, (int, float)):
        return float(given)
    return 0.0 if "zeros" in name else 1.0 if "ones" in name else math.nan


def _meet_all(flow: Flow, node: Node) -> None:
    """Need nothing of the channels of a tensor of which the kind alone counts."""
    for read in node.all_input_nodes:
        met(flow, flow.value(read))


def met(flow: Flow, value: Value) -> None:
    """Need nothing of the channels of a value."""
    for factor in value.factors:
        if factor.atoms is not None:
            flow.atoms.met(factor.atoms)


@transfer("rand_like randn_like randint_like bernoulli uniform normal exponential random")
def drawn_like(flow: Flow, node: Node) -> Value | Refusal:
    """A tensor of its input's shape, with random numbers."""
    value = flow.value(node.args[0])
    if not value.axes:
        return Refusal("its input is no tensor", node)
    pin_random(flow, node, value)
    return unknown(value.axes)


def pin_random(flow: Flow, node: Node, value: Value) -> None:
    """Let channels stay for which random numbers are drawn in eval mode: others would be."""
    if flow.mode != TRAIN:
        flow.pin_value(value, "a random number is drawn for each", node)
