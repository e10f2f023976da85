"""How a pruning method's new mask joins the mask that is there (torch's PruningContainer)."""

from __future__ import annotations

from typing import Any

import torch

from fxprune.errors import DimError, PassTypeError, ShapeError
from fxprune.units import living_channels

__all__ = ["combined_mask"]


def combined_mask(method: Any, value: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Ask a method for a mask of what is alive, and put it into the mask that is there.

    Args:
        method: has PRUNING_TYPE and `compute_mask(t, default_mask)`.
        value: what the method ranks.
        mask: of its shape; None where nothing is masked: the method then sees the whole tensor.

    Raises:
        ShapeError: the method's mask has another shape than what it was given.
        PassTypeError: the method's PRUNING_TYPE is unknown, or what it gave is no tensor.
        DimError: a structured method's `dim` does not exist.
    """
    value = value.detach()
    if mask is None:
        ones = torch.ones(value.shape, dtype=value.dtype, device=value.device)
        return _computed(method, value, ones)
    new = mask.detach().to(value.dtype).clone(memory_format=torch.contiguous_format)
    alive = _alive(method, value, new)
    part = _computed(method, value[alive], new[alive])
    new[alive] = part.to(new.dtype)
    return new


def _alive(method: Any, value: torch.Tensor, mask: torch.Tensor) -> Any:
    kind = method.PRUNING_TYPE
    if kind == "unstructured":
        return mask == 1
    if kind == "global":
        return (slice(None),) * value.dim()
    if kind != "structured":
        raise PassTypeError(
            f"{type(method).__name__}.PRUNING_TYPE is {kind!r}; it must be 'unstructured', "
            "'structured' or 'global'"
        )
    dim = getattr(method, "dim", None)
    if not isinstance(dim, int):
        raise PassTypeError(f"{type(method).__name__} is structured, but has no attribute dim")
    if not -value.dim() <= dim < value.dim():
        raise DimError(f"dim={dim} does not exist in a tensor of shape {tuple(value.shape)}")
    index: list[Any] = [slice(None)] * value.dim()
    index[dim] = living_channels(mask, dim)
    return tuple(index)


def _computed(method: Any, value: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        found = method.compute_mask(value, default_mask=mask)
    if not isinstance(found, torch.Tensor):
        raise PassTypeError(f"{type(method).__name__}.compute_mask gave {type(found).__name__}")
    if found.shape != mask.shape:
        raise ShapeError(
            f"{type(method).__name__}.compute_mask gave a mask of shape {tuple(found.shape)} for "
            f"{tuple(mask.shape)}"
        )
    return found
