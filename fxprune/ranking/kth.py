"""Exact selection of the k smallest scores over many tensors, as cuts.

The order is that of torch.topk: NaN counts as largest. Ties at the threshold go by `ties="index"`,
lower (parameter order, flat index) first, or by torch.topk's own choice.

A sample says between which two scores the k-th one must lie. One pass over all scores counts those
under the bracket and collects the few inside; if the k-th is among them it is exact, and if not the
bracket is widened and the pass repeated. Luck decides how often that is, never what is found.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager

import torch

from fxprune.errors import AmountError, AmountTypeError, PassError
from fxprune.ranking.digits import (
    CHUNK,
    common_dtype,
    concatenate,
    find_by_digits,
    is_at,
    is_under,
    keys_of,
    scan,
    sides_of,
    value_of,
)
from fxprune.rewrite import Cut, Ranking, Scores, ScoreSource

SMALL = 300_000  # living scores up to which joining all of them is faster than passes over them


def check_amount(amount: float | int) -> None:
    """Check an amount as torch.nn.utils.prune does: a share in [0, 1], or a count of 0 or more.

    Raises AmountTypeError for what is no number, AmountError for one out of range.
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

    Raises AmountError, which calls the units `what`, where that is more than is alive.

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
def name_in_errors(names: Sequence[str]) -> Generator[None]:
    """Let an AmountError say what was counted, where that is one parameter alone."""
    try:
        yield
    except AmountError as error:
        if len(names) != 1:
            raise
        raise AmountError(f"{error} for {names[0]!r}") from error


def rank_scores(scores: Scores, amount: float | int, scope: str, ties: str) -> Ranking:
    """Find the cuts that prune an amount of the smallest scores, of sources that are all here.

    For `scope` and `ties` see `fxprune.rewrite.facts.Ranking`; AmountError where more than is
    alive.
    """
    check_amount(amount)
    groups, cuts = groups_of(scores, scope), dict[str, Cut]()
    for group in groups:
        sources = {name: scores.sources[name] for name in group}
        alive = sum(source.alive for source in sources.values())
        with name_in_errors(group):
            k = count_of(amount, alive, scores.units)
        cuts |= cut_group(sources, k, all_ties=scores.prune_all_ties and ties == "torch")
    return Ranking(cuts, groups, ties)


def groups_of(scores: Scores, scope: str) -> tuple[tuple[str, ...], ...]:
    """Return the names that are ranked together: each alone, or with scope "global" all."""
    if scope == "global" and scores.sources:
        return (tuple(scores.sources),)
    return tuple((name,) for name in scores.sources)


def cut_group(sources: Mapping[str, ScoreSource], k: int, *, all_ties: bool) -> dict[str, Cut]:
    """Find the cuts that prune the k smallest of all living scores; k is at most their number.

    Quotas of ties go to the parameters in order; `all_ties` prunes every unit at the threshold,
    though they may be more than k.
    """
    if k == 0:
        return {name: Cut(threshold=None, count=0) for name in sources}
    check_values(sources)
    threshold, sides = _find(sources, k, common_dtype(sources.values()))
    return share_ties(sides, k, threshold, all_ties=all_ties)


def share_ties(
    sides: Mapping[str, Sequence[int]], k: int, threshold: torch.Tensor, *, all_ties: bool = False
) -> dict[str, Cut]:
    """Return the cuts of the k smallest, with what is (under, at) the threshold by name."""
    left = k - sum(under for under, _ in sides.values())
    cuts: dict[str, Cut] = {}
    for name, (under, tied) in sides.items():
        quota = tied if all_ties else min(tied, left)
        left -= quota
        cuts[name] = Cut(threshold.item(), under + quota, tied, quota)
    return cuts


def check_values(sources: Mapping[str, ScoreSource]) -> None:
    """Raise a PassError where the scores are on the meta device and have no values."""
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
        threshold = torch.kthvalue(concatenate(sources.values()), k).values
    return threshold, {name: sides_of(source, threshold) for name, source in sources.items()}


_SAMPLE = 2**17  # scores, but
_MOST_SHARE = 2**5  # one in so many at the most, and
_SHARE = 2**9  # one in so many at the least, which makes the bracket of many scores narrower, up to
_MOST_SAMPLE = 2**19
_DEVIATIONS = 4  # half the width of a bracket, in standard deviations of the sampled rank
_SLACK = 64  # and in ranks, for samples whose neighbours are alike
_WIDER = 8
_TRIES = 3
_MOST_INSIDE = 16  # one score in so many may be inside: what is collected stays under a byte each


# The scores between which the k-th smallest should be, both inside; None is no bound.
Bracket = tuple[float | None, float | None]


def bracket_of(sample: torch.Tensor, share: float, width: float) -> Bracket:
    """Return a bracket about the quantile `share`, from 0 to 1, of a sample in any order.

    The rank of the quantile in a sample of S scores has a standard deviation of sqrt(S q (1 - q)),
    that of a binomial count; `width` widens the bracket.

    Example:
        >>> bracket_of(torch.arange(1000.0), 0.5, 1.0)
        (372.0, 628.0)
    """
    count = len(sample)
    spread = _DEVIATIONS * math.sqrt(count * share * (1 - share)) + _SLACK
    first = math.floor(share * count - width * spread)
    last = math.ceil(share * count + width * spread)
    low = float(_kth([sample], first + 1)) if first >= 0 else None
    high = float(_kth([sample], last + 1)) if last < count else None
    return (
        None if low is None or math.isnan(low) else low,
        None if high is None or math.isnan(high) else high,
    )


def find_in_bracket(
    sources: Mapping[str, ScoreSource], k: int, dtype: torch.dtype
) -> tuple[torch.Tensor, dict[str, tuple[int, int]]] | None:
    """Find the k-th smallest living score and, for each source, (count under it, count at it).

    None where too many scores are alike to be collected, or no bracket held.
    """
    alive = sum(source.alive for source in sources.values())
    wanted = max(min(_SAMPLE, alive // _MOST_SHARE), min(alive // _SHARE, _MOST_SAMPLE), 1)
    step = max(alive // wanted, 1)
    sample = torch.cat([source.sample(step).to(dtype) for source in sources.values()])
    for attempt in range(_TRIES):
        bracket = bracket_of(sample, k / alive, float(_WIDER**attempt))
        scans = _scan_all(sources, bracket, dtype, alive // _MOST_INSIDE)
        if scans is None:
            return None
        below = sum(under for under, _ in scans.values())
        if below < k <= below + sum(len(inside) for _, inside in scans.values()):
            threshold = _kth([inside for _, inside in scans.values()], k - below)
            return threshold, {
                name: (
                    under + int(is_under(inside, threshold).count_nonzero()),
                    int(is_at(inside, threshold).count_nonzero()),
                )
                for name, (under, inside) in scans.items()
            }
    return None


def _scan_all(
    sources: Mapping[str, ScoreSource], bracket: Bracket, dtype: torch.dtype, most: int
) -> dict[str, tuple[int, torch.Tensor]] | None:
    scans: dict[str, tuple[int, torch.Tensor]] = {}
    for name, source in sources.items():
        found = scan(source, *bracket, dtype, most)
        if found is None:
            return None
        most -= len(found[1])
        scans[name] = found
    return scans


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
