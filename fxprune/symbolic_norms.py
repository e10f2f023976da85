"""Layers whose own forward looks at the shape of its input, as functions of their parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from fxprune.modes import count_batch

__all__ = ["NORMS", "average_factor", "instance_norm"]


def average_factor(batches: torch.Tensor, training: bool) -> float:
    """Return batch norm's share of the newest batch in a cumulative average (momentum=None)."""
    return 1.0 / float(batches) if training else 0.0


def instance_norm(
    input: torch.Tensor,
    dims: int,
    running_mean: torch.Tensor | None,
    running_var: torch.Tensor | None,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    use_input_stats: bool,
    momentum: float,
    eps: float,
) -> torch.Tensor:
    """Normalise each instance; one without a batch dimension is taken for a batch of one.

    Args:
        input: of `dims` dimensions with, and one fewer without a batch.
        dims: of a batch.
        running_mean: see torch.nn.functional.instance_norm, as the others.
        running_var: likewise.
        weight: likewise.
        bias: likewise.
        use_input_stats: likewise.
        momentum: likewise.
        eps: likewise.
    """
    single = input.dim() == dims - 1
    found = F.instance_norm(
        input.unsqueeze(0) if single else input,
        running_mean,
        running_var,
        weight,
        bias,
        use_input_stats,
        momentum,
        eps,
    )
    return found.squeeze(0) if single else found


def _batch_norm(module: Any) -> Callable[..., Any]:
    mean, var, batches = module.running_mean, module.running_var, module.num_batches_tracked
    whole = (mean is None) == (var is None) and (mean is not None) == module.track_running_stats
    if not whole:
        raise NotImplementedError("running statistics that are there and not tracked")

    def forward(input: Any) -> Any:
        tracked = batches is not None and module.track_running_stats
        momentum = module.momentum
        if tracked:
            counted = (batches, module.training)
            input.tracer.create_proxy("call_function", count_batch, counted, {})
        if momentum is None:
            momentum = 0.0
            if tracked:
                share = (batches, module.training)
                momentum = input.tracer.create_proxy("call_function", average_factor, share, {})
        training = True if mean is None else module.training
        return F.batch_norm(
            input, mean, var, module.weight, module.bias, training, momentum, module.eps
        )

    return forward


def _instance_norm(module: Any) -> Callable[..., Any]:
    def forward(input: Any) -> Any:
        args = (
            input,
            module._get_no_batch_dim() + 1,
            module.running_mean,
            module.running_var,
            module.weight,
            module.bias,
            module.training if module.track_running_stats else True,
            0.0 if module.momentum is None else module.momentum,
            module.eps,
        )
        return input.tracer.create_proxy("call_function", instance_norm, args, {})

    return forward


NORMS: dict[type[nn.Module], Callable[[Any], Callable[..., Any]]] = {
    nn.BatchNorm1d: _batch_norm,
    nn.BatchNorm2d: _batch_norm,
    nn.BatchNorm3d: _batch_norm,
    nn.InstanceNorm1d: _instance_norm,
    nn.InstanceNorm2d: _instance_norm,
    nn.InstanceNorm3d: _instance_norm,
}
