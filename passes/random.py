"""Score entries or channels at random (torch.nn.utils.prune.RandomUnstructured, RandomStructured).

The generator is called as torch calls it: once for each parameter's living entries, or once for
all of them when they are ranked together, and not at all when nothing is to be pruned.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch

from fxprune.errors import PassError
from fxprune.program import ParamSite, Program, parameters_of
from fxprune.ranking import Peers, generator_of, random_scores, whole, whole_ones
from fxprune.rewrite import (
    Analysis,
    Entries,
    Facts,
    Importance,
    Scores,
    Selection,
    check_channels,
    living_channels,
    raw_value,
)


def _mask_of(
    program: Program, site: ParamSite, peers: Peers | None, dim: int | None
) -> torch.Tensor | None:
    """Return a mask that shows the living units, whole on each process."""
    mask = parameters_of(program)[site.name].mask
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

    Units are entries, or channels along `dim`. In local scope each parameter draws, in global scope
    all draw at once, and nothing is drawn where `amount` prunes nothing. Without a seed torch's own
    generator is used.
    """

    name: ClassVar[str] = "random"
    needs: ClassVar = (Selection, Importance)
    gives: ClassVar = (Scores,)

    amount: float | int
    scope: str = "local"
    dim: int | None = None
    seed: int | None = None

    def run(self, program: Program, facts: Facts) -> Scores:
        """Return a source for each parameter."""
        sites, peers = facts[Selection].sites, facts.get(Peers)
        # Every process draws the numbers of all units, so it must know all masks.
        masks = {site.name: _mask_of(program, site, peers, self.dim) for site in sites}
        if self.dim is None:
            importance = facts[Importance]
            values = {site.name: raw_value(program, site, importance) for site in sites}
            _check_floats(values)
            parts = {name: Entries(value, masks[name]) for name, value in values.items()}
        else:
            parts = {site.name: _channels(site, masks[site.name], self.dim) for site in sites}

        def generator_on(device: torch.device) -> torch.Generator:
            """Return a generator; of several processes, all draw as the first would alone."""
            generator = generator_of(device, self.seed)
            if self.seed is not None or peers is None:
                return generator
            return peers.generator(generator, "sharing the state of a generator")

        return random_scores(parts, self.amount, self.scope, self.dim, generator_on)


def _channels(site: ParamSite, mask: torch.Tensor | None, dim: int) -> Entries:
    check_channels(site, dim)
    kept = None if mask is None else living_channels(mask, dim).cpu()
    return Entries(torch.empty(site.shape[dim]), kept)  # torch draws for channels on the CPU
