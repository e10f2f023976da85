"""Faults in how coupled channels are scored, ranked and masked."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch

from tests.mutants.cutting import Coupled
from tests.mutants.hunting import Hunt, Pool, hunt
from tests.mutants.mutant import Mutant
from tests.mutants.selecting import with_field

PROGRAMS = 12


def makers_alone(original: Any) -> Any:
    """Mask what makes the channels, and not what reads them."""

    def mask(held: Any, coupling: Any, gone: Any) -> torch.Tensor:
        made = original(held, coupling, gone)
        makers = {maker for layer in coupling.layers for maker in layer.makers}
        return made if held.name in makers else torch.ones_like(made)

    return mask


def neighbours(original: Any) -> Any:
    return lambda coupling, scores, ranking: original(coupling, scores, ranking).roll(1)


def other_order(original: Any) -> Any:
    return lambda tensor, dims, order: original(tensor, dims, {1.0: 2.0, 2.0: 1.0}[float(order)])


def all_living(original: Any) -> Any:
    return lambda program, coupling: torch.ones_like(original(program, coupling))


RANK = "fxprune.passes.rank:RankUnits."
MUTANTS = (
    Mutant("coupled readers not masked", "fxprune.passes.cut:_mask", makers_alone),
    Mutant("coupled channels off by one", "fxprune.passes.cut:_pruned_units", neighbours),
    Mutant("coupled norm of another order", "fxprune.passes.unit_scores:slice_sums", other_order),
    Mutant("dead coupled channels scored", "fxprune.passes.unit_scores:living_units", all_living),
    Mutant("limits of layers forgotten", f"{RANK}_most", lambda _: lambda self, layer, s: s.alive),
    Mutant("multiples forgotten", f"{RANK}_to_multiple", lambda _: lambda self, layer, all_, n: n),
    Mutant("layers ranked alone", f"{RANK}run", with_field(scope=lambda scope: "local")),
)


@cache
def _pool() -> Pool:
    """Programs to prune, captured once a process."""
    return Pool([Coupled("coupled", None, number) for number in range(PROGRAMS)])  # pyright: ignore[reportArgumentType]


def hunt_one(mutant: Mutant) -> Hunt:
    """Plant one fault, and compile until the checker says so."""
    return hunt(mutant, _pool())
