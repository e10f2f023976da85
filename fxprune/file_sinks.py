"""Files that torch and safetensors write into, so that a full disk is an error like any other."""

from __future__ import annotations

import errno
import io
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

__all__ = ["sink", "write_tensor_file"]


@contextmanager
def sink(path: Path) -> Generator[IO[bytes]]:
    """Open a file for torch's zip writer, and raise at the end what went wrong in writing it.

    That writer ends the process if writing fails again while it cleans up after a failure.

    Args:
        path: the file; an earlier one is overwritten.

    Raises:
        OSError: as the system said.
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
    """Write a safetensors file.

    Args:
        tensors: by key; contiguous, and no two share memory.
        path: the file.
        metadata: see `safetensors.torch.save_file`.

    Raises:
        OSError: it cannot be written.
    """
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
