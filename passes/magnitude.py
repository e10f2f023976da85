"""Score entries by magnitude (torch.nn.utils.prune.L1Unstructured)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from fxprune.program import Program
from fxprune.ranking import can_scan, scan_magnitudes
from fxprune.rewrite import (
    Analysis,
    Entries,
    Facts,
    Importance,
    Scores,
    ScoreSource,
    Selection,
    entries_of,
    indices_of,
    take_flat,
)


class MagnitudeScores(ScoreSource):
    """|t| of each living entry of a tensor."""

    def __init__(self, entries: Entries) -> None:
        self.entries = entries
        self.units = entries.units
        self.alive = entries.alive
        self.part = entries.part

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of |t|."""
        kind = self.entries.tensor.dtype
        return kind.to_real() if kind.is_complex else kind

    def living(self, start: int, stop: int) -> torch.Tensor | None:
        """Return which entries are alive."""
        return self.entries.living(start, stop)

    def chunk(self, start: int, stop: int) -> torch.Tensor:
        """Return |t| of the living entries among start..stop."""
        return self.entries.chunk(start, stop).abs()

    def sample(self, step: int) -> torch.Tensor:
        """Return about one living score in `step`, in short runs that are spread evenly."""
        tensor, mask = self.entries.tensor, self.entries.mask
        chosen = indices_of(self.units, step).to(tensor.device)
        values = take_flat(tensor, chosen)
        return (values if mask is None else values[take_flat(mask, chosen) == 1]).abs()

    def scan(
        self, low: float | None, high: float | None, dtype: torch.dtype, most: int
    ) -> tuple[int, torch.Tensor | None] | None:
        """Count and collect on the bits, where these can be read."""
        tensor = self.entries.tensor
        if not can_scan(tensor):
            return None
        under, inside = scan_magnitudes(tensor, self.living, low, high, most)
        return under, None if inside is None else inside.to(dtype)


@dataclass(frozen=True)
class ScoreMagnitude(Analysis):
    """Score each entry of the selected parameters by its magnitude."""

    name: ClassVar[str] = "magnitude"
    needs: ClassVar = (Selection, Importance)
    gives: ClassVar = (Scores,)

    def run(self, program: Program, facts: Facts) -> Scores:
        """Return a source for each parameter."""
        importance = facts[Importance]
        return Scores(
            {
                site.name: MagnitudeScores(entries_of(program, site, importance))
                for site in facts[Selection].sites
            }
        )
