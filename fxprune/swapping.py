"""Two folders that change places in one step, where the system has such a step."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

__all__ = ["swap"]

_HERE = -100  # AT_FDCWD
_EXCHANGE = 2  # RENAME_EXCHANGE of renameat2, RENAME_SWAP of renamex_np


def swap(a: Path, b: Path) -> bool:
    """Exchange two folders on one disk; nobody ever sees one of the two missing.

    Args:
        a: a folder.
        b: another one.

    Returns:
        False where the system or the disk cannot do that; then nothing has changed.
    """
    exchange = _exchange()
    return exchange is not None and exchange(os.fsencode(a), os.fsencode(b)) == 0


@cache
def _exchange() -> Callable[[bytes, bytes], int] | None:
    try:
        library: Any = ctypes.CDLL(None, use_errno=True)
    except (OSError, TypeError):  # no such library on Windows
        return None
    if hasattr(library, "renameat2"):
        return lambda a, b: library.renameat2(_HERE, a, _HERE, b, _EXCHANGE)
    if hasattr(library, "renamex_np"):
        return lambda a, b: library.renamex_np(a, b, _EXCHANGE)
    return None
