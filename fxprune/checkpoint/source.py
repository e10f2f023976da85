"""Checkpoints on disk: a safetensors file, or an index and its shards (Hugging Face's layout).

Headers, which safetensors itself checks, say which tensor lies where; threads read and write there.
"""

from __future__ import annotations

import math
import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from safetensors import SafetensorError, safe_open

from fxprune.errors import FormatError
from fxprune.program import ParamSite
from fxprune.ranking import Scratch
from fxprune.support import MOST_HEADER, PathLike, header_size, parse_json, read_small
from fxprune.words import show

_MOST_DIMS = 64  # as many as torch takes
_METADATA = "__metadata__"
_TORCH = {
    **{"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64},
    **{"I8": torch.int8, "I16": torch.int16, "I32": torch.int32, "I64": torch.int64},
    **{"U8": torch.uint8, "U16": torch.uint16, "U32": torch.uint32, "U64": torch.uint64},
    **{"BOOL": torch.bool, "C64": torch.complex64, "F8_E8M0": torch.float8_e8m0fnu},
    **{"F8_E4M3": torch.float8_e4m3fn, "F8_E4M3FNUZ": torch.float8_e4m3fnuz},
    **{"F8_E5M2": torch.float8_e5m2, "F8_E5M2FNUZ": torch.float8_e5m2fnuz},
}


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of a file: its dtype in the words of the format, and the offsets of its bytes."""

    name: str
    kind: str
    shape: torch.Size
    begin: int
    end: int

    @property
    def dtype(self) -> torch.dtype | None:
        """Its dtype in torch; None where entries are smaller than a byte."""
        return _TORCH.get(self.kind)

    @property
    def numel(self) -> int:
        """Number of entries."""
        return math.prod(self.shape)

    @property
    def site(self) -> ParamSite:
        """What rules select it by; as bytes, where torch has none of its dtype."""
        return ParamSite(self.name, (self.name,), (), (), self.shape, self.dtype or torch.uint8)


@dataclass(frozen=True)
class Header:
    """What the header of a file says."""

    size: int  # of the file, in bytes
    tensors: tuple[StoredTensor, ...]  # as they lie in the file, which is as safetensors lists them


def read_header(path: Path) -> Header:
    """Read the header of a safetensors file and check that it describes the file."""
    with _open(path) as file:
        try:
            # Not for its tensors: it maps the file, and what is read there counts as memory.
            with safe_open(path, "numpy"):
                pass
        except SafetensorError as error:
            raise _fault(path, show(str(error))) from error
        raw = file.read(header_size(file))
        start, size = file.tell(), file.seek(0, 2)
    table = parse_table(path, raw)
    table.pop(_METADATA, None)
    found = [_stored_tensor(path, name, entry, start) for name, entry in table.items()]
    found.sort(key=lambda tensor: (tensor.begin, tensor.end))
    return Header(size, tuple(found))


def parse_table(path: Path, raw: bytes) -> dict[str, Any]:
    """Parse a table in JSON."""
    try:
        table = parse_json(raw)
    except FormatError as error:
        raise _fault(path, str(error)) from error
    if not isinstance(table, dict):
        raise _fault(path, "no table in its JSON")
    return cast("dict[str, Any]", table)


def _open(path: Path) -> Any:
    if not path.is_file():
        what = "is not a file" if path.exists() else "does not exist"
        raise FormatError(f"{path}: this {what}; give the path of a .safetensors file or its index")
    try:
        return path.open("rb")
    except OSError as error:
        raise FormatError(f"{path}: cannot be read: {error.strerror or error}") from error


def _stored_tensor(path: Path, name: str, entry: Any, start: int) -> StoredTensor:
    begin, end = entry["data_offsets"]
    if len(entry["shape"]) > _MOST_DIMS:
        raise _fault(path, f"{show(name)} has more than {_MOST_DIMS} dimensions")
    return StoredTensor(
        name, entry["dtype"], torch.Size(entry["shape"]), start + begin, start + end
    )


def _fault(path: Path, text: str) -> FormatError:
    return FormatError(f"{path}: this is no whole safetensors checkpoint: {text}; get it again")


INDEX = ".index.json"
SUFFIX = ".safetensors"


@dataclass(frozen=True)
class Shard:
    """A safetensors file that is read by offset, from any thread."""

    path: Path
    header: Header
    file: FileIO
    stamp: tuple[int, int]  # when it was last changed, and its size

    def read_into(self, view: memoryview, at: int) -> None:
        """Fill a buffer of bytes with those from an offset on."""
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
    """The files of a checkpoint."""

    path: Path  # of the file, or the index
    shards: tuple[Shard, ...]  # in the order of their names
    index: bytes | None = None

    @property
    def tensors(self) -> dict[str, tuple[Shard, StoredTensor]]:
        """Each tensor by name: shards by name, and in a shard as safetensors lists them."""
        return {t.name: (shard, t) for shard in self.shards for t in shard.header.tensors}

    @property
    def size(self) -> int:
        """Bytes of all shards."""
        return sum(shard.header.size for shard in self.shards)


@contextmanager
def open_checkpoint(path: PathLike) -> Generator[Checkpoint]:
    """Open the files of a .safetensors or .safetensors.index.json, and check their headers."""
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
    raw = read_small(path, INDEX, MOST_HEADER)
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


PIECE = 2**20  # bytes read at once: what is done to them finds them in the cache
SPAN = 2**23  # bytes that a thread takes on at once
_THREADS = min(max(os.cpu_count() or 1, 2), 4)  # some work while others wait for the disk
_AHEAD = 4  # spans that wait for a thread

_LOCK = threading.Lock()
_Job = TypeVar("_Job")
_Result = TypeVar("_Result")


def fill(descriptor: int, view: memoryview, at: int) -> bool:
    """Fill a buffer of bytes from an offset of a file on; tell whether the file was long enough."""
    while view:
        count = _read(descriptor, view, at)
        if count == 0:
            return False
        view, at = view[count:], at + count
    return True


def put(descriptor: int, view: memoryview, at: int) -> None:
    """Write a buffer of bytes to a file, from an offset on."""
    while view:
        count = _write(descriptor, view, at)
        view, at = view[count:], at + count


def _read(descriptor: int, view: memoryview, at: int) -> int:
    if hasattr(os, "preadv"):
        return os.preadv(descriptor, [view], at)
    with _LOCK:  # without reads at an offset, as on Windows
        os.lseek(descriptor, at, os.SEEK_SET)
        data = os.read(descriptor, len(view))
    view[: len(data)] = data
    return len(data)


def _write(descriptor: int, view: memoryview, at: int) -> int:
    if hasattr(os, "pwrite"):
        return os.pwrite(descriptor, view, at)
    with _LOCK:
        os.lseek(descriptor, at, os.SEEK_SET)
        return os.write(descriptor, view)


class Workers:
    """A few threads and their buffers."""

    def __init__(self) -> None:
        self.room = Scratch()
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="fxprune")

    def close(self) -> None:
        """Wait until no thread runs."""
        self._pool.shutdown(cancel_futures=True)

    def map(
        self, work: Callable[[_Job], _Result], jobs: Iterable[_Job]
    ) -> Generator[_Result, None, None]:
        """Yield results in the order of the jobs; close it to leave the rest undone."""
        waiting: deque[Future[_Result]] = deque()
        try:
            for job in jobs:
                waiting.append(self._pool.submit(work, job))
                if len(waiting) > _AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            # What runs already ends first: a thread must not outlive what it works on.
            wait([future for future in waiting if not future.cancel()])
