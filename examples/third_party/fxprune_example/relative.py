"""A score: magnitude in proportion to the rest of the parameter.

In a global ranking plain magnitudes empty the layers whose weights are small by their nature; in
proportion to their layer's mean magnitude, the weights of all layers compare.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from fxprune.rewrite import (
    Analysis,
    Entries,
    Facts,
    Importance,
    PassError,
    Program,
    Scores,
    ScoreSource,
    Selection,
    parameters_of,
    raw_value,
)


class RelativeScores(ScoreSource):
    """|t| of each living entry, over the mean or the maximum of all of them.

    Args:
        entries: the tensor and its mask.
        to: "mean" or "max".
    """

    def __init__(self, entries: Entries, to: str) -> None:
        self._entries = entries
        self.units, self.alive = entries.units, entries.alive
        sizes = entries.chunk(0, self.units).abs()
        whole = (sizes.max() if to == "max" else sizes.mean()) if sizes.numel() else 1
        self._whole = float(whole) or 1.0  # a tensor of zeros is all zeros in proportion too

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of |t|."""
        kind = self._entries.tensor.dtype
        return kind.to_real() if kind.is_complex else kind

    def living(self, start: int, stop: int) -> torch.Tensor | None:
        """Return which entries are alive."""
        return self._entries.living(start, stop)

    def chunk(self, start: int, stop: int) -> torch.Tensor:
        """Return the scores of the living entries among start..stop."""
        return self._entries.chunk(start, stop).abs() / self._whole


@dataclass(frozen=True)
class ScoreRelative(Analysis):
    """Score each entry by its magnitude in proportion to its parameter's.

    Args:
        to: what is 1: the "mean" of the parameter's magnitudes, or their "max".
    """

    name: ClassVar[str] = "relative"
    needs: ClassVar = (Selection, Importance)
    gives: ClassVar = (Scores,)

    to: str = "mean"

    def __post_init__(self) -> None:
        """Check the option, so that a recipe is refused when it is read.

        Raises:
            PassError: it is neither.
        """
        if self.to not in ("mean", "max"):
            raise PassError(f"relative: to = {self.to!r} is unknown; give 'mean' or 'max'")

    def run(self, program: Program, facts: Facts) -> Scores:
        """Return a source for each parameter."""
        importance, held = facts[Importance], parameters_of(program)
        sources: dict[str, ScoreSource] = {}
        for site in facts[Selection].sites:
            entries = Entries(raw_value(program, site, importance), held[site.name].mask)
            sources[site.name] = RelativeScores(entries, self.to)
        return Scores(sources)
