"""Entries of a tensor by their flat indices, however it lies in memory, without copying it all."""

from __future__ import annotations

import torch

__all__ = ["flat_part", "picked"]


def flat_part(tensor: torch.Tensor, start: int, stop: int) -> torch.Tensor:
    """Return entries start..stop in flat order: a view, or a copy of little more than these.

    Example:
        >>> flat_part(torch.arange(6).view(2, 3).t(), 1, 4)
        tensor([3, 1, 4])
    """
    if tensor.is_contiguous():
        return tensor.view(-1)[start:stop]
    inner = tensor[0].numel()  # a scalar and an empty tensor are contiguous
    first, last = start // inner, -(-stop // inner)
    if last - first > 2:  # less than three times as many
        return tensor[first:last].reshape(-1)[start - first * inner : stop - first * inner]
    parts = [
        flat_part(tensor[at], max(start - at * inner, 0), min(stop - at * inner, inner))
        for at in range(first, last)
    ]
    return torch.cat(parts) if parts else tensor.new_empty(0)


def picked(tensor: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """Return the entries at some flat indices, a vector.

    Args:
        tensor: any tensor.
        indices: int64, on its device.

    Example:
        >>> picked(torch.arange(6).view(2, 3).t(), torch.tensor([1, 4]))
        tensor([3, 2])
    """
    if tensor.is_contiguous():
        return tensor.view(-1)[indices]
    return tensor[torch.unravel_index(indices, tensor.shape)]
