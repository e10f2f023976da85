"""One strict reader for files from any source, of every format.

Sizes are checked before anything is read at them, and nothing in a file is run. Whatever goes wrong
is a FormatError that names the file.
"""

from __future__ import annotations

import json
import pickle
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NoReturn

from fxprune.errors import FormatError, FxpruneError
from fxprune.words import plain, show

MOST_HEADER = 100_000_000  # bytes; safetensors itself reads no longer header
TOO_DEEP = "tables and lists are nested too deeply; no key needs this"
_MOST_ITEMS = 5_000_000  # of JSON; a node of a graph has 30 to 100
_MOST_MEMBERS = 100_000
_LONGEST_NAME = 4096
_LONGEST_MESSAGE = 300
_LENGTH = 8  # bytes that say how long the header of a safetensors file is
_ENTRY = b"PK\x01\x02"  # what each member's line in a zip's table begins with
_CHUNK = 2**22


@contextmanager
def read_safely(source: Path, damage: Callable[[Exception], str]) -> Generator[None]:
    """Make FormatErrors that name the file of all errors; `damage` explains those of libraries."""
    where = plain(str(source))
    try:
        yield
    except FxpruneError as error:
        raise FormatError(f"{where}: {error}") from error
    except OSError as error:
        raise FormatError(f"{where}: cannot be read: {error.strerror or error}") from error
    except Exception as error:  # a damaged file raises many kinds, all of which mean the same here
        raise FormatError(f"{where}: {damage(error)}") from error


def check_is_file(source: Path, kind: str) -> None:
    """Check that there is a file, of a kind as ".fxp"; the error does not name it."""
    if not source.is_file():
        what = "is not a file" if source.exists() else "does not exist"
        raise FormatError(f"this {what}; give the path of a {kind} file")


def read_small(source: Path, kind: str, most: int) -> bytes:
    """Return what a file of at most so many bytes holds; a FormatError names the file."""
    with read_safely(source, str):
        check_is_file(source, kind)
        with source.open("rb") as stream:
            raw = stream.read(most + 1)
        if len(raw) > most:
            raise FormatError(f"the file is larger than {most:,} bytes")
    return raw


def read_text(source: Path, kind: str, most: int) -> str:
    """Return the text in UTF-8 that a file of at most so many bytes holds."""
    raw = read_small(source, kind, most)
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        fault = f"byte {error.start + 1} is not UTF-8 text; save it as UTF-8"
        raise FormatError(f"{plain(str(source))}: {fault}") from None


def parse_json(raw: str | bytes) -> Any:
    """Parse JSON in UTF-8, of bounded size, without NaN and with no key twice in a table."""
    try:
        text = raw if isinstance(raw, str) else raw.decode()
        items = sum(map(text.count, ",[{"))
        if items > _MOST_ITEMS:
            raise ValueError(f"it has {items:,} items, more than {_MOST_ITEMS:,}")
        return json.loads(text, object_pairs_hook=_table, parse_constant=_refuse_constant)
    except RecursionError as error:
        raise FormatError(TOO_DEEP) from error
    except ValueError as error:
        raise FormatError(f"this is not JSON: {str(error)[:_LONGEST_MESSAGE]}") from error


def _table(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        times = Counter(key for key, _ in pairs)
        twice = next(key for key, count in times.items() if count > 1)
        raise ValueError(f"a table has the key {show(twice)} twice; keep one")
    return table


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"it has the number {name}")


def header_size(file: IO[bytes]) -> int:
    """Return how many bytes the header of a safetensors file has, and go to its first one."""
    size = file.seek(0, 2)
    file.seek(0)
    claimed = int.from_bytes(file.read(_LENGTH), "little")
    if claimed > size - _LENGTH:
        raise FormatError("this file is damaged: it is shorter than its header says")
    if claimed > MOST_HEADER:
        raise FormatError(f"the header has {claimed:,} bytes, more than {MOST_HEADER:,}")
    return claimed


def open_archive(file: IO[bytes]) -> zipfile.ZipFile:
    """Open a zip whose members are as torch writes them: unpacked, each once, in one folder."""
    _check_count(file)
    size = file.seek(0, 2)
    archive = zipfile.ZipFile(file)
    infos = archive.infolist()
    if len({info.filename.partition("/")[0] for info in infos}) != 1:
        raise FormatError("this is not an archive of torch's: its members are not in one folder")
    seen: set[str] = set()
    for info in infos:
        name = info.filename.partition("/")[2]
        odd = (
            len(name) > _LONGEST_NAME
            or not name.isprintable()
            or {"", "..", "."} & set(name.split("/"))
        )
        if odd or name in seen:
            raise FormatError(f"the member {info.filename[:60]!a} is not a name, or is there twice")
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
            raise FormatError(f"the member {name[:60]!a} is packed, which torch never does")
        seen.add(name)
    if sum(info.file_size for info in infos) > size:
        raise FormatError("its members claim more bytes than the file has")
    return archive


def _check_count(file: IO[bytes]) -> None:
    """Check how many members a zip can have, before its table is read into memory."""
    file.seek(0)
    count, rest = 0, b""
    while chunk := file.read(_CHUNK):
        text = rest + chunk
        count += text.count(_ENTRY)
        rest = text[-len(_ENTRY) + 1 :]
        if count > _MOST_MEMBERS:
            raise FormatError(f"this file has more than {_MOST_MEMBERS:,} members")


def unpickle(source: Path | IO[bytes], also: Sequence[Any] = ()) -> Any:
    """Return what torch.save wrote, on the CPU; it may name `also` beside torch's own classes."""
    # Recipes are read without torch.
    import torch

    from fxprune.support.torch_state import exclusive

    with (
        exclusive(),
        warnings.catch_warnings(),
        torch.serialization.safe_globals(list(also)),
        _short_messages(),
    ):
        # Of a TorchScript archive torch goes on to refuse it.
        warnings.simplefilter("ignore")
        return torch.load(source, map_location="cpu", weights_only=True)


class _ShortError(pickle.UnpicklingError):
    """Tells the beginning alone of a message, which may repeat what the file has."""

    def __str__(self) -> str:
        return super().__str__()[:_LONGEST_MESSAGE]


@contextmanager
def _short_messages() -> Generator[None]:
    """Keep torch from looking through long messages with regular expressions that backtrack."""
    from torch import _weights_only_unpickler

    module: Any = _weights_only_unpickler
    before = getattr(module, "UnpicklingError", None)
    module.UnpicklingError = _ShortError
    try:
        yield
    finally:
        module.UnpicklingError = before
