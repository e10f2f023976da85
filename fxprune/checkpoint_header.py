"""The header of a safetensors file: which tensor lies where. safetensors itself checks it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open

from fxprune.errors import FormatError
from fxprune.facts import ParamSite
from fxprune.reading import MOST_HEADER, header_size, parse_json
from fxprune.recipe_errors import show

__all__ = ["Header", "Stored", "parse_table", "read_header", "read_limited"]

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
        size: of the file, in bytes.
        tensors: in the order in which they lie in the file, as safetensors lists them.
    """

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
    found = [_stored(path, name, entry, start) for name, entry in table.items()]
    found.sort(key=lambda tensor: (tensor.begin, tensor.end))
    return Header(size, tuple(found))


def read_limited(path: Path) -> bytes:
    """Read a small file.

    Raises:
        FormatError: it is missing, or is larger than 100 MB.
    """
    with _opened(path) as file:
        raw = file.read(MOST_HEADER + 1)
    if len(raw) > MOST_HEADER:
        raise _fault(path, "it is larger than 100 MB")
    return raw


def parse_table(path: Path, raw: bytes) -> dict[str, Any]:
    """Parse a table in JSON.

    Raises:
        FormatError: it is none.
    """
    try:
        table = parse_json(raw)
    except FormatError as error:
        raise _fault(path, str(error)) from error
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


def _stored(path: Path, name: str, entry: Any, start: int) -> Stored:
    begin, end = entry["data_offsets"]
    if len(entry["shape"]) > _MOST_DIMS:
        raise _fault(path, f"{show(name)} has more than {_MOST_DIMS} dimensions")
    return Stored(name, entry["dtype"], torch.Size(entry["shape"]), start + begin, start + end)


def _fault(path: Path, text: str) -> FormatError:
    return FormatError(f"{path}: this is no whole safetensors checkpoint: {text}; get it again")
