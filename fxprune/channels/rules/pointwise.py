"""Transfer rules of operators that work entry by entry: channels pass, operands are tied.

Transfer rules of what is no tensor, or owes nothing to the channels of its inputs.
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
    Value,
    broadcast,
    opaque,
    transfer,
    unknown,
    with_axis,
)
from fxprune.channels.rules.linear import with_numbers
from fxprune.channels.rules.parts import with_axis_unknown
from fxprune.program import TRAIN, VALUE, is_product, ops
from fxprune.rewrite import Refusal

# Second names that torch has for operators.
_PLAIN = {"multiply": "mul", "divide": "div", "true_divide": "div", "subtract": "sub"}


@transfer(
    "relu relu6 gelu silu sigmoid tanh elu selu celu leaky_relu hardtanh hardsigmoid hardswish "
    "mish softplus softsign logsigmoid log_sigmoid abs neg sqrt rsqrt exp exp2 log log1p log2 "
    "log10 expm1 sin cos tan sinh cosh asin acos atan asinh acosh atanh square reciprocal clamp "
    "clamp_min clamp_max erf erfc tanhshrink softshrink hardshrink pow threshold rrelu sign floor "
    "ceil round trunc frac nan_to_num sinc logit sgn deg2rad rad2deg special_expit "
    "absolute negative clip fix arccos arcsin arctan arccosh arcsinh arctanh"
)
def pointwise(flow: Flow, node: Node) -> Value | Refusal | None:
    """A function of one tensor, of which NaN is NaN."""
    values = [read for read in node.all_input_nodes if read in flow.values]
    if len(values) != 1 or values[0] is not node.args[0]:
        return _several(flow, node)
    value = flow.value(node.args[0])
    if flow.number(flow.argument(node, "training", False)) is not False:
        pin_random(flow, node, value)
        return unknown(value.axes)
    return Value(value.axes, _computed(node, value.const))


@transfer(
    "dropout dropout1d dropout2d dropout3d feature_dropout alpha_dropout feature_alpha_dropout "
    "native_dropout"
)
def dropout(flow: Flow, node: Node) -> Value | Refusal:
    """In eval mode, what it is given."""
    value = flow.value(node.args[0])
    if flow.shape(node) is None:
        return Refusal("it has several outputs", node)
    zero = "alpha" not in ops.canonical_name(node.target)
    settled = (value.const == 0) & zero
    train = flow.argument(node, "train", flow.argument(node, "training", True))
    if flow.number(train) is not False:
        pin_random(flow, node, value)
        return Value(value.axes, np.where(settled, 0.0, np.nan))
    flow.shift(node, value, ~settled)
    return value


@transfer("clone contiguous detach alias lift_fresh_copy lift_fresh identity positive")
def unchanged(flow: Flow, node: Node) -> Value | Refusal:
    """What it is given."""
    return flow.value(node.args[0])


@transfer("to _to_copy type_as float double half bfloat16")
def cast(flow: Flow, node: Node) -> Value | Refusal:
    """What it is given, in another dtype."""
    value = flow.value(node.args[0])
    for other in node.all_input_nodes[1:]:  # its dtype alone counts
        met(flow, flow.value(other))
    noted = node.meta.get(VALUE)
    if noted is None or noted[1].is_floating_point:
        return value
    return Value(value.axes, np.where(value.const == 0, 0.0, np.nan))


@transfer("add sub rsub mul div maximum minimum multiply divide true_divide subtract")
def binary(flow: Flow, node: Node) -> Value | Refusal | None:
    """A function of two tensors, or of a tensor and a number."""
    if all(flow.is_number(read) for read in node.all_input_nodes):
        return None
    found = _operands(flow, node)
    if isinstance(found, Refusal) or any(isinstance(arg, Node) for arg in node.kwargs.values()):
        return found if isinstance(found, Refusal) else Refusal("it is scaled by a tensor", node)
    axes, consts, computed = found
    called = ops.canonical_name(node.target)
    name = _PLAIN.get(called, called)
    if computed:  # by a number that is not known before it runs, as a size
        zero = (consts[0] == 0) & (name == "mul" or (name == "div" and node.args[0] in flow.values))
        return Value(axes, np.where(zero, 0.0, np.nan))
    const = _computed(node, *consts)
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
def compared(flow: Flow, node: Node) -> Value | Refusal | None:
    """A function of several tensors, of which constants are not followed."""
    return _several(flow, node)


@transfer("bucketize")
def counted(flow: Flow, node: Node) -> Value | Refusal:
    """Between which bounds each entry lies."""
    flow.pin_value(flow.value(node.args[1]), "all bounds count", node)
    value = flow.value(node.args[0])
    return unknown(value.axes) if value.axes else Refusal("its input is no tensor", node)


@transfer("where")
def chosen(flow: Flow, node: Node) -> Value | Refusal:
    """One of two tensors, entry by entry."""
    found = _operands(flow, node)
    if isinstance(found, Refusal):
        return found
    axes, consts, _ = found
    if len(consts) != 3:
        return unknown(axes)
    return Value(axes, np.where(consts[1] == consts[2], consts[1], np.nan))


@transfer("masked_fill")
def filled(flow: Flow, node: Node) -> Value | Refusal:
    """A tensor with a number where another one says so."""
    found = _operands(flow, node)
    if isinstance(found, Refusal):
        return found
    axes, consts, _ = found
    fill = flow.argument(node, "value")
    if not isinstance(fill, (int, float)):
        return unknown(axes)
    kept = np.where(consts[0] == fill, consts[0], np.nan)
    return Value(axes, np.broadcast_to(kept, np.broadcast_shapes(*(c.shape for c in consts))))


@transfer("glu")
def gated(flow: Flow, node: Node) -> Value | Refusal:
    """One half of an axis times the sigmoid of the other; the halves go together."""
    value = flow.value(node.args[0])
    dim = int(flow.argument(node, "dim", -1)) % max(len(value.axes), 1)
    part = flow.flat(value, dim, node)
    shape = flow.shape(node)
    if part.atoms is None and shape is not None:  # along places: channels pass
        found = with_axis_unknown(value, dim, (Factor(shape[dim]),))
        return Value(found.axes, found.const / (1 + np.exp(-found.const)))
    if part.atoms is None:
        return Refusal("its halves cannot be told apart", node)
    left, right = part.atoms.reshape(2, -1)
    flow.atoms.tie(left, right)
    given, gate = part.spread.reshape(2, -1)
    const = np.where(given == 0, 0.0, given / (1 + np.exp(-gate)))
    return with_axis(value, dim, (Factor(len(const), left),), const)


@transfer("prelu _prelu_kernel")
def prelu(flow: Flow, node: Node) -> Value | Refusal:
    """Slopes for each channel, along axis 1, or one for all."""
    value, slopes = flow.value(node.args[0]), flow.value(node.args[1])
    if len(slopes.axes) != 1 or len(value.axes) < 2 or slopes.shape == (1,):
        flow.pin_value(slopes, "one slope serves all channels", node)
        if slopes.shape not in ((), (1,)):
            return Refusal("its slopes fit no axis", node)
    else:
        tied = flow.tie(value.axes[1], slopes.axes[0], node)
        if tied is None or len(tied) != len(value.axes[1]):
            return Refusal("its slopes fit no axis", node)
        value = Value((value.axes[0], tied, *value.axes[2:]), value.const)
    # Of a number that is not negative the slope does not matter.
    return Value(value.axes, np.where(value.const >= 0, value.const, np.nan))


def _several(flow: Flow, node: Node) -> Value | Refusal | None:
    if all(flow.is_number(read) for read in node.all_input_nodes):
        return None
    found = _operands(flow, node)
    return found if isinstance(found, Refusal) else unknown(found[0])


def _operands(flow: Flow, node: Node) -> Any:
    """Return the joint axes of all tensors, their consts, and whether a number is computed."""
    reads = list(node.all_input_nodes)
    tensors = [arg for arg in _in_order(node) if arg in flow.values]
    strange = [r for r in reads if r not in flow.values and not flow.is_number(r)]
    if strange or not tensors or any(isinstance(flow.values[arg], tuple) for arg in tensors):
        return Refusal("its operands are no tensors", node)
    found = broadcast(flow, node, [_with_numbers(flow, node, arg) for arg in tensors])
    if isinstance(found, Refusal):
        return found
    return *found, any(read not in flow.values for read in reads)


def _with_numbers(flow: Flow, node: Node, arg: Node) -> Value:
    """Return the value of an operand, with its numbers; of a mask's product, without."""
    if is_product(flow.program, node):
        return flow.value(arg)
    return with_numbers(flow, arg, floating=True)


def _in_order(node: Node) -> list[Node]:
    """Return the nodes among the arguments, in order; one as often as it is read."""
    return [arg for arg in (*node.args, *node.kwargs.values()) if isinstance(arg, Node)]


def _computed(node: Node, *consts: Array) -> Array:
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
def number(flow: Flow, node: Node) -> Refusal | None:
    """A number; one that counts channels must not change: what reads it is told otherwise."""
    for read in node.all_input_nodes:
        value = flow.value(read)
        dim = flow.argument(node, "dim")
        if isinstance(dim, int) and value.axes:
            axis = value.axes[dim % len(value.axes)]
            flow.edits.append(lambda cut, axis=axis: cut.keep_count(node, axis))
            met(flow, value)
        else:
            flow.pin_value(value, "they are counted", node)
    return None if flow.shape(node) is None else Refusal("it counts channels", node)


@transfer(
    "count_batch _set_grad_enabled is_grad_enabled enter_autocast exit_autocast _enter_autocast "
    "_exit_autocast device dtype"
)
def nothing(flow: Flow, node: Node) -> None:
    """No channels: batches are counted, a mode of torch is set."""
    for read in node.all_input_nodes:
        for axis in flow.value(read).axes:
            flow.pin(axis, "they are counted", node)


@transfer(
    "linspace eye tril_indices triu_indices rand randn scalar_tensor randint randperm "
    "new_empty new_tensor new_empty_strided empty"
)
def made(flow: Flow, node: Node) -> Value | Refusal:
    """A tensor of given sizes; of an input, the kind alone counts."""
    shape = flow.shape(node)
    if shape is None:
        return Refusal("its output has no noted shape", node)
    _meet_all(flow, node)
    return opaque(shape)


@transfer("zeros ones full new_zeros new_ones new_full")
def fill(flow: Flow, node: Node) -> Value | Refusal:
    """One number everywhere, as of a first hidden state: as many channels as are needed."""
    shape = flow.shape(node)
    if shape is None:
        return Refusal("its output has no noted shape", node)
    _meet_all(flow, node)
    axes = [flow.copies(size) for size in shape]
    flow.edits.append(lambda cut: cut.set_sizes(node, "size", axes))
    return Value(tuple(axes), np.full([1] * sum(map(len, axes)), _fill(node)))


@transfer("arange")
def count_up(flow: Flow, node: Node) -> Value | Refusal:
    """Numbers in order, as the slopes of heads are made of: of them those that are needed."""
    shape = flow.shape(node)
    if shape is None:
        return Refusal("its output has no noted shape", node)
    size = shape[0]
    axis: Axis = (Factor(size, flow.fresh(size) if size < OPEN else None),)
    flow.edits.append(lambda cut: cut.take(node, axis))
    return unknown([axis])


@transfer("zeros_like ones_like full_like empty_like")
def shaped_like(flow: Flow, node: Node) -> Value | Refusal:
    """A tensor of its input's shape."""
    value = flow.value(node.args[0])
    if not value.axes:
        return Refusal("its input is no tensor", node)
    return Value(value.axes, np.full([1] * len(value.factors), _fill(node)))


def _fill(node: Node) -> float:
    """Return the number that a new tensor is filled with; NaN where it is not known."""
    name = ops.canonical_name(node.target)
    given = ops.argument(node, "fill_value") if ops.has_role(node, "fill_value") else None
    if isinstance(given, (int, float)):
        return float(given)
    return 0.0 if "zeros" in name else 1.0 if "ones" in name else math.nan


def _meet_all(flow: Flow, node: Node) -> None:
    """Need nothing of the channels of a tensor of which the kind alone counts."""
    for read in node.all_input_nodes:
        met(flow, flow.value(read))


def met(flow: Flow, value: Value) -> None:
    """Need nothing of the channels of a value."""
    for factor in value.factors:
        if factor.atoms is not None:
            flow.atoms.met(factor.atoms)


@transfer("rand_like randn_like randint_like bernoulli uniform normal exponential random")
def drawn_like(flow: Flow, node: Node) -> Value | Refusal:
    """A tensor of its input's shape, with random numbers."""
    value = flow.value(node.args[0])
    if not value.axes:
        return Refusal("its input is no tensor", node)
    pin_random(flow, node, value)
    return unknown(value.axes)


def pin_random(flow: Flow, node: Node, value: Value) -> None:
    """Let channels stay for which random numbers are drawn in eval mode: others would be."""
    if flow.mode != TRAIN:
        flow.pin_value(value, "a random number is drawn for each", node)
