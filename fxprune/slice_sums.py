"""Sums over the slices of a tensor, along several of its dimensions in one pass."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch

__all__ = ["slice_sums"]

Numbers = npt.NDArray[np.float64]
_BLOCK = 2**17  # entries that are taken to float64 at once: these stay in the cache
_JOINS: dict[float, np.ufunc] = {math.inf: np.maximum, -math.inf: np.minimum}


def slice_sums(tensor: torch.Tensor, dims: Sequence[int], order: float) -> dict[int, Numbers]:
    """Return the sum of |x|^n over each slice, float64; of n = 0, how many are not 0.

    Args:
        tensor: any tensor of numbers.
        dims: along which the slices lie, each once.
        order: n; inf and -inf give the largest and the smallest |x| instead.

    Example:
        >>> found = slice_sums(torch.tensor([[1.0, -2.0], [0.0, 3.0]]), (0, 1), 2.0)
        >>> found[0].tolist(), found[1].tolist()
        ([5.0, 9.0], [1.0, 13.0])
    """
    join = _JOINS.get(order, np.add)
    start = -order if math.isinf(order) else 0.0
    found = {dim: np.full(tensor.shape[dim], start) for dim in dims}
    for first, block in _blocks(tensor):
        powers = _powers(block, order)
        # Dimension 0 and the columns of all others; the inner ones are small, and come last.
        for dim in dims:
            part = found[dim][first : first + len(block)] if dim == 0 else found[dim]
            join(part, _joined(join, powers, dim), out=part)
    return found


def _blocks(tensor: torch.Tensor) -> Iterator[tuple[int, Numbers]]:
    """Yield runs of rows in float64, with the index of the first row of each."""
    plain = tensor.detach().abs() if tensor.is_complex() else tensor.detach()
    if not plain.dim():
        return
    rows = max(1, _BLOCK // max(1, math.prod(plain.shape[1:])))
    for first in range(0, len(plain), rows):
        yield first, plain[first : first + rows].to("cpu", torch.float64).numpy()


def _powers(block: Numbers, order: float) -> Numbers:
    if order == 0:
        return (block != 0).astype(np.float64)
    if order == 2:
        return np.square(block)
    sizes = np.abs(block)
    if order == 1 or math.isinf(order):
        return sizes
    with np.errstate(divide="ignore", over="ignore"):
        return np.power(sizes, order)


def _joined(join: np.ufunc, powers: Numbers, dim: int) -> Numbers:
    """Join all dimensions but one, the outermost first: that is where whole rows are added."""
    if dim == 0:
        return join.reduce(powers.reshape(len(powers), -1), axis=1)
    if powers.ndim > 1:
        powers = join.reduce(powers, axis=0)
    others = tuple(d for d in range(powers.ndim) if d != dim - 1)
    return join.reduce(powers, axis=others) if others else powers
