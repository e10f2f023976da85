"""The k-th smallest of many scores in one pass: a sampled bracket, counted and collected.

A sample says between which two scores the k-th one must lie. One pass over all scores counts those
under the bracket and collects the few inside; if the k-th is among them it is exact, and if not the
bracket is widened and the pass repeated. Luck decides how often that is, never what is found.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from fxprune.digits import keys_of, value_of
from fxprune.facts import ScoreSource
from fxprune.scan import CHUNK, Scan, is_at, is_under, scan

__all__ = ["Bracket", "bracket_of", "find_in_bracket"]

_SAMPLE = 2**17  # scores, but
_MOST_SHARE = 2**5  # one in so many at the most, and
_SHARE = 2**9  # one in so many at the least, which makes the bracket of many scores narrower, up to
_MOST_SAMPLE = 2**19
_DEVIATIONS = 4  # half the width of a bracket, in standard deviations of the sampled rank
_SLACK = 64  # and in ranks, for samples whose neighbours are alike
_WIDER = 8
_TRIES = 3
_MOST_INSIDE = 16  # one score in so many may be inside: what is collected stays under a byte each


@dataclass(frozen=True)
class Bracket:
    """Scores between which the k-th smallest should be.

    Args:
        low: the least score inside; None where there is no bound.
        high: the largest score inside; None where there is no bound, so that NaN is inside.
    """

    low: float | None
    high: float | None


def bracket_of(sample: torch.Tensor, share: float, width: float) -> Bracket:
    """Return a bracket about the quantile of a sample.

    The rank of the quantile in a sample of S scores has a standard deviation of
    sqrt(S q (1 - q)), that of a binomial count.

    Args:
        sample: scores, in any order.
        share: the quantile q, from 0 to 1.
        width: half the bracket's width, as a multiple of the usual one.

    Example:
        >>> bracket_of(torch.arange(1000.0), 0.5, 1.0)
        Bracket(low=372.0, high=628.0)
    """
    count = len(sample)
    spread = _DEVIATIONS * math.sqrt(count * share * (1 - share)) + _SLACK
    first = math.floor(share * count - width * spread)
    last = math.ceil(share * count + width * spread)
    low = float(_kth([sample], first + 1)) if first >= 0 else None
    high = float(_kth([sample], last + 1)) if last < count else None
    return Bracket(
        None if low is None or math.isnan(low) else low,
        None if high is None or math.isnan(high) else high,
    )


def find_in_bracket(
    sources: Mapping[str, ScoreSource], k: int, dtype: torch.dtype
) -> tuple[torch.Tensor, dict[str, tuple[int, int]]] | None:
    """Find the k-th smallest living score and, for each source, what is under it and at it.

    Args:
        sources: score sources by name.
        k: from 1 to the number of living scores.
        dtype: in which scores are compared.

    Returns:
        The score, and (count under it, count at it) by name; None where too many scores are alike
        to be collected, or no bracket held.
    """
    alive = sum(source.alive for source in sources.values())
    wanted = max(min(_SAMPLE, alive // _MOST_SHARE), min(alive // _SHARE, _MOST_SAMPLE), 1)
    step = max(alive // wanted, 1)
    drawn = [source.sample(step).to(dtype) for source in sources.values()]
    sample = torch.cat(drawn)
    for attempt in range(_TRIES):
        bracket = bracket_of(sample, k / alive, float(_WIDER**attempt))
        scans = _scans(sources, bracket, dtype, alive // _MOST_INSIDE)
        if scans is None:
            return None
        under = sum(found.under for found in scans.values())
        if under < k <= under + sum(len(found.inside) for found in scans.values()):
            return _exact(scans, k - under)
    return None


def _scans(
    sources: Mapping[str, ScoreSource], bracket: Bracket, dtype: torch.dtype, most: int
) -> dict[str, Scan] | None:
    scans: dict[str, Scan] = {}
    for name, source in sources.items():
        found = scan(source, bracket.low, bracket.high, dtype, most)
        if found is None:
            return None
        most -= len(found.inside)
        scans[name] = found
    return scans


def _exact(scans: Mapping[str, Scan], k: int) -> tuple[torch.Tensor, dict[str, tuple[int, int]]]:
    threshold = _kth([found.inside for found in scans.values()], k)
    return threshold, {
        name: (
            found.under + int(is_under(found.inside, threshold).count_nonzero()),
            int(is_at(found.inside, threshold).count_nonzero()),
        )
        for name, found in scans.items()
    }


def _kth(parts: list[torch.Tensor], k: int) -> torch.Tensor:
    """Return the k-th smallest entry of vectors, in the room of one more copy of them."""
    if not parts[0].is_cpu:
        return torch.kthvalue(torch.cat(parts), k).values
    # kthvalue makes indices of 8 bytes and is several times slower.
    keys, at = keys_of(parts[0][:0]).new_empty(sum(map(len, parts))).numpy(), 0
    for piece in (piece for part in parts for piece in part.split(CHUNK)):
        keys[at : at + len(piece)] = keys_of(piece).numpy()
        at += len(piece)
    keys.partition(k - 1)
    return value_of(int(keys[k - 1]), parts[0].dtype)
