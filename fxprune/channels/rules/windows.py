"""Transfer rules of windows: places are laid out in rows, or added up again; and of sampling.

Transfer rules of pooling and resizing: places are joined or repeated within each channel.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from torch.fx.node import Node

from fxprune.channels import Axis, Factor, Flow, Value, split_factor, transfer, unknown, with_axis
from fxprune.channels.rules.parts import with_axis_unknown
from fxprune.program import ops
from fxprune.rewrite import Refusal


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


@transfer(
    "max_pool1d max_pool2d max_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d "
    "upsample_nearest1d upsample_nearest2d upsample_nearest3d _upsample_nearest_exact1d "
    "_upsample_nearest_exact2d _upsample_nearest_exact3d upsample_linear1d upsample_bilinear2d "
    "upsample_trilinear3d upsample_bicubic2d _upsample_bilinear2d_aa _upsample_bicubic2d_aa "
    "avg_pool1d avg_pool2d avg_pool3d _adaptive_avg_pool2d _adaptive_avg_pool3d"
)
def pooled(flow: Flow, node: Node) -> Value | Refusal:
    """A constant stays one, unless zeros of the padding are averaged with it."""
    value, shape = flow.value(node.args[0]), flow.shape(node)
    places = int(ops.canonical_name(node.target).rstrip("_a")[-2])
    if shape is None or len(value.axes) != places + 2:
        return Refusal("its input has no batch axis", node)
    for axis in value.axes[2:]:
        flow.pin(axis, "places are joined", node)
    given = flow.flat(value, 1, node).const
    if "avg_pool" in str(node.target) and _averages_others(flow, node):
        given = np.where(given == 0, 0.0, np.nan)
    axes: list[Axis] = [*value.axes[:2], *((Factor(size),) for size in shape[2:])]
    return with_axis(unknown(axes), 1, axes[1], given)


def _averages_others(flow: Flow, node: Node) -> bool:
    """Tell whether an average is not one of the input's entries alone."""
    padding: Any = flow.argument(node, "padding", 0)
    pads = any(padding) if isinstance(padding, (list, tuple)) else bool(padding)
    counts = bool(flow.argument(node, "count_include_pad", True))
    ceil = bool(flow.argument(node, "ceil_mode", False))
    return (pads and counts) or ceil or flow.argument(node, "divisor_override") is not None


@transfer(
    "max_pool1d_with_indices max_pool2d_with_indices max_pool3d_with_indices "
    "adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d"
)
def pooled_with_places(flow: Flow, node: Node) -> tuple[Value, ...] | Refusal:
    """The largest entries, and where they are: both channel by channel."""
    value = flow.value(node.args[0])
    read = [user for user in node.users if ops.canonical_name(user.target) == "getitem"]
    shape = next((found for user in read if (found := flow.shape(user)) is not None), None)
    if shape is None or len(shape) < 3 or len(value.axes) != len(shape):
        return Refusal("its outputs have no noted shape", node)
    for axis in value.axes[2:]:
        flow.pin(axis, "places are joined", node)
    axes: list[Axis] = [*value.axes[:2], *((Factor(size),) for size in shape[2:])]
    largest = with_axis(unknown(axes), 1, axes[1], flow.flat(value, 1, node).const)
    return largest, unknown(axes)
