"""Units of a parameter as passes rank them: channels with norms, and masks that meet masks."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fxprune.errors import DimError, NormError, PassTypeError, ShapeError
from fxprune.rewrite import ScoreSource, living_channels

_TORCH = tuple(map(int, torch.__version__.split(".")[:2]))


class ChannelScores(ScoreSource):
    """Scores of the living channels of a tensor (those in `kept`): few enough to be held."""

    def __init__(self, scores: torch.Tensor, kept: torch.Tensor | None) -> None:
        self._scores, self._kept = scores, kept
        self.units, self.alive = len(scores if kept is None else kept), len(scores)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the scores."""
        return self._scores.dtype

    def living(self, start: int, stop: int) -> torch.Tensor | None:
        """Return which channels are alive."""
        return None if self._kept is None else self._kept[start:stop]

    def chunk(self, start: int, stop: int) -> torch.Tensor:
        """Return the scores of the living channels among start..stop."""
        if self._kept is None:
            return self._scores[start:stop]
        first = int(self._kept[:start].sum())
        return self._scores[first : first + int(self._kept[start:stop].sum())]


def channel_norms(
    tensor: torch.Tensor, n: Any, dim: int, kept: torch.Tensor | None = None
) -> torch.Tensor:
    """Return the norm of each living channel by the very expression of torch.nn.utils.prune.

    The tensor has two dimensions or more; NormError where torch cannot take that norm.
    """
    if kept is not None:  # on the same slice as in torch, for norms that are equal to the bit
        index: list[Any] = [slice(None)] * tensor.dim()
        index[dim] = kept
        tensor = tensor[tuple(index)]
    others = [d for d in range(tensor.dim()) if d != dim % tensor.dim()]
    # torch 2.14 takes "fro" over other than two dimensions for the 2-norm; torch.norm refuses.
    flat = n == "fro" and len(others) != 2 and _TORCH >= (2, 14)
    try:
        return torch.norm(tensor, p=2 if flat else n, dim=others)
    except RuntimeError as error:
        raise NormError(
            f"n={n!r} cannot be taken over dimensions {others} of a tensor of shape "
            f"{tuple(tensor.shape)}: {error}; take a number for n"
        ) from error


def combined_mask(method: Any, value: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Ask a method of torch.nn.utils.prune for a mask, and put it into the one that is there.

    As torch's PruningContainer does: the method sees what is alive, or the whole tensor where there
    is no mask. Raises ShapeError, PassTypeError or DimError for what the method gave or lacks.
    """
    value = value.detach()
    if mask is None:
        ones = torch.ones(value.shape, dtype=value.dtype, device=value.device)
        return _call_method(method, value, ones)
    new = mask.detach().to(value.dtype).clone(memory_format=torch.contiguous_format)
    alive = _living_index(method, value, new)
    part = _call_method(method, value[alive], new[alive])
    new[alive] = part.to(new.dtype)
    return new


def _living_index(method: Any, value: torch.Tensor, mask: torch.Tensor) -> Any:
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


def _call_method(method: Any, value: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
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


Numbers = npt.NDArray[np.float64]
_BLOCK = 2**17  # entries that are taken to float64 at once: these stay in the cache
_JOINS: dict[float, np.ufunc] = {math.inf: np.maximum, -math.inf: np.minimum}


def slice_sums(tensor: torch.Tensor, dims: Sequence[int], order: float) -> dict[int, Numbers]:
    """Return the sum of |x|^order over each slice along some dimensions, float64, in one pass.

    An order of 0 counts what is not 0; inf and -inf give the largest and the smallest |x|.

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
            join(part, _reduce_others(join, powers, dim), out=part)
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


def _reduce_others(join: np.ufunc, powers: Numbers, dim: int) -> Numbers:
    """Join all dimensions but one, the outermost first: that is where whole rows are added."""
    if dim == 0:
        return join.reduce(powers.reshape(len(powers), -1), axis=1)
    if powers.ndim > 1:
        powers = join.reduce(powers, axis=0)
    others = tuple(d for d in range(powers.ndim) if d != dim - 1)
    return join.reduce(powers, axis=others) if others else powers
