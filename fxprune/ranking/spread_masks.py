"""Masks of parameters that are spread over processes: spread alike, or whole under FSDP2."""

from __future__ import annotations

from typing import Any

import torch

from fxprune.program import Handle, spread
from fxprune.ranking.processes import Peers


def pruned_mask(peers: Peers, held: Handle, gone: torch.Tensor, *, part: bool) -> torch.Tensor:
    """Return a spread parameter's mask once the entries in `gone` (bool) have gone.

    With `part` these are this process's part in flat order, else they have the parameter's shape.
    """
    parameter = held.stored
    if not peers.whole_masks:
        here = gone if part else spread.distributed().piece(gone, parameter)
        return spread.distributed().place(_zero_out(_mask_part(held), here), parameter)
    if part:
        gone = _gather_ones(peers, gone, parameter, held.name)
    return _zero_out(held.copy_mask(), gone)


def _zero_out(old: torch.Tensor, gone: torch.Tensor) -> torch.Tensor:
    old = old.contiguous()
    return old * gone.view(old.shape).logical_not().to(old.dtype)


def _mask_part(held: Handle) -> torch.Tensor:
    """Return this process's part of a spread parameter's mask, of ones where it has none."""
    parameter, old = held.stored, held.mask
    if old is not None:
        return spread.part_like(old, parameter)
    return torch.ones_like(spread.part(parameter), memory_format=torch.contiguous_format)


def given_mask(peers: Peers, held: Handle, mask: torch.Tensor | None) -> torch.Tensor:
    """Return a spread parameter's mask times a caller's, whole or spread; None stands for ones."""
    if not peers.whole_masks:
        new = _mask_part(held)
        new = new if mask is None else new * spread.part_like(mask, held.stored).to(new)
        return spread.distributed().place(new.contiguous().clone(), held.stored)
    new = held.copy_mask()
    return new if mask is None else new * whole(peers, mask.detach(), held.name).to(new)


def whole_ones(peers: Peers, mask: torch.Tensor, name: str) -> torch.Tensor:
    """Return where the mask of a parameter is exactly 1, whole, bool."""
    if not spread.is_sharded(mask):
        return mask == 1
    return _gather_ones(peers, spread.part(mask) == 1, mask, name)


def whole(peers: Peers, tensor: Any, name: str) -> torch.Tensor:
    """Return a tensor, spread or not, as one whole; its name is for messages."""
    if not spread.is_sharded(tensor):
        return tensor
    return peers.gather(tensor, f"gathering {name!r}")


def _gather_ones(peers: Peers, bits: torch.Tensor, like: Any, name: str) -> torch.Tensor:
    step = f"gathering the mask of {name!r}"
    return spread.distributed().gather_bits(bits, like, lambda packed: peers.gather(packed, step))
