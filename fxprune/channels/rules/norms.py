"""Transfer rules of norms."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch.fx.node import Node

from fxprune.channels import (
    Array,
    Axis,
    Factor,
    Flow,
    FollowError,
    Value,
    known_along,
    split_factor,
    transfer,
    unknown,
)
from fxprune.channels.rules.linear import numbers

_COUNTS = "a norm counts all channels"


@transfer("batch_norm instance_norm")
def batch_norm(flow: Flow, node: Node) -> Value:
    """Each channel of axis 1 alone; with stored statistics affine, else a constant is the bias."""
    value = flow.value(node.args[0])
    if len(value.axes) < 2:
        raise FollowError("its input has no channels")
    roles = ("weight", "bias", "running_mean", "running_var")
    axis = _tie_vectors(flow, node, value.axes[1], roles)
    given = flow.flat(value, 1, node).spread
    scale, offset = _vectors(flow, node)
    const = _affine(_normalize(flow, node, given), scale, offset)
    alone = _affine(np.where(np.isnan(given), np.nan, 0.0), scale, offset)
    found = known_along(value.axes_with(1, axis), 1, const)
    with np.errstate(invalid="ignore"):
        away = ~(np.abs(const - alone) <= 1e-12)
    flow.shift(node, found, away.reshape(found.const.shape))
    return found


def _tie_vectors(flow: Flow, node: Node, axis: Axis, roles: Sequence[str]) -> Axis:
    """Tie stored vectors to an axis, and return the axis that stands for all of them."""
    for role in roles:
        read = flow.argument(node, role)
        if isinstance(read, Node):
            other = flow.value(read).axes[0]
            axis = flow.tie(axis, other, node, "its channels are made of different parts")
    return axis


def _normalize(flow: Flow, node: Node, given: Array) -> Array:
    """Return the constants of channels before weight and bias, in eval mode."""
    mean, spread = (_vector(flow, node, role) for role in ("running_mean", "running_var"))
    batch = flow.argument(node, "training", flow.argument(node, "use_input_stats", True))
    uses = flow.number(batch)
    if uses is None:
        return np.full(given.shape, np.nan)
    if uses or mean is None or spread is None:  # its own mean
        own = flow.argument(node, "running_mean") is None or uses
        return np.where(np.isnan(given) | (not own), np.nan, 0.0)
    return (given - mean) / np.sqrt(spread + float(flow.argument(node, "eps", 1e-5)))


def _affine(normed: Array, scale: Array, offset: Array) -> Array:
    """Return constants times the weight, plus the bias; a zero weight makes any finite one 0."""
    return np.where(scale == 0, 0.0, normed * scale) + offset


def _vectors(flow: Flow, node: Node) -> tuple[Array, Array]:
    """Return weight and bias; NaN where one is computed."""
    found: list[Array] = []
    for role, absent in (("weight", 1.0), ("bias", 0.0)):
        given = flow.argument(node, role) is not None
        vector = _vector(flow, node, role) if given else np.full(1, absent)
        found.append(np.full(1, np.nan) if vector is None else vector)
    return found[0], found[1]


def _vector(flow: Flow, node: Node, role: str) -> Array | None:
    found = flow.concrete(flow.argument(node, role))
    return None if found is None else numbers(found)


@transfer("group_norm")
def group_norm(flow: Flow, node: Node) -> Value:
    """Whole groups may go; within one all channels count."""
    value = flow.value(node.args[0])
    groups = int(flow.argument(node, "num_groups"))
    entering = flow.flat(value, 1, node)
    parts = split_factor(flow.atoms, entering.factor, (groups, entering.size // groups), 0)
    if groups == 1:
        flow.atoms.pin(parts[0].atoms, _COUNTS, node)
    axis: Axis = tuple(part for part in parts if part.size > 1) or (Factor(1),)
    axis = _tie_vectors(flow, node, axis, ("weight", "bias"))
    flow.edits.append(lambda cut: cut.set_count(node, "num_groups", parts[0].atoms))
    rows = entering.spread.reshape(groups, -1)
    away = rows - rows.mean(1, keepdims=True)
    eps = float(flow.argument(node, "eps", 1e-5))
    normed = (away / np.sqrt(rows.var(1, keepdims=True) + eps)).reshape(-1)
    const = _affine(normed, *_vectors(flow, node))
    return known_along(value.axes_with(1, axis), 1, const)


@transfer("_weight_norm _weight_norm_interface")
def weight_norm(flow: Flow, node: Node) -> Value:
    """Rows of zeros are NaN behind it, so that nothing of its parts is cut."""
    raise FollowError("weight_norm makes a weight of it; remove_parametrizations folds it")


@transfer("layer_norm rms_norm")
def layer_norm(flow: Flow, node: Node) -> Value:
    """The last axes are counted whole, so their channels stay."""
    value = flow.value(node.args[0])
    count = len(flow.argument(node, "normalized_shape"))
    for axis in value.axes[len(value.axes) - count :]:
        flow.pin(axis, _COUNTS, node)
    for role in ("weight", "bias"):
        flow.pin_value(flow.value(flow.argument(node, role)), _COUNTS, node)
    return unknown(value.axes)
