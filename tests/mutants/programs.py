"""Models and recipes drawn for mutants: architectures, and what few of these have.

These are graphs that differ between the modes, regions without gradients, tied parameters, and
masks of torch.nn.utils.prune.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from torch import Tensor, nn
from torch.nn.utils import prune

from fxprune.testing.architecture import Arch, build
from fxprune.testing.drawing import architectures

AMOUNTS = (0.5, 0.25, 0.3, 0.75, 0.125, 0.9)


@dataclass(frozen=True)
class Drawn:
    """A model, made again each time, and a recipe for it.

    Attributes:
        kind: "arch", "modes", "no_grad", "tied" or "hooked".
        arch: the architecture of kinds "arch" and "hooked".
        number: which draw it is; the seed of the recipe, and of other kinds' weights.
    """

    kind: str
    arch: Arch
    number: int

    def model(self) -> tuple[nn.Module, tuple[Any, ...], dict[str, Any]]:
        """The model and its example inputs."""
        if self.kind in SPECIAL:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.number)
                made: nn.Module = SPECIAL[self.kind]()
                x = torch.randint(0, 5, (3, 2)) if self.kind == "tied" else torch.randn(3, 4)
                return made, (x,), {}
        made, args, kwargs = build(self.arch)
        if self.kind == "hooked":
            for name, parameter in list(made.named_parameters())[:4]:
                path, _, attribute = name.rpartition(".")
                if parameter.ndim > 1:
                    prune.l1_unstructured(made.get_submodule(path), attribute, 0.5)
        return made, args, kwargs

    def recipe(self) -> dict[str, Any]:
        """One to three rules of all kinds, often [finalize], and at times [shrink]."""
        rng = random.Random(self.number)
        rules = [_rule(rng) for _ in range(rng.choice([1, 1, 2, 3]))]
        recipe: dict[str, Any] = {"rule": rules}
        if rng.random() < 0.15:
            recipe["pass"] = [{"name": "unmask"}]
        elif rng.random() < 0.7:
            recipe["finalize"] = {"zeros": rng.choice(["keep", "keep", "clean"])}
            recipe |= {"shrink": {}} if rng.random() < 0.3 else {}
        return recipe


def _rule(rng: random.Random) -> dict[str, Any]:
    method = rng.choice(
        [
            "l1_unstructured",
            "l1_unstructured",
            "l1_unstructured",
            "random_unstructured",
            "ln_structured",
            "random_structured",
        ]
    )
    rule: dict[str, Any] = {"method": method, "amount": rng.choice(AMOUNTS), "optional": True}
    if method.endswith("_structured"):
        # Where two dimensions are of one size, either could be meant.
        rule |= {"select": {"ndim": [2, 3, 4, 5]}, "dim": rng.choice([0, 1])}
        rule |= {"n": rng.choice([1, 2])} if method == "ln_structured" else {}
    else:
        rule["select"] = rng.choice(["*", "*", "*weight*", "*bias*", {"ndim": [2, 3, 4, 5]}])
        rule["scope"] = rng.choice(["local", "global"])
    if rng.random() < 0.3:
        rule["ties"] = "torch"
    return rule


def drawn(count: int, start: int) -> Iterator[Drawn]:
    """Yield models and recipes, the same for the same numbers.

    Args:
        count: how many.
        start: the seed of the first; no two draws of one run overlap.
    """
    found: list[Arch] = []

    @seed(start)
    @settings(
        max_examples=count,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=[*HealthCheck],  # pyright: ignore[reportArgumentType]
    )
    @given(architectures(non_finite=True))
    def collect(arch: Arch) -> None:
        found.append(arch)

    collect()
    kinds = ("modes", "arch", "no_grad", "hooked", "arch", "tied", "arch", "arch", "arch")
    for i in range(count):
        yield Drawn(kinds[i % len(kinds)], found[i % len(found)], start + i)


class Modes(nn.Module):
    """Trains through a second head: one graph for each mode."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.norm = nn.BatchNorm1d(4)
        self.last = nn.Linear(4, 4)
        self.aux = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Any:
        x = torch.relu(self.norm(self.first(x)))
        if self.training:
            return self.last(x), self.aux(x)
        return self.last(x)


class NoGrad(nn.Module):
    """Reads a weight first in a region without gradients, and then outside of it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.last = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            target = torch.tanh(self.layer(x))
        return self.last(torch.relu(self.layer(x) - target))


class Tied(nn.Module):
    """An output layer whose weight is the embedding's."""

    def __init__(self) -> None:
        super().__init__()
        self.emb = nn.Embedding(5, 4)
        self.mid = nn.Linear(4, 4)
        self.out = nn.Linear(4, 5)
        self.out.weight = self.emb.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.tanh(self.mid(self.emb(x))))


SPECIAL: dict[str, type[nn.Module]] = {"modes": Modes, "no_grad": NoGrad, "tied": Tied}
