"""Inputs of another batch, like those that are given."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree


def _redrawn(x: Tensor, n: int) -> Tensor:
    """A tensor with `n` rows between the smallest and the largest value of `x`."""
    shape = (n, *x.shape[1:])
    if x.dtype is torch.bool:
        return torch.rand(shape) < 0.5
    if not x.dtype.is_floating_point:
        return torch.randint(int(x.min()), int(x.max()) + 1, shape, dtype=x.dtype)
    low, high = x.min().item(), x.max().item()
    return (torch.rand(shape, dtype=x.dtype) * (high - low) + low).to(x.dtype)


def with_batch(
    args: tuple[Any, ...], kwargs: dict[str, Any], n: int, seed: int = 0
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Inputs of batch `n`, in dimension 0, with the shapes, dtypes and ranges of those given."""

    def draw(x: Any) -> Any:
        return _redrawn(x, n) if isinstance(x, Tensor) and x.ndim else x

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return pytree.tree_map(draw, args), pytree.tree_map(draw, kwargs)
