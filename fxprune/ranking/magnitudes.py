"""Magnitudes compared and cut as integers: numpy does both several times faster than torch.

The magnitude of a floating-point number is its bits without the sign, its key. Keys are ordered as
the magnitudes are, NaN last, so each comparison is one of integers, whatever the dtype.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np
import torch

from fxprune.rewrite import flat_part

_NUMPY: dict[int, Any] = {2: np.int16, 4: np.int32, 8: np.int64}
INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def integers_of(dtype: torch.dtype) -> Any:
    """Return numpy's integers of the size of a floating-point dtype of 2, 4 or 8 bytes."""
    return _NUMPY[dtype.itemsize]


@cache
def infinity_of(dtype: torch.dtype) -> int:
    """Return the key of infinity: those of NaN are larger."""
    return least_key(math.inf, dtype)


def least_key(bound: float, dtype: torch.dtype) -> int:
    """Return the key of the least magnitude of a dtype that is not under a bound.

    Example:
        >>> least_key(1.0, torch.float32) == least_key(1.0 - 1e-12, torch.float32)
        True
    """
    near = torch.tensor(bound, dtype=torch.float64).to(dtype)
    return int(near.view(INTEGERS[dtype.itemsize])) + (float(near) < bound)


def most_key(bound: float, dtype: torch.dtype) -> int:
    """Return the key of the largest magnitude of a dtype that is not over a bound.

    Example:
        >>> most_key(1.0, torch.float32) - most_key(1.0 - 1e-12, torch.float32)
        1
    """
    near = torch.tensor(bound, dtype=torch.float64).to(dtype)
    return int(near.view(INTEGERS[dtype.itemsize])) - (float(near) > bound)


def bounds_of(threshold: float, dtype: torch.dtype) -> tuple[int, int]:
    """Return the largest key under a threshold, and the largest one that is not over it.

    A threshold of NaN is over all others and equals itself.

    Example:
        >>> under, upto = bounds_of(1.0, torch.float32)
        >>> upto - under
        1
    """
    if math.isnan(threshold):
        return infinity_of(dtype), torch.iinfo(INTEGERS[dtype.itemsize]).max
    return least_key(threshold, dtype) - 1, most_key(threshold, dtype)


def keys_into(bits: Any, scratch: Scratch) -> Any:
    """Return the keys of numbers given as integers, in a buffer."""
    keys = scratch.array("keys", bits.size, bits.dtype)
    return np.bitwise_and(bits, np.iinfo(bits.dtype).max, out=keys)


def scan_keys(keys: Any, low: int, high: int, living: Any, scratch: Scratch) -> tuple[int, Any]:
    """Count the keys under [low, high] and list those inside; only where `living`, if given.

    Example:
        >>> scan_keys(np.array([5, 9, 7, 3], np.int32), 5, 7, None, Scratch())
        (1, array([5, 7], dtype=int32))
    """
    number = keys.dtype.type
    below = np.less(keys, number(low), out=scratch.array("below", keys.size, np.bool_))
    inside = np.less_equal(keys, number(high), out=scratch.array("inside", keys.size, np.bool_))
    np.not_equal(below, inside, out=inside)
    if living is not None:
        np.logical_and(below, living, out=below)
        np.logical_and(inside, living, out=inside)
    # compress is up to twice as fast as an index of bool where few are inside.
    return int(np.count_nonzero(below)), np.compress(inside, keys)


def zero_bits(bits: Any, keys: Any, level: int, *, clean: bool) -> None:
    """Zero finite numbers whose keys are under a level (0 or more), as a masked product would.

    `bits` change in place and `keys` are overwritten; with `clean`, zeros lose their sign.

    Example:
        >>> values = torch.tensor([0.5, -2.0, 1.0, -0.25])
        >>> bits = values.view(torch.int32).numpy()
        >>> zero_bits(bits, keys_into(bits, Scratch()), least_key(1.0, torch.float32), clean=False)
        >>> values
        tensor([ 0., -2.,  1., -0.])
    """
    number = bits.dtype.type
    # All ones where the key is kept, else none: the sign of level - 1 - key, spread over its bits.
    kept = np.subtract(number(level - 1), keys, out=keys)
    np.right_shift(kept, number(bits.dtype.itemsize * 8 - 1), out=kept)
    if not clean:
        np.bitwise_or(kept, np.iinfo(bits.dtype).min, out=kept)
    np.bitwise_and(bits, kept, out=bits)


class Scratch(threading.local):
    """Reusable scratch buffers, one set per thread: fresh memory costs more than a pass over it."""

    def __init__(self) -> None:
        self._arrays: dict[str, Any] = {}

    def array(self, use: str, size: int, dtype: Any) -> Any:
        """Return an array of any contents; arrays that are needed at once have different uses."""
        count = size * np.dtype(dtype).itemsize
        found = self._arrays.get(use)
        if found is None or found.size < count:
            found = self._arrays[use] = np.empty(count, np.uint8)
        return found[:count].view(dtype)


_PIECE = 2**18  # entries: a piece and its buffers stay in the cache
_SCRATCH = Scratch()


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
    """Count the magnitudes under a bracket and list those inside, in flat order, by threads.

    `living` gives which of the entries start..stop count. Bounds are inside; None is no bound, and
    without an upper one NaN is inside. No tensor is returned where more than `most` are inside.

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
        keys = keys_into(flat_part(values, start, stop).view(whole).numpy(), _SCRATCH)
        kept = None if alive is None else alive.numpy()
        under, inside = scan_keys(keys, first, last, kept, _SCRATCH)
        with lock:
            count += inside.size
        return under, inside

    parts = _map_in_threads(piece, range(0, size, _PIECE))
    if count > most:
        return 0, None
    inside = np.concatenate([nothing, *(inside for _, inside in parts)])
    return sum(under for under, _ in parts), torch.from_numpy(inside).view(kind)


def _map_in_threads(work: Callable[[int], tuple[int, Any]], jobs: range) -> list[tuple[int, Any]]:
    threads = min(torch.get_num_threads(), len(jobs))
    if threads <= 1:
        return [work(job) for job in jobs]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(work, jobs))
