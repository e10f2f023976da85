"""Scores of a checkpoint's tensors, read when they are asked for: magnitudes, norms of channels."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from typing import Any

import numpy as np
import torch

from fxprune.checkpoint.source import SPAN, Workers
from fxprune.checkpoint.weights import Weight, bytes_of
from fxprune.errors import PassError
from fxprune.ranking import (
    INTEGERS,
    ChannelScores,
    channel_norms,
    digits,
    integers_of,
    keys_into,
    least_key,
    most_key,
    scan_keys,
)
from fxprune.rewrite import Entries, ScoreSource, check_channels, living_channels, starts_of

_RUN = 256  # neighbouring entries that are sampled together: a read costs as much as many


class FileMagnitudes(ScoreSource):
    """|t| of each living entry of a tensor in a file; `on_read` gets the number of bytes read."""

    def __init__(self, weight: Weight, workers: Workers, on_read: Callable[[int], None]) -> None:
        self.weight, self._workers, self._on_read = weight, workers, on_read
        self.units, self.alive = weight.units, weight.alive

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of |t|."""
        return self.weight.dtype

    def living(self, start: int, stop: int) -> torch.Tensor | None:
        """Return which entries are alive."""
        return self.weight.living(start, stop)

    def chunk(self, start: int, stop: int) -> torch.Tensor:
        """Return |t| of the living entries among start..stop."""
        parts = [np.empty(0, integers_of(self.dtype))]
        for _, keys, living in self.weight.pieces(start, stop):
            parts.append(keys.copy() if living is None else keys[living])
        self._on_read((stop - start) * self.dtype.itemsize)
        return torch.from_numpy(np.concatenate(parts)).view(self.dtype)

    def sample(self, step: int) -> torch.Tensor:
        """Return about one living score in `step`, in short runs that are spread evenly."""
        run = min(_RUN, self.units)
        starts = starts_of(self.units, step * _RUN).clamp(max=self.units - run).tolist()
        bits: Any = np.empty((len(starts), run), integers_of(self.dtype))
        for row, start in zip(bits, starts, strict=True):
            self.weight.read_into(memoryview(row).cast("B"), start)
        keys = np.bitwise_and(bits, np.iinfo(bits.dtype).max, out=bits)
        if not self.weight.factors:
            return torch.from_numpy(keys).view(self.dtype).view(-1)
        parts = [keys[:0].reshape(-1)]
        parts += (self._living_keys(row, start) for row, start in zip(keys, starts, strict=True))
        return torch.from_numpy(np.concatenate(parts)).view(self.dtype)

    def scan(
        self, low: float | None, high: float | None, dtype: torch.dtype, most: int
    ) -> tuple[int, torch.Tensor | None] | None:
        """Count and collect by threads, on the bits."""
        own = self.dtype
        first = 0 if low is None else least_key(low, own)
        last = int(np.iinfo(integers_of(own)).max) if high is None else most_key(high, own)
        size = SPAN // own.itemsize
        spans = ((at, min(at + size, self.units)) for at in range(0, self.units, size))
        under, count, inside = 0, 0, [np.empty(0, integers_of(own))]
        work = partial(self._scan_span, first, last)
        with closing(self._workers.map(work, spans)) as results:
            for passed, below, found in results:
                self._on_read(passed * own.itemsize)
                under, count = under + below, count + sum(map(len, found))
                inside += found
                if count > most:
                    return under, None
        return under, torch.from_numpy(np.concatenate(inside)).view(own).to(dtype)

    def _scan_span(self, low: int, high: int, span: tuple[int, int]) -> tuple[int, int, list[Any]]:
        under, found = 0, list[Any]()
        for _, keys, living in self.weight.pieces(*span):
            below, inside = scan_keys(keys, low, high, living, self.weight.room)
            under += below
            found.append(inside)
        return span[1] - span[0], under, found

    def _living_keys(self, keys: Any, start: int) -> Any:
        living = self.weight.living_of(keys, start)
        return keys if living is None else keys[living]


MOST = 2**25  # bytes of a block


def inner_of(weight: Weight, dim: int) -> int:
    """Return how many neighbouring entries belong to the same channel."""
    check_channels(weight.stored.site, dim)
    shape = weight.stored.shape
    return math.prod(shape[dim % len(shape) + 1 :])


def norm_scores(weight: Weight, n: Any, dim: int) -> ChannelScores:
    """Return the norms of the living channels, equal to those of the whole tensor to the bit."""
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
    """Return the channels, and which of them are alive."""
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
    bits, size = values.view(INTEGERS[weight.dtype.itemsize]).numpy(), digits.CHUNK
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
