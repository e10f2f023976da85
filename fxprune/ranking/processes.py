"""Rankings of parameters that are spread over the processes of a group.

The processes add up histograms of their scores' bit patterns until the threshold is known; then, of
the one parameter in whose midst the quota of ties ends, histograms of the ties' indices in the
whole tensor. So every process finds the cuts that one process with all scores would have found.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from fxprune import tensors
from fxprune.digits import Search, sortable, value_of
from fxprune.errors import PassError
from fxprune.facts import Cut, Ranking, Scores, ScoreSource
from fxprune.peers import Peers
from fxprune.program import Program
from fxprune.ranking import (
    check_amount,
    check_values,
    count_of,
    counting,
    cut_group,
    grouped,
)
from fxprune.scan import chunks_of, is_at, joined_dtype, sides_of
from fxprune.shards import placing
from fxprune.tallies import Tally, check_parts, digest, layouts, tally
from fxprune.wrapping import check_root_alone, check_takes_masks, is_wrapped, reshard

__all__ = ["rank_over", "ready", "together"]

_TOGETHER = 16  # parameters ranked each on its own whose histograms are sent in one message

Chunks = Callable[[], Iterator[torch.Tensor]]


@contextmanager
def together(group: Any) -> Generator[Peers | None]:
    """Work with the processes of a group, if there is one; if one of them fails, all do.

    Args:
        group: a torch.distributed process group; None for this process alone.
    """
    if group is None:
        yield None
        return
    peers = Peers(group)
    with peers.together("pruning"):
        yield peers


def ready(peers: Peers, program: Program, rules: str, given: Mapping[str, torch.Tensor]) -> Peers:
    """Check that the processes can prune a Program together, and return them as a fact.

    Args:
        peers: the processes.
        program: the Program.
        rules: what it is to be pruned by, as text.
        given: what the caller gives beside, by any names.

    Raises:
        PassError: it is wrapped by FSDP2 in a way that masks do not fit.
        PeerError: the processes were given different Programs or rules.
    """
    check_root_alone(program)
    check_takes_masks(program)
    reshard(program)
    check_parts(program)
    peers.whole_masks = is_wrapped(program)
    tensors_given = repr([(name, digest(tensor)) for name, tensor in given.items()])
    peers.agree(
        "comparing what was given",
        programs=layouts(program),
        recipes=rules,
        masks_or_importance_scores=tensors_given,
    )
    return peers


def rank_over(
    peers: Peers,
    program: Program,
    scores: Scores,
    amount: float | int,
    scope: str,
    ties: str,
) -> Ranking:
    """Find the cuts that prune the smallest scores of all processes.

    Args:
        peers: the processes.
        program: whose parameters were scored.
        scores: sources of this process; of whole parameters, or of its part of one.
        amount: share of the living units (float) or count (int).
        scope: "local" or "global".
        ties: "index" or "torch", see `fxprune.facts.Ranking`.

    Raises:
        AmountError: the amount is more than is alive.
        PassError: torch's choice among ties would need all scores in one place.
        PeerError: the processes do not hold what they should.
    """
    check_amount(amount)
    check_values(scores.sources)
    found = tally(peers, program, scores.sources)
    groups, cuts = grouped(scores, scope), dict[str, Cut]()
    spread: list[_Group] = []
    for names in groups:
        sources = {name: scores.sources[name] for name in names}
        with counting(names):
            k = count_of(amount, sum(found.alive[name] for name in names), scores.units)
        if k > 0 and any(source.part for source in sources.values()):
            spread.append(_Group(sources, k))
        else:
            all_ties = scores.prune_all_ties and ties == "torch"
            cuts |= cut_group(sources, k, all_ties=all_ties)
    search = _Ranks(peers, program, found)
    for start in range(0, len(spread), _TOGETHER):
        cuts |= search.cuts_of(spread[start : start + _TOGETHER])
    sizes = {name: (found.units[name], found.alive[name]) for name in scores.sources}
    ordered = {name: cuts[name] for name in scores.sources}
    ranking = Ranking(ordered, groups, ties, sizes)
    _refuse_replay(ranking, spread)
    return ranking


def _refuse_replay(ranking: Ranking, spread: Sequence[_Group]) -> None:
    for group in spread:
        if ranking.is_replayed(tuple(group.sources)):
            names = tensors.quoted(tuple(group.sources))
            raise PassError(
                f"ties = 'torch' would need all scores of {names} in one process, since some at "
                "the threshold go and some stay; take ties = 'index'"
            )


@dataclass
class _Group:
    """Sources that are ranked together, and what is found out of them."""

    sources: Mapping[str, ScoreSource]
    k: int
    threshold: torch.Tensor = field(default_factory=lambda: torch.zeros(()))

    @property
    def dtype(self) -> torch.dtype:
        return joined_dtype(self.sources.values())


@dataclass(frozen=True)
class _Ranks:
    """The searches of a group of processes."""

    peers: Peers
    program: Program
    tally: Tally

    def cuts_of(self, groups: Sequence[_Group]) -> dict[str, Cut]:
        """Find the cuts of some groups at once."""
        keys = [self._search(Search(g.k, _bits(g.dtype)), self._scores(g)) for g in groups]
        for group, key in zip(groups, self._settled(keys, "finding the threshold"), strict=True):
            group.threshold = _threshold(key, group.dtype)
        names = [name for group in groups for name in group.sources]
        mine = {n: sides_of(s, g.threshold) for g in groups for n, s in g.sources.items()}
        counted = [mine[n] if n in self.tally.counted else (0, 0) for n in names]
        totals = self.peers.sum(torch.tensor(counted), "counting ties").tolist()
        sides = dict(zip(names, totals, strict=True))
        cuts: dict[str, Cut] = {}
        for group in groups:
            cuts |= _shared_out(group, sides)
        return self._with_parts(groups, cuts, {name: tied for name, (_, tied) in mine.items()})

    def _with_parts(
        self, groups: Sequence[_Group], cuts: Mapping[str, Cut], tied: Mapping[str, int]
    ) -> dict[str, Cut]:
        """Say in each cut how many of its quota are in this process's part."""
        split = [(g, name) for g in groups for name in g.sources if cuts[name].is_ambiguous]
        searches = [
            self._search(
                Search(cuts[name].quota, _index_bits(self.tally.units[name])),
                self._places(group, name),
                counts=name in self.tally.counted,
            )
            for group, name in split
        ]
        last = self._settled(searches, "sharing out ties")
        found = dict(cuts)
        for name in (name for group in groups for name, s in group.sources.items() if s.part):
            found[name] = replace(cuts[name], here=tied[name] if cuts[name].quota else 0)
        for (group, name), key in zip(split, last, strict=True):
            if group.sources[name].part:
                here = sum(int((keys <= key).sum()) for keys in self._places(group, name)())
                found[name] = replace(cuts[name], here=here)
        return found

    def _search(self, search: Search, chunks: Chunks, *, counts: bool = True) -> _Searching:
        return search, chunks if counts else lambda: iter(())

    def _settled(self, searches: Sequence[_Searching], step: str) -> list[int]:
        """Run searches at once, a digit of all of them a round."""
        while any(not search.done for search, _ in searches):
            open_ones = [(search, chunks) for search, chunks in searches if not search.done]
            counts = torch.stack([search.count(chunks()) for search, chunks in open_ones])
            totals = self.peers.sum(counts, step)
            for (search, _), total in zip(open_ones, totals, strict=True):
                search.take(total)
        return [search.key for search, _ in searches]

    def _scores(self, group: _Group) -> Chunks:
        """Return what makes the keys of a group's scores that this process counts."""
        return lambda: (
            sortable(source.chunk(start, stop).to(group.dtype))
            for name, source in group.sources.items()
            if name in self.tally.counted
            for start, stop in chunks_of(source)
        )

    def _places(self, group: _Group, name: str) -> Chunks:
        """Return what makes the keys of the indices in the whole of units at a threshold."""
        source, parameter = group.sources[name], tensors.parameter(self.program, name)
        first = 2 ** (_index_bits(self.tally.units[name]) - 1)
        lines = placing().coordinates(parameter, name) if source.part else ()

        def make() -> Iterator[torch.Tensor]:
            for start, stop in chunks_of(source):
                places = _tied(source, start, stop, group.threshold)
                if source.part:
                    places = placing().flat_indices(lines, parameter.shape, places)
                yield places - first

        return make


_Searching = tuple[Search, Chunks]


def _bits(dtype: torch.dtype) -> int:
    return dtype.itemsize * 8 if dtype.is_floating_point else 64


def _index_bits(units: int) -> int:
    return max(units - 1, 1).bit_length()


def _threshold(key: int, dtype: torch.dtype) -> torch.Tensor:
    return value_of(key, dtype) if dtype.is_floating_point else torch.tensor(key, dtype=dtype)


def _tied(source: ScoreSource, start: int, stop: int, threshold: torch.Tensor) -> torch.Tensor:
    """Return the units among start..stop that are alive and at a threshold."""
    values = source.chunk(start, stop).to(threshold.dtype)
    tied = is_at(values, threshold.to(values.device))
    living = source.living(start, stop)
    units = torch.arange(start, stop, device=values.device)
    return (units if living is None else units[living])[tied]


def _shared_out(group: _Group, sides: Mapping[str, Sequence[int]]) -> dict[str, Cut]:
    """Share the quota of ties out to a group's parameters, in order."""
    left = group.k - sum(sides[name][0] for name in group.sources)
    cuts: dict[str, Cut] = {}
    for name in group.sources:
        under, tied = sides[name]
        quota = min(tied, left)
        left -= quota
        cuts[name] = Cut(group.threshold.item(), under + quota, tied, quota)
    return cuts
