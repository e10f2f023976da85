"""Exact selection of the k smallest scores over many tensors, as cuts; and its repetition as masks.

The order is that of torch.topk: NaN counts as largest. Ties at the threshold go by
`ties="index"`, lower (parameter order, flat index) first, or by torch.topk's own choice.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping, Sequence
from functools import reduce

import torch

from fxprune.errors import AmountError, AmountTypeError, PassError
from fxprune.facts import Cut, Ranking, Scores, ScoreSource

__all__ = ["check_amount", "count_of", "cut_group", "pruned_of_group"]


def check_amount(amount: float | int) -> None:
    """Check an amount on its own, as torch.nn.utils.prune does.

    Args:
        amount: share in [0, 1] (float) or count of 0 or more (int).

    Raises:
        AmountTypeError: it is no number.
        AmountError: it is out of range.
    """
    if isinstance(amount, bool) or not isinstance(amount, numbers.Real):
        raise AmountTypeError(f"amount={amount!r} must be a float (share) or an int (count)")
    whole = isinstance(amount, numbers.Integral)
    if (whole and amount < 0) or (not whole and not 0.0 <= float(amount) <= 1.0):
        raise AmountError(
            f"amount={amount} is out of range; give a share between 0.0 and 1.0, or a count of 0 "
            "or more"
        )


def count_of(amount: float | int, alive: int, what: str) -> int:
    """Return how many of the living units an amount means (banker's rounding, as torch).

    Args:
        amount: share (float) or count (int).
        alive: number of living units.
        what: what is counted, for the message.

    Raises:
        AmountError: more than is alive.

    Example:
        >>> count_of(0.5, 5, "entries"), count_of(0.5, 7, "entries")
        (2, 4)
    """
    check_amount(amount)
    count = int(amount) if isinstance(amount, numbers.Integral) else round(amount * alive)
    if count > alive:
        raise AmountError(
            f"amount={amount} is more than the {alive} {what} that are alive; give {alive} or less"
        )
    return count


def cut_group(sources: Mapping[str, ScoreSource], k: int, *, all_ties: bool) -> dict[str, Cut]:
    """Find the cuts that prune the k smallest of all living scores.

    Args:
        sources: score sources by name, in parameter order.
        k: how many units to prune, at most the living ones.
        all_ties: prune every unit at the threshold, though they may be more than k.

    Returns:
        A cut for each name. With ties, quotas go to the parameters in order.
    """
    if k == 0:
        return {name: Cut(threshold=None, count=0) for name in sources}
    threshold = torch.kthvalue(_joined(tuple(sources.values())), k).values
    sides = {name: _sides(source, threshold) for name, source in sources.items()}
    left = k - sum(below for below, _ in sides.values())
    cuts: dict[str, Cut] = {}
    for name, (below, tied) in sides.items():
        quota = tied if all_ties else min(tied, left)
        left -= quota
        cuts[name] = Cut(float(threshold), below + quota, tied, quota)
    return cuts


def pruned_of_group(scores: Scores, ranking: Ranking, group: Sequence[str]):
    """Yield, for each parameter of a group, which of its living units the ranking prunes.

    Args:
        scores: what the ranking was made of.
        ranking: cuts and the rule for ties.
        group: names that were ranked together.

    Yields:
        (name, bool vector over the living units).
    """
    if ranking.is_replayed(tuple(group)) and not scores.prune_all_ties:
        yield from _replayed(scores, ranking, group)
        return
    dtype = _joined_dtype([scores.sources[name] for name in group])
    for name in group:
        source, cut = scores.sources[name], ranking.cuts[name]
        values = source.chunk(0, source.units)
        if cut.threshold is None:
            yield name, torch.zeros(values.shape, dtype=torch.bool, device=values.device)
            continue
        below, tied = _compare(values.to(dtype), cut.threshold)
        if cut.is_ambiguous:
            tied &= tied.cumsum(0) <= cut.quota
        yield name, below | tied if cut.quota else below


def _replayed(scores: Scores, ranking: Ranking, group: Sequence[str]):
    """Repeat torch.topk's choice among equal scores, which depends on every score's place."""
    sources = [scores.sources[name] for name in group]
    joined = _joined(sources)
    k = sum(ranking.cuts[name].count for name in group)
    # topk's sorting of what it found cannot change which these are, so it is left out.
    if scores.keep_first:
        kept = torch.topk(joined, len(joined) - k, largest=True, sorted=False).indices
        pruned = torch.ones(joined.shape, dtype=torch.bool, device=joined.device)
        pruned[kept] = False
    else:
        pruned = torch.zeros(joined.shape, dtype=torch.bool, device=joined.device)
        pruned[torch.topk(joined, k, largest=False, sorted=False).indices] = True
    parts = pruned.split([source.alive for source in sources])
    yield from zip(group, parts, strict=True)


def _joined(sources: Sequence[ScoreSource]) -> torch.Tensor:
    """Join the living scores of several sources, in the dtype that torch.cat would promote to."""
    dtype = _joined_dtype(sources)
    joined = torch.cat([source.chunk(0, source.units).to(dtype) for source in sources])
    if joined.is_meta:
        raise PassError("the parameters are on the meta device and have no values to rank")
    return joined


def _joined_dtype(sources: Sequence[ScoreSource]) -> torch.dtype:
    return reduce(torch.promote_types, (source.dtype for source in sources), torch.bool)


def _sides(source: ScoreSource, threshold: torch.Tensor) -> tuple[int, int]:
    """Count the living scores under the threshold and at it, in the threshold's dtype."""
    values = source.chunk(0, source.units).to(threshold.dtype)
    below, tied = _compare(values, float(threshold))
    return int(below.sum()), int(tied.sum())


def _compare(values: torch.Tensor, threshold: float) -> tuple[torch.Tensor, torch.Tensor]:
    if math.isnan(threshold):
        tied = values.isnan()
        return ~tied, tied
    # A threshold of a wider dtype than the values must not be rounded to theirs.
    level = torch.tensor(threshold, dtype=torch.float64, device=values.device)
    wide = values.to(torch.float64) if values.dtype.is_floating_point else values
    return wide < level, wide == level
