"""Small Programs, captured once, and the facts, texts and snapshots that many tests need."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fxprune.compiler.pipeline import Pipeline, Trace
from fxprune.program.program import Program
from fxprune.program.uses import sites_of
from fxprune.rewrite.facts import (
    Cut,
    GivenMasks,
    Importance,
    Methods,
    NewMasks,
    Ranking,
    Scores,
    ScoreSource,
    Selection,
)
from fxprune.rewrite.passes import Facts, Pass
from tests.models import store


class Twice(nn.Module):
    """One layer called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.relu(self.fc(x)))


class Tied(nn.Module):
    """An embedding whose weight is the output layer's too."""

    def __init__(self) -> None:
        super().__init__()
        self.emb = nn.Embedding(4, 3)
        self.out = nn.Linear(3, 4, bias=False)
        self.out.weight = self.emb.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.emb(x))


class Modes(nn.Module):
    """A head that runs in train mode only: two graphs."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(3, 4)
        self.head = nn.Linear(4, 2)
        self.aux = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Any:
        x = F.relu(self.body(x))
        return (self.head(x), self.aux(x)) if self.training else self.head(x)


def conv() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)
    )


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "linear": (lambda: nn.Linear(3, 2), lambda: torch.randn(4, 3)),
    "mlp": (
        lambda: nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)),
        lambda: torch.randn(4, 3),
    ),
    "conv": (conv, lambda: torch.randn(4, 2, 4, 4)),
    "twice": (Twice, lambda: torch.randn(4, 3)),
    "tied": (Tied, lambda: torch.tensor([[0, 3, 1], [2, 1, 0]])),
    "modes": (Modes, lambda: torch.randn(4, 3)),
}


def numbered(model: nn.Module) -> nn.Module:
    """Give every parameter multiples of 1/8 of mixed order and sign, the same everywhere."""
    with torch.no_grad():
        for parameter in model.parameters():
            n = parameter.numel()
            order = torch.arange(n) * 7 % n + 1 if n % 7 else torch.arange(1, n + 1)
            signs = 1 - 2 * (torch.arange(n) % 2)
            parameter.copy_((order * signs / 8).view(parameter.shape))
    return model


def model(name: str) -> nn.Module:
    """Build one of `MODELS`, the same each time."""
    return numbered(MODELS[name][0]())


def inputs(name: str) -> tuple[Tensor]:
    """Draw a batch for one of `MODELS`, the same each time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return (MODELS[name][1](),)


@cache
def source_of(name: str) -> Program:
    """Capture one of `MODELS`, once; not to be edited."""
    return store.capture(model(name), inputs(name))


def program(name: str) -> Program:
    """Give a Program of one of `MODELS` that the test may edit."""
    return copy.deepcopy(source_of(name))


# Running passes


def selection(program: Program, *names: str) -> Selection:
    """Select parameters by first name; all of them when none is named."""
    sites = sites_of(program)
    return Selection(tuple(site for site in sites if not names or site.name in names))


def run(program: Program, *steps: Pass, given: Iterable[Any] = ()) -> tuple[Facts, Trace]:
    """Run passes on a Program in place, with empty facts where none are given."""
    facts = Facts([Importance(), GivenMasks(), Methods(), *given])
    return facts, Pipeline(steps).run(program, facts)


class Values(ScoreSource):
    """The values of a tensor as scores of its entries.

    Args:
        tensor: of any shape.
        kept: which entries are alive, a bool vector; None for all.
    """

    def __init__(self, tensor: Tensor, kept: Tensor | None = None) -> None:
        self.values, self.kept = tensor.reshape(-1), kept
        self.units = tensor.numel()
        self.alive = self.units if kept is None else int(kept.sum())

    @property
    def dtype(self) -> torch.dtype:
        return self.values.dtype

    def living(self, start: int, stop: int) -> Tensor | None:
        return None if self.kept is None else self.kept[start:stop]

    def chunk(self, start: int, stop: int) -> Tensor:
        part, living = self.values[start:stop], self.living(start, stop)
        return part if living is None else part[living]


# Texts for golden files


def both_texts(before: str, after: str) -> str:
    """Write what a pass was given and what it made of it."""
    return f"{before}\n---\n{after}\n"


def facts_text(fact: Any) -> str:
    """Write a fact, a line or more for each parameter."""
    if isinstance(fact, Selection):
        return "\n".join([*map(_site_text, fact.sites), *map(_refused_text, fact.refused)])
    if isinstance(fact, Scores):
        lines = [f"{name}: {_source_text(source)}" for name, source in fact.sources.items()]
        return "\n".join([*lines, f"dim={fact.dim} keep_first={fact.keep_first}"])
    if isinstance(fact, Ranking):
        lines = [f"{name}: {_cut_text(cut)}" for name, cut in fact.cuts.items()]
        return "\n".join([*lines, f"groups={fact.groups} ties={fact.ties}"])
    if isinstance(fact, NewMasks):
        return "\n".join(f"{name}: {mask.tolist()}" for name, mask in fact.make())
    raise TypeError(type(fact).__name__)


def _site_text(site: Any) -> str:
    used = ", ".join(f"{role} of {op}" for op, role in site.uses)
    kind = str(site.dtype).removeprefix("torch.")
    names = " = ".join(site.aliases)
    return f"{names}: {used}; in {', '.join(site.modules)}; {kind}{list(site.shape)}"


def _refused_text(refused: tuple[str, Any]) -> str:
    name, refusal = refused
    return f"not {name}: {refusal}"


def _source_text(source: ScoreSource) -> str:
    scores = source.chunk(0, source.units).tolist()
    return f"{source.alive} of {source.units} alive, {source.dtype}: {scores}"


def _cut_text(cut: Cut) -> str:
    at = f"threshold {cut.threshold}, {cut.quota} of the {cut.tied} at it"
    return f"{cut.count} go; {at}"
