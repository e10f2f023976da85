"""Transfer rules of pooling and resizing: places are joined or repeated within each channel."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch.fx.node import Node

from fxprune import ops
from fxprune.factors import Axis, Factor, Value, unknown, with_axis
from fxprune.flow import Flow, transfer
from fxprune.pattern import Refusal


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
