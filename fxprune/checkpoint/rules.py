"""The rules of a recipe on a checkpoint: each adds factors to the masks of the tensors it takes.

What a rule decides is what the passes of the same rule decide on a model in memory; a rule that
needs a graph is refused.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from fxprune.checkpoint.scores import FileMagnitudes, channels_of, inner_of, norm_scores
from fxprune.checkpoint.source import INDEX, SUFFIX, Checkpoint, Workers, open_checkpoint
from fxprune.checkpoint.weights import FLOATS, ByChannel, ByCut, GivenMask, Ones, Spill, Weight
from fxprune.errors import PassError, RecipeError, SelectError, ShapeError
from fxprune.program import ParamRecord, ParamSite, RuleRecord, quote
from fxprune.ranking import (
    PrunedChunks,
    Scratch,
    bounds_of,
    generator_of,
    pruned_of_group,
    random_scores,
    rank_scores,
)
from fxprune.recipe import Recipe, Rule, Select, hold_to, select_any, tell_nothing
from fxprune.rewrite import Cut, Ranking, Scores, ScoreSource, Selection
from fxprune.words import dtype_name, show

MOST_REPLAYED = 2**22  # entries among which torch's own choice of ties can be repeated


@dataclass(frozen=True)
class Rules:
    """What the rules of one recipe share."""

    sites: Sequence[ParamSite]  # all tensors, in order
    weights: Mapping[str, Weight]  # those that can be pruned, by name
    refused: Mapping[str, str]  # why the others cannot, by name
    workers: Workers
    spill: Spill
    files: ExitStack  # keeps files of masks open

    def run(
        self, rules: Sequence[Rule], name: str, on_progress: Callable[[str, int, int], None]
    ) -> RuleRecord:
        """Carry out one rule, or those of a group; `on_progress` gets the name and bytes read."""
        began, rule = time.perf_counter(), rules[0]
        selection = select_tensors(rules, self.sites, self.refused)
        chosen = {site.name: self.weights[site.name] for site in selection.sites}
        total, done = sum(weight.bytes for weight in chosen.values()), 0

        def on_read(count: int) -> None:
            nonlocal done
            done += count
            on_progress(name, min(done, total), total)

        on_progress(name, 0, total)
        if rule.method in ("identity", "custom_from_mask"):
            self._take_masks(rule, chosen)
            records = tuple(ParamRecord(name) for name in chosen)
        else:
            scores = self._scores(rule, chosen, on_read)
            ranking = rank_scores(scores, rule.amount or 0, rule.scope, rule.ties)
            records = tuple(self._cut(chosen, scores, ranking))
        method = rule.method or f"{rule.score_name}/{rule.granularity_name}"
        refused = tuple((name, refusal.reason) for name, refusal in selection.refused)
        seconds = {"rank": time.perf_counter() - began}
        return RuleRecord(name, method, rule.amount, rule.scope, records, refused, seconds, 0)

    def _take_masks(self, rule: Rule, chosen: Mapping[str, Weight]) -> None:
        if rule.mask is None:
            for weight in chosen.values():
                weight.add(Ones(), weight.alive)
            return
        found = self.files.enter_context(open_checkpoint(rule.mask)).tensors
        for name, weight in chosen.items():
            if name not in found:
                raise PassError(
                    f"there is no mask for {name!r} in {rule.mask}; there are {quote(found)}"
                )
            shard, stored = found[name]
            if stored.shape != weight.stored.shape:
                raise ShapeError(
                    f"the mask of {name!r} has shape {tuple(stored.shape)}, the tensor "
                    f"{tuple(weight.stored.shape)}"
                )
            weight.add(GivenMask(shard, stored), None)

    def _scores(
        self, rule: Rule, chosen: Mapping[str, Weight], on_read: Callable[[int], None]
    ) -> Scores:
        if rule.score_name == "magnitude":
            return Scores(
                {name: FileMagnitudes(w, self.workers, on_read) for name, w in chosen.items()}
            )
        dim = rule.dim if rule.granularity_name == "channel" else None
        if rule.score_name == "random":
            parts = chosen if dim is None else {n: channels_of(w, dim) for n, w in chosen.items()}
            generator_on = partial(generator_of, seed=rule.seed)
            return random_scores(parts, rule.amount or 0, rule.scope, dim, generator_on)
        dim = -1 if dim is None else dim
        norms = {name: norm_scores(weight, rule.n, dim) for name, weight in chosen.items()}
        return Scores(norms, dim=dim, keep_first=True)

    def _cut(
        self, chosen: Mapping[str, Weight], scores: Scores, ranking: Ranking
    ) -> Iterator[ParamRecord]:
        for group in ranking.groups:
            replayed = ranking.is_replayed(group) and scores.dim is None
            if replayed:
                _check_replay([chosen[name] for name in group])
            if replayed or not isinstance(scores.sources[group[0]], FileMagnitudes):
                for name, pruned in pruned_of_group(scores, ranking, group):
                    gone = self._add(chosen[name], scores, pruned)
                    yield _record(name, scores.sources[name], ranking.cuts[name], gone)
                continue
            for name in group:
                cut = ranking.cuts[name]
                _add_cut(chosen[name], cut)
                yield _record(name, scores.sources[name], cut, cut.count)

    def _add(self, weight: Weight, scores: Scores, pruned: PrunedChunks) -> int:
        """Add what was pruned to a mask, as bits or as channels; return how many units went."""
        source, went = scores.sources[weight.stored.name], 0

        def keep_units() -> Iterator[torch.Tensor]:
            nonlocal went
            for start, stop, gone in pruned:
                went += int(gone.count_nonzero())
                yield _kept(source, start, stop, gone)

        kept = keep_units()
        if scores.dim is None:
            factor = self.spill.write(kept)
            weight.add(factor, source.alive - went)
            return went
        inner = inner_of(weight, scores.dim)
        channels = torch.cat([torch.zeros(0, dtype=torch.bool), *kept])
        first = not weight.factors and len(channels) > 0
        share = weight.units // max(len(channels), 1)
        weight.add(
            ByChannel(channels, inner), int(channels.count_nonzero()) * share if first else None
        )
        return went


def _add_cut(weight: Weight, cut: Cut) -> None:
    if cut.threshold is None:
        weight.add(Ones(), weight.alive)
        return
    alive = weight.alive - cut.count
    weight.add(ByCut(cut.threshold, weight.dtype, _upto(weight, cut)), alive)


def _upto(weight: Weight, cut: Cut) -> int:
    """Return the flat index before which living entries at the threshold go."""
    if cut.quota in (0, cut.tied):
        return weight.units if cut.quota else 0
    left = cut.quota
    under, upto = bounds_of(cut.threshold or 0.0, weight.dtype)
    for start, keys, living in weight.pieces(0, weight.units):
        tied = (keys > under) & (keys <= upto)
        if living is not None:
            tied &= living
        there = int(np.count_nonzero(tied))
        if there >= left:
            return start + int(np.flatnonzero(tied)[left - 1]) + 1
        left -= there
    return weight.units


def _kept(source: ScoreSource, start: int, stop: int, gone: torch.Tensor) -> torch.Tensor:
    living = source.living(start, stop)
    went = gone if living is None else torch.zeros_like(living).masked_scatter_(living, gone)
    return ~went


def _check_replay(weights: Sequence[Weight]) -> None:
    count = sum(weight.units for weight in weights)
    if count > MOST_REPLAYED:
        raise PassError(
            f"ties = 'torch' takes {count:,} scores in memory at once, where more have the "
            f"threshold than may go, and a checkpoint's {MOST_REPLAYED:,}; say ties = 'index'"
        )


def _record(name: str, source: ScoreSource, cut: Cut, gone: int) -> ParamRecord:
    quota = cut.quota + gone - cut.count
    return ParamRecord(name, source.units, source.alive, gone, cut.threshold, cut.tied, quota)


_KEYS = ("op", "role", "module")
_INSTEAD = "select by path, regex, param, exclude, ndim, dtype or min_numel"


def check_recipe(recipe: Recipe) -> None:
    """Check that a recipe asks for nothing that a file of tensors does not have."""
    for rule in recipe.rules:
        _check_rule(rule)
    for key in ("passes", "shrink"):
        if getattr(recipe, key, None):
            word = "pass" if key == "passes" else key
            raise RecipeError(
                f"[{word}] edits a graph, and a checkpoint has none; leave it out, or compile the "
                "model"
            )


def weights_of(checkpoint: Checkpoint, room: Scratch) -> tuple[dict[str, Weight], dict[str, str]]:
    """Return the tensors that can be pruned, by name, and why the others cannot."""
    weights: dict[str, Weight] = {}
    refused: dict[str, str] = {}
    known = ", ".join(dtype_name(dtype) for dtype in FLOATS)
    for name, (shard, stored) in checkpoint.tensors.items():
        if stored.dtype in FLOATS:
            weights[name] = Weight(shard, stored, stored.dtype, room)
        else:
            kind = stored.kind if stored.dtype is None else dtype_name(stored.dtype)
            refused[name] = f"its dtype is {kind}; of a checkpoint {known} are pruned"
    return weights, refused


def select_tensors(
    rules: Sequence[Rule], sites: Sequence[ParamSite], refused: Mapping[str, str]
) -> Selection:
    """Select the tensors that any of some rules takes; an error where a rule must take some."""
    selects = [rule.select or Select() for rule in rules]
    found = [hold_to(select, sites, refused) for select in selects]
    selection = select_any(found)
    if selection.sites or all(rule.optional for rule in rules):
        return selection
    there = {
        "path": {site.name for site in sites},
        "param": {site.name.rpartition(".")[2] for site in sites},
    }
    every = [verdict for verdicts in found for verdict in verdicts]
    name = "+".join(str(rule.name) for rule in rules)
    raise SelectError(
        tell_nothing(name, selects, every, there, "checkpoint", lambda v: str(v.refusal))
    )


def _check_rule(rule: Rule) -> None:
    where = f"rule {rule.name!r}"
    select: Any = rule.select
    asked = [key for key in ("match", "prune") if getattr(rule, key, None)]
    asked += [f"select.{key}" for key in _KEYS if getattr(select, key, None)]
    if asked or select is None:
        need = "need" if len(asked) > 1 else "needs"
        raise RecipeError(
            f"{where}: {' and '.join(asked) or 'match'} {need} the model's graph, and a checkpoint "
            f"has none; {_INSTEAD}"
        )
    if rule.coupled:
        raise RecipeError(
            f"{where}: coupled needs the model's graph, which tells what channels go together, and "
            "a checkpoint has none; leave it out, or compile the model"
        )
    if rule.imported or rule.score_name not in (None, "magnitude", "norm", "random"):
        raise RecipeError(
            f"{where}: {rule.method or rule.score_name} gets whole tensors and masks, which a "
            "checkpoint is pruned without; take a method of torch.nn.utils.prune, or prune the "
            "model in memory"
        )
    if rule.method == "custom_from_mask" and rule.mask is None:
        raise RecipeError(f"{where}: mask is missing; give the path of a .safetensors file")
    if rule.mask is not None and not rule.mask.endswith((SUFFIX, INDEX)):
        raise RecipeError(
            f"{where}: mask = {show(rule.mask)} is not read for a checkpoint; give masks by tensor "
            f"name in a {SUFFIX} file, as fxprune.masks writes them"
        )
