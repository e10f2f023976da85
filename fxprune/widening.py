"""A model in float64, casts in its graphs included: what is left of a difference is no rounding."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.fx.node import map_aggregate

from fxprune.flat_regions import enter_autocast
from fxprune.importing import VALUE
from fxprune.program import Program

__all__ = ["wide_tensor", "widen"]

_NARROW = frozenset({torch.float16, torch.bfloat16, torch.float32})


def widen(module: nn.Module) -> None:
    """Take a model to float64 in place; in the graphs of a Program, casts and autocast, too.

    Args:
        module: a private copy.
    """
    module._apply(wide_tensor)
    if not isinstance(module, Program):
        return
    for graph in module.graphs.values():
        for node in graph.nodes:
            node.args = map_aggregate(node.args, _wide_dtype)
            node.kwargs = map_aggregate(node.kwargs, _wide_dtype)
            if VALUE in node.meta:  # constants that are made of a value have its dtype
                shape, dtype = node.meta[VALUE]
                node.meta[VALUE] = shape, _wide_dtype(dtype)
            if node.target is enter_autocast:
                node.args = (*node.args[:2], False, *node.args[3:])
    module.recompile()


def wide_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor in float64 or complex128; of integers, as it is."""
    if tensor.is_complex():
        return tensor.to(torch.complex128)
    return tensor.double() if tensor.is_floating_point() else tensor


def _wide_dtype(part: Any) -> Any:
    return torch.float64 if isinstance(part, torch.dtype) and part in _NARROW else part
