"""The rules of a recipe on a checkpoint: each adds factors to the masks of the tensors it takes.

What a rule decides is what the passes of the same rule decide on a model in memory.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path

import numpy as np
import torch

from fxprune.bitwise import bounds_of
from fxprune.checkpoint_channels import inner_of, kept_channels, norm_scores
from fxprune.checkpoint_files import Checkpoint, open_checkpoint
from fxprune.checkpoint_io import Workers
from fxprune.checkpoint_masks import ByChannel, ByCut, Given, Ones, Spill
from fxprune.checkpoint_scores import FileMagnitudes, FileRandom
from fxprune.checkpoint_select import selected
from fxprune.checkpoint_weights import Weight
from fxprune.cutting import Pruned, pruned_of_group
from fxprune.draws import Draw, RandomScores, generator_of
from fxprune.errors import PassError, ShapeError
from fxprune.facts import Cut, ParamRecord, Ranking, RuleRecord, Scores, ScoreSource
from fxprune.ranking import check_amount, count_of, counting, cut_group
from fxprune.recipe import Rule
from fxprune.tensors import quoted

__all__ = ["Rules"]

MOST_REPLAYED = 2**22  # entries among which torch's own choice of ties can be repeated
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Rules:
    """What the rules of one recipe share.

    Args:
        weights: the tensors that can be pruned, by name, in order.
        others: why others cannot, by name.
        workers: threads for passes.
        spill: where bits go that cannot be found again.
        masks: keeps files of masks open.
    """

    weights: Mapping[str, Weight]
    others: Mapping[str, str]
    workers: Workers
    spill: Spill
    masks: Callable[[Checkpoint], Checkpoint]

    def run(
        self, rules: Sequence[Rule], name: str, on_progress: Callable[[str, int, int], None]
    ) -> RuleRecord:
        """Carry out one rule, or the rules of one group.

        Args:
            rules: of equal method, amount and ties.
            name: what the rules are called together.
            on_progress: called with the name, bytes that were read and bytes to read.

        Raises:
            SelectError, AmountError, PassError, FormatError: as in memory.
        """
        began, rule = time.perf_counter(), rules[0]
        chosen, refused = selected(rules, self.weights, self.others)
        total = sum(weight.numel * weight.dtype.itemsize for weight in chosen)
        done = [0]

        def on_read(count: int) -> None:
            done[0] += count
            on_progress(name, min(done[0], total), total)

        on_progress(name, 0, total)
        if rule.method in ("identity", "custom_from_mask"):
            records = self._given(rule, chosen)
        else:
            check_amount(rule.amount or 0)
            scores = self._scores(rule, chosen, on_read)
            records = self._cut(rule, {weight.stored.name: weight for weight in chosen}, scores)
        method = rule.method or f"{rule.score_name}/{rule.granularity_name}"
        seconds = {"rank": time.perf_counter() - began}
        return RuleRecord(name, method, rule.amount, rule.scope, records, refused, seconds, 0)

    def _given(self, rule: Rule, chosen: Sequence[Weight]) -> tuple[ParamRecord, ...]:
        given = None if rule.mask is None else self.masks(open_checkpoint(Path(rule.mask)))
        found = {} if given is None else given.tensors
        for weight in chosen:
            name, shape = weight.stored.name, weight.stored.shape
            if given is None:
                weight.add(Ones(), weight.alive)
                continue
            if name not in found:
                raise PassError(
                    f"there is no mask for {name!r} in {rule.mask}; there are {quoted(found)}"
                )
            shard, stored = found[name]
            if stored.shape != shape:
                raise ShapeError(
                    f"the mask of {name!r} has shape {tuple(stored.shape)}, the tensor "
                    f"{tuple(shape)}"
                )
            weight.add(Given(shard, stored), None)
        return tuple(ParamRecord(weight.stored.name) for weight in chosen)

    def _scores(
        self, rule: Rule, chosen: Sequence[Weight], on_read: Callable[[int], None]
    ) -> Scores:
        dim = rule.dim if rule.granularity_name == "channel" else None
        if rule.score_name == "magnitude":
            sources = {w.stored.name: FileMagnitudes(w, self.workers, on_read) for w in chosen}
            return Scores(sources)
        if rule.score_name == "random":
            return _random(rule, chosen, dim)
        norms = {w.stored.name: norm_scores(w, rule.n, -1 if dim is None else dim) for w in chosen}
        return Scores(norms, dim=dim, keep_first=True)

    def _cut(
        self, rule: Rule, weights: Mapping[str, Weight], scores: Scores
    ) -> tuple[ParamRecord, ...]:
        ranking = _ranked(rule, scores)
        records: list[ParamRecord] = []
        for group in ranking.groups:
            plain = isinstance(scores.sources[group[0]], FileMagnitudes)
            replayed = ranking.is_replayed(group) and scores.dim is None
            if replayed:
                _check_replay([weights[name] for name in group])
            gone = {name: ranking.cuts[name].count for name in group}
            if plain and not replayed:
                for name in group:
                    _add_cut(weights[name], ranking.cuts[name])
            else:
                for name, pruned in pruned_of_group(scores, ranking, group):
                    gone[name] = self._add(weights[name], scores, pruned)
            records += (
                _record(name, scores.sources[name], ranking.cuts[name], gone[name])
                for name in group
            )
        return tuple(records)

    def _add(self, weight: Weight, scores: Scores, pruned: Pruned) -> int:
        """Add what was pruned to a mask: bits in a file, or the channels that are kept.

        Returns:
            How many units went, which torch's choice of ties decides, not the cut.
        """
        source, went = scores.sources[weight.stored.name], [0]

        def kept_units() -> Iterator[torch.Tensor]:
            for start, stop, gone in pruned:
                went[0] += int(gone.count_nonzero())
                yield _kept(source, start, stop, gone)

        kept = kept_units()
        if scores.dim is None:
            alive = weight.alive
            factor = self.spill.write(kept)
            weight.add(factor, alive - went[0])
            return went[0]
        inner = inner_of(weight, scores.dim)
        channels = torch.cat([torch.zeros(0, dtype=torch.bool), *kept])
        first = not weight.factors and len(channels) > 0
        share = weight.numel // max(len(channels), 1)
        weight.add(
            ByChannel(channels, inner), int(channels.count_nonzero()) * share if first else None
        )
        return went[0]


def _ranked(rule: Rule, scores: Scores) -> Ranking:
    what = "entries" if scores.dim is None else "channels"
    groups = [(name,) for name in scores.sources]
    if rule.scope == "global" and groups:
        groups = [tuple(scores.sources)]
    all_ties = scores.prune_all_ties and rule.ties == "torch"
    cuts: dict[str, Cut] = {}
    for group in groups:
        sources = {name: scores.sources[name] for name in group}
        alive = sum(source.alive for source in sources.values())
        with counting(group):
            k = count_of(rule.amount or 0, alive, what)
        cuts |= cut_group(sources, k, all_ties=all_ties)
    return Ranking(cuts, tuple(groups), rule.ties)


def _random(rule: Rule, chosen: Sequence[Weight], dim: int | None) -> Scores:
    generator = generator_of(_CPU, rule.seed)
    amount = rule.amount or 0

    def draw(alive: int, dtype: torch.dtype, what: str, *weights: Weight) -> Draw | None:
        with counting([weight.stored.name for weight in weights]):
            drawn = count_of(amount, alive, what) > 0
        return Draw(alive, dtype, generator) if drawn else None

    sources: dict[str, ScoreSource] = {}
    if dim is not None:
        for weight in chosen:
            kept, units = kept_channels(weight, dim), weight.stored.shape[dim]
            alive = units if kept is None else int(kept.sum())
            drawn = draw(alive, torch.float32, "channels", weight)
            sources[weight.stored.name] = RandomScores(units, kept, drawn, 0, largest=False)
        return Scores(sources, dim=dim, prune_all_ties=True)
    if rule.scope == "local":
        for weight in chosen:
            drawn = draw(weight.alive, weight.dtype, "entries", weight)
            sources[weight.stored.name] = FileRandom(weight, drawn, 0)
        return Scores(sources)
    if not chosen:
        return Scores(sources)
    dtype = reduce(torch.promote_types, (weight.dtype for weight in chosen))
    together, offset = draw(sum(w.alive for w in chosen), dtype, "entries", *chosen), 0
    for weight in chosen:
        sources[weight.stored.name] = FileRandom(weight, together, offset)
        offset += weight.alive
    return Scores(sources)


def _add_cut(weight: Weight, cut: Cut) -> None:
    if cut.threshold is None:
        weight.add(Ones(), weight.alive)
        return
    alive = weight.alive - cut.count
    weight.add(ByCut(cut.threshold, weight.dtype, _upto(weight, cut)), alive)


def _upto(weight: Weight, cut: Cut) -> int:
    """Return the flat index before which living entries at the threshold go."""
    if cut.quota in (0, cut.tied):
        return weight.numel if cut.quota else 0
    left = cut.quota
    under, upto = bounds_of(cut.threshold or 0.0, weight.dtype)
    for start, keys, living in weight.pieces(0, weight.numel):
        tied = (keys > under) & (keys <= upto)
        if living is not None:
            tied &= living
        there = int(np.count_nonzero(tied))
        if there >= left:
            return start + int(np.flatnonzero(tied)[left - 1]) + 1
        left -= there
    return weight.numel


def _kept(source: ScoreSource, start: int, stop: int, gone: torch.Tensor) -> torch.Tensor:
    living = source.living(start, stop)
    went = gone if living is None else torch.zeros_like(living).masked_scatter_(living, gone)
    return ~went


def _check_replay(weights: Sequence[Weight]) -> None:
    count = sum(weight.numel for weight in weights)
    if count > MOST_REPLAYED:
        raise PassError(
            f"ties = 'torch' takes {count:,} scores in memory at once, where more have the "
            f"threshold than may go, and a checkpoint's {MOST_REPLAYED:,}; say ties = 'index'"
        )


def _record(name: str, source: ScoreSource, cut: Cut, gone: int) -> ParamRecord:
    quota = cut.quota + gone - cut.count
    return ParamRecord(name, source.units, source.alive, gone, cut.threshold, cut.tied, quota)
