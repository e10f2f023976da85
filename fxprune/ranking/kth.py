"""Exact selection of the k smallest scores over many tensors, as cuts.

The order is that of torch.topk: NaN counts as largest. Ties at the threshold go by
`ties="index"`, lower (parameter order, flat index) first, or by torch.topk's own choice.
"""

from __future__ import annotations

import numbers
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager

import torch

from fxprune.bracket import find_in_bracket
from fxprune.digits import find_by_digits
from fxprune.errors import AmountError, AmountTypeError, PassError
from fxprune.facts import Cut, Ranking, Scores, ScoreSource
from fxprune.scan import joined, joined_dtype, sides_of

__all__ = [
    "check_amount",
    "check_values",
    "count_of",
    "counting",
    "cut_group",
    "grouped",
    "rank_scores",
]

SMALL = 300_000  # living scores up to which joining all of them is faster than passes over them


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


@contextmanager
def counting(names: Sequence[str]) -> Generator[None]:
    """Let an AmountError say what was counted, where that is one parameter alone.

    Args:
        names: of the parameters.
    """
    try:
        yield
    except AmountError as error:
        if len(names) != 1:
            raise
        raise AmountError(f"{error} for {names[0]!r}") from error


def rank_scores(scores: Scores, amount: float | int, scope: str, ties: str) -> Ranking:
    """Find the cuts that prune the smallest scores.

    Args:
        scores: sources whose units are all here.
        amount: share of the living units (float) or count (int).
        scope: "local": of each source; "global": of all sources together.
        ties: "index" or "torch", see `fxprune.facts.Ranking`.

    Raises:
        AmountError: the amount is out of range, or more than is alive.
    """
    check_amount(amount)
    groups, cuts = grouped(scores, scope), dict[str, Cut]()
    for group in groups:
        sources = {name: scores.sources[name] for name in group}
        alive = sum(source.alive for source in sources.values())
        with counting(group):
            k = count_of(amount, alive, scores.units)
        cuts |= cut_group(sources, k, all_ties=scores.prune_all_ties and ties == "torch")
    return Ranking(cuts, groups, ties)


def grouped(scores: Scores, scope: str) -> tuple[tuple[str, ...], ...]:
    """Return the names that are ranked together: each alone, or with scope "global" all."""
    if scope == "global" and scores.sources:
        return (tuple(scores.sources),)
    return tuple((name,) for name in scores.sources)


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
    check_values(sources)
    threshold, sides = _find(sources, k, joined_dtype(sources.values()))
    left = k - sum(under for under, _ in sides.values())
    cuts: dict[str, Cut] = {}
    for name, (under, tied) in sides.items():
        quota = tied if all_ties else min(tied, left)
        left -= quota
        cuts[name] = Cut(threshold.item(), under + quota, tied, quota)
    return cuts


def check_values(sources: Mapping[str, ScoreSource]) -> None:
    """Check that the scores have values.

    Raises:
        PassError: they are on the meta device.
    """
    if any(source.chunk(0, 0).is_meta for source in sources.values()):
        raise PassError("the parameters are on the meta device and have no values to rank")


def _find(
    sources: Mapping[str, ScoreSource], k: int, dtype: torch.dtype
) -> tuple[torch.Tensor, dict[str, tuple[int, int]]]:
    """Return the k-th smallest score and (count under it, count at it) of each source."""
    alive = sum(source.alive for source in sources.values())
    if alive > SMALL and dtype.is_floating_point:
        found = find_in_bracket(sources, k, dtype)
        if found is not None:
            return found
        threshold = find_by_digits(sources.values(), k, dtype)
    else:
        threshold = torch.kthvalue(joined(sources.values()), k).values
    return threshold, {name: sides_of(source, threshold) for name, source in sources.items()}
