"""The pass over magnitudes on the CPU, by their bits: counted and collected by several threads."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch

from fxprune.bitwise import INTEGERS, integers_of, keys_into, least_key, most_key, scan_keys
from fxprune.flat_parts import flat_part
from fxprune.room import Room

__all__ = ["can_scan", "scan_magnitudes"]

_PIECE = 2**18  # entries: a piece and its buffers stay in the cache
_ROOM = Room()


def can_scan(tensor: torch.Tensor) -> bool:
    """Tell whether the bits of a tensor can be read as numpy's integers."""
    kind = tensor.dtype
    return tensor.is_cpu and kind.is_floating_point and kind.itemsize in INTEGERS


def scan_magnitudes(
    tensor: torch.Tensor,
    living: Callable[[int, int], torch.Tensor | None],
    low: float | None,
    high: float | None,
    most: int,
) -> tuple[int, torch.Tensor | None]:
    """Count the magnitudes under a bracket and collect those inside, in flat order.

    Args:
        tensor: one that can be scanned.
        living: which of the entries start..stop count; None: all.
        low: the least magnitude inside; None for no bound.
        high: the largest magnitude inside; None for no bound, so that NaN is inside.
        most: how many may be inside.

    Returns:
        (count under, those inside); no tensor where more are inside.

    Example:
        >>> scan_magnitudes(
        ...     torch.tensor([0.5, -2.0, 1.0, -0.25]), lambda start, stop: None, 0.5, 1.0, 4
        ... )
        (1, tensor([0.5000, 1.0000]))
    """
    kind = tensor.dtype
    values, size, whole = tensor.detach(), tensor.numel(), INTEGERS[kind.itemsize]
    first = 0 if low is None else least_key(low, kind)
    last = torch.iinfo(whole).max if high is None else most_key(high, kind)
    nothing: Any = np.empty(0, integers_of(kind))
    count, lock = 0, threading.Lock()

    def piece(start: int) -> tuple[int, Any]:
        nonlocal count
        if count > most:
            return 0, nothing
        stop = min(start + _PIECE, size)
        alive = living(start, stop)
        keys = keys_into(flat_part(values, start, stop).view(whole).numpy(), _ROOM)
        kept = None if alive is None else alive.numpy()
        under, inside = scan_keys(keys, first, last, kept, _ROOM)
        with lock:
            count += inside.size
        return under, inside

    parts = _mapped(piece, range(0, size, _PIECE))
    if count > most:
        return 0, None
    inside = np.concatenate([nothing, *(inside for _, inside in parts)])
    return sum(under for under, _ in parts), torch.from_numpy(inside).view(kind)


def _mapped(work: Callable[[int], tuple[int, Any]], jobs: range) -> list[tuple[int, Any]]:
    threads = min(torch.get_num_threads(), len(jobs))
    if threads <= 1:
        return [work(job) for job in jobs]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(work, jobs))
