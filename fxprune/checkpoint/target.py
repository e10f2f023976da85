"""Where a pruned checkpoint goes: each piece is read, masked in place and written aside.

All files are moved to their place when they are complete.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fxprune.checkpoint.source import INDEX, PIECE, SPAN, SUFFIX, Checkpoint, Shard, Workers, put
from fxprune.checkpoint.weights import ByCut, Weight
from fxprune.errors import FormatError
from fxprune.ranking import infinity_of, integers_of, keys_into, zero_bits
from fxprune.support import PathLike, can_swap, swap_in

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

_KEPT = "kept"


@dataclass(frozen=True)
class Target:
    """The files to write."""

    place: Path  # the file, or the folder
    names: tuple[str, ...]  # of the files, the index last
    folder: bool
    size: int  # in bytes

    @property
    def paths(self) -> tuple[Path, ...]:
        """The files, in order."""
        return tuple(self.place / name for name in self.names) if self.folder else (self.place,)

    @contextmanager
    def replacing(self) -> Generator[Path]:
        """Give a temporary folder; its files move to their place if the block does not raise."""
        parent = self.place.resolve().parent
        for folder in (self.place, parent):
            _clean(folder, self.place.name)
        # Beside the folder it can be exchanged with it, within it is on the folder's disk.
        beside = self.place if self.place.is_dir() and not can_swap(self.place) else parent
        aside = beside / f"{_prefix(self.place.name)}{secrets.token_hex(6)}"
        try:
            aside.mkdir()
            with _lock(aside):
                yield aside
                self._move(aside)
        except OSError as error:
            text = f"{error.strerror or error}; {self.size:,} bytes are needed"
            raise FormatError(f"{self.place}: cannot be written: {text}") from error
        finally:
            shutil.rmtree(aside, ignore_errors=True)

    def _move(self, aside: Path) -> None:
        if not self.folder:
            os.replace(aside / self.names[0], self.place)
            return
        if not self.place.exists():
            os.replace(aside, self.place)
            return
        if swap_in(aside, self.place):
            return
        kept = aside / _KEPT
        kept.mkdir()
        with ExitStack() as undo:
            # The old index goes first and the new one comes last: a mixture has none.
            for name in reversed(self.names):
                if (self.place / name).exists():
                    undo.callback(_put_back, kept / name, self.place / name)
                    os.replace(self.place / name, kept / name)
            for name in self.names:
                undo.callback((self.place / name).unlink, missing_ok=True)
                os.replace(aside / name, self.place / name)
            undo.pop_all()


def target_of(source: Checkpoint, out: PathLike) -> Target:
    """Check, before the work, where a checkpoint is to be written: a file, or a folder of files."""
    place = Path(out)
    names = tuple(shard.path.name for shard in source.shards)
    size = source.size + len(source.index or b"")
    if source.index is None:
        if place.is_dir() or not place.name:
            raise FormatError(f"{place}: this is a folder; give the path of the file to write")
        if place.suffix != SUFFIX:
            raise FormatError(f"{place}: a checkpoint's file ends in {SUFFIX}; name it so")
        target = Target(place, (place.name,), False, size)
    else:
        index = source.path.name
        if place.name.endswith(INDEX):
            place, index = place.parent, place.name
        target = Target(place, (*names, index), True, size)
        if place.exists() and not place.is_dir():
            raise FormatError(f"{place}: this is a file; give the path of a folder to write into")
    _check_paths(target, source)
    return target


def _check_paths(target: Target, source: Checkpoint) -> None:
    parent = target.place.parent
    if not parent.is_dir():
        raise FormatError(f"{target.place}: the folder {parent} does not exist; make it first")
    beside = target.place if target.place.is_dir() else parent
    if not os.access(beside, os.W_OK):
        raise FormatError(f"{target.place}: {beside} cannot be written to; give another place")
    own = [source.path, *(shard.path for shard in source.shards)]
    for path in target.paths:
        if not path.exists():
            continue
        if not path.is_file():
            raise FormatError(f"{path}: this is no regular file; give another place")
        if any(os.path.samefile(path, other) for other in own):
            raise FormatError(
                f"{path}: output path is the input checkpoint; choose another, so that the "
                "input stays whole if the run is interrupted"
            )


def _prefix(name: str) -> str:
    return f".{name}.fxprune-"


def _clean(beside: Path, name: str) -> None:
    """Remove what a killed run left; what another run is using is locked."""
    lefts: list[Path] = []
    with contextlib.suppress(OSError):  # no folder, or one that cannot be listed
        lefts = [left for left in beside.iterdir() if left.name.startswith(_prefix(name))]
    for left in lefts:
        with contextlib.suppress(OSError), _lock(left):
            shutil.rmtree(left, ignore_errors=True)


@contextmanager
def _lock(folder: Path) -> Generator[None]:
    """Hold the lock of a folder, or raise BlockingIOError; a process that is killed loses it."""
    if fcntl is None:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def _put_back(kept: Path, old: Path) -> None:
    if kept.exists():
        os.replace(kept, old)


@dataclass(frozen=True)
class _Segment:
    """Neighbouring bytes of a file that are treated alike."""

    begin: int
    end: int
    weight: Weight | None = None  # whose entries they are, where it has a mask


class ShardWriter:
    """Writes shards; with `clean`, +0.0 wherever a mask is 0. `on_write` gets the bytes written."""

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
        """Write one shard to a file that does not exist, with its header as it is."""
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
            if size >= SPAN:
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
            for begin in range(segment.begin, segment.end, PIECE):
                data = room.array("piece", min(PIECE, segment.end - begin), np.uint8)
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
    for at in range(begin, end, SPAN):
        yield _Segment(at, min(at + SPAN, end), weight)
