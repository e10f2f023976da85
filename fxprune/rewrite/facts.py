"""Facts: what analyses find out about a Program. Frozen, and never as large as its parameters."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from fxprune.program import ParamSite
from fxprune.rewrite.pattern import Refusal

_RUN = 64  # neighbouring scores that are sampled together: each run costs one call


@dataclass(frozen=True)
class Selection:
    """The parameters that a rule prunes, in parameter order.

    Args:
        sites: the parameters.
        refused: what was looked at and left, with the first condition that failed.
    """

    sites: tuple[ParamSite, ...]
    refused: tuple[tuple[str, Refusal], ...] = ()


class ScoreSource(ABC):
    """The scores of one parameter's units, entries or channels, made when they are asked for.

    The units with the smallest scores are pruned first. Only units that are alive have a score.

    Args:
        units: how many units the parameter has.
        alive: how many of them are alive.
        part: whether these are the units of this process's part of a parameter that is spread
            over processes.
    """

    units: int
    alive: int
    part: bool = False

    @property
    @abstractmethod
    def dtype(self) -> torch.dtype:
        """The dtype of the scores."""

    @abstractmethod
    def living(self, start: int, stop: int) -> torch.Tensor | None:
        """Return which of the units start..stop are alive, shape (stop - start,); None: all."""

    @abstractmethod
    def chunk(self, start: int, stop: int) -> torch.Tensor:
        """Return the scores of the living units among start..stop, a vector."""

    def sample(self, step: int) -> torch.Tensor:
        """Return about one living score in `step`, in short runs that are spread evenly."""
        starts = starts_of(self.units, step * _RUN).tolist()
        runs = [self.chunk(start, min(start + _RUN, self.units)) for start in starts]
        return torch.cat([self.chunk(0, 0), *runs])

    def scan(
        self, low: float | None, high: float | None, dtype: torch.dtype, most: int
    ) -> tuple[int, torch.Tensor | None] | None:
        """Count and collect as `ranking.digits.scan`, in a way of its own; None if it has none."""
        return None


@dataclass(frozen=True)
class Scores:
    """A score source for each selected parameter.

    Args:
        sources: by first name, in parameter order.
        dim: the dimension along which units are channels; None where units are entries.
        keep_first: whether the k pruned are what the n - k largest leave, as
            torch.nn.utils.prune.LnStructured does; matters only for `ties="torch"`.
        prune_all_ties: whether `ties="torch"` prunes every unit at the threshold, as
            torch.nn.utils.prune.RandomStructured does.
    """

    sources: Mapping[str, ScoreSource]
    dim: int | None = None
    keep_first: bool = False
    prune_all_ties: bool = False

    @property
    def units(self) -> str:
        """What is ranked, for messages."""
        return "entries" if self.dim is None else "channels"


@dataclass(frozen=True)
class Cut:
    """Which units of one parameter go: those under the threshold, and some of those at it.

    Args:
        threshold: the largest score that is pruned, an int of whole numbers; None where nothing is.
        count: how many units go.
        tied: how many units of this parameter are at the threshold.
        quota: how many of these go.
        here: how many of the quota are in this process's part of a parameter; None where the
            parameter is whole.
    """

    threshold: float | None
    count: int
    tied: int = 0
    quota: int = 0
    here: int | None = None

    @property
    def is_ambiguous(self) -> bool:
        """Whether a rule for ties decides which units go."""
        return 0 < self.quota < self.tied


@dataclass(frozen=True)
class Ranking:
    """A cut for each parameter.

    Args:
        cuts: by first name, in parameter order.
        groups: the names that were ranked together.
        ties: "index": lower (parameter order, flat index) goes first; "torch": what torch.topk
            takes.
        sizes: (units, living units) of the parameters over all processes, where there are several.
    """

    cuts: Mapping[str, Cut]
    groups: tuple[tuple[str, ...], ...]
    ties: str
    sizes: Mapping[str, tuple[int, int]] = field(default_factory=dict[str, tuple[int, int]])

    def is_replayed(self, group: tuple[str, ...]) -> bool:
        """Whether torch's own choice among ties has to be repeated for this group."""
        at = [self.cuts[name] for name in group if self.cuts[name].tied]
        tied, quota = sum(cut.tied for cut in at), sum(cut.quota for cut in at)
        return self.ties == "torch" and 0 < quota < tied


@dataclass(frozen=True)
class NewMasks:
    """The masks to insert, made one parameter at a time.

    Args:
        names: the parameters' first names.
        make: yields (name, mask); masks have the parameter's shape and hold what earlier masks
            held.
    """

    names: tuple[str, ...]
    make: Callable[[], Iterator[tuple[str, torch.Tensor]]]


@dataclass(frozen=True)
class Importance:
    """Tensors to score in the place of the parameters' values.

    Args:
        tensors: by any name of the parameter; of its shape.
    """

    tensors: Mapping[str, torch.Tensor] = field(default_factory=dict[str, torch.Tensor])


@dataclass(frozen=True)
class GivenMasks:
    """Masks that the caller made.

    Args:
        tensors: by any name of the parameter; of its shape.
    """

    tensors: Mapping[str, torch.Tensor] = field(default_factory=dict[str, torch.Tensor])


@dataclass(frozen=True)
class Methods:
    """Instances of users' subclasses of torch.nn.utils.prune.BasePruningMethod.

    Args:
        by_rule: by rule name.
    """

    by_rule: Mapping[str, Any] = field(default_factory=dict[str, Any])


_GOLDEN = (5**0.5 - 1) / 2  # its multiples, modulo 1, fill the interval evenly (Weyl, 1916)
_CACHE_RUN = 16  # neighbours that share a cache line are read for the price of one


def starts_of(units: int, stride: int) -> torch.Tensor:
    """Return one place in each stride, int64, no two an even distance apart, as rows are."""
    at = torch.arange(0, units, stride)
    within = (stride * (at.double() * _GOLDEN % 1)).long()
    return (at + within).clamp_(max=units - 1)


def indices_of(units: int, step: int) -> torch.Tensor:
    """Return about one unit in `step`, int64, in runs of neighbours; some may be there twice."""
    run = min(_CACHE_RUN, units)
    starts = starts_of(units, step * _CACHE_RUN).clamp_(max=units - run)
    return (starts[:, None] + torch.arange(run)).view(-1)
