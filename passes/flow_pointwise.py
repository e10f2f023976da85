"""Transfer rules of operators that work entry by entry: channels pass, operands are tied."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch.fx.node import Node, map_arg

from fxprune import ops
from fxprune.factors import Array, Axis, Factor, Value, sizes_of
from fxprune.flow import Flow, transfer
from fxprune.pattern import Refusal

__all__ = ["broadcast"]


@transfer(
    "relu | relu6 | gelu | silu | sigmoid | tanh | elu | selu | celu | leaky_relu | hardtanh | "
    "hardsigmoid | hardswish | mish | softplus | softsign | logsigmoid | log_sigmoid | abs | neg | "
    "sqrt | rsqrt | exp | log | log1p | expm1 | sin | cos | square | reciprocal | clamp | clamp_min "
    "| clamp_max | erf | tanhshrink | softshrink | hardshrink | pow | threshold | rrelu"
)
def pointwise(flow: Flow, node: Node) -> Value | Refusal:
    """A function of one tensor, of which NaN is NaN."""
    reads = node.all_input_nodes
    if len([read for read in reads if read in flow.values]) != 1 or node.args[0] not in flow.values:
        return Refusal("it takes more than one tensor", node)
    value = flow.value(node.args[0])
    return Value(value.axes, _computed(node, value.const))


@transfer(
    "dropout | dropout1d | dropout2d | dropout3d | feature_dropout | alpha_dropout | clone | "
    "contiguous | detach | alias | to | _to_copy | lift_fresh_copy | identity | "
    "feature_alpha_dropout | type_as | positive"
)
def unchanged(flow: Flow, node: Node) -> Value | Refusal:
    """In eval mode, what it is given."""
    return flow.value(node.args[0])


@transfer("add | sub | rsub | mul | div | maximum | minimum | atan2 | hypot")
def binary(flow: Flow, node: Node) -> Value | Refusal:
    """A function of two tensors, or of a tensor and a number."""
    name = ops.canonical_name(node.target)
    operands = [arg for arg in node.args[:2] if isinstance(arg, Node) and arg in flow.values]
    values = [flow.value(arg) for arg in operands]
    if any(isinstance(flow.values[arg], tuple) for arg in operands) or not values:
        return Refusal("its operands are no tensors", node)
    found = broadcast(flow, node, values)
    if isinstance(found, Refusal):
        return found
    axes, consts = found
    if len(values) == 1 and any(isinstance(a, Node) and a is not operands[0] for a in node.args):
        # A number that is computed, as from a size.
        zero = name == "mul"
        return Value(axes, np.where(consts[0] == 0, 0.0, np.nan) if zero else consts[0] * np.nan)
    const = _computed(node, *consts)
    if name == "mul" and len(consts) == 2:
        # Zero times what is not known is zero, where that is finite.
        const = np.where((consts[0] == 0) | (consts[1] == 0), 0.0, const)
    if name == "div" and len(consts) == 2:
        const = np.where((consts[0] == 0) & np.isnan(consts[1]), 0.0, const)
    return Value(axes, const)


@transfer("prelu | _prelu_kernel")
def prelu(flow: Flow, node: Node) -> Value | Refusal:
    """Slopes for each channel, along axis 1."""
    value, slopes = flow.value(node.args[0]), flow.value(node.args[1])
    weight = flow.concrete(node.args[1])
    if weight is None:
        return Refusal("its slopes are computed", node)
    if weight.numel() > 1 and len(value.axes) > 1:
        axis = max(range(len(slopes.axes)), key=lambda a: sizes_of(slopes.axes[a]))
        tied = flow.tie(value.axes[1], slopes.axes[axis], node)
        if tied is None:
            return Refusal("its slopes fit no axis", node)
        value = Value((value.axes[0], tied, *value.axes[2:]), value.const)
    elif len(slopes.axes):
        flow.pin_value(slopes, "one slope serves all channels", node)
    const = value.const
    # Zero is zero whatever the slope; of a positive number the slope does not matter.
    return Value(value.axes, np.where(const >= 0, const, np.nan))


def broadcast(
    flow: Flow, node: Node, values: Sequence[Value]
) -> tuple[tuple[Axis, ...], list[Array]] | Refusal:
    """Tie the axes of operands that meet.

    Returns:
        The axes of the result, and the operands' consts with one dimension for each of its factors.
    """
    rank = max(len(value.axes) for value in values)
    axes: list[Axis] = []
    for at in range(-rank, 0):
        met = [value.axes[at] for value in values if len(value.axes) >= -at]
        size = max(sizes_of(axis) for axis in met)
        joined: Axis | None = None
        for axis in met:
            if sizes_of(axis) != size:
                if sizes_of(axis) != 1:
                    return Refusal("its operands' sizes do not fit", node)
                continue
            joined = axis if joined is None else flow.tie(joined, axis, node)
            if joined is None:
                return Refusal("its operands' axes are made of different parts", node)
        axes.append(joined or (Factor(1),))
    return tuple(axes), [_spread(value, axes) for value in values]


def _spread(value: Value, axes: Sequence[Axis]) -> Array:
    """Return const with a dimension for each factor of the axes that the value is broadcast to."""
    dims: list[int] = []
    missing = len(axes) - len(value.axes)
    at = 0
    for i, axis in enumerate(axes):
        old = value.axes[i - missing] if i >= missing else ()
        if i < missing or sizes_of(old) != sizes_of(axis):
            dims += [1] * len(axis)
            at += len(old)
            continue
        dims += _refined(value.const.shape[at : at + len(old)], old, axis)
        at += len(old)
    return value.const.reshape(dims)


def _refined(shape: Sequence[int], old: Axis, new: Axis) -> list[int]:
    """Return const's dimensions after each factor of an axis was split into some of another."""
    dims: list[int] = []
    sizes = iter([factor.size for factor in new if factor.size != 1])
    for dim, factor in zip(shape, old, strict=True):
        product = 1
        while product < factor.size:
            size = next(sizes)
            product *= size
            dims.append(size if dim > 1 else 1)
    return dims if len(dims) == len(new) else [*dims, *[1] * (len(new) - len(dims))]


def _computed(node: Node, *consts: Array) -> Array:
    """Run the operator on constants in float64; its numbers are those of the node."""
    given = iter([torch.from_numpy(np.array(const, dtype=np.float64)) for const in consts])
    seen: dict[Node, torch.Tensor] = {}

    def tensor(read: Node) -> Any:
        if read not in seen:
            seen[read] = next(given)
        return seen[read]

    args = map_arg(tuple(node.args), tensor)
    function: Callable[..., Any] = _out_of_place(node.target)
    try:
        return function(*args, **dict(node.kwargs)).numpy().astype(np.float64)
    except (RuntimeError, TypeError, StopIteration, AttributeError):
        return np.full(np.broadcast_shapes(*(const.shape for const in consts)), np.nan)


def _out_of_place(target: Any) -> Callable[..., Any]:
    """Return the operator that does not write to its operand, which here is a broadcast one."""
    name = ops.canonical_name(target)
    packet = getattr(torch.ops.aten, name, None)
    return target if packet is None else packet
