"""The header of a safetensors file, checked in full before anything else of the file is read."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch

from fxprune.errors import FormatError
from fxprune.facts import ParamSite
from fxprune.recipe_errors import show

__all__ = ["Header", "Stored", "parse_json", "read_header", "read_limited"]

MOST_BYTES = 100_000_000  # of a header or an index; safetensors has the same limit
_LENGTH = 8  # bytes that say how long the header is
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
_PACKED = {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6}  # bits of what is smaller than a byte


@dataclass(frozen=True)
class Stored:
    """A tensor of a file.

    Args:
        name: its name.
        kind: its dtype, in the format's words.
        shape: its shape.
        begin: the offset of its first byte in the file.
        end: the offset behind its last one.
    """

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
    """What the header of a file says.

    Args:
        start: the offset of the first tensor's first byte.
        size: of the file, in bytes.
        tensors: in the order in which they lie in the file, as safetensors lists them.
    """

    start: int
    size: int
    tensors: tuple[Stored, ...]


def read_header(path: Path) -> Header:
    """Read and check the header of a safetensors file.

    Args:
        path: the file.

    Raises:
        FormatError: the file is missing or truncated, or its header does not describe it.
    """
    with _opened(path) as file:
        size = file.seek(0, 2)
        file.seek(0)
        length = int.from_bytes(file.read(_LENGTH), "little")
        if size < _LENGTH or length > min(size - _LENGTH, MOST_BYTES):
            raise _fault(path, "its header is longer than the file, or than 100 MB")
        raw = file.read(length)
    table = parse_json(path, raw)
    metadata = table.pop(_METADATA, {})
    if not isinstance(metadata, Mapping) or not _texts(cast("Mapping[Any, Any]", metadata)):
        raise _fault(path, f"{_METADATA} is no table of texts")
    start = _LENGTH + length
    found = [_stored(path, name, entry, start) for name, entry in table.items()]
    found.sort(key=lambda tensor: (tensor.begin, tensor.end))
    at = start
    for tensor in found:
        if tensor.begin != at:
            raise _fault(path, f"the bytes of {show(tensor.name)} overlap others or leave a hole")
        at = tensor.end
    if at != size:
        raise _fault(path, f"its tensors end at byte {show(at)}, the file at byte {size}")
    return Header(start, size, tuple(found))


def read_limited(path: Path) -> bytes:
    """Read a small file.

    Raises:
        FormatError: it is missing, or is larger than 100 MB.
    """
    with _opened(path) as file:
        raw = file.read(MOST_BYTES + 1)
    if len(raw) > MOST_BYTES:
        raise _fault(path, "it is larger than 100 MB")
    return raw


def parse_json(path: Path, raw: bytes) -> dict[str, Any]:
    """Parse a table in JSON in which no key stands twice.

    Raises:
        FormatError: it is none.
    """
    try:
        table = json.loads(raw.decode(), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise _fault(path, f"no JSON where it should be: {show(str(error))}") from error
    if not isinstance(table, dict):
        raise _fault(path, "no table in its JSON")
    return cast("dict[str, Any]", table)


def _opened(path: Path) -> Any:
    if not path.is_file():
        what = "is no file" if path.exists() else "does not exist"
        raise FormatError(f"{path}: this {what}; give the path of a .safetensors file or its index")
    try:
        return path.open("rb")
    except OSError as error:
        raise FormatError(f"{path}: cannot be read: {error.strerror or error}") from error


def _stored(path: Path, name: str, entry: object, start: int) -> Stored:
    place = f"the entry of {show(name)}"
    if not isinstance(entry, Mapping):
        raise _fault(path, f"{place} is no table")
    table = cast("Mapping[str, Any]", entry)
    if set(table) != {"dtype", "shape", "data_offsets"}:
        raise _fault(path, f"{place} has other keys than dtype, shape and data_offsets")
    kind, shape, offsets = table["dtype"], table["shape"], table["data_offsets"]
    dtype = _TORCH.get(kind) if isinstance(kind, str) else None
    bits = dtype.itemsize * 8 if dtype else _PACKED.get(str(kind))
    if bits is None:
        raise _fault(path, f"{place} has the dtype {show(kind)}, which is not known")
    if not _counts(shape) or not _counts(offsets) or len(offsets) != 2:
        raise _fault(path, f"the shape or the data_offsets of {show(name)} are no counts")
    begin, end = offsets
    if (end - begin) * 8 != math.prod(shape) * bits:
        raise _fault(path, f"{place} has data_offsets that do not fit its shape and dtype")
    return Stored(name, kind, torch.Size(shape), start + begin, start + end)


def _counts(value: object) -> bool:
    if not isinstance(value, list):
        return False
    items = cast("list[object]", value)
    return len(items) <= _MOST_DIMS and all(type(x) is int and 0 <= x < 2**63 for x in items)


def _texts(table: Mapping[Any, Any]) -> bool:
    return all(isinstance(value, str) for value in table.values())


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    table = dict(pairs)
    if len(table) < len(pairs):
        raise ValueError("a key stands twice")
    return table


def _fault(path: Path, text: str) -> FormatError:
    return FormatError(f"{path}: this is no whole safetensors checkpoint: {text}; get it again")
