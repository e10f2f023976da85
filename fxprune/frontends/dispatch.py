"""The ways into a Program: which front end takes a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from fxprune.errors import PassTypeError
from fxprune.frontends.exported import capture_exported
from fxprune.frontends.merging import capture_any
from fxprune.frontends.traced import capture_traced, is_traced
from fxprune.program import HookedMask, Program


def enter(
    model: nn.Module | ExportedProgram,
    args: tuple[Any, ...] | torch.Tensor,
    kwargs: Mapping[str, Any] | None,
    batch: Any,
) -> tuple[Program, tuple[HookedMask, ...]]:
    """Capture a model as a Program that shares nothing with it.

    Args:
        model: a module, a graph of torch.fx.symbolic_trace, or what torch.export gave.
        args: see `fxprune.capture`.
        kwargs: see `fxprune.capture`.
        batch: see `fxprune.capture`.

    Returns:
        The Program, and the masks of torch.nn.utils.prune that the model had.

    Raises:
        PassTypeError: the model is of another kind.
        CaptureError: it cannot be captured.
    """
    inputs = (args,) if isinstance(args, torch.Tensor) else tuple(args)
    inputs, keywords = _apart(inputs, dict(kwargs or {}))
    if isinstance(model, ExportedProgram):
        return capture_exported(model, inputs, keywords, batch), ()
    if not isinstance(model, nn.Module):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise PassTypeError(
            f"capture takes an nn.Module, not {type(model).__name__}; a "
            "torch.export.ExportedProgram will do as well"
        )
    if is_traced(model) and not inputs and not keywords:
        return capture_traced(model)
    return capture_any(model, inputs, keywords, batch)


def _apart(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Give each argument a tensor of its own: torch.export takes one given twice for one input."""
    seen = set[int]()

    def own(tensor: torch.Tensor) -> torch.Tensor:
        if id(tensor) in seen:
            return tensor.detach().clone().requires_grad_(tensor.requires_grad)
        seen.add(id(tensor))
        return tensor

    return pytree.tree_map_only(torch.Tensor, own, (args, kwargs))
