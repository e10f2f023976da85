"""Write the files of a pruned checkpoint: each piece is read, masked in place and written."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fxprune import checkpoint_io
from fxprune.bitwise import infinity_of, integers_of, keys_into, zero_bits
from fxprune.checkpoint_files import Shard
from fxprune.checkpoint_io import Workers, put
from fxprune.checkpoint_masks import ByCut
from fxprune.checkpoint_weights import Weight

__all__ = ["ShardWriter"]


@dataclass(frozen=True)
class _Segment:
    """Neighbouring bytes of a file that are treated alike.

    Args:
        begin: the offset of the first one.
        end: the offset behind the last one.
        weight: the tensor whose entries they are; None where they stay as they are.
    """

    begin: int
    end: int
    weight: Weight | None = None


class ShardWriter:
    """Writes shards.

    Args:
        weights: the tensors that may have masks, by name.
        workers: threads.
        clean: whether +0.0 is written wherever a mask is 0.
        on_write: called with the number of bytes written.
    """

    def __init__(
        self,
        weights: Mapping[str, Weight],
        workers: Workers,
        on_write: Callable[[int], None],
        *,
        clean: bool,
    ) -> None:
        self._weights, self._workers = weights, workers
        self._on_write, self._clean = on_write, clean

    def write(self, shard: Shard, path: Path) -> None:
        """Write one shard, with its header as it is.

        Args:
            shard: the source.
            path: a file that does not exist.
        """
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
        descriptor = os.open(path, flags, 0o666)
        try:
            work = partial(self._write_span, shard, descriptor)
            with closing(self._workers.map(work, self._spans(shard))) as written:
                for count in written:
                    self._on_write(count)
        finally:
            os.close(descriptor)

    def _spans(self, shard: Shard) -> Iterator[list[_Segment]]:
        """Yield segments in order, together up to a span of bytes."""
        span, size = list[_Segment](), 0
        for segment in self._segments(shard):
            span.append(segment)
            size += segment.end - segment.begin
            if size >= checkpoint_io.SPAN:
                yield span
                span, size = [], 0
        yield span

    def _segments(self, shard: Shard) -> Iterator[_Segment]:
        at = 0  # the header is copied as it is
        for stored in shard.header.tensors:
            weight = self._weights.get(stored.name)
            if weight is None or not weight.factors:
                continue
            yield from _parts(at, stored.begin, None)
            yield from _parts(stored.begin, stored.end, weight)
            at = stored.end
        yield from _parts(at, shard.header.size, None)

    def _write_span(self, shard: Shard, descriptor: int, span: list[_Segment]) -> int:
        room = self._workers.room
        for segment in span:
            for begin in range(segment.begin, segment.end, checkpoint_io.PIECE):
                data = room.array("piece", min(checkpoint_io.PIECE, segment.end - begin), np.uint8)
                shard.read_into(memoryview(data), begin)
                if segment.weight is not None:
                    self._mask(segment.weight, data, begin)
                put(descriptor, memoryview(data), begin)
        return sum(segment.end - segment.begin for segment in span)

    def _mask(self, weight: Weight, data: Any, begin: int) -> None:
        """Multiply entries by their mask in place."""
        start = (begin - weight.stored.begin) // weight.dtype.itemsize
        bits = data.view(integers_of(weight.dtype))
        keys = keys_into(bits, weight.room)
        if keys.size and weight.is_binary and keys.max() < infinity_of(weight.dtype):
            self._zero(weight, bits, keys, start)
            return
        # NaN changes its bits in a product, and infinity times 0 is NaN: torch knows how.
        mask = weight.mask_of(keys, start)
        values = torch.from_numpy(data).view(weight.dtype)
        values.mul_(mask)
        if self._clean:
            values.masked_fill_(mask == 0, 0)

    def _zero(self, weight: Weight, bits: Any, keys: Any, start: int) -> None:
        """Zero finite entries whose mask is 0."""
        cut = weight.factors[0]
        if len(weight.factors) == 1 and isinstance(cut, ByCut):
            split = cut.split(bits.size, start)
            zero_bits(bits[:split], keys[:split], cut.at + 1, clean=self._clean)
            zero_bits(bits[split:], keys[split:], cut.under + 1, clean=self._clean)
            return
        living = weight.living_of(keys, start)
        if living is not None:
            gone = np.logical_not(living, out=living)
            bits &= ~(gone * bits.dtype.type(-1 if self._clean else np.iinfo(bits.dtype).max))


def _parts(begin: int, end: int, weight: Weight | None) -> Iterator[_Segment]:
    """Split bytes into segments of a span each; every dtype's size divides a span."""
    for at in range(begin, end, checkpoint_io.SPAN):
        yield _Segment(at, min(at + checkpoint_io.SPAN, end), weight)
