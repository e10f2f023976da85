"""Reads and writes at an offset, from any thread, and the threads that do them."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from types import TracebackType
from typing import TypeVar

from fxprune.room import Room

__all__ = ["PIECE", "SPAN", "Workers", "fill", "put"]

PIECE = 2**20  # bytes read at once: what is done to them finds them in the cache
SPAN = 2**23  # bytes that a thread takes on at once
_THREADS = min(max(os.cpu_count() or 1, 2), 4)  # some work while others wait for the disk
_AHEAD = 4  # spans that wait for a thread

_LOCK = threading.Lock()
_Job = TypeVar("_Job")
_Result = TypeVar("_Result")


def fill(descriptor: int, view: memoryview, at: int) -> bool:
    """Fill a buffer of bytes from a file; tell whether the file was long enough.

    Args:
        descriptor: of the file.
        view: the buffer.
        at: the offset in the file.
    """
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
    """A few threads and their buffers; use it as a context."""

    def __init__(self) -> None:
        self.room = Room()
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="fxprune")

    def __enter__(self) -> Workers:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

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
