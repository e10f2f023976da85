"""Transfer rules of windows: places are laid out in rows, or added up again; and of sampling."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from torch.fx.node import Node

from fxprune.factors import Axis, Factor, Value, unknown, with_axis
from fxprune.flow import Flow, transfer
from fxprune.pattern import Refusal
from fxprune.regroup import split_factor

from .flow_parts import with_axis_unknown


@transfer("im2col")
def unfolded(flow: Flow, node: Node) -> Value | Refusal:
    """Of each channel as many as a window has places, which go together."""
    value, shape = flow.value(node.args[0]), flow.shape(node)
    padding: Any = flow.argument(node, "padding", 0)
    if shape is None or len(value.axes) != 4:
        return Refusal("its input is no batch of images", node)
    _pin_places(flow, node, value)
    each = _places(flow, node)
    entering = flow.flat(value, 1, node)
    pads = any(padding) if isinstance(padding, (list, tuple)) else bool(padding)
    given = np.where(entering.spread == 0, 0.0, np.nan) if pads else entering.spread
    axis: Axis = (entering.factor, Factor(each)) if each > 1 else (entering.factor,)
    axes = (value.axes[0], axis, (Factor(shape[2]),))
    return with_axis(unknown(axes), 1, axis, np.repeat(given, each))


@transfer("col2im")
def folded(flow: Flow, node: Node) -> Value | Refusal:
    """The places of windows are added up within each channel."""
    value, shape = flow.value(node.args[0]), flow.shape(node)
    if shape is None or len(value.axes) != 3:
        return Refusal("its input is no batch of windows", node)
    _pin_places(flow, node, value)
    each = _places(flow, node)
    entering = flow.flat(value, 1, node)
    parts = (entering.size // each, each)
    axis: Axis = (split_factor(flow.atoms, entering.factor, parts, 0)[0],)
    const = np.where((entering.spread.reshape(parts) == 0).all(1), 0.0, np.nan)
    axes = (value.axes[0], axis, (Factor(shape[2]),), (Factor(shape[3]),))
    return with_axis(unknown(axes), 1, axis, const)


@transfer("unfold")
def windows(flow: Flow, node: Node) -> Value | Refusal:
    """Windows along one axis, whose places are a new last axis; others pass."""
    value, shape = flow.value(node.args[0]), flow.shape(node)
    if shape is None or not value.axes:
        return Refusal("its output has no noted shape", node)
    dim = int(flow.argument(node, "dimension")) % len(value.axes)
    flow.pin(value.axes[dim], "windows run over it", node)
    found = with_axis_unknown(value, dim, (Factor(shape[dim]),))
    return Value((*found.axes, (Factor(shape[-1]),)), found.const[..., None])


@transfer("grid_sampler grid_sampler_2d grid_sampler_3d")
def sampled(flow: Flow, node: Node) -> Value | Refusal:
    """Each channel at places that another tensor tells."""
    value, grid, shape = flow.value(node.args[0]), flow.value(node.args[1]), flow.shape(node)
    if shape is None or len(value.axes) != len(shape):
        return Refusal("its input is no batch of images", node)
    _pin_places(flow, node, value)
    flow.pin_value(grid, "it tells places", node)
    axes = (value.axes[0], value.axes[1], *((Factor(size),) for size in shape[2:]))
    given = flow.flat(value, 1, node).const
    return with_axis(unknown(axes), 1, axes[1], np.where(given == 0, 0.0, np.nan))


def _pin_places(flow: Flow, node: Node, value: Value) -> None:
    for axis in value.axes[2:]:
        flow.pin(axis, "places are joined", node)


def _places(flow: Flow, node: Node) -> int:
    """Return how many places a window has."""
    given: Any = flow.argument(node, "kernel_size")
    return math.prod(given) if isinstance(given, (list, tuple)) else int(given) ** 2
