"""Channels of a checkpoint's tensors: norms and living ones, a block of channels at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch

from fxprune import scan
from fxprune.bitwise import INTEGERS, keys_into
from fxprune.checkpoint_masks import bytes_of
from fxprune.checkpoint_weights import Weight
from fxprune.errors import PassError
from fxprune.units import (
    ChannelScores,
    Entries,
    channel_norms,
    check_channels,
    living_channels,
)

__all__ = ["channels_of", "inner_of", "norm_scores"]

MOST = 2**25  # bytes of a block


def inner_of(weight: Weight, dim: int) -> int:
    """Return how many neighbouring entries belong to the same channel.

    Raises:
        PassError, DimError: the tensor has no such channels.
    """
    check_channels(weight.stored.site, dim)
    shape = weight.stored.shape
    return math.prod(shape[dim % len(shape) + 1 :])


def norm_scores(weight: Weight, n: Any, dim: int) -> ChannelScores:
    """Return the norms of the living channels, equal to those of the whole tensor to the bit.

    Args:
        weight: the tensor.
        n: order of the norm.
        dim: the dimension of the channels.

    Raises:
        PassError, DimError: the tensor has no such channels, or one is too large to be held.
        NormError: torch cannot take that norm.
    """
    parts, kept = list[torch.Tensor](), list[torch.Tensor]()
    whole = _fits(weight)
    for values, mask in _blocks(weight, dim):
        if mask is None:
            parts.append(channel_norms(values, n, dim))
            continue
        living = living_channels(mask, dim)
        values.mul_(mask)
        kept.append(living)
        # In one block, as pruning in memory does; else with the dead: one channel alone would be
        # summed up in another order by torch.
        parts.append(
            channel_norms(values, n, dim, living)
            if whole
            else channel_norms(values, n, dim)[living]
        )
    return ChannelScores(torch.cat(parts), torch.cat(kept) if kept else None)


def channels_of(weight: Weight, dim: int) -> Entries:
    """Return the channels, and which of them are alive.

    Raises:
        PassError, DimError: the tensor has no such channels.
    """
    check_channels(weight.stored.site, dim)
    channels = torch.empty(weight.stored.shape[dim])
    if not weight.factors:
        return Entries(channels, None)
    masks = (mask for _, mask in _blocks(weight, dim) if mask is not None)
    return Entries(channels, torch.cat([living_channels(mask, dim) for mask in masks]))


def _blocks(weight: Weight, dim: int) -> Iterator[tuple[torch.Tensor, torch.Tensor | None]]:
    """Yield the channels in blocks of two or more, each with its mask where there is one."""
    inner, shape = inner_of(weight, dim), list(weight.stored.shape)
    count = shape[dim]
    outer = weight.units // (count * inner) if weight.units else 0
    for first, last in _bounds(weight, count):
        shape[dim] = last - first
        values = torch.empty(shape, dtype=weight.dtype)
        mask = torch.empty(shape, dtype=weight.dtype) if weight.factors else None
        run = (last - first) * inner
        for at in range(outer):
            start = (at * count + first) * inner
            _read(
                weight,
                start,
                values.view(-1)[at * run :][:run],
                None if mask is None else mask.view(-1)[at * run :][:run],
            )
        yield values, mask


def _read(weight: Weight, start: int, values: torch.Tensor, mask: torch.Tensor | None) -> None:
    weight.read_into(bytes_of(values), start)
    if mask is None:
        return
    bits, size = values.view(INTEGERS[weight.dtype.itemsize]).numpy(), scan.CHUNK
    for at in range(0, len(values), size):
        keys = keys_into(bits[at : at + size], weight.room)
        mask[at : at + size] = weight.mask_of(keys, start + at)


def _fits(weight: Weight) -> bool:
    return weight.bytes <= MOST


def _bounds(weight: Weight, count: int) -> Iterator[tuple[int, int]]:
    """Yield (first, last) of blocks of channels that are about equally large."""
    if _fits(weight):
        yield 0, count
        return
    size = weight.units // count * weight.dtype.itemsize
    if size > MOST // 2:
        raise PassError(
            f"a channel of {weight.stored.name!r} has {size:,} bytes, and two have to be in memory "
            f"at once; {MOST // 2:,} bytes are allowed for one: take an unstructured method or "
            "another dim, or prune the model in memory"
        )
    blocks = min(-(-count // (MOST // size)), count // 2)
    for at in range(blocks):
        yield at * count // blocks, (at + 1) * count // blocks
