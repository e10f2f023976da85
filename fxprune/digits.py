"""The k-th smallest of many scores by their bit patterns: a histogram for each run of bits.

Bit patterns of floating-point numbers, the sign folded in, are ordered as the numbers are. Each
round counts one digit of the patterns that begin like the k-th one, and so learns its next digit.
The counts of several processes add up, so a sum over processes gives all of them the same score.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch

from fxprune.facts import ScoreSource
from fxprune.scan import chunks_of

__all__ = ["find_by_digits", "keys_of", "value_of"]

Reduce = Callable[[torch.Tensor], torch.Tensor]

_BITS = 11  # of a digit: histograms of 16 KiB
_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def keys_of(values: torch.Tensor) -> torch.Tensor:
    """Return integers in the order of the values; equal values give equal ones, NaN the largest.

    Args:
        values: floating-point, of 2, 4 or 8 bytes.

    Example:
        >>> keys_of(torch.tensor([0.0, -0.0, 1.0, float("nan")])).tolist()
        [0, 0, 1065353216, 2147483647]
    """
    kind = _INTEGERS[values.element_size()]
    bits = (values + 0.0).view(kind)  # -0.0 becomes 0.0
    most = torch.iinfo(kind).max
    keys = torch.where(bits < 0, bits ^ most, bits)
    return keys.masked_fill_(values.isnan(), most)


def value_of(key: int, dtype: torch.dtype) -> torch.Tensor:
    """Return the number that a key stands for, a tensor without dimensions.

    Example:
        >>> value_of(1065353216, torch.float32)
        tensor(1.)
    """
    kind = _INTEGERS[dtype.itemsize]
    bits = key ^ torch.iinfo(kind).max if key < 0 else key
    return torch.tensor(bits, dtype=kind).view(dtype)


def find_by_digits(
    sources: Iterable[ScoreSource], k: int, dtype: torch.dtype, reduce: Reduce | None = None
) -> torch.Tensor:
    """Find the k-th smallest living score.

    Args:
        sources: score sources; those of this process.
        k: from 1 to the number of living scores, of all processes.
        dtype: in which scores are compared; floating-point.
        reduce: sums a histogram, int64, over the processes; None for one process.

    Returns:
        The score, a tensor without dimensions, on the CPU.
    """
    sources = tuple(sources)
    bits = dtype.itemsize * 8
    prefix, left, known = 0, k, 0
    while known < bits:
        size = min(_BITS, bits - known)
        counts = torch.zeros(2**size, dtype=torch.int64)
        for source in sources:
            for start, stop in chunks_of(source):
                keys = keys_of(source.chunk(start, stop).to(dtype))
                counts += _digits(keys, prefix, known, size).cpu()
        if reduce is not None:
            counts = reduce(counts)
        totals = counts.cumsum(0)
        digit = int(torch.searchsorted(totals, left))
        left -= int(totals[digit] - counts[digit])
        prefix, known = (prefix << size) | digit, known + size
    return value_of(prefix - 2 ** (bits - 1), dtype)


def _digits(keys: torch.Tensor, prefix: int, known: int, size: int) -> torch.Tensor:
    """Count the next digit of the keys that begin with `prefix`, `known` bits long."""
    bits = keys.element_size() * 8
    rest = bits - known - size
    digits = (keys >> rest).to(torch.int64)
    if known:
        digits = digits[digits >> size == prefix - 2 ** (known - 1)] & (2**size - 1)
    else:
        digits += 2 ** (size - 1)
    return torch.bincount(digits, minlength=2**size)
