"""A tensor of a checkpoint, read chunk by chunk, and its mask as the factors that rules added.

A mask as large as the tensor is never held: a factor is made again when it is needed, of a cut and
the weights, of a bit an entry in a temporary file, or of the file of masks that a rule names.
"""

from __future__ import annotations

import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fxprune.checkpoint.source import PIECE, Shard, StoredTensor, fill, put
from fxprune.errors import FormatError
from fxprune.ranking import Scratch, bounds_of, integers_of, keys_into

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class Weight:
    """A floating-point tensor of a checkpoint, and the factors that rules added to its mask."""

    def __init__(
        self, shard: Shard, stored: StoredTensor, dtype: torch.dtype, room: Scratch
    ) -> None:
        self.shard, self.stored, self.dtype, self.room = shard, stored, dtype, room
        self.factors: tuple[MaskFactor | GivenMask, ...] = ()
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
        return not any(isinstance(factor, GivenMask) for factor in self.factors)

    def add(self, factor: MaskFactor | GivenMask, alive: int | None) -> None:
        """Add a factor that leaves so many entries alive; None to count them when asked."""
        self.factors, self._alive = (*self.factors, factor), alive

    def read_into(self, view: memoryview, start: int) -> None:
        """Fill a buffer of bytes with the entries from a flat index on."""
        self.shard.read_into(view, self.stored.begin + start * self.dtype.itemsize)

    def pieces(self, start: int, stop: int) -> Iterator[tuple[int, Any, Any]]:
        """Read the entries start..stop in flat order, a piece at a time.

        Yields the index of the first one, the keys, and which have the mask 1 (None: all); the next
        piece overwrites them.
        """
        size = PIECE // self.dtype.itemsize
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
            kept: Any = (
                factor.keep(keys, start, self.room) if isinstance(factor, MaskFactor) else None
            )
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
            if isinstance(factor, GivenMask):
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


def bytes_of(tensor: torch.Tensor) -> memoryview:
    """Return the bytes of a contiguous tensor; writing to them changes it."""
    data: Any = tensor.view(-1).view(torch.uint8).numpy()
    return memoryview(data)


class MaskFactor(ABC):
    """What one rule does to the mask of one tensor: it keeps an entry or not."""

    @abstractmethod
    def keep(self, keys: Any, start: int, room: Scratch) -> Any:
        """Return which of neighbouring entries stay, by their keys; None for all.

        `start` is the flat index of the first; the array of bool may be a buffer of `room`.
        """


class Ones(MaskFactor):
    """All stay; but NaN changes its bits, as a product with 1 does that."""

    def keep(self, keys: Any, start: int, room: Scratch) -> Any:
        """Return None."""
        return None


class ByCut(MaskFactor):
    """Entries under a threshold go, and those at it before the flat index `upto`."""

    def __init__(self, threshold: float, dtype: torch.dtype, upto: int) -> None:
        self.under, self.at = bounds_of(threshold, dtype)
        self.upto = upto

    def keep(self, keys: Any, start: int, room: Scratch) -> Any:
        """Return whose magnitude is larger, or at the threshold and behind the index."""
        kept, split = room.array("kept", keys.size, np.bool_), self.split(keys.size, start)
        np.greater(keys[:split], self.at, out=kept[:split])
        np.greater(keys[split:], self.under, out=kept[split:])
        return kept

    def split(self, count: int, start: int) -> int:
        """Return how many of the next `count` entries are before the index."""
        return min(max(self.upto - start, 0), count)


class ByChannel(MaskFactor):
    """Whole channels go; `inner` neighbouring entries belong to the same one."""

    def __init__(self, kept: torch.Tensor, inner: int) -> None:
        self._kept, self._inner = kept.numpy(), inner

    def keep(self, keys: Any, start: int, room: Scratch) -> Any:
        """Return whose channel stays."""
        first, last = start // self._inner, -(-(start + keys.size) // self._inner)
        channels = np.arange(first, last) % len(self._kept)
        offset = start - first * self._inner
        return np.repeat(self._kept[channels], self._inner)[offset : offset + keys.size]


class ByBits(MaskFactor):
    """Entries go whose bit in a temporary file is 0; the first bit is at the offset `begin`."""

    def __init__(self, spill: Spill, begin: int) -> None:
        self._spill, self._begin = spill, begin

    def keep(self, keys: Any, start: int, room: Scratch) -> Any:
        """Return whose bit is 1."""
        first, last = start // 8, -(-(start + keys.size) // 8)
        data = self._spill.read(self._begin + first, last - first)
        bits = np.unpackbits(data, bitorder="little")
        return bits[start % 8 :][: keys.size].view(np.bool_)


class GivenMask:
    """A mask from a file, which may hold other numbers than 0 and 1."""

    def __init__(self, shard: Shard, stored: StoredTensor) -> None:
        if stored.dtype is None:
            raise FormatError(f"{shard.path}: torch has no tensors of dtype {stored.kind}")
        self._shard, self._stored, self._dtype = shard, stored, stored.dtype

    def multiply(self, mask: torch.Tensor, start: int) -> None:
        """Multiply the mask of neighbouring entries, the first one's index given, in place."""
        given = torch.empty(mask.shape, dtype=self._dtype)
        at = self._stored.begin + start * self._dtype.itemsize
        self._shard.read_into(bytes_of(given), at)
        mask.mul_(given.to(mask))


class Spill:
    """A temporary file of bits, which is gone when it is closed, or when the process is killed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file: Any = None
        self._end = 0

    def write(self, chunks: Iterable[torch.Tensor]) -> ByBits:
        """Write a tensor's mask, given as neighbouring vectors of bool, and return its factor."""
        begin, rest = self._end, np.empty(0, np.bool_)
        for kept in chunks:
            bits = np.concatenate([rest, kept.numpy()])
            whole = len(bits) // 8 * 8
            self._append(np.packbits(bits[:whole], bitorder="little"))
            rest = bits[whole:]
        self._append(np.packbits(rest, bitorder="little"))
        return ByBits(self, begin)

    def read(self, at: int, count: int) -> Any:
        """Return bytes as an array."""
        found: Any = np.empty(count, np.uint8)
        if count:
            fill(self._file.fileno(), memoryview(found), at)
        return found

    def close(self) -> None:
        """Drop the file."""
        if self._file is not None:
            self._file.close()

    def _append(self, data: Any) -> None:
        if not len(data):
            return
        if self._file is None:
            self._file = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115 (close closes it)
        put(self._file.fileno(), memoryview(data), self._end)
        self._end += len(data)
