"""Scores of a checkpoint's tensors, read from the file when they are asked for."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from functools import partial
from typing import Any

import numpy as np
import torch

from fxprune import checkpoint_io
from fxprune.bitwise import integers_of, least_key, most_key, scan_keys
from fxprune.checkpoint_io import Workers
from fxprune.checkpoint_weights import Weight
from fxprune.facts import ScoreSource
from fxprune.sampling import starts_of

__all__ = ["FileMagnitudes"]

_RUN = 256  # neighbouring entries that are sampled together: a read costs as much as many


class FileMagnitudes(ScoreSource):
    """|t| of each living entry of a tensor in a file.

    Args:
        weight: the tensor.
        workers: threads for passes over it.
        on_read: called with the number of bytes that were read.
    """

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
        size = checkpoint_io.SPAN // own.itemsize
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
