"""Limits on files of tensors, checked before a library reads them at the sizes that they claim."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import IO

from fxprune.errors import FormatError

__all__ = ["check_members", "check_tensor_file", "members_of"]

_MOST_MEMBERS = 100_000
_MOST_HEADER = 64 * 2**20  # bytes
_LONGEST_NAME = 4096
_ENTRY = b"PK\x01\x02"  # what each member's line in a zip's table begins with
_CHUNK = 2**22


def check_tensor_file(path: Path) -> None:
    """Check what a file of tensors claims of its size: a .safetensors, or a zip of torch.save.

    Args:
        path: a regular file. One of another kind is let through.

    Raises:
        FormatError: it claims more than it has, or than any such file needs.
    """
    with path.open("rb") as file:
        start = file.read(8)
        if path.suffix.lower() == ".safetensors":
            _check_header(path.stat().st_size, int.from_bytes(start, "little"))
        elif start.startswith(b"PK"):
            check_members(file)
            with zipfile.ZipFile(file) as archive:
                members_of(archive, path.stat().st_size)


def check_members(file: IO[bytes]) -> None:
    """Check how many members a zip can have, before its table is read into memory.

    Raises:
        FormatError: there are too many.
    """
    file.seek(0)
    count, rest = 0, b""
    while chunk := file.read(_CHUNK):
        text = rest + chunk
        count += text.count(_ENTRY)
        rest = text[-len(_ENTRY) + 1 :]
        if count > _MOST_MEMBERS:
            raise FormatError(f"this file has more than {_MOST_MEMBERS:,} members")
    file.seek(0)


def members_of(archive: zipfile.ZipFile, size: int) -> dict[str, zipfile.ZipInfo]:
    """Return a zip's members by their path in the one folder that torch puts them into.

    Args:
        archive: an open one.
        size: the bytes of its file.

    Raises:
        FormatError: they are not as torch writes them: unpacked, each once, in one folder.
    """
    infos = archive.infolist()
    if len({info.filename.partition("/")[0] for info in infos}) != 1:
        raise FormatError("this is no archive of torch's: its members are not in one folder")
    found: dict[str, zipfile.ZipInfo] = {}
    for info in infos:
        name = info.filename.partition("/")[2]
        odd = (
            len(name) > _LONGEST_NAME
            or not name.isprintable()
            or {"", "..", "."} & set(name.split("/"))
        )
        if odd or name in found:
            raise FormatError(f"the member {info.filename[:60]!a} is no name, or is there twice")
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
            raise FormatError(f"the member {name[:60]!a} is packed, which torch never does")
        found[name] = info
    if sum(info.file_size for info in infos) > size:
        raise FormatError("its members claim more bytes than the file has")
    return found


def _check_header(size: int, claimed: int) -> None:
    # A larger claim than the file has is found by whoever reads it.
    if _MOST_HEADER < claimed <= size:
        raise FormatError(f"the header has {claimed:,} bytes, more than {_MOST_HEADER:,}")
