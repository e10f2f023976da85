"""Check that the scores of another distribution are what ranking relies on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from fxprune.errors import PassError
from fxprune.program import ParamSite, Program
from fxprune.rewrite import Analysis, Facts, Scores, Selection, check_channels

_LOOKED_AT = 4096  # units of each parameter, so that no score is made twice for a large one


@dataclass(frozen=True)
class CheckScores(Analysis):
    """Check that scores fit the selection, and pass them on.

    `score` is the score's name, for messages, and `dim` that of the channels, None for entries.
    """

    name: ClassVar[str] = "check"
    needs: ClassVar = (Selection, Scores)
    gives: ClassVar = (Scores,)

    score: str
    dim: int | None = None

    def run(self, program: Program, facts: Facts) -> Scores:
        """Return the scores that are there; raise PassError or DimError where they do not fit."""
        scores, sites = facts[Scores], facts[Selection].sites
        names = [site.name for site in sites]
        if list(scores.sources) != names:
            raise self._fault(f"scores {list(scores.sources)}, but the rule selects {names}")
        if scores.dim != self.dim:
            raise self._fault(f"says Scores.dim is {scores.dim}, but the rule asks for {self.dim}")
        for site in sites:
            self._check(site, scores.sources[site.name])
        return scores

    def _check(self, site: ParamSite, source: Any) -> None:
        if self.dim is not None:
            check_channels(site, self.dim)
        units = site.numel if self.dim is None else site.shape[self.dim]
        what = "entries" if self.dim is None else "channels"
        if source.units != units:
            raise self._fault(f"counts {source.units} of {units} {what} in {site.name!r}")
        stop = min(units, _LOOKED_AT)
        living, found = source.living(0, stop), source.chunk(0, stop)
        alive = stop if living is None else int(living.sum())
        if not isinstance(found, torch.Tensor) or tuple(found.shape) != (alive,):
            shape = tuple(found.shape) if isinstance(found, torch.Tensor) else type(found).__name__
            raise self._fault(f"gives {shape} for {alive} living {what} of {site.name!r}")
        if found.is_complex() or found.dtype != source.dtype:
            raise self._fault(
                f"gives {found.dtype} for {site.name!r} and says {source.dtype}; scores are real "
                "numbers of one dtype"
            )

    def _fault(self, what: str) -> PassError:
        return PassError(f"the score {self.score!r} {what}")
