"""Faults in how many units go, and which."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch

from fxprune.errors import AmountError
from fxprune.passes.magnitude import MagnitudeScores
from tests.mutants.mutant import Mutant


def latest_tie_first(original: Callable[..., Any]) -> Callable[..., Any]:
    def pruned(scores: Any, ranking: Any, group: Any) -> Iterator[Any]:
        for name, chunks in original(scores, ranking, group):
            source, cut, parts = scores.sources[name], ranking.cuts[name], list(chunks)
            if cut.is_ambiguous:
                values = source.chunk(0, source.units)
                tied = values.isnan() if math.isnan(cut.threshold) else values == cut.threshold
                gone = joined(parts) & ~tied
                gone[tied.nonzero().view(-1)[-cut.quota :]] = True
                parts = [(0, source.units, gone)]
            yield name, iter(parts)

    return pruned


def joined(parts: Iterable[Any]) -> torch.Tensor:
    """Which of the living units go, of what comes in chunks."""
    return torch.cat([gone for _, _, gone in parts])


def counting(rounding: Callable[[float], int]) -> Callable[[Any], Any]:
    def change(original: Any) -> Any:
        def count(amount: float | int, alive: int, what: str) -> int:
            right = original(amount, alive, what)
            return right if isinstance(amount, int) else min(rounding(amount * alive), alive)

        return count

    return change


def one_more(original: Any) -> Any:
    def count(amount: float | int, alive: int, what: str) -> int:
        return min(original(amount, alive, what) + 1, alive)

    return count


def all_at_the_threshold(original: Any) -> Any:
    return lambda sources, k, *, all_ties: original(sources, k, all_ties=True)


def scored(change_scores: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Any], Any]:
    def change(original: Any) -> Any:
        return lambda self, start, stop: change_scores(original(self, start, stop))

    return change


def signed(original: Any) -> Any:
    def chunk(self: MagnitudeScores, start: int, stop: int) -> torch.Tensor:
        return self.entries.chunk(start, stop)

    return chunk


def other_order(original: Any) -> Any:
    return lambda tensor, n, dim, kept: original(tensor, 1 if n == 2 else 2, dim, kept)


def unmasked_norms(original: Any) -> Any:
    def value(program: Any, site: Any, importance: Any) -> Any:
        return original(program, site, importance).detach().neg().exp()

    return value


def with_field(**values: Any) -> Callable[[Any], Any]:
    """Run a pass with other options than it was given."""

    def change(original: Any) -> Any:
        def run(self: Any, program: Any, facts: Any) -> Any:
            changed = {k: v(getattr(self, k)) for k, v in values.items()}
            before = {k: getattr(self, k) for k in values}
            try:
                for k, v in changed.items():
                    object.__setattr__(self, k, v)
                return original(self, program, facts)
            finally:
                for k, v in before.items():
                    object.__setattr__(self, k, v)

        return run

    return change


def rolled(by: int) -> Callable[[Any], Any]:
    """Let the neighbours of the units go that rank."""

    def change(original: Any) -> Any:
        def mask(held: Any, source: Any, pruned: Any, *dim: int) -> Any:
            gone = joined(pruned).roll(by)
            return original(held, source, iter([(0, source.units, gone)]), *dim)

        return mask

    return change


def made(change: Callable[..., Any]) -> Callable[[Any], Any]:
    """Change a mask that was made."""

    def mutate(original: Any) -> Any:
        def mask(held: Any, source: Any, pruned: Any, *dim: int) -> Any:
            return change(original(held, source, pruned, *dim), source, *dim)

        return mask

    return mutate


def revived(mask: torch.Tensor, source: Any) -> torch.Tensor:
    """Forget what earlier rules pruned."""
    living = source.living(0, source.units)
    if living is not None:
        mask.view(-1)[~living] = 1
    return mask


def half_channels(mask: torch.Tensor, source: Any, dim: int) -> torch.Tensor:
    """Leave the last entry of each channel alive."""
    mask.select(1 if dim % mask.ndim == 0 else 0, -1).fill_(1)
    return mask


def drawn_anew(original: Any) -> Any:
    return lambda self, start, stop: torch.rand(stop - start, dtype=self.dtype)


def all_alive(original: Any) -> Any:
    """Count dead units among the living."""

    def count(amount: float | int, alive: int, what: str) -> int:
        if isinstance(amount, int):
            return original(amount, alive, what)
        wanted = original(amount, 2 * alive, what)
        if wanted > alive:
            raise AmountError("more than is alive")
        return wanted

    return count


RANK, CUT = "fxprune.ranking.kth:", "fxprune.passes.cut:"
RANK_PASS = "fxprune.passes.rank:Rank.run"
SCORES = "fxprune.passes.magnitude:MagnitudeScores.chunk"

MUTANTS = (
    Mutant("tie rule reversed", f"{CUT}pruned_of_group", latest_tie_first),
    Mutant("count rounded down", f"{RANK}count_of", counting(math.floor)),
    Mutant("count rounded up", f"{RANK}count_of", counting(math.ceil)),
    Mutant("halves rounded up", f"{RANK}count_of", counting(lambda x: math.floor(x + 0.5))),
    Mutant("one unit too many", f"{RANK}count_of", one_more),
    Mutant("dead units counted as living", f"{RANK}count_of", all_alive),
    Mutant("all ties pruned", f"{RANK}cut_group", all_at_the_threshold),
    Mutant("largest pruned", SCORES, scored(torch.neg)),
    Mutant("magnitude without abs", SCORES, signed),
    Mutant("norm of another order", "fxprune.passes.norm:channel_norms", other_order),
    Mutant("norm of other values", "fxprune.passes.norm:masked_value", unmasked_norms),
    Mutant("global ranked locally", RANK_PASS, with_field(scope=lambda scope: "local")),
    Mutant("local ranked globally", RANK_PASS, with_field(scope=lambda scope: "global")),
    Mutant("entries off by one", f"{CUT}_of_entries", rolled(1)),
    Mutant("channels off by one", f"{CUT}_of_channels", rolled(-1)),
    Mutant("mask inverted", f"{CUT}_of_entries", made(lambda mask, source: 1 - mask)),
    Mutant("earlier masks forgotten", f"{CUT}_of_entries", made(revived)),
    Mutant("channel half masked", f"{CUT}_of_channels", made(half_channels)),
    Mutant("mask scales what it keeps", f"{CUT}_of_entries", made(lambda mask, source: 2 * mask)),
    Mutant("random scores drawn anew", "fxprune.ranking.draws:Draw.read", drawn_anew),
)
