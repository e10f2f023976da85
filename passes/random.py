"""Score entries or channels at random (torch.nn.utils.prune.RandomUnstructured, RandomStructured).

The generator is called as torch calls it: once for each parameter's living entries, or once for
all of them when they are ranked together, and not at all when nothing is to be pruned.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import ClassVar

import torch

from fxprune import tensors
from fxprune.draws import Draw, RandomScores, generator_of
from fxprune.errors import PassError
from fxprune.facts import Importance, ParamSite, Scores, Selection
from fxprune.peers import Peers
from fxprune.pipeline import Analysis, Facts
from fxprune.program import Program
from fxprune.ranking import count_of, counting
from fxprune.sharded_masks import whole, whole_ones
from fxprune.units import Entries, check_channels, living_channels, raw_value

__all__ = ["ScoreRandom"]


def _generator(device: torch.device, seed: int | None, peers: Peers | None) -> torch.Generator:
    """Return a generator; of several processes, all draw as the first of them would alone."""
    if seed is not None or peers is None:
        return generator_of(device, seed)
    return peers.generator(generator_of(device, None), "sharing the state of a generator")


def _mask_of(
    program: Program, site: ParamSite, peers: Peers | None, dim: int | None
) -> torch.Tensor | None:
    """Return a mask by which the living units can be told, whole on each process."""
    mask = tensors.masks(program).get(site.name)
    if mask is None or peers is None:
        return mask
    if dim is None:
        return whole_ones(peers, mask, site.name)
    return whole(peers, mask, f"{site.name}_mask")


def _check_floats(values: Mapping[str, torch.Tensor]) -> None:
    for name, value in values.items():
        if not value.is_floating_point():
            raise PassError(
                f"what is drawn for {name!r} has its dtype or that of its importance scores, "
                f"{value.dtype}, and only floats can be drawn; give others or leave it out"
            )


@dataclass(frozen=True)
class ScoreRandom(Analysis):
    """Score the units of the selected parameters at random.

    Args:
        amount: what will be pruned: nothing is drawn where that is no unit.
        scope: "local" draws for each parameter, "global" once for all.
        dim: the dimension of the channels; None to score entries.
        seed: seed of a private generator; torch's own one when None.
    """

    name: ClassVar[str] = "random"
    needs: ClassVar = (Selection, Importance)
    gives: ClassVar = (Scores,)

    amount: float | int
    scope: str = "local"
    dim: int | None = None
    seed: int | None = None

    def run(self, program: Program, facts: Facts) -> Scores:
        """Return a source for each parameter.

        Raises:
            AmountError: the amount is more than is alive.
            PassError, DimError: a parameter has no such channels.
        """
        sites, peers = facts[Selection].sites, facts.get(Peers)
        # Every process draws the numbers of all units, so it must know all masks.
        masks = {site.name: _mask_of(program, site, peers, self.dim) for site in sites}
        if self.dim is not None:
            generator = _generator(torch.device("cpu"), self.seed, peers)
            channels = {
                site.name: self._channels(site, masks[site.name], generator) for site in sites
            }
            return Scores(channels, dim=self.dim, prune_all_ties=True)
        importance = facts[Importance]
        values = {site.name: raw_value(program, site, importance) for site in sites}
        _check_floats(values)
        entries = {name: Entries(value, masks[name]) for name, value in values.items()}
        if self.scope == "global":
            return Scores(self._together(entries, peers))
        return Scores(self._each(entries, peers))

    def _channels(
        self, site: ParamSite, mask: torch.Tensor | None, generator: torch.Generator
    ) -> RandomScores:
        dim = -1 if self.dim is None else self.dim
        check_channels(site, dim)
        kept = None if mask is None else living_channels(mask, dim).cpu()
        alive = site.shape[dim] if kept is None else int(kept.sum())
        draw = self._draw(alive, torch.float32, generator, "channels", [site.name])
        return RandomScores(site.shape[dim], kept, draw, 0, largest=False)

    def _each(self, entries: Mapping[str, Entries], peers: Peers | None) -> dict[str, RandomScores]:
        devices = dict.fromkeys(part.tensor.device for part in entries.values())
        generators = {device: _generator(device, self.seed, peers) for device in devices}
        sources: dict[str, RandomScores] = {}
        for name, part in entries.items():
            generator = generators[part.tensor.device]
            draw = self._draw(part.alive, part.tensor.dtype, generator, "entries", [name])
            living = part.living(0, part.units)
            sources[name] = RandomScores(part.units, living, draw, 0, largest=True)
        return sources

    def _together(
        self, entries: Mapping[str, Entries], peers: Peers | None
    ) -> dict[str, RandomScores]:
        if not entries:
            return {}
        values = [part.tensor for part in entries.values()]
        dtype = reduce(torch.promote_types, (value.dtype for value in values))
        alive = sum(part.alive for part in entries.values())
        generator = _generator(values[0].device, self.seed, peers)
        draw = self._draw(alive, dtype, generator, "entries", list(entries))
        offset, sources = 0, dict[str, RandomScores]()
        for name, part in entries.items():
            living = part.living(0, part.units)
            sources[name] = RandomScores(part.units, living, draw, offset, largest=True)
            offset += part.alive
        return sources

    def _draw(
        self,
        alive: int,
        dtype: torch.dtype,
        generator: torch.Generator,
        what: str,
        names: Sequence[str],
    ) -> Draw | None:
        with counting(names):
            count = count_of(self.amount, alive, what)
        if count == 0:
            return None
        return Draw(alive, dtype, generator)
