"""Score channels by their Ln norm (torch.nn.utils.prune.LnStructured)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch

from fxprune import tensors
from fxprune.facts import Importance, ParamSite, Scores, ScoreSource, Selection
from fxprune.peers import Peers
from fxprune.pipeline import Analysis, Facts
from fxprune.program import Program
from fxprune.sharded_masks import whole
from fxprune.units import channel_norms, check_channels, living_channels, masked_value

__all__ = ["NormScores", "ScoreNorm"]


class NormScores(ScoreSource):
    """||t||_n of each living channel, over all dimensions but one.

    Args:
        tensor: what is scored.
        mask: of its shape, or None where nothing is masked.
        n: order of the norm, as `p` of torch.norm.
        dim: the dimension of the channels.
    """

    def __init__(self, tensor: torch.Tensor, mask: torch.Tensor | None, n: Any, dim: int) -> None:
        self._tensor, self._n, self._dim = tensor, n, dim
        self._kept = None if mask is None else living_channels(mask, dim)
        self.units = tensor.shape[dim]
        self.alive = self.units if self._kept is None else int(self._kept.sum())

    @cached_property
    def _norms(self) -> torch.Tensor:
        # On the same slice as in torch: norms that are equal to the bit.
        tensor, rank = self._tensor, self._tensor.dim()
        self._tensor = tensor[:0]  # not needed again; it may have been gathered for this
        if self._kept is not None:
            index: list[Any] = [slice(None)] * rank
            index[self._dim] = self._kept
            tensor = tensor[tuple(index)]
        return channel_norms(tensor, self._n, self._dim)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the norms."""
        return self._norms.dtype

    def living(self, start: int, stop: int) -> torch.Tensor | None:
        """Return which channels are alive."""
        return None if self._kept is None else self._kept[start:stop]

    def chunk(self, start: int, stop: int) -> torch.Tensor:
        """Return the norms of the living channels among start..stop."""
        if self._kept is None:
            return self._norms[start:stop]
        first = int(self._kept[:start].sum())
        return self._norms[first : first + int(self._kept[start:stop].sum())]


@dataclass(frozen=True)
class ScoreNorm(Analysis):
    """Score each channel of the selected parameters by its norm.

    Args:
        n: order of the norm: a number, inf, -inf, "fro" or "nuc".
        dim: the dimension whose slices are the channels.
    """

    name: ClassVar[str] = "norm"
    needs: ClassVar = (Selection, Importance)
    gives: ClassVar = (Scores,)

    n: float | str = 2
    dim: int = -1

    def run(self, program: Program, facts: Facts) -> Scores:
        """Return a source for each parameter.

        Raises:
            PassError: a parameter has no channels.
            DimError: a parameter has no such dimension.
            ShapeError: importance scores do not fit.
        """
        importance, peers = facts[Importance], facts.get(Peers)

        def source(site: ParamSite) -> NormScores:
            check_channels(site, self.dim)
            tensor = masked_value(program, site, importance)
            mask = tensors.masks(program).get(site.name)
            if peers is None:
                return NormScores(tensor, mask, self.n, self.dim)
            # Norms of parts would round differently from those of the whole.
            mask = None if mask is None else whole(peers, mask, f"{site.name}_mask")
            scores = NormScores(whole(peers, tensor, site.name), mask, self.n, self.dim)
            scores.chunk(0, 0)  # takes the norms, and lets go of what was gathered
            return scores

        sources = {site.name: source(site) for site in facts[Selection].sites}
        return Scores(sources, dim=self.dim, keep_first=True)
