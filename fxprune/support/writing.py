"""Files and folders written whole or not at all; a full disk is an error like any other."""

from __future__ import annotations

import ctypes
import errno
import io
import os
import secrets
import shutil
import stat
from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

from fxprune.errors import FormatError

if TYPE_CHECKING:  # it takes seconds to import
    import torch

PathLike = str | os.PathLike[str]


def write_text(path: PathLike, text: str) -> None:
    """Write a text file in UTF-8, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


@contextmanager
def replacing(path: PathLike) -> Generator[Path]:
    """Give a temporary file beside `path`, and move it into place if the block does not raise."""
    target = Path(path)
    check_file(target)
    temporary = target.with_name(f"{_temporary_name()}{target.suffix}")
    try:
        # Made here, so that a folder that cannot be written to is found before the work.
        temporary.touch(exist_ok=False)
        mode = (target if target.exists() else temporary).stat().st_mode
        yield temporary
        # Some writers make a file of their own, which only its owner may read.
        temporary.chmod(stat.S_IMODE(mode))
        os.replace(temporary, target)
    except OSError as error:
        raise FormatError(f"{target}: cannot be written: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def check_file(path: PathLike) -> None:
    """Check, before the work, that `replacing` can write to a path."""
    target = Path(path)
    if target.exists() and not target.is_file():
        what = "a folder" if target.is_dir() else "no regular file"
        raise FormatError(f"{target}: this is {what}; give the path of a file")
    _check_parent(target)
    if not os.access(target.parent, os.W_OK):
        raise FormatError(f"{target}: the folder {target.parent} cannot be written to")


def check_folder(path: PathLike) -> None:
    """Check, before the work, that `replacing_folder` can write to a path."""
    target = Path(path)
    if target.exists() and not target.is_dir():
        raise FormatError(f"{target}: this is a file; give the path of a folder to write into")
    if not target.exists():
        _check_parent(target)
    if not os.access(_disk_folder(target), os.W_OK):
        raise FormatError(f"{target}: this folder cannot be written to; give another one")


@contextmanager
def replacing_folder(path: PathLike) -> Generator[Path]:
    """Give a temporary folder, and put what is in it at `path` if the block does not raise.

    Files of the same names are replaced, others stay. All come in one step, where the system can
    exchange two folders and this one has files alone and is not the current one; else one after
    another, and those moved are taken back if one cannot be.
    """
    target = Path(path)
    check_folder(target)
    # Beside the folder it can be exchanged with it; within, it is on the folder's disk at least.
    place = target.resolve().parent if can_swap(target) else _disk_folder(target)
    with _temporary_folder(target, place) as temporary:
        yield temporary
        if not (_move_whole(temporary, target) or swap_in(temporary, target)):
            _move_files(temporary, target)


@contextmanager
def replacing_files(folder: PathLike) -> Generator[Path]:
    """Give a temporary folder, and move its files into another if the block does not raise.

    The folder stays the same one; those moved are taken back if one cannot be.
    """
    target = Path(folder)
    check_folder(target)
    with _temporary_folder(target, target) as temporary:
        yield temporary
        _move_files(temporary, target)


def can_swap(target: Path) -> bool:
    """Tell whether a folder has files alone, and is neither a mount nor the current folder."""
    if not target.is_dir() or target.is_mount() or target.samefile(Path.cwd()):
        return False
    if any(old.is_dir() and not old.is_symlink() for old in target.iterdir()):
        return False
    return os.access(target.resolve().parent, os.W_OK)


def swap_in(temporary: Path, target: Path) -> bool:
    """Add the files that stay to a temporary folder, and exchange it with the target.

    False where that cannot be done in one step; then nothing has changed.
    """
    if not can_swap(target):
        return False
    others = [old for old in target.iterdir() if not (temporary / old.name).exists()]
    try:
        for old in others:
            os.link(old, temporary / old.name, follow_symlinks=False)
        owner = target.stat()
        os.chown(temporary, owner.st_uid, owner.st_gid)
        shutil.copystat(target, temporary)
        if swap(temporary, target.resolve()):
            return True
    except OSError:
        pass  # the disk has no links, the owner is another, or a file went away
    for old in others:
        (temporary / old.name).unlink(missing_ok=True)
    return False


@contextmanager
def _temporary_folder(target: Path, place: Path) -> Generator[Path]:
    """Give a temporary folder, and remove what is left of it."""
    temporary = place / _temporary_name()
    try:
        temporary.mkdir()
        yield temporary
    except OSError as error:
        raise FormatError(f"{target}: cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _move_whole(temporary: Path, target: Path) -> bool:
    """Move the temporary folder to where no folder is; False where one is, perhaps since then."""
    if target.exists():
        return False
    try:
        os.replace(temporary, target)
    except OSError:
        if not target.is_dir():
            raise
        return False
    return True


def _temporary_name() -> str:
    return f".fxprune-{secrets.token_hex(6)}"


def _disk_folder(target: Path) -> Path:
    """Return the folder for the temporary folder: on the disk that the files go to."""
    return target if target.is_dir() else target.parent


def _check_parent(target: Path) -> None:
    if not target.parent.is_dir():
        raise FormatError(f"{target}: the folder {target.parent} does not exist; make it first")


def _move_files(source: Path, target: Path) -> None:
    kept = source / "kept"
    names = sorted(path.name for path in source.iterdir())
    blocked = [name for name in names if (target / name).is_dir()]
    if blocked:
        raise FormatError(f"{target / blocked[0]}: this is a folder, where a file goes; move it")
    kept.mkdir()
    with ExitStack() as undo:
        for name in names:
            new, old = source / name, target / name
            if old.exists():
                undo.callback(_put_back, kept / name, old)
                _keep(old, kept / name)
            else:
                undo.callback(old.unlink, missing_ok=True)
            os.replace(new, old)
        undo.pop_all()


def _keep(old: Path, kept: Path) -> None:
    """Keep a file under a second name, so that its own is never free."""
    try:
        os.link(old, kept, follow_symlinks=False)
    except OSError:  # the disk has no links
        os.replace(old, kept)


def _put_back(kept: Path, old: Path) -> None:
    if kept.exists():
        os.replace(kept, old)


_HERE = -100  # AT_FDCWD
_EXCHANGE = 2  # RENAME_EXCHANGE of renameat2, RENAME_SWAP of renamex_np


def swap(a: Path, b: Path) -> bool:
    """Exchange two folders on one disk in one step; False where that cannot be done."""
    exchange = _find_exchange()
    return exchange is not None and exchange(os.fsencode(a), os.fsencode(b)) == 0


@cache
def _find_exchange() -> Callable[[bytes, bytes], int] | None:
    try:
        library: Any = ctypes.CDLL(None, use_errno=True)
    except (OSError, TypeError):  # no such library on Windows
        return None
    if hasattr(library, "renameat2"):
        return lambda a, b: library.renameat2(_HERE, a, _HERE, b, _EXCHANGE)
    if hasattr(library, "renamex_np"):
        return lambda a, b: library.renamex_np(a, b, _EXCHANGE)
    return None


@contextmanager
def sink(path: Path) -> Generator[IO[bytes]]:
    """Open a file for torch's zip writer, and raise at the end what went wrong in writing it.

    That writer ends the process if writing fails again while it cleans up after a failure.
    """
    with path.open("wb", buffering=0) as file:
        opened = _Sink(file)
        try:
            yield cast("IO[bytes]", opened)
        except Exception as error:
            if opened.error is not None:
                raise opened.error from error
            raise
        if opened.error is not None:
            raise opened.error


def write_tensor_file(
    tensors: Mapping[str, torch.Tensor], path: Path, metadata: dict[str, str]
) -> None:
    """Write contiguous tensors that share no memory as a safetensors file; or raise OSError."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file(dict(tensors), path, metadata=metadata)
    except SafetensorError as error:
        raise OSError(errno.EIO, str(error)) from error


class _Sink(io.BufferedIOBase):
    """Writes to a file until that fails once; what comes after is dropped."""

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__()
        self.file = file
        self.error: OSError | None = None

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.file.tell()

    def seek(self, offset: int, whence: int = 0, /) -> int:
        return self.file.seek(offset, whence)

    def write(self, data: Any, /) -> int:
        view = memoryview(data).cast("B")
        rest = view
        while rest and self.error is None:
            try:
                rest = rest[self.file.write(rest) :]
            except OSError as error:
                self.error = error
        return len(view)
