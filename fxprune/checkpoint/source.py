"""Checkpoints on disk: a safetensors file, or an index and its shards (Hugging Face's layout)."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any, cast

from fxprune.checkpoint_header import Header, Stored, parse_table, read_header, read_limited
from fxprune.checkpoint_io import fill
from fxprune.errors import FormatError
from fxprune.recipe_errors import show
from fxprune.writing import PathLike

__all__ = ["INDEX", "SUFFIX", "Checkpoint", "Shard", "open_checkpoint"]

INDEX = ".index.json"
SUFFIX = ".safetensors"


@dataclass(frozen=True)
class Shard:
    """A safetensors file that is read by offset, from any thread.

    Args:
        path: the file.
        header: what its header says.
        file: the file, opened.
        stamp: when it was last changed, and its size.
    """

    path: Path
    header: Header
    file: FileIO
    stamp: tuple[int, int]

    def read_into(self, view: memoryview, at: int) -> None:
        """Fill a buffer of bytes with those from an offset on.

        Raises:
            FormatError: the file became shorter meanwhile, or cannot be read.
        """
        try:
            whole = fill(self.file.fileno(), view, at)
        except OSError as error:
            raise FormatError(f"{self.path}: cannot be read: {error.strerror}") from error
        if not whole:
            raise FormatError(f"{self.path}: the file became shorter while it was read")

    def check_unchanged(self) -> None:
        """Raise FormatError if the file was written to since its header was read."""
        if _stamp(self.path) != self.stamp:
            raise FormatError(f"{self.path}: the file was changed while it was read; run again")


@dataclass(frozen=True)
class Checkpoint:
    """The files of a checkpoint.

    Args:
        path: the file, or the index.
        shards: in the order of their names.
        index: the bytes of the index; None for a single file.
    """

    path: Path
    shards: tuple[Shard, ...]
    index: bytes | None = None

    @property
    def tensors(self) -> dict[str, tuple[Shard, Stored]]:
        """Each tensor by name: shards by name, and in a shard as safetensors lists them."""
        return {t.name: (shard, t) for shard in self.shards for t in shard.header.tensors}

    @property
    def size(self) -> int:
        """Bytes of all shards."""
        return sum(shard.header.size for shard in self.shards)


@contextmanager
def open_checkpoint(path: PathLike) -> Generator[Checkpoint]:
    """Open a checkpoint's files and check their headers; no tensor is read.

    Args:
        path: a `.safetensors` file, or a `.safetensors.index.json` beside its shards.

    Raises:
        FormatError: a file is missing, truncated or not what its name says.
    """
    source = Path(path)
    with ExitStack() as files:
        if source.name.endswith(INDEX):
            yield _open_index(source, files)
        elif source.suffix == SUFFIX:
            yield Checkpoint(source, (_open_shard(source, files),))
        else:
            raise FormatError(
                f"{source}: a checkpoint is a {SUFFIX} file, or an index that ends in {INDEX}"
            )


def _open_shard(path: Path, files: ExitStack) -> Shard:
    header = read_header(path)
    file = files.enter_context(FileIO(path))
    return Shard(path, header, file, (_stamp(path)[0], header.size))


def _open_index(path: Path, files: ExitStack) -> Checkpoint:
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
    shards = tuple(_open_shard(path.parent / name, files) for name in names)
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
