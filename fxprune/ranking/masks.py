"""Rankings as masks: which of a parameter's units go, a chunk at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from fxprune.ranking.digits import chunks_of, common_dtype, concatenate, is_at, is_under, is_upto
from fxprune.rewrite import Cut, Ranking, Scores, ScoreSource

# (start, stop, which of the living units among start..stop are pruned)
PrunedChunks = Iterator[tuple[int, int, torch.Tensor]]


def pruned_of_group(
    scores: Scores, ranking: Ranking, group: Sequence[str]
) -> Iterator[tuple[str, PrunedChunks]]:
    """Yield (name, chunks in unit order) of which living units the ranking prunes.

    The chunks of one parameter are to be read before the next is asked for.
    """
    if ranking.is_replayed(tuple(group)) and not scores.prune_all_ties:
        yield from _replay_topk(scores, ranking, group)
        return
    dtype = common_dtype(scores.sources[name] for name in group)
    for name in group:
        yield name, _pruned_chunks(scores.sources[name], ranking.cuts[name], dtype)


def _pruned_chunks(source: ScoreSource, cut: Cut, dtype: torch.dtype) -> PrunedChunks:
    left = cut.quota if cut.here is None else cut.here
    for start, stop in chunks_of(source):
        values = source.chunk(start, stop).to(dtype)
        if cut.threshold is None:
            yield start, stop, torch.zeros(values.shape, dtype=torch.bool, device=values.device)
            continue
        level = torch.tensor(cut.threshold, dtype=dtype, device=values.device)
        if cut.quota == cut.tied:  # all ties go, so none need be counted
            yield start, stop, is_upto(values, level)
            continue
        pruned = is_under(values, level)
        if left > 0:
            tied = is_at(values, level)
            there = int(tied.count_nonzero())
            if there > left:
                tied &= tied.cumsum(0) <= left
            left -= min(there, left)
            pruned |= tied
        yield start, stop, pruned


def _replay_topk(
    scores: Scores, ranking: Ranking, group: Sequence[str]
) -> Iterator[tuple[str, PrunedChunks]]:
    """Repeat torch.topk's choice among equal scores, which depends on every score's place."""
    sources = [scores.sources[name] for name in group]
    values = concatenate(sources)
    k = sum(ranking.cuts[name].count for name in group)
    # topk's sorting of what it found cannot change which these are, so it is left out.
    first, largest = (len(values) - k, True) if scores.keep_first else (k, False)
    chosen = torch.topk(values, first, largest=largest, sorted=False).indices
    pruned = torch.full(values.shape, largest, dtype=torch.bool, device=values.device)
    pruned[chosen] = not largest
    parts = pruned.split([source.alive for source in sources])
    for name, source, part in zip(group, sources, parts, strict=True):
        yield name, iter([(0, source.units, part)])
