"""A tensor of a checkpoint, read chunk by chunk, and what rules have made of its mask."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from fxprune import checkpoint_io
from fxprune.bitwise import integers_of, keys_into
from fxprune.checkpoint_files import Shard
from fxprune.checkpoint_header import Stored
from fxprune.checkpoint_masks import ByCut, Factor, Given
from fxprune.room import Room

__all__ = ["FLOATS", "Weight"]

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class Weight:
    """A floating-point tensor of a checkpoint.

    Args:
        shard: the file that it is in.
        stored: its place there.
        dtype: its dtype.
        room: buffers.

    Attributes:
        factors: what rules did to its mask, in order; empty where none did.
    """

    def __init__(self, shard: Shard, stored: Stored, dtype: torch.dtype, room: Room) -> None:
        self.shard, self.stored, self.dtype, self.room = shard, stored, dtype, room
        self.factors: tuple[Factor | Given, ...] = ()
        self._alive: int | None = stored.numel

    @property
    def units(self) -> int:
        """Number of entries."""
        return self.stored.numel

    @property
    def device(self) -> torch.device:
        """Where its entries are when they are read."""
        return torch.device("cpu")

    @property
    def bytes(self) -> int:
        """Its size."""
        return self.units * self.dtype.itemsize

    @property
    def alive(self) -> int:
        """How many entries have the mask 1; counted where no rule could tell."""
        if self._alive is not None:
            return self._alive
        found = 0
        for _, keys, living in self.pieces(0, self.units):
            found += keys.size if living is None else int(np.count_nonzero(living))
        self._alive = found
        return found

    @property
    def is_binary(self) -> bool:
        """Whether its mask holds 0 and 1 alone."""
        return not any(isinstance(factor, Given) for factor in self.factors)

    def add(self, factor: Factor | Given, alive: int | None) -> None:
        """Add a factor to the mask.

        Args:
            factor: made of what the factors before leave.
            alive: how many entries have the mask 1 then; None to count them when asked.
        """
        self.factors, self._alive = (*self.factors, factor), alive

    def read_into(self, view: memoryview, start: int) -> None:
        """Fill a buffer of bytes with the entries from a flat index on."""
        self.shard.read_into(view, self.stored.begin + start * self.dtype.itemsize)

    def pieces(self, start: int, stop: int) -> Iterator[tuple[int, Any, Any]]:
        """Read the entries start..stop, in flat order, a piece at a time.

        Yields:
            (flat index of the first entry, the entries' keys, which of them have the mask 1 or
            None for all), in buffers that the next piece overwrites.
        """
        size = checkpoint_io.PIECE // self.dtype.itemsize
        for at in range(start, stop, size):
            count = min(size, stop - at)
            bits = self.room.array("bits", count, integers_of(self.dtype))
            self.read_into(memoryview(bits).cast("B"), at)
            keys = keys_into(bits, self.room)
            yield at, keys, self.living_of(keys, at)

    def living(self, start: int, stop: int) -> torch.Tensor | None:
        """Return which of the entries start..stop have the mask 1; None: all."""
        if not self.factors:
            return None
        parts = [np.empty(0, np.bool_)]
        for _, keys, living in self.pieces(start, stop):
            parts.append(np.ones(keys.size, np.bool_) if living is None else living.copy())
        return torch.from_numpy(np.concatenate(parts))

    def living_of(self, keys: Any, start: int) -> Any:
        """Return which of some neighbouring entries have the mask 1, as `pieces` does."""
        if not self.is_binary:
            return (self.mask_of(keys, start) == 1).numpy()
        found: Any = None
        for factor in self.factors:
            kept: Any = factor.keep(keys, start, self.room) if isinstance(factor, Factor) else None
            if kept is None:
                continue
            if found is None:
                found = self.room.array("living", keys.size, np.bool_)
                found[:] = kept
            found &= kept
        return found

    def mask_of(self, keys: Any, start: int) -> torch.Tensor:
        """Return the mask of some neighbouring entries, a vector of the tensor's dtype."""
        mask = torch.ones(keys.size, dtype=self.dtype)
        for factor in self.factors:
            if isinstance(factor, Given):
                factor.multiply(mask, start)
                continue
            kept = factor.keep(keys, start, self.room)
            if kept is None:
                continue
            gone = ~torch.from_numpy(kept)
            if isinstance(factor, ByCut):  # of living entries alone
                gone &= mask == 1
                mask.masked_fill_(gone, 0)
            else:
                mask.mul_(~gone)
        return mask
