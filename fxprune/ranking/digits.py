"""The k-th smallest of many scores by their bit patterns: a histogram for each run of bits.

Bit patterns of floating-point numbers, the sign folded in, are ordered as the numbers are. Each
round counts one digit of the patterns that begin like the k-th one, and so learns its next digit.
The counts of several processes add up, so a sum over processes gives all of them the same score.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import reduce

import torch

from fxprune.errors import PassError
from fxprune.ranking.magnitudes import INTEGERS
from fxprune.rewrite import ScoreSource

_BITS = 11  # of a digit: histograms of 16 KiB


def keys_of(values: torch.Tensor) -> torch.Tensor:
    """Return integers in the order of floats of 2, 4 or 8 bytes: equal for equal ones, NaN last.

    Example:
        >>> keys_of(torch.tensor([0.0, -0.0, 1.0, float("nan")])).tolist()
        [0, 0, 1065353216, 2147483647]
    """
    kind = INTEGERS[values.element_size()]
    bits = (values + 0.0).view(kind)  # -0.0 becomes 0.0
    most = torch.iinfo(kind).max
    keys = torch.where(bits < 0, bits ^ most, bits)
    return keys.masked_fill_(values.isnan(), most)


def ordered_keys(scores: torch.Tensor) -> torch.Tensor:
    """Return integers in the order of scores of any dtype that can be ordered."""
    if scores.dtype.is_floating_point and scores.element_size() in INTEGERS:
        return keys_of(scores)
    if scores.dtype.is_floating_point or scores.dtype.is_complex:
        raise PassError(
            f"scores of dtype {scores.dtype} cannot be compared over processes; take importance "
            "scores of float16, bfloat16, float32 or float64"
        )
    return scores.to(torch.int64)


def value_of(key: int, dtype: torch.dtype) -> torch.Tensor:
    """Return the number that a key stands for, a tensor without dimensions.

    Example:
        >>> value_of(1065353216, torch.float32)
        tensor(1.)
    """
    kind = INTEGERS[dtype.itemsize]
    bits = key ^ torch.iinfo(kind).max if key < 0 else key
    return torch.tensor(bits, dtype=kind).view(dtype)


class DigitSearch:
    """A search for the k-th smallest (k from 1) of many keys of `bits` bits, a digit a round.

    Example:
        >>> search = DigitSearch(2, bits=16)
        >>> while not search.finished:
        ...     search.take(search.count([torch.tensor([7, -3]), torch.tensor([5])]))
        >>> search.key
        5
    """

    def __init__(self, k: int, bits: int) -> None:
        self._left, self._bits = k, bits
        self._prefix = self._known = 0

    @property
    def finished(self) -> bool:
        """Whether all digits are known."""
        return self._known == self._bits

    @property
    def key(self) -> int:
        """The k-th smallest key, once all digits are known."""
        return self._prefix - 2 ** (self._bits - 1)

    def count(self, chunks: Iterable[torch.Tensor]) -> torch.Tensor:
        """Return how often each next digit occurs among keys that begin like the k-th one.

        int64 on the CPU, of the same length in every round: the counts of several processes add up.
        """
        counts = torch.zeros(2**_BITS, dtype=torch.int64)
        for keys in chunks:
            found = self._digits(keys).cpu()
            counts[: len(found)] += found
        return counts

    def take(self, counts: torch.Tensor) -> None:
        """Take the counts of all keys, and go on to the next digit."""
        totals = counts.cumsum(0)
        digit = int(torch.searchsorted(totals, self._left))
        self._left -= int(totals[digit] - counts[digit])
        size = self._size
        self._prefix, self._known = (self._prefix << size) | digit, self._known + size

    @property
    def _size(self) -> int:
        return min(_BITS, self._bits - self._known)

    def _digits(self, keys: torch.Tensor) -> torch.Tensor:
        """Count the next digit of the keys that begin with the known ones."""
        known, size = self._known, self._size
        digits = (keys >> (self._bits - known - size)).to(torch.int64)
        if known:
            begins = self._prefix - 2 ** (known - 1)
            digits = digits[digits >> size == begins] & (2**size - 1)
        else:
            digits += 2 ** (size - 1)
        return torch.bincount(digits, minlength=2**size)


def find_by_digits(sources: Iterable[ScoreSource], k: int, dtype: torch.dtype) -> torch.Tensor:
    """Return the k-th smallest living score, compared in a floating dtype, on the CPU."""
    sources = tuple(sources)
    search = DigitSearch(k, dtype.itemsize * 8)
    while not search.finished:
        search.take(
            search.count(
                keys_of(source.chunk(start, stop).to(dtype))
                for source in sources
                for start, stop in chunks_of(source)
            )
        )
    return value_of(search.key, dtype)


CHUNK = 2**18  # units: chunk and temporaries stay in the cache


def chunks_of(source: ScoreSource) -> Iterator[tuple[int, int]]:
    """Yield (start, stop) of each chunk of a source's units."""
    for start in range(0, source.units, CHUNK):
        yield start, min(start + CHUNK, source.units)


def scan(
    source: ScoreSource, low: float | None, high: float | None, dtype: torch.dtype, most: int
) -> tuple[int, torch.Tensor] | None:
    """Count the scores under a bracket and list those inside; None if these are more than `most`.

    Bounds are inside; None is no bound, and without an upper one NaN is inside.
    """
    own = source.scan(low, high, dtype, most)
    if own is not None:
        return None if own[1] is None else (own[0], own[1])
    under, inside, count = 0, list[torch.Tensor](), 0
    for start, stop in chunks_of(source):
        values = source.chunk(start, stop).to(dtype)
        taken = torch.ones_like(values, dtype=torch.bool) if high is None else values <= high
        if low is not None:
            below = values < low
            under += int(below.count_nonzero())
            taken ^= below
        found = values[taken]
        count += len(found)
        if count > most:
            return None
        inside.append(found)
    return under, torch.cat(inside) if inside else source.chunk(0, 0).to(dtype)


def common_dtype(sources: Iterable[ScoreSource]) -> torch.dtype:
    """Return the dtype that torch.cat would promote the scores to."""
    return reduce(torch.promote_types, (source.dtype for source in sources), torch.bool)


def concatenate(sources: Iterable[ScoreSource]) -> torch.Tensor:
    """Return the living scores of several sources as one vector."""
    sources = tuple(sources)
    dtype = common_dtype(sources)
    return torch.cat([source.chunk(0, source.units).to(dtype) for source in sources])


def sides_of(source: ScoreSource, threshold: torch.Tensor) -> tuple[int, int]:
    """Count the living scores under a threshold and at it, in the threshold's dtype."""
    below = alike = 0
    for start, stop in chunks_of(source):
        values = source.chunk(start, stop).to(threshold.dtype)
        level = threshold.to(values.device)
        below += int(is_under(values, level).count_nonzero())
        alike += int(is_at(values, level).count_nonzero())
    return below, alike


def is_under(values: torch.Tensor, threshold: torch.Tensor) -> torch.Tensor:
    """Tell which values are under a threshold of their dtype; NaN is over all others."""
    return ~values.isnan() if bool(threshold.isnan()) else values < threshold


def is_at(values: torch.Tensor, threshold: torch.Tensor) -> torch.Tensor:
    """Tell which values are at a threshold of their dtype; NaN is at NaN."""
    return values.isnan() if bool(threshold.isnan()) else values == threshold


def is_upto(values: torch.Tensor, threshold: torch.Tensor) -> torch.Tensor:
    """Tell which values are under or at a threshold of their dtype."""
    if bool(threshold.isnan()):
        return torch.ones_like(values, dtype=torch.bool)
    return values <= threshold
