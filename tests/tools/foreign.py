"""Scores and passes as another distribution would bring them, good ones and bad ones."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest
import torch
from torch.fx.node import Node

from fxprune.errors import PassError
from fxprune.passes.table import PASSES
from fxprune.program import parameters
from fxprune.program.program import Program
from fxprune.rewrite import registry
from fxprune.rewrite.facts import Scores, ScoreSource, Selection
from fxprune.rewrite.passes import Analysis, Facts, Rewrite
from fxprune.rewrite.pattern import Refusal
from fxprune.rewrite.rewriter import Rewriter, rule
from fxprune.rewrite.units import living_channels

TABLE = {
    "peak": "tests.tools.foreign:ScorePeak",
    "constant": "tests.tools.foreign:ScoreConstant",
    "drop-dropout": "tests.tools.foreign:DropDropout",
    "halve": "tests.tools.foreign:Halve",
    "look": "tests.tools.foreign:Look",
    "use": "tests.tools.foreign:Use",
    "unmade": "tests.tools.foreign:Unmade",
    "break": "tests.tools.foreign:Break",
    "gone": "tests.tools.foreign:Gone",
    "breaks": "tests.tools.breaking:Breaks",
    "close": "tests.tools.breaking:Close",
}


class Entry:
    """An entry point of a distribution that need not be installed."""

    def __init__(self, name: str, table: dict[str, str]) -> None:
        self.name, self.table, self.value = name, table, f"{name}:TABLE"

    def load(self) -> dict[str, str]:
        return self.table


@contextmanager
def installed(monkeypatch: pytest.MonkeyPatch) -> Generator[None]:
    """Install the table beside fxprune's own."""
    entries = (Entry("fxprune", PASSES), Entry("foreign", TABLE))
    monkeypatch.setattr(registry, "entry_points", lambda group: entries)
    registry._installed.cache_clear()
    yield
    registry._installed.cache_clear()


class Given(ScoreSource):
    """Scores that are there."""

    def __init__(self, values: torch.Tensor, kept: torch.Tensor | None = None) -> None:
        self._values, self._kept = values, kept
        self.units = len(values)
        self.alive = self.units if kept is None else int(kept.sum())

    @property
    def dtype(self) -> torch.dtype:
        return self._values.dtype

    def living(self, start: int, stop: int) -> torch.Tensor | None:
        return None if self._kept is None else self._kept[start:stop]

    def chunk(self, start: int, stop: int) -> torch.Tensor:
        living, values = self.living(start, stop), self._values[start:stop]
        return values if living is None else values[living]


@dataclass(frozen=True)
class ScorePeak(Analysis):
    """Score channels by their largest magnitude, to a power."""

    name: ClassVar[str] = "peak"
    needs: ClassVar = (Selection,)
    gives: ClassVar = (Scores,)

    dim: int
    power: float = 1.0

    def run(self, program: Program, facts: Facts) -> Scores:
        sources: dict[str, ScoreSource] = {}
        for site in facts[Selection].sites:
            size = parameters.value(program, site.name).abs() ** self.power
            others = [d for d in range(size.dim()) if d != self.dim % size.dim()]
            mask = parameters.masks(program).get(site.name)
            kept = None if mask is None else living_channels(mask, self.dim)
            sources[site.name] = Given(size.amax(dim=others), kept)
        return Scores(sources, dim=self.dim)


FAULTY: dict[str, Callable[[dict[str, ScoreSource]], Scores]] = {
    "names": lambda sources: Scores(dict(list(sources.items())[1:])),
    "units": lambda sources: Scores({name: Given(torch.ones(3)) for name in sources}),
    "dim": lambda sources: Scores(sources, dim=0),
    "complex": lambda sources: Scores(
        {name: Given(torch.ones(s.units, dtype=torch.complex64)) for name, s in sources.items()}
    ),
    "fine": Scores,
}


@dataclass(frozen=True)
class ScoreConstant(Analysis):
    """Score all entries alike, or wrongly."""

    name: ClassVar[str] = "constant"
    needs: ClassVar = (Selection,)
    gives: ClassVar = (Scores,)

    fault: str = "fine"
    seen: list[Any] = field(default_factory=list[Any])

    def run(self, program: Program, facts: Facts) -> Scores:
        sites = facts[Selection].sites
        return FAULTY[self.fault]({s.name: Given(torch.zeros(s.numel)) for s in sites})


@rule("dropout(x, p)", name="drop-dropout")
def drop_dropout(rw: Rewriter, node: Node, x: Any, p: float) -> Node | Refusal:
    rw.replace_uses(node, x)
    rw.erase(node)
    return x


@dataclass(frozen=True)
class DropDropout(Rewrite):
    """Remove every dropout, which is the same in eval mode only."""

    name: ClassVar[str] = "drop-dropout"
    promise: ClassVar[str] = "same"

    def run(self, rewriter: Rewriter, facts: Facts) -> None:
        rewriter.apply([drop_dropout])


@rule("relu(x)", name="halve")
def halve(rw: Rewriter, node: Node, x: Any) -> Node:
    half = rw.call(torch.ops.aten.mul.Tensor, (x, 0.5), before=node)
    rw.set_argument(node, 0, half)
    return node


@dataclass(frozen=True)
class Halve(Rewrite):
    """Halve what goes into each relu, and promise nothing."""

    name: ClassVar[str] = "halve"

    def run(self, rewriter: Rewriter, facts: Facts) -> None:
        rewriter.apply([halve])


@dataclass(frozen=True)
class Seen:
    """How many parameters there are."""

    parameters: int


@dataclass(frozen=True)
class Look(Analysis):
    """Count the parameters."""

    name: ClassVar[str] = "look"
    gives: ClassVar = (Seen,)

    def run(self, program: Program, facts: Facts) -> Seen:
        return Seen(len(parameters.aliases(program)))


@dataclass(frozen=True)
class Use(Rewrite):
    """Need the count."""

    name: ClassVar[str] = "use"
    needs: ClassVar = (Seen,)
    promise: ClassVar[str] = "same"

    def run(self, rewriter: Rewriter, facts: Facts) -> None:
        if facts[Seen].parameters != len(parameters.aliases(rewriter.program)):
            raise PassError("the count is another")


@dataclass(frozen=True)
class Unmade(Rewrite):
    """Be made of even numbers only."""

    name: ClassVar[str] = "unmade"

    number: int = 0

    def __post_init__(self) -> None:
        if self.number % 2:
            raise ValueError("number is odd")

    def run(self, rewriter: Rewriter, facts: Facts) -> None:
        """Edit nothing."""


@dataclass(frozen=True)
class Break(Rewrite):
    """Leave a mask that no graph reads."""

    name: ClassVar[str] = "break"

    def run(self, rewriter: Rewriter, facts: Facts) -> None:
        name = next(n for n in parameters.aliases(rewriter.program) if n.endswith("bias"))
        rewriter.add_mask(name, torch.ones_like(parameters.parameter(rewriter.program, name)))
