"""Transfer rules of convolutions: plain, transposed, depthwise and grouped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch.fx.node import Node

from fxprune.channels import (
    KERNEL,
    Array,
    Axis,
    Factor,
    Flat,
    Flow,
    FollowError,
    Ids,
    Value,
    Weights,
    consume,
    nonzero,
    row_constants,
    split_factor,
    transfer,
)
from fxprune.channels.rules.linear import MISFIT, WeightedSum, outputs
from fxprune.channels.rules.windows import pads
from fxprune.program import ops

_TRANSPOSED = "conv_transpose1d conv_transpose2d conv_transpose3d"


@transfer(f"conv1d conv2d conv3d {_TRANSPOSED} convolution")
def convolution(flow: Flow, node: Node) -> Value:
    """Axis 1 is summed over, within groups."""
    layer = WeightedSum(flow, node)
    value, rows = flow.value(node.args[0]), flow.value(layer.weight)
    weight, shape = flow.concrete(layer.weight), flow.shape(node)
    if weight is None or shape is None:
        raise FollowError("its weight is computed")
    if len(value.axes) != weight.dim() or any(len(axis) != 1 for axis in rows.axes):
        raise FollowError("its input has no batch axis, or its weight is a view")
    for axis in (*value.axes[2:], *rows.axes[2:]):
        flow.pin(axis, KERNEL, node)
    places = tuple((Factor(size),) for size in shape[2:])
    named = "transpose" in ops.canonical_name(node.target)
    transposed = named or bool(flow.argument(node, "transposed", False))
    grouped = int(flow.argument(node, "groups", 1)) > 1
    follow = _in_groups if grouped else _in_one_group
    out, const = follow(layer, value, rows, weight, transposed=transposed)
    return outputs(value.axes[:1], layer.with_bias(out), places, const)


def _in_one_group(
    layer: WeightedSum, value: Value, rows: Value, weight: torch.Tensor, *, transposed: bool
) -> tuple[Axis, Array]:
    flow, node = layer.flow, layer.node
    into, out = (0, 1) if transposed else (1, 0)
    flow.tie(value.axes[1], rows.axes[into], node, MISFIT)
    weight = weight.transpose(0, 1) if transposed else weight
    entering = flow.flat(value, 1, node)
    uniform = not transposed and not pads(flow, node)
    return rows.axes[out], layer.sum_over(entering, weight, rows.axes[out], absorbs=uniform)


def _in_groups(
    layer: WeightedSum, value: Value, rows: Value, weight: torch.Tensor, *, transposed: bool
) -> tuple[Axis, Array]:
    """Follow a convolution in groups.

    With one channel a group, groups go; else the same places go from all groups, so that all keep
    as many.
    """
    flow, node = layer.flow, layer.node
    groups = int(flow.argument(node, "groups"))
    entering = flow.flat(value, 1, node)
    ids = rows.axes[0][0].atoms
    if entering.atoms is None or ids is None:
        raise FollowError("its groups read an input that cannot be cut")
    per_in = entering.size // groups
    per_out = weight.shape[1] if transposed else weight.shape[0] // groups
    out = _through_groups(layer, entering, rows, (groups, per_in, per_out), transposed=transposed)
    uniform = not transposed and not pads(flow, node)
    if per_in == 1:
        flow.edits.append(lambda cut: cut.set_count(node, "groups", entering.atoms))
        const = _each_alone(layer, entering, weight, per_out, uniform=uniform)
    else:
        parts = weight.chunk(groups)
        parts = [part.transpose(0, 1) for part in parts] if transposed else parts
        outs = [rows.axes[1][0].atoms] * groups if transposed else ids.reshape(groups, -1)
        const = _by_group(layer, entering, parts, outs, uniform=uniform)
    return tuple(factor for factor in out if factor.size > 1) or (Factor(1),), const


def _through_groups(
    layer: WeightedSum,
    entering: Flat,
    rows: Value,
    sizes: tuple[int, int, int],
    *,
    transposed: bool,
) -> Sequence[Factor]:
    """Tie inputs to the weight's axes, and return the outputs' factors: groups, and what is in one.

    The sizes are those of groups, and of inputs and outputs of each.
    """
    flow, node, (groups, per_in, per_out) = layer.flow, layer.node, sizes
    tracked = 0 if per_in == 1 else 1
    into = split_factor(flow.atoms, entering.factor, (groups, per_in), tracked)
    if not transposed:
        out = split_factor(flow.atoms, rows.axes[0][0], (groups, per_out), tracked)
        flow.tie((into[tracked],), (out[0],) if tracked == 0 else rows.axes[1], node)
        return out
    if per_in > 1:
        # The weight's axis 0 runs over groups and inputs, its axis 1 over the outputs of each.
        flow.tie(tuple(into), rows.axes[0], node)
        return (Factor(groups), *rows.axes[1])
    flow.tie((into[0],), rows.axes[0], node)
    flow.pin(rows.axes[1], "each group has outputs of its own", node)
    return (into[0], Factor(per_out))


def _each_alone(
    layer: WeightedSum, entering: Flat, weight: torch.Tensor, per_out: int, *, uniform: bool
) -> Array:
    """Return the outputs' constants where each channel is read by its own weights alone."""
    own = weight.reshape(entering.size * per_out, -1)
    given = np.repeat(entering.spread, per_out)
    sums = own.detach().to("cpu", torch.float64).sum(-1).numpy()
    empty = ~nonzero(own).any(-1)
    known = given * sums if uniform else np.full(1, np.nan)
    if entering.atoms is not None:
        layer.flow.atoms.visit(entering.atoms)
    return layer.plus_bias(np.where((empty & np.isfinite(sums)) | (given == 0), 0.0, known))


def _by_group(
    layer: WeightedSum,
    entering: Flat,
    weights: Sequence[torch.Tensor],
    rows: Iterable[Ids | None],
    *,
    uniform: bool,
) -> Array:
    """Consume each group's channels, and return the outputs' constants."""
    groups, per_in = len(weights), weights[0].shape[1]
    atoms = [None] * groups if entering.atoms is None else entering.atoms.reshape(groups, -1)
    consts = entering.spread.reshape(groups, per_in)
    found: list[Array] = []
    for weight, ids, const, outs in zip(weights, atoms, consts, rows, strict=True):
        reads = Weights(weight)
        # A bias could take over constants other than 0 as well: kept simple.
        consume(layer.flow, layer.node, Flat(per_in, ids, const), reads, outs)
        found.append(row_constants(weight, reads, const, None, absorbs=uniform))
    return layer.plus_bias(np.concatenate(found))
