"""Transfer rules of windows, pooling, resizing and sampling: places meet within each channel."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from torch.fx.node import Node

from fxprune.channels import Factor, Flow, FollowError, Value, split_factor, transfer, unknown
from fxprune.channels.rules.parts import image, pin_places, with_axis_unknown
from fxprune.program import ops


@transfer("im2col")
def im2col(flow: Flow, node: Node) -> Value:
    """Of each channel as many as a window has places, which go together."""
    value, shape = flow.value(node.args[0]), flow.shape(node)
    if shape is None or len(value.axes) != 4:
        raise FollowError("its input is no batch of images")
    pin_places(flow, node, value)
    each = _window_size(flow, node)
    entering = flow.flat(value, 1, node)
    const = entering.spread
    if pads(flow, node):
        const = np.where(const == 0, 0.0, np.nan)
    axis = (entering.factor, Factor(each)) if each > 1 else (entering.factor,)
    return image(value, axis, shape, np.repeat(const, each))


@transfer("col2im")
def col2im(flow: Flow, node: Node) -> Value:
    """The places of windows are added up within each channel."""
    value, shape = flow.value(node.args[0]), flow.shape(node)
    if shape is None or len(value.axes) != 3:
        raise FollowError("its input is no batch of windows")
    pin_places(flow, node, value)
    each = _window_size(flow, node)
    entering = flow.flat(value, 1, node)
    parts = (entering.size // each, each)
    channels = split_factor(flow.atoms, entering.factor, parts, 0)[0]
    const = np.where((entering.spread.reshape(parts) == 0).all(1), 0.0, np.nan)
    return image(value, (channels,), shape, const)


def _window_size(flow: Flow, node: Node) -> int:
    """Return how many places a window has."""
    size: Any = flow.argument(node, "kernel_size")
    return math.prod(size) if isinstance(size, (list, tuple)) else int(size) ** 2


@transfer("unfold")
def unfold(flow: Flow, node: Node) -> Value:
    """Windows along one axis, whose places are a new last axis; others pass."""
    value, shape = flow.value(node.args[0]), flow.shape(node)
    if shape is None or not value.axes:
        raise FollowError("its output has no noted shape")
    dim = flow.dim(node, value, role="dimension")
    flow.pin(value.axes[dim], "windows run over it", node)
    found = with_axis_unknown(value, dim, (Factor(shape[dim]),))
    return Value((*found.axes, (Factor(shape[-1]),)), found.const[..., None])


@transfer("grid_sampler grid_sampler_2d grid_sampler_3d")
def grid_sampler(flow: Flow, node: Node) -> Value:
    """Each channel at places that another tensor tells."""
    value, grid, shape = flow.value(node.args[0]), flow.value(node.args[1]), flow.shape(node)
    if shape is None or len(value.axes) != len(shape):
        raise FollowError("its input is no batch of images")
    pin_places(flow, node, value)
    flow.pin_value(grid, "it tells places", node)
    const = flow.flat(value, 1, node).const
    const = np.where(const == 0, 0.0, np.nan)
    return image(value, value.axes[1], shape, const)


@transfer(
    "max_pool1d max_pool2d max_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d "
    "upsample_nearest1d upsample_nearest2d upsample_nearest3d _upsample_nearest_exact1d "
    "_upsample_nearest_exact2d _upsample_nearest_exact3d upsample_linear1d upsample_bilinear2d "
    "upsample_trilinear3d upsample_bicubic2d _upsample_bilinear2d_aa _upsample_bicubic2d_aa "
    "avg_pool1d avg_pool2d avg_pool3d _adaptive_avg_pool2d _adaptive_avg_pool3d"
)
def pool(flow: Flow, node: Node) -> Value:
    """A constant stays one, unless zeros of the padding are averaged with it."""
    value, shape = flow.value(node.args[0]), flow.shape(node)
    places = int(ops.canonical_name(node.target).rstrip("_a")[-2])
    if shape is None or len(value.axes) != places + 2:
        raise FollowError("its input has no batch axis")
    pin_places(flow, node, value)
    const = flow.flat(value, 1, node).const
    if "avg_pool" in str(node.target) and _averages_others(flow, node):
        const = np.where(const == 0, 0.0, np.nan)
    return image(value, value.axes[1], shape, const)


def pads(flow: Flow, node: Node) -> bool:
    """Tell whether an operator puts zeros around its input."""
    padding: Any = flow.argument(node, "padding", 0)
    if isinstance(padding, str):
        return padding != "valid"
    return any(padding) if isinstance(padding, (list, tuple)) else bool(padding)


def _averages_others(flow: Flow, node: Node) -> bool:
    """Tell whether an average is not one of the input's entries alone."""
    counts = bool(flow.argument(node, "count_include_pad", True))
    ceil = bool(flow.argument(node, "ceil_mode", False))
    divisor = flow.argument(node, "divisor_override")
    return (pads(flow, node) and counts) or ceil or divisor is not None


@transfer(
    "max_pool1d_with_indices max_pool2d_with_indices max_pool3d_with_indices "
    "adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d"
)
def pool_with_indices(flow: Flow, node: Node) -> tuple[Value, ...]:
    """The largest entries, and where they are: both channel by channel."""
    value = flow.value(node.args[0])
    reads = [user for user in node.users if ops.canonical_name(user.target) == "getitem"]
    shape = next((found for user in reads if (found := flow.shape(user)) is not None), None)
    if shape is None or len(shape) < 3 or len(value.axes) != len(shape):
        raise FollowError("its outputs have no noted shape")
    pin_places(flow, node, value)
    const = flow.flat(value, 1, node).const
    largest = image(value, value.axes[1], shape, const)
    return largest, unknown(largest.axes)
