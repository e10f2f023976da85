"""The units of a parameter that a score reads, entries or channels, and which of them are alive."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fxprune.errors import DimError, PassError, PassTypeError, ShapeError
from fxprune.program import ParamSite, Program, parameters_of, spread
from fxprune.rewrite.facts import Importance
from fxprune.words import dtype_name

_SCORED = frozenset(
    {
        *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
        *(torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
        *(torch.complex64, torch.complex128),
    }
)


@dataclass(frozen=True)
class Entries:
    """The living entries of one tensor: those whose mask is exactly 1."""

    tensor: torch.Tensor
    mask: torch.Tensor | None  # None where all entries are alive
    part: bool = False  # whether they are this process's part of a parameter that is spread

    @property
    def units(self) -> int:
        """How many entries there are."""
        return self.tensor.numel()

    @property
    def alive(self) -> int:
        """How many of them are alive."""
        return self.units if self.mask is None else int((self.mask == 1).sum())

    @property
    def dtype(self) -> torch.dtype:
        """Their dtype."""
        return self.tensor.dtype

    @property
    def device(self) -> torch.device:
        """Where they are."""
        return self.tensor.device

    def living(self, start: int, stop: int) -> torch.Tensor | None:
        """Return which of the entries start..stop, in flat order, are alive; None: all."""
        return None if self.mask is None else flat_part(self.mask, start, stop) == 1

    def chunk(self, start: int, stop: int) -> torch.Tensor:
        """Return the living entries among start..stop, in flat order."""
        values = flat_part(self.tensor, start, stop)
        living = self.living(start, stop)
        return values if living is None else values[living]


def entries_of(program: Program, site: ParamSite, importance: Importance) -> Entries:
    """Return what to score of a parameter, entry by entry, and what is alive of it."""
    value, held = raw_value(program, site, importance), parameters_of(program)[site.name]
    mask, stored = held.mask, held.stored
    if not held.is_spread:
        return Entries(value, mask)
    mask = None if mask is None else spread.part_like(mask, stored)
    return Entries(spread.part_like(value, stored), mask, part=True)


def raw_value(program: Program, site: ParamSite, importance: Importance) -> torch.Tensor:
    """Return what to score of living entries: the caller's importance scores, or the parameter.

    A living entry has the mask 1, so its product with the mask need not be made. Importance scores
    of another shape are a ShapeError, of another kind than numbers with an order a PassTypeError;
    such a parameter is a PassError.
    """
    given = _importance_of(site, importance)
    if given is not None:
        return given
    return _rankable(site, parameters_of(program)[site.name].stored.detach())


def masked_value(program: Program, site: ParamSite, importance: Importance) -> torch.Tensor:
    """Return what to score of whole channels: importance scores, or the product with the mask."""
    given = _importance_of(site, importance)
    return _rankable(site, parameters_of(program)[site.name].value) if given is None else given


def _importance_of(site: ParamSite, importance: Importance) -> torch.Tensor | None:
    for name in site.aliases:
        given = importance.tensors.get(name)
        if given is None:
            continue
        if not isinstance(given, torch.Tensor):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise PassTypeError(f"the importance scores of {name!r} are not a tensor")
        if given.shape != site.shape:
            raise ShapeError(
                f"the importance scores of {name!r} have shape {tuple(given.shape)}, the parameter "
                f"{tuple(site.shape)}; give one score an entry"
            )
        if given.dtype not in _SCORED or given.layout is not torch.strided:
            raise PassTypeError(
                f"the importance scores of {name!r} are {_kind(given)}, which cannot be ranked; "
                "give floats or whole numbers"
            )
        return given.detach()
    return None


def _rankable(site: ParamSite, value: torch.Tensor) -> torch.Tensor:
    if value.dtype not in _SCORED or value.layout is not torch.strided:
        raise PassError(
            f"{site.name!r} is {_kind(value)}, which cannot be ranked; leave it out with dtype or "
            "exclude"
        )
    return value


def _kind(tensor: torch.Tensor) -> str:
    dtype = dtype_name(tensor.dtype)
    return dtype if tensor.layout is torch.strided else f"{dtype} in {tensor.layout}"


def check_channels(site: ParamSite, dim: int) -> None:
    """Check that a parameter has channels along a dimension: a PassError or a DimError if not."""
    if len(site.shape) <= 1:
        raise PassError(
            f"{site.name!r} has shape {tuple(site.shape)}: channels need two dimensions or more; "
            "take an unstructured method, or leave it out with ndim or exclude"
        )
    if not -len(site.shape) <= dim < len(site.shape):
        raise DimError(f"dim={dim} does not exist in {site.name!r} of shape {tuple(site.shape)}")


def living_channels(mask: torch.Tensor, dim: int) -> torch.Tensor:
    """Return which channels are alive: those whose mask does not sum to zero, as torch counts."""
    others = [d for d in range(mask.dim()) if d != dim % mask.dim()]
    return mask.sum(dim=others) != 0


def flat_part(tensor: torch.Tensor, start: int, stop: int) -> torch.Tensor:
    """Return entries start..stop in flat order: a view, or a copy of little more than these."""
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


def take_flat(tensor: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """Return the entries at some flat indices, int64 on the tensor's device, as a vector."""
    if tensor.is_contiguous():
        return tensor.view(-1)[indices]
    return tensor[torch.unravel_index(indices, tensor.shape)]
