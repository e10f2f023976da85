"""Transfer rules of norms, pooling and resizing."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.fx.node import Node

from fxprune import ops
from fxprune.factors import Array, Axis, Factor, Value, sizes_of
from fxprune.flow import Flow, transfer
from fxprune.pattern import Refusal
from fxprune.regroup import split_factor


@transfer("batch_norm | _native_batch_norm_legit | cudnn_batch_norm | native_batch_norm")
def batch_norm(flow: Flow, node: Node) -> Value | Refusal:
    """Each channel of axis 1 alone; in eval mode, affine."""
    return _per_channel(flow, node, "running_mean", "running_var")


@transfer("instance_norm")
def instance_norm(flow: Flow, node: Node) -> Value | Refusal:
    """Each channel of axis 1 alone; what is constant becomes the bias."""
    uses = flow.argument(node, "use_input_stats", True)
    live = isinstance(uses, Node)
    if live or not uses:
        return _per_channel(flow, node, "running_mean", "running_var")
    found = _tied_to_channels(flow, node, "running_mean", "running_var")
    if isinstance(found, Refusal):
        return found
    weight, bias = _vector(flow, node, "weight"), _vector(flow, node, "bias")
    given = flow.flat(found, 1, node).const
    constant = 0.0 if bias is None else bias
    const = np.where(
        ~np.isnan(given) if weight is None else ~np.isnan(given) | (weight == 0), constant, np.nan
    )
    return _along_channels(found, const)


def _per_channel(flow: Flow, node: Node, mean: str, var: str) -> Value | Refusal:
    found = _tied_to_channels(flow, node, mean, var)
    if isinstance(found, Refusal):
        return found
    given = flow.flat(found, 1, node).const
    means, spreads = _vector(flow, node, mean), _vector(flow, node, var)
    weight, bias = _vector(flow, node, "weight"), _vector(flow, node, "bias")
    constant = np.zeros(1) if bias is None else bias
    if means is None or spreads is None:
        scaled = np.full(1, np.nan)
    else:
        scaled = (given - means) / np.sqrt(spreads + float(flow.argument(node, "eps", 1e-5)))
    if weight is not None:
        scaled = np.where(weight == 0, 0.0, scaled * weight)
    return _along_channels(found, scaled + constant)


def _tied_to_channels(flow: Flow, node: Node, *more: str) -> Value | Refusal:
    value = flow.value(node.args[0])
    if len(value.axes) < 2:
        return Refusal("its input has no channels", node)
    axis = value.axes[1]
    for role in ("weight", "bias", *more):
        read = flow.argument(node, role)
        if isinstance(read, Node) and flow.value(read).axes:
            axis = flow.tie(axis, flow.value(read).axes[0], node) or axis
    return (
        Value((value.axes[0], axis, *value.axes[2:]), value.const)
        if axis == value.axes[1]
        else _retied(value, axis)
    )


def _retied(value: Value, axis: Axis) -> Value:
    """Return a value with axis 1 made of finer factors."""
    first = value.first_factor(1)
    old = value.axes[1]
    shape = list(value.const.shape)
    cells = np.broadcast_to(
        value.const,
        [
            f.size if first <= i < first + len(old) else n
            for i, (f, n) in enumerate(zip(value.factors, shape, strict=True))
        ],
    )
    sizes = [*shape[:first], *(factor.size for factor in axis), *shape[first + len(old) :]]
    return Value((value.axes[0], axis, *value.axes[2:]), cells.reshape(sizes))


def _vector(flow: Flow, node: Node, role: str) -> Array | None:
    tensor = flow.concrete(flow.argument(node, role))
    return None if tensor is None else tensor.detach().to("cpu", torch.float64).numpy()


def _along_channels(value: Value, const: Array) -> Value:
    sizes = [factor.size for factor in value.axes[1]]
    before = len(value.axes[0])
    after = sum(map(len, value.axes[2:]))
    spread = np.broadcast_to(const, (sizes_of(value.axes[1]),))
    return Value(value.axes, spread.reshape([1] * before + sizes + [1] * after))


@transfer("group_norm | native_group_norm")
def group_norm(flow: Flow, node: Node) -> Value | Refusal:
    """Whole groups may go; within one all channels count."""
    value = flow.value(node.args[0])
    groups = int(flow.argument(node, "num_groups", flow.argument(node, "group", 1)))
    entering = flow.flat(value, 1, node)
    parts = split_factor(flow.atoms, entering.factor, (groups, entering.size // groups), 0)
    atoms = parts[0].atoms
    axis: Axis = tuple(part for part in parts if part.size > 1) or (Factor(1),)
    for role in ("weight", "bias"):
        read = flow.argument(node, role)
        if isinstance(read, Node):
            axis = flow.tie(axis, flow.value(read).axes[0], node) or axis
    if atoms is not None:
        if groups == 1:
            flow.atoms.pin(atoms, "a norm counts all channels", node)
        flow.edits.append(lambda cut: cut.set_count(node, "num_groups", atoms))
    const = np.broadcast_to(entering.const, (entering.size,)).reshape(groups, -1)
    eps = float(flow.argument(node, "eps", 1e-5))
    spread = const - const.mean(1, keepdims=True)
    normed = (spread / np.sqrt(const.var(1, keepdims=True) + eps)).reshape(-1)
    weight, bias = _vector(flow, node, "weight"), _vector(flow, node, "bias")
    if weight is not None:
        normed = np.where(weight == 0, 0.0, normed * weight)
    return _along_channels(
        Value(
            (value.axes[0], axis, *value.axes[2:]),
            np.full(
                (1,) * (len(value.axes[0]) + len(axis) + sum(map(len, value.axes[2:]))), np.nan
            ),
        ),
        normed + (0.0 if bias is None else bias),
    )


@transfer("layer_norm | native_layer_norm | rms_norm | _fused_rms_norm")
def layer_norm(flow: Flow, node: Node) -> Value | Refusal:
    """The last axes are counted whole, so their channels stay."""
    value = flow.value(node.args[0])
    count = len(flow.argument(node, "normalized_shape", [0]))
    for axis in value.axes[len(value.axes) - count :]:
        flow.pin(axis, "a norm counts all channels", node)
    for role in ("weight", "bias"):
        read = flow.argument(node, role)
        if isinstance(read, Node):
            flow.pin_value(flow.value(read), "a norm counts all channels", node)
    return Value(value.axes, np.full((1,) * value.const.ndim, np.nan))


@transfer(
    "max_pool1d | max_pool2d | max_pool3d | adaptive_avg_pool1d | adaptive_avg_pool2d | "
    "adaptive_avg_pool3d | adaptive_max_pool1d | adaptive_max_pool2d | adaptive_max_pool3d | "
    "upsample_nearest1d | upsample_nearest2d | upsample_nearest3d | upsample_bilinear2d | "
    "upsample_linear1d | upsample_trilinear3d | upsample_bicubic2d | _upsample_nearest_exact2d | "
    "_upsample_bilinear2d_aa | _upsample_bicubic2d_aa | avg_pool1d | avg_pool2d | avg_pool3d | "
    "_adaptive_avg_pool2d | _adaptive_avg_pool3d | lp_pool2d"
)
def pooled(flow: Flow, node: Node) -> Value | Refusal:
    """Places are joined or repeated within each channel; a constant stays one."""
    value, shape = flow.value(node.args[0]), flow.shape(node)
    if shape is None or len(shape) < 3 or len(value.axes) != len(shape):
        return Refusal("its output has no noted shape of batch, channels and places", node)
    axes = (*value.axes[:2], *((Factor(size),) for size in shape[2:]))
    given = flow.flat(value, 1, node).const
    name = ops.canonical_name(node.target)
    if name.startswith("avg_pool") and _averages_zeros(flow, node):
        given = np.where(given == 0, given, np.nan)
    if name == "lp_pool2d":
        given = np.full(1, np.nan)
    rank = sum(map(len, axes))
    return _along_channels(Value(axes, np.full((1,) * rank, np.nan)), given)


def _averages_zeros(flow: Flow, node: Node) -> bool:
    padding: Any = flow.argument(node, "padding", 0)
    pads = any(padding) if isinstance(padding, (list, tuple)) else bool(padding)
    ceil = bool(flow.argument(node, "ceil_mode", False))
    return (pads and bool(flow.argument(node, "count_include_pad", True))) or ceil
