"""Score channels by their Ln norm (torch.nn.utils.prune.LnStructured)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch

from fxprune import tensors
from fxprune.errors import NormError
from fxprune.facts import Importance, ParamSite, Scores, ScoreSource, Selection
from fxprune.pipeline import Analysis, Facts
from fxprune.program import Program
from fxprune.units import check_channels, living_channels, masked_value

__all__ = ["NormScores", "ScoreNorm"]

_TORCH = tuple(map(int, torch.__version__.split(".")[:2]))


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
        # The very expression of torch, on the same slice: norms that are equal to the bit.
        tensor, rank = self._tensor, self._tensor.dim()
        others = [d for d in range(rank) if d != self._dim % rank]
        if self._kept is not None:
            index: list[Any] = [slice(None)] * rank
            index[self._dim] = self._kept
            tensor = tensor[tuple(index)]
        # torch 2.14 takes "fro" over other than two dimensions for the 2-norm; torch.norm refuses.
        flat = self._n == "fro" and len(others) != 2 and _TORCH >= (2, 14)
        try:
            return torch.norm(tensor, p=2 if flat else self._n, dim=others)
        except RuntimeError as error:
            raise NormError(
                f"n={self._n!r} cannot be taken over dimensions {others} of a tensor of shape "
                f"{tuple(tensor.shape)}: {error}; take a number for n"
            ) from error

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
        importance = facts[Importance]

        def source(site: ParamSite) -> NormScores:
            check_channels(site, self.dim)
            tensor = masked_value(program, site, importance)
            return NormScores(tensor, tensors.masks(program).get(site.name), self.n, self.dim)

        sources = {site.name: source(site) for site in facts[Selection].sites}
        return Scores(sources, dim=self.dim, keep_first=True)
