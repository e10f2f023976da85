"""The functions of torch.nn.functional that are one aten operator, and its arguments."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

__all__ = ["ACTIVATIONS", "FUNCTIONS", "Call"]

aten = torch.ops.aten

# What to call, and with which positional arguments.
Call = tuple[Any, tuple[Any, ...]]

# Functions of (input, *options, inplace), by the operator that takes (input, *options).
ACTIVATIONS = {
    F.relu: "relu",
    F.relu6: "relu6",
    F.hardtanh: "hardtanh",
    F.hardswish: "hardswish",
    F.hardsigmoid: "hardsigmoid",
    F.leaky_relu: "leaky_relu",
    F.elu: "elu",
    F.celu: "celu",
    F.selu: "selu",
    F.silu: "silu",
    F.mish: "mish",
}

# One function for each of torch.nn.functional, with the same signature.


def _dropout(name: str) -> Callable[..., Call | None]:
    def lower(
        input: Any, p: float = 0.5, training: Any = True, inplace: Any = False
    ) -> Call | None:
        if not isinstance(inplace, bool):
            return None
        packet = getattr(aten, f"{name}_" if inplace else name)
        return packet.default, (input, p, training)

    return lower


def _softmax(name: str) -> Callable[..., Call | None]:
    def lower(input: Any, dim: Any = None, _stacklevel: int = 3, dtype: Any = None) -> Call | None:
        if type(dim) is not int:
            return None
        return getattr(aten, name).int, (input, dim, dtype)

    return lower


def _unary(name: str) -> Callable[..., Call | None]:
    return lambda input: (getattr(aten, name).default, (input,))


def _max_pool(name: str) -> Callable[..., Call | None]:
    def lower(
        input: Any,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        dilation: Any = 1,
        ceil_mode: bool = False,
        return_indices: bool = False,
    ) -> Call | None:
        if return_indices is not False:
            return None
        strides = [] if stride is None else stride
        pool = getattr(aten, name).default
        return pool, (input, kernel_size, strides, padding, dilation, ceil_mode)

    return lower


def _adaptive_avg_pool(name: str) -> Callable[..., Call | None]:
    def lower(input: Any, output_size: Any) -> Call | None:
        sizes = output_size if isinstance(output_size, (list, tuple)) else [output_size]
        if not all(type(size) is int for size in sizes):
            return None
        return getattr(aten, name).default, (input, output_size)

    return lower


def _pad(input: Any, pad: Any, mode: str = "constant", value: Any = None) -> Call | None:
    known = isinstance(pad, (list, tuple)) and mode != "replicate"
    return (aten.pad.default, (input, pad, mode, value)) if known else None


def _batch_norm(
    input: Any,
    running_mean: Any,
    running_var: Any,
    weight: Any = None,
    bias: Any = None,
    training: Any = False,
    momentum: Any = 0.1,
    eps: float = 1e-5,
) -> Call:
    statistics = (running_mean, running_var, training, momentum, eps)
    return aten.batch_norm.default, (input, weight, bias, *statistics, _cudnn())


def _instance_norm(
    input: Any,
    running_mean: Any = None,
    running_var: Any = None,
    weight: Any = None,
    bias: Any = None,
    use_input_stats: Any = True,
    momentum: Any = 0.1,
    eps: float = 1e-5,
) -> Call:
    statistics = (running_mean, running_var, use_input_stats, momentum, eps)
    return aten.instance_norm.default, (input, weight, bias, *statistics, _cudnn())


def _layer_norm(
    input: Any, normalized_shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5
) -> Call:
    return aten.layer_norm.default, (input, normalized_shape, weight, bias, eps)


def _group_norm(
    input: Any, num_groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5
) -> Call:
    return aten.group_norm.default, (input, num_groups, weight, bias, eps)


def _rms_norm(input: Any, normalized_shape: Any, weight: Any = None, eps: Any = None) -> Call:
    return aten.rms_norm.default, (input, normalized_shape, weight, eps)


def _embedding(
    input: Any,
    weight: Any,
    padding_idx: Any = None,
    max_norm: Any = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Call | None:
    row = -1 if padding_idx is None else padding_idx
    # Rows counted from the end, and rows that are made shorter in place, need the weight itself.
    if max_norm is not None or type(row) is not int or (padding_idx is not None and row < 0):
        return None
    return aten.embedding.default, (weight, input, row, scale_grad_by_freq, sparse)


def _cudnn() -> bool:
    return bool(torch.backends.cudnn.enabled)


FUNCTIONS: dict[Any, Callable[..., Any]] = {
    F.dropout: _dropout("dropout"),
    F.dropout2d: _dropout("feature_dropout"),
    F.dropout3d: _dropout("feature_dropout"),
    F.alpha_dropout: _dropout("alpha_dropout"),
    F.feature_alpha_dropout: _dropout("feature_alpha_dropout"),
    F.softmax: _softmax("softmax"),
    F.log_softmax: _softmax("log_softmax"),
    F.sigmoid: _unary("sigmoid"),
    F.tanh: _unary("tanh"),
    F.max_pool1d: _max_pool("max_pool1d"),
    F.max_pool2d: _max_pool("max_pool2d"),
    F.max_pool3d: _max_pool("max_pool3d"),
    F.adaptive_avg_pool2d: _adaptive_avg_pool("adaptive_avg_pool2d"),
    F.adaptive_avg_pool3d: _adaptive_avg_pool("adaptive_avg_pool3d"),
    F.pad: _pad,
    F.batch_norm: _batch_norm,
    F.instance_norm: _instance_norm,
    F.layer_norm: _layer_norm,
    F.group_norm: _group_norm,
    F.rms_norm: _rms_norm,
    F.embedding: _embedding,
}
