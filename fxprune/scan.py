"""One pass over scores, a chunk at a time: how many are under a bracket, and which are inside."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import reduce

import torch

from fxprune.facts import ScoreSource

__all__ = [
    "CHUNK",
    "Scan",
    "chunks_of",
    "is_at",
    "is_under",
    "is_upto",
    "joined",
    "joined_dtype",
    "scan",
    "sides_of",
]

CHUNK = 2**18  # units: chunk and temporaries stay in the cache


@dataclass(frozen=True)
class Scan:
    """What a pass over one source found.

    Args:
        under: how many living scores are under the bracket.
        inside: those inside, a vector in unit order.
    """

    under: int
    inside: torch.Tensor


def chunks_of(source: ScoreSource) -> Iterator[tuple[int, int]]:
    """Yield (start, stop) of each chunk of a source's units."""
    for start in range(0, source.units, CHUNK):
        yield start, min(start + CHUNK, source.units)


def scan(
    source: ScoreSource, low: float | None, high: float | None, dtype: torch.dtype, most: int
) -> Scan | None:
    """Count and collect.

    Args:
        source: the scores.
        low: the least score inside; None for no bound.
        high: the largest score inside; None for no bound, so that NaN is inside.
        dtype: in which scores are compared.
        most: how many may be inside.

    Returns:
        What was found; None where more are inside.
    """
    own = source.scan(low, high, dtype, most)
    if own is not None:
        return None if own[1] is None else Scan(own[0], own[1])
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
    return Scan(under, torch.cat(inside) if inside else source.chunk(0, 0).to(dtype))


def joined_dtype(sources: Iterable[ScoreSource]) -> torch.dtype:
    """Return the dtype that torch.cat would promote the scores to."""
    return reduce(torch.promote_types, (source.dtype for source in sources), torch.bool)


def joined(sources: Iterable[ScoreSource]) -> torch.Tensor:
    """Return the living scores of several sources as one vector."""
    sources = tuple(sources)
    dtype = joined_dtype(sources)
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
