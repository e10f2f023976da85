"""Faults in how many units go, and which."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch

from fxprune.errors import AmountError
from fxprune.passes.magnitude import MagnitudeScores
from fxprune.ranking import _compare
from tests.mutants.mutant import Mutant

__all__ = ["MUTANTS"]


def latest_tie_first(original: Callable[..., Any]) -> Callable[..., Any]:
    def pruned(scores: Any, ranking: Any, group: Any) -> Iterator[Any]:
        for name, gone in original(scores, ranking, group):
            source, cut = scores.sources[name], ranking.cuts[name]
            if cut.is_ambiguous:
                _, tied = _compare(source.chunk(0, source.units), cut.threshold)
                gone = gone & ~tied
                gone[tied.nonzero().view(-1)[-cut.quota :]] = True
            yield name, gone

    return pruned


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
    def init(self: Any, tensor: Any, mask: Any, n: Any, dim: int) -> None:
        original(self, tensor, mask, 1 if n == 2 else 2, dim)

    return init


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


def shifted(original: Any) -> Any:
    """Let the neighbours of the units go that rank."""

    def mask(program: Any, scores: Any, name: str, pruned: Any) -> Any:
        return original(program, scores, name, pruned.roll(1))

    return mask


def shifted_channels(original: Any) -> Any:
    def mask(program: Any, scores: Any, name: str, pruned: Any) -> Any:
        return original(program, scores, name, pruned if scores.dim is None else pruned.roll(-1))

    return mask


def inverted(original: Any) -> Any:
    return lambda program, scores, name, pruned: 1 - original(program, scores, name, pruned)


def revived(original: Any) -> Any:
    """Forget what earlier rules pruned."""

    def mask(program: Any, scores: Any, name: str, pruned: Any) -> Any:
        made = original(program, scores, name, pruned)
        living = scores.sources[name].living(0, scores.sources[name].units)
        if living is not None and scores.dim is None:
            made.view(-1)[~living] = 1
        return made

    return mask


def half_channels(original: Any) -> Any:
    """Leave the last entry of each channel alive."""

    def mask(program: Any, scores: Any, name: str, pruned: Any) -> Any:
        made = original(program, scores, name, pruned)
        if scores.dim is not None:
            other = 1 if scores.dim % made.ndim == 0 else 0
            made.select(other, -1).fill_(1)
        return made

    return mask


def scaled(original: Any) -> Any:
    return lambda program, scores, name, pruned: 2 * original(program, scores, name, pruned)


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


RANK, CUT = "fxprune.passes.rank:", "fxprune.passes.cut:"
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
    Mutant("norm of another order", "fxprune.passes.norm:NormScores.__init__", other_order),
    Mutant("norm of other values", "fxprune.passes.norm:masked_value", unmasked_norms),
    Mutant("global ranked locally", f"{RANK}Rank.run", with_field(scope=lambda scope: "local")),
    Mutant("local ranked globally", f"{RANK}Rank.run", with_field(scope=lambda scope: "global")),
    Mutant("entries off by one", f"{CUT}_mask", shifted),
    Mutant("channels off by one", f"{CUT}_mask", shifted_channels),
    Mutant("mask inverted", f"{CUT}_mask", inverted),
    Mutant("earlier masks forgotten", f"{CUT}_mask", revived),
    Mutant("channel half masked", f"{CUT}_mask", half_channels),
    Mutant("mask scales what it keeps", f"{CUT}_mask", scaled),
    Mutant("random scores drawn anew", "fxprune.passes.random:Draw.read", drawn_anew),
)
