"""Checks new masks against the scores that ranked them, without ranking again.

A correct ranking means: no kept unit scores lower than a pruned one; the count matches; ties go to
the lower index. Masks of coupled channels also keep limits, and a unit goes whole or stays.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from fxprune.channels import CoupledLayer, CoupledScores, Coupling, UnitPlace
from fxprune.program import parameters
from fxprune.recipe import Rule
from fxprune.rewrite import Ranking, Scores
from fxprune.support import same_bits
from fxprune.verification.snapshot import Fault


@dataclass(frozen=True)
class Masked:
    """One parameter before and after a rule: what was scored, its masked value, its masks."""

    name: str
    tensor: torch.Tensor
    value: torch.Tensor
    old: torch.Tensor | None
    new: torch.Tensor

    @property
    def before(self) -> torch.Tensor:
        """The mask that was there, ones where there was none."""
        return torch.ones_like(self.new) if self.old is None else self.old


def recount(
    rule: Rule, names: Sequence[str], scores: Scores, ranking: Ranking, masked: Mapping[str, Masked]
) -> Iterator[Fault]:
    """Yield what is wrong with the masks of a rule that ranks entries or channels."""
    for group in [names] if rule.scope == "global" else [[name] for name in names]:
        yield from _RankedTogether(rule, scores, ranking, [masked[name] for name in group]).faults()


@dataclass(frozen=True)
class _PartUnits:
    """The living units of one parameter: their scores, and which of them went."""

    name: str
    scores: torch.Tensor
    gone: torch.Tensor


@dataclass(frozen=True)
class _RankedTogether:
    """Parameters that were ranked together."""

    rule: Rule
    scores: Scores
    ranking: Ranking
    parts: list[Masked]

    @property
    def is_replayed(self) -> bool:
        """Whether torch chose among ties: then a ranking has quotas by index, which do not hold."""
        names = tuple(part.name for part in self.parts)
        return self.ranking.is_replayed(names) and not self.scores.prune_all_ties

    def faults(self) -> Iterator[Fault]:
        units: list[_PartUnits] = []
        for part in self.parts:
            found = self._units(part)
            if isinstance(found, Fault):
                yield found
                return
            units.append(found)
            yield from self._score_faults(part, found)
        yield from self._count_faults(units)
        yield from self._order_faults(units)

    # Which units went

    def _units(self, part: Masked) -> _PartUnits | Fault:
        source = self.scores.sources[part.name]
        if self.rule.granularity_name == "channel":
            living = self._by_channel(part.before).sum(1) != 0
            gone = living & (self._by_channel(part.new) == 0).all(1)
            if not same_bits(part.before * self._spread(~gone, part.new), part.new):
                return Fault(f"the mask of {part.name!r} does not zero whole channels alone")
        else:
            living = part.before == 1
            gone = living & (part.new == 0)
            if not bool(((part.new == part.before) | gone).all()):
                return Fault(
                    f"the mask of {part.name!r} has other values than 0 and what was there"
                )
        kept = living.reshape(-1)
        found = source.chunk(0, source.units)
        if found.numel() != int(kept.sum()):
            alive = int(kept.sum())
            return Fault(f"{part.name!r} has {found.numel()} scores for {alive} living units")
        flat = gone.reshape(-1).to(found.device)
        return _PartUnits(
            part.name, found, flat if part.old is None else flat[kept.to(found.device)]
        )

    def _by_channel(self, tensor: torch.Tensor) -> torch.Tensor:
        dim = -1 if self.rule.dim is None else self.rule.dim
        return tensor.movedim(dim, 0).reshape(tensor.shape[dim], -1)

    def _spread(self, channels: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        dim = (-1 if self.rule.dim is None else self.rule.dim) % like.dim()
        return channels.to(like).reshape([-1 if d == dim else 1 for d in range(like.dim())])

    # Scores of torch's own methods

    def _score_faults(self, part: Masked, units: _PartUnits) -> Iterator[Fault]:
        if self.rule.score_name == "magnitude":
            flat = part.tensor.reshape(-1)
            wanted = flat if part.old is None else flat[(part.old == 1).reshape(-1).to(flat.device)]
            wanted = wanted.abs()
            if not same_bits(wanted, units.scores):
                yield Fault(f"the scores of {part.name!r} are not the magnitudes of its entries")
        if self.rule.score_name == "norm" and self.rule.n in (1, 2, math.inf):
            yield from self._norm_faults(part, units)

    def _norm_faults(self, part: Masked, units: _PartUnits) -> Iterator[Fault]:
        value = self._by_channel(part.value)
        kept = self._by_channel(part.before).sum(1) != 0
        rows = value[kept.to(value.device)]
        wide = rows.abs().to(torch.float64)
        n = self.rule.n
        wanted = wide.amax(1) if n == math.inf else (wide if n == 1 else wide**2).sum(1)
        wanted = wanted.sqrt() if n == 2 else wanted
        # Sums of one dtype and of float64 differ by rounding, more the shorter the dtype.
        loose = max(1e-4, 8 * torch.finfo(units.scores.dtype).eps)
        near = torch.isclose(units.scores.double(), wanted, rtol=loose, atol=1e-30, equal_nan=True)
        # What float64 holds may be infinite in the dtype of the scores.
        near |= units.scores.isinf() & (wanted > 1e4)
        if not bool(near.all()):
            yield Fault(f"the scores of {part.name!r} are not the norms of its channels")

    # How many, and which first

    def _count_faults(self, units: list[_PartUnits]) -> Iterator[Fault]:
        alive = sum(part.scores.numel() for part in units)
        gone = sum(int(part.gone.sum()) for part in units)
        wanted = count_of_amount(self.rule.amount, alive)
        # torch's random_structured takes every channel at the threshold.
        loose = self.scores.prune_all_ties and self.ranking.ties == "torch"
        if gone != wanted and not (loose and gone > wanted):
            names = parameters.quote([part.name for part in units])
            yield Fault(
                f"{gone} of the {alive} living units of {names} went, and "
                f"amount = {self.rule.amount} is {wanted}"
            )
        for part in () if self.is_replayed else units:
            count = self.ranking.cuts[part.name].count
            if int(part.gone.sum()) != count:
                yield Fault(f"{int(part.gone.sum())} units of {part.name!r} went, but {count} rank")

    def _order_faults(self, units: list[_PartUnits]) -> Iterator[Fault]:
        tops = [x for part in units if (x := _top(part)) is not None]
        lows = {part.name: x for part in units if (x := _low(part)) is not None}
        if not tops:
            return
        top = max(tops, key=_order)
        under = {name: low for name, low in lows.items() if _order(low) < _order(top)}
        for name, low in under.items():
            yield Fault(
                f"a unit of {name!r} stayed that scores {low:.9g}, though one that scores "
                f"{top:.9g} went"
            )
        if not under:
            yield from self._tie_faults(units, top)

    def _tie_faults(self, units: list[_PartUnits], top: float) -> Iterator[Fault]:
        stayed = False  # whether an equal score stayed further up
        for part in units:
            cut = self.ranking.cuts[part.name]
            tied = part.scores.isnan() if math.isnan(top) else part.scores == top
            went, left = tied & part.gone, tied & ~part.gone
            quota = int(went.sum()) if self.is_replayed else cut.quota
            if (cut.tied, quota) != (int(tied.sum()), int(went.sum())) or not (
                cut.threshold is not None and _order(cut.threshold) == _order(top)
            ):
                yield Fault(
                    f"{int(went.sum())} of {int(tied.sum())} units of {part.name!r} at {top:.9g} "
                    f"went, and its ranking says {cut.quota} of {cut.tied} at {cut.threshold}"
                )
            if self.ranking.ties != "index" or not bool(tied.any()):
                continue
            last = int(went.nonzero()[-1]) if bool(went.any()) else -1
            first = int(left.nonzero()[0]) if bool(left.any()) else tied.numel()
            if last > first or (stayed and last >= 0):
                yield Fault(f"among equal scores of {part.name!r} a later unit went first")
            stayed = stayed or bool(left.any())


def count_of_amount(amount: Any, alive: int) -> int:
    """Return the count that an amount means: a share to the nearest, halves to the even one."""
    if isinstance(amount, int):
        return amount
    product = float(amount) * alive
    whole = math.floor(product)
    part = product - whole
    return whole + (part > 0.5 or (part == 0.5 and whole % 2 == 1))


def _order(score: float) -> tuple[int, float]:
    """Return where a score stands in the order: NaN is the largest."""
    return (1, 0.0) if math.isnan(score) else (0, score)


def _top(part: _PartUnits) -> float | None:
    """Return the largest score that went, NaN where one did; None where none did."""
    if not bool(part.gone.any()):
        return None
    return part.scores.masked_fill(~part.gone, _range(part.scores.dtype)[0]).max().item()


def _low(part: _PartUnits) -> float | None:
    """Return the smallest score that stayed, NaN where all are NaN; None where none stayed."""
    if bool(part.gone.all()):
        return None
    most = _range(part.scores.dtype)[1]
    low = part.scores.masked_fill(part.gone, most).min().item()
    if not math.isnan(low):
        return low
    other = part.gone | part.scores.isnan()
    if bool(other.all()):
        return low
    return part.scores.masked_fill(other, most).min().item()


def _range(kind: torch.dtype) -> tuple[float, float]:
    """Return the least and the largest number of a dtype."""
    if kind.is_floating_point:
        return -math.inf, math.inf
    return torch.iinfo(kind).min, torch.iinfo(kind).max


def recount_units(
    rule: Rule,
    coupling: Coupling,
    scores: CoupledScores,
    ranking: Ranking,
    masked: Mapping[str, Masked],
    *,
    plain: bool,
) -> Iterator[Fault]:
    """Yield what is wrong with the masks of a rule over coupled channels.

    `masked` has all parameters in which units lie, by first name; `plain` is whether their own
    values were scored, and nothing in their place.
    """
    units = _CoupledUnits(rule, coupling, scores, ranking, masked)
    wrong = [*units.living_faults()] or [*units.count_faults()]
    yield from wrong
    if wrong:
        return
    if plain and rule.score_name == "norm" and rule.n in (1, 2, math.inf):
        yield from units.norm_faults()
    yield from units.mask_faults()


@dataclass(frozen=True)
class _CoupledUnits:
    """The units of one rule."""

    rule: Rule
    coupling: Coupling
    scores: CoupledScores
    ranking: Ranking
    masked: Mapping[str, Masked]

    def living(self) -> torch.Tensor:
        """Return which units a mask held anything of before the rule."""
        found = torch.zeros(self.coupling.units + 1, dtype=torch.bool)
        for place in self.coupling.places:
            alive = (_slices(self.masked[place.parameter].before, place) != 0).any(1).cpu()
            found[torch.from_numpy(place.units)[alive]] = True
        return found[:-1]

    def living_faults(self) -> Iterator[Fault]:
        living = self.living()
        for layer in self.coupling.layers:
            source, own = self.scores.sources[layer.name], living[layer.start : layer.stop]
            noted = source.living(0, layer.units)
            same = bool(own.all()) if noted is None else torch.equal(noted.cpu(), own)
            if not same or source.chunk(0, layer.units).numel() != int(own.sum()):
                yield Fault(f"the layer {layer.name!r} has other living channels than are scored")

    # How many

    def count_faults(self) -> Iterator[Fault]:
        layers = self.coupling.layers
        for layer, wanted in zip(layers, self._counts(layers), strict=True):
            step = math.lcm(
                *(self.rule.round_to // math.gcd(self.rule.round_to, w) for w in layer.widths)
            )
            alive = self.scores.sources[layer.name].alive
            while wanted > 0 and (alive - wanted) % step:
                wanted -= 1
            count = self.ranking.cuts[layer.name].count
            if count != wanted:
                yield Fault(
                    f"{count} of the {alive} living channels of {layer.name!r} rank, and amount = "
                    f"{self.rule.amount} with its limits is {wanted}"
                )

    def _most(self, layer: CoupledLayer) -> int:
        alive = self.scores.sources[layer.name].alive
        # A share of a third of 3 is 1, though the product is a little less.
        share = math.floor(self.rule.max_share * layer.units + 1e-9) - (layer.units - alive)
        return max(0, min(alive - self.rule.min_keep, share))

    def _counts(self, layers: Sequence[CoupledLayer]) -> list[int]:
        alive = [self.scores.sources[layer.name].alive for layer in layers]
        if self.rule.scope == "local":
            return [
                min(count_of_amount(self.rule.amount, n), self._most(layer))
                for layer, n in zip(layers, alive, strict=True)
            ]
        open_to: list[tuple[float, int]] = []
        for at, layer in enumerate(layers):
            scores = self._sorted_scores(layer)[0][: self._most(layer)]
            open_to += [(score, at) for score in scores.tolist()]
        open_to.sort(key=lambda pair: (math.isnan(pair[0]), pair[0], pair[1]))
        first = [at for _, at in open_to[: count_of_amount(self.rule.amount, sum(alive))]]
        return [first.count(at) for at in range(len(layers))]

    def _sorted_scores(self, layer: CoupledLayer) -> tuple[torch.Tensor, torch.Tensor]:
        """Return a layer's scores in order, and the places of these among its living units."""
        scores = self.scores.sources[layer.name].chunk(0, layer.units)
        ordered = torch.sort(scores, stable=True)
        return ordered.values, ordered.indices.cpu()

    # Which

    def _units_to_go(self) -> torch.Tensor:
        """Return which units are to go: those that score least, the first of equals."""
        living, gone = self.living(), torch.zeros(self.coupling.units, dtype=torch.bool)
        for layer in self.coupling.layers:
            order = self._sorted_scores(layer)[1][: self.ranking.cuts[layer.name].count]
            alive = living[layer.start : layer.stop].nonzero().flatten()
            gone[layer.start + alive[order]] = True
        return gone

    def mask_faults(self) -> Iterator[Fault]:
        gone = torch.cat([self._units_to_go(), torch.zeros(1, dtype=torch.bool)])
        for name, places in self.coupling.by_parameter.items():
            part = self.masked[name]
            wanted = part.before.detach().clone()
            for place in places:
                index = gone[torch.from_numpy(place.units)].nonzero().flatten()
                wanted.index_fill_(place.dim, index.to(wanted.device), 0)
            if not same_bits(part.new, wanted):
                yield Fault(f"the mask of {name!r} does not zero the slices of what goes alone")

    # Norms

    def norm_faults(self) -> Iterator[Fault]:
        if self.rule.normalize == "flops":
            return
        wanted, living = self._norms(), self.living()
        for layer in self.coupling.layers:
            own = wanted[layer.start : layer.stop][living[layer.start : layer.stop].numpy()]
            scores = self.scores.sources[layer.name].chunk(0, layer.units).double().cpu().numpy()
            # Sums of float64 in another order.
            if not np.allclose(scores, own, rtol=1e-9, atol=1e-30, equal_nan=True):
                yield Fault(f"the scores of {layer.name!r} are not the norms of its channels")

    def _norms(self) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
        n = self.rule.n
        total, entries = (np.zeros(self.coupling.units) for _ in range(2))
        for place in self.coupling.places:
            rows = _slices(self.masked[place.parameter].value, place).double().abs()
            there = place.units >= 0
            units, rows = place.units[there], rows[torch.from_numpy(there).to(rows.device)]
            each = (rows.amax(1) if n == math.inf else (rows**n).sum(1)).cpu().numpy()  # pyright: ignore
            (np.maximum if n == math.inf else np.add).at(total, units, each)
            np.add.at(entries, units, rows.shape[1])
        if n == math.inf:
            return total
        if self.rule.normalize == "size":
            total = total / np.maximum(entries, 1)
        return np.sqrt(total) if n == 2 else total


def _slices(tensor: torch.Tensor, place: UnitPlace) -> torch.Tensor:
    """Return what a tensor holds at each index of a place, a row an index."""
    return tensor.detach().movedim(place.dim, 0).reshape(len(place.units), -1)
