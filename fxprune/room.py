"""Buffers that are used again: fresh memory costs more than a pass over it."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np

__all__ = ["Room"]


class Room(threading.local):
    """The buffers of each thread, kept for its next use of them."""

    def __init__(self) -> None:
        self._arrays: dict[str, Any] = {}

    def array(self, use: str, size: int, dtype: Any) -> Any:
        """Return an array whose contents do not matter.

        Args:
            use: two arrays at a time have two uses.
            size: how many entries.
            dtype: numpy's dtype of the entries.
        """
        count = size * np.dtype(dtype).itemsize
        found = self._arrays.get(use)
        if found is None or found.size < count:
            found = self._arrays[use] = np.empty(count, np.uint8)
        return found[:count].view(dtype)
