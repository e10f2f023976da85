"""Checkpoints on disk: a safetensors file, or an index and its shards (Hugging Face's layout)."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, cast

from fxprune.checkpoint_header import Header, Stored, parse_table, read_header, read_limited
from fxprune.checkpoint_io import fill
from fxprune.errors import FormatError
from fxprune.recipe_errors import show
from fxprune.writing import PathLike

__all__ = ["INDEX", "SUFFIX", "Checkpoint", "Shard", "open_checkpoint"]

INDEX = ".index.json"
SUFFIX = ".safetensors"


@dataclass
class Shard:
    """A safetensors file that is read by offset, from any thread.

    Args:
        path: the file.
        header: what its header says.
        stamp: when it was last changed, and its size.
    """

    path: Path
    header: Header
    stamp: tuple[int, int]
    _descriptor: int | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @classmethod
    def of(cls, path: Path) -> Shard:
        """Check a file's header.

        Raises:
            FormatError: it is no safetensors file.
        """
        header = read_header(path)
        return cls(path, header, (_stamp(path)[0], header.size))

    def read_into(self, view: memoryview, at: int) -> None:
        """Fill a buffer of bytes with those from an offset on.

        Raises:
            FormatError: the file became shorter meanwhile, or cannot be read.
        """
        try:
            whole = fill(self._opened(), view, at)
        except OSError as error:
            raise FormatError(f"{self.path}: cannot be read: {error.strerror}") from error
        if not whole:
            raise FormatError(f"{self.path}: the file became shorter while it was read")

    def check_unchanged(self) -> None:
        """Raise FormatError if the file was written to since its header was read."""
        if _stamp(self.path) != self.stamp:
            raise FormatError(f"{self.path}: the file was changed while it was read; run again")

    def close(self) -> None:
        """Close the file."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _opened(self) -> int:
        with self._lock:
            if self._descriptor is None:
                self._descriptor = os.open(self.path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
            return self._descriptor


@dataclass
class Checkpoint:
    """The files of a checkpoint; use it as a context.

    Args:
        path: the file, or the index.
        shards: in the order of their names.
        index: the bytes of the index; None for a single file.
    """

    path: Path
    shards: tuple[Shard, ...]
    index: bytes | None = None

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with ExitStack() as stack:
            for shard in self.shards:
                stack.callback(shard.close)

    @property
    def tensors(self) -> dict[str, tuple[Shard, Stored]]:
        """Each tensor by name: shards by name, and in a shard as safetensors lists them."""
        return {t.name: (shard, t) for shard in self.shards for t in shard.header.tensors}

    @property
    def size(self) -> int:
        """Bytes of all shards."""
        return sum(shard.header.size for shard in self.shards)


def open_checkpoint(path: PathLike) -> Checkpoint:
    """Check the headers of a checkpoint's files; no tensor is read.

    Args:
        path: a `.safetensors` file, or a `.safetensors.index.json` beside its shards.

    Raises:
        FormatError: a file is missing, truncated or not what its name says.
    """
    source = Path(path)
    if source.name.endswith(INDEX):
        return _open_index(source)
    if source.suffix != SUFFIX:
        raise FormatError(
            f"{source}: a checkpoint is a {SUFFIX} file, or an index that ends in {INDEX}"
        )
    return Checkpoint(source, (Shard.of(source),))


def _open_index(path: Path) -> Checkpoint:
    raw = read_limited(path)
    weights = parse_table(path, raw).get("weight_map")
    places = cast("Mapping[str, Any]", weights) if isinstance(weights, Mapping) else {}
    if not places:
        raise FormatError(
            f"{path}: this index has no weight_map of names and files; get it again, or give a "
            f"{SUFFIX} file"
        )
    for name in places.values():
        _check_name(path, name)
    names = sorted(set(places.values()))
    absent = [name for name in names if not (path.parent / name).exists()]
    if absent:
        more = f", with {len(absent) - 1} more of its {len(names)} files" if len(absent) > 1 else ""
        raise FormatError(
            f"{path}: {show(absent[0])}, which this index names, is missing in its folder{more}; "
            "get the checkpoint again"
        )
    shards = tuple(Shard.of(path.parent / name) for name in names)
    there: dict[str, str] = {}
    for shard in shards:
        for tensor in shard.header.tensors:
            if tensor.name in there:
                twice = f"{show(tensor.name)} is in {there[tensor.name]} and in {shard.path.name}"
                raise FormatError(f"{path}: {twice}; keep one")
            there[tensor.name] = shard.path.name
    missing = [name for name, shard in places.items() if there.get(name) != shard]
    if missing:
        text = f"{show(missing[0])} is not in {places[missing[0]]}, where the index says it is"
        raise FormatError(f"{path}: {text}; get the checkpoint again")
    return Checkpoint(path, shards, raw)


def _check_name(path: Path, name: object) -> None:
    """Take plain names only: a shard of another folder would be written there."""
    if not isinstance(name, str) or not name.endswith(SUFFIX) or set(name) & set("/\\:\0"):
        raise FormatError(
            f"{path}: {show(name)} is no name of a {SUFFIX} file in the folder of the index; put "
            "all shards beside it and correct the name"
        )


def _stamp(path: Path) -> tuple[int, int]:
    try:
        found = path.stat()
    except OSError as error:
        raise FormatError(f"{path}: cannot be read: {error.strerror or error}") from error
    return found.st_mtime_ns, found.st_size
