"""Transfer rules of shuffles: places become channels, channels places, or change theirs."""

from __future__ import annotations

import numpy as np
from torch.fx.node import Node

from fxprune.factors import Factor, Value, unknown, with_axis
from fxprune.flow import Flow, transfer
from fxprune.pattern import Refusal
from fxprune.regroup import split_factor


@transfer("pixel_shuffle")
def spread_out(flow: Flow, node: Node) -> Value | Refusal:
    """Of every r * r channels one image r times as large in each direction."""
    value, shape = flow.value(node.args[0]), flow.shape(node)
    if shape is None or len(value.axes) != 4:
        return Refusal("its input is no batch of images", node)
    each = int(flow.argument(node, "upscale_factor")) ** 2
    entering = flow.flat(value, 1, node)
    channels = split_factor(flow.atoms, entering.factor, (entering.size // each, each), 0)[0]
    rows = entering.spread.reshape(-1, each)
    const = np.where((rows == rows[:, :1]).all(1), rows[:, 0], np.nan)
    return _image(flow, node, value, (channels,), shape, const)


@transfer("pixel_unshuffle")
def gathered(flow: Flow, node: Node) -> Value | Refusal:
    """Of each channel r * r smaller ones, which go together."""
    value, shape = flow.value(node.args[0]), flow.shape(node)
    if shape is None or len(value.axes) != 4:
        return Refusal("its input is no batch of images", node)
    each = int(flow.argument(node, "downscale_factor")) ** 2
    entering = flow.flat(value, 1, node)
    const = np.repeat(entering.spread, each)
    return _image(flow, node, value, (entering.factor, Factor(each)), shape, const)


def _image(
    flow: Flow,
    node: Node,
    value: Value,
    axis: tuple[Factor, ...],
    shape: tuple[int, ...],
    const: np.ndarray,
) -> Value:
    for place in value.axes[2:]:
        flow.pin(place, "places become channels, or the other way round", node)
    axes = (value.axes[0], axis, (Factor(shape[2]),), (Factor(shape[3]),))
    return with_axis(unknown(axes), 1, axis, const)


@transfer("channel_shuffle native_channel_shuffle")
def interleaved(flow: Flow, node: Node) -> Value | Refusal:
    """Channels of groups, one of each after the other; the same place goes from all groups."""
    value = flow.value(node.args[0])
    groups = int(flow.argument(node, "groups"))
    if len(value.axes) < 2:
        return Refusal("its input has no channels", node)
    entering = flow.flat(value, 1, node)
    parts = (groups, entering.size // groups)
    each = split_factor(flow.atoms, entering.factor, parts, 1)[1]
    const = entering.spread.reshape(parts).T.reshape(-1)
    return with_axis(unknown(value.axes), 1, (each, Factor(groups)), const)
