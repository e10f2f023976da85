"""The pass over magnitudes as compiled code, several chunks at a time; needs numba (extra `fast`).

The magnitude of a floating-point number is its bits without the sign, and these are ordered as the
magnitudes are, NaN last: one comparison of integers a bound.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numba
import numpy as np
import torch

__all__ = ["scan_magnitudes"]

_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
_PART = 2**22  # entries for one thread: a call costs little beside it


@numba.njit(nogil=True, cache=True)
def _scan(bits: Any, most: Any, low: Any, high: Any, inside: Any) -> tuple[int, int]:
    under = found = 0
    for at in range(bits.size):
        key = bits[at] & most
        under += key < low
        if low <= key and key <= high:
            if found < inside.size:
                inside[found] = key
            found += 1
    return under, found


def scan_magnitudes(
    vector: torch.Tensor, low: float | None, high: float | None, most: int
) -> tuple[int, torch.Tensor] | None:
    """Count the magnitudes under a bracket and collect those inside, in order.

    Args:
        vector: floating-point, contiguous, on the CPU.
        low: the least magnitude inside; None for no bound.
        high: the largest magnitude inside; None for no bound, so that NaN is inside.
        most: how many may be inside.

    Returns:
        (count under, those inside); None where more are inside.

    Example:
        >>> scan_magnitudes(torch.tensor([0.5, -2.0, 1.0, -0.25]), 0.5, 1.0, 4)
        (1, tensor([0.5000, 1.0000]))
    """
    kind = _INTEGERS[vector.element_size()]
    top = torch.iinfo(kind).max
    bits = vector.detach().view(kind).numpy()
    bounds = [_key(low, vector.dtype, 0), _key(high, vector.dtype, top)]
    number = bits.dtype.type
    most_bits, least, largest = (number(bound) for bound in (top, *bounds))

    def part(start: int) -> tuple[int, Any]:
        piece = bits[start : start + _PART]
        inside = np.empty(min(most, piece.size), bits.dtype)
        under, found = _scan(piece, most_bits, least, largest, inside)
        return under, inside[:found].copy() if found <= inside.size else None

    starts = range(0, bits.size, _PART)
    with ThreadPoolExecutor(max(torch.get_num_threads(), 1)) as pool:
        parts = list(pool.map(part, starts))
    if any(inside is None for _, inside in parts):
        return None
    inside = np.concatenate([np.empty(0, bits.dtype), *(inside for _, inside in parts)])
    if inside.size > most:
        return None
    return sum(under for under, _ in parts), torch.from_numpy(inside).view(vector.dtype)


def _key(bound: float | None, dtype: torch.dtype, otherwise: int) -> int:
    if bound is None:
        return otherwise
    return int(torch.tensor(abs(bound), dtype=dtype).view(_INTEGERS[dtype.itemsize]))
