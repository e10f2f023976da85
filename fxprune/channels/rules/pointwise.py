"""Transfer rules of operators that work entry by entry: channels pass, operands are tied.

And of what is no tensor, or owes nothing to the channels of its inputs.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch.fx.node import Node, map_arg

from fxprune.channels import (
    OPEN,
    Array,
    Axis,
    Factor,
    Flow,
    FollowError,
    Value,
    broadcast,
    known_along,
    opaque,
    transfer,
    unknown,
)
from fxprune.channels.rules.linear import with_numbers
from fxprune.channels.rules.parts import with_axis_unknown
from fxprune.program import TRAIN, VALUE, is_product, ops

# Second names that torch has for operators.
_SYNONYMS = {"multiply": "mul", "divide": "div", "true_divide": "div", "subtract": "sub"}


@transfer(
    "relu relu6 gelu silu sigmoid tanh elu selu celu leaky_relu hardtanh hardsigmoid hardswish "
    "mish softplus softsign logsigmoid log_sigmoid abs neg sqrt rsqrt exp exp2 log log1p log2 "
    "log10 expm1 sin cos tan sinh cosh asin acos atan asinh acosh atanh square reciprocal clamp "
    "clamp_min clamp_max erf erfc tanhshrink softshrink hardshrink pow threshold rrelu sign floor "
    "ceil round trunc frac nan_to_num sinc logit sgn deg2rad rad2deg special_expit "
    "absolute negative clip fix arccos arcsin arctan arccosh arcsinh arctanh"
)
def pointwise(flow: Flow, node: Node) -> Value | None:
    """A function of one tensor, of which NaN is NaN."""
    values = [read for read in node.all_input_nodes if read in flow.values]
    if len(values) != 1 or values[0] is not node.args[0]:
        return pointwise_of_several(flow, node)
    value = flow.value(node.args[0])
    if flow.number(flow.argument(node, "training", False)) is not False:
        pin_random(flow, node, value)
        return unknown(value.axes)
    return Value(value.axes, _compute(node, value.const))


@transfer(
    "dropout dropout1d dropout2d dropout3d feature_dropout alpha_dropout feature_alpha_dropout "
    "native_dropout"
)
def dropout(flow: Flow, node: Node) -> Value:
    """In eval mode, what it is given."""
    value = flow.value(node.args[0])
    if flow.shape(node) is None:
        raise FollowError("it has several outputs")
    zero = "alpha" not in ops.canonical_name(node.target)
    settled = (value.const == 0) & zero
    train = flow.argument(node, "train", flow.argument(node, "training", True))
    if flow.number(train) is not False:
        pin_random(flow, node, value)
        return Value(value.axes, np.where(settled, 0.0, np.nan))
    flow.shift(node, value, ~settled)
    return value


@transfer("clone contiguous detach alias lift_fresh_copy lift_fresh identity positive")
def identity(flow: Flow, node: Node) -> Value:
    """What it is given."""
    return flow.value(node.args[0])


@transfer("to _to_copy type_as float double half bfloat16")
def cast(flow: Flow, node: Node) -> Value:
    """What it is given, in another dtype."""
    value = flow.value(node.args[0])
    for other in node.all_input_nodes[1:]:  # its dtype alone counts
        _visit(flow, flow.value(other))
    noted = node.meta.get(VALUE)
    if noted is None or noted[1].is_floating_point:
        return value
    return Value(value.axes, np.where(value.const == 0, 0.0, np.nan))


@transfer("add sub rsub mul div maximum minimum multiply divide true_divide subtract")
def binary(flow: Flow, node: Node) -> Value | None:
    """A function of two tensors, or of a tensor and a number."""
    if all(flow.is_number(read) for read in node.all_input_nodes):
        return None
    axes, consts, computed = _operands(flow, node)
    if any(isinstance(arg, Node) for arg in node.kwargs.values()):
        raise FollowError("it is scaled by a tensor")
    name = ops.canonical_name(node.target)
    name = _SYNONYMS.get(name, name)
    if computed:  # by a number that is not known before it runs, as a size
        zero = (consts[0] == 0) & (name == "mul" or (name == "div" and node.args[0] in flow.values))
        return Value(axes, np.where(zero, 0.0, np.nan))
    const = _compute(node, *consts)
    # Zero times what is not known is zero where that is finite, as is taken for granted.
    if name == "mul" and len(consts) == 2:
        const = np.where((consts[0] == 0) | (consts[1] == 0), 0.0, const)
    if name == "div" and len(consts) == 2:
        const = np.where((consts[0] == 0) & np.isnan(consts[1]), 0.0, const)
    return Value(axes, const)


@transfer(
    "gt ge lt le eq ne logical_and logical_or logical_xor logical_not bitwise_and bitwise_or "
    "bitwise_xor bitwise_not isnan isinf isfinite atan2 hypot remainder fmod floor_divide "
    "addcmul addcdiv lerp xlogy fmax fmin copysign __and__ __or__ __xor__ greater greater_equal "
    "less less_equal not_equal arctan2"
)
def pointwise_of_several(flow: Flow, node: Node) -> Value | None:
    """A function of several tensors, of which constants are not followed."""
    if all(flow.is_number(read) for read in node.all_input_nodes):
        return None
    return unknown(_operands(flow, node)[0])


@transfer("bucketize")
def bucketize(flow: Flow, node: Node) -> Value:
    """Between which bounds each entry lies."""
    flow.pin_value(flow.value(node.args[1]), "all bounds count", node)
    return unknown(_tensor(flow, node).axes)


@transfer("where")
def where(flow: Flow, node: Node) -> Value:
    """One of two tensors, entry by entry."""
    axes, consts, _ = _operands(flow, node)
    if len(consts) != 3:
        return unknown(axes)
    return Value(axes, np.where(consts[1] == consts[2], consts[1], np.nan))


@transfer("masked_fill")
def masked_fill(flow: Flow, node: Node) -> Value:
    """A tensor with a number where another one says so."""
    axes, consts, _ = _operands(flow, node)
    fill = flow.argument(node, "value")
    if not isinstance(fill, (int, float)):
        return unknown(axes)
    kept = np.where(consts[0] == fill, consts[0], np.nan)
    return Value(axes, np.broadcast_to(kept, np.broadcast_shapes(*(c.shape for c in consts))))


@transfer("glu")
def glu(flow: Flow, node: Node) -> Value:
    """One half of an axis times the sigmoid of the other; the halves go together."""
    value = flow.value(node.args[0])
    dim = flow.dim(node, value, -1)
    part = flow.flat(value, dim, node)
    shape = flow.shape(node)
    if part.atoms is None and shape is not None:  # along places: channels pass
        found = with_axis_unknown(value, dim, (Factor(shape[dim]),))
        return Value(found.axes, found.const / (1 + np.exp(-found.const)))
    if part.atoms is None:
        raise FollowError("its halves cannot be told apart")
    left, right = part.atoms.reshape(2, -1)
    flow.atoms.tie(left, right)
    given, gate = part.spread.reshape(2, -1)
    const = np.where(given == 0, 0.0, given / (1 + np.exp(-gate)))
    return known_along(value.axes_with(dim, (Factor(len(const), left),)), dim, const)


_MISFIT = "its slopes fit no axis"


@transfer("prelu _prelu_kernel")
def prelu(flow: Flow, node: Node) -> Value:
    """Slopes for each channel, along axis 1, or one for all."""
    value, slopes = flow.value(node.args[0]), flow.value(node.args[1])
    if len(slopes.axes) != 1 or len(value.axes) < 2 or slopes.shape == (1,):
        flow.pin_value(slopes, "one slope serves all channels", node)
        if slopes.shape not in ((), (1,)):
            raise FollowError(_MISFIT)
    else:
        axis = flow.tie(value.axes[1], slopes.axes[0], node, _MISFIT)
        if len(axis) != len(value.axes[1]):
            raise FollowError(_MISFIT)
        value = Value(value.axes_with(1, axis), value.const)
    # Of a number that is not negative the slope does not matter.
    return Value(value.axes, np.where(value.const >= 0, value.const, np.nan))


def _operands(flow: Flow, node: Node) -> tuple[tuple[Axis, ...], list[Array], bool]:
    """Return the joint axes of all tensors, their consts, and whether a number is computed."""
    args = [arg for arg in (*node.args, *node.kwargs.values()) if isinstance(arg, Node)]
    tensors = [arg for arg in args if arg in flow.values]
    numbers = [read for read in node.all_input_nodes if read not in flow.values]
    strange = not all(map(flow.is_number, numbers))
    if strange or not tensors or any(isinstance(flow.values[arg], tuple) for arg in tensors):
        raise FollowError("its operands are no tensors")
    if is_product(flow.program, node):  # of a parameter and its mask: its numbers are not asked for
        values = [flow.value(arg) for arg in tensors]
    else:
        values = [with_numbers(flow, arg, floating=True) for arg in tensors]
    return *broadcast(flow, node, values), bool(numbers)


def _compute(node: Node, *consts: Array) -> Array:
    """Run the operator on constants in float64; NaN where one of them is not known."""
    shape = np.broadcast_shapes(*(const.shape for const in consts))
    known = np.ones(shape, dtype=np.bool_)
    for const in consts:
        known = known & ~np.isnan(const)
    if not known.any():
        return np.full(shape, np.nan)
    given = iter([torch.from_numpy(np.array(const, dtype=np.float64)) for const in consts])
    packet: Any = getattr(torch.ops.aten, ops.canonical_name(node.target), node.target)
    try:
        args = map_arg(tuple(node.args), lambda _: next(given))
        made = packet(*args, **dict(node.kwargs))
    except (RuntimeError, TypeError, StopIteration):
        return np.full(shape, np.nan)
    return np.where(known, made.to(torch.float64).numpy(), np.nan)


@transfer(
    "sym_size sym_numel sym_stride sym_float sym_max sym_min sym_sum floordiv truediv mod "
    "sym_not sym_ite sym_sqrt numel size"
)
def number(flow: Flow, node: Node) -> None:
    """A number; one that counts channels must not change: what reads it gets the old one."""
    for read in node.all_input_nodes:
        value = flow.value(read)
        dim = flow.argument(node, "dim")
        if isinstance(dim, int) and value.axes:
            axis = value.axes[dim % len(value.axes)]
            flow.edits.append(lambda cut, axis=axis: cut.keep_count(node, axis))
            _visit(flow, value)
        else:
            flow.pin_value(value, "they are counted", node)
    if flow.shape(node) is not None:
        raise FollowError("it counts channels")


@transfer(
    "count_batch _set_grad_enabled is_grad_enabled enter_autocast exit_autocast _enter_autocast "
    "_exit_autocast device dtype"
)
def nothing(flow: Flow, node: Node) -> None:
    """No channels: batches are counted, a mode of torch is set."""
    for read in node.all_input_nodes:
        flow.pin_value(flow.value(read), "they are counted", node)


@transfer(
    "linspace eye tril_indices triu_indices rand randn scalar_tensor randint randperm "
    "new_empty new_tensor new_empty_strided empty"
)
def factory(flow: Flow, node: Node) -> Value:
    """A tensor of given sizes; of an input, the kind alone counts."""
    shape = flow.noted_shape(node)
    _visit_inputs(flow, node)
    return opaque(shape)


@transfer("zeros ones full new_zeros new_ones new_full")
def full(flow: Flow, node: Node) -> Value:
    """One number everywhere, as of a first hidden state: as many channels as are needed."""
    shape = flow.noted_shape(node)
    _visit_inputs(flow, node)
    axes = [flow.copies(size) for size in shape]
    flow.edits.append(lambda cut: cut.set_sizes(node, "size", axes))
    return Value(tuple(axes), np.full([1] * sum(map(len, axes)), _fill(node)))


@transfer("arange")
def arange(flow: Flow, node: Node) -> Value:
    """Numbers in order, as the slopes of heads are made of: of them those that are needed."""
    size = flow.noted_shape(node)[0]
    axis: Axis = (Factor(size, flow.fresh(size) if size < OPEN else None),)
    flow.edits.append(lambda cut: cut.take(node, axis))
    return unknown([axis])


@transfer("zeros_like ones_like full_like empty_like")
def full_like(flow: Flow, node: Node) -> Value:
    """A tensor of its input's shape."""
    value = _tensor(flow, node)
    return Value(value.axes, np.full([1] * len(value.factors), _fill(node)))


def _fill(node: Node) -> float:
    """Return the number that a new tensor is filled with; NaN where it is not known."""
    name = ops.canonical_name(node.target)
    given = ops.argument(node, "fill_value") if ops.has_role(node, "fill_value") else None
    if isinstance(given, (int, float)):
        return float(given)
    return 0.0 if "zeros" in name else 1.0 if "ones" in name else math.nan


def _tensor(flow: Flow, node: Node) -> Value:
    """Return the value of an operator's first input, which has axes."""
    value = flow.value(node.args[0])
    if not value.axes:
        raise FollowError("its input is no tensor")
    return value


def _visit_inputs(flow: Flow, node: Node) -> None:
    """Need nothing of the channels of tensors of which the kind alone counts."""
    for read in node.all_input_nodes:
        _visit(flow, flow.value(read))


def _visit(flow: Flow, value: Value) -> None:
    for factor in value.factors:
        if factor.atoms is not None:
            flow.atoms.visit(factor.atoms)


@transfer("rand_like randn_like randint_like bernoulli uniform normal exponential random")
def random_like(flow: Flow, node: Node) -> Value:
    """A tensor of its input's shape, with random numbers."""
    value = _tensor(flow, node)
    pin_random(flow, node, value)
    return unknown(value.axes)


def pin_random(flow: Flow, node: Node, value: Value) -> None:
    """Let channels stay for which random numbers are drawn in eval mode: others would be."""
    if flow.mode != TRAIN:
        flow.pin_value(value, "a random number is drawn for each", node)
